"""The listener on attention in other layouts, under other masks, and written in other words: by what it must equal."""

from __future__ import annotations

import math
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attntut import measure
from attntut.diagnose import diagnose, listen, weights
from attntut.diagnose.axes import far_below

B, H, N, D = 3, 4, 7, 5


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    monkeypatch.setattr(weights, "fill", lambda report, model: report)


def projections(n=N, m=N, heads=H, width=D):
    torch.manual_seed(0)
    return [torch.randn(B, heads, size, width) * 1.5 for size in (n, m, m)]


def check(report, logits, tolerance=1e-5):
    """Compare with logits ``(B, H, n, m)``: entropy, standard deviation and largest of each head."""
    p = logits.softmax(-1)
    entropy = measure.attention_entropy(p).mean((0, 2))
    std = logits.var(-1, correction=0).mean((0, 2)).sqrt()
    assert len(report.rows) == logits.shape[1], report.notes
    for row, e, s, largest in zip(report.rows, entropy, std, logits.abs().amax((0, 2, 3)), strict=True):
        assert row["entropy"] == pytest.approx(e.item(), abs=tolerance)
        assert row["logit_std"] == pytest.approx(s.item(), abs=tolerance)
        assert row["logit_max"] == pytest.approx(largest.item(), abs=tolerance)
        assert row["axis"] == "keys"


# ---- torch.inference_mode


