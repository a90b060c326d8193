"""Small models of every kind for the tests of `attntut.adjust`, each with what it is called with."""

import warnings

import torch
from torch import Tensor, nn

from attntut import Transformer, TransformerConfig
from attntut.parts import GroupedQueries, RMSNorm, Rotary, SwiGLU

try:
    import transformers
except ModuleNotFoundError:  # then there are ours and torch's
    transformers = None

D, H, FF, VOCAB = 16, 4, 24, 30
SMALL = dict(hidden_size=D, num_attention_heads=H, num_hidden_layers=2, intermediate_size=FF)
WORDS = SMALL | dict(vocab_size=VOCAB, max_position_embeddings=20, pad_token_id=0)
GROUPED = WORDS | dict(num_key_value_heads=2)
GPT2 = dict(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=H, n_positions=20, bos_token_id=1, eos_token_id=1)
T5 = dict(vocab_size=VOCAB, d_model=D, d_kv=6, d_ff=FF, num_layers=1, num_heads=H, pad_token_id=0)


def ours(**changes) -> nn.Module:
    return Transformer(TransformerConfig(**dict(n_classes=3, d_input=5, d_model=D, n_heads=H, d_ff=FF) | changes))


def seq2seq() -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return nn.Transformer(D, H, 1, 1, FF, batch_first=True)


def encoder(**changes) -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, FF, batch_first=True, **changes), 2)


def hugging_face(name: str, attention: str = "eager", **config) -> nn.Module:
    kind = getattr(transformers, name)
    return kind(kind.config_class(**config, attn_implementation=attention))


MODERN = dict(d_input=None, vocab_size=VOCAB, is_causal=True, positions="none")
PARTS = (RMSNorm(), Rotary(), GroupedQueries(2), SwiGLU())
MODELS = {
    "ours": ours,
    "ours, packed, post-LN": lambda: ours(packed=True, norm="post"),
    "ours, modern": lambda: ours(**MODERN, parts=PARTS),
    "torch attention": lambda: nn.MultiheadAttention(D, H),
    "torch encoder": encoder,
    "torch transformer": seq2seq,
}
if transformers is not None:
    MODELS |= {
        "BERT": lambda: hugging_face("BertModel", **WORDS),
        "BERT, sdpa": lambda: hugging_face("BertModel", "sdpa", **WORDS),
        "GPT-2": lambda: hugging_face("GPT2LMHeadModel", **GPT2),
        "T5": lambda: hugging_face("T5ForConditionalGeneration", **T5),
        "Llama": lambda: hugging_face("LlamaForCausalLM", **GROUPED),
        "Llama, sdpa": lambda: hugging_face("LlamaForCausalLM", "sdpa", **GROUPED),
        "ViT": lambda: hugging_face("ViTModel", "sdpa", **SMALL, image_size=8, patch_size=4),
    }


def inputs_of(name: str) -> dict[str, Tensor]:
    """What a model is called with, two sequences; BERT and Llama have a mask for padding too."""
    words, tokens = torch.randint(1, VOCAB, (2, 6)), torch.randn(2, 6, D)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    if name.startswith("ours"):
        return dict(x=words if "modern" in name else torch.randn(2, 6, 5))
    if name == "torch attention":
        return dict(query=tokens, key=tokens, value=tokens)
    if name == "torch encoder":
        return dict(src=tokens, src_key_padding_mask=mask == 0)
    if name == "torch transformer":
        return dict(src=tokens, tgt=tokens)
    if name == "T5":
        return dict(input_ids=words, decoder_input_ids=words)
    if name == "ViT":
        return dict(pixel_values=torch.randn(2, 3, 8, 8))
    return dict(input_ids=words, attention_mask=mask)


def gemma_with_and_without_a_cap() -> tuple[nn.Module, nn.Module]:
    """Two models with the same weights; the first bends its logits to ±0.3."""
    config = WORDS | dict(num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=4, sliding_window=64)
    own = hugging_face("Gemma2Model", **config, attn_logit_softcapping=0.3).eval()
    plain = hugging_face("Gemma2Model", **config, attn_logit_softcapping=None).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(own.state_dict())
    return own, plain


def check_gradients(model: nn.Module, x: Tensor) -> None:
    """With respect to inputs and weights they are those of finite differences."""
    weights = {name: each.detach().requires_grad_() for name, each in model.named_parameters()}

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(weights, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x.requires_grad_(), *weights.values()))


def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The first tensor that a model gives."""
    found = model(**inputs)
    return found if isinstance(found, Tensor) else found[0]
