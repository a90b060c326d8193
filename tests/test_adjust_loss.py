"""Terms of the loss: values by hand, gradients against finite differences, hostile logits."""

import copy
import math

import pytest
import torch
from adjust_models import MODELS, D, H, inputs_of, ours, output
from torch import nn

from attntut.adjust import acting_on, adjust, entropy_penalty, z_loss
from attntut.adjust.attention import AttentionChange, insert
from attntut.anatomy.view import view
from attntut.measure import attention_entropy


def test_z_loss_by_hand():
    logits = torch.tensor([[[1.0, 1.0]], [[0.0, math.log(3)]]])
    squares = (1 + math.log(2)) ** 2, math.log(4) ** 2
    assert z_loss(logits, coefficient=1.0).item() == pytest.approx(sum(squares) / 2)
    assert z_loss(logits).item() == pytest.approx(1e-4 * sum(squares) / 2)
    assert z_loss(logits, coefficient=1.0, counts=torch.tensor([[True], [False]])).item() == pytest.approx(squares[0])
    assert z_loss(logits.log_softmax(-1)).item() == pytest.approx(0, abs=1e-12)


def test_the_gradient_of_z_loss():
    logits = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: z_loss(x, coefficient=0.3), logits)
    (grad,) = torch.autograd.grad(z_loss(logits, coefficient=0.3), logits)
    log_z = logits.logsumexp(-1, keepdim=True)
    assert torch.allclose(grad, 0.3 * 2 * log_z * logits.softmax(-1) / 3)
    huge = torch.tensor([[1e6, -1e6]], requires_grad=True)
    z_loss(huge).backward()
    assert torch.isfinite(huge.grad).all()


@pytest.mark.parametrize("changes, error, message", [
    (dict(coefficient=-1), ValueError, "coefficient must be a number ≥ 0"),
    (dict(counts=torch.ones(2)), ValueError, "counts must be boolean, of shape"),
    (dict(counts=torch.zeros(3, dtype=torch.bool)), ValueError, "True somewhere"),
    (dict(logits=torch.ones(3, 2, dtype=torch.long)), TypeError, "logits must be a floating-point tensor"),
])  # fmt: skip
def test_what_z_loss_refuses(changes, error, message):
    with pytest.raises(error, match=message):
        z_loss(**dict(logits=torch.randn(3, 2)) | changes)


def expected(weights, target):
    """Of weights ``(B, H, T, S)``; queries with one key do not count."""
    share = attention_entropy(weights, normalized=True, mask=weights > 0)
    return (share.nanmean((0, 2)) - target).square()


@pytest.mark.parametrize("mask", [None, "causal", "float", "padding"])
@pytest.mark.parametrize("need_weights", [True, False])
def test_it_is_the_entropy_of_the_model_s_own_weights(mask, need_weights):
    model, x = nn.MultiheadAttention(D, H, batch_first=True).eval(), torch.randn(2, 5, D)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    options = {
        None: {},
        "causal": dict(attn_mask=causal),
        "float": dict(attn_mask=torch.zeros(5, 5).masked_fill(causal, -1e9)),
        "padding": dict(key_padding_mask=padding),
    }[mask]
    _, weights = model(x, x, x, average_attn_weights=False, **options)
    with entropy_penalty(model, target=0.3, coefficient=2.0) as penalty:
        model(x, x, x, need_weights=need_weights, **options)
        assert penalty().item() == pytest.approx(2 * expected(weights, 0.3).mean().item(), rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_watched_and_left_as_it_was(name):
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    before = output(model, inputs)
    penalty = entropy_penalty(model, target=0.2)
    assert torch.allclose(output(model, inputs), before, atol=1e-5)
    term = penalty()
    assert term.ndim == 0 and 0 < term.item() <= 0.01
    term.backward()
    queries = [each.grad for key, each in model.named_parameters() if each.grad is not None and each.ndim > 1]
    assert queries and all(torch.isfinite(each).all() for each in queries)
    penalty.undo()
    assert acting_on(model) == () and torch.equal(output(model, inputs), before)


def test_its_gradient_is_that_of_finite_differences():
    model, x = nn.MultiheadAttention(4, 2, batch_first=True).double(), torch.randn(2, 4, 4, dtype=torch.double)
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    penalty = entropy_penalty(model, target=0.3, coefficient=3.0)

    def term(weight):
        torch.func.functional_call(model, {"in_proj_weight": weight}, (x, x, x), dict(attn_mask=mask))
        return penalty()

    assert torch.autograd.gradcheck(term, (2 * torch.randn(12, 4, dtype=torch.double)).requires_grad_())


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2, 1e6])
def test_hostile_weights_give_finite_gradients(scale):
    model = ours(is_causal=True)
    with torch.no_grad():
        for entry in view(model).by_role("query", "key"):
            entry.view.normal_(std=scale)
    with entropy_penalty(model, target=0.5, coefficient=1.0) as penalty:
        output(model, inputs_of("ours"))
        term = penalty()
        term.backward()
    assert 0 <= term.item() <= 0.25 + 1e-6
    assert all(torch.isfinite(each.grad).all() for each in model.parameters() if each.grad is not None)


