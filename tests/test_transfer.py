"""Starts from a trained model: what they keep, what they change, and what they refuse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from attntut import Transformer, TransformerConfig, seeded
from attntut.init.transfer import FROM_WEIGHT, POOLS, STARTS, LowRank, adapt_, align_heads_, grouped
from attntut.parts import QKNorm, Rotary

CONFIG = TransformerConfig(n_classes=3, d_input=4, d_model=24, n_heads=4, n_layers=2, d_ff=20)
X = torch.randn(5, 16, 4, generator=seeded(9))


def model_of(config: TransformerConfig = CONFIG) -> Transformer:
    model = Transformer(config, seed=0)
    for block in model.blocks:  # biases that are not 0, or nothing would notice a lost one
        for role in ("query", "key", "value", "output"):
            nn.init.normal_(getattr(block.attention, role).bias, generator=seeded(1))
    return model


def adapters(model: nn.Module) -> list[LowRank]:
    return [each for each in model.modules() if isinstance(each, LowRank)]


@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize("start", STARTS)
def test_the_adapted_model_is_the_same_function(start, alpha):
    model = model_of()
    before = model(X)
    adapt_(model, start, rank=4, alpha=alpha, roles=("query", "value", "feed_forward_in"), generator=seeded(2))
    assert len(adapters(model)) == 6
    torch.testing.assert_close(model(X), before, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_only_the_adapters_are_trained_and_the_base_changes_only_where_the_start_says(start):
    model = model_of()
    old = copy.deepcopy(model.blocks[0].attention.query.weight)
    adapt_(model, start, generator=seeded(2))
    assert {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad} == {
        "adapter_in",
        "adapter_out",
    }
    assert torch.equal(model.blocks[0].attention.query.base.weight, old) == (start not in FROM_WEIGHT)


@pytest.mark.parametrize(
    "start, std_in, std_out",
    [
        ("kaiming", 1 / math.sqrt(3 * 400), 0),
        ("gaussian", 1 / 8, 0),
        ("zero in", 0, 1 / math.sqrt(3 * 8)),
        ("orthogonal", 0.1 / math.sqrt(2), 0.1 / math.sqrt(2)),
    ],
)
def test_the_spread_of_a_start_worked_out_by_hand(start, std_in, std_out):
    A, B = STARTS[start](torch.empty(300, 400), 8, seeded(3))
    assert (A.shape, B.shape) == ((8, 400), (300, 8))
    assert (A.std().item(), B.std().item()) == pytest.approx((std_in, std_out), rel=0.06)


def test_orthogonal_has_a_product_of_zero_although_neither_matrix_is():
    A, B = STARTS["orthogonal"](torch.empty(30, 40), 6, seeded(3))
    assert (B @ A).abs().max() < 1e-6 < A.abs().max()
    assert torch.linalg.matrix_rank(A) == torch.linalg.matrix_rank(B) == 3


def test_pissa_takes_the_best_approximation_whatever_alpha_and_olora_the_first_columns():
    W = torch.randn(10, 10, generator=seeded(4))
    U, S, Vh = torch.linalg.svd(W)
    for alpha in (2.0, 10.0):
        layer = adapters(adapt_(_holder(W), "pissa", rank=2, alpha=alpha, roles=("query",)))[0]
        torch.testing.assert_close(layer.product, U[:, :2] * S[:2] @ Vh[:2])
    layer = adapters(adapt_(_holder(W), "olora", rank=2, roles=("query",)))[0]
    torch.testing.assert_close(layer.product[:, :2], W[:, :2])
    torch.testing.assert_close(layer.base.weight[:, :2], torch.zeros(10, 2), atol=1e-5, rtol=0)


def _holder(W: torch.Tensor) -> Transformer:
    """A model of one block whose query matrix is W."""
    model = Transformer(TransformerConfig(n_classes=2, d_input=4, d_model=len(W), n_heads=2, n_layers=1), seed=0)
    with torch.no_grad():
        model.blocks[0].attention.query.weight.copy_(W)
    return model


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(start="svd"), "start"),
        (dict(start="orthogonal", rank=3), "even"),
        (dict(rank=25), "rank"),
        (dict(alpha=0.0), "alpha"),
    ],
)
def test_a_refused_adapter_leaves_the_model_as_it_was(options, message):
    model = model_of()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        adapt_(model, **options)
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_packed_projections_are_refused():
    packed = Transformer(TransformerConfig(n_classes=2, d_input=4, packed=True), seed=0)
    with pytest.raises(ValueError, match="of their own"):
        adapt_(packed)
    with pytest.raises(ValueError, match="apart"):
        grouped(packed, 2)


@pytest.mark.parametrize("how", POOLS)
def test_groups_of_one_head_are_the_model_and_equal_heads_may_be_shared(how):
    model = model_of()
    if how != "random":
        torch.testing.assert_close(grouped(model, 4, how)(X), model(X))
        with torch.no_grad():
            for block in model.blocks:
                for layer in (block.attention.key, block.attention.value):
                    for tensor in (layer.weight, layer.bias):
                        heads = tensor.unflatten(0, (2, 2, -1))
                        heads[:, 1] = heads[:, 0]
        torch.testing.assert_close(grouped(model, 2, how)(X), model(X), atol=1e-5, rtol=1e-4)
    else:
        made = grouped(model, 2, how, generator=seeded(0)).blocks[0].attention.key.weight
        assert made.std().item() == pytest.approx(model.blocks[0].attention.key.weight.std().item(), rel=0.15)


def test_one_head_costs_on_average_twice_what_the_mean_costs():
    heads = torch.randn(5, 7, 3, generator=seeded(5)) + torch.randn(7, 3, generator=seeded(6))
    mean = (heads - heads.mean(0)).square().sum()
    one = sum((heads - head).square().sum() for head in heads) / 5
    assert one.item() == pytest.approx(2 * mean.item())


@pytest.mark.parametrize("roles", [("key",), ("value",), ("key", "value")])
def test_turned_heads_are_the_same_function_and_nearer_to_each_other(roles):
    model = model_of()
    turned = align_heads_(copy.deepcopy(model), 2, roles)
    torch.testing.assert_close(turned(X), model(X), atol=1e-5, rtol=1e-4)
    for role in roles:
        before, after = (_distance(each, role) for each in (model, turned))
        assert after < 0.9 * before


def _distance(model: Transformer, role: str) -> float:
    heads = getattr(model.blocks[0].attention, role).weight.unflatten(0, (2, 2, -1))
    return (heads[:, 0] - heads[:, 1]).square().sum().item()


@pytest.mark.parametrize("part", [Rotary(), QKNorm()])
def test_keys_whose_channels_are_told_apart_are_not_turned(part):
    model = model_of(TransformerConfig(n_classes=2, d_input=4, d_model=16, n_heads=4, parts=(part,)))
    with pytest.raises(ValueError, match="told apart"):
        align_heads_(model, 2)
    before = model(X)
    torch.testing.assert_close(align_heads_(model, 2, ("value",))(X), before, atol=1e-5, rtol=1e-4)


def test_numbers_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="n_kv_heads must divide n_heads=4"):
        grouped(model_of(), 3)
    with pytest.raises(TypeError, match="Transformer"):
        grouped(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="how"):
        grouped(model_of(), 2, "median")
