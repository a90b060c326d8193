"""Models that mislead a listener, one mechanism each; what is right is known because the model was built so."""

import math
from dataclasses import make_dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from attntut.anatomy import view
from attntut.anatomy.view import listen
from attntut.device import seeded
from attntut.init import initialize_
from tests.test_anatomy import DH, IDS, Block, D, H, Model, T, by_heads, found

X = torch.randn(2, T, D, generator=seeded(0))
IMAGE = torch.randn(2, D, 3, 3, generator=seeded(0))
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
    return attend(*(by_heads(each, H) for each in qkv)).transpose(1, 2).flatten(2)


def plain(attend=softmax, **parts) -> Wired:
    """An attention of four matrices."""
    four = {name: linear() for name in "abcd"}
    return Wired(lambda m, x: m.d(mixed(attend, m.a(x), m.b(x), m.c(x))), **four | parts)


def packed(order=(0, 1, 2), between=None, attend=softmax) -> Wired:
    """One matrix: ``order`` says which thirds are query, key and value."""

    def run(m, x):
        thirds = between(m.a(x)) if between else m.a(x)
        return m.d(mixed(attend, *(thirds.narrow(-1, D * i, D) for i in order)))

    return Wired(run, a=linear(3 * D), d=linear(), e=between)


def block(kind=Block) -> Block:
    made = kind()
    made.u = plain()
    return made


def stacked(*attentions) -> Model:
    model = Model(n=len(attentions))
    for each, attention in zip(model.deep, attentions, strict=True):
        each.u = attention
    return model


def roles_of(n: int, prefix: str = "") -> dict[str, str]:
    """The truth of ``stacked`` with ``n`` times ``plain``."""
    one = {f"u.{name}": role for name, role in ROLES.items()} | BRANCH
    deep = {f"deep.{i}.{name}": role for i in range(n) for name, role in one.items()}
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
    seen = {entry.role: entry.view for entry in found(model, x).entries if entry.parameter == name}
    parts = dict(zip(sizes, model.get_parameter(name).detach().split(list(sizes.values())), strict=True))
    assert seen.keys() == parts.keys(), name
    assert not [role for role in parts if not torch.equal(seen[role], parts[role])], f"These have other rows of {name}."


# --- how scores are made


def each_head(q, k, v):
    return torch.stack([softmax(q[:, h], k[:, h], v[:, h]) for h in range(H)], 1)


def half_of_the_heads(q, k, v):
    return torch.cat([softmax(*(each[:, part] for each in (q, k, v))) for part in (slice(2), slice(2, None))], 1)


def sum_of_two(q, k, v):
    return (q[..., :2] @ k[..., :2].mT + q[..., 2:] @ k[..., 2:].mT).softmax(-1) @ v


def keys_by_queries(q, k, v):
    return (k @ q.mT).softmax(-2).mT @ v


def half_precision(q, k, v):
    with torch.autocast("cpu", torch.bfloat16):
        return softmax(q, k, v).float()


WAYS = (each_head, half_of_the_heads, sum_of_two, keys_by_queries, half_precision)


@pytest.mark.parametrize("attend", WAYS, ids=lambda each: each.__name__)
def test_however_scores_are_made(attend):
    model = plain(attend)
    assert whole(model) == ROLES, "Is one call taken for all, or are query and key exchanged?"
    heads = {(entry.weight.n_heads, entry.weight.d_head) for entry in found(model).by_role("query")}
    assert heads == {(H, DH)}, "Heads add up over the calls of one attention; d_head over the terms of one score."


@pytest.mark.parametrize("value", [0.0, math.nan], ids=str)
def test_which_axis_sums_to_one_is_not_read_from_dead_numbers(value):
    model = plain(keys_by_queries)
    nn.init.constant_(model.b.weight, value)
    roles = {entry.parameter: entry.role for entry in found(model).entries}
    assert roles == ROLES, "Where all scores are equal, both axes sum to one: query and key were exchanged."