def test_it_draws_the_entropy_to_its_target():
    torch.manual_seed(0)
    model, x = nn.MultiheadAttention(D, H, batch_first=True), torch.randn(4, 8, D)
    with torch.no_grad():
        model.in_proj_weight[: 2 * D].mul_(3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with entropy_penalty(model, target=0.9, coefficient=1.0) as penalty:
        terms = []
        for _ in range(60):
            optimizer.zero_grad()
            model(x, x, x)
            terms.append(penalty())
            terms[-1].backward()
            optimizer.step()
    assert terms[-1] < 0.05 * terms[0]


def test_it_has_the_last_forward_pass_once():
    model, inputs = ours(), inputs_of("ours")
    with entropy_penalty(model) as penalty:
        with pytest.raises(RuntimeError, match="run the model first"):
            penalty()
        output(model, inputs)
        first = penalty()
        output(model, inputs), output(model, inputs)
        assert torch.equal(penalty(), first)
        with pytest.raises(RuntimeError, match="run the model first"):
            penalty()
        twin = copy.deepcopy(model)
        output(twin, inputs)
        with pytest.raises(RuntimeError, match="run the model first"):
            penalty()


def test_a_method_that_comes_later_hides_no_key():
    model, x = nn.MultiheadAttention(D, H, batch_first=True), torch.zeros(1, 5, D)
    with torch.no_grad():
        model.in_proj_bias[:D], model.in_proj_bias[D : 2 * D] = 1.0, -1.0  # all logits are −2
    with entropy_penalty(model, target=1.0) as penalty, adjust(model, "temperature", tau=1e-7):
        model(x, x, x)
        assert penalty().item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("changes, message", [
    (dict(target=1.5), "target must be a number ≥ 0 and ≤ 1"),
    (dict(coefficient=-1), "coefficient must be a number ≥ 0"),
    (dict(model=nn.Linear(2, 2)), "model must contain attention"),
])  # fmt: skip
def test_what_the_penalty_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        entropy_penalty(**dict(model=ours()) | changes)


def test_two_penalties_and_weights_that_are_no_softmax_are_refused():
    model = ours()
    with entropy_penalty(model), pytest.raises(ValueError, match="'entropy_penalty' acts on this model already"):
        entropy_penalty(model)

    class Flat(AttentionChange):
        def weights(self, logits, hidden):
            return torch.full_like(logits, 0.1)

    insert(model.blocks[1].attention, H, "flat", Flat())
    with pytest.raises(ValueError, match=r"the weights of blocks.1.attention are no softmax: flat"):
        entropy_penalty(model)
    assert acting_on(model) == () and "forward" not in vars(model.blocks[0].attention)
    with adjust(ours(), "soft_cap") as handle:
        entropy_penalty(handle.model).undo()
    with adjust(ours(), "softpick") as handle:
        with pytest.raises(ValueError, match="'entropy_penalty' clashes with softpick, because it sees the weights of"):
            entropy_penalty(handle.model)
        with pytest.raises(ValueError, match="are no softmax: softpick"):
            entropy_penalty(handle.model, force=True)
