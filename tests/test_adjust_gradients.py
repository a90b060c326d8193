"""Methods on gradients: what they bound, whatever the weights and the gradients are, and what they leave alone."""

import copy

import pytest
import torch
from adjust_models import MODELS, inputs_of, ours, output
from torch import nn

from attntut.adjust import adjust
from attntut.anatomy.view import view


def filled(model, scale):
    """Gradients of this size, and an optimizer that leaves the weights alone."""
    for each in model.parameters():
        each.grad = scale * torch.randn_like(each)
    return torch.optim.SGD(model.parameters(), lr=0.0)


def norm(model):
    return nn.utils.get_total_norm([each.grad.double() for each in model.parameters()]).item()


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e6, 1e30])
def test_the_norm_is_bounded_and_the_direction_kept(scale):
    model = ours()
    optimizer = filled(model, scale)
    before = [each.grad.clone() for each in model.parameters()]
    length = norm(model)
    with adjust(model, "clip_norm", optimizer=optimizer, max_norm=0.7):
        optimizer.step()
    if scale < 1e20:  # beyond, the norm overflows, and nothing is left
        assert norm(model) == pytest.approx(min(length, 0.7), rel=1e-4)
    assert norm(model) <= 0.7 * 1.0001
    for each, old in zip(model.parameters(), before, strict=True):
        if scale < 1e20:
            assert torch.allclose(each.grad * length / min(length, 0.7), old, rtol=1e-4)


