"""The mechanism: each place inside attention, in fused kernels and in every way to write a softmax out."""

import math

import pytest
import torch
import torch.nn.functional as F
from adjust_models import MODELS, D, H, hugging_face, inputs_of, output
from torch import nn

from attntut import MultiHeadAttention
from attntut.adjust import AttentionChange, adjust, attention
from attntut.parts import Gate, OutputGate, QueryKeyNorms

T, d_head = 6, D // H
STYLES = {
    "fused": lambda q, k, v, mask: F.scaled_dot_product_attention(q, k, v, mask),
    "matmul": lambda q, k, v, mask: (q @ k.mT / d_head**0.5 + mask).softmax(-1) @ v,
    "scaled before": lambda q, k, v, mask: torch.softmax((q * d_head**-0.5) @ k.transpose(-1, -2) + mask, dim=-1) @ v,
    "in place": lambda q, k, v, mask: F.softmax(torch.matmul(q, k.mT).mul_(d_head**-0.5).add_(mask), dim=-1) @ v,
    "augmented": lambda q, k, v, mask: _augmented(q, k, mask) @ v,
    "scaled by a tensor": lambda q, k, v, mask: ((q @ k.mT).mul_(torch.tensor([d_head**-0.5])) + mask).softmax(-1) @ v,
    "scaled by head": lambda q, k, v, mask: (q @ k.mT * torch.full((H, 1, 1), d_head**-0.5) + mask).softmax(-1) @ v,
    "filled": lambda q, k, v, mask: F.softmax((q @ k.mT / d_head**0.5).masked_fill(mask < 0, -1e9), dim=-1) @ v,
    "where": lambda q, k, v, mask: F.softmax(torch.where(mask < 0, -1e9, q @ k.mT / d_head**0.5), dim=-1) @ v,
    "bmm": lambda q, k, v, mask: _bmm(q, k, v, mask),
    "baddbmm": lambda q, k, v, mask: _baddbmm(q, k, v, mask),
    "einsum": lambda q, k, v, mask: torch.einsum(
        "bhij,bhjd->bhid", (torch.einsum("bhid,bhjd->bhij", q, k) * d_head**-0.5 + mask).softmax(-1), v
    ),
    "in float32": lambda q, k, v, mask: (
        F.softmax((q @ k.mT).div(d_head**0.5).float() + mask, dim=-1, dtype=torch.float32).to(v.dtype) @ v
    ),
}


def _augmented(q, k, mask):
    logits = q @ k.mT
    logits *= d_head**-0.5
    logits += mask
    return torch.dropout(nn.Softmax(dim=-1)(logits), 0.5, False)


def _bmm(q, k, v, mask):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    logits = (torch.bmm(q, k.transpose(1, 2)) * d_head**-0.5).view(-1, H, T, T) + mask
    return torch.bmm(F.softmax(logits.view(-1, T, T), dim=-1), v).view(-1, H, T, d_head)


def _baddbmm(q, k, v, mask):
    q, k, v = (each.flatten(0, 1) for each in (q, k, v))
    logits = torch.baddbmm(mask.expand(len(q), T, T), q, k.mT, alpha=d_head**-0.5)
    return torch.bmm(logits.softmax(dim=-1), v).view(-1, H, T, d_head)


class Written(nn.Module):
    """Attention in one of these styles; causal."""

    def __init__(self, style):
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(D, D) for _ in range(4))
        self.style, self.n_heads = style, H

    def forward(self, x):
        q, k, v = (f(x).view(-1, T, H, d_head).transpose(1, 2) for f in (self.query, self.key, self.value))
        mask = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -1e9)
        return self.output(STYLES[self.style](q, k, v, mask).transpose(1, 2).flatten(2))


class Everything(AttentionChange):
    """Acts at every place."""

    scale = 0.7

    def heads(self, query, key):
        return query + 1, key - key.mean(-1, keepdim=True)

    def values(self, value):
        return value * torch.arange(1.0, H + 1)[:, None, None]

    def logits(self, logits):
        return logits.sin() * torch.arange(1.0, H + 1)[:, None, None]

    def masked(self, logits):
        return logits * 0.5

    def weights(self, logits, hidden):
        return torch.sigmoid(logits).masked_fill(hidden, 0)

    def merged(self, heads, x):
        return heads + x