def test_two_kernels_with_one_value():
    def differential(q, k, v):
        first, second = (F.scaled_dot_product_attention(q[..., i::2], k[..., i::2], v) for i in range(2))
        return first - 0.5 * second

    model, told = plain(differential), {"c.weight": "value", "d.weight": "output"}
    apart = torch.arange(D).view(-1, 2).T.flatten()  # the first kernel reads the even rows of query and key
    for entry, weight in zip(found(model).by_role("query", "key"), (model.a.weight, model.b.weight), strict=True):
        assert torch.equal(entry.view, weight[apart]), f"{entry.role}: each kernel has rows of its own."
        assert (entry.weight.n_heads, entry.weight.d_head) == (2 * H, DH // 2)
    assert whole(model).items() >= told.items(), "Both kernels read one value."


def test_one_key_for_all_heads_by_einsum():
    def run(m, x):
        mix = torch.einsum("bhid,bjd->bhij", by_heads(m.a(x), H), m.b(x)).softmax(-1)
        return m.d(torch.einsum("bhij,bjd->bhid", mix, m.c(x)).transpose(1, 2).flatten(2))

    model = Wired(run, a=linear(), b=linear(DH), c=linear(DH), d=linear())
    assert whole(model) == ROLES
    query = found(model).by_role("query")[0].weight
    assert (query.n_heads, query.d_head) == (H, DH), "einsum folds the heads into rows; they are still heads."


def test_a_table_of_distances_is_no_key():
    table = nn.Embedding(2 * T - 1, DH)

    def attend(q, k, v):
        distance = table(torch.arange(T)[:, None] - torch.arange(T) + T - 1)
        return (torch.einsum("bhid,ijd->bhij", q, distance) + q @ k.mT).softmax(-1) @ v

    told = whole(plain(attend, e=table))
    assert told == ROLES | {"e.weight": "position"}, "The first product in a sum of scores need not hold the keys."


def test_scores_that_are_added_from_layer_to_layer():
    def run(m, x):
        scores = 0
        for each in m.deep:
            scores = scores + by_heads(each.a(x), H) @ by_heads(each.b(x), H).mT
            x = x + each.d((scores.softmax(-1) @ by_heads(each.c(x), H)).transpose(1, 2).flatten(2))
        return x

    expected = {f"deep.{i}.{name}": role for i in range(2) for name, role in ROLES.items()}
    told = whole(Wired(run, deep=nn.ModuleList([plain(), plain()])))
    assert told == expected, "The second softmax reads the first layer's query and key, too."


# --- weights through which nothing flows


@pytest.mark.parametrize("value", [0.0, math.nan, 1e38], ids=str)
def test_dead_weights_are_heard_and_put_back(value):
    norm = nn.RMSNorm(DH)
    model = plain(lambda q, k, v: softmax(norm(q), norm(k), v), n=norm)
    for each in model.parameters():
        nn.init.constant_(each, value)
    seen = found(model)
    assert {entry.parameter: entry.role for entry in seen.entries} == ROLES, "What to_empty leaves hides no role."
    assert seen.by_role("query")[0].weight.n_heads == H and seen.traits["qk_norm"]
    for each in model.parameters():  # listening lends numbers, and takes them back
        torch.testing.assert_close(each.data, torch.full_like(each, value), rtol=0, atol=0, equal_nan=True)


def test_a_factor_of_zero_hides_no_query():
    factor = nn.Parameter(torch.zeros(DH))
    assert whole(plain(lambda q, k, v: softmax(q * factor, k, v), s=factor)) == ROLES and (factor == 0).all()


# --- where matrices lie


def test_parameters_that_are_views_of_one_buffer():
    model = stacked(plain(), plain())
    parameters, gaps, start = list(model.parameters()), [], 0
    flat = torch.full((sum(each.numel() + 1 for each in parameters),), 7.0)
    for each in parameters:  # behind each stands one number that is nobody's
        each.data = flat[start : start + each.numel()].view(each.shape)
        gaps.append(start + each.numel())
        start = gaps[-1] + 1
    initialize_(model, "gpt2", inputs=IDS, generator=seeded(0))
    left = (flat == 7).nonzero().flatten().tolist()
    assert set(gaps) <= set(left), "Something was written beside the parameters."
    assert left == gaps, "Not drawn: a parameter was taken for a part of another, for they share memory."


def test_siblings_of_one_class_may_pack_in_another_order():
    model = stacked(packed((0, 1, 2)), packed((2, 1, 0)))
    check_rows(model, "deep.0.u.a.weight", IDS, query=D, key=D, value=D)
    check_rows(model, "deep.1.u.a.weight", IDS, value=D, key=D, query=D)


class Depthwise(nn.Conv1d):
    """A filter over time for each channel: it mixes no channels."""

    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x):
        return super().forward(x.mT).mT


