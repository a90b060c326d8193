"""Every family of models: which parameter is found to be what, with which fans, in which memory."""

import math
import re
import warnings

import pytest
import torch
from torch import nn

from attntut import MultiHeadAttention, Transformer, TransformerConfig
from attntut.anatomy.view import listen, look
from attntut.device import seeded
from attntut.init import initialize_, schemes, view

transformers = pytest.importorskip("transformers")

D, H, FF, VOCAB = 32, 4, 48, 50
SMALL = dict(hidden_size=D, num_attention_heads=H, num_hidden_layers=2, intermediate_size=FF)
BERT = SMALL | dict(vocab_size=VOCAB, max_position_embeddings=20)
LLAMA = SMALL | dict(vocab_size=VOCAB, num_key_value_heads=2)
GPT2 = dict(vocab_size=VOCAB, n_embd=D, n_layer=2, n_head=H, n_positions=20, bos_token_id=1, eos_token_id=1)
T5 = dict(vocab_size=VOCAB, d_model=D, d_kv=6, d_ff=FF, num_layers=2, num_decoder_layers=3, num_heads=H)
VIT = SMALL | dict(image_size=8, patch_size=4, num_labels=3)


def hugging_face(name: str, config: dict):
    """A model of this class, made from a configuration; nothing is downloaded."""
    kind = getattr(transformers, name)
    return kind(kind.config_class(**config))


def ours(**changes) -> Transformer:
    return Transformer(TransformerConfig(**dict(n_classes=3, d_input=5, d_model=D, n_heads=H, d_ff=FF) | changes))


def encoder(n_layers=3, **changes) -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, H, FF, batch_first=True, **changes)
    return nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)


def seq2seq() -> nn.Module:
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return nn.Transformer(D, H, 2, 3, FF)


MODELS = {
    "ours": ours,
    "ours, packed": lambda: ours(packed=True),
    "ours, tokens": lambda: ours(d_input=None, vocab_size=VOCAB, is_causal=True),
    "ours, sub-LN with gains": lambda: ours(
        norm="sub", branch_gain=0.1, branch_gain_per_channel=True, skip_weights=True
    ),
    "ours, no feed-forward": lambda: ours(d_ff=0, positions="sinusoidal", bias=False),
    "ours, one layer": lambda: MultiHeadAttention(D, H),
    "torch attention": lambda: nn.MultiheadAttention(D, H),
    "torch attention, unpacked": lambda: nn.MultiheadAttention(D, H, kdim=20, vdim=24, add_bias_kv=True),
    "torch encoder layer": lambda: nn.TransformerEncoderLayer(D, H, FF),
    "torch decoder layer": lambda: nn.TransformerDecoderLayer(D, H, FF),
    "torch encoder": lambda: encoder(norm_first=True),
    "torch decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(D, H, FF), 2),
    "torch transformer": seq2seq,
    "BERT": lambda: hugging_face("BertModel", BERT),
    "BERT, masked": lambda: hugging_face("BertForMaskedLM", BERT),
    "BERT, untied": lambda: hugging_face("BertForMaskedLM", BERT | dict(tie_word_embeddings=False)),
    "BERT, classes": lambda: hugging_face("BertForSequenceClassification", BERT),
    "GPT-2": lambda: hugging_face("GPT2LMHeadModel", GPT2),
    "GPT-2, cross": lambda: hugging_face("GPT2LMHeadModel", GPT2 | dict(add_cross_attention=True)),
    "T5": lambda: hugging_face("T5ForConditionalGeneration", T5),
    "T5, gated": lambda: hugging_face("T5ForConditionalGeneration", T5 | dict(feed_forward_proj="gated-gelu")),
    "T5, encoder only": lambda: hugging_face("T5EncoderModel", T5),
    "Llama": lambda: hugging_face("LlamaForCausalLM", LLAMA),
    "Llama, tied, wide heads": lambda: hugging_face(
        "LlamaForCausalLM", LLAMA | dict(tie_word_embeddings=True, head_dim=12, attention_bias=True, mlp_bias=True)
    ),
    "ViT": lambda: hugging_face("ViTForImageClassification", VIT),
    "ViT, masked": lambda: transformers.ViTModel(transformers.ViTConfig(**VIT), use_mask_token=True),
}


