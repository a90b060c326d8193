"""Attention against torch's own, and against what it must do by definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attntut import MultiHeadAttention, scaled_dot_product_attention
from attntut.attention import attention_logits, causal_mask
from attntut.device import seeded

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def qkv(dtype=torch.float64, batch=(2, 3), n=5, m=7, d_k=4, d_v=6, requires_grad=False):
    shapes = (*batch, n, d_k), (*batch, m, d_k), (*batch, m, d_v)
    generator = seeded(0)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_(requires_grad) for s in shapes]


def masks(n=5, m=7):
    some = torch.rand(n, m, generator=seeded(1)) > 0.4
    some[:, 0] = True
    return {
        "none": None,
        "boolean": some,
        "per head": torch.stack([some, ~some, torch.ones_like(some)]),
        "additive": torch.randn(n, m, generator=seeded(2), dtype=torch.float64),
        "-inf": torch.zeros(n, m, dtype=torch.float64).masked_fill(~some, -math.inf),
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("kind", masks())
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_torch(dtype, is_causal, kind, scale):
    query, key, value = qkv(dtype)
    mask = masks()[kind]
    if mask is not None and mask.dtype.is_floating_point:
        mask = mask.to(dtype)
    theirs_mask = mask
    if mask is not None and is_causal:  # torch takes one or the other
        lower = causal_mask(5, 7)
        theirs_mask = mask & lower if mask.dtype == torch.bool else mask.masked_fill(~lower, -math.inf)
    ours, weights = scaled_dot_product_attention(query, key, value, mask=mask, is_causal=is_causal, scale=scale)
    theirs = F.scaled_dot_product_attention(
        query, key, value, attn_mask=theirs_mask, is_causal=is_causal and mask is None, scale=scale
    )
    torch.testing.assert_close(ours, theirs.nan_to_num(0), atol=TOLERANCE[dtype], rtol=0)
    torch.testing.assert_close(weights @ value, ours)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_torch(is_causal, masked):
    mask = masks()["boolean"] & causal_mask(5, 7) if masked else None
    gradients = []
    for attend in (lambda *a, **k: scaled_dot_product_attention(*a, **k)[0], F.scaled_dot_product_attention):
        inputs = qkv(requires_grad=True)
        name = "mask" if not gradients else "attn_mask"
        output = attend(*inputs, **{name: mask}, is_causal=is_causal and not masked)
        gradients.append(torch.autograd.grad(output.square().sum(), inputs))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("blind_row", [False, True])
def test_gradcheck(blind_row):
    mask = masks(3, 4)["boolean"].clone()
    mask[1] = not blind_row
    inputs = qkv(batch=(2,), n=3, m=4, d_k=2, d_v=2, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: scaled_dot_product_attention(*a, mask=mask), inputs)


@pytest.mark.parametrize("mask", [torch.zeros(5, 7, dtype=torch.bool), torch.full((5, 7), -math.inf).double()])
def test_a_query_that_may_attend_to_nothing_gets_nothing(mask):
    inputs = qkv(requires_grad=True)
    output, weights = scaled_dot_product_attention(*inputs, mask=mask)
    assert (output == 0).all() and (weights == 0).all(), (
        "A fully masked row is not zero. What is 0/0 in the softmax, and who sees it?"
    )
    for gradient in torch.autograd.grad(output.sum(), inputs):
        assert gradient.isfinite().all(), (
            "The forward pass hides the NaN; the backward pass of the softmax still has it."
        )


def test_one_token_attends_to_itself():
    query, key, value = qkv(n=1, m=1)
    output, weights = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert (weights == 1).all()
    assert torch.equal(output, value)


def test_leading_dimensions_broadcast():
    query, key, value = qkv()
    output, weights = scaled_dot_product_attention(query, key[:1], value[0, 0])
    theirs = F.scaled_dot_product_attention(query, key[:1].expand_as(key), value[0, 0].expand_as(value))
    assert weights.shape == (2, 3, 5, 7)
    torch.testing.assert_close(output, theirs)


def test_the_mask_hides_the_future():
    query, key, value = qkv(n=5, m=5)
    before, _ = scaled_dot_product_attention(query, key, value, is_causal=True)
    value[..., 3, :] += 100
    after, _ = scaled_dot_product_attention(query, key, value, is_causal=True)
    assert torch.equal(before[..., :3, :], after[..., :3, :]), "A token heard from a later one. Which triangle is kept?"
    assert not torch.allclose(before[..., 3:, :], after[..., 3:, :])


def test_the_scale_is_that_of_the_key_width():
    query, key, _ = qkv(d_k=16)
    torch.testing.assert_close(attention_logits(query, key) * 4, attention_logits(query, key, scale=1))


# --- many heads -----------------------------------------------------------------------------------------------------


def pair(packed, bias, is_causal=False, dtype=torch.float64):
    """Our layer and torch's, with the same weights."""
    ours = MultiHeadAttention(8, 2, bias=bias, packed=packed, is_causal=is_causal).to(dtype)
    theirs = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True).to(dtype)
    parts = [ours.in_proj] if packed else [ours.query, ours.key, ours.value]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in parts]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        if bias:
            theirs.in_proj_bias.copy_(torch.cat([p.bias for p in parts]))
            theirs.out_proj.bias.copy_(ours.output.bias)
    return ours, theirs


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("n", [1, 6])
def test_layer_equals_torch(dtype, packed, bias, is_causal, n):
    ours, theirs = pair(packed, bias, is_causal, dtype)
    x = torch.randn(3, n, 8, generator=seeded(0), dtype=dtype, requires_grad=True)
    hidden = ~causal_mask(n) if is_causal else None
    expected, expected_weights = theirs(x, x, x, attn_mask=hidden, average_attn_weights=False)
    output, weights = ours(x, return_weights=True)
    fused = ours(x)
    for mine, other in [(output, expected), (fused, expected), (weights, expected_weights)]:
        torch.testing.assert_close(mine, other, atol=TOLERANCE[dtype], rtol=0)
    for mine, other in zip(*(torch.autograd.grad(o.square().sum(), x) for o in (fused, expected)), strict=True):
        torch.testing.assert_close(mine, other, atol=10 * TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layer_equals_torch_across_two_sequences(packed, bias):
    ours, theirs = pair(packed, bias)
    x, context = (torch.randn(3, n, 8, generator=seeded(n), dtype=torch.float64) for n in (4, 6))
    torch.testing.assert_close(ours(x, context), theirs(x, context, context)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("additive", [False, True])
def test_fused_and_explicit_paths_agree_under_a_mask(is_causal, additive):
    layer = MultiHeadAttention(8, 2, is_causal=is_causal).double()
    x = torch.randn(3, 6, 8, generator=seeded(0), dtype=torch.float64)
    mask = torch.rand(3, 1, 6, 6, generator=seeded(1)) > 0.3
    mask[0, :, 2] = False  # this query may attend to nothing
    if additive:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -math.inf)
    torch.testing.assert_close(layer(x, mask=mask), layer(x, mask=mask, return_weights=True)[0])


def test_packed_and_separate_layers_compute_the_same():
    packed, separate = (MultiHeadAttention(8, 2, packed=p) for p in (True, False))
    names = ["query", "key", "value"]
    with torch.no_grad():
        for name, weight, bias in zip(names, packed.in_proj.weight.chunk(3), packed.in_proj.bias.chunk(3), strict=True):
            getattr(separate, name).weight.copy_(weight), getattr(separate, name).bias.copy_(bias)
        separate.output.load_state_dict(packed.output.state_dict())
    x, context = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    torch.testing.assert_close(packed(x), separate(x))
    torch.testing.assert_close(packed(x, context), separate(x, context))


def test_the_layer_can_be_asked_for_its_logits():
    layer = MultiHeadAttention(8, 2)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(torch.softmax(layer.logits(x), -1), layer(x, return_weights=True)[1])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(query=[[1.0]]), TypeError, "query must be a torch.Tensor: got list"),
        (dict(query=torch.ones(5, 4).long()), TypeError, "query must be a floating-point tensor"),
        (dict(key=torch.ones(7, 4)), TypeError, "key must have the dtype of query, torch.float64: got torch.float32"),
        (dict(key=torch.ones(7, 3).double()), ValueError, "same width d_k"),
        (dict(key=torch.ones(4, 7, 4).double()), ValueError, "leading dimensions of key must broadcast"),
        (dict(value=torch.ones(6, 6).double()), ValueError, "value must have as many rows as key"),
        (dict(value=torch.ones(4, 7, 6).double()), ValueError, "leading dimensions of value"),
        (dict(mask=torch.ones(5, 7).long()), TypeError, "mask must be a boolean tensor.*torch.int64"),
        (dict(mask=[[True]]), TypeError, "mask must be a boolean tensor.*list"),
        (dict(mask=torch.ones(7, 5).bool()), ValueError, r"mask must broadcast.*\(2, 3, 5, 7\): got \(7, 5\)"),
        (dict(scale=math.nan), ValueError, "scale must be a finite number"),
        (dict(scale="1"), TypeError, "scale must be a finite number"),
    ],
)
def test_bad_arguments(arguments, error, message):
    query, key, value = qkv()
    with pytest.raises(error, match=message):
        scaled_dot_product_attention(**{"query": query, "key": key, "value": value, **arguments})


def test_bad_shapes_of_the_layer():
    with pytest.raises(ValueError, match=r"d_model=256, n_heads=6 .*Nearest: 4 or 8"):
        MultiHeadAttention(256, 6)
    with pytest.raises(ValueError, match=r"n_heads=9 .*Nearest: 8\."):
        MultiHeadAttention(8, 9)
    with pytest.raises(ValueError, match="n_heads must be an integer ≥ 1: got 0"):
        MultiHeadAttention(8, 0)
    layer = MultiHeadAttention(8, 2)
    with pytest.raises(ValueError, match=r"x must have shape \(batch, tokens, d_model=8\): got \(2, 5, 6\)"):
        layer(torch.ones(2, 5, 6))
    with pytest.raises(ValueError, match="x must have 3 dimensions"):
        layer(torch.ones(5, 8))
    with pytest.raises(ValueError, match="context must have shape"):
        layer(torch.ones(2, 5, 8), torch.ones(2, 5, 6))
    with pytest.raises(ValueError, match="mask must broadcast"):
        layer(torch.ones(2, 5, 8), mask=torch.ones(4, 5).bool())
    with pytest.raises(ValueError, match="n must be an integer ≥ 0: got -1"):
        causal_mask(-1)
