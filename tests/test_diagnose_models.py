"""What ``diagnose`` says of Hugging Face's models, against the attention weights that they give out themselves."""

from __future__ import annotations

import math

import pytest
import torch

from attntut import measure
from attntut.diagnose import diagnose, listen
from attntut.diagnose.report import STATISTICS

transformers = pytest.importorskip("transformers")

BATCH, TOKENS = 2, 7
SIZES = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)


@pytest.fixture
def exact_softmax(monkeypatch):
    """Llama's and ViT's softmax computes in float32 whatever comes: let it keep what it gets."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


def tokens(*shape):
    return torch.randint(3, 50, shape)


def padding():
    mask = torch.ones(BATCH, TOKENS, dtype=torch.long)
    mask[0, 4:] = 0
    return mask


def bert():
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SIZES)
    return transformers.BertModel, config, dict(input_ids=tokens(BATCH, TOKENS), attention_mask=padding())


def gpt2():
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=4)
    return transformers.GPT2Model, config, dict(input_ids=tokens(BATCH, TOKENS))


def llama():
    config = transformers.LlamaConfig(vocab_size=50, num_key_value_heads=2, max_position_embeddings=16, **SIZES)
    return transformers.LlamaModel, config, dict(input_ids=tokens(BATCH, TOKENS), attention_mask=padding())


def t5():
    config = transformers.T5Config(
        vocab_size=50, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_decoder_layers=2, num_heads=4
    )
    inputs = dict(input_ids=tokens(BATCH, TOKENS), attention_mask=padding(), decoder_input_ids=tokens(BATCH, 5))
    return transformers.T5Model, config, inputs


def vit():
    config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
    return transformers.ViTModel, config, dict(pixel_values=torch.randn(BATCH, 3, 8, 8))


def whisper():
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
    sizes = dict(vocab_size=50, d_model=16, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=4)
    config = transformers.WhisperConfig(**sizes, **layers, **special, max_source_positions=6, max_target_positions=8)
    inputs = dict(input_features=torch.randn(BATCH, 4, 12), decoder_input_ids=tokens(BATCH, 5))
    return transformers.WhisperModel, config, inputs


FAMILIES = [bert, gpt2, llama, t5, vit, whisper]


def build(family, implementation="eager", dtype=torch.float64):
    torch.manual_seed(0)
    kind, config, inputs = family()
    config._attn_implementation = implementation
    model = kind(config).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)  # logits worth measuring
    return model, {key: x.to(dtype) if x.is_floating_point() else x for key, x in inputs.items()}


def maps(output):
    """The attention weights in the order of the forward pass."""
    if "encoder_attentions" not in output:
        return list(output.attentions)
    decoder = [each for pair in zip(output.decoder_attentions, output.cross_attentions, strict=True) for each in pair]
    return [*output.encoder_attentions, *decoder]


def expected(weights, is_cross):
    """The statistics of each head, by the functions of ``attntut.measure``: ``name -> (H,)``."""
    weights = weights.double()
    seen = weights > 0
    log = weights.log()
    centred = (log - log.where(seen, 0).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True)).where(seen, 0)
    entropy = measure.attention_entropy(weights)
    several = seen.sum(-1) > 1
    share = measure.attention_entropy(weights, normalized=True, mask=seen)
    largest = weights.amax(-1)
    return {
        "logit_std": (centred.square().sum((0, 2, 3)) / seen.sum((0, 2, 3))).sqrt(),
        "entropy": entropy.mean((0, 2)),
        "entropy_share": share.nan_to_num(0).sum((0, 2)) / several.sum((0, 2)),
        "max_weight": largest.mean((0, 2)),
        "saturated": ((largest > 0.99) & several).sum((0, 2)).double() / several.sum((0, 2)),
        "first": weights[..., 0].mean((0, 2)),
        "self": torch.full((weights.shape[1],), math.nan)
        if is_cross
        else weights.diagonal(dim1=-2, dim2=-1).mean((0, 2)),
    }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.usefixtures("exact_softmax")
def test_exact_against_the_weights_that_the_model_gives_out(family, dtype, tolerance):
    model, inputs = build(family, dtype=dtype)
    with torch.no_grad():
        true = maps(model(**inputs, output_attentions=True))
    report = diagnose(model, inputs)
    layers = report.layers()
    assert [(layer["heads"], layer["n_query"], layer["n_key"]) for layer in layers] == [
        tuple(each.shape[1:]) for each in true
    ]
    assert {layer["calls"] for layer in layers} == {1}
    for layer, weights in zip(layers, true, strict=True):
        rows = [row for row in report.rows if row["layer"] == layer["layer"]]
        for name, values in expected(weights, layer["kind"] == "cross").items():
            measured = torch.tensor([row[name] for row in rows], dtype=torch.float64)
            torch.testing.assert_close(
                measured, values.double(), atol=tolerance, rtol=tolerance, equal_nan=True,
                msg=lambda text, name=name, layer=layer: f"{name} in {layer['layer']}: {text}",
            )  # fmt: skip
    assert not [note for note in report.notes if "attention" in note], report.notes


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("exact_softmax")
def test_the_fused_kernel_computes_the_same(family):
    eager, fused = (diagnose(*build(family, implementation)) for implementation in ("eager", "sdpa"))
    assert [row["layer"] for row in eager.rows] == [row["layer"] for row in fused.rows] != []
    for one, other in zip(eager.rows, fused.rows, strict=True):
        for name in STATISTICS:
            assert one[name] == pytest.approx(other[name], rel=1e-9, abs=1e-9, nan_ok=True), (name, one["layer"])
    for one, other in zip(eager.stream, fused.stream, strict=True):
        assert one["rms"] == pytest.approx(other["rms"], rel=1e-9), one["layer"]


NAMES = {
    bert: ["encoder.layer.0.attention.self", "encoder.layer.1.attention.self"],
    gpt2: ["h.0.attn", "h.1.attn"],
    llama: ["layers.0.self_attn", "layers.1.self_attn"],
    whisper: [
        *("encoder.layers.0.self_attn", "encoder.layers.1.self_attn"),
        *("decoder.layers.0.self_attn", "decoder.layers.0.encoder_attn"),
        *("decoder.layers.1.self_attn", "decoder.layers.1.encoder_attn"),
    ],
}


@pytest.mark.parametrize("family", NAMES)
def test_layers_have_the_names_of_the_modules(family):
    report = diagnose(*build(family))
    assert [layer["layer"] for layer in report.layers()] == NAMES[family]
    crossing = [layer["layer"] for layer in report.layers() if layer["kind"] == "cross"]
    assert crossing == [name for name in NAMES[family] if "encoder_attn" in name]


BLOCKS = {
    bert: ["encoder.layer.0", "encoder.layer.1"],
    gpt2: ["h.0", "h.1"],
    llama: ["layers.0", "layers.1"],
    t5: ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"],
    vit: None,
    whisper: ["encoder.layers.0", "encoder.layers.1", "decoder.layers.0", "decoder.layers.1"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_and_the_gradients(family):
    model, inputs = build(family, "sdpa")
    hidden = {}

    def loss(output):
        hidden["states"] = output.get("hidden_states") or output["encoder_hidden_states"]
        return output["last_hidden_state"].square().sum()

    report = diagnose(model, {**inputs, "output_hidden_states": True}, loss)
    names = [block["layer"] for block in report.stream]
    assert names == BLOCKS[family] or (BLOCKS[family] is None and len(names) == 2), "Blocks are what repeats."
    rms = [block["rms"] for block in report.stream]
    first = hidden["states"][1]  # of the first block
    assert rms[0] == pytest.approx(measure.rms(first).item(), rel=1e-10)
    cosine = measure.token_cosine(first).mean().item()
    assert report.stream[0]["token_cosine"] == pytest.approx(cosine, abs=1e-10)
    assert all(block["gradient_rms"] > 0 for block in report.stream)

    assert all(parameter.grad is None for parameter in model.parameters())
    output = model(**inputs)
    output["last_hidden_state"].square().sum().backward()
    expected_norm = query_gradient(family, model)
    assert report.gradients[0]["query"] == pytest.approx(expected_norm, rel=1e-8), report.gradients[0]
    assert len(report.gradients) == len(report.layers())
    assert {line["layer"] for line in report.gradients} == {line["layer"] for line in report.rows}


def query_gradient(family, model):
    if family is gpt2:
        return model.h[0].attn.c_attn.weight.grad[:, :16].norm().item()
    first = next(p for name, p in model.named_parameters() if ".q" in name and name.endswith("weight"))
    return first.grad.norm().item()


def test_generation_is_many_calls_with_a_growing_cache():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=4, bos_token_id=1)
    config.eos_token_id = None
    model = transformers.GPT2LMHeadModel(config).eval()
    with listen(model) as report:
        model.generate(tokens(1, 4), max_new_tokens=5, do_sample=False, pad_token_id=0)
    (layer,) = report.layers()
    assert layer["calls"] == 5 and layer["kind"] == "self", layer
    assert layer["n_query"] == 4 and layer["n_key"] == 8
    assert 0 < layer["self"] < 1, "With a cache, the query is the last key."
    assert len(report.steps) == 5


def test_checkpointing_counts_once_and_changes_nothing():
    model, inputs = build(bert)

    def loss(output):
        return output["last_hidden_state"].square().sum()

    plain = diagnose(model.train(), inputs, loss)
    model.gradient_checkpointing_enable(dict(use_reentrant=False))
    again = diagnose(model, inputs, loss)
    assert {layer["calls"] for layer in again.layers()} == {1}
    for name in ("rows", "stream", "gradients"):
        for one, other in zip(getattr(plain, name), getattr(again, name), strict=True):
            flat = [{key: value for key, value in each.items() if key != "masked_at"} for each in (one, other)]
            assert flat[0] == pytest.approx(flat[1], nan_ok=True), name
