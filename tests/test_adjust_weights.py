"""σReparam, weight norm, QK-clip, redrawn blocks: by hand, their promises under hostile weights, their gradients."""

import math

import pytest
import torch
from adjust_models import MODELS, D, H, inputs_of, ours, output
from torch import nn

from attntut import MultiHeadAttention
from attntut.adjust import adjust
from attntut.diagnose import diagnose
from attntut.parts import GroupedQueries, Rotary

# ---- σReparam


def roles(model):
    from attntut.init import view

    return view(model).by_role("query", "key", "value", "output", "feed_forward_in", "feed_forward_out")


@pytest.mark.parametrize("name", ["ours", "ours, packed, post-LN", "torch encoder", "GPT-2", "Llama"])
@pytest.mark.parametrize("sigma", [1e-2, 1e3, 1e6])
def test_every_projection_gets_its_own_singular_value(name, sigma):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model = MODELS[name]()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=sigma)
    places = [(each.parameter, each.matrix) for each in roles(model)]
    with adjust(model, "sigma_reparam", gamma=0.5), torch.no_grad():
        for parameter, matrix in places:
            owner, _, own = parameter.rpartition(".")
            computed, view = getattr(model.get_submodule(owner), own).contiguous(), matrix.view
            offset = view.storage_offset() - dict(model.named_parameters()).get(parameter, computed).storage_offset()
            part = computed.as_strided(view.shape, view.stride(), offset).reshape(matrix.shape)
            assert torch.linalg.matrix_norm(part, 2).item() == pytest.approx(0.5, rel=1e-3)


def test_it_is_torch_s_spectral_norm_times_gamma():
    torch.manual_seed(0)
    layer, twin = MultiHeadAttention(8, 2, bias=False), nn.Linear(8, 8, bias=False)
    twin.weight.data.copy_(layer.query.weight)
    adjust(layer, "sigma_reparam", gamma=2.0, on=["query"])
    nn.utils.parametrizations.spectral_norm(twin, n_power_iterations=200)
    for each in (layer, twin):
        each.eval()
    x = torch.randn(3, 8)
    first, second = layer.query(x), 2 * twin(x)
    assert torch.allclose(first, second, atol=1e-4)
    first.square().sum().backward(), second.square().sum().backward()
    gradients = [each.parametrizations.weight.original.grad for each in (layer.query, twin)]
    assert torch.allclose(*gradients, atol=1e-3)


def test_the_singular_value_is_tracked_while_the_weights_change():
    torch.manual_seed(0)
    layer = MultiHeadAttention(16, 2)
    adjust(layer, "sigma_reparam", on=["query"])
    for _ in range(40):
        with torch.no_grad():
            layer.query.parametrizations.weight.original.add_(0.02 * torch.randn(16, 16))
        layer(torch.randn(1, 3, 16))
    assert torch.linalg.matrix_norm(layer.query.weight, 2).item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("packed", [False, True])
