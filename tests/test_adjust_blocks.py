"""Branch scale, sandwich and the norms of the stream: by hand, at the right places, models that have them."""

import pytest
import torch
import torch.nn.functional as F
from adjust_models import MODELS, VOCAB, WORDS, D, encoder, hugging_face, inputs_of, ours, output
from torch import nn

from attntut import Transformer, TransformerConfig
from attntut.adjust import adjust
from attntut.init import initialize_
from attntut.measure import token_cosine
from attntut.parts import DepthDividedNorm, DyT, RMSNorm


@pytest.mark.parametrize("norm", ["pre", "post", "none", "sub"])
@pytest.mark.parametrize("factor", [None, 0.3])
def test_it_is_the_factor_of_our_own_config(norm, factor):
    own, plain = ours(norm=norm, residual_scale=2**-0.5 if factor is None else factor), ours(norm=norm)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(2, 6, 5)
    assert not torch.allclose(plain(x), own(x), atol=1e-3)
    with adjust(plain, "branch_scale", factor=factor):
        assert torch.allclose(plain(x), own(x), atol=1e-6)


@pytest.mark.parametrize("wrong", [dict(residual_scale=1 / 3), dict(residual_scale=6**-0.5), dict(residual_scale=1.0),
                                   dict(skip_scale=3**-0.5)])  # fmt: skip
def test_another_factor_is_another_function(wrong):
    """1/L, 1/√(2L) (of branches, not blocks), none, and that of the stream, in place of 1/√L."""
    own, plain, x = ours(n_layers=3, **wrong), ours(n_layers=3), torch.randn(2, 6, 5)
    plain.load_state_dict(own.state_dict())
    with adjust(plain, "branch_scale"):
        assert not torch.allclose(plain(x), own(x), atol=1e-3)


@pytest.mark.parametrize("name, options", [("branch_scale", dict(factor=0.7)), ("sandwich", dict(gain=0.7)),
                                           ("sandwich", dict(norm="rms"))])  # fmt: skip
def test_its_gradient_is_that_of_finite_differences(name, options):
    model = nn.TransformerEncoderLayer(4, 2, 4, 0.0, F.gelu, batch_first=True, norm_first=True).double()
    adjust(model, name, **options)
    x, names = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True), [n for n, _ in model.named_parameters()]

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *(each.detach().requires_grad_() for each in model.parameters())))


def test_torch_s_layers_are_scaled_at_both_branches():
    model, x = encoder(norm_first=True, dropout=0.0).eval(), torch.randn(2, 6, D)
    with adjust(model, "branch_scale", factor=0.0):
        assert torch.equal(model(x), x)
        with torch.no_grad():
            assert torch.equal(model(x), x)  # the fused path is off


def test_tokens_stay_apart_in_a_deep_model():
    torch.manual_seed(0)
    deep = Transformer(TransformerConfig(n_classes=2, d_input=64, d_model=64, d_ff=0, n_layers=24, norm="none",
                                         pooling="none", positions="none", seq_len=64))  # fmt: skip
    initialize_(deep, "xavier_normal")
    deep.embedding = nn.Identity()

    def cosine():
        return token_cosine(deep.trace(torch.randn(4, 64, 64)).stream[-1]).mean().item()

    alike = cosine()
    with adjust(deep, "branch_scale"):
        apart = cosine()
    assert alike > 0.9 and apart < 0.2  # 1 − α²-many times without, about 0.025 with 1/√L


def test_experts_in_one_tensor_are_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(vocab_size=20, hidden_size=16, intermediate_size=8, num_hidden_layers=1,
                                        num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)  # fmt: skip
    with pytest.raises(ValueError, match="not in a layer of its own"):
        adjust(transformers.MixtralModel(config), "branch_scale")


# ---- the norms of the stream

OWN = {"rms_norm": RMSNorm(), "dyt": DyT(), "ln_scale": DepthDividedNorm()}


@pytest.mark.parametrize("norm", ["pre", "post", "sub"])
@pytest.mark.parametrize("name", OWN)
def test_it_is_the_part_of_our_own_model(name, norm):
    if (name, norm) == ("ln_scale", "post"):
        with pytest.raises(ValueError, match="needs pre-LN"):
            adjust(ours(norm=norm), name)
        return
    own, plain, x = ours(n_layers=3, norm=norm, parts=(OWN[name],)), ours(n_layers=3, norm=norm), torch.randn(2, 6, 5)
    missing, _ = own.load_state_dict(plain.state_dict(), strict=False)
    assert all("alpha" in each for each in missing)
    assert not torch.allclose(plain(x), own(x), atol=1e-3)
    adjust(plain, name)
    assert torch.allclose(plain(x), own(x), atol=1e-6)
    for model in (own, plain):
        model(x).square().sum().backward()
    theirs, found = (dict(model.named_parameters()) for model in (own, plain))
    assert {each for each in theirs if theirs[each].grad is not None} == set(found)
    assert all(torch.allclose(theirs[each].grad, found[each].grad, atol=1e-4) for each in found)


