"""Parts of an architecture: each computes its formula, carries gradients, and is found by its role and its trait."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attntut import MultiHeadAttention, Transformer, TransformerConfig, initialize_, seeded
from attntut.attention import causal_mask, scaled_dot_product_attention
from attntut.data import digits
from attntut.init import view
from attntut.parts import (
    Differential,
    DyT,
    GroupedQueries,
    Hypersphere,
    NormalizedResidual,
    OutputGate,
    QKNorm,
    RMSNorm,
    Rotary,
    Sink,
    SwiGLU,
)
from attntut.train import train, train_many

ALL = (RMSNorm(), SwiGLU(), NormalizedResidual(), GroupedQueries(2), Rotary(), QKNorm(), Sink(), OutputGate())


def tokens(B=2, T=5, d=12, seed=0):
    return torch.randn(B, T, d, generator=seeded(seed), dtype=torch.float64)


def attention(*parts, **options):
    return MultiHeadAttention(12, 3, parts=parts, **options).double()


def by_hand(layer, x, *, mask=None):
    """The plain attention of its projections."""
    query, key, value = layer.project(x)
    return scaled_dot_product_attention(query, key, value, mask=mask, scale=layer.scale)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_sink_takes_its_share_and_gives_no_value(is_causal):
    layer, x = attention(Sink(start=0.7), is_causal=is_causal), tokens()
    logits = layer.logits(x)
    if is_causal:
        logits = logits.masked_fill(~causal_mask(5), -math.inf)
    expected = logits.exp() / (logits.exp().sum(-1, keepdim=True) + math.exp(0.7))
    output, weights = layer(x, return_weights=True)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(layer(x), output)  # the fused kernel
    value = layer.project(x)[2]
    torch.testing.assert_close(output, layer.output((expected @ value).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_a_sink_keeps_the_mask(kind):
    layer, x = attention(Sink(start=0.3)), tokens()
    mask = torch.ones(5, 5, dtype=torch.bool).tril(1)
    given = mask if kind == "boolean" else torch.zeros(5, 5, dtype=torch.float64).masked_fill(~mask, -math.inf)
    _, weights = layer(x, mask=given, return_weights=True)
    assert (weights.masked_select(~mask) == 0).all() and (weights.sum(-1) < 1).all()
    torch.testing.assert_close(layer(x, mask=given), layer(x, mask=given, return_weights=True)[0])


def test_a_head_with_a_loud_sink_is_silent():
    layer, x = attention(Sink(start=40.0), bias=False), tokens()
    assert layer(x).abs().max() < 1e-12


def test_rotation_keeps_lengths_and_sees_distances():
    layer = attention(Rotary())
    x = tokens(B=1, T=1).expand(1, 6, 12)  # one token everywhere
    logits = layer.logits(x)[0]
    for distance in range(-4, 5):
        diagonal = logits.diagonal(distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal))
    assert logits.std() > 0.01, "A rotation that turns nothing is no rotation."
    plain = attention()
    plain.load_state_dict(layer.state_dict())
    for turned, straight in zip(layer.project(x)[:2], plain.project(x)[:2], strict=True):
        torch.testing.assert_close(turned.norm(dim=-1), straight.norm(dim=-1))


def test_rotation_is_that_of_transformers():
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    T, d_head = 7, 4
    query, key = torch.randn(2, 1, 3, T, d_head, generator=seeded(1))
    frequency = 10000.0 ** (-torch.arange(0, d_head, 2) / d_head)
    angle = torch.cat([torch.arange(T)[:, None] * frequency] * 2, dim=-1)[None]
    expected = llama.apply_rotary_pos_emb(query, key, angle.cos(), angle.sin())
    for ours, theirs in zip(Rotary().make(12, 3).heads(query, key), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_query_key_norm_bounds_the_logits():
    layer = attention(QKNorm(gain=1.5))
    for factor in (1e-2, 1.0, 1e4):
        nn.init.normal_(layer.query.weight, 0, factor)
        assert layer.logits(tokens()).abs().max() <= 1.5 * math.sqrt(4) * (1 + 1e-6)


def test_grouped_queries_share_keys_and_equal_full_heads_with_repeated_weights():
    grouped = MultiHeadAttention(12, 6, parts=[GroupedQueries(2)]).double()
    assert grouped.key.weight.shape == (4, 12)
    full = MultiHeadAttention(12, 6).double()
    state = dict(grouped.state_dict())
    for name in ("key.weight", "key.bias", "value.weight", "value.bias"):
        state[name] = state[name].unflatten(0, (2, 2)).repeat_interleave(3, 0).flatten(0, 1)
    full.load_state_dict(state)
    torch.testing.assert_close(grouped(tokens()), full(tokens()))
    packed = MultiHeadAttention(12, 6, parts=[GroupedQueries(2)], packed=True).double()
    state = {k: v for k, v in grouped.state_dict().items() if k.startswith("output")}
    for each in ("weight", "bias"):
        state[f"in_proj.{each}"] = torch.cat([getattr(getattr(grouped, r), each) for r in ("query", "key", "value")])
    packed.load_state_dict(state)
    torch.testing.assert_close(packed(tokens()), grouped(tokens()))
    torch.testing.assert_close(packed(tokens(), tokens(T=4, seed=1)), grouped(tokens(), tokens(T=4, seed=1)))


def test_the_gate_is_made_of_the_token_that_asks():
    layer, x = attention(OutputGate()), tokens()
    gate = layer.parts["gate"].gate
    heads, _ = by_hand(layer, x)
    expected = layer.output(torch.sigmoid(gate(x)) * heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected)
    nn.init.zeros_(gate.weight), nn.init.zeros_(gate.bias)
    plain = attention(bias=False)
    halved = attention(OutputGate(), bias=False)
    halved.load_state_dict(plain.state_dict(), strict=False)
    nn.init.zeros_(halved.parts["gate"].gate.weight), nn.init.zeros_(halved.parts["gate"].gate.bias)
    torch.testing.assert_close(halved(x), plain(x) / 2)


@pytest.mark.parametrize("layer", [1, 2, 9])
def test_differential_attention_is_its_formula(layer):
    d_head, x = 4, tokens()
    module = attention(Differential(layer=layer))
    part = module.parts["difference"]
    query, key, value = module.project(x)
    first, second = (
        torch.softmax(q @ k.mT / math.sqrt(d_head / 2), -1)
        for q, k in zip(query.split(2, -1), key.split(2, -1), strict=True)
    )
    start = 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))
    factor = (part.lambda_q1 @ part.lambda_k1).exp() - (part.lambda_q2 @ part.lambda_k2).exp() + start
    weights = first - factor * second
    heads = F.rms_norm(weights @ value, (d_head,), part.norm.weight, 1e-5) * (1 - start)
    output, got = module(x, return_weights=True)
    torch.testing.assert_close(got, weights)
    torch.testing.assert_close(output, module.output(heads.transpose(1, 2).flatten(2)))
    torch.testing.assert_close(module(x), output)


def test_blocks_number_differential_attention():
    config = TransformerConfig(n_classes=2, d_input=3, n_layers=3, parts=(Differential(),))
    starts = [block.attention.parts["difference"].start for block in Transformer(config).blocks]
    assert starts == pytest.approx([0.2, 0.8 - 0.6 * math.exp(-0.3), 0.8 - 0.6 * math.exp(-0.6)])


def test_the_normalized_residual_keeps_unit_variance_at_any_depth():
    x, number = torch.randn(20000, generator=seeded(0)), 2
    for number in range(2, 40):
        x = NormalizedResidual().make(1, number)(x, torch.randn(20000, generator=seeded(number)))
    assert x.var().item() == pytest.approx(1, abs=0.05)
    config = TransformerConfig(n_classes=2, d_input=3, n_layers=2, parts=(NormalizedResidual(),))
    sums = [s for b in Transformer(config).blocks for s in (b.attention_residual, b.feed_forward_residual)]
    assert [each.branch**-2 for each in sums] == pytest.approx([2, 3, 4, 5])


@pytest.mark.parametrize("options", [{"skip_scale": 2.0}, {"skip_weights": True}, {"residual": False}])
def test_a_sum_of_its_own_leaves_no_argument_without_a_use(options):
    with pytest.raises(ValueError, match="residual, skip_scale and skip_weights must be left out"):
        TransformerConfig(n_classes=2, d_input=3, parts=(NormalizedResidual(),), **options)


def test_no_sum_is_made_for_a_branch_that_is_not_there():
    model = Transformer(TransformerConfig(n_classes=2, d_input=3, d_ff=0, parts=(Hypersphere(),)))
    model(torch.randn(2, 4, 3)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_sphere_turns_a_token_by_alpha():
    x, branch = tokens(B=1, T=3), tokens(B=1, T=3, seed=1)
    turned = Hypersphere(alpha=0.25).make(12, 2).double()(x, branch)
    mixed = 0.75 * F.normalize(x, dim=-1) + 0.25 * F.normalize(branch, dim=-1)
    torch.testing.assert_close(turned, F.normalize(mixed, dim=-1) * math.sqrt(12), rtol=1e-5, atol=1e-6)


def test_gated_feed_forward_is_its_formula():
    block = SwiGLU().make(12, 20, nn.Linear, bias=True).double()
    x = tokens()
    torch.testing.assert_close(block(x), block.down(F.silu(block.gate(x)) * block.up(x)))


def test_all_parts_together_train_alone_and_in_an_ensemble():
    data = digits()
    shape = dict(n_classes=10, d_input=4, d_model=16, n_heads=4, n_layers=2)
    models = [Transformer(TransformerConfig(**shape, parts=ALL), seed=seed) for seed in range(2)]
    others = [Transformer(TransformerConfig(**shape, parts=ALL), seed=seed) for seed in range(2)]
    together = train_many(models, data, steps=5, lrs=0.01, seeds=[0, 1])
    alone = [train(model, data, steps=5, lr=0.01, seed=seed) for seed, model in enumerate(others)]
    for one, other in zip(together, alone, strict=True):
        assert one.losses[-1].item() == pytest.approx(other.losses[-1].item(), rel=1e-4)
    F.cross_entropy(others[0](data.train_inputs[:8]), data.train_targets[:8]).backward()
    for name, parameter in others[0].named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_every_matrix_of_every_part_has_its_role_without_inputs():
    config = TransformerConfig(n_classes=3, d_input=4, d_model=16, n_heads=4, n_layers=1, parts=ALL)
    found = {entry.parameter: (entry.role, entry.weight.shape) for entry in view(Transformer(config)).entries}
    assert found["blocks.0.feed_forward.gate.weight"] == found["blocks.0.feed_forward.up.weight"]
    assert found["blocks.0.feed_forward.gate.weight"] == ("feed_forward_in", (64, 16))
    assert found["blocks.0.feed_forward.down.weight"] == ("feed_forward_out", (16, 64))
    assert found["blocks.0.attention.parts.gate.gate.weight"] == ("gate", (16, 16))
    assert found["blocks.0.attention.key.weight"] == ("key", (8, 16))


def test_listening_agrees_with_the_names():
    config = TransformerConfig(n_classes=3, d_input=4, d_model=16, n_heads=4, n_layers=2, parts=ALL)
    model = Transformer(config, seed=0)
    by_name, heard = view(model), view(model, inputs=torch.randn(2, 5, 4))
    assert [(e.parameter, e.role) for e in by_name.entries] == [(e.parameter, e.role) for e in heard.entries]


@pytest.mark.parametrize("scheme", ["lecun_normal", "gpt2", "zero_centred_gain"])
def test_zero_centred_gains_stay_zero_by_any_scheme(scheme):
    config = TransformerConfig(n_classes=3, d_input=4, parts=(RMSNorm(is_zero_centred=True),))
    model = initialize_(Transformer(config), scheme)
    assert all((norm.weight == 0).all() for norm in model.modules() if isinstance(norm, nn.RMSNorm))
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(model.final_norm(x), F.rms_norm(x, (32,), eps=1e-6))


@pytest.mark.parametrize(
    "scheme, part, inside",
    [
        ("qk_gain", None, "QK-norm"),
        ("attention_sink", QKNorm(), "sink"),
        ("output_gate", None, "output gate"),
        ("differential", None, "differential attention"),
        ("dyt", RMSNorm(), "DyT"),
        ("ln_scale", None, "LN/√l"),
        ("normalized_residual", Hypersphere(), "normalized residual"),
    ],
)
def test_a_scheme_whose_part_is_missing_is_refused_with_the_reason(scheme, part, inside):
    config = TransformerConfig(n_classes=3, d_input=4, parts=() if part is None else (part,))
    with pytest.raises(ValueError, match=f"needs {inside}, because"):
        initialize_(Transformer(config), scheme)


def test_what_a_scheme_sets_in_a_part():
    def model(scheme, *parts, **options):
        config = TransformerConfig(n_classes=3, d_input=4, n_layers=2, parts=parts)
        return initialize_(Transformer(config), scheme, generator=seeded(0), **options).blocks[1]

    gain = model("qk_gain", QKNorm(), gain=2.0).attention.parts["qk_norm"]
    assert (gain.query_norm.weight == 2).all() and (gain.key_norm.weight == 1).all()
    sink = model("attention_sink", Sink(), start=3.0, std=0.0).attention.parts["sink"].sink
    assert (sink == 3).all()
    gate = model("output_gate", OutputGate(), bias=4.0).attention.parts["gate"].gate
    assert (gate.bias == 4).all() and gate.weight.std().item() == pytest.approx(0.02, rel=0.1)
    shares = model("differential", Differential()).attention.parts["difference"]
    assert 0.02 < torch.stack([shares.lambda_q1, shares.lambda_k2]).std().item() < 0.2
    assert model("dyt", DyT(alpha=2.0)).attention_norm.alpha.item() == 0.5


@pytest.mark.parametrize(
    "parts, error, match",
    [
        ((RMSNorm(), DyT()), ValueError, "one of a kind"),
        ((RMSNorm,), TypeError, r"Write RMSNorm\(\)"),
        (("rotary",), TypeError, "must hold parts"),
        ((GroupedQueries(3),), ValueError, "n_kv_heads must divide n_heads=4: got n_kv_heads=3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, error, match):
    with pytest.raises(error, match=match):
        Transformer(TransformerConfig(n_classes=3, d_input=4, parts=parts))
