"""Faults planted in real architectures are found by name, and by nothing else; healthy models have no finding."""

import copy
import functools
import math
import re

import pytest
import torch
from torch import nn

from attntut import Transformer, TransformerConfig
from attntut.data import reverse
from attntut.diagnose import Report, diagnose
from attntut.diagnose.faults import SEVERITIES, faults, find, table
from attntut.init import initialize_, schemes
from attntut.train import train

transformers = pytest.importorskip("transformers", reason="Hugging Face models are not installed")

TOKENS_APART = 0.5 * (1 - 1 / (2 * math.pi))
TOKENS = torch.randint(40, (4, 32), generator=torch.Generator().manual_seed(0))
SMALL = dict(vocab_size=99, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
SPECIAL = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def stack(norm="pre", n_layers=3, scheme=None, **settings):
    shape = dict(n_classes=10, vocab_size=40, d_model=64, n_heads=4, seq_len=32, pooling="none")
    model = Transformer(TransformerConfig(n_layers=n_layers, norm=norm, **shape | settings), seed=0)
    generator = torch.Generator().manual_seed(0)
    return initialize_(model, scheme, generator=generator, force=True) if scheme else model


def torch_encoder(scheme="xavier_uniform", **settings):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True, **settings)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    return initialize_(model, scheme, generator=torch.Generator().manual_seed(0)) if scheme else model


def bert(**settings):
    torch.manual_seed(0)
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL | settings)).eval()


def gpt2(n_layers=3, d_model=64):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=99, n_embd=d_model, n_layer=n_layers, n_head=4, n_positions=64, **SPECIAL
    )
    return transformers.GPT2LMHeadModel(config).eval()


def hidden(x):
    return torch.randn(4, 32, 64, generator=torch.Generator().manual_seed(1)) if x is None else x


def loss(output):
    tensor = (
        next((output[key] for key in ("logits", "last_hidden_state") if key in output), None)
        if hasattr(output, "keys")
        else output
    )
    weights = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(2))
    return (tensor * weights).mean()


def findings(model, inputs=TOKENS, loss=loss):
    return diagnose(model, inputs, loss=loss).findings


def names(found):
    return [finding.name for finding in found]


# ---- planted faults


def scaled_query(model, factor=10.0, parameter="attention.query.weight"):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(parameter):
                weight.mul_(factor)
    return model


def scaled_in_proj(model):
    with torch.no_grad():
        for layer in model.layers:
            layer.self_attn.in_proj_weight[:64].mul_(10)
    return model


def zeroed(model, *parameters):
    with torch.no_grad():
        for name in parameters:
            model.get_parameter(name).zero_()
    return model


def constant(model, value=0.05):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".attention." in name:
                parameter.fill_(value if parameter.ndim > 1 else 0)
    return model


def cloned(model):
    model.blocks[2] = copy.deepcopy(model.blocks[1])
    return model


def unscaled_gpt2():
    model = gpt2(n_layers=12, d_model=128)
    return scaled_query(model, factor=math.sqrt(2 * 12), parameter="c_proj.weight")


def poisoned(model, parameter):
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[0] = math.nan
    return model


def detached(model):
    model.blocks[1].attention.query.register_forward_hook(lambda module, args, output: output.detach())
    return model


def twin(model):
    with torch.no_grad():
        model.blocks[1].attention.key.weight.copy_(model.blocks[1].attention.query.weight)
    return model