@pytest.mark.parametrize("name", ["rms_norm", "scale_norm", "dyt"])
def test_every_norm_of_the_stream_is_another_and_torch_s_fused_path_is_off(name):
    model, x = encoder(dropout=0.0, norm_first=True).eval(), torch.randn(2, 6, D)
    model.norm = nn.LayerNorm(D)
    with adjust(model, name):
        kinds = {
            type(each).__name__ for each in model.modules() if "Norm" in type(each).__name__ or hasattr(each, "alpha")
        }
        assert kinds == {{"rms_norm": "RMSNorm", "scale_norm": "ScaleNorm", "dyt": "DynamicTanh"}[name]}
        expected = model(x)
        with torch.no_grad():
            assert torch.allclose(model(x), expected, atol=1e-5)


def test_gains_are_the_same_parameters_and_what_they_learned_stays():
    model = encoder()
    gain, shift = model.layers[0].norm1.weight, model.layers[0].norm1.bias
    handle = adjust(model, "rms_norm")
    assert model.layers[0].norm1.weight is gain and shift not in {*model.parameters()}
    gain.data.fill_(3)
    handle.undo()
    assert model.layers[0].norm1.weight is gain and gain.eq(3).all() and model.layers[0].norm1.bias is shift


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 1e3, 1e6])
def test_the_length_of_a_token_is_bounded_whatever_it_was(sigma):
    x = sigma * torch.randn(50, D)
    for name, bound in (("rms_norm", D**0.5), ("scale_norm", D**0.5), ("dyt", D**0.5), ("ln_scale", (D / 2) ** 0.5)):
        model = encoder(norm_first=True)
        with adjust(model, name):
            length = model.layers[1].norm1(x).norm(dim=-1)
        assert length.max() <= bound * 1.0001
        assert name == "dyt" or sigma < 1 or length.min() > 0.98 * bound  # LayerNorm adds ε = 1e-5 to σ²