def test_its_gradient_is_that_of_finite_differences(packed):
    model = MultiHeadAttention(4, 2, packed=packed).double().eval()
    adjust(model, "sigma_reparam")
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    names = [name for name, each in model.named_parameters()]
    parametrized = [name for name in names if "original" in name]

    def function(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    values = [each.detach().requires_grad_() for each in model.parameters()]
    assert parametrized and torch.autograd.gradcheck(function, values)


@pytest.mark.parametrize("make", [
    lambda: torch.randn(256, 256), lambda: torch.randn(64, 256), lambda: torch.eye(40),
    lambda: torch.full((30, 20), 1e-9), lambda: torch.randn(1, 9), lambda: 1e-25 * torch.randn(9, 30),
    lambda: torch.randn(200, 3) @ torch.randn(3, 100), lambda: torch.linalg.qr(torch.randn(300, 300)).Q,
    lambda: torch.randn(100, 100) * torch.logspace(0, -6, 100), lambda: 1e6 * torch.randn(200, 30).half().float() / 1e2,
])  # fmt: skip
def test_the_first_singular_value_is_nearly_exact_and_never_too_large(make):
    from attntut.adjust.weights import _largest_pair

    torch.manual_seed(0)
    matrix = make()
    u, v = _largest_pair(matrix)
    assert torch.allclose(torch.stack([u.norm(), v.norm()]), torch.ones(2), atol=1e-5)
    assert 0.99 < torch.dot(u, matrix @ v) / torch.linalg.matrix_norm(matrix, 2) < 1.0001


def test_a_matrix_without_a_size_is_refused():
    model = MultiHeadAttention(D, H, packed=True)
    nn.init.zeros_(model.in_proj.weight[D : 2 * D])
    for name, message in (("sigma_reparam", "a part that is 0"), ("weight_norm", "a row that is 0")):
        with pytest.raises(ValueError, match=message):
            adjust(model, name)


# ---- weight norm


@pytest.mark.parametrize("name", ["ours", "ours, packed, post-LN", "torch encoder", "GPT-2", "T5"])
def test_the_length_of_a_row_is_its_gain_and_the_model_is_the_same_at_first(name):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    expected, rows = output(model, inputs), [each.view.norm(dim=1) for each in roles(model)]
    lengths = [(each.parameter, each.matrix) for each in roles(model)]
    with adjust(model, "weight_norm"), torch.no_grad():
        assert torch.allclose(output(model, inputs), expected, atol=1e-4)
        for (parameter, matrix), length in zip(lengths, rows, strict=True):
            matrix.write_(1e6 * torch.rand(matrix.shape[0], 1) * matrix.read())
            owner, _, own = parameter.rpartition(".")
            computed = getattr(model.get_submodule(owner), own).contiguous()
            assert computed.norm() == pytest.approx(torch.linalg.vector_norm(computed).item())
            gain = model.get_submodule(owner).parametrizations[own][0].gain.flatten()
            assert torch.isclose(gain[:, None], length[None], rtol=1e-3).any(0).all()
        assert torch.allclose(output(model, inputs), expected, atol=1e-3)  # only the directions count


def test_it_is_torch_s_weight_norm():
    layer, twin = MultiHeadAttention(8, 2, bias=False), nn.Linear(8, 8, bias=False)
    twin.weight.data.copy_(layer.query.weight)
    adjust(layer, "weight_norm")
    nn.utils.parametrizations.weight_norm(twin)
    x = torch.randn(3, 8)
    first, second = layer.query(x), twin(x)
    assert torch.allclose(first, second, atol=1e-5)
    first.square().sum().backward(), second.square().sum().backward()
    theirs, mine = twin.parametrizations.weight, layer.query.parametrizations.weight
    assert torch.allclose(mine.original.grad, theirs.original1.grad, atol=1e-5)
    assert torch.allclose(mine[0].gain.grad, theirs.original0.grad, atol=1e-5)


# ---- blocks drawn again


@pytest.mark.parametrize("name", ["torch encoder", "torch transformer", "BERT", "GPT-2", "ours"])
def test_the_last_block_is_new_and_the_others_are_not(name):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model = MODELS[name]()
    before = {key: each.clone() for key, each in model.named_parameters()}
    for each in model.parameters():
        each.data.add_(0.5)
    trained = {key: each.clone() for key, each in model.named_parameters()}
    if name == "torch transformer":  # one block a stack
        with pytest.raises(ValueError, match="its blocks are not known"):
            adjust(model, "reinit_top_layers")
        return
    handle = adjust(model, "reinit_top_layers", scheme="normal", generator=torch.Generator().manual_seed(0))
    changed = {key for key, each in model.named_parameters() if not torch.equal(each, trained[key])}
    assert changed == {key for key in before if ".1." in key and not key.endswith("gain")}
    for key in changed:
        each = model.get_parameter(key)
        if each.ndim > 1:
            assert each.std().item() == pytest.approx(0.02, rel=0.25)
        else:
            assert each.eq(0).all() or each.eq(1).all()
    handle.undo()
    assert all(torch.equal(each, trained[key]) for key, each in model.named_parameters())


def test_a_pooler_may_go_too():
    pytest.importorskip("transformers")
    model = MODELS["BERT"]()
    pooler, table = model.pooler.dense.weight.clone(), model.embeddings.word_embeddings.weight.clone()
    with adjust(model, "reinit_top_layers", n_layers=2, readout=True):
        assert not torch.equal(model.pooler.dense.weight, pooler)
        assert torch.equal(model.embeddings.word_embeddings.weight, table)


@pytest.mark.parametrize("options, message", [
    (dict(n_layers=3), "n_layers must be an integer between 1 and 2"), (dict(n_layers=0), "n_layers must be"),
    (dict(scheme="lsuv"), "measures or corrects"), (dict(scheme="norml"), "Did you mean 'normal'"),
    (dict(scheme="t5"), "needs"), (dict(generator=3), "generator must be a torch.Generator"),
])  # fmt: skip
def test_blocks_are_drawn_by_a_scheme_that_fits(options, message):
    model = ours()
    before = [each.clone() for each in model.parameters()]
    with pytest.raises((ValueError, TypeError), match=message):
        adjust(model, "reinit_top_layers", **options)
    assert all(map(torch.equal, before, model.parameters()))


# ---- QK-clip


def largest(model, inputs):
    return torch.tensor([row["logit_max"] for row in diagnose(model, inputs).table()])


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("make", [
    lambda: MultiHeadAttention(D, H, is_causal=True), lambda: MultiHeadAttention(D, H, packed=True),
    lambda: MultiHeadAttention(D, H, parts=(GroupedQueries(2), Rotary())), lambda: nn.MultiheadAttention(D, H),
])  # fmt: skip
def test_after_a_step_no_logit_is_above_the_limit(make, scale):
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)).mul_(scale)  # biases too
    x = torch.randn(2, 6, D)
    inputs = (x, x, x) if isinstance(model, nn.MultiheadAttention) else (x,)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = largest_logits(model, inputs)
    with adjust(model, "qk_clip", optimizer=optimizer, limit=1.5):
        model(*inputs)
        optimizer.step()
    wanted = before.clamp(max=1.5)
    assert torch.allclose(largest_logits(model, inputs), wanted, rtol=1e-3)  # exactly to the limit, others stay