def test_by_hand_and_only_until_it_is_undone():
    model = nn.MultiheadAttention(4, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for each in model.parameters():
        each.grad = torch.zeros_like(each)
    model.in_proj_weight.grad[0, 0], model.out_proj.weight.grad[0, 0] = 3.0, 4.0
    handle = adjust(model, "clip_norm", optimizer=optimizer, max_norm=1.0)
    optimizer.step()
    assert model.in_proj_weight.grad[0, 0].item() == pytest.approx(0.6, rel=1e-5)
    assert model.out_proj.weight.grad[0, 0].item() == pytest.approx(0.8, rel=1e-5)
    handle.undo()
    model.in_proj_weight.grad[0, 0] = 3.0
    optimizer.step()
    assert model.in_proj_weight.grad[0, 0] == 3


@pytest.mark.parametrize("weights", [1e-2, 1.0, 1e6])
@pytest.mark.parametrize("name", ["ours", "ours, packed, post-LN", "torch attention", "GPT-2", "Llama"])
def test_each_unit_is_bounded_by_its_weights(name, weights):
    if name not in MODELS:
        pytest.skip("needs transformers")
    model = MODELS[name]()
    for scale in (1e-6, 1.0, 1e30):
        with torch.no_grad():
            for each in model.parameters():
                each.normal_(std=weights)
        optimizer = filled(model, scale)
        before = {key: each.grad.clone() for key, each in model.named_parameters()}
        with adjust(model, "adaptive_clip", optimizer=optimizer, limit=0.1, eps=1e-3):
            optimizer.step()
        grads = {key: each.grad for key, each in model.named_parameters()}
        twin = copy.deepcopy(model)  # whose weights are the gradients, seen by role
        with torch.no_grad():
            for key, each in twin.named_parameters():
                each.copy_(grads[key])
        for entry, grad in zip(view(model).entries, view(twin).entries, strict=True):
            if entry.role == "readout":
                assert torch.equal(grads[entry.parameter], before[entry.parameter])
                continue
            dim = 0 if entry.weight.is_table else 1
            most = 0.1 * entry.view.double().norm(dim=dim).clamp(min=1e-3)
            length = grad.view.double().norm(dim=dim)
            assert (length <= most * 1.001).all()
            if scale == 1.0:
                assert torch.allclose(length, torch.minimum(most, length.new_tensor(1e9)), rtol=1e-3) or weights > 1
            if scale == 1e-6:
                assert torch.equal(grads[entry.parameter], before[entry.parameter])


def test_the_readout_is_clipped_if_it_is_not_skipped():
    model = ours()
    optimizer = filled(model, 1e3)
    before = model.readout.weight.grad.clone()
    with adjust(model, "adaptive_clip", optimizer=optimizer, skip=()):
        optimizer.step()
    assert (model.readout.weight.grad.norm(dim=1) < before.norm(dim=1) / 10).all()


def test_it_knows_a_matrix_that_is_computed():
    model = ours()
    adjust(model, "sigma_reparam")
    optimizer = filled(model, 1e3)
    with adjust(model, "adaptive_clip", optimizer=optimizer):
        optimizer.step()
    stored = model.blocks[0].attention.query.parametrizations.weight.original
    assert torch.allclose(stored.grad.norm(dim=1), 0.01 * stored.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("name", ["clip_norm", "adaptive_clip"])
def test_gradients_that_are_not_there_are_refused(name):
    model = ours()
    optimizer = filled(model, 1.0)
    message = r"call step\(\) without a closure"
    with adjust(model, name, optimizer=optimizer), pytest.raises(ValueError, match=message):
        optimizer.step(lambda: 0.0)
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer: got int"):
        adjust(model, name, optimizer=3)


@pytest.mark.parametrize("unscaled", [False, True])
def test_gradients_that_are_scaled_are_refused(unscaled):
    model, inputs = ours(), inputs_of("ours")
    optimizer, scaler = torch.optim.AdamW(model.parameters(), fused=True), torch.amp.GradScaler("cpu")
    with adjust(model, "clip_norm", optimizer=optimizer, max_norm=0.1):
        scaler.scale(output(model, inputs).square().sum()).backward()
        if unscaled:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            assert norm(model) <= 0.1001
        else:
            with pytest.raises(ValueError, match=r"call scaler\.unscale_\(optimizer\) first"):
                scaler.step(optimizer)


@pytest.mark.parametrize("name", ["ours", "ours, modern", "BERT", "GPT-2", "T5", "ViT"])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
def test_the_embedding_s_gradient_shrinks_and_nothing_else_does(name, alpha):
    if name not in MODELS:
        pytest.skip("needs transformers")
    model, inputs = MODELS[name]().eval(), inputs_of(name)

    def gradients():
        model.zero_grad()
        found = output(model, inputs)
        found.square().sum().backward()
        return found, {key: each.grad for key, each in model.named_parameters() if each.grad is not None}

    expected, before = gradients()
    with adjust(model, "embedding_rescale", alpha=alpha):
        found, after = gradients()
    assert torch.equal(found, expected)
    tied = name in ("GPT-2", "T5")  # the share of the readout stays
    embedding = {entry.parameter for entry in view(model).by_role("embedding")} - {"embeddings.cls_token"}
    for key, grad in after.items():
        if key in embedding and tied:
            assert grad.norm() > alpha * before[key].norm()
        elif key in embedding or key.removesuffix("bias") + "weight" in embedding:
            assert torch.allclose(grad, alpha * before[key], rtol=1e-4, atol=1e-6 * before[key].abs().max().item())
        else:
            assert torch.equal(grad, before[key])


def test_a_model_without_an_embedding_is_refused():
    with pytest.raises(
        ValueError, match="'embedding_rescale' cannot be applied to MultiheadAttention: no layer is known"
    ):
        adjust(nn.MultiheadAttention(8, 2), "embedding_rescale")


@pytest.mark.parametrize("name, options, message", [
    ("clip_norm", dict(max_norm=0), "max_norm must be a number > 0"),
    ("adaptive_clip", dict(limit=0), "limit must be a number > 0"),
    ("adaptive_clip", dict(eps=-1), "eps must be a number > 0"),
    ("adaptive_clip", dict(skip=["readuot"]), "Did you mean 'readout'?"),
    ("embedding_rescale", dict(alpha=1.5), "alpha must be a number ≥ 0 and ≤ 1"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name, options, message):
    model = ours()
    given = {} if name == "embedding_rescale" else dict(optimizer=torch.optim.SGD(model.parameters()))
    with pytest.raises(ValueError, match=message):
        adjust(model, name, **options, **given)