def test_scale_norm_by_hand_and_its_gradient():
    model = encoder().double()
    adjust(model, "scale_norm")
    norm, x = model.layers[0].norm1, torch.randn(3, D, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(norm(x), D**0.5 * x / x.square().sum(-1, keepdim=True).sqrt())
    assert not torch.allclose(norm(x), F.layer_norm(x, (D,)), atol=1e-3)
    assert torch.autograd.gradcheck(lambda x, gain: torch.func.functional_call(norm, {"gain": gain}, x), (x, norm.gain))


def test_norms_inside_attention_and_of_other_widths_stay():
    pytest.importorskip("transformers")
    model = hugging_face("Qwen3Model", **WORDS | dict(num_key_value_heads=2, head_dim=4, vocab_size=VOCAB))
    before = {name: each for name, each in model.named_modules() if "norm" in name}
    with adjust(model, "dyt"):
        same = {name for name, each in before.items() if model.get_submodule(name) is each}
    assert same == {name for name in before if "self_attn" in name} != set()


def test_a_gain_that_is_stored_as_its_distance_from_1():
    pytest.importorskip("transformers")
    model = hugging_face("Gemma2Model", **WORDS, num_key_value_heads=2, head_dim=4)
    norm, x = model.layers[0].input_layernorm, torch.randn(D)
    with torch.no_grad():
        norm.weight.copy_(0.1 * torch.randn(D))
    stored = norm.weight.detach().clone()
    with adjust(model, "dyt"):
        new = model.layers[0].input_layernorm
        assert torch.allclose(new(x), (1 + stored) * torch.tanh(0.5 * x))
        assert new.weight is not norm.weight and new.weight.requires_grad
    last = model.layers[1].input_layernorm
    with torch.no_grad():
        last.weight.fill_(3)
    with adjust(model, "reinit_top_layers"):
        assert not last.weight.any()
    assert last.weight.eq(3).all() and torch.equal(norm.weight, stored)


class ShiftedNorm(nn.LayerNorm):
    """A LayerNorm whose gain is 1 + w."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, 1 + self.weight, self.bias, self.eps)


def test_a_shift_beside_such_a_gain_stays_the_same():
    model, x = encoder(norm_first=True), torch.randn(D)
    model.layers[0].norm1 = norm = ShiftedNorm(D)
    nn.init.constant_(norm.weight, 0.5), nn.init.constant_(norm.bias, 0.25)
    with adjust(model, "dyt"):
        assert torch.allclose(model.layers[0].norm1(x), 1.5 * torch.tanh(0.5 * x) + 0.25)
        assert model.layers[0].norm1.bias is norm.bias
    with adjust(model, "rms_norm"):
        assert torch.allclose(model.layers[0].norm1(x), 1.5 * F.rms_norm(x, (D,), eps=1e-6), atol=1e-5)


def test_norms_that_are_what_is_asked_for_stay():
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="it has no norm of the stream"):
        adjust(MODELS["Llama"](), "rms_norm")


# ---- sandwich


def test_a_sandwich_by_hand():
    model, x = encoder(norm_first=True, dropout=0.0).eval(), torch.randn(2, 6, D)
    layer = model.layers[0]
    with adjust(model, "sandwich", gain=0.5):
        found = layer(x)
    seen = layer.norm1(x)
    y = x + 0.5 * F.layer_norm(layer.self_attn(seen, seen, seen)[0], (D,), eps=1e-6)
    y = y + 0.5 * F.layer_norm(layer.linear2(F.relu(layer.linear1(layer.norm2(y)))), (D,), eps=1e-6)
    assert torch.allclose(found, y, atol=1e-4)
    with adjust(model, "sandwich"):
        assert not torch.allclose(layer(x), y, atol=1e-2)


@pytest.mark.parametrize("sigma", [1e3, 1e6])
def test_a_branch_in_a_sandwich_adds_what_its_gain_says(sigma):
    model, x = ours(n_layers=1, norm="pre"), torch.randn(2, 6, D)
    for each in model.blocks[0].parameters():
        nn.init.normal_(each, std=sigma) if each.ndim > 1 else None
    with adjust(model, "sandwich", norm="rms", gain=0.1):
        assert (model.blocks[0](x) - x).norm(dim=-1).max() <= 2.001 * 0.1 * D**0.5


def test_it_is_the_part_of_gemma_2():
    pytest.importorskip("transformers")
    config = WORDS | dict(num_key_value_heads=2, head_dim=4, vocab_size=VOCAB)
    more = dict(query_pre_attn_scalar=4, sliding_window=64, attn_logit_softcapping=None)
    own, plain = hugging_face("Gemma2Model", **config, **more).eval(), hugging_face("GemmaModel", **config).eval()
    state = own.state_dict()
    for name in list(state):
        if "post_attention_layernorm" in name or "post_feedforward_layernorm" in name:
            del state[name]
    state = {name.replace("pre_feedforward", "post_attention"): each for name, each in state.items()}
    assert not any(plain.load_state_dict(state, strict=False))
    words = inputs_of("Llama")
    assert not torch.allclose(output(own, words), output(plain, words), atol=1e-2)
    adjust(plain, "sandwich", norm="rms")
    assert torch.allclose(output(own, words), output(plain, words), atol=1e-4)


def test_a_sandwich_needs_a_norm_before_the_branch():
    with pytest.raises(ValueError, match="needs pre-LN"):
        adjust(ours(norm="post"), "sandwich")
    model = ours()
    handle = adjust(model, "sandwich")
    with adjust(model, "rms_norm"):  # leaves the norms of another method alone
        assert {type(each.sandwich) for each in model.modules() if hasattr(each, "sandwich")} == {nn.LayerNorm}
    for name in ("branch_scale", "ln_scale"):
        with pytest.raises(ValueError, match=f"'{name}' clashes with sandwich, because the norm divides out"):
            adjust(model, name)
    last = model.blocks[0].feed_forward[2]
    norm, last.sandwich = last.sandwich, nn.Identity()
    with pytest.raises(RuntimeError, match="sandwich was replaced since"):
        handle.undo()
    last.sandwich = norm
    handle.undo()
    assert not hasattr(last, "sandwich")


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: adjust(model, "sandwich", norm="batch"), "norm must be one of"),
        (lambda model: adjust(model, "dyt", alpha=0), "alpha must be a number > 0"),
        (lambda model: adjust(model, "sandwich", gain=float("nan")), "gain must be a finite number"),
        (lambda model: adjust(ours(norm="none"), "rms_norm"), "it has no norm of the stream"),
        (lambda model: adjust(ours(parts=(DepthDividedNorm(),)), "ln_scale"), "clashes with the model's own LN/√l"),
        (lambda model: adjust(ours(residual_scale=0.5), "branch_scale"), "clashes with the model's own residual scale"),
        (lambda model: adjust(ours(norm="post", skip_scale=2.0), "branch_scale"), "the model's own residual scale"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(ours())