def by_hand(model, x):
    q, k, v = (f(x).view(-1, T, H, d_head).transpose(1, 2) for f in (model.query, model.key, model.value))
    q, k, number = q + 1, k - k.mean(-1, keepdim=True), torch.arange(1.0, H + 1)[:, None, None]
    weights = torch.sigmoid((q @ k.mT * 0.7).sin() * number * 0.5).tril()
    return model.output((weights @ (v * number)).transpose(1, 2).flatten(2) + x)


@pytest.mark.parametrize("style", STYLES)
def test_every_place_is_reached_in_every_style(style):
    model, x = Written(style), torch.randn(2, T, D)
    plain = Written("fused")
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(model(x), plain(x), atol=1e-5)
    attention.insert(model, H, "everything", Everything())
    if style == "scaled before":  # the change's scale replaces the factor after the product, and queries are scaled
        model.adjusted["everything"].heads = lambda query, key: (query * d_head**0.5 + 1, key - key.mean(-1, True))
    expected = by_hand(model, x)
    assert torch.allclose(model(x), expected, atol=1e-5)
    found = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
    wanted = torch.autograd.grad(expected.square().sum(), [*model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("style", STYLES)
def test_a_soft_cap_goes_before_the_mask_in_every_style(style):
    model, x = Written(style), 10 * torch.randn(2, T, D)
    with adjust(model, "soft_cap", cap=0.5, inputs=(x,)):
        q, k, v = (f(x).view(-1, T, H, d_head).transpose(1, 2) for f in (model.query, model.key, model.value))
        logits = 0.5 * torch.tanh(q @ k.mT / math.sqrt(d_head) / 0.5)
        weights = logits.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
        assert torch.allclose(model(x), model.output((weights @ v).transpose(1, 2).flatten(2)), atol=1e-5)


@pytest.mark.parametrize("name", ["qk_l2_clip", "log_n_scale", "sink", "softpick"])
@pytest.mark.parametrize("style", STYLES)
def test_masks_and_lengths_are_the_same_in_every_style(style, name):
    model, plain, x = Written(style), Written("fused"), 10 * torch.randn(2, T, D)
    plain.load_state_dict(model.state_dict())
    before = plain(x)
    options = dict(scale=d_head**-0.5) if name == "qk_l2_clip" else {}
    adjust(model, name, inputs=(x,), **options), adjust(plain, name, inputs=(x,), **options)
    assert torch.allclose(model(x), plain(x), atol=1e-5) and not torch.allclose(model(x), before, atol=1e-3)


def test_values_that_are_not_found_are_told():
    """The weights stand behind the values here."""
    STYLES["turned"] = lambda q, k, v, mask: torch.einsum("bhjd,bhij->bhid", v, (q @ k.mT + mask).softmax(-1))
    model, x, known = Written("turned"), torch.randn(2, T, D), dict(roles=ROLES, n_heads=H)
    with adjust(model, "temperature", **known):
        model(x)
    with adjust(model, "output_gate", **known), pytest.raises(RuntimeError, match="must multiply its weights with val"):
        model(x)
    del STYLES["turned"]


class Turned(Written):
    """Attention whose forward does not name first what asks."""

    def forward(self, context, x):
        q, k, v = (f(each).view(-1, T, H, d_head).transpose(1, 2)
                   for f, each in ((self.query, x), (self.key, context), (self.value, context)))  # fmt: skip
        return self.output(((q @ k.mT / d_head**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Flat(Written):
    """Attention whose layers read the tokens of all sequences as one list."""

    def forward(self, x):
        tokens = x.flatten(0, 1)
        q, k, v = (f(tokens).view(-1, T, H, d_head).transpose(1, 2) for f in (self.query, self.key, self.value))
        return self.output(((q @ k.mT / d_head**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_a_gate_is_made_of_tokens_in_their_sequences():
    turned, flat, x = Turned("fused"), Flat("fused"), torch.randn(2, T, D)
    flat.load_state_dict(turned.state_dict())
    for model in (turned, flat):
        adjust(model, "output_gate", n_heads=H, roles=ROLES)
        nn.init.constant_(model.adjusted["output_gate"].gate.weight, 0.1)
    assert torch.allclose(flat(x), turned(x, x), atol=1e-5)


def test_what_asks_makes_the_gate():
    class Shift(AttentionChange):
        def merged(self, heads, x):
            return heads + x

    x, context = torch.randn(2, T, D), torch.randn(2, T, D)
    model = nn.MultiheadAttention(D, H, batch_first=True)
    before = model(x, context, context)[0]
    attention.insert(model, H, "shift", Shift())
    expected = before + F.linear(x, model.out_proj.weight)
    for call in (lambda: model(x, context, context), lambda: model(value=context, key=context, query=x)):
        assert torch.allclose(call()[0], expected, atol=1e-5)

    model = Turned("fused")
    with adjust(model, "output_gate", n_heads=H, roles=ROLES):
        gate = model.adjusted["output_gate"].gate
        nn.init.normal_(gate.weight)
        q, k, v = (f(each).view(-1, T, H, d_head).transpose(1, 2)
                   for f, each in ((model.query, x), (model.key, context), (model.value, context)))  # fmt: skip
        heads = ((q @ k.mT / d_head**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        assert torch.allclose(model(context, x), model.output(torch.sigmoid(gate(x)) * heads), atol=1e-5)


ROLES = {each: f"{each}.weight" for each in ("query", "key", "value", "output")}


def test_a_model_that_does_not_tell_its_factor_is_refused():
    with pytest.raises(ValueError, match="give scale=…"):
        adjust(Written("matmul"), "qk_l2_clip", inputs=(torch.randn(1, T, D),))


@pytest.mark.parametrize("slot, make", [("gate", lambda: Gate(D)), ("qk_norm", lambda: QueryKeyNorms(d_head, 1.5))])
def test_the_parts_of_our_own_model_can_be_inserted(slot, make):
    from attntut.parts import QKNorm

    part = make()
    own = MultiHeadAttention(D, H, parts=(OutputGate() if slot == "gate" else QKNorm(),))
    own.parts[slot] = part
    plain = MultiHeadAttention(D, H)
    plain.load_state_dict(own.state_dict(), strict=False)
    attention.insert(plain, H, slot, part)
    x = torch.randn(2, T, D)
    assert torch.allclose(plain(x), own(x), atol=1e-6)
    assert torch.allclose(plain(x, return_weights=True)[0], own(x), atol=1e-5)


class Same(AttentionChange):
    """Asked at every place, and changes nothing."""

    def heads(self, query, key):
        assert query.ndim == key.ndim == 4 and query.shape[1] == H
        return query.clone(), key.clone()

    def values(self, value):
        assert value.ndim == 4
        return value.clone()

    def logits(self, logits):
        assert logits.ndim == 4 and logits.shape[1] == H
        return logits.clone()

    def masked(self, logits):
        return logits.clone()

    def merged(self, heads, x):
        assert heads.shape[:2] == x.shape[:2]
        return heads.clone()


@pytest.mark.parametrize("name", MODELS)
def test_a_change_that_changes_nothing_changes_nothing(name, monkeypatch):
    model, inputs = MODELS[name]().eval(), inputs_of(name)
    expected = output(model, inputs)
    with adjust(model, "soft_cap") as handle:
        for place in handle._patch.attentions:
            place.module.adjusted["soft_cap"] = Same()
        assert torch.allclose(output(model, inputs), expected, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(output(model, inputs), expected, atol=1e-5)


def test_autocast_and_half_precision():
    model, x = MultiHeadAttention(D, H), torch.randn(2, T, D)
    with adjust(model, "qk_norm"):
        expected = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(model(x).float(), expected, atol=0.05)
    half = MultiHeadAttention(D, H).bfloat16()
    for name in ("qk_norm", "soft_cap"):
        with adjust(half, name):
            assert half(x.bfloat16()).dtype == torch.bfloat16


def test_a_cache_of_keys_is_used():
    pytest.importorskip("transformers")
    from adjust_models import GROUPED

    model, words = hugging_face("LlamaForCausalLM", "sdpa", **GROUPED).eval(), inputs_of("Llama")["input_ids"]
    with torch.no_grad(), adjust(model, "qk_norm", gain=2.0), adjust(model, "temperature", tau=0.5):
        whole = model(words).logits[:, -1]
        first = model(words[:, :-1], use_cache=True)
        assert torch.allclose(
            model(words[:, -1:], past_key_values=first.past_key_values).logits[:, -1], whole, atol=1e-5
        )
