"""Models that mislead a listener, one mechanism each; what is right is known because the model was built so."""

import math
import warnings
from dataclasses import make_dataclass
from functools import reduce

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from attntut.anatomy import view
from attntut.anatomy.view import listen
from attntut.device import seeded
from attntut.diagnose import diagnose
from attntut.init import initialize_
from tests.test_anatomy import DH, IDS, Block, D, H, Model, T, by_heads, found

X = torch.randn(2, T, D, generator=seeded(0))
ROLES = {"a.weight": "query", "b.weight": "key", "c.weight": "value", "d.weight": "output"}
BRANCH = {"w.weight": "feed_forward_in", "v.weight": "feed_forward_out"}


class Wired(nn.Module):
    """Parts under names that tell nothing, and what is done with them."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *x):
        return self.run(self, *x)


def linear(rows: int = D, columns: int = D) -> nn.Linear:
    return nn.Linear(columns, rows, bias=False)


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * DH**-0.5).softmax(-1) @ v


def mixed(attend, *qkv: Tensor) -> Tensor:
    return attend(*(by_heads(each, each.shape[-1] // DH) for each in qkv)).transpose(1, 2).flatten(2)


def plain(attend=softmax, **parts) -> Wired:
    """An attention of four matrices."""
    four = {name: linear() for name in "abcd"}
    return Wired(lambda m, x: m.d(mixed(attend, m.a(x), m.b(x), m.c(x))), **four | parts)


def packed(order=(0, 1, 2), attend=softmax, between=lambda y: y) -> Wired:
    """One matrix: ``order`` says which thirds are query, key and value."""

    def run(m, x):
        y = between(m.a(x))
        return m.d(mixed(attend, *(y.narrow(-1, D * i, D) for i in order)))

    return Wired(run, a=linear(3 * D), d=linear())


def block(attention=None, kind=Block) -> Block:
    made = kind()
    made.u = attention or plain()
    return made


def stacked(*attentions) -> Model:
    model = Model(0)
    model.deep.extend(map(block, attentions or (None, None)))
    return model


def roles_of(prefix: str = "") -> dict[str, str]:
    """The truth of ``stacked()``."""
    one = {f"u.{name}": role for name, role in ROLES.items()} | BRANCH
    deep = {f"deep.{i}.{name}": role for i in range(2) for name, role in one.items()}
    around = {"words.weight": "embedding", "spots": "position", "last.weight": "readout"}
    return {prefix + name: role for name, role in (deep | around).items()}


def whole(model, x=X) -> dict:
    """What each matrix is: its role, if that has all its rows in order; else the roles of its parts."""
    told = {}
    for entry in found(model, x).entries:
        matrix = model.get_parameter(entry.parameter).squeeze(0)
        is_whole = torch.equal(entry.view.mT if entry.weight.is_table else entry.view, matrix)
        told.setdefault(entry.parameter, []).append(entry.role if is_whole else (entry.role, entry.rows))
    return {name: roles[0] if len(roles) == 1 else roles for name, roles in told.items()}


def check_rows(model, name: str, x=X, **sizes: int) -> None:
    """The rows of one matrix are, from the first to the last, the roles that ``sizes`` says."""
    seen = [(entry.role, entry.view) for entry in found(model, x).entries if entry.parameter == name]
    assert {role for role, _ in seen} == sizes.keys() and len(seen) == len(sizes), f"{name} has other parts."
    parts = dict(zip(sizes, model.get_parameter(name).split(list(sizes.values())), strict=True))
    assert all(torch.equal(matrix, parts[role]) for role, matrix in seen), f"A part has other rows of {name}."


def one_key(q, k, v, before=lambda s: s):
    return torch.einsum("bhij,bjd->bhid", before(torch.einsum("bhid,bjd->bhij", q, k[:, 0])).softmax(-1), v[:, 0])


def maps(q, k):  # Nyström's way: three of them, the first two of which are multiplied before any value is met
    few_q, few_k = (x[..., :4, :].unflatten(-2, (2, 2)).mean(-2) for x in (q, k))
    return [(a @ b.mT).softmax(-1) for a, b in ((q, few_k), (few_q, few_k), (few_q, k))]


def landmarks(q, k, v):
    first, second, third = maps(q, k)
    return (first @ second) @ (third @ v)


def over_its_sum(e: Tensor) -> Tensor:
    return e / e.sum(-1, keepdim=True)


WAYS = {
    "a loop over heads": lambda q, k, v: torch.stack([softmax(q[:, h], k[:, h], v[:, h]) for h in range(H)], 1),
    "half of the heads": lambda *qkv: torch.cat([*map(softmax, *(each.chunk(2, 1) for each in qkv))], 1),
    "a sum of two scores": lambda q, k, v: (q[..., :2] @ k[..., :2].mT + q[..., 2:] @ k[..., 2:].mT).softmax(-1) @ v,
    "keys by queries": lambda q, k, v: (k @ q.mT).softmax(-2).mT @ v,
    "half precision": lambda *qkv: torch.autocast("cpu", torch.bfloat16)(softmax)(*qkv).float(),
    "exp over its sum": lambda q, k, v: over_its_sum((s := q @ k.mT).sub(s.amax(-1, True)).exp()) @ v,
    "exp of log_softmax": lambda q, k, v: F.log_softmax(q @ k.mT, -1).exp() @ v,
    "keys by queries, less logsumexp": lambda q, k, v: ((s := k @ q.mT) - s.logsumexp(-2, True)).exp().mT @ v,
    "one key for all heads": one_key,  # einsum folds the heads into rows
    "one key, and no logit above 0": lambda *qkv: one_key(*qkv, before=lambda s: s - s.amax(-1, keepdim=True)),
    "a single token": lambda q, k, v: torch.einsum(  # einsum makes no sum over one
        "bhij,bhjd->bhid", torch.einsum("bhid,bhjd->bhij", q, k[:, :, :1]).softmax(-1), v[:, :, :1]
    ),
    "maps of maps": landmarks,
    "maps of maps, the values last": lambda q, k, v: reduce(torch.matmul, [*maps(q, k), v]),
    "queries that compete": lambda q, k, v: F.normalize((q @ k.mT).softmax(-2), p=1, dim=-1) @ v,  # slot attention
}


@pytest.mark.parametrize("way", WAYS)
def test_however_scores_are_made(way):
    model = plain(WAYS[way], **{name: linear(DH if "one key" in way else D) for name in "bc"})
    assert whole(model) == ROLES, "Is one call taken for all, or are query and key exchanged?"
    heads = {(entry.weight.n_heads, entry.weight.d_head) for entry in found(model).by_role("query")}
    assert heads == {(H, DH)}, "Heads add up over the calls of one attention; d_head over the terms of one score."


def test_two_kernels_with_one_value():
    kernel = F.scaled_dot_product_attention
    model = plain(lambda q, k, v: kernel(q[..., ::2], k[..., ::2], v) - 0.5 * kernel(q[..., 1::2], k[..., 1::2], v))
    apart = torch.arange(D).view(-1, 2).T.flatten()  # the first kernel reads the even rows of query and key
    for entry, weight in zip(found(model).by_role("query", "key"), (model.a.weight, model.b.weight), strict=True):
        assert torch.equal(entry.view, weight[apart]), f"{entry.role}: each kernel has rows of its own."
        assert (entry.weight.n_heads, entry.weight.d_head) == (2 * H, DH // 2)
    assert whole(model).items() >= {"c.weight": "value", "d.weight": "output"}.items(), "Both kernels read one value."


def test_a_table_of_distances_is_no_key():
    def attend(q, k, v):
        distance = model.e(torch.arange(T)[:, None] - torch.arange(T) + T - 1)
        return (torch.einsum("bhid,ijd->bhij", q, distance) + q @ k.mT).softmax(-1) @ v

    model = plain(attend, e=nn.Embedding(2 * T - 1, DH))
    assert whole(model) == ROLES | {"e.weight": "position"}, "The first product in a sum of scores may have no key."


def test_scores_that_are_added_from_layer_to_layer():
    def run(m, x):
        scores = 0
        for each in m.deep:
            scores = scores + by_heads(each.a(x), H) @ by_heads(each.b(x), H).mT
            x = x + each.d((scores.softmax(-1) @ by_heads(each.c(x), H)).transpose(1, 2).flatten(2))
        return x

    told = whole(Wired(run, deep=nn.ModuleList([plain(), plain()])))
    assert told == {f"deep.{i}.{name}": role for i in range(2) for name, role in ROLES.items()}, "Whose query is whose?"


@pytest.mark.parametrize("attend", [softmax, WAYS["keys by queries"]], ids=["as usual", "keys by queries"])
@pytest.mark.parametrize("value", [0.0, math.nan, 1e38], ids=str)
def test_dead_weights_are_heard_and_put_back(value, attend):
    norm, factor = nn.RMSNorm(DH), nn.Parameter(torch.ones(DH))
    model = plain(lambda q, k, v: attend(norm(q) * factor, norm(k), v), n=norm, s=factor)
    for each in model.parameters():
        nn.init.constant_(each, value)
    seen = found(model)
    assert {entry.parameter: entry.role for entry in seen.entries} == ROLES, "Where nothing flows, roles are the same."
    assert seen.by_role("query")[0].weight.n_heads == H and seen.traits["qk_norm"]
    for each in model.parameters():  # listening lends numbers, and takes them back
        torch.testing.assert_close(each.data, torch.full_like(each, value), rtol=0, atol=0, equal_nan=True)


def test_parameters_that_are_views_of_one_buffer():
    model, gaps = stacked(), [-1]  # behind each parameter stands one number that is nobody's
    flat = torch.full((sum(each.numel() + 1 for each in model.parameters()),), 7.0)
    for each in model.parameters():
        gaps.append(gaps[-1] + 1 + each.numel())
        each.data = flat[gaps[-2] + 1 : gaps[-1]].view(each.shape)
    initialize_(model, "gpt2", inputs=IDS, generator=seeded(0))
    left = (flat == 7).nonzero().flatten().tolist()
    assert left == gaps[1:], "More: a parameter that shares memory was not drawn. Less: the memory beside it was."


def test_siblings_of_one_class_may_pack_in_another_order():
    model = stacked(packed((0, 1, 2)), packed((2, 1, 0)))
    check_rows(model, "deep.0.u.a.weight", IDS, query=D, key=D, value=D)
    check_rows(model, "deep.1.u.a.weight", IDS, value=D, key=D, query=D)


def test_a_depthwise_convolution_is_heard_through():
    filters = [nn.Conv1d(n, n, 3, padding=1, groups=n, bias=False) for n in (3 * D, D)]
    model = packed(between=lambda y: filters[0](y.mT).mT)
    model.e = filters[0]
    check_rows(model, "a.weight", query=D, key=D, value=D)
    assert {entry.weight.d_model for entry in found(model).entries} == {D}, "No channel of the filter is the stream's."
    model = plain(e=filters[1])
    model.run = lambda m, x: m.d(mixed(softmax, m.a(x), m.b(x), m.c(x)) + m.e(m.c(x).mT).mT)
    assert whole(model).items() >= ROLES.items(), "What is added to the mix leaves the output its role."


def test_attention_and_feed_forward_read_with_one_matrix():
    def run(m, x):
        *qkv, inner = m.a(m.n(x)).split([D, D, D, 2 * D], -1)
        return x + m.d(mixed(softmax, *qkv)) + m.v(F.gelu(inner))

    parts = (dict(n=nn.LayerNorm(D), a=linear(5 * D), d=linear(), v=linear(D, 2 * D)) for _ in range(2))
    model = nn.Sequential(*(Wired(run, **each) for each in parts))
    for i in range(2):
        check_rows(model, f"{i}.a.weight", query=D, key=D, value=D, feed_forward_in=2 * D)
        assert whole(model)[f"{i}.v.weight"] == "feed_forward_out"


@pytest.mark.parametrize("channels", [7, 2 * D])
def test_what_lies_otherwise_in_models_of_images(channels):
    def run(m, x):
        q, k, v = (each(m.n(x)).flatten(2).unflatten(1, (H, DH)).mT for each in (m.a, m.b, m.c))
        return m.d(softmax(q * m.t.exp(), k, v).mT.flatten(1, 2).unflatten(-1, x.shape[2:]))

    norm = SomeNorm(lambda m, x: (x - x.mean(1, True)) / (x.var(1, keepdim=True) + 1e-5).sqrt() * m.g + m.h)
    norm.g, norm.h = nn.Parameter(torch.ones(1, D, 1, 1)), nn.Parameter(torch.zeros(1, D, 1, 1))
    attention = Wired(run, n=norm, t=nn.Parameter(torch.zeros(H, 1, 1)))
    attention.a, attention.b, attention.c, attention.d = (nn.Conv2d(D, D, 1, bias=False) for _ in range(4))
    model = nn.Sequential(attention, nn.ConvTranspose2d(D, channels, 2, 2, bias=False))
    nn.init.constant_(model[1].weight, 7.0)
    initialize_(model, "xavier_normal", inputs=torch.randn(2, D, 3, 3), generator=seeded(0))
    assert not (model[1].weight == 7).any(), "A transposed convolution is stored (fan_in, fan_out, …)."
    assert (norm.g == 1).all() and (norm.h == 0).all(), "(1, D, 1, 1) in a norm is its scale or shift."
    assert (attention.t == 0).all(), "A temperature (heads, 1, 1) is a factor: left as it is."


def head_by_head() -> Wired:
    head = (Wired(lambda m, x: softmax(m.a(x), m.b(x), m.c(x)), **{n: linear(DH) for n in "abc"}) for _ in range(H))
    return Wired(lambda m, x: m.d(torch.cat([each(x) for each in m.e], -1)), e=nn.ModuleList(head), d=linear())


Other = type("Other", (Block,), {})
SomeNorm = type("SomeNorm", (Wired,), {})  # says by its name that it is a norm, and nothing else
DEEP = {
    "classes alternate": (lambda: nn.Sequential(*(block(kind=kind) for kind in (Other, Block, Other, Block))), 4),
    "the first is of another class": (lambda: nn.Sequential(block(kind=Other), block(), block()), 3),
    "attributes": (lambda: Wired(lambda m, x: m.z(m.y(m.x(x))), x=block(), y=block(), z=block()), 3),
    "a list of heads in each": (lambda: nn.Sequential(*(block(head_by_head()) for _ in range(3))), 3),
    "one block behind a linear map": (lambda: nn.Sequential(linear(), block()), 1),
}


@pytest.mark.parametrize("build, n", DEEP.values(), ids=DEEP)
def test_depth_is_counted_along_the_pass(build, n):
    branch = found(build()).by_role("query", "key", "value", "output", *BRANCH.values())
    layers = {(entry.weight.layer, entry.weight.n_layers) for entry in branch}
    assert layers == {(i + 1, n) for i in range(n)}, "Depth is what is passed, not how modules are kept."


def test_attention_in_the_forward_of_the_model():
    def run(m, x):
        for p in m.deep:
            y = F.layer_norm(x, (D,))
            x = x + p["d"](mixed(softmax, *(p[each](y) for each in "abc")))
            x = x + p["v"](p["w"](F.layer_norm(x, (D,))).relu())
        return x

    model = Wired(run, deep=nn.ModuleList([nn.ModuleDict({each: linear() for each in "abcdwv"}) for _ in range(3)]))
    assert whole(model) == {f"deep.{i}.{name}": role for i in range(3) for name, role in (ROLES | BRANCH).items()}
    layers = [(entry.weight.layer, entry.weight.n_layers) for entry in found(model).by_role("query")]
    assert layers == [(1, 3), (2, 3), (3, 3)], "Three attentions run in one forward: they are three layers."


def test_self_and_cross_attention_in_one_forward():
    def run(m, x, y):
        x, y = m.x(x), m.y(y)
        x = x + m.d(mixed(softmax, m.a(x), m.b(x), m.c(x)))
        return x + m.h(softmax(*(by_heads(each, 2) for each in (m.e(x), m.f(y), m.g(y)))).transpose(1, 2).flatten(2))

    model = Wired(run, **{name: linear() for name in "abcdefghxy"})
    queries = found(model, (X, torch.randn(2, 7, D, generator=seeded(1)))).by_role("query")
    told = {entry.parameter: (entry.weight.n_heads, entry.weight.is_cross) for entry in queries}
    assert told == {"a.weight": (H, False), "e.weight": (2, True)}, "Each of two calls has its own heads and inputs."


def test_a_norm_to_whose_weight_one_is_added_starts_at_zero():
    model = stacked()
    for each in model.deep:
        each.n = SomeNorm(lambda m, x: F.rms_norm(x, (D,)) * (1 + m.weight), weight=nn.Parameter(torch.zeros(D)))
        nn.init.ones_(each.n.weight) if each is model.deep[0] else nn.init.zeros_(each.m.weight)
    initialize_(model, "xavier_normal", inputs=IDS, generator=seeded(0))
    assert all((each.n.weight == 0).all() for each in model.deep), "1 + weight: a weight of 1 doubles the stream."
    assert all((each.m.weight == 1).all() for each in model.deep), "torch's own starts at 1."


def test_train_that_is_overridden_is_not_called():
    model, called = plain(), []
    model.a.train = called.append  # as where an adapter is merged
    listen(model, X)
    assert not called and model.a.training, "listen must set the mode without the module's own code."


def test_a_cache_that_is_written_in_place():
    model = plain(lambda q, k, v: softmax(q, *model.kept.copy_(torch.stack([k, v]))))
    model.register_buffer("kept", torch.zeros(2, 2, H, T, DH))
    for time in ("first", "second"):
        assert whole(model) == ROLES, f"Heard for the {time} time."
        assert not model.kept.requires_grad and (model.kept == 0).all(), "The buffer is as it was, without a graph."


def test_what_is_changed_in_place_behind_a_norm_is_refused_by_name():
    norm = nn.RMSNorm(DH)
    model = packed(attend=lambda q, k, v: softmax(norm(q), norm(k), v.mul_(0.5)))
    with pytest.raises(ValueError, match=r"What a\.weight feeds cannot be traced.*changed in place"):
        view(model, inputs=X)


def test_what_the_inputs_do_not_reach_stays_as_it_is_and_a_warning_says_so():
    model = Wired(lambda m, *xs: [tower(x) for tower, x in zip((m.p, m.q), xs, strict=False)], p=stacked(), q=stacked())
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"as they are.*: q \(\d+ parameters\): the inputs do not reach it\.$"):
        initialize_(model, "xavier_normal", inputs=IDS)
    assert all(torch.equal(before[name], each) for name, each in model.q.state_dict(prefix="q.").items())
    assert not any(
        torch.equal(before[name], each) for name, each in model.named_parameters() if name[:2] == "p." and each.ndim > 1
    )
    assert whole(model, (IDS, IDS)) == roles_of("p.") | roles_of("q."), "Both inputs reach both."


@pytest.mark.parametrize("end", [make_dataclass("Output", ["y"]), Tensor.argmax, Tensor.tolist])
def test_whatever_the_model_returns(end):
    model = Wired(lambda m, x: end(m.p(x)), p=stacked())
    assert whole(model, IDS) == roles_of("p."), "The graph ends before the output: is the end of the model lost?"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_part_is_heard():
    scripted = [torch.jit.script(nn.Sequential(linear(2 * D), nn.ReLU(), linear(D, 2 * D))) for _ in range(2)]
    model = nn.Sequential(*(Wired(lambda m, x: m.f(x + m.u(x)) + x, u=plain(), f=each) for each in scripted))
    told = {f"u.{name}": role for name, role in ROLES.items()}
    told |= {"f.0.weight": "feed_forward_in", "f.2.weight": "feed_forward_out"}
    assert whole(model) == {f"{i}.{name}": role for i in range(2) for name, role in told.items()}


def test_compiled_blocks_are_heard_without_compiling():
    compiled, model = [], stacked()
    for each in model.deep:
        each.compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    assert whole(model, IDS) == roles_of() and not compiled, "A compiled block is one node of the graph."


def test_a_sharded_model_is_refused_and_stays_sharded():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(stacked(plain()), mesh=dist.init_device_mesh("cpu", (1,)))
        before = {name: each.full_tensor().clone() for name, each in model.named_parameters()}
        with pytest.raises(ValueError, match=r"plain tensors.*words\.weight \(DTensor\)"):
            initialize_(model, "xavier_normal", inputs=IDS)
        after = {name: each.full_tensor() for name, each in model.named_parameters()}  # no plain tensor has one
        assert all(torch.equal(before[name], each) for name, each in after.items()), "It was left gathered, or drawn."
    finally:
        dist.destroy_process_group()


def test_a_packed_matrix_may_be_multiplied_once_for_each_role():
    class Thrice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.d = nn.Linear(D, 3 * D), nn.Linear(D, D)

        def forward(self, x):
            q, k, v = (by_heads(self.a(x).chunk(3, -1)[i], H) for i in range(3))
            return self.d((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2))

    roles = [(entry.role, entry.rows) for entry in found(Thrice(), X).entries if entry.parameter == "a.weight"]
    expected = [("query", f"0 … {D - 1}"), ("key", f"{D} … {2 * D - 1}"), ("value", f"{2 * D} … {3 * D - 1}")]
    assert sorted(roles) == sorted(expected), "Are rows that another call uses taken for something else?"


def test_a_tower_of_one_block_beside_a_stack():
    model = Wired(lambda m, ids, x: (m.p(ids), m.q(x)), p=stacked(), q=block())
    one = {f"q.u.{name}": role for name, role in ROLES.items()} | {f"q.{name}": role for name, role in BRANCH.items()}
    assert whole(model, (IDS, X)) == roles_of("p.") | one


@pytest.mark.parametrize("depth", [1, 2])
def test_heads_in_a_list_are_no_stack(depth):
    def head():
        return Wired(lambda m, x: softmax(m.a(x), m.b(x), m.c(x)), **{name: linear(DH) for name in "abc"})

    def attention():
        heads = nn.ModuleList(head() for _ in range(H))
        return Wired(lambda m, x: m.d(torch.cat([head(x) for head in m.h], -1)), h=heads, d=linear())

    seen = found(stacked(*(attention() for _ in range(depth))), IDS)
    inside = seen.by_role("query", *BRANCH.values())
    places = {(entry.parameter[5], entry.weight.layer, entry.weight.n_layers) for entry in inside}
    assert places == {(str(i), i + 1, depth) for i in range(depth)}, "Heads stand side by side."
    assert {entry.role for entry in seen.entries} == {*roles_of().values()}


def test_blocks_that_mix_tokens_without_a_softmax_among_those_of_attention():
    model = stacked()
    model.deep.extend(block(plain(lambda q, k, v: q.exp() @ (k.exp().mT @ v)), Other) for _ in range(2))
    linear_ones = {f"deep.{i}.u.{name}" for i in (2, 3) for name in ROLES}
    branches = {f"deep.{i}.{name}": role for i in (2, 3) for name, role in BRANCH.items()}
    assert whole(model, IDS) == roles_of() | branches
    seen = found(model, IDS)
    assert seen.left.keys() == linear_ones and all("otherwise than by softmax" in why for why in seen.left.values())


def test_what_is_added_to_all_heads_of_a_query_is_a_bias():
    bias = nn.Parameter(torch.ones(H, DH))
    model = stacked(packed(attend=lambda q, k, v: softmax(q + bias[:, None], k, v)), plain())
    model.deep[0].u.t = bias
    assert list(found(model, IDS).biases) == ["deep.0.u.t"]
    initialize_(model, "xavier_normal", inputs=IDS)
    assert (bias == 0).all()


def test_keys_that_were_absorbed_into_the_queries_are_refused_by_name():
    def run(m, x):
        latent = m.b(x)[:, None]
        mix = (by_heads(m.a(x), H) @ m.c @ latent.mT).softmax(-1) @ latent
        return m.d((mix @ m.e).transpose(1, 2).flatten(2))

    stacks = {name: nn.Parameter(torch.randn(H, *shape)) for name, shape in (("c", (DH, 3)), ("e", (3, DH)))}
    model = Wired(run, a=linear(), b=linear(3), d=linear(), **stacks)
    with pytest.raises(ValueError, match=r"c \(\d+, \d+, 3\): key, but it was absorbed into the queries"):
        initialize_(model, "xavier_normal", inputs=X)


def test_what_modulates_the_stream_is_left_and_what_makes_it_is_drawn():
    def modulated(m, x, c):
        scale, shift, gate = m.t(c)[:, None].chunk(3, -1)
        return x + gate * m.u(F.layer_norm(x, (D,)) * (1 + scale) + shift)

    def run(m, x, c):
        x = m.p(x) + m.spots
        for each in m.deep:
            x = each(x, c)
        return m.q(x)

    deep = nn.ModuleList(Wired(modulated, t=linear(3 * D, 2), u=plain()) for _ in range(2))
    model = Wired(run, p=linear(), q=linear(3), deep=deep, spots=nn.Parameter(torch.randn(T, D)))
    told = whole(model, (X, torch.randn(2, 2)))
    assert told["p.weight"] == "embedding" and told["q.weight"] == "readout"
    assert found(model, (X, torch.randn(2, 2))).left.keys() == {"deep.0.t.weight", "deep.1.t.weight"}


EXPERTS = {  # x is (tokens, D), e the number of each token's expert
    "picked, in place": lambda x, e, w, b: torch.bmm(x[:, None], w[e].mT).squeeze(1).add_(b[e]),
    "picked, einsum": lambda x, e, w, b: torch.einsum("ti,toi->to", x, w[e]) + b[e],
    "a loop": lambda x, e, w, b: sum((e == i)[:, None] * F.linear(x, w[i], b[i]) for i in range(len(w))),
    "all, then one": lambda x, e, w, b: (x @ w.mT + b[:, None])[e, torch.arange(len(e))],
    "as many for each": lambda x, e, w, b: (torch.bmm(x.view(len(w), -1, x.shape[1]), w.mT) + b[:, None]).flatten(0, 1),
}


@pytest.mark.parametrize("way", EXPERTS)
def test_biases_of_experts_are_no_tables(way):
    def branch(m, x):
        tokens = x.flatten(0, 1)
        (chosen,) = m.r(tokens).softmax(-1).topk(1).indices.mT  # some experts are idle
        a, b = EXPERTS[way](tokens, chosen, m.up, m.up_bias).chunk(2, -1)
        return EXPERTS[way](F.silu(a) * b, chosen, m.down, m.down_bias).view_as(x)

    stacks = {"up": (5, 4 * D, D), "up_bias": (5, 4 * D), "down": (5, D, 2 * D), "down_bias": (5, D)}
    model, routed = stacked(), type("Routed", (Block,), {"branch": lambda block, x: block.e(x)})
    for each in model.deep:
        del each.w, each.v
        each.__class__ = routed
        each.e = Wired(branch, r=linear(5), **{n: nn.Parameter(torch.ones(s)) for n, s in stacks.items()})
    initialize_(model, "xavier_normal", inputs=IDS, generator=seeded(0))
    for each in model.deep:
        assert not each.e.up_bias.any() and not each.e.down_bias.any(), "They start at 0, as biases do."
        for stack in (each.e.up.unflatten(1, (2, -1)).flatten(0, 1), each.e.down):
            stds = torch.full((len(stack),), (2 / (D + 2 * D)) ** 0.5)
            assert torch.allclose(stack.std((1, 2)), stds, rtol=0.1), "Each expert has fans of its own, each half too."


def test_a_tower_that_another_reads_adds_no_depth_to_it_and_stages_do():
    def run(m, x, ids):
        seen = m.joint(m.sees.stages(x)[:, ::2])
        return m.says.deep(torch.cat([seen, m.says.words(ids)], 1))

    stages = nn.Sequential(*(nn.Sequential(block(), block()) for _ in range(2)))
    model = Wired(run, sees=Wired(None, stages=stages), joint=linear(), says=Wired(None, words=nn.Embedding(11, D)))
    model.says.deep = nn.Sequential(*(block() for _ in range(3)))
    for each in model.says.deep:
        each.u.is_causal = True
    seen = found(model, (X, IDS))
    for tower, n in (("sees", 4), ("says", 3)):
        mine = [each for each in seen.entries if each.parameter.startswith(tower) and not each.weight.is_table]
        assert len(mine) == 6 * n
        places = [(each.weight.layer, each.weight.n_layers) for each in sorted(mine, key=lambda each: each.parameter)]
        assert places == [(i + 1, n) for i in range(n) for _ in range(6)], f"{tower} has blocks of its own."
    assert [each.weight.stack for each in seen.entries if each.weight.is_table] == ["decoder"], "Words are of who says."


class Integers(nn.Module):
    """A linear map whose matrix was quantized into a buffer."""

    def __init__(self, map, dtype):
        super().__init__()
        levels = (map.weight.detach() * 127 / map.weight.abs().max()).round()
        packed = levels.to(torch.int8) if dtype == torch.int8 else levels.to(torch.int32) << 24
        self.register_buffer("q", packed if dtype != torch.uint8 else (levels + 128).to(dtype))

    def forward(self, x):
        return x @ self.q.to(x).mT / self.q.to(x).abs().max()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32], ids=str)
def test_weights_that_were_quantized_into_buffers_are_refused_by_name(dtype):
    model = stacked()
    model.register_buffer("mask", torch.ones(T, T, dtype=torch.uint8).tril())
    model.register_buffer("places", torch.arange(T * T, dtype=torch.int32).view(T, T))
    assert whole(model, IDS) == roles_of() and not found(model, IDS).foreign, "Masks and indices are no weights."
    model.deep[1].u.a = Integers(model.deep[1].u.a, dtype)
    before = model.words.weight.clone()
    with pytest.raises(ValueError, match=rf"got deep\.1\.u\.a\.q \({str(dtype)[6:]}\), sharded or quantized"):
        initialize_(model, "xavier_normal", inputs=IDS)
    assert torch.equal(before, model.words.weight)
    view(model, inputs=IDS, roles={"keep": "deep.1.*.q"}, n_heads=H)
    assert "deep.1.u.a.q" in " ".join(diagnose(model, IDS).notes)


@pytest.mark.filterwarnings("ignore:.*torch.(ao|quantize)")
def test_weights_that_torch_packed_are_refused_by_name():
    layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, 2 * D), 2, enable_nested_tensor=False)
    packed = torch.ao.quantization.quantize_dynamic(layers.eval(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"layers\.0\.linear1\._packed_params\S* \(\w+\), .*quantized"):
        initialize_(packed, "xavier_normal")


@pytest.mark.parametrize("value", [math.nan, 1e38])
def test_buffers_that_nobody_set_are_named(value):
    model = stacked()
    model.register_buffer("mask", torch.full((T, T), -math.inf).triu(1))
    model.register_buffer("least", torch.full((T, T), torch.finfo(torch.float32).min).triu(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initialize_(model, "xavier_normal", inputs=IDS)
    model.deep[0].u.register_buffer("turns", torch.ones(3))
    model.deep[0].u.turns[1] = value
    with pytest.warns(UserWarning, match=r"no scheme sets them: deep\.0\.u\.turns\."):
        initialize_(model, "xavier_normal", inputs=IDS)
    assert [note for note in diagnose(model, IDS).notes if "deep.0.u.turns" in note]


def test_a_first_block_without_attention_has_a_feed_forward_network():
    branch = {name: getattr(block(), name) for name in "wv"}
    model = Wired(None, e=linear(), q=block(), **branch)
    model.run = lambda m, x: m.q((y := m.e(x)) + m.v(m.w(y).relu()))
    told = whole(model)
    assert {name: told[name] for name in BRANCH} == BRANCH and told["e.weight"] == "embedding"


def test_a_gain_of_each_head_to_which_one_is_added():
    def run(m, x):
        q, k, v = (by_heads(each(x), H) for each in (m.a, m.b, m.c))
        return m.d(softmax(F.normalize(q, dim=-1) * (m.g + 1), k, v).transpose(1, 2).flatten(2))

    model = plain(g=nn.Parameter(torch.zeros(H, 1, DH)))
    model.run = run
    assert list(found(model, X).gains) == ["g"]
    assert not initialize_(model, "xavier_normal", inputs=X).g.any(), "A norm of the queries is no embedding."


def test_what_asks_the_layers_before_is_left():
    """A learned query and no key matrix: softmax over what each layer wrote (attention residuals)."""

    def run(m, x):
        wrote = [m.e(x)]
        for each in m.blocks:
            stack = torch.stack(wrote)
            weights = torch.einsum("d,lbtd->lbt", each.u.ask[0], F.rms_norm(stack, (D,))).softmax(0)
            wrote.append(each(torch.einsum("lbt,lbtd->btd", weights, stack)))
        return wrote[-1]

    blocks = nn.ModuleList(block(plain(ask=nn.Parameter(torch.zeros(1, D)))) for _ in range(3))
    seen = found(Wired(run, e=linear(), blocks=blocks), X)
    assert {"blocks.1.u.ask", "blocks.2.u.ask"} <= seen.left.keys()
    assert len(seen.by_role("query")) == 3


def test_a_softmax_before_all_attention_makes_no_mixer_of_heads():
    """Pooling by weights, with matrices as wide as there are channels on the way (Enformer)."""

    def run(m, x):
        y = m.e(x).mT  # (B, D, T)
        pairs = y[..., : T // 2 * 2].unflatten(-1, (-1, 2))
        weights = torch.einsum("bdtp,de->betp", pairs, m.f).softmax(-1)
        return m.run_attention((pairs * weights).sum(-1).mT)

    model = plain(e=linear(), f=nn.Parameter(torch.eye(D) + 0.1))
    model.run_attention, model.run = lambda y, run=model.run: run(model, y), run
    told = whole(model)
    assert ROLES.items() <= told.items() and "f" not in told


def test_a_matrix_that_keys_and_values_share_absorbs_no_query():
    def run(m, x):
        shared = by_heads(m.e(x), H)
        q, k, v = (by_heads(each(x), H) for each in (m.a, m.b, m.c))
        return m.d(softmax(q, k + shared, v + shared).transpose(1, 2).flatten(2))

    model = plain(e=linear())
    model.run = run
    assert whole(model) == ROLES | {"e.weight": "key"}


def test_attention_without_an_output_matrix_on_raw_inputs():
    def run(m, x):
        x = x + mixed(softmax, m.a(x), m.b(x), m.c(x))
        x = x + m.v(F.gelu(m.w(F.layer_norm(x, (D,)))))  # the mix is in the stream: what reads it is no output matrix
        return plain_run(m, m.e(x))

    model = plain(e=linear(), w=linear(), v=linear(), **{f"{name}2": linear() for name in "abcd"})
    model.run, plain_run = run, lambda m, x: m.d2(mixed(softmax, m.a2(x), m.b2(x), m.c2(x)))
    del model.d
    told = whole(model)
    assert told["w.weight"] == "feed_forward_in" and told["v.weight"] == "feed_forward_out"
    assert [name for name, role in told.items() if role == "output"] == ["d2.weight"]


def test_one_packed_matrix_and_a_single_token():
    def run(m, x):
        q, k, v = (by_heads(each, H) for each in m.a(x).chunk(3, -1))
        return m.d(WAYS["a single token"](q, k, v).transpose(1, 2).flatten(2))

    model = packed()
    model.run = run
    check_rows(model, "a.weight", query=D, key=D, value=D)


def test_branches_in_wrappers_of_one_class_are_no_blocks():
    class Branch(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return x + self.inner(F.layer_norm(x, (D,)))

    inner = [
        nn.Sequential(Branch(plain(landmarks)), Branch(nn.Sequential(linear(), nn.GELU(), linear()))) for _ in "ab"
    ]
    seen = found(nn.Sequential(*inner), X)
    layers = [(entry.weight.layer, entry.weight.n_layers) for entry in seen.entries]
    assert layers == [(1, 2)] * 6 + [(2, 2)] * 6


def test_logits_that_another_module_made():
    """An attention without queries and keys of its own has as many heads as its values (LookViT)."""

    def again(m, y, s):
        return m.d((s.softmax(-1) @ by_heads(m.c(y), H)).transpose(1, 2).flatten(2))

    def run(m, x):
        s = by_heads(m.a(x), H) @ by_heads(m.b(x), H).mT
        return m.second(again(m, x, s), s)

    model = plain(second=Wired(again, c=linear(), d=linear()))
    model.run = run
    mine = [each for each in view(model, inputs=X).entries if each.parameter.startswith("second.")]
    assert [(each.role, each.weight.n_heads) for each in mine] == [("value", H), ("output", H)]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_are_refused_by_name(layout):
    def run(m, x):
        x = torch.nested.nested_tensor([x[0, :3], x[1]], layout=layout)
        return m.d(mixed(softmax, *(torch.nested.to_padded_tensor(each(x), 0.0) for each in (m.a, m.b, m.c))))

    model = plain()
    model.run = run
    with pytest.raises(ValueError, match="give padded ones"):
        found(model, X)