def largest_logits(model, inputs):
    """Of each head, by hand: the largest logit that a query may see."""
    from attntut.adjust.weights import LargestLogits

    with adjust(model, "temperature", tau=1.0):
        part = model if hasattr(model, "adjusted") else model.attention
        part.adjusted.add_module("largest", LargestLogits())
        model(*inputs)
        found = part.adjusted["largest"].largest
        del part.adjusted["largest"]
    return found


def test_by_hand_for_two_heads_of_which_one_is_too_large():
    model = nn.MultiheadAttention(2, 2, bias=False, batch_first=True)
    with torch.no_grad():
        model.in_proj_weight.copy_(torch.tensor([[8.0, 0], [0, 1], [2, 0], [0, 1], [1, 0], [0, 1]]))
    x, optimizer = torch.eye(2)[None], torch.optim.SGD(model.parameters(), lr=0.0)
    with adjust(model, "qk_clip", optimizer=optimizer, limit=4.0):  # logits 8·2 = 16 in one head, 1 in the other
        model(x, x, x)
        optimizer.step()
        optimizer.step()  # nothing was seen since
    expected = torch.tensor([[4.0, 0], [0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])  # √(4/16) = ½ for each
    assert torch.allclose(model.in_proj_weight, expected)


def test_a_shared_key_takes_the_root_of_the_smallest_factor():
    torch.manual_seed(0)
    model = MultiHeadAttention(D, H, parts=(GroupedQueries(2),))
    with torch.no_grad():
        model.query.weight[:4] *= 50
    x, optimizer, key = torch.randn(1, 6, D), torch.optim.SGD(model.parameters(), lr=0.0), model.key.weight.clone()
    with adjust(model, "qk_clip", optimizer=optimizer, limit=1.0):
        model(x)
        optimizer.step()
    ratio = (model.key.weight / key)[:, 0]
    assert ratio[:4].max() < 1 and torch.allclose(ratio[4:], torch.ones(4))


def test_training_goes_on_as_it_would_below_the_limit():
    torch.manual_seed(0)
    model, twin, inputs = ours(), ours(), inputs_of("ours")
    twin.load_state_dict(model.state_dict())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, twin)]
    adjust(model, "qk_clip", optimizer=optimizers[0])
    for each, optimizer in zip((model, twin), optimizers, strict=True):
        for _ in range(3):
            output(each, inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(map(torch.allclose, model.parameters(), twin.parameters(), [1e-4] * 99, [1e-5] * 99))


def test_a_logit_that_is_not_finite_does_not_touch_the_weights():
    model, x = nn.MultiheadAttention(D, H, batch_first=True), torch.randn(1, 6, D)
    optimizer, before = torch.optim.SGD(model.parameters(), lr=0.0), model.in_proj_weight.detach().clone()
    with adjust(model, "qk_clip", optimizer=optimizer, limit=0.01):
        for number in (math.inf, math.nan):
            model(number * x, x, x)
            optimizer.step()
            assert torch.equal(model.in_proj_weight, before)
        model(x, x, x), model(math.inf * x, x, x)
        optimizer.step()
    assert torch.isfinite(model.in_proj_weight).all() and not torch.equal(model.in_proj_weight, before)