NOBODY = torch.zeros(4, 32, dtype=torch.long)
FAULTY = {
    "W_q × 10, attntut": ("logits too large", lambda: (scaled_query(stack()), TOKENS)),
    "W_q × 10, causal post-LN": (
        "logits too large",
        lambda: (scaled_query(stack("post", is_causal=True, scheme="torch_default", positions="none")), TOKENS),
    ),
    "W_q × 10, packed torch": ("logits too large", lambda: (scaled_in_proj(torch_encoder()), hidden(None))),
    "W_q × 10, BERT": (
        "logits too large",
        lambda: (
            scaled_query(initialize_(bert(), "xavier_normal"), parameter="attention.self.query.weight"),
            dict(input_ids=TOKENS),
        ),
    ),
    "W_q = 0, attntut": (
        "attention uniform",
        lambda: (zeroed(stack(), "blocks.1.attention.query.weight", "blocks.1.attention.query.bias"), TOKENS),
    ),
    "W_q = 0, BERT": (
        "attention uniform",
        lambda: (zeroed(bert(), "bert.encoder.layer.1.attention.self.query.weight"), dict(input_ids=TOKENS)),
    ),
    "constant heads": ("heads identical", lambda: (constant(stack("none")), TOKENS)),
    "constant heads after a norm": ("heads identical", lambda: (constant(stack()), TOKENS)),
    "cloned layers": ("layers cloned", lambda: (cloned(stack()), TOKENS)),
    "He without norms": ("stream growing", lambda: (stack("none", 6, "kaiming_normal"), TOKENS)),
    "GPT-2 without depth scaling": ("depth scaling absent", lambda: (unscaled_gpt2(), dict(input_ids=TOKENS))),
    "a mask hides everything, attntut": (
        "mask hides everything",
        lambda: (stack(), dict(x=TOKENS, mask=NOBODY.bool()[:, None, None])),
    ),
    "a mask hides everything, torch": (
        "mask hides everything",
        lambda: (torch_encoder(), dict(src=hidden(None), src_key_padding_mask=~NOBODY.bool())),
    ),
    "a mask hides everything, GPT-2": (
        "mask hides everything",
        lambda: (gpt2(), dict(input_ids=TOKENS, attention_mask=NOBODY)),
    ),
    "NaN in a value matrix": ("not finite", lambda: (poisoned(stack(), "blocks.1.attention.value.weight"), TOKENS)),
    "NaN in a query matrix, GPT-2": (
        "not finite",
        lambda: (poisoned(gpt2(), "transformer.h.1.attn.c_attn.weight"), dict(input_ids=TOKENS)),
    ),
    "no skip connections": ("rank collapsing", lambda: (stack("post", 6, residual=False), TOKENS)),
    "He in a deep post-LN stack": ("rank collapsing", lambda: (stack("post", 12, "kaiming_normal"), TOKENS)),
    "a detached query": ("gradients vanishing", lambda: (detached(stack()), TOKENS)),
    "one matrix for query and key": ("query equals key", lambda: (twin(stack()), TOKENS)),
    "nn.MultiheadAttention as it comes": (
        "packed query-key-value scale",
        lambda: (nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True), hidden(None)),
    ),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_planted_fault_is_found_by_name_and_by_nothing_else(fault):
    name, plant = FAULTY[fault]
    model, inputs = plant()
    found = findings(model, inputs)
    assert names(found) == [name], f"{fault}: {[str(each) for each in found]}"
    assert found[0].layers and found[0].layer


def test_torch_s_encoder_copies_its_layers_and_packs():
    assert names(findings(torch_encoder(scheme=None), hidden(None))) == [
        "layers cloned",
        "packed query-key-value scale",
    ]


def test_the_place_of_a_fault_is_named():
    found = findings(scaled_query(stack(), parameter="blocks.1.attention.query.weight"))
    assert found[0].layers == ("blocks.1.attention",)
    found = findings(poisoned(stack(), "blocks.1.attention.value.weight"))
    assert found[0].layer == "blocks.1.attention" and "value" in found[0].text
    found = findings(poisoned(stack(), "blocks.1.feed_forward.0.weight"))
    assert found[0].layer == "blocks.1", "NaN from a feed-forward network is seen where its block hands it on."
    found = findings(cloned(stack()))
    assert found[0].layers == ("blocks.2.attention",) and "blocks.1.attention" in found[0].text


def test_one_large_head_is_named():
    model = stack()
    with torch.no_grad():
        model.blocks[2].attention.query.weight[16:32].mul_(30)
    (found,) = findings(model)
    assert (found.name, found.layer, found.heads) == ("logits too large", "blocks.2.attention", (1,))


def test_both_matrices_zero_is_worse_than_one():
    one = zeroed(stack(), "blocks.1.attention.query.weight", "blocks.1.attention.query.bias")
    both = zeroed(copy.deepcopy(one), "blocks.1.attention.key.weight", "blocks.1.attention.key.bias")
    (warning,), (error,) = findings(one), findings(both)
    assert (warning.severity, error.severity) == ("warning", "error")
    assert "for ever" in error.text


def test_a_frozen_query_is_a_choice():
    model = stack()
    model.blocks[1].attention.query.weight.requires_grad_(False)
    assert findings(model) == []


def test_tokens_that_come_in_alike_are_not_called_a_collapse():
    found = findings(stack(positions="none"), torch.zeros(4, 32, dtype=torch.long))
    assert names(found) == ["attention uniform"] and "tokens alike" in found[0].text


