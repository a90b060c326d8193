"""Optimizers: steps by hand, and against the formulas written out again."""

import copy

import pytest
import torch
from adjust_models import MODELS, inputs_of, ours, output
from torch import nn

from attntut.adjust import acting_on, adjust, cautious_decay, lamb, muon
from attntut.anatomy.view import view

HAS_MUON = hasattr(torch.optim, "Muon")


def parameters(*shapes, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(scale * torch.randn(shape, generator=generator)) for shape in shapes]


def grads(weights, step):
    generator = torch.Generator().manual_seed(step + 1)
    for each in weights:
        each.grad = torch.randn(each.shape, generator=generator)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e6])
def test_lamb_is_its_algorithm(scale, decay):
    weights = parameters((3, 4), (5,), (2, 3, 2), scale=scale)
    lr, betas, eps = 0.01, (0.9, 0.99), 1e-6
    optimizer = lamb(weights, lr=lr, betas=betas, eps=eps, weight_decay=decay)
    theirs = [each.detach().double() for each in weights]
    moments = [(torch.zeros_like(each), torch.zeros_like(each)) for each in theirs]
    for step in range(5):
        grads(weights, step)
        for each, grad, (m, v) in zip(theirs, [w.grad.double() for w in weights], moments, strict=True):
            m.lerp_(grad, 1 - betas[0]), v.lerp_(grad.square(), 1 - betas[1])
            m_hat, v_hat = m / (1 - betas[0] ** (step + 1)), v / (1 - betas[1] ** (step + 1))
            u = m_hat / (v_hat.sqrt() + eps) + decay * each
            each -= lr * (each.norm() / u.norm() if each.ndim > 1 else 1.0) * u
        optimizer.step()
    for found, each in zip(weights, theirs, strict=True):
        assert torch.allclose(found.double(), each, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_matrix_moves_by_its_share_whatever_its_gradient(size):
    weights = parameters((3, 4), (4, 4))
    optimizer = lamb(weights, lr=0.01, eps=1e-12)
    before = [each.detach().clone() for each in weights]
    for each in weights:
        each.grad = size * torch.ones_like(each)
    optimizer.step()
    for each, old in zip(weights, before, strict=True):
        assert ((each - old).norm() / old.norm()).item() == pytest.approx(0.01, rel=1e-4)


def test_weights_of_zero_and_gradients_of_zero_are_stepped_as_ever():
    zero, still = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = lamb([zero, still], lr=0.5, weight_decay=0.0)
    zero.grad, still.grad = torch.ones(2, 2), torch.zeros(2, 2)
    optimizer.step()
    assert torch.allclose(zero, torch.tensor(-0.5)) and (still == 1).all()


def test_the_length_that_counts_is_bounded():
    (weight,) = parameters((3, 4), scale=1e3)
    optimizer = lamb([weight], lr=0.1, limit=10.0)
    before = weight.detach().clone()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert (weight - before).norm().item() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Muon"])
def test_decay_acts_only_where_the_step_has_its_sign(kind):
    if not hasattr(torch.optim, kind):
        pytest.skip("this torch has no Muon")
    (weight,), (plain,) = parameters((4, 5)), parameters((4, 5))
    lr, decay = 0.01, 0.5
    optimizer = cautious_decay(getattr(torch.optim, kind)([weight], lr=lr, weight_decay=decay))
    bare = getattr(torch.optim, kind)([plain], lr=lr, weight_decay=0.0)
    for step in range(3):
        with torch.no_grad():
            plain.copy_(weight)
        grads([weight], step), grads([plain], step)
        old = weight.detach().clone()
        optimizer.step(), bare.step()
        update = (old - plain) / lr
        mask = update * old >= 0
        assert 0 < mask.sum() < mask.numel()
        assert torch.allclose(weight, plain - lr * decay * old * mask, atol=1e-6)
        assert not torch.allclose(weight, plain - lr * decay * old, atol=1e-4)
        assert not torch.allclose(weight, plain - lr * decay * old * ~mask, atol=1e-4)
    assert optimizer.param_groups[0]["weight_decay"] == decay


def test_where_every_sign_agrees_it_is_the_decay_of_adamw():
    (weight,), (plain,) = parameters((4, 5)), parameters((4, 5))
    optimizer = cautious_decay(torch.optim.AdamW([weight], lr=0.01, weight_decay=0.5))
    ordinary = torch.optim.AdamW([plain], lr=0.01, weight_decay=0.5)
    weight.grad, plain.grad = weight.detach().clone(), plain.detach().clone()
    optimizer.step(), ordinary.step()
    assert torch.allclose(weight, plain, atol=1e-7)


def test_a_step_that_fails_does_not_lose_the_decay():
    (weight,) = parameters((2, 2))
    optimizer = cautious_decay(torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5))
    with pytest.raises(KeyError):
        optimizer.step(lambda: {}["missing"])
    weight.grad = weight.detach().clone()
    optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("make", [
    lambda weights: lamb(weights, lr=0.1),
    lambda weights: cautious_decay(torch.optim.AdamW(weights, lr=0.1, weight_decay=0.5)),
])  # fmt: skip
def test_parameters_without_a_gradient_stay_and_its_state_goes_on(make):
    weights = parameters((2, 2), (2, 2))
    optimizer, before = make(weights), weights[1].detach().clone()
    for _ in range(2):
        weights[0].grad = torch.ones(2, 2)
        optimizer.step()
    assert torch.equal(weights[1], before)
    twins = [nn.Parameter(each.detach().clone()) for each in weights]
    other = make(twins)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, one in ((optimizer, weights[0]), (other, twins[0])):
        one.grad = torch.full((2, 2), -3.0)
        each.step()
    assert torch.equal(weights[0], twins[0])


