"""Blocks and models: each option does what its formula says, and nothing else."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attntut import Transformer, TransformerBlock, TransformerConfig
from attntut.device import seeded
from attntut.transformer import sinusoidal_positions


def config(**options):
    return TransformerConfig(**{"n_classes": 3, "d_input": 4, "seq_len": 6, "d_model": 8, "n_heads": 2, **options})


def tokens(batch=2, n=6, d=8):
    return torch.randn(batch, n, d, generator=seeded(0))


@pytest.mark.parametrize("residual_scale", [1.0, 0.5])
@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_a_block_is_its_formula(norm, residual_scale):
    block, x = TransformerBlock(config(norm=norm, residual_scale=residual_scale)), tokens()
    expected = x
    for branch in (block.attention, block.feed_forward):
        if norm == "pre":
            expected = expected + residual_scale * branch(F.layer_norm(expected, (8,)))
        elif norm == "post":
            expected = F.layer_norm(expected + residual_scale * branch(expected), (8,))
        else:
            expected = expected + residual_scale * branch(expected)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_equals_torch(norm):
    ours = TransformerBlock(config(norm=norm, activation="relu", packed=True))
    theirs = nn.TransformerEncoderLayer(8, 2, 32, dropout=0.0, batch_first=True, norm_first=norm == "pre")
    names = {
        "attention.in_proj.": "self_attn.in_proj_",
        "attention.output.": "self_attn.out_proj.",
        "attention_norm.": "norm1.",
        "feed_forward_norm.": "norm2.",
        "feed_forward.0.": "linear1.",
        "feed_forward.2.": "linear2.",
    }
    state = {}
    for name, value in ours.state_dict().items():
        prefix = next(p for p in names if name.startswith(p))
        state[names[prefix] + name.removeprefix(prefix)] = value
    theirs.load_state_dict(state)
    torch.testing.assert_close(ours(tokens()), theirs(tokens()))


def test_without_residual_only_the_branch_is_left():
    block, x = TransformerBlock(config(norm="none", residual=False, d_ff=0)), tokens()
    torch.testing.assert_close(block(x), block.attention(x))


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_trace_is_the_forward_pass(norm, is_causal):
    model = Transformer(config(norm=norm, is_causal=is_causal, n_layers=3))
    x = tokens(d=4)
    mask = torch.rand(6, 6, generator=seeded(3)) > 0.2
    trace = model.trace(x, mask=mask)
    torch.testing.assert_close(trace.logits, model(x, mask=mask))
    assert len(trace.stream) == 4 and len(trace.weights) == len(trace.attention_logits) == 3
    visible = mask.tril() if is_causal else mask
    expected = torch.softmax(trace.attention_logits[1].masked_fill(~visible, -1e30), -1)
    torch.testing.assert_close(
        trace.weights[1] * visible.any(-1, keepdim=True), expected * visible.any(-1, keepdim=True)
    )


def test_a_causal_model_does_not_see_the_future():
    model = Transformer(config(d_input=None, vocab_size=11, is_causal=True, pooling="none", n_classes=11))
    x = torch.randint(11, (2, 6), generator=seeded(0))
    changed = x.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    assert model(x).shape == (2, 6, 11)
    torch.testing.assert_close(model(x)[:, :4], model(changed)[:, :4])
    assert not torch.allclose(model(x)[:, 4:], model(changed)[:, 4:])


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_order_matters_only_with_positions(positions):
    model = Transformer(config(positions=positions))
    with torch.no_grad():
        if positions == "learned":
            model.positions.mul_(50)  # they start small
        x = tokens(d=4)
        same = torch.allclose(model(x), model(x.flip(1)), atol=1e-5)
    assert same == (positions == "none")


def test_sinusoids_have_one_length_and_depend_on_the_distance():
    table = sinusoidal_positions(50, 16)
    torch.testing.assert_close(table.square().sum(-1), torch.full((50,), 8.0))
    products = table @ table.T
    torch.testing.assert_close(products.diagonal(7), products[0, 7].expand(43), atol=1e-4, rtol=0)
    assert sinusoidal_positions(5, 3).shape == (5, 3)


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = Transformer(config(), seed=1), Transformer(config(), seed=1), Transformer(config(), seed=2)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.blocks[0].attention.query.weight, same.blocks[0].attention.query.weight)
    assert not torch.equal(one.blocks[0].attention.query.weight, other.blocks[0].attention.query.weight)
    assert not torch.equal(one.blocks[0].attention.query.weight, one.blocks[1].attention.query.weight)


def test_shorter_inputs_are_welcome():
    assert Transformer(config())(tokens(n=3, d=4)).shape == (2, 3)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(vocab_size=5), ValueError, "Exactly one of d_input .* d_input=4, vocab_size=5"),
        (dict(d_input=None), ValueError, "Exactly one of d_input"),
        (dict(d_input=None, vocab_size=0), ValueError, "vocab_size must be an integer ≥ 1: got 0"),
        (dict(n_heads=3), ValueError, "n_heads must divide d_model: got d_model=8, n_heads=3"),
        (dict(n_layers=0), ValueError, "n_layers must be an integer ≥ 1"),
        (dict(d_ff=-2), ValueError, "d_ff must be an integer ≥ 0"),
        (dict(norm="prenorm"), ValueError, "norm must be one of .*Did you mean 'pre'?"),
        (dict(activation="geluu"), ValueError, "Did you mean 'gelu'?"),
        (dict(positions="sin"), ValueError, "positions must be one of"),
        (dict(pooling="cls"), ValueError, "pooling must be one of"),
        (dict(residual_scale="x"), TypeError, "residual_scale must be a finite number"),
        (dict(skip_scale=float("inf")), ValueError, "skip_scale must be a finite number"),
        (dict(branch_gain="0"), TypeError, "branch_gain must be a finite number"),
        (dict(weight_multiplier="fan"), ValueError, "Did you mean 'fan_in'?"),
        (dict(readout_scale=None), TypeError, "readout_scale must be a finite number"),
    ],
)
def test_bad_configurations(options, error, message):
    with pytest.raises(error, match=message):
        config(**options)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (
            torch.zeros(2, 6).long(),
            TypeError,
            r"x must be a floating-point tensor of shape \(batch, tokens ≤ 6, d_input=4\)",
        ),
        (torch.zeros(2, 7, 4), ValueError, r"tokens ≤ 6, d_input=4\): got \(2, 7, 4\)"),
        (torch.zeros(2, 6, 5), ValueError, r"got \(2, 6, 5\)"),
        (torch.zeros(6, 4), ValueError, r"got \(6, 4\)"),
    ],
)
def test_bad_inputs(x, error, message):
    with pytest.raises(error, match=message):
        Transformer(config())(x)


@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_factors_of_skip_and_branch_stand_where_the_formula_has_them(norm):
    block, x = TransformerBlock(config(norm=norm, skip_scale=1.5, skip_weights=True, branch_gain=0.3)), tokens()
    block.attention_skip.data.fill_(2.0), block.feed_forward_skip.data.fill_(2.0)
    plain = TransformerBlock(config(norm=norm))
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if "_gain" not in k and "_skip" not in k})
    expected = x
    for branch in (plain.attention, plain.feed_forward):
        if norm == "pre":
            expected = 3.0 * expected + 0.3 * branch(F.layer_norm(expected, (8,)))
        else:
            expected = 3.0 * expected + 0.3 * branch(expected)
            expected = F.layer_norm(expected, (8,)) if norm == "post" else expected
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("per_channel", [False, True])
def test_gains_are_parameters_and_get_gradients(per_channel):
    block = TransformerBlock(config(branch_gain=0.0, branch_gain_per_channel=per_channel, skip_weights=True))
    gains = {name: p for name, p in block.named_parameters() if name.endswith(("_gain", "_skip"))}
    assert set(gains) == {"attention_gain", "attention_skip", "feed_forward_gain", "feed_forward_skip"}
    assert gains["attention_gain"].shape == ((8,) if per_channel else ())
    block(tokens()).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in gains.values())


def test_sub_norm_adds_two_norms_and_leaves_the_roles_where_they_were():
    block, x = TransformerBlock(config(norm="sub")), tokens()
    plain = TransformerBlock(config(norm="pre"))
    extra = {"attention.inner_norm.", "feed_forward.1.1."}
    state = {k: v for k, v in block.state_dict().items() if not k.startswith(tuple(extra))}
    assert len(block.state_dict()) == len(state) + 4
    plain.load_state_dict(state)
    heads = []
    plain.attention.output.register_forward_pre_hook(lambda _, inputs: heads.append(inputs[0]))
    plain.attention(F.layer_norm(x, (8,)))
    expected = x + plain.attention.output(F.layer_norm(heads[0], (8,)))
    inner = F.gelu(plain.feed_forward[0](F.layer_norm(expected, (8,))))
    torch.testing.assert_close(block(x), expected + plain.feed_forward[2](F.layer_norm(inner, (32,))))


@pytest.mark.parametrize("packed", [False, True])
def test_a_weight_multiplier_is_the_same_as_smaller_weights(packed):
    big, small = (Transformer(config(packed=packed, weight_multiplier=m), seed=0) for m in ("fan_in", "none"))
    with torch.no_grad():
        for name, weight in small.named_parameters():
            if name.endswith(".weight") and "norm" not in name:
                weight.div_(weight.shape[1] ** 0.5)
    x, context = tokens(d=4), tokens(n=3)
    torch.testing.assert_close(big(x), small(x))
    q = tokens()
    torch.testing.assert_close(big.blocks[0].attention(q, context), small.blocks[0].attention(q, context))


def test_the_readout_scale_is_a_factor_of_the_output():
    x = tokens(d=4)
    half, whole = Transformer(config(readout_scale=0.5, bias=False), seed=0), Transformer(config(bias=False), seed=0)
    torch.testing.assert_close(half(x), 0.5 * whole(x))


OPTIONS = [
    dict(norm="sub"),
    dict(branch_gain=0.5),
    dict(branch_gain=1e-4, branch_gain_per_channel=True),
    dict(norm="post", skip_weights=True),
    dict(norm="post", skip_scale=1.7),
    dict(weight_multiplier="fan_in", packed=True),
    dict(readout_scale=0.25),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_works_in_a_trace_and_for_many_models_at_once(options):
    models = [Transformer(config(**options), seed=seed) for seed in (0, 1)]
    x = tokens(d=4)
    torch.testing.assert_close(models[0].trace(x).logits, models[0](x))
    parameters, buffers = torch.func.stack_module_state(models)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no batching rule
        outputs = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    for output, model in zip(outputs, models, strict=True):
        torch.testing.assert_close(output, model(x))
