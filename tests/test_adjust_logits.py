"""What is done to logits and weights: by hand, with masks, its bound, its gradient, and the models that have it."""

import math

import pytest
import torch
import torch.nn.functional as F
from adjust_models import MODELS, WORDS, D, H, check_gradients, gemma_with_and_without_a_cap, inputs_of, ours, output
from torch import nn

from attntut import MultiHeadAttention
from attntut.adjust import adjust
from attntut.diagnose import diagnose
from attntut.parts import Sink


def softmax(s, seen):
    return s.masked_fill(~seen, -math.inf).softmax(-1)


def with_extra(s, seen, extra):
    exp = s.exp() * seen
    return exp / (math.exp(extra) + exp.sum(-1, keepdim=True))


def rectified(s, seen):
    excess = (s.exp() - 1) * seen
    return excess.relu() / excess.abs().sum(-1, keepdim=True)


def count(seen):
    return seen.sum(-1, keepdim=True)


METHODS = {  # weights from logits and what is seen
    "soft_cap": (dict(cap=0.5), lambda s, seen: softmax(0.5 * torch.tanh(s / 0.5), seen)),
    "temperature": (dict(tau=3.0), lambda s, seen: softmax(s / 3, seen)),
    "temperature, learned": (dict(tau=3.0, learned=True), lambda s, seen: softmax(s / 3, seen)),
    "temperature, 1/d": (dict(), lambda s, seen: softmax(s / 2, seen)),  # d_head is 4
    "log_n_scale": (dict(start=0.7), lambda s, seen: softmax(s * 0.7 * count(seen).log(), seen)),
    "log_n_scale, fixed": (dict(learned=False), lambda s, seen: softmax(s * 0.43 * count(seen).log(), seen)),
    "log_n_scale, floor": (dict(floor=2), lambda s, seen: softmax(s * (1 + 0.1 * (1 + count(seen) // 2).log()), seen)),
    "sink": (dict(start=0.4), lambda s, seen: with_extra(s, seen, 0.4)),
    "sink, fixed": (dict(learned=False), lambda s, seen: with_extra(s, seen, 0.0)),
    "sigmoid_attention": (dict(), lambda s, seen: seen / (1 + count(seen) * (-s).exp())),
    "sigmoid_attention, bias": (dict(bias=-2.0), lambda s, seen: seen * torch.sigmoid(s - 2)),
    "softpick": (dict(), rectified),
}
NEW = ("log_n_scale", "sink", "sigmoid_attention", "softpick")


def masks(causal, T=6):
    return torch.ones(T, T, dtype=torch.bool).tril() if causal else torch.ones(T, T, dtype=torch.bool)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("how", ["fused", "fused, is_causal", "written out", "added mask"])
def test_it_is_the_formula(name, causal, how):
    options, formula = METHODS[name]
    attention, x = nn.MultiheadAttention(D, H, bias=False, batch_first=True), 5 * torch.randn(2, 6, D)
    query, key, value = (each.view(2, 6, H, D // H).transpose(1, 2) for each in
                         F.linear(x, attention.in_proj_weight).chunk(3, -1))  # fmt: skip
    heads = formula(query @ key.mT / math.sqrt(D // H), masks(causal)) @ value
    by_hand = F.linear(heads.transpose(1, 2).flatten(2), attention.out_proj.weight)
    mask = ~masks(causal)
    if how == "added mask":
        mask = torch.zeros(6, 6).masked_fill(mask, -math.inf)
    with adjust(attention, name.partition(",")[0], **options):
        is_causal = causal and how == "fused, is_causal"
        found, _ = attention(x, x, x, attn_mask=mask, is_causal=is_causal, need_weights=how == "written out")
    assert torch.allclose(found, by_hand, atol=1e-5)


WRONG = [  # a method, and what it could be mistaken for
    ("temperature", lambda s, seen: softmax(s * 3, seen)),
    ("temperature, 1/d", lambda s, seen: softmax(s / 4, seen)),  # d_head, beside the model's root
    ("log_n_scale", lambda s, seen: softmax(s * 0.7 * math.log(6), seen)),  # hidden keys count
    ("log_n_scale", lambda s, seen: softmax(s * 0.7 * count(seen).log2(), seen)),
    ("log_n_scale", lambda s, seen: softmax(s * 0.7 * (1 + count(seen)).log(), seen)),
    ("sink", lambda s, seen: with_extra(s, seen, 0.0)),
    ("sink", lambda s, seen: softmax(s, seen)),
    ("sink", lambda s, seen: s.exp() * seen / (0.4 + (s.exp() * seen).sum(-1, keepdim=True))),  # no exponential
]


@pytest.mark.parametrize("name, wrong", WRONG)
def test_another_variant_is_another_function(name, wrong):
    options, right = METHODS[name]
    model, x = MultiHeadAttention(D, H, is_causal=True), 2 * torch.randn(2, 6, D)
    adjust(model, name.partition(",")[0], **options)
    query, key = (each(x).view(2, 6, H, -1).transpose(1, 2) for each in (model.query, model.key))
    _, weights = model(x, return_weights=True)
    by_hand = [formula(query @ key.mT / 2, masks(True)) for formula in (right, wrong)]
    assert torch.allclose(weights, by_hand[0], atol=1e-5)
    assert not torch.allclose(weights, by_hand[1], atol=1e-2)


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


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("fused", [True, False])
def test_weights_are_between_0_and_1_whatever_the_matrices(name, sigma, fused):
    attention, x = nn.MultiheadAttention(D, H, batch_first=True), torch.randn(2, 6, D, requires_grad=True)
    nn.init.normal_(attention.in_proj_weight, std=sigma)
    nothing = torch.tensor([[False] * 6, [True] * 6])  # the second sequence is all padding
    with adjust(attention, name):
        found, weights = attention(x, x, x, key_padding_mask=nothing if name != "log_n_scale" or fused else None,
                                   need_weights=not fused, average_attn_weights=False)  # fmt: skip
        found.sum().backward()
    assert found.isfinite().all() and x.grad.isfinite().all() and attention.in_proj_weight.grad.isfinite().all()
    if not fused:
        assert weights.min() >= 0 and weights.max() <= 1
        assert name == "sigmoid_attention" or weights.sum(-1).max() < 1.0001
        assert name == "log_n_scale" or not weights[1].any()


@pytest.mark.parametrize("name", METHODS)
def test_its_gradient_is_that_of_finite_differences(name):
    options, _ = METHODS[name]
    model = MultiHeadAttention(4, 2, is_causal=True).double()
    adjust(model, name.partition(",")[0], **options)
    check_gradients(model, torch.randn(1, 3, 4, dtype=torch.float64))


def test_it_is_the_part_of_gemma_2():
    pytest.importorskip("transformers")
    (own, plain), words = gemma_with_and_without_a_cap(), inputs_of("Llama")
    assert not torch.allclose(output(own, words), output(plain, words), atol=1e-3)
    adjust(plain, "soft_cap", cap=0.3)
    assert torch.allclose(output(own, words)[0], output(plain, words)[0], atol=1e-5)  # the second sequence is padded
    for model in (own, plain):
        output(model, words)[0].square().mean().backward()
    theirs, found = (model.layers[0].self_attn.q_proj.weight.grad for model in (own, plain))
    assert theirs.abs().max() > 1e-6 and torch.allclose(theirs, found, atol=1e-6, rtol=1e-3)


def test_a_cap_of_the_model_is_no_scale():
    pytest.importorskip("transformers")
    (own, plain), words = gemma_with_and_without_a_cap(), inputs_of("Llama")
    for method in ("qk_norm", "temperature"):  # of queries and keys, and of logits
        with adjust(own, method), adjust(plain, method), adjust(plain, "soft_cap", cap=0.3, force=True):
            assert torch.allclose(output(own, words)[0], output(plain, words)[0], atol=1e-5)


def test_it_is_the_part_of_our_own_model():
    own, plain, x = MultiHeadAttention(D, H, parts=(Sink(start=0.7),)), MultiHeadAttention(D, H), torch.randn(2, 6, D)
    plain.load_state_dict(own.state_dict(), strict=False)
    adjust(plain, "sink", start=0.7)
    assert torch.allclose(plain(x), own(x), atol=1e-6)
    for model in (own, plain):
        model(x).square().sum().backward()
    assert torch.allclose(own.query.weight.grad, plain.query.weight.grad, atol=1e-5)
    theirs, found = own.parts["sink"].sink.grad, plain.adjusted["sink"].extra.grad.flatten()
    assert theirs.abs().max() > 1e-3 and torch.allclose(theirs, found, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_the_part_of_gpt_oss(attention):
    transformers = pytest.importorskip("transformers")
    config = transformers.GptOssConfig(**WORDS, num_key_value_heads=2, head_dim=4, attn_implementation="eager")
    own = transformers.models.gpt_oss.modeling_gpt_oss.GptOssAttention(config, 1).eval()
    config = transformers.LlamaConfig(
        **WORDS, num_key_value_heads=2, attention_bias=True, attn_implementation=attention
    )
    plain = transformers.models.llama.modeling_llama.LlamaAttention(config, 1).eval()
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    missing, unexpected = plain.load_state_dict(own.state_dict(), strict=False)
    assert not missing and unexpected == ["sinks"]
    x, angle = torch.randn(2, 6, D), torch.randn(1, 6, 2)
    mask = torch.zeros(2, 1, 6, 6).masked_fill(~masks(True), torch.finfo().min)
    turns = [(angle.cos(), angle.sin()), tuple(torch.cat([each, each], -1) for each in (angle.cos(), angle.sin()))]
    adjust(plain, "sink", n_heads=H)
    plain.adjusted["sink"].extra.data.copy_(own.sinks.data[:, None, None])
    outputs = [each(x, position_embeddings=turn, attention_mask=mask)[0]
               for each, turn in zip((own, plain), turns, strict=True)]  # fmt: skip
    assert torch.allclose(*outputs, atol=1e-5)
    for each in outputs:
        each.square().mean().backward()
    assert torch.allclose(own.sinks.grad, plain.adjusted["sink"].extra.grad.flatten(), atol=1e-5)
    assert torch.allclose(own.q_proj.weight.grad, plain.q_proj.weight.grad, atol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_the_temperature_of_llama_4(attention):
    transformers = pytest.importorskip("transformers")
    llama = transformers.models.llama4.modeling_llama4
    config = WORDS | dict(num_key_value_heads=2, head_dim=4, no_rope_layers=[0, 0], floor_scale=2, attn_scale=0.5)
    own, plain = (
        llama.Llama4TextAttention(
            transformers.Llama4TextConfig(**config, attn_temperature_tuning=tuned, attn_implementation=attention), 0
        ).eval()
        for tuned in (True, False)
    )
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    plain.load_state_dict(own.state_dict())
    x, mask = torch.randn(2, 6, D), torch.zeros(2, 1, 6, 6).masked_fill(~masks(True), torch.finfo().min)
    theirs, before = (each(x, None, mask)[0] for each in (own, plain))
    assert not torch.allclose(theirs, before, atol=1e-2)
    with adjust(plain, "log_n_scale", floor=2, start=0.5, n_heads=H):
        assert torch.allclose(plain(x, None, mask)[0], theirs, atol=1e-5)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("model_name", ["BERT", "Llama, sdpa", "torch encoder"])
def test_a_hidden_key_is_as_if_it_were_not_there(name, model_name):
    if model_name not in MODELS:
        pytest.skip("transformers is not installed")
    model, inputs = MODELS[model_name]().eval(), inputs_of(model_name)
    with adjust(model, name):
        whole = output(model, inputs)[1, :4]  # of the second sequence, two are padding
        assert torch.allclose(output(model, {key: each[1:, :4] for key, each in inputs.items()})[0], whole, atol=1e-5)


def test_half_precision_counts_as_far_as_it_must():
    from attntut.adjust.logits import LogLength

    hidden = torch.zeros(1, 1, 1, 5000, dtype=torch.bool)
    change = LogLength(factor=1.0, floor=None)
    assert change.seen_logits(torch.ones(1, 1, 1, 5000).bfloat16(), hidden)[0, 0, 0, 0] == 8.5  # ln 5000 = 8.517


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


@pytest.mark.parametrize("name, options, message", [
    ("log_n_scale", dict(start=-1.0), "start must be a number ≥ 0"), ("log_n_scale", dict(floor=0), "floor must be"),
    ("sink", dict(start=math.inf), "start must be a"), ("sigmoid_attention", dict(bias=math.nan), "bias must be a"),
    ("softpick", dict(eps=0), "eps must be a number > 0"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        adjust(nn.MultiheadAttention(D, H), name, **options)


@pytest.mark.parametrize("first, second", [("sink", "softpick"), ("softpick", "sigmoid_attention"),
                                           ("sigmoid_attention", "sink")])  # fmt: skip
def test_one_softmax_is_replaced_once(first, second):
    model = MultiHeadAttention(D, H)
    for one, other in ((first, second), (second, first)):
        with adjust(model, one), pytest.raises(ValueError, match=f"{other!r} clashes with {one}"):
            adjust(model, other)
    with pytest.raises(ValueError, match="clashes with the model's own sink"):
        adjust(ours(parts=(Sink(),)), first)


def test_dropout_stays():
    attention, x = nn.MultiheadAttention(D, H, dropout=0.5, batch_first=True), torch.randn(1, 6, D)
    with adjust(attention, "soft_cap", cap=1e4):
        torch.manual_seed(1)
        first = attention(x, x, x)[0]
        torch.manual_seed(1)
        assert torch.equal(attention(x, x, x)[0], first)
        assert not torch.allclose(attention(x, x, x)[0], first)