# ---- healthy models


@functools.cache
def trained():
    data = reverse(seq_len=8)
    config = TransformerConfig(n_classes=data.n_classes, vocab_size=10, seq_len=8, pooling="none")
    model = Transformer(config, seed=0)
    train(model, data, steps=150, lr=1e-2, batch_size=64, progress=False)
    return model, data.test_inputs[:32]


def torch_decoder():
    torch.manual_seed(0)
    layers = [nn.TransformerDecoderLayer(64, 4, 128, dropout=0.0, batch_first=True) for _ in range(3)]
    model = nn.TransformerDecoder(layers[0], 3)
    model.layers = nn.ModuleList(layers)
    causal = nn.Transformer.generate_square_subsequent_mask(16)
    initialize_(model, "xavier_uniform", generator=torch.Generator().manual_seed(0))
    return model, dict(tgt=hidden(None)[:, :16], memory=hidden(None), tgt_mask=causal, tgt_is_causal=True)


def whisper():
    torch.manual_seed(0)
    sizes = dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    widths = dict(encoder_ffn_dim=128, decoder_ffn_dim=128, num_mel_bins=8, max_source_positions=24)
    config = transformers.WhisperConfig(vocab_size=99, decoder_start_token_id=1, **sizes, **widths, **SPECIAL)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    return model, dict(input_features=torch.randn(2, 8, 48), decoder_input_ids=TOKENS)


def t5():
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=99, d_model=64, d_kv=16, d_ff=128, num_layers=3, num_heads=4)
    return transformers.T5Model(config).eval(), dict(input_ids=TOKENS, decoder_input_ids=TOKENS)


def llama():
    torch.manual_seed(0)
    return transformers.LlamaModel(transformers.LlamaConfig(**SMALL, num_key_value_heads=2)).eval(), TOKENS


def vit():
    torch.manual_seed(0)
    sizes = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).eval()
    return model, torch.randn(2, 3, 32, 32)


def left_padded():
    visible = torch.ones(4, 32, dtype=torch.long)
    visible[0, :10] = 0
    return gpt2(), dict(input_ids=TOKENS, attention_mask=visible)


HEALTHY = {
    "attntut, pre-LN": lambda: (stack(), TOKENS),
    "attntut, post-LN, causal": lambda: (stack("post", is_causal=True), TOKENS),
    "attntut, without norms": lambda: (stack("none"), TOKENS),
    "attntut, pre-LN, Xavier, deep": lambda: (stack("pre", 7, "xavier_normal"), TOKENS),
    "attntut, post-LN, Xavier, 12 layers": lambda: (stack("post", 12, "xavier_normal"), TOKENS),
    "attntut, real-valued tokens": lambda: (stack(vocab_size=None, d_input=4), torch.randn(4, 32, 4)),
    "attntut, one token": lambda: (stack(), TOKENS[:, :1]),
    "attntut, two tokens, Xavier": lambda: (stack(scheme="xavier_normal"), TOKENS[:, :2]),
    "attntut, trained until it reverses": trained,
    "nn.TransformerEncoder, pre-LN": lambda: (torch_encoder(norm_first=True), hidden(None)),
    "nn.TransformerDecoder": torch_decoder,
    "BERT": lambda: (bert(), dict(input_ids=TOKENS)),
    "BERT, eager": lambda: (bert(attn_implementation="eager"), dict(input_ids=TOKENS)),
    "GPT-2, 12 layers": lambda: (gpt2(12, 128), dict(input_ids=TOKENS)),
    "GPT-2, padded on the left": left_padded,
    "Llama": llama,
    "T5": t5,
    "ViT": vit,
    "Whisper": whisper,
}


DEMONSTRATIONS = {
    "zeros": {"attention uniform"},
    "zero_query": {"attention uniform"},
    "identity": {"attention uniform"},
    "constant": {"heads identical"},
}


@pytest.mark.parametrize("name", schemes())
def test_a_scheme_of_the_catalogue_in_its_own_architecture_has_no_finding(name):
    """Except for those that are there to show what goes wrong, and for zero queries, which are found on purpose."""
    scheme = schemes()[name]
    model = stack(n_layers=2, d_model=32, **scheme.architecture(2, 8))
    batch = {"batch": TOKENS} if "batch" in scheme.requires else {}
    force = {"learning rates by role"} & set(scheme.requires)
    initialize_(model, name, generator=torch.Generator().manual_seed(0), force=force, **batch)
    assert set(names(findings(model, TOKENS[:2, :16]))) == DEMONSTRATIONS.get(name, set())


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_has_no_finding(name):
    model, inputs = HEALTHY[name]()
    report = diagnose(model, inputs, loss=loss)
    assert report.rows and report.weights, "Nothing was seen, so nothing was judged."
    assert [str(each) for each in report.findings] == []


