"""QK-norm: by hand, its bound, its gradient, and the models that have one themselves."""

import math

import pytest
import torch
import torch.nn.functional as F
from adjust_models import MODELS, VOCAB, WORDS, D, H, hugging_face, inputs_of, ours, output
from torch import nn

from attntut import MultiHeadAttention
from attntut.adjust import adjust
from attntut.diagnose import diagnose
from attntut.parts import QKNorm

NORMS = ("rms", "layer", "l2")


def logits_by_hand(norm, gain, query, key):
    """(T, d_head) and (S, d_head) to (T, S)."""
    if norm == "layer":
        query, key = (each - each.mean(-1, keepdim=True) for each in (query, key))
    unit = [each / each.norm(dim=-1, keepdim=True) for each in (query, key)]
    return gain * unit[0] @ unit[1].mT * (1 if norm == "l2" else query.shape[-1] ** 0.5)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("fused", [True, False])
def test_it_is_the_formula(norm, fused):
    attention, x = nn.MultiheadAttention(6, 2, batch_first=True), 100 * torch.randn(1, 5, 6)
    query, key, value = (each.view(5, 2, 3).transpose(0, 1) for each in
                         F.linear(x[0], attention.in_proj_weight).chunk(3, -1))  # fmt: skip
    weights = [torch.softmax(logits_by_hand(norm, 1.5, q, k), -1) for q, k in zip(query, key, strict=True)]
    by_hand = F.linear(torch.cat([a @ v for a, v in zip(weights, value, strict=True)], -1), attention.out_proj.weight)
    with adjust(attention, "qk_norm", norm=norm, gain=1.5):
        found, shown = attention(x, x, x, need_weights=not fused, average_attn_weights=False)
    assert torch.allclose(found[0], by_hand, atol=1e-3)  # of numbers near 100
    assert fused or torch.allclose(shown[0], torch.stack(weights), atol=1e-5)


@pytest.mark.parametrize("wrong", [dict(gain=2.0), dict(norm="l2", gain=1.0), dict(norm="layer")])
def test_another_variant_is_another_function(wrong):
    model, x = ours(), torch.randn(2, 6, 5)
    with adjust(model, "qk_norm"):
        right = model(x)
    with adjust(model, "qk_norm", **wrong):
        assert not torch.allclose(model(x), right, atol=1e-4)


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("norm", NORMS)
def test_the_logits_stay_bounded_whatever_the_weights(sigma, norm):
    model, x = nn.MultiheadAttention(64, 2, batch_first=True), torch.randn(1, 256, 64)
    nn.init.normal_(model.in_proj_weight, std=sigma)
    with adjust(model, "qk_norm", norm=norm, gain=2.0):
        rows = diagnose(model, (x, x, x)).table()
    bound = 2.0 * (1 if norm == "l2" else math.sqrt(32))
    assert all(row["logit_max"] <= bound * 1.0001 for row in rows)
    std = 2.0 / (math.sqrt(32) if norm == "l2" else 1)
    assert all(row["logit_std"] == pytest.approx(std, rel=0.15) for row in rows)


@pytest.mark.parametrize("name", ["torch attention", "T5", "Llama", "Llama, sdpa", "BERT"])
def test_the_std_is_the_gain_whatever_factor_the_model_has(name):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    with adjust(model, "qk_norm", gain=3.0), torch.no_grad():
        stds = torch.tensor([row["logit_std"] for row in diagnose(model, inputs).table()])
    assert 1.5 < stds.mean() < 4.5  # six tokens, partly hidden: a rough figure


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_it_is_the_part_of_our_own_model(n_kv_heads):
    from attntut.parts import GroupedQueries, Rotary

    parts = (GroupedQueries(n_kv_heads), Rotary())
    own = MultiHeadAttention(D, H, parts=(*parts, QKNorm(gain=1.5)))
    plain = MultiHeadAttention(D, H, parts=parts)
    plain.load_state_dict(own.state_dict(), strict=False)
    adjust(plain, "qk_norm", gain=1.5)
    x = torch.randn(2, 6, D)
    assert torch.equal(plain(x), own(x))
    for model in (own, plain):
        model(x).square().sum().backward()
    assert torch.allclose(own.query.weight.grad, plain.query.weight.grad, atol=1e-6)
    gain = own.parts["qk_norm"].query_norm.weight.grad
    assert torch.allclose(gain, plain.adjusted["qk_norm"].query_norm.weight.grad, atol=1e-6)


def test_it_is_the_part_of_qwen_3():
    pytest.importorskip("transformers")
    config = WORDS | dict(num_key_value_heads=2, head_dim=4, vocab_size=VOCAB)
    for attention in ("eager", "sdpa"):
        own = hugging_face("Qwen3Model", attention, **config).eval()
        plain = hugging_face("LlamaModel", attention, **config, rope_parameters=own.config.rope_parameters).eval()
        missing, unexpected = plain.load_state_dict(own.state_dict(), strict=False)
        assert not missing and all("q_norm" in name or "k_norm" in name for name in unexpected)
        words = inputs_of("Llama")
        assert not torch.allclose(output(own, words), output(plain, words), atol=1e-3)
        adjust(plain, "qk_norm")
        for model in (own, plain):
            output(model, words).square().mean().backward()
        assert torch.allclose(output(own, words), output(plain, words), atol=1e-5)
        theirs, found = (model.layers[0].self_attn.q_proj.weight.grad for model in (own, plain))
        assert theirs.abs().max() > 1e-6 and torch.allclose(theirs, found, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_its_gradient_is_that_of_finite_differences(norm):
    model = MultiHeadAttention(4, 2).double()
    adjust(model, "qk_norm", norm=norm)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = {name: each.detach().requires_grad_() for name, each in model.named_parameters()}

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(weights, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *weights.values()))


def test_a_model_that_has_one_is_refused():
    model = ours(parts=(QKNorm(),))
    with pytest.raises(ValueError, match="clashes with the model's own QK-norm"):
        adjust(model, "qk_norm")
