"""What is done to queries, keys, values, heads: by hand, its bound, its gradient, and the models that have it."""

import math

import pytest
import torch
import torch.nn.functional as F
from adjust_models import MODELS, VOCAB, WORDS, D, H, check_gradients, encoder, hugging_face, inputs_of, ours, output
from torch import nn

from attntut import MultiHeadAttention
from attntut.adjust import adjust
from attntut.diagnose import diagnose
from attntut.parts import OutputGate, QKNorm

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


@pytest.mark.parametrize("name, options", [
    *(("qk_norm", dict(norm=norm)) for norm in NORMS), ("qk_l2_clip", dict(limit=0.5)),
    ("output_gate", {}), ("output_gate", dict(per="head")),
])  # fmt: skip
def test_its_gradient_is_that_of_finite_differences(name, options):
    model = MultiHeadAttention(4, 2).double()
    adjust(model, name, **options)
    check_gradients(model, torch.randn(1, 3, 4, dtype=torch.float64))


def test_a_model_that_has_one_is_refused():
    model = ours(parts=(QKNorm(),))
    with pytest.raises(ValueError, match="clashes with the model's own QK-norm"):
        adjust(model, "qk_norm")


# ---- QK clip by length


def clipped(vector, limit):
    return vector * (limit / vector.norm(dim=-1, keepdim=True)).clamp(max=1)


@pytest.mark.parametrize("fused", [True, False])
def test_long_queries_and_keys_are_cut_before_the_model_s_factor(fused):
    """torch's attention puts 1/√d_head into the queries where it writes the softmax out."""
    attention, x = nn.MultiheadAttention(6, 2, batch_first=True), torch.randn(1, 5, 6)
    query, key, value = (each.view(5, 2, 3).transpose(0, 1) for each in
                         F.linear(x[0], attention.in_proj_weight).chunk(3, -1))  # fmt: skip
    limit = query.norm(dim=-1).median().item()  # some are longer
    weights = (clipped(query, limit) @ clipped(key, limit).mT / math.sqrt(3)).softmax(-1)
    by_hand = F.linear((weights @ value).transpose(0, 1).flatten(1), attention.out_proj.weight)
    with adjust(attention, "qk_l2_clip", limit=limit):
        found, _ = attention(x, x, x, need_weights=not fused)
    assert torch.allclose(found[0], by_hand, atol=1e-5)
    with adjust(attention, "qk_l2_clip", limit=limit / math.sqrt(3)):  # as if the factor were part of the length
        assert not torch.allclose(attention(x, x, x)[0][0], by_hand, atol=1e-4)


@pytest.mark.parametrize("sigma", [1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ["torch attention", "T5", "Llama", "Llama, sdpa", "GPT-2", "ours, modern"])
def test_lengths_bound_the_logits_whatever_the_weights(name, sigma):
    if name not in MODELS:
        pytest.skip("transformers is not installed")
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0 if parameter.shape[-1] == H else sigma)  # no biases of positions in T5
    scale = 1 if name == "T5" else 0.5
    with adjust(model, "qk_l2_clip", limit=1.5):
        largest = [row["logit_max"] for row in diagnose(model, inputs).table()]
        output(model, inputs).square().mean().backward()
    assert largest and max(largest) <= 1.5**2 * scale * 1.0001


def test_a_vector_of_zeros_has_a_gradient():
    attention, x = MultiHeadAttention(D, H, bias=False), torch.zeros(1, 3, D, requires_grad=True)
    adjust(attention, "qk_l2_clip")
    attention(x).sum().backward()
    assert x.grad.isfinite().all()


def test_short_vectors_keep_their_lengths():
    model, x = ours().eval(), torch.randn(2, 6, 5)
    before = model(x)
    with adjust(model, "qk_l2_clip", limit=1e4):
        assert torch.allclose(model(x), before, atol=1e-6)


def test_it_cuts_as_inkling_2_does():
    inkling2 = pytest.importorskip("transformers.models.inkling2.modeling_inkling2", reason="an older transformers")
    from attntut.adjust.projections import _clipped

    x = torch.randn(2, H, 6, D) * torch.logspace(-2, 3, 6)[:, None]
    assert torch.allclose(_clipped(x, 3.0), inkling2.Inkling2L2Clip(3.0)(x), rtol=1e-5)
    assert _clipped(x.half(), 3.0).dtype == torch.half


# ---- output gate


def test_it_is_the_gate_of_our_own_model():
    own, plain, x = MultiHeadAttention(D, H, parts=(OutputGate(),)), MultiHeadAttention(D, H), torch.randn(2, 6, D)
    plain.load_state_dict(own.state_dict(), strict=False)
    adjust(plain, "output_gate")
    plain.adjusted["output_gate"].gate.load_state_dict(own.parts["gate"].gate.state_dict())
    assert torch.allclose(plain(x), own(x), atol=1e-6)
    for model in (own, plain):
        model(x).square().sum().backward()
    theirs, found = own.parts["gate"].gate.weight.grad, plain.adjusted["output_gate"].gate.weight.grad
    assert theirs.abs().max() > 1e-3 and torch.allclose(theirs, found, atol=1e-5)


