"""Roles found by listening: every layout by hand, no name read, and the matrices in the right place of memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut import diagnose
from attntut.anatomy import Layout, look, view
from attntut.anatomy.listen import Ears
from attntut.anatomy.view import listen
from attntut.device import seeded
from attntut.init import initialize_

D, H, DH, T = 24, 4, 6, 5
KV = 2


def dense(seed: int, rows: int = D) -> Tensor:
    return torch.randn(rows, D, generator=seeded(seed))


W = {"query": dense(1), "key": dense(2), "value": dense(3), "output": dense(4)}
GROUPED = W | {"key": dense(2, KV * DH), "value": dense(3, KV * DH)}


def attend(q: Tensor, k: Tensor, v: Tensor, how: str) -> Tensor:
    """``(B, heads, T, d)`` each, in one of the ways that people write it."""
    if how == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=k.shape[1] < q.shape[1])
    k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], 1) for each in (k, v))
    if how == "matmul":
        return (q @ k.mT * DH**-0.5).masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1) @ v
    if how == "einsum, swapped":
        return torch.einsum("bhjd,bhij->bhid", v, torch.einsum("bhjd,bhid->bhij", k, q).div(DH**0.5).softmax(-1))
    if how == "folded":
        q, k, v = (each.flatten(0, 1) for each in (q, k, v))
        return torch.bmm(torch.baddbmm(q.new_zeros(1), q, k.mT).softmax(-1), v).unflatten(0, (-1, H))
    q, k, v = (each.transpose(0, 1).flatten(0, 1) for each in (q, k, v))  # "heads first": (heads · B, T, d)
    return torch.bmm((q @ k.mT).softmax(-1), v).unflatten(0, (H, -1)).transpose(0, 1)


HOW = ("sdpa", "matmul", "einsum, swapped", "folded", "heads first")


class Attention(nn.Module):
    """One layout: ``pack`` puts the matrices into parameters, ``project`` reads x with them."""

    def __init__(self, pack, project, how="sdpa", weights=W):
        super().__init__()
        self.zz = nn.ParameterDict({f"z{i}": nn.Parameter(each.clone()) for i, each in enumerate(pack(weights))})
        self.end = nn.Linear(D, D, bias=False)
        self.end.weight.data.copy_(weights["output"])
        self.project, self.how = project, how

    def forward(self, x):
        q, k, v = self.project(x, *self.zz.values())
        q, k, v = (each.unflatten(-1, (-1, DH)).transpose(1, 2) if each.ndim == 3 else each for each in (q, k, v))
        return self.end(attend(q, k, v, self.how).transpose(1, 2).flatten(2))


def by_heads(x: Tensor, n: int) -> Tensor:
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


def apart(w):
    return [w["query"], w["key"], w["value"]]


def heads(w, role):
    return w[role].unflatten(0, (-1, DH))  # (heads, d, D)


LAYOUTS = {
    "apart": (apart, lambda x, q, k, v: (x @ q.T, x @ k.T, x @ v.T)),
    "transposed": (lambda w: [each.T for each in apart(w)], lambda x, q, k, v: (x @ q, x @ k, x @ v)),
    "matrix on the left": (
        apart,
        lambda x, q, k, v: ((q @ x.mT).mT, (k @ x.mT).mT, (v @ x.mT).mT),
    ),
    "packed": (lambda w: [torch.cat(apart(w))], lambda x, w: F.linear(x, w).chunk(3, -1)),
    "packed and transposed": (lambda w: [torch.cat(apart(w)).T], lambda x, w: (x @ w).split(D, -1)),
    "packed, its rows taken": (
        lambda w: [torch.cat(apart(w))],
        lambda x, w: tuple(F.linear(x, each) for each in w.chunk(3)),
    ),
    "head by head": (
        lambda w: [torch.stack([heads(w, role) for role in ("query", "key", "value")], 1).flatten(0, 2)],
        lambda x, w: F.linear(x, w).unflatten(-1, (H, 3 * DH)).transpose(1, 2).chunk(3, -1),
    ),
    "(d_head, 3, heads)": (
        lambda w: [
            torch.stack([heads(w, role).transpose(0, 1) for role in ("query", "key", "value")], 1).flatten(0, 2)
        ],
        lambda x, w: F.linear(x, w).unflatten(-1, (DH, 3, H)).permute(3, 0, 4, 1, 2),
    ),
    "one stack of three": (
        lambda w: [torch.stack(apart(w))],
        lambda x, w: torch.einsum("btd,rod->rbto", x, w),
    ),
    "a matrix for each head": (
        lambda w: [heads(w, role).mT for role in ("query", "key", "value")],
        lambda x, *w: [torch.einsum("btd,hde->bhte", x, each) for each in w],
    ),
    "convolutions of width 1": (
        lambda w: [each[..., None] for each in apart(w)],
        lambda x, *w: [F.conv1d(x.mT, each).mT for each in w],
    ),
}
GROUPED_LAYOUTS = {
    "apart": LAYOUTS["apart"],
    "packed, of unequal size": (
        lambda w: [torch.cat(apart(w))],
        lambda x, w: F.linear(x, w).split([D, KV * DH, KV * DH], -1),
    ),
    "group by group": (  # two queries, a key, a value
        lambda w: [
            torch.cat(
                [heads(w, "query").unflatten(0, (KV, -1)), *(heads(w, each)[:, None] for each in ("key", "value"))], 1
            ).flatten(0, 2)
        ],
        lambda x, w: _by_group(F.linear(x, w).unflatten(-1, (KV, H // KV + 2, DH))),
    ),
}


def _by_group(y):
    q, k, v = y.split([H // KV, 1, 1], -2)
    return q.flatten(2, 3).transpose(1, 2), k[:, :, :, 0].transpose(1, 2), v[:, :, :, 0].transpose(1, 2)


def found(model, x=None):
    x = torch.randn(3, T, D, generator=seeded(0)) if x is None else x
    return look(model, heard=listen(model, x))


def by_role(model, x=None):
    return {entry.role: entry for entry in found(model, x).entries}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_is_read_right(name, how):
    entries = by_role(Attention(*LAYOUTS[name], how))
    for role, matrix in W.items():
        assert torch.equal(entries[role].view, matrix), f"Which rows of the parameter are the {role}, in which order?"
    assert entries["query"].weight.n_heads == H and entries["query"].weight.d_head == DH


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", GROUPED_LAYOUTS)
def test_grouped_queries(name, how):
    entries = by_role(Attention(*GROUPED_LAYOUTS[name], how, weights=GROUPED))
    for role, matrix in GROUPED.items():
        assert torch.equal(entries[role].view, matrix), role
    assert entries["key"].weight.shape == (KV * DH, D) and entries["key"].weight.n_heads == H


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["apart", "packed", "transposed"])
def test_a_norm_over_all_heads_hides_none(name, how):
    pack, project = LAYOUTS[name]

    def normed(x, *w):
        q, k, v = project(x, *w)
        return (*(F.layer_norm(each, (D,)) for each in (q, k)), v)

    entries = by_role(Attention(pack, normed, how))
    for role in ("query", "key"):
        assert entries[role].weight.n_heads == H, (
            "Every column of a head depends on those of all, by their mean square."
        )
        assert torch.equal(entries[role].view, W[role])


def test_wrong_rows_would_be_noticed():
    model = Attention(*LAYOUTS["head by head"])
    flat = next(iter(model.zz.values())).detach()[:D]
    assert not torch.equal(flat, W["query"]), "A flat third of this matrix is no query."


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_is_drawn_lands_where_the_model_reads_it(name):
    model, x = Attention(*LAYOUTS[name]), torch.randn(3, T, D)
    initialize_(model, "zero_query", inputs=x, generator=seeded(0))
    q, k, v = model.project(x, *model.zz.values())
    assert (q == 0).all() and (k != 0).any() and (v != 0).any()
    initialize_(model, "orthogonal", inputs=x, generator=seeded(0))
    for role, entry in by_role(model).items():
        w = entry.view
        assert torch.allclose(w @ w.T, torch.eye(D), atol=1e-5), f"{role} is one matrix, however it is stored."


# --- what may stand between a projection and the softmax


class Odd(nn.Module):
    """Query and gate in one, QK-norm, rotary-like turning, a soft-cap, a key that is scaled in place."""

    def __init__(self, *, gate=True, norm=True, cap=True):
        super().__init__()
        self.aa, self.bb, self.cc = nn.Linear(D, 2 * D if gate else D), nn.Linear(D, D), nn.Linear(D, D)
        self.dd = nn.Linear(D, D)
        self.ee = nn.RMSNorm(DH) if norm else nn.Identity()
        self.gate, self.cap = gate, cap

    def forward(self, x):
        q, *gate = by_heads(self.aa(x), H).chunk(2, -1) if self.gate else (by_heads(self.aa(x), H),)
        k, v = by_heads(self.bb(x), H), by_heads(self.cc(x), H)
        q, k = self.ee(q), self.ee(k)
        a, b = q.chunk(2, -1)
        q = torch.cat([-b, a], -1) + 0.1 * q
        logits = q @ k.mT
        logits = 5 * (logits / 5).tanh() if self.cap else logits
        mix = (logits.softmax(-1) @ v) * (gate[0].sigmoid() if gate else 1)
        return self.dd(mix.transpose(1, 2).flatten(2))


def test_gates_norms_caps_and_rotations():
    model = Odd()
    entries, seen = by_role(model), found(model)
    query = torch.cat([torch.arange(2 * DH * h, 2 * DH * h + DH) for h in range(H)])
    assert torch.equal(entries["query"].view, model.aa.weight[query])
    assert torch.equal(entries["gate"].view, model.aa.weight[query + DH])
    assert torch.equal(entries["query"].bias.flatten(), model.aa.bias[query])
    assert torch.equal(entries["key"].view, model.bb.weight)
    assert (seen.traits["qk_norm"], seen.traits["soft_cap"], seen.traits["output_gate"]) == (True, 5, True)
    report = diagnose(model, torch.randn(3, T, D))
    assert report.model["traits"]["soft_cap"] == 5 and not any("roles" in note for note in report.notes)
    plain = found(Odd(gate=False, norm=False, cap=False)).traits
    assert (plain["qk_norm"], plain["soft_cap"], plain["output_gate"]) == (False, None, False)


def test_a_gated_query_is_drawn_by_its_own_fan():
    model = initialize_(Odd(), "xavier_normal", inputs=torch.randn(3, T, D), generator=seeded(0))
    std = by_role(model)["query"].view.std().item()
    assert abs(std / math.sqrt(2 / (D + D)) - 1) < 5 / math.sqrt(2 * D * D), "Query and gate are two matrices."


class Latent(nn.Module):
    """Multi-head latent attention: keys and values from a narrow vector, and a key for places beside it."""

    def __init__(self, rank=8, turn=2):
        super().__init__()
        self.qa, self.qb = nn.Linear(D, rank, bias=False), nn.Linear(rank, H * (DH + turn), bias=False)
        self.kva, self.kvb = nn.Linear(D, rank + turn, bias=False), nn.Linear(rank, 2 * D, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.norm, self.rank, self.turn = nn.RMSNorm(rank), rank, turn

    def forward(self, x):
        q = by_heads(self.qb(self.norm(self.qa(x))), H)
        narrow, place = self.kva(x).split([self.rank, self.turn], -1)
        k, v = by_heads(self.kvb(self.norm(narrow)), H).chunk(2, -1)
        k = torch.cat([k, place[:, None].expand(-1, H, -1, -1)], -1)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_latent_attention():
    model = Latent()
    roles = sorted((entry.role, entry.parameter, entry.weight.shape) for entry in found(model).entries)
    assert roles == [
        ("key", "kva.weight", (2, D)),
        ("key", "kvb.weight", (D, 8)),
        ("latent", "kva.weight", (8, D)),
        ("latent", "qa.weight", (8, D)),
        ("output", "out.weight", (D, D)),
        ("query", "qb.weight", (H * (DH + 2), 8)),
        ("value", "kvb.weight", (D, 8)),
    ]
    assert {entry.weight.d_model for entry in found(model).entries} == {D}, "The stream is as wide as before."


class LowRank(nn.Module):
    def __init__(self, base, rank=2):
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(D, rank, bias=False), nn.Linear(rank, D, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + 2 * self.up(self.down(x))


def test_adapters_on_a_frozen_model():
    model = Odd(gate=False).requires_grad_(False)
    model.aa, model.cc = LowRank(model.aa), LowRank(model.cc)
    entries = found(model).entries
    roles = {entry.parameter: entry.role for entry in entries}
    assert roles == {
        "aa.base.weight": "query",
        "aa.down.weight": "adapter_in",
        "aa.up.weight": "adapter_out",
        "bb.weight": "key",
        "cc.base.weight": "value",
        "cc.down.weight": "adapter_in",
        "cc.up.weight": "adapter_out",
        "dd.weight": "output",
    }
    assert not model.bb.weight.requires_grad and model.aa.up.weight.requires_grad
    nn.init.ones_(model.aa.up.weight)
    initialize_(model, "xavier_normal", inputs=torch.randn(3, T, D), generator=seeded(0))
    assert (model.aa.up.weight == 0).all() and model.aa.down.weight.std() > 0


# --- models around the attention


class Block(nn.Module):
    def __init__(self, norm="pre", experts=0):
        super().__init__()
        self.u, self.place = Odd(gate=False, norm=False, cap=False), norm
        self.n, self.m, self.inside = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        if not experts:
            self.w, self.v = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        else:
            self.r = nn.Linear(D, experts)
            self.up, self.down = (
                nn.Parameter(torch.randn(experts, 4 * D, D)),
                nn.Parameter(torch.randn(experts, D, 2 * D)),
            )
        self.experts = experts

    def forward(self, x):
        if self.place == "post":
            x = self.n(x + self.u(x))
            return self.m(x + self.branch(x))
        if self.place == "none":
            x = x + self.u(x)
            return x + self.branch(x)
        before = nn.Identity() if self.place == "res-post" else self.n
        behind = self.inside if self.place in ("sandwich", "res-post") else nn.Identity()
        x = x + behind(self.u(before(x)))
        return x + self.branch(self.m(x))

    def branch(self, x):
        if not self.experts:
            return self.v(self.w(x).relu())
        chosen = self.r(x).softmax(-1).topk(1)
        y = torch.zeros_like(x)
        for e in range(self.experts):
            mask = (chosen.indices == e).to(x)
            if mask.any():
                a, b = F.linear(x, self.up[e]).chunk(2, -1)
                y = y + mask * chosen.values * F.linear(F.silu(a) * b, self.down[e])
        return y


class Model(nn.Module):
    def __init__(self, n=3, shared=False, tied=False, keys=None, **block):
        super().__init__()
        self.words, self.spots = nn.Embedding(11, D), nn.Parameter(torch.randn(1, T, D))
        blocks = [Block(**block)] * n if shared else [Block(**block) for _ in range(n)]
        self.deep = nn.ModuleDict(dict(zip(keys, blocks, strict=True))) if keys else nn.ModuleList(blocks)
        self.last = nn.Linear(D, 11, bias=False)
        if tied:
            self.last.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids) + self.spots
        for block in self.deep.values() if isinstance(self.deep, nn.ModuleDict) else self.deep:
            x = block(x)
        return self.last(x)


IDS = torch.randint(11, (2, T), generator=seeded(0))


@pytest.mark.parametrize("keys", [None, "abc"])
def test_a_model_without_a_telling_name(keys):
    seen = found(Model(keys=keys), IDS)
    assert not seen.unknown and not seen.unsure
    counts = {}
    for entry in seen.entries:
        key = (entry.role, entry.weight.shape, entry.weight.n_layers)
        counts[key] = counts.get(key, 0) + 1
    square = {(role, (D, D), 3): 3 for role in ("query", "key", "value", "output")}
    assert counts == square | {
        ("feed_forward_in", (2 * D, D), 3): 3,
        ("feed_forward_out", (D, 2 * D), 3): 3,
        ("embedding", (D, 11), 3): 1,
        ("position", (D, T), 3): 1,
        ("readout", (11, D), 3): 1,
    }
    assert [entry.weight.layer for entry in seen.by_role("query")] == [1, 2, 3]


@pytest.mark.parametrize("places", ["sliced", "looked up", "indexed"])
def test_a_table_that_is_read_by_place_holds_positions(places):
    class Placed(Model):
        def forward(self, ids):
            table, at = self.spots[0], torch.arange(ids.shape[1]).expand_as(ids)
            spots = {"sliced": table[: ids.shape[1]], "looked up": F.embedding(at, table), "indexed": table[at]}
            x = self.words(ids) + spots[places]
            for block in self.deep:
                x = block(x)
            return self.last(x)

    roles = {entry.parameter: entry.role for entry in found(Placed(), IDS).entries}
    assert (roles["words.weight"], roles["spots"]) == ("embedding", "position")


@pytest.mark.parametrize("norm", ["pre", "post", "none", "sandwich", "res-post"])
def test_where_the_norm_stands(norm):
    assert found(Model(norm=norm), IDS).traits["norm"] == norm


def test_depth_counts_passes():
    seen = found(Model(n=4, shared=True), IDS)
    assert {entry.weight.n_layers for entry in seen.entries} == {4}, "One block, used four times."
    both = nn.ModuleDict({"one": Odd()})
    both.forward = lambda x: both["one"](x) + both["one"](x.flip(1))
    assert {entry.weight.n_layers for entry in found(both).entries} == {1}, "Beside each other is not deeper."


def test_a_tied_readout_is_an_embedding():
    seen = found(Model(tied=True), IDS)
    assert [entry.parameter for entry in seen.by_role("embedding")] == ["words.weight"] and not seen.by_role("readout")


def test_stacked_experts_are_matrices_of_their_own():
    model = Model(experts=4)
    seen = found(model, IDS)
    assert not seen.unknown
    inner = [entry for entry in seen.by_role("feed_forward_in") if entry.parameter == "deep.0.up"]
    assert [entry.weight.shape for entry in inner] == [(2 * D, D)] * 8, "Four experts, each of two halves."
    assert torch.equal(torch.stack([each.view for each in inner]).view(4, 4 * D, D), model.deep[0].up)
    assert [entry.parameter for entry in seen.by_role("gate")] == [f"deep.{i}.r.weight" for i in range(3)]


def test_an_expert_to_whom_no_token_is_sent_does_no_harm():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.ModuleList(Odd(gate=False, norm=False) for _ in range(2))
            self.up, self.down = (nn.ModuleList(nn.Linear(D, D, bias=False) for _ in range(2)) for _ in range(2))

        def forward(self, x):
            x = x + self.attention[0](x)
            tokens = x.flatten(0, 1)
            parts = zip(self.up, self.down, (tokens, tokens[:0]), strict=True)
            mixed = torch.cat([down(up(part).relu()) for up, down, part in parts])
            return self.attention[1](x + mixed.view_as(x))

    seen = found(Routed())
    assert {entry.parameter for entry in seen.by_role("feed_forward_in")} >= {"up.0.weight"}


def test_cross_attention_is_heard():
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(D, H, 2 * D, batch_first=True), 2)
    seen = look(decoder, heard=listen(decoder, (torch.randn(2, T, D), torch.randn(2, 7, D))))
    kinds = {(entry.attention.rpartition(".")[2], entry.weight.is_cross) for entry in seen.by_role("query", "key")}
    assert kinds == {("self_attn", False), ("multihead_attn", True)}


class Fewer(nn.Module):
    """Keys and values from tokens that a strided convolution has made fewer, in a stream."""

    def __init__(self):
        super().__init__()
        self.words, self.fewer, self.norm = nn.Embedding(11, D), nn.Conv1d(D, D, 2, 2), nn.LayerNorm(D)
        self.q, self.k, self.v, self.o, self.last = (nn.Linear(D, D, bias=False) for _ in range(5))

    def forward(self, ids):
        x = self.words(ids)
        few = self.norm(self.fewer(x.mT).mT)
        q, k, v = by_heads(self.q(x), H), by_heads(self.k(few), H), by_heads(self.v(few), H)
        return self.last(x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))


@pytest.mark.parametrize(
    "model, x",
    [(Latent(), None), (nn.Sequential(nn.Embedding(11, D), Latent()), IDS), (Fewer(), IDS)],
    ids=["latent, raw inputs", "latent", "fewer"],
)
def test_what_is_made_for_one_attention_alone_is_no_other_sequence(model, x):
    """Queries from one narrow vector and keys from another come from the same tokens."""
    assert not any(entry.weight.is_cross for entry in found(model, x).entries)


def test_talking_heads_are_heard_through():
    class Talking(Odd):
        def __init__(self):
            super().__init__(gate=False, norm=False)
            self.mix = nn.Parameter(torch.eye(H) + 0.1)

        def forward(self, x):
            q, k, v = (by_heads(each(x), H) for each in (self.aa, self.bb, self.cc))
            logits = torch.einsum("bhij,hg->bgij", q @ k.mT, self.mix)
            maps = torch.einsum("bhij,hg->bgij", logits.softmax(-1), self.mix)
            return self.dd((maps @ v).transpose(1, 2).flatten(2))

    seen = found(Talking())
    assert {entry.role for entry in seen.entries} == {"query", "key", "value", "output"}
    assert list(seen.left) == ["mix"], "What mixes heads is left as it is."


def test_a_softmax_that_is_no_attention_gives_no_roles():
    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(D, H), nn.Linear(D, H * D)

        def forward(self, x):
            return (self.a(x).softmax(-1)[..., None] * self.b(x).unflatten(-1, (H, D))).sum(-2)

    assert not found(Router()).attention


# --- partial knowledge, and what the caller says


def test_one_unknown_matrix_blanks_nothing():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Bilinear(8, 8, 8))
    seen = look(model)
    assert [entry.role for entry in seen.entries] == ["query", "key", "value", "output"]
    assert list(seen.unknown) == ["1.weight"]
    with pytest.raises(ValueError, match=r"none is known for 1.weight"):
        view(model)


class Silent(nn.Module):
    """Parameters only: nothing to listen to."""

    def __init__(self, *shape):
        super().__init__()
        self.n_heads = H
        self.thing = nn.Parameter(torch.arange(math.prod(shape)).float().view(shape))


def test_a_layout_can_be_given():
    model = Silent(3 * D, D)
    seen = look(model, roles={("query", "key", "value"): Layout("thing", groups=H)})
    rows = model.thing.detach().unflatten(0, (H, 3, DH))
    assert all(torch.equal(entry.view, rows[:, i].flatten(0, 1)) for i, entry in enumerate(seen.entries))
    seen = look(Silent(D + 12, D), roles={("query", "key", "value"): Layout("thing", sizes=(D, 6, 6))})
    assert [entry.weight.shape for entry in seen.entries] == [(D, D), (6, D), (6, D)]
    model = Silent(H, D, DH)
    (entry,) = look(model, roles={"query": Layout("thing", stacked="heads")}).entries
    assert torch.equal(entry.view, model.thing.detach().mT.flatten(0, 1))
    initialize_(model, "orthogonal", roles={"query": Layout("thing", stacked="heads")})
    assert torch.allclose(entry.view @ entry.view.T, torch.eye(D), atol=1e-5)


def test_a_layout_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"thing must hold 3 projections of one size .*Layout"):
        look(Silent(D + 12 + 1, D), roles={("query", "key", "value"): "thing"})
    with pytest.raises(ValueError, match=r"thing must be a matrix .*stacked"):
        look(Silent(H, D, DH), roles={"query": "thing"})
    with pytest.raises(ValueError, match=r"sizes must hold one number per role"):
        look(Silent(3 * D, D), roles={("query", "key", "value"): Layout("thing", sizes=(D, D))})
    with pytest.raises(ValueError, match=r"stacked must be one of"):
        Layout("thing", stacked="pancakes")


def test_a_plain_tuple_does_not_overrule_what_was_heard():
    model = Attention(*LAYOUTS["head by head"])
    x = torch.randn(2, T, D)
    seen = view(model, inputs=x, roles={("query", "key", "value"): "zz.z0"})
    assert torch.equal(seen.entries[0].view, W["query"]), "The tuple names the roles; how they lie was heard."


def test_weights_of_weight_norm_are_drawn_through_what_they_are_computed_from():
    model, plain = Model(), Model()
    torch.nn.utils.parametrizations.weight_norm(model.deep[1].w)
    originals = [*model.deep[1].w.parametrizations.parameters()]
    for each in (model, plain):
        initialize_(each, "xavier_normal", inputs=IDS, generator=seeded(0))
    torch.testing.assert_close(model.deep[1].w.weight, plain.deep[1].w.weight)
    assert all(a is b for a, b in zip(originals, model.deep[1].w.parametrizations.parameters(), strict=True))
    initialize_(model, "orthogonal", inputs=IDS, roles={"keep": "deep.1.w.parametrizations.*"})
    torch.testing.assert_close(model.deep[1].w.weight, plain.deep[1].w.weight)


def test_computed_weights_that_cannot_be_set_are_refused_before_anything_is_written():
    model = Model()
    torch.nn.utils.parametrizations.spectral_norm(model.deep[1].w)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"deep\.1\.w"):
        initialize_(model, "xavier_normal", inputs=IDS)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())


def test_computed_tables_are_kept():
    wave = torch.arange(T)[:, None] / 100 ** (torch.arange(D // 2) / (D // 2))
    table = torch.cat([wave.sin(), wave.cos()], -1)[None]
    for learns in (True, False):
        model = Model()
        model.spots = nn.Parameter(table.clone(), requires_grad=learns)
        initialize_(model, "gpt2", inputs=IDS)
        assert torch.equal(model.spots, table), "Sines and cosines are not drawn."
    model = Model()
    initialize_(model, "gpt2", inputs=IDS)
    assert model.spots.std() < 0.1, "A table that is learned is."


def test_the_command_line(capsys):
    from attntut.anatomy.__main__ import main

    sizes = "--hidden-size 64 --num-attention-heads 4 --num-hidden-layers 2 --intermediate-size 96 --vocab-size 50"
    assert main(["gpt_neox", *sizes.split()]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    query = next(line for line in lines if line[:1] == ["query"])
    assert query[2:] == ["64", "64", "4", "0", "…", "15", "of", "every", "48", "2"], "Head by head."
    with pytest.raises(SystemExit):
        main(["gpt_neo_y"])
    assert "Did you mean 'gpt_neo'?" in capsys.readouterr().err


def test_nothing_is_left_behind():
    model = Model()
    model.deep[0].requires_grad_(False)
    state, mode = torch.get_rng_state(), [each.training for each in model.modules()]
    listen(model, IDS)
    assert torch.equal(torch.get_rng_state(), state) and mode == [each.training for each in model.modules()]
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    assert all(each.grad is None for each in model.parameters()) and not model.deep[0].w.weight.requires_grad


def test_listening_without_a_graph_tells_nothing():
    model = Odd()
    with torch.no_grad(), Ears(model) as ears:
        output = model(torch.randn(2, T, D))
    assert not ears.hear(output).parts


class Choosy(Block):
    """An indexer that picks tokens by top-k, so that no gradient leads through it; or a block without a graph."""

    def __init__(self, silent=False):
        super().__init__()
        self.pick, self.silent = nn.Linear(D, 1), silent

    def forward(self, x):
        with torch.set_grad_enabled(not self.silent):
            chosen = self.pick(x).topk(T, dim=1).indices.expand_as(x)
            return super().forward(x.gather(1, chosen) if not self.silent else x)


def test_what_only_chooses_is_a_gate_and_what_ran_without_a_graph_is_unknown():
    model = Model()
    model.deep = nn.ModuleList([Choosy(), Choosy()])
    assert [entry.parameter[:11] for entry in found(model, IDS).by_role("gate")] == ["deep.0.pick", "deep.1.pick"]
    model.deep = nn.ModuleList([Choosy(silent=True), Choosy(silent=True)])
    assert not found(model, IDS).by_role("gate") and "deep.0.w.weight" in found(model, IDS).unknown


class Sharded(torch.Tensor):
    """Stands for a tensor whose parts do not share its memory (a DTensor, a quantized one)."""


def test_a_tensor_that_is_no_plain_one_is_refused_by_name():
    model = nn.TransformerEncoderLayer(D, H)
    weight = model.linear1.weight.detach().clone()
    model.linear1.weight = nn.Parameter(weight.as_subclass(Sharded))
    with pytest.raises(ValueError, match=r"plain tensors.*linear1\.weight \(Sharded\), sharded or quantized"):
        initialize_(model, "xavier_normal")
    assert torch.equal(model.linear1.weight.as_subclass(Tensor), weight), "Nothing was written."
    initialize_(model, "xavier_normal", roles={"keep": "linear1.*"})


def test_what_cannot_have_a_gradient_is_diagnosed_without_one():
    class Once(Odd):
        def forward(self, x):
            self.bb.weight[0, 0] += 0  # in place on a leaf: only inference may
            return super().forward(x)

    report = diagnose(Once(gate=False), torch.randn(2, T, D))
    assert len(report.rows) == H and any("with gradients, the model does not run" in note for note in report.notes)


class Wrapper(nn.Module):
    """Adds nothing to what it wraps: both run from the same to the same node."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_the_innermost_module_is_named():
    assert {entry.attention for entry in found(Wrapper(Wrapper(Odd()))).by_role("query")} == {"inner.inner"}


def test_a_table_that_is_looked_up_without_a_graph_is_kept_if_it_was_computed():
    class Silently(Model):
        def __init__(self):
            super().__init__()
            wave = torch.arange(T)[:, None] / 100 ** (torch.arange(D // 2) / (D // 2))
            self.where = nn.Embedding.from_pretrained(torch.cat([wave.sin(), wave.cos()], -1), freeze=False)

        def forward(self, ids):
            with torch.no_grad():
                places = self.where(torch.arange(T))
            return super().forward(ids) + places.sum()

    assert found(Silently(), IDS).kept == ("where.weight",)


class PostNorm(nn.Module):
    """A wrapper whose class has "norm" in its name, and that holds the attention."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.norm = inner, nn.LayerNorm(D)

    def forward(self, x):
        return self.norm(self.inner(x))


def test_a_wrapper_that_is_called_after_its_norm_is_none():
    assert not found(PostNorm(Odd(norm=False, cap=False, gate=False))).traits["qk_norm"]