def test_a_trained_model_is_sharper_than_any_draw_may_be():
    """Otherwise its having no finding would show nothing."""
    model, inputs = trained()
    assert max(row["logit_std"] for row in diagnose(model, inputs).rows) > math.sqrt(2 * math.log(8))


# ---- the rules by themselves


def row(layer="blocks.0.attention", head=0, **changes):
    usual = dict(n_query=32, n_key=32, calls=1, logit_mean=0.0, logit_std=0.5, logit_max=2.0, entropy=3.4)
    usual |= dict(entropy_share=0.97, max_weight=0.1, saturated=0.0, first=0.03, self=0.03, rank_residual=0.9)
    return dict(layer=layer, kind="self", head=head, **usual, token_cosine=0.1, non_finite=0, masked_rows=0) | changes


def record(layer="blocks.0.attention", role="query", **changes):
    usual = dict(shape=[64, 64], fan_in=64, fan_out=64, mean=0.0, std=0.125, looks_like=[], drawn=True, packed=False)
    return dict(layer=layer, role=role, **usual, clone_of=None, heads_alike=False, equals=None) | changes


def depth(cosines=None, rms=None, **changes):
    """A report of as many blocks as there are numbers."""
    cosines, rms = cosines or [0.1] * len(rms), rms or [1.0] * len(cosines)
    layers = [f"blocks.{i}.attention" for i in range(len(cosines))]
    return Report(
        rows=[row(layer) for layer in layers],
        weights=[record(layer, role, **changes) for layer in layers for role in ("query", "key", "value", "output")],
        stream=[
            dict(layer=f"blocks.{i}", rms=r, token_cosine=c) for i, (r, c) in enumerate(zip(rms, cosines, strict=True))
        ],
    )


@pytest.mark.parametrize("n", [8, 64, 512])
def test_fresh_logits_may_go_up_to_the_freezing_point(n):
    weights = [record(role=role) for role in ("query", "key")]
    critical = math.sqrt(2 * math.log(n))
    below, above = (Report(rows=[row(n_key=n, logit_std=critical * f)], weights=weights) for f in (0.99, 1.01))
    assert find(below) == []
    (found,) = find(above)
    assert found.name == "logits too large" and found.threshold == pytest.approx(critical)


def test_trained_logits_may_be_sharp_but_not_beyond_half_precision():
    weights = [record(role=role, drawn=False) for role in ("query", "key")]
    sharp = row(logit_std=8.0, logit_max=40.0, saturated=0.4)
    assert find(Report(rows=[sharp], weights=weights)) == []
    assert names(find(Report(rows=[sharp | dict(logit_max=300.0)], weights=weights))) == ["logits too large"]


def test_a_trained_model_may_have_one_frozen_layer_but_not_be_frozen():
    weights = [record(f"blocks.{i}.attention", role, drawn=False) for i in range(2) for role in ("query", "key")]
    rows = [row(f"blocks.{i}.attention", saturated=share) for i, share in enumerate((0.9, 0.0))]
    assert find(Report(rows=rows, weights=weights)) == []
    rows = [row(f"blocks.{i}.attention", saturated=0.9) for i in range(2)]
    (found,) = find(Report(rows=rows, weights=weights))
    assert found.name == "entropy collapsed" and len(found.layers) == 2


def test_tokens_may_lose_what_skips_and_unit_branches_take():
    slow, fast = ([1 - 0.9 * factor**i for i in range(8)] for factor in (TOKENS_APART * 1.05, TOKENS_APART * 0.95))
    assert find(depth(slow)) == []
    assert names(find(depth(fast))) == ["rank collapsing"]
    assert find(depth(fast, drawn=False)) == [], "What training makes of the tokens is not judged by a theory of draws."


def test_the_stream_may_double_twice_a_block():
    slow, fast = ([factor**i for i in range(6)] for factor in (1.95, 2.05))  # of the RMS
    assert find(depth(rms=slow)) == []
    assert names(find(depth(rms=fast))) == ["stream growing"]