def test_lamb_is_an_optimizer_of_torch():
    (weight,) = parameters((2, 2))
    optimizer = lamb([{"params": [weight], "lr": 0.5}], lr=0.1)
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.step(lambda: weight.square().sum().backward() or 3.0) == 3
    twin = copy.deepcopy(optimizer)
    (copied,) = twin.param_groups[0]["params"]
    for each, one in ((optimizer, weight), (twin, copied)):
        one.grad = torch.ones(2, 2)
        each.step()
    assert torch.equal(copied, weight)


def test_decay_is_made_cautious_once():
    (weight,) = parameters((2, 2))
    optimizer = cautious_decay(torch.optim.SGD([weight], lr=0.1, weight_decay=0.5))
    with pytest.raises(ValueError, match="must not be cautious already: this SGD is"):
        cautious_decay(optimizer)
    before, weight.grad = weight.detach().clone(), torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weight, 0.95 * before) and before.any()
    cautious_decay(copy.deepcopy(optimizer))  # torch copies no hooks


@pytest.mark.skipif(not HAS_MUON, reason="torch before 2.9")
@pytest.mark.parametrize("name", MODELS)
def test_the_matrices_of_the_blocks_go_to_muon_and_all_else_to_adamw(name):
    model, inputs = MODELS[name](), inputs_of(name)
    first, second = muon(model, lr=1e-3)
    assert isinstance(first, torch.optim.Muon) and isinstance(second, torch.optim.AdamW)
    held = [[id(p) for group in each.param_groups for p in group["params"]] for each in (first, second)]
    assert sorted(held[0] + held[1]) == sorted(map(id, model.parameters()))
    for entry in view(model).entries:
        is_hidden = entry.role not in ("embedding", "position", "readout")
        assert (id(model.get_parameter(entry.parameter)) in held[0]) == is_hidden, entry
    output(model, inputs).square().mean().backward()
    first.step(), second.step()


@pytest.mark.skipif(not HAS_MUON, reason="torch before 2.9")
def test_all_directions_move_alike_and_entries_as_in_adam():
    model = nn.MultiheadAttention(32, 4)
    first, _ = muon(model, lr=0.01, weight_decay=0.0, momentum=0.0)
    before, weight = model.out_proj.weight.detach().clone(), model.out_proj.weight
    left, _, right = torch.linalg.svd(torch.randn(32, 32))
    weight.grad = left @ torch.diag(torch.logspace(0, -1, 32)) @ right
    first.step()
    step = (weight - before) / 0.01
    values = torch.linalg.svdvals(step) / (0.2 * 32**0.5)
    assert values.min() > 0.5 and values.max() < 1.4  # Newton and Schulz stop on the way to 1
    assert step.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_muon_says_which_torch_it_needs(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(RuntimeError, match=r"muon needs torch.optim.Muon, of torch 2.9 or later: this is"):
        muon(ours(), lr=1e-3)


@pytest.mark.skipif(not HAS_MUON, reason="torch before 2.9")
def test_muon_takes_an_adjusted_model():
    model = ours()
    adjust(model, "sigma_reparam")
    first, second = muon(model, lr=1e-3)
    held = {id(p) for group in first.param_groups for p in group["params"]}
    assert id(model.blocks[0].attention.query.parametrizations.weight.original) in held
    assert sum(len(group["params"]) for each in (first, second) for group in each.param_groups) == len(
        [*model.parameters()]
    )
    assert acting_on(model) == ("sigma_reparam",)


@pytest.mark.parametrize("call, error, message", [
    (lambda: lamb(parameters((2, 2)), limit=0), ValueError, "limit must be a number > 0"),
    (lambda: lamb(parameters((2, 2)), lr=-1), ValueError, "lr must be a number ≥ 0"),
    (lambda: lamb(parameters((2, 2)), betas=(0.9, 1)), ValueError, "betas must be a number ≥ 0 and < 1"),
    (lambda: cautious_decay(torch.optim.SGD(parameters((2, 2)))), ValueError, "must have a weight_decay > 0: SGD has"),
    (lambda: cautious_decay(3), TypeError, "optimizer must be a torch.optim.Optimizer: got int"),
    (lambda: muon(ours(), lr=-1), ValueError, "lr must be a number ≥ 0"),
    (lambda: muon(ours(), lr=1, momentum=1), ValueError, "momentum must be a number ≥ 0 and < 1"),
])  # fmt: skip
def test_what_cannot_be_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
