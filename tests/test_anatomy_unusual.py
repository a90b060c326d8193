"""Architectures that are written otherwise than most, one mechanism each: what is drawn is right, or is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from attntut.anatomy import view
from attntut.device import seeded
from attntut.init import initialize_
from tests.test_anatomy import DH, IDS, D, H, T, by_heads, found
from tests.test_anatomy_hostile import (
    ROLES,
    Wired,
    X,
    check_rows,
    linear,
    mixed,
    packed,
    plain,
    softmax,
    stacked,
    whole,
)

OTHERWISE = "otherwise than by softmax"


def normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=seeded(sum(shape))) * 0.3)


def feed_forward() -> Wired:
    return Wired(lambda m, x: m.v(m.w(x).relu()), w=linear(2 * D), v=linear(D, 2 * D))


def residual(**parts) -> Wired:
    """A block that adds what its parts make, in order."""

    def run(m, x):
        for name in parts:
            x = x + getattr(m, name)(F.layer_norm(x, (D,)))
        return x

    return Wired(run, **parts)


def between(make, n=2) -> nn.Sequential:
    """Blocks of ``u`` and ``f`` in turn with ordinary ones, an embedding before and a readout behind."""
    blocks = [residual(u=plain() if i % 2 else make(), f=feed_forward()) for i in range(2 * n)]
    return nn.Sequential(nn.Embedding(11, D), *blocks, linear(3))


def test_values_and_their_gate_in_one_matrix():
    def run(m, x):
        *qkv, gate = m.a(x).chunk(4, -1)
        return m.d(mixed(softmax, *qkv[:2], qkv[2] * F.silu(gate)))

    check_rows(Wired(run, a=linear(4 * D), d=linear()), "a.weight", query=D, key=D, value=D, gate=D)
    swish = packed(between=lambda y: y * y.sigmoid())
    check_rows(swish, "a.weight", query=D, key=D, value=D)  # bends each column by itself: no gate


def test_what_makes_a_gate_only_is_one():
    model = plain(g=linear(D, 3), h=linear(3))
    model.run = lambda m, x: m.d(mixed(softmax, m.a(x), m.b(x), m.c(x) * m.g(m.h(x).relu()).sigmoid()))
    assert whole(model) == ROLES | {"g.weight": "gate", "h.weight": "gate"}


def test_values_of_places_beside_those_of_contents():
    def attend(q, k, v):
        at = torch.arange(T)[:, None] - torch.arange(T) + T - 1
        weights = (q @ k.mT + torch.einsum("bhid,ijd->bhij", q, model.e(at))).softmax(-1)
        return torch.einsum("bhij,ijd->bhid", weights, model.f(at)) + weights @ v

    model = packed(attend=attend)
    model.e, model.f = nn.Embedding(2 * T - 1, DH), nn.Embedding(2 * T - 1, DH)
    check_rows(model, "a.weight", query=D, key=D, value=D)
    assert whole(model)["e.weight"] == "position"


def test_a_layer_that_takes_the_weights_of_the_one_before():
    def run(m, x):
        for i, each in enumerate(m.deep):
            y = F.layer_norm(x, (D,))
            if i % 2 == 0:
                weights = (by_heads(each.a(y), H) @ by_heads(each.b(y), H).mT).softmax(-1)
            x = x + each.d((weights @ by_heads(each.c(y), H)).transpose(1, 2).flatten(2))
        return x

    parts = ("abcd", "cd", "abcd", "cd")
    model = Wired(run, deep=nn.ModuleList(nn.ModuleDict({name: linear() for name in each}) for each in parts))
    model.deep = nn.ModuleList(Wired(None, **dict(each.items())) for each in model.deep)
    expected = {f"deep.{i}.{name}.weight": ROLES[f"{name}.weight"] for i, each in enumerate(parts) for name in each}
    assert whole(model) == expected, "One softmax may weigh the values of several layers."


@pytest.mark.parametrize("places", [True, False])
def test_absorbed_keys_are_refused_also_beside_keys_of_places(places):
    rank, turn = 8, 4

    def run(m, x):
        q, q_place = by_heads(m.a(x), H).split([DH, turn], -1)
        latent, k_place = m.b(x).split([rank, turn], -1)
        up = m.c.view(H, 2 * DH, rank)
        logits = torch.einsum("bhtc,bsc->bhts", torch.einsum("bhtd,hdc->bhtc", q, up[:, :DH]), latent)
        if places:
            logits = logits + torch.einsum("bhtr,bsr->bhts", q_place, k_place)
        mix = torch.einsum("bhts,bsc->bhtc", logits.softmax(-1), latent)
        return m.d(torch.einsum("bhtc,hdc->bhtd", mix, up[:, DH:]).transpose(1, 2).flatten(2))

    model = Wired(run, a=linear(H * (DH + turn)), b=linear(rank + turn), c=normal(2 * D, rank), d=linear())
    with pytest.raises(ValueError, match=r"c \(48, 8\): key, but it was absorbed into the queries"):
        initialize_(model, "xavier_normal", inputs=X)


@pytest.mark.parametrize("attend", [softmax, lambda q, k, v: (k @ q.mT).mT.softmax(-1) @ v], ids=["q·k", "k·q"])
def test_one_token_does_not_tell_queries_from_keys(attend):
    with pytest.raises(ValueError, match=r"One query meets one key.*two tokens or more"):
        view(plain(attend), inputs=X[:, :1])
    assert whole(plain(attend)) == ROLES


def test_an_output_matrix_that_reads_the_feed_forward_branch_too():
    def run(m, x):
        y = F.layer_norm(x, (D,))
        *qkv, inner = m.a(y).split([D, D, D, 2 * D], -1)
        return x + m.o(torch.cat([mixed(softmax, *qkv), F.gelu(inner)], -1))

    model = nn.Sequential(*(Wired(run, a=linear(5 * D), o=linear(D, 3 * D)) for _ in range(2)))
    check_rows(model, "0.a.weight", query=D, key=D, value=D, feed_forward_in=2 * D)
    entries = {entry.role: entry for entry in found(model).entries if entry.parameter == "1.o.weight"}
    assert torch.equal(entries["output"].view, model[1].o.weight[:, :D]), "The heads come first."
    assert torch.equal(entries["feed_forward_out"].view, model[1].o.weight[:, D:])
    assert entries["feed_forward_out"].rows == f"all, columns {D} … {3 * D - 1}"
    initialize_(model, "zero_output", inputs=X, generator=seeded(0), force=True)
    assert (model[0].o.weight == 0).all()


class Cell(nn.Module):
    """A recurrent network by hand, gated like a GRU."""

    def __init__(self):
        super().__init__()
        self.x, self.h = linear(3 * D), linear(3 * D)

    def forward(self, x):
        h, told = torch.zeros(len(x), D), []
        for token in x.unbind(1):
            (a, b, c), (d, e, f) = self.x(token).chunk(3, -1), self.h(h).chunk(3, -1)
            z = (a + d).sigmoid()
            h = (1 - z) * (c + (b + e).sigmoid() * f).tanh() + z * h
            told.append(h)
        return torch.stack(told, 1)


def of_torch(kind) -> Wired:
    return Wired(lambda m, x: m.r(x)[0], r=kind(D, D // 2, batch_first=True, bidirectional=True))


@pytest.mark.parametrize(
    "make", [Cell, lambda: of_torch(nn.LSTM), lambda: of_torch(nn.GRU)], ids=["own", "LSTM", "GRU"]
)
def test_recurrent_matrices_are_left(make):
    model = between(make)
    recurrent = {name for name, each in model.named_parameters() if name[:3] in ("1.u", "3.u") and each.ndim > 1}
    seen = found(model, IDS)
    assert seen.left.keys() == recurrent and all("recurrent" in why for why in seen.left.values())
    assert {entry.parameter: entry.role for entry in seen.entries}["5.weight"] == "readout"


def test_adapters_on_parts_of_a_packed_matrix():
    def run(m, x):
        narrow = x @ m.s.T
        parts = [F.linear(narrow[..., :2], m.t[:D]), 0 * x, F.linear(narrow[..., 2:], m.t[D:])]
        return m.d(mixed(softmax, *(m.a(x) + torch.cat(parts, -1)).chunk(3, -1)))

    model = between(lambda: Wired(run, a=linear(3 * D), s=normal(4, D), t=normal(2 * D, 2), d=linear()))
    roles = {entry.parameter: entry.role for entry in found(model, IDS).entries}
    assert (roles["1.u.s"], roles["1.u.t"]) == ("adapter_in", "adapter_out")
    initialize_(model, "xavier_normal", inputs=IDS, generator=seeded(0))
    assert (model[1].u.t == 0).all(), "An adapter begins as nothing, whichever part it is added to."


def test_a_block_in_the_middle_that_is_passed_several_times():
    model = stacked(None, None, None)

    def forward(ids):
        x = model.words(ids) + model.spots
        for i in (0, 1, 1, 1, 2):
            x = model.deep[i](x)
        return model.last(x)

    model.forward = forward
    assert {entry.weight.n_layers for entry in found(model, IDS).entries} == {5}, "Three blocks, five passes."


def test_matrices_that_lie_in_a_vector_are_refused():
    def run(m, x):
        q, k, v, d = m.flat.view(4, D, D)
        return F.linear(mixed(softmax, *(F.linear(x, each) for each in (q, k, v))), d)

    model = stacked(Wired(run, flat=normal(4 * D * D)), plain())
    with pytest.raises(ValueError, match=r"deep\.0\.u\.flat \(2304,\): query, but it is stored in one dimension"):
        initialize_(model, "xavier_normal", inputs=IDS)


@pytest.mark.parametrize("fold", [True, False])
def test_experts_that_are_all_asked(fold):
    def run(m, x):
        gate, inner = m.r(x).softmax(-1)[..., None], torch.einsum("btd,edf->btef", x, m.up).relu()
        if fold:
            return torch.einsum("btef,efd->btd", inner * gate, m.down)
        return (torch.einsum("btef,efd->bted", inner, m.down) * gate).sum(2)

    def make():
        return Wired(run, r=linear(3), up=normal(3, D, 2 * D), down=normal(3, 2 * D, D))

    model = nn.Sequential(*(residual(u=plain(), f=make()) for _ in range(2)))
    told = [(entry.parameter, entry.role) for entry in found(model).entries if entry.parameter.startswith("1.f")]
    roles = {"r.weight": "gate", "up": "feed_forward_in", "down": "feed_forward_out"}
    assert set(told) == {(f"1.f.{name}", role) for name, role in roles.items()}
    each = [entry.view for entry in found(model).entries if entry.parameter == "0.f.up"]
    assert len(each) == 3 and torch.equal(torch.stack(each).mT, model[0].f.up), "Each expert is a matrix."


def test_latents_are_tokens_and_a_table_of_modulation_is_none():
    def modulated(m, x, c):
        scale, shift, gate = (m.table + c.view(-1, 3, D)).chunk(3, 1)
        return x + gate * m.u(F.layer_norm(x, (D,)) * (1 + scale) + shift)

    def run(m, c):
        x, c = m.latents.expand(len(c), -1, -1), m.t(c)
        for each in m.deep:
            x = each(x, c)
        return m.q(x)

    deep = nn.ModuleList(Wired(modulated, u=plain(), table=normal(3, D)) for _ in range(2))
    model = Wired(run, deep=deep, latents=normal(3, D), t=linear(3 * D, 2), q=linear(3))
    seen = found(model, torch.randn(2, 2, generator=seeded(0)))
    assert {entry.parameter: entry.role for entry in seen.entries}["latents"] == "embedding", "What is added to it?"
    assert seen.gains.keys() == {"deep.0.table", "deep.1.table"} and seen.left.keys() == {"t.weight"}


def test_a_readout_in_each_block():
    def run(m, x):
        told = []
        for each in m.deep:
            x = each(x)
            told.append(each.z(x))
        return sum(told)

    blocks = [residual(u=plain(), f=feed_forward()) for _ in range(2)]
    for each in blocks:
        each.z = linear(3)
    model = Wired(run, deep=nn.ModuleList(blocks))
    assert {name: role for name, role in whole(model).items() if ".z." in name} == {
        "deep.0.z.weight": "readout",
        "deep.1.z.weight": "readout",
    }


def test_a_network_of_distances_holds_positions():
    def attend(q, k, v):
        distance = (torch.arange(T)[:, None] - torch.arange(T)).float()[..., None]
        return (q @ k.mT + model.f(model.e(distance).relu()).permute(2, 0, 1)).softmax(-1) @ v

    model = plain(attend, e=linear(9, 1), f=linear(H, 9))
    assert whole(model) == ROLES | {"e.weight": "position", "f.weight": "position"}


def test_a_branch_whose_end_is_thrown_away_is_like_its_siblings():
    def run(m, x, y):
        told = [[torch.cat(each, 2) for each in zip(*(heads(u, z) for u, z in ((m.u, x), (m.w, y))), strict=True)]]
        mix = softmax(*told[0]).transpose(1, 2).flatten(2)
        return x + m.u.d(mix[:, :T]), y + m.w.d(mix[:, T:])

    def heads(u, x):
        return [by_heads(each(x), H) for each in (u.a, u.b, u.c)]

    def all_of(m, x, y):
        for each in m.deep:
            x, y = each(x, y)
        return m.z(x)

    model = Wired(all_of, z=linear(3), deep=nn.ModuleList(Wired(run, u=plain(), w=plain()) for _ in range(3)))
    told = whole(model, (X, torch.randn(2, 3, D, generator=seeded(1))))
    assert told["deep.2.w.d.weight"] == "output", "Its output does not reach the end of the model."


@pytest.mark.parametrize("way", ["before heads", "after heads"])
def test_fewer_keys_made_by_a_matrix_over_tokens(way):
    def run(m, x):
        q, k, v = m.a(x), m.b(x), m.c(x)
        if way == "before heads":
            return m.d(mixed(softmax, q, m.e @ k, m.e @ v))
        k, v = (torch.einsum("bhnd,kn->bhkd", by_heads(each, H), m.e) for each in (k, v))
        return m.d(softmax(by_heads(q, H), k, v).transpose(1, 2).flatten(2))

    model = between(lambda: Wired(run, **{name: linear() for name in "abcd"}, e=normal(3, T)))
    seen = found(model, IDS)
    told = {entry.parameter[4:]: entry.role for entry in seen.entries if entry.parameter.startswith("1.u")}
    assert told == ROLES and seen.left.keys() == {"1.u.e", "3.u.e"}
    assert {entry.weight.n_heads for entry in seen.by_role("query")} == {H}


def test_mixers_of_tokens_are_no_feed_forward_network():
    model = between(lambda: Wired(lambda m, x: m.b(m.a(x.mT).relu()).mT, a=linear(9, T), b=linear(T, 9)))
    seen = found(model, IDS)
    assert seen.left.keys() == {f"{i}.u.{name}.weight" for i in (1, 3) for name in "ab"}
    assert all(OTHERWISE in why for why in seen.left.values())


def test_a_query_that_the_stream_goes_on_from():
    def attend(m, x, y):
        q, k, v = m.a(x), m.b(y), m.c(y)
        z = F.layer_norm(q + mixed(softmax, q, k, v), (D,))
        return z + m.d(z).relu()

    def run(m, x):
        for each in m.deep:
            x = each(x, x)
        return m.z(m.pool(m.seed.expand(2, 1, -1), x))

    deep = [Wired(attend, **{name: linear() for name in "abcd"}) for _ in range(3)]
    model = Wired(run, deep=nn.ModuleList(deep[:2]), pool=deep[2], seed=normal(1, D), z=linear(3))
    told = whole(model)
    for name in ("deep.0", "deep.1", "pool"):
        assert {f"{each}.weight": told[f"{name}.{each}.weight"] for each in "abc"}.items() <= ROLES.items(), name
    assert told["z.weight"] == "readout"


def test_gates_between_a_branch_and_the_stream():
    def run(m, x, y):
        r, z = (m.a(y) + m.b(x)).sigmoid(), (m.c(y) + m.d(x)).sigmoid()
        return (1 - z) * x + z * (m.e(y) + m.f(r * x)).tanh()

    def both(m, x):
        x = m.g(x, m.u(F.layer_norm(x, (D,))))
        return m.h(x, m.f(F.layer_norm(x, (D,))))

    def gate():
        return Wired(run, **{name: linear() for name in "abcdef"})

    blocks = [Wired(both, u=plain(), f=feed_forward(), g=gate(), h=gate()) for _ in range(2)]
    model = nn.Sequential(*blocks, linear(3))
    told = whole(model)
    assert {role for name, role in told.items() if name[2:3] in "gh"} <= {"gate", "feed_forward_in"}, "Drawn alike."


def test_neighbours_that_are_weighed_without_a_product_of_queries_and_keys():
    def run(m, x):
        h = by_heads(m.w(x), H)
        logits = F.leaky_relu(h @ m.l[..., None] + (h @ m.r[..., None]).mT)
        return (logits.softmax(-1) @ h).transpose(1, 2).flatten(2)

    kind = type("Neighbours", (Wired,), {})  # of the class of the attention, they would be its blocks
    before = [kind(run, w=linear(), l=normal(H, DH), r=normal(H, DH)) for _ in range(2)]
    model = nn.Sequential(linear(), *before, plain(), linear(3))
    seen = found(model)
    assert seen.left.keys() == {f"{i}.{name}" for i in (1, 2) for name in ("w.weight", "l", "r")}
    assert whole(model) == {f"3.{name}": role for name, role in ROLES.items()} | {
        "0.weight": "embedding",
        "4.weight": "readout",
    }


def test_a_pool_by_a_learned_vector_leaves_the_embedding_what_it_is():
    model = Wired(lambda m, x: m.r(m.p(y := m.deep(m.e(x))).softmax(1).mT @ y), e=linear(), p=linear(1), r=linear(3))
    model.deep = nn.Sequential(*(residual(u=plain(), f=feed_forward()) for _ in range(2)))
    told = whole(model)
    assert told["e.weight"] == "embedding" and told["r.weight"] == "readout" and "p.weight" in found(model).left


class Own(torch.autograd.Function):
    """A product of somebody's own."""

    @staticmethod
    def forward(context, x, w):
        context.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(context, gradient):
        x, w = context.saved_tensors
        return gradient @ w, gradient.flatten(0, -2).T @ x.flatten(0, -2)