def branch(n_layers, *, stack="encoder", kv=D, cross=0, gates=1, inner=D, ff=FF, d_head=D // H, attention=1):
    """How often each ``(role, shape, stack, n_layers, d_head, is_cross)`` of ordinary blocks occurs."""
    shapes = {"query": (inner, D), "key": (kv, D), "value": (kv, D), "output": (D, inner)}
    found = {(role, shape, stack, n_layers, d_head, False): n_layers for role, shape in shapes.items() if attention}
    found |= {(role, shape, stack, n_layers, d_head, True): n_layers for role, shape in shapes.items() if cross}
    if ff:
        found["feed_forward_in", (ff, D), stack, n_layers, d_head, False] = gates * n_layers
        found["feed_forward_out", (D, ff), stack, n_layers, d_head, False] = n_layers
    return found


def outer(*parts, n_layers=2, stack="encoder", d_head=D // H):
    """The same for what is around the blocks."""
    found = {}
    for role, shape in parts:
        key = (role, shape, stack, n_layers, d_head, False)
        found[key] = found.get(key, 0) + 1
    return found


OURS = [("embedding", (D, 5)), ("position", (D, 16)), ("readout", (3, D))]
WORDS, POSITIONS, TYPES = ("embedding", (D, VOCAB)), ("position", (D, 20)), ("embedding", (D, 2))
SQUARE = ("readout", (D, D))
PATCHES = [("embedding", (D, 48)), ("position", (D, 5)), ("embedding", (D, 1))]
RELATIVE = ("position", (H, 32))

EXPECTED = {
    "ours": branch(2) | outer(*OURS),
    "ours, packed": branch(2) | outer(*OURS),
    "ours, tokens": branch(2, stack="decoder") | outer(("embedding", (D, VOCAB)), *OURS[1:], stack="decoder"),
    "ours, sub-LN with gains": branch(2) | outer(*OURS),
    "ours, no feed-forward": branch(2, ff=0) | outer(OURS[0], OURS[2]),
    "ours, one layer": branch(1, ff=0),
    "torch attention": branch(1, ff=0),
    "torch attention, unpacked": {
        (role, shape, "encoder", 1, D // H, False): 1
        for role, shape in {"query": (D, D), "key": (D, 20), "value": (D, 24), "output": (D, D)}.items()
    },
    "torch encoder layer": branch(1),
    "torch decoder layer": branch(1, stack="decoder", cross=1),
    "torch encoder": branch(3),
    "torch decoder": branch(2, stack="decoder", cross=1),
    "torch transformer": branch(2) | branch(3, stack="decoder", cross=1),
    "BERT": branch(2) | outer(WORDS, POSITIONS, TYPES, SQUARE),
    "BERT, masked": branch(2) | outer(WORDS, POSITIONS, TYPES, SQUARE),
    "BERT, untied": branch(2) | outer(WORDS, POSITIONS, TYPES, SQUARE, ("readout", (VOCAB, D))),
    "BERT, classes": branch(2) | outer(WORDS, POSITIONS, TYPES, SQUARE, ("readout", (2, D))),
    "GPT-2": branch(2, stack="decoder", ff=4 * D) | outer(WORDS, POSITIONS, stack="decoder"),
    "GPT-2, cross": branch(2, stack="decoder", ff=4 * D, cross=1) | outer(WORDS, POSITIONS, stack="decoder"),
    "T5": branch(2, kv=24, inner=24, d_head=6)
    | branch(3, kv=24, inner=24, d_head=6, stack="decoder", cross=1)
    | outer(WORDS, RELATIVE, d_head=6)
    | outer(RELATIVE, d_head=6, stack="decoder", n_layers=3),
    "T5, gated": branch(2, kv=24, inner=24, d_head=6, gates=2)
    | branch(3, kv=24, inner=24, d_head=6, stack="decoder", cross=1, gates=2)
    | outer(WORDS, RELATIVE, d_head=6)
    | outer(RELATIVE, d_head=6, stack="decoder", n_layers=3),
    "T5, encoder only": branch(2, kv=24, inner=24, d_head=6) | outer(WORDS, RELATIVE, d_head=6),
    "Llama": branch(2, kv=16, stack="decoder", gates=2) | outer(WORDS, ("readout", (VOCAB, D)), stack="decoder"),
    "Llama, tied, wide heads": branch(2, inner=48, kv=24, d_head=12, stack="decoder", gates=2)
    | outer(WORDS, stack="decoder", d_head=12),
    "ViT": branch(2) | outer(*PATCHES, ("readout", (3, D))),
    "ViT, masked": branch(2) | outer(*PATCHES, ("embedding", (D, 1)), SQUARE),
}
TRAITS = {
    "ours": ("pre", D, H),
    "torch attention": (None, D, H),
    "torch encoder layer": ("post", D, H),
    "torch encoder": ("pre", D, H),
    "BERT": ("post", D, H),
    "GPT-2": ("pre", D, H),
    "T5": ("pre", None, None),
    "Llama": ("pre", D, H),
    "ViT": ("pre", D, H),
}


@pytest.fixture(scope="module")
def models():
    """Each model is made once; a test that changes it leaves nothing that another reads."""
    made = {}

    def make(name: str) -> nn.Module:
        if name not in made:
            made[name] = MODELS[name]()
        return made[name]

    return make


@pytest.mark.parametrize("name", MODELS)
def test_roles_fans_and_places(models, name):
    found = {}
    for entry in view(models(name)).entries:
        w = entry.weight
        key = (w.role, w.shape, w.stack, w.n_layers, w.d_head, w.is_cross)
        found[key] = found.get(key, 0) + 1
        assert w.shape == tuple(entry.view.shape) and w.n_heads == H and w.d_model == D
    assert found == EXPECTED[name]


@pytest.mark.parametrize("name", MODELS)
def test_every_number_is_in_one_drawer_and_only_one(models, name):
    """Write 1 through each drawer: every entry of every parameter must then be 1, none 2."""
    model = models(name)
    seen = view(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for entry in seen.entries:
            entry.view.add_(1)
            if entry.bias is not None:
                entry.bias.add_(1)
        for tensor in [
            *(each for pair in seen.norms.values() for each in pair),
            *seen.biases.values(),
            *seen.gains.values(),
        ]:
            if tensor is not None:
                tensor.add_(1)
    wrong = {key for key, parameter in model.named_parameters() if not (parameter == 1).all()}
    assert not wrong, "These were missed, or reached twice."


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_are_counted_from_one_within_their_stack(models, name):
    seen = view(models(name))
    layers = {}
    for entry in seen.entries:
        w = entry.weight
        if w.role == "query":
            layers.setdefault((w.stack, w.is_cross, w.n_layers), []).append(w.layer)
        assert (w.n_encoder > 0) == (w.n_decoder > 0) == (name in ("torch transformer", "T5", "T5, gated"))
        if w.n_encoder:
            assert (w.n_encoder, w.n_decoder) == (2, 3)
    assert all(found == list(range(1, n_layers + 1)) for (_, _, n_layers), found in layers.items()), layers


@pytest.mark.parametrize("name", MODELS)
def test_each_attention_is_complete(models, name):
    for attention in view(models(name)).attention:
        parts = {role: getattr(attention, role) for role in ("query", "key", "value", "output")}
        assert all(part is not None and part.weight.role == role for role, part in parts.items())
        assert len({(part.weight.stack, part.weight.layer, part.weight.is_cross) for part in parts.values()}) == 1


@pytest.mark.parametrize("name", TRAITS)
def test_what_is_known_of_the_architecture(models, name):
    norm, d_model, n_heads = TRAITS[name]
    traits = view(models(name)).traits
    assert traits.get("norm") == norm
    assert traits["scale"] == (1.0 if d_model is None else pytest.approx((d_model // n_heads) ** -0.5))


@pytest.mark.parametrize("name", MODELS)
def test_initialize_every_family(models, name):
    model = models(name)
    initialize_(model, "xavier_normal", generator=seeded(0))
    for entry in view(model).entries:
        if entry.weight.role in ("query", "key", "value", "output", "feed_forward_in", "feed_forward_out"):
            assert disagreement(entry) is None, disagreement(entry)
        if entry.bias is not None:
            assert (entry.bias == 0).all()


def disagreement(entry, z=5.0) -> str | None:
    """What a z-test has against Xavier's law for this one projection."""
    wanted = math.sqrt(2 / sum(entry.weight.shape))
    ratio = entry.view.std().item() / wanted
    if abs(ratio - 1) > z / math.sqrt(2 * entry.view.numel()):
        return f"{entry.parameter} ({entry.weight.role}): std is {ratio:.3f} times the promised {wanted:.4f}."
    return None


# --- wrong variants are noticed


def test_a_packed_fan_is_noticed(models):
    for wrong in (lambda m: m._reset_parameters(), lambda m: initialize_(m, "xavier_packed")):
        attention = nn.MultiheadAttention(128, H)
        wrong(attention)
        verdicts = [disagreement(entry) for entry in view(attention).entries]
        assert all(re.search(r"0\.(69|70|71|72)\d times", verdict) for verdict in verdicts[:3]), "Each is √2 too small."
    gpt2 = hugging_face("GPT2Model", GPT2)
    with torch.no_grad():
        for block in gpt2.h:
            nn.init.xavier_normal_(block.attn.c_attn.weight)  # as if (d, 3d) were one matrix
    packed = [entry for entry in view(gpt2).entries if "c_attn" in entry.parameter]
    assert len(packed) == 6 and all(disagreement(entry) for entry in packed)


def test_a_query_s_fan_for_a_grouped_key_is_noticed():
    model = hugging_face("LlamaForCausalLM", LLAMA | dict(hidden_size=128, num_key_value_heads=1))
    initialize_(model, "xavier_normal", generator=seeded(0))
    keys = [entry for entry in view(model).entries if entry.weight.role == "key"]
    assert [entry.weight.shape for entry in keys] == [(32, 128)] * 2 and not any(map(disagreement, keys))
    for entry in keys:
        entry.view.normal_(0, math.sqrt(2 / (128 + 128)), generator=seeded(1))
    assert all(map(disagreement, keys))


def orthogonality_error(matrix: torch.Tensor) -> float:
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return (matrix @ matrix.mT - torch.eye(len(matrix))).abs().max().item()


@pytest.mark.parametrize(
    "name", ["ours, packed", "torch encoder", "torch attention, unpacked", "GPT-2, cross", "Llama"]
)
def test_each_projection_is_orthogonal_whatever_the_storage(models, name):
    model = models(name)
    initialize_(model, "orthogonal", generator=seeded(0))
    inner = view(model).by_role("query", "key", "value", "output", "feed_forward_in", "feed_forward_out")
    assert max(orthogonality_error(entry.view) for entry in inner) < 1e-5
    one = {(entry.weight.stack, entry.weight.layer, entry.weight.is_cross): entry.view for entry in inner}
    assert len({view.sum().item() for view in one.values()}) == len(one), "Two layers got the same draw."


def test_an_orthogonal_packed_matrix_has_no_orthogonal_blocks():
    """What the last test is there to notice."""
    attention = nn.MultiheadAttention(D, H)
    nn.init.orthogonal_(attention.in_proj_weight)
    assert min(orthogonality_error(entry.view) for entry in view(attention).entries[:3]) > 0.1


def test_packed_and_separate_models_get_the_same_law():
    draws = {}
    for packed in (False, True):
        model = ours(packed=packed, d_model=64, n_layers=4)
        initialize_(model, "xavier_uniform", generator=seeded(0))
        draws[packed] = torch.stack([entry.view for entry in view(model).by_role("query", "key", "value")])
    separate, packed = draws.values()
    bound = math.sqrt(6 / 128)
    for draw in draws.values():
        assert bound * 0.999 < draw.abs().max() <= bound
    assert abs(packed.std() / separate.std() - 1) < 5 / math.sqrt(packed.numel())


def test_the_transposed_block_lands_where_the_model_reads_it():
    """GPT-2's attention computes with the projections that the view shows."""
    model = hugging_face("GPT2Model", GPT2)
    initialize_(model, "normal", std=1.0, generator=seeded(0))
    block, x = model.h[0].attn, torch.randn(3, D)
    parts = block.c_attn(x).split(D, dim=-1)
    group = view(model).attention[0]
    for part, entry in zip(parts, (group.query, group.key, group.value), strict=True):
        torch.testing.assert_close(part, x @ entry.view.mT, atol=1e-4, rtol=1e-4)


def test_a_tied_readout_is_drawn_once_as_an_embedding():
    model = hugging_face("GPT2LMHeadModel", GPT2)
    initialize_(model, "lecun_normal", generator=seeded(0))
    assert model.lm_head.weight is model.transformer.wte.weight
    assert [entry.weight.role for entry in view(model).entries].count("readout") == 0
    assert abs(model.lm_head.weight.std() / 0.02 - 1) < 0.1, "As a table, not as a matrix of fan-in d_model."


def test_a_padding_row_stays_zero():
    model = hugging_face("BertModel", BERT | dict(pad_token_id=3))
    initialize_(model, "normal", generator=seeded(0))
    table = model.embeddings.word_embeddings.weight
    assert (table[3] == 0).all() and (table[2] != 0).all()


def test_torch_s_extra_key_and_value_are_biases():
    attention = nn.MultiheadAttention(D, H, add_bias_kv=True)
    assert set(view(attention).biases) == {"bias_k", "bias_v"}
    initialize_(attention, "normal")
    assert (attention.bias_k == 0).all() and (attention.bias_v == 0).all()


def test_a_library_s_own_names_can_be_given():
    config = transformers.DistilBertConfig(vocab_size=VOCAB, dim=D, n_heads=H, n_layers=2, hidden_dim=FF)
    model = nn.ModuleList([transformers.DistilBertModel(config)])  # a list brings no inputs of its own
    with pytest.raises(ValueError, match=r"module must contain attention.*ModuleList"):
        view(model)
    roles = {role: f"*.{role[0]}_lin.weight" for role in ("query", "key", "value")} | {
        "output": "*.out_lin.weight",
        "feed_forward_in": "*.lin1.weight",
        "feed_forward_out": "*.lin2.weight",
    }
    seen = view(model, roles=roles)
    counts = {(each.weight.role, each.weight.shape, each.weight.n_layers) for each in seen.entries}
    assert {("query", (D, D), 2), ("feed_forward_out", (D, FF), 2)} < counts
    initialize_(model, "xavier_normal", roles=roles)


def test_part_of_a_larger_model():
    model = nn.Sequential(nn.Linear(7, D), encoder(2), nn.Linear(D, 3))
    with pytest.raises(ValueError, match=r"none is known for 0.weight \(32, 7\), 2.weight \(3, 32\)"):
        view(model)
    seen = view(model, roles={"embedding": "0.weight", "readout": "2.weight"})
    assert [entry.weight.layer for entry in seen.by_role("query")] == [1, 2], "The outer list is no stack."
    assert not seen.by_role("embedding")[0].weight.is_table and seen.by_role("readout")[0].weight.n_layers == 2


def test_a_subclass_is_what_it_descends_from():
    class Mine(nn.MultiheadAttention):
        pass

    assert len(view(Mine(D, H)).entries) == 4


@pytest.mark.parametrize("name", ["t5", "deepnorm", "t_fixup"])
def test_requirements_are_read_from_foreign_models(name, models):
    has = {"t5": "T5", "deepnorm": None, "t_fixup": None}[name]
    for model in ("BERT", "GPT-2", "T5", "Llama", "torch encoder"):
        if model == has:
            initialize_(models(model), name)
        else:
            with pytest.raises(ValueError, match=f"'{name}' needs {schemes()[name].requires[0]}|'{name}' needs"):
                initialize_(models(model), name)


# --- names and listening agree


def inputs_of(name: str):
    """What a model of the table is called with, so that every part of it runs."""
    x, words = torch.randn(2, 16, D), torch.randint(VOCAB, (2, 16))
    if name == "ours, tokens":
        return words
    if name == "ours, one layer":
        return x
    if name.startswith("ours"):
        return torch.randn(2, 16, 5)
    if name == "torch attention, unpacked":
        return x, torch.randn(2, 16, 20), torch.randn(2, 16, 24)
    if name == "torch attention":
        return x, x, x
    if name.startswith("torch encoder"):
        return x
    if name.startswith("torch"):
        return x, torch.randn(2, 16, D)
    if name == "T5, encoder only" or name.startswith(("BERT", "Llama")):
        return {"input_ids": words}
    if name.startswith("T5"):
        return {"input_ids": words, "decoder_input_ids": words}
    if name.startswith("GPT-2"):
        return {"input_ids": words} | ({"encoder_hidden_states": x} if "cross" in name else {})
    pixels = {"pixel_values": torch.randn(2, 3, 8, 8)}
    return pixels | ({"bool_masked_pos": torch.ones(2, 4, dtype=torch.bool)} if "masked" in name else {})


@pytest.mark.parametrize("name", MODELS)
def test_names_and_listening_agree(models, name):
    model = models(name)
    by_name, by_ear = look(model), look(model, heard=listen(model, inputs_of(name)))
    said, heard = (
        {(e.parameter, e.view.storage_offset(), e.view.shape): (e.weight, e.attention, e.role) for e in seen.entries}
        for seen in (by_name, by_ear)
    )
    assert said == heard
    assert {key: by_name.traits[key] for key in ("norm", "scale") if by_name.traits.get(key) is not None}.items() <= (
        by_ear.traits.items()
    )