class Own(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.project, self.way = nn.Linear(20, 60), way

    def forward(self, x):
        q, k, v = self.project(x).view(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.way == "einsum":
            return torch.einsum("bhqk,bhkd->bqhd", torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), v)
        return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize("way", ["fused", "einsum", "product"])
def test_inference_mode_is_no_other_than_no_grad(way):
    model, x = Own(way), torch.randn(B, N, 20)
    with torch.no_grad(), listen(model) as expected:
        output = model(x)
    with torch.inference_mode():
        with listen(model) as inside:
            again = model(x)
        within = diagnose(model, x)
        made = torch.randn(B, N, 20)
    with listen(model) as around, torch.inference_mode():
        model(x)
    assert torch.equal(output, again) and len(expected.rows) == H
    for report in (inside, within, around):
        assert [row["entropy"] for row in report.rows] == [row["entropy"] for row in expected.rows]
    assert len(diagnose(model, made).rows) == H, "An inference tensor, outside the mode."


# ---- masks


def masked(kind, hidden, value):
    """A way to lay a mask on: gives a function of q, k and v."""

    def call(q, k, v):
        s = q @ k.mT
        if kind == "added":
            s = s + hidden * value
        elif kind == "taken away, scaled after":
            s = (s - hidden * -value * 2) * 0.5
        elif kind == "filled":
            s = s.masked_fill(hidden, value)
        elif kind == "filled in place":
            s.masked_fill_(hidden, value)
        elif kind == "where":
            s = torch.where(~hidden, s, value)
        elif kind == "where, of a full tensor":
            s = torch.where(hidden, torch.full_like(s, value), s)
        elif kind == "by index":
            s[hidden.expand(s.shape)] = value
        elif kind == "baddbmm":
            flat = (hidden * value).expand(s.shape).flatten(0, 1)
            s = torch.baddbmm(flat, q.flatten(0, 1), k.flatten(0, 1).mT).view(s.shape)
        elif kind == "over windows":  # as shifted windows do: (2 windows of the batch, …), and back
            s = (s.view(2, len(s) // 2, *s.shape[1:]) + (hidden * value)[:, None]).view(s.shape)
        elif kind == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=hidden * value, scale=1.0)
        return s.softmax(-1) @ v

    return call


KINDS = [
    "added",
    "taken away, scaled after",
    "filled",
    "filled in place",
    "where",
    "where, of a full tensor",
    "by index",
]


@pytest.mark.parametrize("value", [-100.0, -1e4])
@pytest.mark.parametrize("kind", [*KINDS, "baddbmm", "over windows", "fused"])
def test_a_masked_key_is_no_visible_key(kind, value):
    torch.manual_seed(1)
    q, k, v = (torch.randn(4, H, N, D) for _ in range(3))
    hidden = torch.zeros(2 if kind == "over windows" else 1, 1, N, N, dtype=torch.bool)
    hidden[0, :, 2:, :2] = True
    hidden[-1, :, :3, 5:] = True
    each = hidden.repeat_interleave(2, 0) if kind == "over windows" else hidden
    rows = diagnose(masked(kind, hidden, value), (q, k, v)).rows
    scale = 0.5 if kind.startswith("taken") else 1.0
    expected = diagnose(
        lambda q, k, v: ((q @ k.mT) * scale).masked_fill(each, -math.inf).softmax(-1) @ v, (q, k, v)
    ).rows
    for row, other in zip(rows, expected, strict=True):
        assert {name: row[name] for name in ("visible_fill", "masked_rows")} == {"visible_fill": None, "masked_rows": 0}
        for name in ("logit_std", "logit_mean", "logit_max", "entropy_share", "entropy"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("value", [-1e-9, 0.0, 2.5, -3.0])
@pytest.mark.parametrize("kind", [each for each in KINDS if "fill" in each or "where" in each or "index" in each])
def test_a_fill_that_hides_nothing_is_named(kind, value):
    q, k, v = projections()
    hidden = torch.zeros(B, 1, 1, N, dtype=torch.bool)
    hidden[1:, ..., 4:] = True
    rows = diagnose(masked(kind, hidden, value), (q, k, v)).rows
    assert all(row["visible_fill"] == pytest.approx(value) for row in rows)
    assert rows[0]["entropy_share"] < 1 and rows[0]["masked_rows"] == 0


def test_a_fill_by_the_index_of_the_last_axes_is_a_fill():
    q, k, v = projections()
    hidden = torch.ones(N, N).triu(1).bool()

    def call(q, k, v, value):
        s = q @ k.mT
        s[:, :, hidden] = value
        return s.softmax(-1) @ v

    assert {row["visible_fill"] for row in diagnose(call, (q, k, v, 0.5)).rows} == {0.5}
    assert max(row["logit_max"] for row in diagnose(call, (q, k, v, -100.0)).rows) < 50


def test_a_mask_that_a_buffer_holds_is_no_matrix():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("hidden", torch.ones(N, N).triu(1))

        def forward(self, q, k, v):
            return (q @ k.mT + self.hidden * -1e-9).softmax(-1) @ v

    rows = diagnose(Causal(), projections()).rows
    assert len(rows) == H and all(row["visible_fill"] is not None for row in rows)


def test_a_number_filled_in_that_a_later_mask_covers_is_no_fault():
    q, k, v = projections()
    hidden = torch.rand(1, 1, N, N) > 0.6
    hidden[..., 0] = False
    rows = diagnose(
        lambda q, k, v: (q @ k.mT).masked_fill(hidden, 0.0).masked_fill(hidden, -math.inf).softmax(-1) @ v, (q, k, v)
    ).rows
    assert {row["visible_fill"] for row in rows} == {None}


def test_a_bias_is_no_mask():
    q, k, v = projections(n=200, m=200)
    slopes = torch.tensor([0.5, 0.25, 0.1, 0.02])[:, None, None]
    distance = (torch.arange(200)[:, None] - torch.arange(200)).abs()
    for bias in (-slopes * distance, torch.randn(H, 200, 200) * 5):
        check(diagnose(lambda q, k, v, bias=bias: (q @ k.mT + bias).softmax(-1) @ v, (q, k, v)), q @ k.mT + bias, 1e-4)


def test_huge_logits_under_a_mask_keep_what_is_theirs():
    q, k, v = projections()
    q = q * 300
    hidden = torch.ones(N, N).triu(1).bool()
    rows = diagnose(lambda q, k, v: (q @ k.mT).masked_fill(hidden, -1e9).softmax(-1) @ v, (q, k, v)).rows
    exact = diagnose(lambda q, k, v: (q @ k.mT).masked_fill(hidden, -math.inf).softmax(-1) @ v, (q, k, v)).rows
    for row, other in zip(rows, exact, strict=True):
        assert row["logit_std"] == pytest.approx(other["logit_std"], rel=1e-5) and row["logit_std"] > 300


@pytest.mark.parametrize(
    "mask, cut",
    [
        ([0.0, -100.0], True),
        ([0.0, -1e9, -2e9], True),
        ([3.0, -2.0, torch.finfo(torch.float32).min], True),
        ([0.0, -15.0], False),
        ([0.0, -math.inf], False),
        ([-100.0, -100.0], False),
    ],
)
def test_two_levels_with_nothing_between_are_a_mask(mask, cut):
    below = far_below(torch.tensor(mask))
    assert (below is not None) == cut
    if cut:
        assert all((value <= below) == (value < -50) for value in mask)


@pytest.mark.parametrize("size", [1e9, 3e19])
@pytest.mark.parametrize(
    "attend",
    [
        lambda q, k, v: (q @ k.mT / D**0.5).softmax(-1) @ v,
        F.scaled_dot_product_attention,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    ],
    ids=["written out", "fused", "causal"],
)
def test_an_overflow_without_a_mask_hides_no_key(attend, size):
    q, k, v = projections()
    rows = diagnose(attend, (q * size, k * size, v)).rows
    assert not any(row["masked_rows"] for row in rows) and any(row["non_finite"] for row in rows) == (size > 1e18)


def test_queries_that_see_nothing_are_named():
    q, k, v = projections()
    hidden = torch.zeros(B, 1, N, N, dtype=torch.bool)
    hidden[1, :, 3] = hidden[2, :, 0] = True
    for value in (-math.inf, -1e9, -100.0):
        rows = diagnose(
            lambda q, k, v, value=value: (q @ k.mT).masked_fill(hidden, value).softmax(-1) @ v, (q, k, v)
        ).rows
        assert [row["masked_at"] for row in rows] == [[[1, 3], [2, 0]]] * H, value
    hidden[:] = True
    rows = diagnose(lambda q, k, v: (q @ k.mT).masked_fill(hidden, -math.inf).softmax(-1) @ v, (q, k, v)).rows
    assert len(rows[0]["masked_at"]) == 8 and rows[0]["masked_rows"] == B * N


# ---- layouts


@pytest.mark.parametrize(
    "scores, dim, values",
    [
        ("bihd,bjhd->bijh", 2, "bijh,bjhd->bihd"),
        ("bihd,bjhd->bjih", 1, "bjih,bjhd->bihd"),
        ("bihd,bjhd->ijbh", 1, "ijbh,bjhd->bhid"),
        ("bihd,bjhd->hbij", -1, "hbij,bjhd->bihd"),
        ("bihd,bjhd->ihbj", -1, "ihbj,bjhd->bihd"),
    ],
)
def test_the_keys_may_stand_on_any_axis(scores, dim, values):
    class Layout(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(20, 60)

        def forward(self, x):
            q, k, v = (each.unflatten(-1, (H, D)) for each in self.project(x).chunk(3, -1))
            return torch.einsum(values, torch.einsum(scores, q, k).softmax(dim), v)

    model, x = Layout(), torch.randn(B, N, 20) * 3
    report = diagnose(model, x)
    q, k, v = (each.unflatten(-1, (H, D)) for each in model.project(x).chunk(3, -1))
    logits = torch.einsum("bihd,bjhd->bhij", q, k)
    check(report, logits)
    heads = logits.softmax(-1) @ v.transpose(1, 2)
    for row, cosine, rms in zip(
        report.rows, measure.token_cosine(heads).mean(0), heads.square().mean((0, 2, 3)).sqrt(), strict=True
    ):
        assert row["token_cosine"] == pytest.approx(cosine.item(), abs=1e-5)
        assert row["output_rms"] == pytest.approx(rms.item(), abs=1e-5)


WRONG = [
    ("bihd,bjhd->bijh", 1, "bijh,bjhd->bihd", "queries"),
    ("bihd,bjhd->bhij", -2, "bhij,bjhd->bihd", "queries"),
    ("bihd,bjhd->bhij", 1, "bhij,bjhd->bihd", "heads"),
    ("bihd,bjhd->bijh", 3, "bijh,bjhd->bihd", "heads"),
    ("bihd,bjhd->bhij", 0, "bhij,bjhd->bihd", "batch"),
]


@pytest.mark.parametrize("scores, dim, values, axis", WRONG)
def test_a_softmax_along_another_axis_is_named_and_not_measured(scores, dim, values, axis):
    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.rest = nn.Linear(20, 20), nn.Linear(20, 40)

        def forward(self, x):
            k, v = (each.unflatten(-1, (H, D)) for each in self.rest(x).chunk(2, -1))
            q = self.query(x[:, :5]).unflatten(-1, (H, D))
            return torch.einsum(values, torch.einsum(scores, q, k).softmax(dim), v)

    report = diagnose(Wrong(), torch.randn(B, N, 20), lambda out: out.square().sum())
    assert {(row["axis"], row["n_query"], row["n_key"]) for row in report.rows} == {(axis, 5, N)}
    assert len(report.rows) == H and all(math.isnan(row["entropy"]) for row in report.rows)
    assert not any("No attention" in note for note in report.notes)


@pytest.mark.parametrize("fold", [False, True])
def test_one_key_for_all_heads(fold):
    class MultiQuery(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.rest = nn.Linear(20, H * D), nn.Linear(20, 2 * D)

        def logits(self, x):
            q, (k, v) = self.query(x).unflatten(-1, (H, D)), self.rest(x).chunk(2, -1)
            if fold:  # heads below each other, as GPT-BigCode has it
                return torch.bmm(q.flatten(1, 2), k.mT).view(B, N, H, N), v
            return torch.einsum("bihd,bjd->bhij", q, k), v

        def forward(self, x):
            logits, v = self.logits(x)
            return torch.einsum("bihj,bjd->bihd" if fold else "bhij,bjd->bhid", logits.softmax(-1), v)

    model, x = MultiQuery(), torch.randn(B, N, 20)
    logits = model.logits(x)[0]
    check(diagnose(model, x), logits.transpose(1, 2) if fold else logits)


class Computed(nn.Module):
    """An attention whose matrix is made of a parameter, or of buffers."""

    def __init__(self, made):
        super().__init__()
        self.weight, self.made = nn.Parameter(torch.randn(60, 20) / 4), made
        self.register_buffer("small", torch.randint(-9, 9, (60, 20), dtype=torch.int8))
        self.register_buffer("scale", torch.full((60, 1), 0.05))

    def parts(self, x):
        return F.linear(x, self.made(self)).view(len(x), -1, 3, H, D).permute(2, 0, 3, 1, 4)

    def forward(self, x):
        q, k, v = self.parts(x)
        return (q @ k.mT).softmax(-1) @ v


MADE = {
    "copied": lambda own: own.weight.T.contiguous().T,
    "scaled": lambda own: own.weight * own.weight.norm() / 9,
    "normalized": lambda own: own.weight / own.weight.square().sum(1, keepdim=True).sqrt(),
    "straight through": lambda own: own.weight + (own.weight.sign() - own.weight).detach(),
    "put together": lambda own: torch.cat(own.weight.chunk(3)),
    "quantized": lambda own: own.small.float() * own.scale,
}


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("made", MADE)
def test_a_matrix_that_is_computed_has_its_heads(made, batch):
    model, x = Computed(MADE[made]), torch.randn(batch, N, 20)
    q, k, _ = model.parts(x)
    check(diagnose(model, x), q @ k.mT)


@pytest.mark.parametrize("batch", [1, B])
def test_queries_that_are_learned_are_no_matrix(batch):
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.rest = nn.Parameter(torch.randn(3, 20)), nn.Linear(20, 40)

        def parts(self, x):
            k, v = self.rest(x).view(batch, N, 2, H, D).permute(2, 0, 3, 1, 4)
            return (self.query / 2).expand(batch, -1, -1).view(batch, 3, H, D).transpose(1, 2), k, v

        def forward(self, x):
            q, k, v = self.parts(x)
            return (q @ k.mT).softmax(-1) @ v

    model, x = Pool(), torch.randn(batch, N, 20)
    q, k, _ = model.parts(x)
    check(diagnose(model, x), q @ k.mT)


def test_windows_are_no_heads():
    class Windows(nn.Module):
        """Windows of 4 tokens, in the second dimension or the third; two heads."""

        def __init__(self, order):
            super().__init__()
            self.project, self.order = nn.Linear(12, 36), order

        def forward(self, x):
            q, k, v = self.project(x).view(B, 6, 4, 3, 2, 6).permute(3, 0, *self.order, 5)
            return (q @ k.mT).softmax(-1) @ v

    x = torch.randn(B, 24, 12)
    for order in ((1, 4, 2), (4, 1, 2)):
        report = diagnose(Windows(order), x)
        assert len(report.rows) == 2 and report.rows[0]["n_key"] == 4, report.notes


def test_heads_that_nothing_tells_are_one_and_a_note():
    q, k, v = (torch.randn(2, 3, 4, N, D) for _ in range(3))
    report = diagnose(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, (q, k, v))
    assert len(report.rows) == 1 and any("cannot be known" in note for note in report.notes)


def test_the_batch_and_the_keys_may_be_equally_many():
    model, x = Own("product"), torch.randn(N, N, 20)
    q, k, _ = model.project(x).view(N, N, 3, H, D).permute(2, 0, 3, 1, 4)
    check(diagnose(model, x), q @ k.mT)


def test_talking_heads():
    class Talking(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.before, self.after = nn.Linear(20, 60), nn.Linear(H, H), nn.Conv2d(H, H, 1)

        def logits(self, x):
            q, k, v = self.project(x).view(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
            return self.before((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), v

        def forward(self, x):
            logits, v = self.logits(x)
            return self.after(logits.softmax(-1)) @ v

    model, x = Talking(), torch.randn(B, N, 20)
    report = diagnose(model, x)
    check(report, model.logits(x)[0])
    heads = model(x)
    assert report.rows[1]["output_rms"] == pytest.approx(measure.rms(heads[:, 1]).item(), rel=1e-5)


# ---- other words for a softmax


def by_sum(s, v):
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


def by_sum_in_place(s, v):
    e = (s - s.max(-1, keepdim=True)[0]).exp_()
    e /= e.sum(-1, keepdim=True)
    return e @ v


def by_logsumexp(s, v):
    return torch.exp(s - torch.logsumexp(s, -1, keepdim=True)) @ v


def by_log_softmax(s, v):
    return s.log_softmax(-1).exp() @ v


def divided_after(s, v):
    e = s.exp()
    return (e @ v) / e.sum(-1, keepdim=True)


def into_memory(s, v):
    with torch.no_grad():
        return torch.softmax(s, -1, out=torch.empty_like(s)) @ v


def averaged_by_hand(s, v):
    return (s.softmax(-1)[..., None] * v[:, :, None]).sum(-2)


@pytest.mark.parametrize(
    "way", [by_sum, by_sum_in_place, by_logsumexp, by_log_softmax, divided_after, into_memory, averaged_by_hand]
)
def test_a_softmax_in_other_words(way):
    q, k, v = projections()
    check(diagnose(lambda q, k, v: way(q @ k.mT, v), (q, k, v)), q @ k.mT)


def test_an_exponential_that_nothing_normalizes_is_no_attention():
    q, k, v = projections()
    report = diagnose(lambda q, k, v: (q @ k.mT).exp() @ v, (q, k, v))
    assert report.rows == [] and any("divided by their sum" in note for note in report.notes), report.notes

    def variance(q, k, v):  # an exponential that averages nothing
        return F.scaled_dot_product_attention(q, k, v), (q @ k.mT).exp()

    report = diagnose(variance, (q, k, v))
    assert len(report.rows) == H and report.notes == []


def test_weights_that_average_nothing_do_not_count():
    q, k, v = projections()

    def call(q, k, v):
        unused = (q @ k.mT).softmax(-1)
        return F.scaled_dot_product_attention(q, k, v), unused

    report = diagnose(call, (q, k, v))
    assert len(report.rows) == H and report.rows[0]["calls"] == 1
    assert any("1 softmax of a product" in note for note in report.notes)


@pytest.mark.parametrize(
    "divided", [lambda w: w / w.sum(-1, keepdim=True), lambda w: F.normalize(w + 1e-8, p=1, dim=-1)]
)
def test_queries_that_compete_are_no_fault(divided):
    q, k, v = projections(n=3)

    def slots(q, k, v):
        return divided((q @ k.mT).softmax(-2)) @ v

    report = diagnose(slots, (q, k, v))
    assert report.rows == [] and any("compete" in note for note in report.notes)


def test_weights_that_are_added_up_over_heads_beside_the_mix_are_no_fault():
    """What a token is looked at, to drop some tokens (adaptive token sampling)."""

    def sampled(q, k, v):
        w = (q @ k.mT).softmax(-1)
        looked_at = torch.einsum("bhn,bhn->bn", w[..., 0, :], v.norm(dim=-1))
        return w @ v * looked_at[:, None, :, None]

    report = diagnose(sampled, projections())
    assert len(report.rows) > 0 and not any(each.name == "softmax over the wrong axis" for each in report.findings)


def test_no_attention_says_what_was_looked_at():
    q, k, v = projections()
    (note,) = diagnose(lambda q, k, v: torch.sigmoid(q @ k.mT) @ v, (q, k, v)).notes
    assert "2 products of two computed tensors" in note and "sigmoid" in note
    assert "No attention was measured" in note and "was seen" not in note
    (note,) = diagnose(lambda q, k, v: (q @ k.mT).softmax(-1), (q, k, v)).notes
    assert "no product of the weights with values was seen" in note


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_named():
    nested = torch.nested.nested_tensor([torch.randn(H, 3, D), torch.randn(H, 5, D)])
    report = diagnose(lambda x: F.scaled_dot_product_attention(x, x, x), nested)
    assert report.rows == [] and any("Nested" in note and "padded" in note for note in report.notes), report.notes


def test_the_size_of_a_jagged_tensor_may_be_asked_for():
    """It is, by an operator that is in no table."""

    class Jagged(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(D)

        def forward(self, *rows):
            x = self.norm(torch.nested.nested_tensor(list(rows), layout=torch.jagged)).values()[None, None]
            return F.scaled_dot_product_attention(x, x, x)

    assert len(diagnose(Jagged(), (torch.randn(5, D), torch.randn(3, D))).rows) == 1


def test_compiled_code_is_named():
    attend = torch.compile(lambda a: F.scaled_dot_product_attention(a, a, a), backend="eager")

    class Inside(nn.Module):
        def forward(self, x):
            return attend(x[:, None])

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.TransformerEncoderLayer(20, 4, 8, batch_first=True) for _ in range(2)])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    x, model = torch.randn(B, N, 20), Layers()
    compiled = torch.compile(model, backend="eager")
    attend(x[:, None]), compiled(x)
    with listen(model) as original:
        compiled(x)
    with listen(inside := Inside()) as function:
        inside(x)
    for report, layers in ((original, 2), (function, 1)):
        is_named = any("Compiled code ran" in note and "force_eager" in note for note in report.notes)
        in_full = len(report.layers()) == layers and {layer["calls"] for layer in report.layers()} == {1}
        assert is_named or (in_full and torch.__version__ < "2.8"), report.notes  # older versions run it uncompiled
    assert [row["n_key"] for row in diagnose(inside, x).rows] == [N], "diagnose runs it uncompiled."
    assert not any("ompiled" in note for note in diagnose(inside, x).notes)
    torch._dynamo.reset()


def test_flex_attention_says_what_to_do():
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = diagnose(flex_attention, projections(n=128, m=128, width=16))
    (note,) = report.notes
    assert all(each in note for each in ("flex_attention", "scaled_dot_product_attention", "return_aux"))


# ---- columns without a token


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 9}])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
def test_keys_that_belong_to_no_token(options, zero, need_weights):
    torch.manual_seed(0)
    model = nn.MultiheadAttention(20, H, add_bias_kv=True, add_zero_attn=zero, batch_first=True, **options)
    x = torch.randn(B, N, 20)
    k, v = torch.randn(B, N, options.get("kdim", 20)), torch.randn(B, N, options.get("vdim", 20))
    inputs = (x, k, v) if options else (x, x, x)
    _, w = model(*inputs, average_attn_weights=False)
    with listen(model) as report:
        model(*inputs, need_weights=need_weights)
    extra = 1 + zero
    assert w.shape[-1] == N + extra and len(report.rows) == H
    for head, row in enumerate(report.rows):
        assert row["sink"] == pytest.approx(w[:, head, :, N:].sum(-1).mean().item(), abs=1e-5)
        if not options:
            diagonal = w[:, head].diagonal(dim1=-2, dim2=-1).mean().item()
            assert row["self"] == pytest.approx(diagonal, abs=1e-5) and row["kind"] == "self"


def test_memories_before_the_keys():
    class Memory(nn.Module):
        def __init__(self):
            super().__init__()
            self.project, self.memory = nn.Linear(20, 60), nn.Parameter(torch.randn(2, H, 2, D))

        def forward(self, x):
            q, k, v = self.project(x).view(*x.shape[:2], 3, H, D).permute(2, 0, 3, 1, 4)
            k, v = (torch.cat([m.expand(len(x), -1, -1, -1), y], 2) for m, y in zip(self.memory, (k, v), strict=True))
            self.weights = (q @ k.mT).softmax(-1)
            return self.weights @ v

    model, x = Memory(), torch.randn(B, N, 20)
    model(x)
    w = model.weights
    for head, row in enumerate(diagnose(model, x).rows):
        assert row["self"] == pytest.approx(w[:, head, :, 2:].diagonal(dim1=-2, dim2=-1).mean().item(), abs=1e-5)
        assert row["sink"] == pytest.approx(w[:, head, :, :2].sum(-1).mean().item(), abs=1e-5)
        assert row["first"] == pytest.approx(w[:, head, :, 2].mean().item(), abs=1e-5)


def test_a_logit_without_a_key_before_or_behind():
    q, k, v = projections()
    sink = torch.full((B, H, N, 1), 1.5)
    for behind in (True, False):

        def call(q, k, v, behind=behind):
            w = torch.cat([q @ k.mT, sink] if behind else [sink, q @ k.mT], -1).softmax(-1)
            return (w[..., :-1] if behind else w[..., 1:]) @ v

        w = torch.cat([q @ k.mT, sink], -1).softmax(-1)
        for head, row in enumerate(diagnose(call, (q, k, v)).rows):
            assert row["sink"] == pytest.approx(w[:, head, :, -1].mean().item(), abs=1e-5)
            assert row["self"] == pytest.approx(w[:, head].diagonal(dim1=-2, dim2=-1).mean().item(), abs=1e-5)
    assert all(math.isnan(row["sink"]) for row in diagnose(Own("product"), torch.randn(B, N, 20)).rows)


@pytest.mark.parametrize("batch_first", [True, False])
def test_which_axis_of_the_input_is_attended(batch_first):
    model = nn.TransformerEncoderLayer(20, 4, 8, batch_first=batch_first).eval()
    report = diagnose(model, torch.randn(B, N, 20))
    assert {row["input_axis"] for row in report.rows} == {1 if batch_first else 0}
    assert any("batch_first=True" in note for note in report.notes) is not batch_first
    assert not any("batch_first" in note for note in diagnose(model, torch.randn(N, 20)).notes), "There is no batch."
    assert {row["input_axis"] for row in diagnose(model, torch.randn(N, N, 20)).rows} == {None}


class Unturned(nn.Module):
    """Heads that were split and never moved in front of the tokens."""

    def __init__(self, *, fused=False, turned=False):
        super().__init__()
        self.projections, self.fused, self.turned = nn.Linear(24, 72), fused, turned

    def forward(self, x):
        q, k, v = self.projections(x).unflatten(-1, (3, 4, 6)).unbind(2)  # (B, T, H, d_head)
        if self.turned:
            q, k, v = (each.transpose(1, 2) for each in (q, k, v))
        if self.fused:
            heads = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            heads = torch.softmax(q @ k.mT / 6**0.5, dim=-1) @ v
        return (heads.transpose(1, 2) if self.turned else heads).flatten(2)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("n", [4, 9])
def test_a_token_that_attends_among_its_own_heads_is_told(fused, n):
    finding = diagnose(Unturned(fused=fused), torch.randn(3, n, 24)).findings[0]
    assert finding.name == "softmax over the wrong axis" and "among its own heads" in finding.text
    assert not diagnose(Unturned(fused=fused, turned=True), torch.randn(3, n, 24)).findings


def test_attention_between_channels_is_no_mistake():
    class CrossCovariance(Unturned):
        def forward(self, x):
            q, k, v = self.projections(x).unflatten(-1, (3, 4, 6)).permute(2, 0, 3, 4, 1)  # (B, H, d_head, T)
            return (torch.softmax(q @ k.mT / x.shape[1] ** 0.5, dim=-1) @ v).flatten(1, 2).mT

    found = [each.name for each in diagnose(CrossCovariance(), torch.randn(3, 9, 24)).findings]
    assert "softmax over the wrong axis" not in found


@pytest.mark.parametrize("mended", [False, True])
def test_rows_without_a_key_in_a_layer_that_stands_alone(mended):
    class Alone(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

        def forward(self, x):
            mask = torch.zeros(9, 9, dtype=torch.bool)
            mask[3, mended:] = True
            return self.attention(x, x, x, attn_mask=mask)[0]

    kinds = [each.name for each in diagnose(Alone(), torch.randn(3, 9, 24)).findings]
    assert ("mask hides some rows" in kinds) is not mended


@pytest.mark.parametrize("way", ["added, visible", "added, hidden", "multiplied", "fused", "causal"])
def test_a_mask_of_two_values_that_hides_nothing_is_named(way):
    """Zeros and ones are added to the logits, or multiplied with them, or nearly nothing is taken."""
    visible = torch.ones(2, 1, 1, 7)
    visible[0, ..., 5:] = 0
    if way == "causal":
        visible = torch.ones(7, 7).tril()

    def attend(q, k, v):
        if way == "fused":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        scores = q @ k.mT / 2
        if way == "multiplied" or way == "causal":
            scores = scores * visible
        else:
            scores = scores + (visible if way == "added, visible" else (1 - visible) * -1e-9)
        return scores.softmax(-1) @ v

    def with_bias(q, k, v):  # of many values, one that learns, and what a real mask covers: no mask that hides nothing
        distance = -(torch.arange(7.0)[:, None] - torch.arange(7.0)).abs()
        learned = nn.Parameter(torch.ones(7)) * visible
        scores = (q @ k.mT / 2 + distance + learned) * visible
        return scores.masked_fill(visible == 0, -torch.inf).softmax(-1) @ v

    q, k, v = torch.randn(3, 2, 3, 7, 4).unbind()
    value = {"added, hidden": -1e-9, "multiplied": 0.0, "causal": 0.0}.get(way, -1.0)
    report = diagnose(attend, (q, k, v))
    assert [each.name for each in report.findings] == ["mask hides nothing"]
    assert report.findings[0].value == pytest.approx(value)
    assert diagnose(with_bias, (q, k, v)).findings == []


def test_infinity_that_is_filled_in_hides_no_key_and_is_said_to_be_nan():
    q, k, v = torch.randn(3, 2, 3, 7, 4).unbind()
    hidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    report = diagnose(lambda q, k, v: (q @ k.mT).masked_fill(hidden, torch.inf).softmax(-1) @ v, (q, k, v))
    assert [each.name for each in report.findings] == ["not finite"]


def test_a_second_softmax_is_named():
    q, k, v = torch.randn(3, 2, 3, 7, 4).unbind()
    report = diagnose(lambda q, k, v: (q @ k.mT).softmax(-1).softmax(-1) @ v, (q, k, v))
    assert [each.name for each in report.findings] == ["softmax applied twice"]
    assert report.notes == []


def test_jagged_tensors_end_no_process():
    class Jagged(nn.Linear):
        def forward(self, x):
            x = torch.nested.nested_tensor_from_jagged(super().forward(x.flatten(0, 1)), torch.tensor([0, 5, 14]))
            q = x.unflatten(-1, (2, 4)).transpose(1, 2)
            return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2).to_padded_tensor(0.0)

    report = diagnose(Jagged(8, 8), torch.randn(2, 7, 8), lambda output: output.sum())
    assert any("Nested tensors hide the rows" in note for note in report.notes)


def test_modules_that_run_in_other_threads_are_named():
    class Threaded(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            found = []
            thread = threading.Thread(target=lambda: found.append(self.attention(x, x, x)[0]))
            thread.start()
            thread.join()
            return found[0]

    assert any("other threads" in note for note in diagnose(Threaded(), torch.randn(2, 5, 8)).notes)