def test_a_matrix_that_is_used_by_a_function_of_its_own_is_not_said_to_be_unused():
    model = stacked()
    for each in model.deep:
        each.s = normal(D, D)
        each.forward = lambda x, m=each: Own.apply(type(m).forward(m, x), m.s)
    why = found(model, IDS).left
    assert why.keys() == {"deep.0.s", "deep.1.s"} and all("not read" in each for each in why.values())


def test_a_scale_and_a_rate_are_no_embeddings():
    whole_numbers = torch.randint(-9, 9, (D, D), generator=seeded(0)).float()

    def run(m, x):
        decay = (-m.rate.exp()).mul(x[..., None]).exp().sum(-1)
        return F.linear(decay, whole_numbers * m.scale)

    model = between(lambda: Wired(run, rate=normal(D, 3), scale=normal(D, 1)))
    drawn = {entry.parameter for entry in found(model, IDS).entries}
    assert not drawn & {f"{i}.u.{name}" for i in (1, 3) for name in ("rate", "scale")}


def test_a_parameter_without_memory_for_each_number_is_refused_before_anything_is_written():
    model = stacked()
    model.deep[1].u.a.weight = nn.Parameter(torch.randn(1, D, generator=seeded(0)).expand(D, D))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"deep\.1\.u\.a\.weight must have a place in memory.*expanded"):
        initialize_(model, "xavier_normal", inputs=IDS)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