def test_a_depthwise_convolution_is_heard_through():
    model = packed(between=Depthwise(3 * D))
    check_rows(model, "a.weight", query=D, key=D, value=D)
    assert {entry.weight.d_model for entry in found(model).entries} == {D}, (
        "The filter has 3 · D channels, the stream D."
    )
    model = plain(e=Depthwise(D))
    model.run = lambda m, x: m.d(mixed(softmax, m.a(x), m.b(x), m.c(x)) + m.e(m.c(x)))
    assert whole(model).items() >= ROLES.items(), "What is added to the mix leaves the output its role."


def test_attention_and_feed_forward_read_with_one_matrix():
    def run(m, x):
        *qkv, inner = m.a(m.n(x)).split([D, D, D, 2 * D], -1)
        return x + m.d(mixed(softmax, *qkv)) + m.v(F.gelu(inner))

    parts = [dict(n=nn.LayerNorm(D), a=linear(5 * D), d=linear(), v=linear(D, 2 * D)) for _ in range(2)]
    model = nn.Sequential(*(Wired(run, **each) for each in parts))
    for i in range(2):
        check_rows(model, f"{i}.a.weight", query=D, key=D, value=D, feed_forward_in=2 * D)
        assert whole(model)[f"{i}.v.weight"] == "feed_forward_out"


class ChannelNorm(Wired):
    def __init__(self):
        super().__init__(None, g=nn.Parameter(torch.ones(1, D, 1, 1)), h=nn.Parameter(torch.zeros(1, D, 1, 1)))

    def forward(self, x):
        return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt() * self.g + self.h


def pixels() -> Wired:
    """Attention over an image by convolutions of width 1, with a temperature for each head."""

    def run(m, x):
        q, k, v = (each(m.n(x)).flatten(2).unflatten(1, (H, DH)).mT for each in (m.a, m.b, m.c))
        return x + m.d(softmax(q * m.t.exp(), k, v).mT.flatten(1, 2).unflatten(-1, x.shape[2:]))

    four = {name: nn.Conv2d(D, D, 1, bias=False) for name in "abcd"}
    return Wired(run, n=ChannelNorm(), t=nn.Parameter(torch.zeros(H, 1, 1)), **four)


@pytest.mark.parametrize("channels", [7, 2 * D])
def test_what_lies_otherwise_in_models_of_images(channels):
    model = nn.Sequential(pixels(), nn.ConvTranspose2d(D, channels, 2, 2, bias=False))
    nn.init.constant_(model[1].weight, 7.0)
    initialize_(model, "xavier_normal", inputs=IMAGE, generator=seeded(0))
    assert not (model[1].weight == 7).any(), "A transposed convolution is stored (fan_in, fan_out, …)."
    assert (model[0].n.g == 1).all() and (model[0].n.h == 0).all(), "(1, D, 1, 1) in a norm is its scale or shift."
    assert (model[0].t == 0).all(), "A temperature (heads, 1, 1) is a factor: left as it is."


# --- how deep a model is


class Other(Block):
    """The same under another class."""


def head_by_head() -> Wired:
    """A list of heads inside of an attention: no layers."""
    each = nn.ModuleList([nn.ModuleList([linear(DH) for _ in range(3)]) for _ in range(H)])
    return Wired(
        lambda m, x: m.d(torch.cat([softmax(*(f(x) for f in head)) for head in m.each], -1)), each=each, d=linear()
    )


DEEP = {
    "classes alternate": (lambda: nn.Sequential(*map(block, (Other, Block, Other, Block))), 4),
    "the first is of another class": (lambda: nn.Sequential(*map(block, (Other, Block, Block))), 3),
    "attributes": (lambda: Wired(lambda m, x: m.z(m.y(m.x(x))), x=block(), y=block(), z=block()), 3),
    "a list of heads in each": (lambda: nn.Sequential(*(head_by_head() for _ in range(3))), 3),
    "one block behind a linear map": (lambda: nn.Sequential(linear(), block()), 1),
}


@pytest.mark.parametrize("name", DEEP)
def test_depth_is_counted_along_the_pass(name):
    build, n = DEEP[name]
    branch = found(build()).by_role("query", "key", "value", "output", *BRANCH.values())
    assert {entry.weight.n_layers for entry in branch} == {n}, "Depth is what is passed, not how modules are kept."
    assert {entry.weight.layer for entry in branch} == set(range(1, n + 1))


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


# --- what listening leaves as it was, and what is refused


class CentredNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(D))

    def forward(self, x):
        return F.rms_norm(x, (D,)) * (1 + self.weight)