def test_scaling_in_the_forward_pass_counts():
    growing = depth(rms=[math.sqrt(1 + 4 * i) for i in range(12)])
    for traits, expected in (({"residual_scale": 0.3}, []), ({"residual_scale": 1.0}, ["depth scaling absent"])):
        growing.model["traits"] = traits
        assert names(find(growing)) == expected


def test_depth_scaling_matters_only_when_deep_growing_and_unscaled():
    growing = [math.sqrt(1 + 4 * i) for i in range(12)]
    assert names(find(depth(rms=growing))) == ["depth scaling absent"]
    assert find(depth(rms=growing[:7])) == [], "Not deep."
    assert find(depth(rms=[math.sqrt(1 + i / 2) for i in range(12)])) == [], "Within Xiong's bound."
    report = depth(rms=growing)
    for each in report.weights:
        each["std"] /= math.sqrt(24) if each["role"] == "output" else 1
    assert find(report) == [], "Scaled."


def test_small_gradients_are_judged_by_theory():
    weights = [record(role=role) for role in ("query", "key", "value", "output")]
    stream = [dict(layer="blocks.0", rms=1.0, token_cosine=0.5)]
    expected = 0.5 * math.sqrt(1.5 / (32 * 0.5 + 0.5)) * 64 * 0.125**2 * (0.5 / (64 * 0.125**2 * math.sqrt(0.5)))

    def at(ratio):
        gradients = [dict(layer="blocks.0.attention", value=1.0, ratio_query=ratio, ratio_key=expected)]
        return find(Report(rows=[row()], weights=weights, stream=stream, gradients=gradients))

    assert at(expected / 4) == []
    (found,) = at(expected / 11)
    assert found.name == "gradients vanishing" and found.expected == pytest.approx(expected)


def test_a_cause_hides_its_consequences():
    rows = [row(logit_std=9.0, saturated=0.8)]
    weights = [record(role=role) for role in ("query", "key")]
    assert names(find(Report(rows=rows, weights=weights))) == ["logits too large"]
    known = {*faults(), *(fault.name for fault in faults().values())}
    assert {effect for fault in faults().values() for effect in fault.explains} <= known


def test_the_worst_comes_first():
    rows = [row(logit_std=3.0), row("blocks.1.attention", masked_rows=9, entropy=math.nan, logit_std=math.nan)]
    weights = [record(role=role) for role in ("query", "key")]
    found = find(Report(rows=rows, weights=weights))
    assert [each.severity for each in found] == ["error", "warning"]
    assert [SEVERITIES.index(each.severity) for each in found] == [0, 1]


def test_without_weights_only_what_needs_none_is_judged():
    assert find(Report(rows=[row(logit_std=9.0)])) == []
    assert names(find(Report(rows=[row(saturated=0.9)]))) == ["entropy collapsed"]
    assert find(Report()) == []


def test_findings_survive_json():
    report = diagnose(cloned(stack()), TOKENS)
    assert find(Report.from_json(report.to_json())) == find(report) != []


@pytest.mark.parametrize("fault", faults())
def test_chapters_and_their_sections_exist(fault, repository):
    page, _, anchor = faults()[fault].chapter.partition("#")
    notebook = (repository / page).with_suffix(".ipynb")
    assert notebook.exists(), f"{fault} sends readers to {page}, which is not in the book."
    headings = re.findall(r'"##+ ([^"]*?)(?:\\n)?"', notebook.read_text(encoding="utf-8"))
    slugs = {re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") for heading in headings}
    assert not anchor or anchor in slugs, f"{page} has no section {anchor}, but {sorted(slugs)}."


def test_schemes_that_findings_recommend_exist():
    recommended = {name for row in table() for name in re.findall(r'initialize_\(model, "(\w+)"', row["remedies"])}
    assert recommended and recommended <= set(schemes())


def test_the_table_says_of_each_fault_its_rule_its_thresholds_and_their_source():
    rows = {row["finding"]: row for row in table()}
    assert rows.keys() == faults().keys()
    assert all(row["rule"] and row["source"] and "{" not in row["source"] for row in rows.values())
    assert rows["gradients vanishing"]["thresholds"].startswith("below_theory = 10 (in 36 healthy settings")
    assert r"$> \sqrt{2 \ln n}$" in rows["logits too large"]["rule"]
    for fault in faults().values():
        assert all(threshold.source for threshold in fault.thresholds.values()), fault.key


def test_bad_arguments():
    with pytest.raises(TypeError, match="report must be a Report: got dict"):
        find({})
