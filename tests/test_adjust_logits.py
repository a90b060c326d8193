"""Soft-cap and temperature: by hand, before the mask, their bound, their gradient, and Gemma 2's own."""

import math

import pytest
import torch
import torch.nn.functional as F
from adjust_models import MODELS, WORDS, D, H, hugging_face, inputs_of, output
from torch import nn

from attntut import MultiHeadAttention
from attntut.adjust import adjust
from attntut.diagnose import diagnose

METHODS = {
    "soft_cap": (dict(cap=0.5), lambda s: 0.5 * torch.tanh(s / 0.5)),
    "temperature": (dict(tau=3.0), lambda s: s / 3),
    "temperature, learned": (dict(tau=3.0, learned=True), lambda s: s / 3),
    "temperature, 1/d": (dict(), lambda s: s / 2),  # d_head is 4
}


def masks(causal, T=6):
    return torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T, dtype=torch.bool)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("how", ["fused", "fused, is_causal", "written out", "added mask"])
def test_it_is_the_formula_before_the_mask(name, causal, how):
    options, formula = METHODS[name]
    attention, x = nn.MultiheadAttention(D, H, bias=False, batch_first=True), 5 * torch.randn(2, 6, D)
    query, key, value = (each.view(2, 6, H, D // H).transpose(1, 2) for each in
                         F.linear(x, attention.in_proj_weight).chunk(3, -1))  # fmt: skip
    logits = formula(query @ key.mT / math.sqrt(D // H)).masked_fill(~masks(causal), -math.inf)
    heads = torch.softmax(logits, -1) @ value
    by_hand = F.linear(heads.transpose(1, 2).flatten(2), attention.out_proj.weight)
    mask = ~masks(causal)
    if how == "added mask":
        mask = torch.zeros(6, 6).masked_fill(mask, -math.inf)
    with adjust(attention, name.partition(",")[0], **options):
        is_causal = causal and how == "fused, is_causal"
        found, _ = attention(x, x, x, attn_mask=mask, is_causal=is_causal, need_weights=how == "written out")
    assert torch.allclose(found, by_hand, atol=1e-5)


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ["torch attention", "BERT", "BERT, sdpa", "Llama", "Llama, sdpa", "ViT", "GPT-2"])
def test_the_cap_holds_whatever_the_weights(name, sigma):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=sigma)
    with adjust(model, "soft_cap", cap=2.0):
        rows = diagnose(model, inputs).table()
    assert rows and all(row["logit_max"] <= 2.0001 for row in rows)


@pytest.mark.parametrize("name", METHODS)
def test_its_gradient_is_that_of_finite_differences(name):
    options, _ = METHODS[name]
    model = MultiHeadAttention(4, 2, is_causal=True).double()
    adjust(model, name.partition(",")[0], **options)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = {key: each.detach().requires_grad_() for key, each in model.named_parameters()}

    def function(x, *values):
        return torch.func.functional_call(model, dict(zip(weights, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *weights.values()))


def test_it_is_the_part_of_gemma_2():
    pytest.importorskip("transformers")
    config = WORDS | dict(num_key_value_heads=2, head_dim=4, query_pre_attn_scalar=4, sliding_window=64)
    own = hugging_face("Gemma2Model", "eager", **config, attn_logit_softcapping=0.3).eval()
    plain = hugging_face("Gemma2Model", "eager", **config, attn_logit_softcapping=None).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(own.state_dict())
    words = inputs_of("Llama")
    assert not torch.allclose(output(own, words), output(plain, words), atol=1e-3)
    adjust(plain, "soft_cap", cap=0.3)
    assert torch.allclose(output(own, words)[0], output(plain, words)[0], atol=1e-5)  # the second sequence is padded
    for model in (own, plain):
        output(model, words)[0].square().mean().backward()
    theirs, found = (model.layers[0].self_attn.q_proj.weight.grad for model in (own, plain))
    assert theirs.abs().max() > 1e-6 and torch.allclose(theirs, found, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["BERT", "BERT, sdpa", "Llama", "Llama, sdpa", "torch encoder"])
def test_what_a_mask_hides_stays_hidden(name):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    key = next(iter(inputs))
    changed = inputs | {key: inputs[key].clone()}
    changed[key][1, -1] = changed[key][1, 0]  # the last token of the second sequence is padding
    with adjust(model, "soft_cap", cap=0.1), adjust(model, "temperature", tau=100.0):
        assert torch.allclose(output(model, inputs)[1, :4], output(model, changed)[1, :4], atol=1e-6)


def test_dropout_stays():
    attention, x = nn.MultiheadAttention(D, H, dropout=0.5, batch_first=True), torch.randn(1, 6, D)
    with adjust(attention, "soft_cap", cap=1e4):
        torch.manual_seed(1)
        first = attention(x, x, x)[0]
        torch.manual_seed(1)
        assert torch.equal(attention(x, x, x)[0], first)
        assert not torch.allclose(attention(x, x, x)[0], first)