def test_a_norm_to_whose_weight_one_is_added_starts_at_zero():
    model = stacked(plain(), plain())
    for each in model.deep:
        each.n = CentredNorm()
        nn.init.ones_(each.n.weight) if each is model.deep[0] else nn.init.zeros_(each.m.weight)
    initialize_(model, "xavier_normal", inputs=IDS, generator=seeded(0))
    assert all((each.n.weight == 0).all() for each in model.deep), "1 + weight: a weight of 1 doubles the stream."
    assert all((each.m.weight == 1).all() for each in model.deep), "torch's own starts at 1."


def test_train_that_is_overridden_is_not_called():
    class Merging(nn.Linear):
        def train(self, mode=True):
            self.weight.data += 1  # as an adapter is merged
            return super().train(mode)

    model = plain(a=Merging(D, D, bias=False))
    before = model.a.weight.detach().clone()
    listen(model, X)
    assert torch.equal(model.a.weight, before) and model.a.training


def test_a_cache_that_is_written_in_place():
    def attend(q, k, v):
        model.kept[0], model.kept[1] = k, v
        return softmax(q, *model.kept)

    model = plain(attend)
    model.register_buffer("kept", torch.zeros(2, 2, H, T, DH))
    for time in ("first", "second"):
        assert whole(model) == ROLES, f"Heard for the {time} time."
        assert not model.kept.requires_grad and (model.kept == 0).all(), "The buffer is as it was, without a graph."


def test_what_is_changed_in_place_behind_a_norm_is_refused_by_name():
    norm = nn.RMSNorm(DH)

    def attend(q, k, v):
        q, k = norm(q), norm(k)
        return softmax(q, k, v.mul_(0.5))

    with pytest.raises(ValueError, match=r"What a\.weight feeds cannot be traced.*changed in place"):
        view(packed(attend=attend), inputs=X)


def test_what_the_inputs_do_not_reach_is_refused_and_not_drawn():
    def run(m, x, y=None):
        return m.p(x) if y is None else (m.p(x), m.q(y))

    model = Wired(run, p=stacked(plain(), plain()), q=stacked(plain(), plain()))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"none is known for q\..*roles="):
        initialize_(model, "xavier_normal", inputs=IDS)
    assert all(torch.equal(before[name], each) for name, each in model.state_dict().items())
    assert whole(model, (IDS, IDS)) == roles_of(2, "p.") | roles_of(2, "q."), "Both inputs reach both."


OUTPUTS = {
    "a dataclass": make_dataclass("Output", ["logits"]),
    "what was chosen": lambda y: y.argmax(-1),
    "an array": lambda y: y.detach().numpy(),
    "a number": lambda y: y.sum().item(),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_whatever_the_model_returns(name):
    model = Wired(lambda m, x: OUTPUTS[name](m.p(x)), p=stacked(plain(), plain()))
    assert whole(model, IDS) == roles_of(2, "p."), "The graph ends before the output: is the end of the model lost?"


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_scripted_part_is_heard():
    scripted = [torch.jit.script(nn.Sequential(linear(2 * D), nn.ReLU(), linear(D, 2 * D))) for _ in range(2)]
    model = nn.Sequential(*(Wired(lambda m, x: m.f(x + m.u(x)) + x, u=plain(), f=each) for each in scripted))
    told = {f"u.{name}": role for name, role in ROLES.items()}
    told |= {"f.0.weight": "feed_forward_in", "f.2.weight": "feed_forward_out"}
    assert whole(model) == {f"{i}.{name}": role for i in range(2) for name, role in told.items()}


def test_compiled_blocks_are_heard_without_compiling():
    compiled, model = [], stacked(plain(), plain())
    for each in model.deep:
        each.compile(backend=lambda graph, _: compiled.append(graph) or graph.forward)
    assert whole(model, IDS) == roles_of(2), "A compiled block is one node of the graph, unless it runs eagerly."
    assert not compiled


def test_a_sharded_model_is_refused_and_stays_sharded():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(stacked(plain()), mesh=init_device_mesh("cpu", (1,)))
        before = {name: each.full_tensor().clone() for name, each in model.named_parameters()}
        with pytest.raises(ValueError, match=r"plain tensors.*words\.weight \(DTensor\)"):
            initialize_(model, "xavier_normal", inputs=IDS)
        after = dict(model.named_parameters())
        assert {type(each.data).__name__ for each in after.values()} == {"DTensor"}, "Listening left it gathered."
        assert all(torch.equal(before[name], each.full_tensor()) for name, each in after.items())
    finally:
        dist.destroy_process_group()