@pytest.mark.parametrize("per", ["channel", "head"])
@pytest.mark.parametrize("name", MODELS)
def test_a_gate_scales_its_heads(name, per):
    """Half of them are shut: as if those columns of the output projection were 0; heads may be wider than the model."""
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    twin = MODELS[name]().eval()
    twin.load_state_dict(model.state_dict())
    handle = adjust(model, "output_gate", per=per)
    for place in handle._patch.attentions:
        bias = place.module.adjusted["output_gate"].gate.bias.data
        bias.copy_(torch.tensor([-100.0, 100.0]).repeat_interleave(len(bias) // 2))
    from attntut.init import view

    for entry in view(twin).by_role("output"):
        entry.matrix.write_(entry.view * (torch.arange(entry.view.shape[1]) >= entry.view.shape[1] // 2))
    assert torch.allclose(output(model, inputs), output(twin, inputs), atol=1e-5)


def test_a_gate_is_made_of_the_token_where_queries_are_made_of_less():
    pytest.importorskip("transformers")
    sizes = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=6)
    config = WORDS | dict(num_key_value_heads=H, first_k_dense_replace=2, n_routed_experts=2, n_group=1, topk_group=1)
    model = hugging_face("DeepseekV2Model", **config, **sizes, topk_method="greedy", num_experts_per_tok=1).eval()
    adjust(model, "output_gate", inputs=inputs_of("Llama"))
    gate = model.layers[0].self_attn.adjusted["output_gate"].gate
    assert (gate.in_features, gate.out_features) == (D, H * 6)


def test_a_gate_learns_from_its_first_step():
    model, x = MultiHeadAttention(D, H), torch.randn(2, 6, D)
    adjust(model, "output_gate", start=0.9)
    model(x).square().sum().backward()
    assert model.adjusted["output_gate"].gate.weight.grad.abs().max() > 1e-3


# ---- value residual


@pytest.mark.parametrize("learned", [True, False])
def test_later_values_are_partly_the_first(learned):
    model, x = encoder(norm_first=True, dropout=0.0), torch.randn(2, 6, D)
    adjust(model, "value_residual", share=0.3, learned=learned)
    stream, first = x, None
    for layer in model.layers:
        attention = layer.self_attn
        packed = F.linear(layer.norm1(stream), attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = (each.unflatten(-1, (H, -1)).transpose(1, 2) for each in packed.chunk(3, -1))
        first = v if first is None else first
        v = v if first is v else 0.3 * first + 0.7 * v
        heads = (q @ k.mT / 2).softmax(-1) @ v
        stream = stream + attention.out_proj(heads.transpose(1, 2).flatten(2))
        stream = stream + layer.linear2(layer.linear1(layer.norm2(stream)).relu())
    weights = [*model.parameters()]
    assert torch.allclose(model(x), stream, atol=1e-5)
    found = torch.autograd.grad(model(x).square().sum(), weights)
    by_hand = torch.autograd.grad(stream.square().sum(), weights, allow_unused=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, by_hand, strict=True) if b is not None)


def test_a_share_of_0_leaves_all_as_it_was_and_1_shares_the_first():
    model, x = ours(n_layers=3).eval(), torch.randn(2, 6, 5)
    before = model(x)
    with adjust(model, "value_residual", share=0.0):
        assert torch.allclose(model(x), before, atol=1e-6)
    with adjust(model, "value_residual", share=1.0):
        model(x).sum().backward()
    assert [float(each.attention.value.weight.grad.abs().max()) > 0 for each in model.blocks] == [True, False, False]


def test_each_stack_has_its_own_first_values():
    pytest.importorskip("transformers")
    from adjust_models import T5

    model, inputs = hugging_face("T5ForConditionalGeneration", **T5 | dict(num_layers=3)).eval(), inputs_of("T5")
    with adjust(model, "value_residual", learned=True):
        names = [name for name, _ in model.named_parameters() if name.endswith("share")]
        assert len(names) == 4 and not any("EncDec" in name for name in names)
        output(model, inputs).sum().backward()
    assert not any(name.endswith("share") for name, _ in model.named_parameters())


@pytest.mark.parametrize("make", [encoder, lambda: ours(n_layers=1), lambda: nn.MultiheadAttention(D, H)])
def test_where_there_is_no_second_attention_it_says_so(make):
    model = make()
    if isinstance(model, nn.TransformerEncoder):
        model = model.layers[0]
    with pytest.raises(ValueError, match="no stack of blocks has a second self-attention"):
        adjust(model, "value_residual")


def test_windows_that_move_hold_other_tokens():
    pytest.importorskip("transformers")
    sizes = dict(image_size=32, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4)
    with pytest.raises(ValueError, match="windows move"):
        adjust(hugging_face("SwinModel", **sizes), "value_residual")


def test_blocks_that_run_again_are_told():
    model, x = ours(), torch.randn(2, 6, 5)
    adjust(model, "value_residual")
    model(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"got none\. Let the blocks run in order"):
        model.blocks[1].attention(torch.randn(2, 6, D))


def test_a_cache_of_keys_and_values_is_used():
    pytest.importorskip("transformers")
    from adjust_models import GROUPED

    model, words = hugging_face("LlamaForCausalLM", **GROUPED).eval(), inputs_of("Llama")["input_ids"]
    with torch.no_grad(), adjust(model, "value_residual"), adjust(model, "log_n_scale"), adjust(model, "sink"):
        whole = model(words).logits[:, -1]
        first = model(words[:, :-1], use_cache=True)
        last = model(words[:, -1:], past_key_values=first.past_key_values).logits[:, -1]
    assert torch.allclose(last, whole, atol=1e-5)


@pytest.mark.parametrize("name, options, message", [
    ("qk_l2_clip", dict(limit=0), "limit must be a number > 0"), ("value_residual", dict(share=1.5), "share must be"),
    ("output_gate", dict(per="token"), "per must be one of"), ("output_gate", dict(start=1.0), "start must be"),
])  # fmt: skip
def test_what_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        adjust(ours(), name, **options)
