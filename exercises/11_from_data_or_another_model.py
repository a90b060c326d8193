"""Exercises of chapter 11, *From data, or from another model*."""

import functools
import math

import torch
from torch import Tensor, nn

from attntut.measure import participation, token_cosine
from exercises.exercise import Choice, Code, Explain, Mend, Number

foreign_adapters = Choice(
    number="11.1",
    title="Adapters from elsewhere",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("From another model: low-rank adapters",),
    statement=(
        "Somebody adapts a model with PiSSA, $\\alpha = r$, and publishes the trained $A$ and $B$. They are near their start, "
        "$A_0$ and $B_0$. You put them beside the matrix $W$ that you downloaded from the model's authors. What does the "
        "layer multiply its tokens by?"
    ),
    hint="What did the layer of that somebody hold in the place of $W$ while it was trained?",
    options={
        "$W$, because every start of LoRA is the same function": (
            "It is, with the frozen matrix that belongs to the start. Is $W$ the one that PiSSA freezes?"
        ),
        "about $W$, with the little that was learned added": (
            "That is what somebody's layer does. What stands beside $BA$ there, and what beside yours?"
        ),
        "about $W + B_0 A_0$: the largest directions of $W$ count twice": "",
        "about $W - B_0 A_0$: the largest directions of $W$ are missing": (
            "That is the frozen matrix of somebody's layer. Which have you, and what is added to it?"
        ),
        "about $2W$": "How many of the directions of $W$ are in $B_0 A_0$, if its rank is $r$?",
        "about $B_0 A_0$, because the rest is frozen": "Is what is frozen left out of the sum, or only not trained?",
    },
)

other_tokens = Number(
    number="11.2",
    title="Looked at noise",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("What the average over the tokens leaves",),
    statement=(
        "A layer of attention reads sequences of <<n>> tokens. Its attention is uniform, and its values have variance 1. You run LSUV with a batch of noise, "
        "whose values have a token cosine of $\\rho = $ <<noise>>. Which $\\sigma_o\\sqrt d$ does it choose? With your data "
        "$\\rho$ is <<data>>, still with variance 1. Which *variance* does the layer write then? Answer with two numbers."
    ),
    hint="What does the average leave of the values of noise, and what of those of your data?",
    starter="answer = (..., ...)  # σ_o√d, variance with your data",
    parameters={"n": (16, 64, 25, 100), "noise": (0.1, 0.05, 0.2), "data": (0.5, 0.8, 0.6)},
    solve=lambda n, noise, data: (1 / math.sqrt(left(noise, n)), left(data, n) / left(noise, n)),
    traps={
        "Is that the standard deviation of $W_o$ times $\\sqrt d$, or its square?": (
            lambda n, noise, data: (1 / left(noise, n), left(data, n) / left(noise, n))
        ),
        "The first is right. Is the second the variance, or the standard deviation?": (
            lambda n, noise, data: (1 / math.sqrt(left(noise, n)), math.sqrt(left(data, n) / left(noise, n)))
        ),
        "Do you multiply by what the average leaves, or divide by it?": (
            lambda n, noise, data: (math.sqrt(left(noise, n)), left(data, n) * left(noise, n))
        ),
        "What does the average leave of what the tokens share?": (
            lambda n, noise, data: (math.sqrt(n / (1 - noise)), (1 - data) / (1 - noise))
        ),
        "That is right where the average takes nothing away. What does it take of the part that tokens do not share?": (
            lambda n, noise, data: (1.0, 1.0)
        ),
        "How large is $\\sum_j p_{ij}^2$ of uniform attention: the root of 1/n, or 1/n?": (
            lambda n, noise, data: (1 / math.sqrt(left(noise, math.sqrt(n))), left(data, math.sqrt(n)) / left(noise, math.sqrt(n)))
        ),
        "The first is what LSUV would choose with your data. With which batch did it run?": (
            lambda n, noise, data: (1 / math.sqrt(left(data, n)), left(noise, n) / left(data, n))
        ),
        "The first is right. What is written with $\\sigma_o\\sqrt d$ as it was chosen, and not as it would be?": (
            lambda n, noise, data: (1 / math.sqrt(left(noise, n)), left(data, n))
        ),
        "That is right for noise whose values have nothing in common. Which ρ have they here?": (
            lambda n, noise, data: (math.sqrt(n), left(data, n) * n)
        ),
    },
    ask="What is $\\rho + (1 - \\rho)P$ for each of the two batches, with the $P$ of uniform attention?",
)  # fmt: skip


def left(rho: float, n: float) -> float:
    """Variance of an even average over values of variance 1."""
    return rho + (1 - rho) / n


other_rate = Number(
    number="11.3",
    title="A rate that carries over",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("What the first step changes",),
    statement=(
        "You tuned the learning rate for `peft`'s default start, with rank <<r>> at width $d = $ <<d>>. Now you change three things: the "
        "start is \"gaussian\", the rank <<rank>>, and the width <<width>>. $\\alpha$ is 16 both times. By "
        "what must you multiply the rate, so that Adam's first step changes $W$ by the same root mean square?"
    ),
    hint="$\\Delta W = \\frac{\\alpha}{r}\\,\\Delta B\\,A$. The chapter's formula is for $\\alpha = r$. What stands before it otherwise?",
    parameters={"r": (8, 4, 16), "d": (2048, 1024, 512, 256), "rank": (32, 128), "width": (4096, 8192)},
    solve=lambda r, d, rank, width: default_step(r, d) / r / (rank**-0.5 / rank),
    traps={
        "That is right for $\\alpha = r$. What does $\\alpha/r$ become, when the rank changes and $\\alpha$ does not?": (
            lambda r, d, rank, width: default_step(r, d) * math.sqrt(rank)
        ),
        "If the new step is longer, must the rate be larger or smaller?": (
            lambda r, d, rank, width: (rank**-0.5 / rank) / (default_step(r, d) / r)
        ),
        "That is the default again. Which variance has the $A$ of the gaussian start?": (
            lambda r, d, rank, width: default_step(r, d) / r / (default_step(rank, width) / rank)
        ),
        "Is 1/r the variance of the gaussian start, or its standard deviation?": (
            lambda r, d, rank, width: default_step(r, d) / r / (1 / rank)
        ),
        "The default is uniform between $\\pm 1/\\sqrt d$. Which variance has that?": (
            lambda r, d, rank, width: math.sqrt(3) * default_step(r, d) / r / (rank**-0.5 / rank)
        ),
        "Does the factor $\\alpha/r$ make the step longer for a larger rank, or shorter?": (
            lambda r, d, rank, width: default_step(r, d) * r / (rank**-0.5 * rank)
        ),
        "To which of the two starts does the width matter, and which width was that?": (
            lambda r, d, rank, width: default_step(r, width) / r / (rank**-0.5 / rank)
        ),
        "Is the root mean square asked for, or the mean square?": (
            lambda r, d, rank, width: (default_step(r, d) / r / (rank**-0.5 / rank)) ** 2
        ),
    },
    ask="How long is the first step of each start, with the factor $\\alpha/r$ before it, and what is their ratio?",
)  # fmt: skip


def default_step(r: float, d: float) -> float:
    """RMS(ΔW)/η of the default, with α = r."""
    return math.sqrt(r / (3 * d))


def looked_at(W_q, W_k, W_v, W_o, x, n_heads):
    W_q, W_k, W_v = (W / (x @ W.mT).std() for W in (W_q, W_k, W_v))
    q, k, v = ((x @ W.mT).unflatten(-1, (n_heads, -1)).transpose(1, 2) for W in (W_q, W_k, W_v))
    weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
    mix = (weights @ v).transpose(1, 2).flatten(2)
    return W_q, W_k, W_v, W_o / (mix @ W_o.mT).std()


def written(W_q, W_k, W_v, W_o, x, n_heads, root=None, even=False) -> Tensor:
    """What the output projection writes."""
    q, k, v = ((x @ W.mT).unflatten(-1, (n_heads, -1)).transpose(1, 2) for W in (W_q, W_k, W_v))
    logits = q @ k.mT / (root or math.sqrt(q.shape[-1]))
    weights = torch.softmax(0 * logits if even else logits, dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2) @ W_o.mT


def looked(size=lambda y: y.std(), first="qkv", **options):
    """As the solution, with another size, another order, or another attention."""

    def answer(W_q, W_k, W_v, W_o, x, n_heads):
        old = dict(q=W_q, k=W_k, v=W_v)
        new = {role: W / size(x @ W.mT) for role, W in old.items()}
        seen = [new[role] if role in first else old[role] for role in old]
        return *new.values(), W_o / size(written(*seen, W_o, x, n_heads, **options))

    return answer


def heads_mixed(W_q, W_k, W_v, W_o, x, n_heads):
    """All heads as one."""
    return looked()(W_q, W_k, W_v, W_o, x, 1)


def on_tokens(W_q, W_k, W_v, W_o, x, n_heads):
    """Every matrix as if it read the tokens; the values in place of their averages."""
    W_q, W_k, W_v = (W / (x @ W.mT).std() for W in (W_q, W_k, W_v))
    return W_q, W_k, W_v, W_o / (x @ W_v.mT @ W_o.mT).std()


def written_over_read(W_q, W_k, W_v, W_o, x, n_heads):
    """What turns a division by what the output writes into one by what it reads."""
    seen = looked_at(W_q, W_k, W_v, W_o, x, n_heads)[:3]
    read = written(*seen, torch.eye(W_o.shape[1]), x, n_heads)
    return written(*seen, W_o, x, n_heads).std() / read.std()


def by_shape(*case):
    """What needs no batch."""
    return tuple(W / (W.std() * W.shape[1] ** 0.5) for W in case[:4])


def by_row(W_q, W_k, W_v, W_o, x, n_heads):
    """One number an output channel."""
    *three, W_o = looked()(W_q, W_k, W_v, W_o, x, n_heads)
    return *(W / (x @ W.mT).std(dim=(0, 1))[:, None] for W in three), W_o


def looked_cases(seed: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for n_heads, d_head, d, B, T in ((1, 5, 7, 2, 4), (2, 3, 5, 2, 4), (3, 4, 8, 2, 6)):
        inner = n_heads * d_head
        shapes = ((inner, d), (inner, d), (inner, d), (d, inner))
        weights = [
            size * (0.2 + torch.randn(shape, generator=generator))
            for size, shape in zip((1.1, 0.8, 0.5, 0.7), shapes, strict=True)
        ]
        uneven = torch.arange(1.0, n_heads + 1).repeat_interleave(d_head)[:, None]
        weights = [
            uneven * W if i in (0, 2) else W for i, W in enumerate(weights)
        ]  # so that it matters which are a head
        x = 0.8 + torch.randn(B, T, d, generator=generator) + 0.5 * torch.randn(B, 1, d, generator=generator)
        cases.append((*weights, x, n_heads))
    return cases


def factors_found(answer, *case):
    weights = case[:4]
    got = answer(*(W.clone() for W in weights), *case[4:])
    if not isinstance(got, (tuple, list)) or not all(isinstance(W, torch.Tensor) for W in got):
        return None
    shapes = [list(W.shape) for W in got]
    if shapes != [list(V.shape) for V in weights]:
        return shapes
    found = []
    for W, V in zip(got, weights, strict=True):
        factor = (W * V).sum() / V.square().sum()
        found.append((factor.item(), ((W - factor * V).norm() / W.norm()).item()))
    return found


def judge_looked(case, got, want):
    *weights, x, n_heads = case
    assert isinstance(got, list) and len(got) == 4, "Are these four matrices, those of query, key, value and output?"
    assert all(isinstance(pair, tuple) for pair in got), "Which shape had each matrix before it was divided?"
    assert all(math.isfinite(y) for pair in got for y in pair), (
        "A matrix holds something that is no number. By what did you divide?"
    )
    assert max(beside for _, beside in got) < 1e-3, (
        "A matrix is no longer a multiple of what it was. By how many numbers does LSUV divide a matrix?"
    )
    factors, right = ([factor for factor, _ in pairs] for pairs in (got, want))

    def near(factor, wanted, n=None):
        n = n or x.numel()
        return any(abs(factor / wanted / one - 1) < 2e-4 for one in (1, (n / (n - 1)) ** 0.5))  # with n or n - 1

    names = ("query", "key", "value", "output")
    for name, V, factor, wanted in zip(names[:3], weights[:3], factors[:3], right[:3], strict=True):
        y = x @ V.mT
        if near(factor, wanted, y.numel()):
            continue
        assert not near(factor, 1), (
            f"The matrix of the {name} is as it was. Does your function return what it has divided?"
        )
        assert not near(factor, wanted**2, y.numel()), (
            "Do you divide by the variance of what a matrix writes, or by its root?"
        )
        assert not near(factor, 1 / wanted, y.numel()), "If a matrix writes too much, must it become larger or smaller?"
        assert not near(factor, 1 / y.square().mean().sqrt().item()), (
            "These tokens have something in common, so what is written has a mean. Does a standard deviation count it?"
        )
        assert not near(factor, 1 / (V.std().item() * V.shape[1] ** 0.5)), (
            "That knows the matrix, and not the batch. What does the matrix write when it reads these tokens?"
        )
        raise AssertionError(
            f"What is the standard deviation of all that the {name} writes, over sequences, tokens and channels together?"
        )

    def mixed(q, k, v, heads, root=None):
        q, k, v = ((x @ W.mT).unflatten(-1, (heads, -1)).transpose(1, 2) for W in (q, k, v))
        weights = torch.softmax(q @ k.mT / (root or q.shape[-1] ** 0.5), dim=-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def by(mix, W=weights[3]):
        return 1 / (mix @ W.mT).std().item()

    q, k, v = seen = [factor * V for factor, V in zip(factors[:3], weights[:3], strict=True)]
    got, wanted = factors[3], by(mixed(*seen, n_heads))
    if near(got, wanted):
        return
    assert not near(got, 1), "The output is as it was. Does your function return what it has divided?"
    assert not any(
        near(got, by(mixed(*some, n_heads))) for some in (weights[:3], (*weights[:2], v), (q, k, weights[2]))
    ), (
        "Query, key and value are right. Which of their matrices stand before the output when you measure it: those that you "
        "got, or those that you have divided?"
    )
    assert not near(got, by(x @ v.mT)), "Does the output projection read the values, or their averages?"
    assert not near(got, by(mixed(*seen, n_heads), torch.eye(len(v)))), (
        "That is what the output projection reads. What does it write?"
    )
    assert not near(got, wanted**2), "Do you divide by the variance of what the output writes, or by its root?"
    assert not any(near(got, by(mixed(*seen, n_heads, root))) for root in (1, x.shape[-1] ** 0.5)), (
        "By what are the logits divided before the softmax, and how wide is what one head multiplies?"
    )
    assert not near(got, by(mixed(*seen, n_heads, math.inf))), (
        "That is right for uniform attention. Which weights have these queries and keys?"
    )
    assert n_heads == 1, (
        "Query, key and value are right, and with one head the output is, too. Which channels belong to which head, and where "
        "do they stand when the heads come together?"
    )
    raise AssertionError(
        "Query, key and value are right. What does the output projection read when every token may see all, and what does it "
        "write?"
    )


lsuv_code = Code(
    number="11.4",
    title="First to last",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("From data: LSUV", "11.2"),
    statement=(
        "Write one round of LSUV for a layer of attention without biases: `looked_at(W_q, W_k, W_v, W_o, x, n_heads)` returns "
        "the four matrices, each divided by the standard deviation of what it writes, over all sequences, tokens and channels. "
        "Go from first to last. The batch `x` is `(B, T, d_model)`. Query, key and value are `(n_heads * d_head, d_model)`, with the "
        "heads one below the other; the output is `(d_model, n_heads * d_head)`, and `d_head` need not be `d_model / "
        "n_heads`. Attention has no mask, and divides its logits by $\\sqrt{d_h}$. The matrices are drawn already, and need not be orthogonal."
    ),
    hint="What does the output projection read? And which queries, keys and values will the layer have when it is done?",
    name="looked_at",
    starter="def looked_at(W_q, W_k, W_v, W_o, x, n_heads):\n    ...",
    make=looked_cases,
    ask=factors_found,
    compare=judge_looked,
    solution=looked_at,
    wrong={
        "all at once": (looked(first=""), "those that you have divided"),
        "values only": (looked(first="v"), "those that you have divided"),
        "queries and keys only": (looked(first="qk"), "those that you have divided"),
        "variance": (looked(size=lambda y: y.var()), "or by its root"),
        "multiplied": (looked(size=lambda y: 1 / y.std()), "larger or smaller"),
        "root mean square": (looked(size=lambda y: y.square().mean().sqrt()), "something in common"),
        "each token": (looked(size=lambda y: y.std(dim=-1).mean()), "channels together"),
        "each channel": (by_row, "By how many numbers"),
        "no root": (looked(root=1.0), "before the softmax"),
        "root of d_model": (lambda *case: looked(root=case[4].shape[-1] ** 0.5)(*case), "how wide"),
        "what the output reads": (
            lambda *case: (*looked_at(*case)[:3], looked_at(*case)[3] * written_over_read(*case)), "What does it write"),
        "uniform": (looked(even=True), "Which weights"),
        "one head": (heads_mixed, "belong to which head"),
        "values, not averages": (on_tokens, "or their averages"),
        "from the shape": (by_shape, "not the batch"),
        "nothing": (lambda *case: case[:4], "as it was"),
        "three matrices": (lambda *case: looked_at(*case)[:3], "four matrices"),
    },
)  # fmt: skip


def turned_mean(W_q, W_k, n_heads, n_kv_heads):
    query, key = (W.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)) for W in (W_q, W_k))
    U, _, Vh = torch.linalg.svd(key[:, :1] @ key.mT)
    turn = U @ Vh
    return (turn @ query).flatten(0, 2), (turn @ key).mean(dim=1).flatten(0, 1)


def turned(towards=None, rotation=None, groups=None, queries=None, pool=None):
    """As the solution, with one step replaced."""

    def answer(W_q, W_k, n_heads, n_kv_heads):
        group = groups or (lambda W, n, g: W.unflatten(0, (n, g, -1)))
        query, key = (group(W, n_kv_heads, n_heads // n_kv_heads) for W in (W_q, W_k))
        aim = (towards or (lambda key: key[:, :1]))(key)
        U, _, Vh = torch.linalg.svd(aim @ key.mT)
        turn = (rotation or (lambda U, Vh: U @ Vh))(U, Vh)
        new = (queries or (lambda turn, query: turn @ query))(turn, query)
        return new.flatten(0, 2), (pool or (lambda key: key.mean(dim=1)))(turn @ key).flatten(0, 1)

    return answer


def no_mirror(U: Tensor, Vh: Tensor) -> Tensor:
    """Kabsch's rotation, whose determinant is 1."""
    sign = torch.linalg.det(U @ Vh)
    last = torch.cat([torch.ones(*sign.shape, U.shape[-1] - 1), sign[..., None]], dim=-1)
    return U * last[..., None, :] @ Vh


def every_other(W: Tensor, n: int, g: int) -> Tensor:
    """Heads 1, 1 + n, … as a group, in place of neighbours."""
    return W.unflatten(0, (g, n, -1)).transpose(0, 1)


def turned_one_after_another(W_q, W_k, n_heads, n_kv_heads):
    """Each head towards the one before it."""
    g = n_heads // n_kv_heads
    query, key = (W.unflatten(0, (n_kv_heads, g, -1)).clone() for W in (W_q, W_k))
    for h in range(1, g):
        old = W_k.unflatten(0, (n_kv_heads, g, -1))
        U, _, Vh = torch.linalg.svd(old[:, h - 1] @ old[:, h].mT)
        query[:, h], key[:, h] = U @ Vh @ query[:, h], U @ Vh @ key[:, h]
    return query.flatten(0, 2), key.mean(dim=1).flatten(0, 1)


def unturned(W_q, W_k, n_heads, n_kv_heads):
    return W_q, W_k.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)).mean(dim=1).flatten(0, 1)


def in_the_model(W_q, W_k, n_heads, n_kv_heads):
    """Turned in the width of the model, not in that of a head."""
    query, key = (W.unflatten(0, (n_kv_heads, n_heads // n_kv_heads, -1)) for W in (W_q, W_k))
    U, _, Vh = torch.linalg.svd(key.mT @ key[:, :1])
    turn = U @ Vh
    return (query @ turn).flatten(0, 2), (key @ turn).mean(dim=1).flatten(0, 1)


def turned_cases(seed: int) -> list[tuple[Tensor, Tensor, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (*(torch.randn(n_heads * d_head, d, generator=generator) for _ in range(2)), n_heads, n_kv)
        for n_heads, n_kv, d_head, d in ((2, 1, 3, 5), (6, 2, 3, 7), (8, 4, 2, 6))
    ]


def judge_turned(case, got, want):
    W_q, W_k, n_heads, n_kv_heads = case
    assert isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(W, torch.Tensor) for W in got), (
        "Are these two matrices, of the queries and of the keys?"
    )
    query, key = got
    assert query.shape == W_q.shape, "Every head keeps its own queries. Which shape has their matrix?"
    assert key.shape == want[1].shape, "The heads of a group share one key head. How many rows are that?"
    assert query.isfinite().all() and key.isfinite().all(), (
        "A matrix holds something that is no number. From which step?"
    )
    query, key = query.to(W_q.dtype), key.to(W_k.dtype)

    def same(a, b):
        return torch.allclose(a, b, rtol=1e-3, atol=1e-3)

    if same(query, want[0]) and same(key, want[1]):
        return
    g = n_heads // n_kv_heads

    def heads(W):
        return W.unflatten(0, (n_heads, -1))

    old = W_k.unflatten(0, (n_kv_heads, g, -1))
    size = (key.norm() / want[1].norm()).item()
    assert not same(key, g * want[1]), "Is the shared key head the sum of the turned ones, or their mean?"
    assert not same(key, old.mean(dim=1).flatten(0, 1)), (
        "That is the mean of the heads as they were. Which were turned first?"
    )
    assert not same(key, old[:, 0].flatten(0, 1)), (
        "That is the first head of each group. What do the others give to the mean?"
    )
    if same(key, want[1]):
        assert not same(query, W_q), (
            "The keys are right, and the queries are as they were. Are a head's logits still the same, if only its keys turn?"
        )
        raise AssertionError(
            "The keys are right. By which matrix must a head's queries be multiplied, if its keys are by R and qᵀk is to stay?"
        )
    grams = [W.mT @ W for W in (heads(query), heads(W_q))]
    if n_kv_heads == 1:
        assert same(*grams), (
            "A rotation of the basis of a head keeps the length of what its query makes of any token. Does yours, and on "
            "which side of W does it stand?"
        )
        turn = heads(query) @ torch.linalg.pinv(heads(W_q))
        assert not same(turn.mT, heads(want[0]) @ torch.linalg.pinv(heads(W_q))), (
            "You turn by the transpose of what is needed. Of W₁W_hᵀ = UΣVᵀ, which product brings W_h to W₁?"
        )
        assert same(turn[0], torch.eye(len(turn[0]))), (
            "Which head do the others turn to, and does that one turn itself?"
        )
        raise AssertionError(
            "Which orthogonal R makes |R W_h − W₁| least? May it be a reflection, too?"
            if size < 1
            else "Which orthogonal R makes |R W_h − W₁| least?"
        )
    assert same(heads(query)[::g], heads(W_q)[::g]), (
        "Two heads are right, more are not. Which heads make a group, and to which of them do the others turn?"
    )
    raise AssertionError(
        "Two heads are right. Does every head of a group turn to its first, and as that one was before?"
    )


turn_code = Code(
    number="11.5",
    title="Turn, then average",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("From another model: fewer key heads",),
    statement=(
        "Give the heads of a group one key head, after turning them towards each other. Write `turned_mean(W_q, W_k, n_heads, "
        "n_kv_heads)`. Both matrices are `(n_heads * d_head, d_model)`, with the heads one below the other, and neighbours make a "
        "group. For every head find the orthogonal $R$, of shape `(d_head, d_head)`, that brings $R W_h$ as near as can be "
        "to $W_1$, the key matrix of the first head of its group, in Frobenius norm. Turn its keys and its queries, so that its "
        "logits stay as they were. Then take the mean of the turned keys in each group. Return the turned queries, "
        "`(n_heads * d_head, d_model)`, and the shared keys, `(n_kv_heads * d_head, d_model)`."
    ),
    hint=(
        "$\\lVert R W_h - W_1\\rVert^2$ is least where $\\operatorname{tr}(R\\,W_h W_1^\\top)$ is largest. Write $W_1 W_h^\\top "
        "= U \\Sigma V^\\top$ (`torch.linalg.svd`). Which orthogonal $R$ makes a trace of $\\Sigma$?"
    ),
    name="turned_mean",
    starter="def turned_mean(W_q, W_k, n_heads, n_kv_heads):\n    ...",
    forbidden=frozenset({"align_heads_", "orthogonal_procrustes"}),
    make=turned_cases,
    compare=judge_turned,
    solution=turned_mean,
    wrong={
        "no turn": (unturned, "as they were. Which were turned"),
        "queries not turned": (turned(queries=lambda turn, query: query), "if only its keys turn"),
        "queries turned back": (turned(queries=lambda turn, query: turn.mT @ query), "to stay"),
        "the transpose": (turned(rotation=lambda U, Vh: (U @ Vh).mT), "by the transpose"),
        "the sum": (turned(pool=lambda key: key.sum(dim=1)), "or their mean"),
        "the first head": (turned(pool=lambda key: key[:, 0]), "give to the mean"),
        "to the last": (turned(towards=lambda key: key[:, -1:]), "does that one turn itself"),
        "to the mean": (turned(towards=lambda key: key.mean(dim=1, keepdim=True)), "does that one turn itself"),
        "U alone": (turned(rotation=lambda U, Vh: U), "does that one turn itself"),
        "every other head": (turned(groups=every_other), "make a group"),
        "to the one before": (turned_one_after_another, "as that one was before"),
        "in the width of the model": (in_the_model, "on which side"),
        "a key head for each": (lambda *case: (turned_mean(*case)[0], case[1]), "How many rows"),
        "queries shared, too": (
            lambda q, k, h, n: (turned_mean(q, k, h, n)[0].unflatten(0, (n, h // n, -1)).mean(1).flatten(0, 1),
                                turned_mean(q, k, h, n)[1]), "its own queries"),
    },
)  # fmt: skip


# fmt: off
class Adapter(torch.nn.Module):
    """A frozen linear map, and (alpha / rank) B A beside it."""

    def __init__(self, fan_in, fan_out, rank, alpha):
        super().__init__()
        self.scale = alpha / rank
        self.base = torch.nn.Linear(fan_in, fan_out).requires_grad_(False)
        self.A = torch.nn.Linear(fan_in, rank, bias=False)
        self.B = torch.nn.Linear(rank, fan_out, bias=False)
        torch.nn.init.zeros_(self.A.weight)
        torch.nn.init.zeros_(self.B.weight)

    def forward(self, x):
        return self.base(x) + self.scale * self.B(self.A(x))


class Adapted(torch.nn.Module):
    """Attention with adapters beside query and value."""

    def __init__(self, d_model, n_heads, d_head, rank, alpha):
        super().__init__()
        self.n_heads, inner = n_heads, n_heads * d_head
        self.query = Adapter(d_model, inner, rank, alpha)
        self.key = torch.nn.Linear(d_model, inner).requires_grad_(False)
        self.value = Adapter(d_model, inner, rank, alpha)
        self.output = torch.nn.Linear(inner, d_model).requires_grad_(False)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        mix = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.output(mix.transpose(1, 2).flatten(2))
# fmt: on


def mend(layer):
    with torch.no_grad():
        for adapter in (layer.query, layer.value):
            rank, W = len(adapter.A.weight), adapter.base.weight
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            root = (S[:rank] / adapter.scale).sqrt()
            adapter.A.weight.copy_(root[:, None] * Vh[:rank])
            adapter.B.weight.copy_(U[:, :rank] * root)
            W -= adapter.scale * adapter.B.weight @ adapter.A.weight


def by_pissa(roles="query value", divided=None, taken=None, chosen=None, sides=(0.5, 0.5)):
    """As the solution, with one step replaced."""

    @torch.no_grad()
    def answer(layer):
        for adapter in (getattr(layer, role) for role in roles.split()):
            rank, W = len(adapter.A.weight), adapter.base.weight
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            some = chosen(rank) if chosen else slice(rank)
            s = S[some] / (adapter.scale if divided is None else divided)
            adapter.A.weight.copy_(s[:, None] ** sides[0] * Vh[some])
            adapter.B.weight.copy_(U[:, some] * s ** sides[1])
            product = adapter.B.weight @ adapter.A.weight
            W -= (adapter.scale if taken is None else taken) * product

    return answer


@torch.no_grad()
def by_advice(layer: nn.Module) -> None:
    for adapter in (layer.query, layer.value):
        adapter.A.reset_parameters()


@torch.no_grad()
def by_olora(layer: nn.Module) -> None:
    for adapter in (layer.query, layer.value):
        rank, W = len(adapter.A.weight), adapter.base.weight
        Q, R = torch.linalg.qr(W)
        adapter.A.weight.copy_(R[:rank] / adapter.scale)
        adapter.B.weight.copy_(Q[:, :rank])
        W -= adapter.scale * adapter.B.weight @ adapter.A.weight


def thawed(layer: nn.Module) -> None:
    mend(layer)
    layer.requires_grad_(True)


def adapted_cases(seed: int) -> list[tuple[int, int, int, int, float, int]]:
    return [(10, 2, 4, 3, 3.0, seed), (12, 3, 3, 2, 5.0, seed + 1)]


def mended_adapters(answer, d_model, n_heads, d_head, rank, alpha, seed):
    torch.manual_seed(seed)
    layer = Adapted(d_model, n_heads, d_head, rank, alpha)
    old = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    trained = sorted(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
    answer(layer)
    new = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    kept = sorted(name for name in new if name in old and new[name].shape == old[name].shape)
    same = sorted(name for name in kept if torch.equal(old[name], new[name]))
    trains = sorted(name for name, parameter in layer.named_parameters() if parameter.requires_grad)
    found = {}
    for role in ("query", "value"):
        names = [role + part for part in (".base.weight", ".A.weight", ".B.weight")]
        if all(name in kept for name in names):
            (W, A, B), before = (new[name] for name in names), old[names[0]]
            U, S, Vh = torch.linalg.svd(before, full_matrices=False)
            top, scale = U[:, :rank] * S[:rank] @ Vh[:rank], getattr(getattr(layer, role, None), "scale", 0.0)
            sizes = [x.square().sum() for x in (A, B, W - before, W + scale * B @ A - before)]
            sizes += [(x - top).square().sum() for x in (scale * B @ A, B @ A)]
            found[role] = (scale, *((x / before.square().sum()).item() for x in sizes))
    return kept, same, trains == trained, found


def judge_adapters(case, got, want):
    rank, alpha = case[3], case[4]
    assert isinstance(got, tuple) and len(got) == 4 and isinstance(got[3], dict), "Is the layer there still?"
    kept, same, trains, found = got
    assert kept == want[0] and set(found) == {"query", "value"}, (
        "Which parameters had the layer before? Are they all there still, in their shapes?"
    )
    others = [name for name in want[1] if name not in same]
    assert not others, f"`{others[0]}` changed. Which parameters belong to an adapter, and which stay?"
    assert trains, (
        "What was frozen must be frozen still, and A and B must be trained. Which parameters have a gradient now?"
    )
    for role, numbers in found.items():
        assert isinstance(numbers, tuple) and len(numbers) == 7, "Are the adapters there still?"
        assert all(math.isfinite(y) for y in numbers), (
            "A matrix holds something that is no number. By what did you divide?"
        )
        scale, a, b, moved, function, away, unscaled = numbers
        assert abs(scale - alpha / rank) < 1e-9, "The factor of the product was changed. Which matrices may you change?"
        assert a or b, (
            f"A and B of the {role} are both zero still. Does your function change the layer in place, and both adapters?"
        )
        assert a and b, (
            f"That start of the {role} gets a gradient, too. But which directions of W do PiSSA's A and B begin with, and are "
            "they zero?"
        )
        if function > 1e-6:
            assert moved > 1e-6, f"The {role} computes W + BA, and W is as it was. What must be taken out of it?"
            raise AssertionError(
                f"The {role} computes something else than before. By which factor does its forward pass multiply BA?"
            )
        if away > 1e-6:
            assert unscaled > 1e-6, (
                "The layer computes what it did. But the forward pass multiplies BA by α/r. What must BA be, so that the r "
                "largest singular values are in the adapter as they are in W?"
            )
            raise AssertionError(
                "The layer computes what it did, and the adapter holds other directions. Which of the singular values of W "
                "belong into it, and how many?"
            )
        assert abs(a / b - 1) < 1e-2, (
            "The product is right. How are the singular values shared between A and B, and which of the two is longer now?"
        )


dead_adapters = Mend(
    number="11.6",
    title="Adapters that never move",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("From another model: low-rank adapters",),
    statement=(
        "Draw an `Adapted(64, 4, 16, 4, 8)` and run `attntut.diagnose` on it, with `torch.randn(4, 16, 64)`. Why would its adapters never learn? The "
        "finding has an advice, and there is another way. Write `mend(layer)`, which gives both adapters PiSSA's start, in place, "
        "in a layer of any size. Mind $\\alpha/r$: the $r$ largest singular values of $W$ must stand in what the adapter "
        "adds, $\\frac{\\alpha}{r} B A$, and be missing in the frozen matrix, so that the layer computes what it did. $A$ and $B$ "
        "share them equally, as in the chapter's table. What is frozen stays frozen. Run `attntut.diagnose` again."
    ),
    hint="$\\sqrt{\\Sigma_r}\\,V_r^\\top$ and $U_r\\sqrt{\\Sigma_r}$ are right for $\\alpha = r$. By what must $\\Sigma_r$ be divided before the roots are taken?",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Adapter, Adapted),
    make=adapted_cases,
    ask=mended_adapters,
    compare=judge_adapters,
    solution=mend,
    wrong={
        "nothing": (lambda layer: None, "both zero still"),
        "the advice": (by_advice, "are they zero"),
        "query only": (by_pissa("query"), "both adapters"),
        "W as it was": (by_pissa(taken=0), "taken out of it"),
        "the factor forgotten": (by_pissa(divided=1, taken=1), "By which factor"),
        "BA taken out once": (by_pissa(taken=1), "By which factor"),
        "Σ not divided": (by_pissa(divided=1), "are in the adapter as they are in W"),
        "the smallest": (by_pissa(chosen=lambda rank: slice(-rank, None)), "Which of the singular values"),
        "all on A": (by_pissa(sides=(1, 0)), "shared between"),
        "all on B": (by_pissa(sides=(0, 1)), "shared between"),
        "olora": (by_olora, "Which of the singular values"),
        "thawed": (thawed, "frozen still"),
        "one singular value": (by_pissa(chosen=lambda rank: [0] * rank), "Which of the singular values"),
    },
)  # fmt: skip


# fmt: off
def grouped_tokens(n_groups, seed, n=64, d=256):
    """Values of n tokens, alike in groups, (n, d), and their map."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(n_groups, 1, d, generator=generator)
    own = torch.randn(n_groups, n // n_groups, d, generator=generator)
    x = (0.8**0.5 * centre + 0.2**0.5 * own).flatten(0, 1)
    weights = torch.softmax(3 * x @ x.mT / d, dim=-1)
    return x @ torch.randn(d, d, generator=generator) / d**0.5, weights
# fmt: on


@functools.cache
def averaged(n_groups: int) -> dict[str, float]:
    """σ_o√d by the formula, by what is written, and by mistakes: means over eight seeds."""
    found: dict[str, list[float]] = {}
    for seed in range(8):
        values, weights = grouped_tokens(n_groups, seed)
        rho, P = token_cosine(values).item(), participation(weights).mean().item()
        mix = weights @ values
        for name, number in dict(
            formula=(rho + (1 - rho) * P) ** -0.5,
            measured=1 / mix.std().item(),
            std=mix.std().item(),
            square=1 / mix.var().item(),
            even=1 / values.mean(dim=0).std().item(),
            transposed=1 / (weights.mT @ values).std().item(),
            participation=P**-0.5,
        ).items():
            found.setdefault(name, []).append(number)
    return {name: sum(numbers) / 8 for name, numbers in found.items()}


alike_in_groups = Explain(
    number="11.7",
    title="Alike tokens, alike weights",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What the average over the tokens leaves", "11.2"),
    statement=(
        "On digits the chapter's formula for the output projection fails. Look at the failure where you can see through it. `grouped_tokens` "
        "makes tokens of <<n_groups>> groups, alike within a group, and attends by their products. Predict $\\sigma_o\\sqrt d$ by "
        "$1/\\sqrt{\\rho + (1 - \\rho)P}$, with $\\rho$ from `token_cosine` of the values and $P$ the mean of `participation`, "
        "both in `attntut.measure`. Then measure what LSUV would choose for an orthogonal $W_o$: 1 over the standard deviation of the averages, over all "
        "entries. Take the mean over the seeds 0 to 7 of both. Answer with the two numbers, and explain the difference in two or three "
        "sentences. Which tokens does a query like, and what have their values in common?"
    ),
    hint="How much weight goes to a query's own group? Work out the token cosine within a group, and between groups.",
    rubric=(
        "The prediction is the formula's, from the measured ρ and P (1 point). The formula takes weights and values for "
        "independent: every pair of tokens has the mean cosine ρ, whatever weight it gets (1). Here the weight goes to the own "
        "group, whose values share 0.8 of their variance, so the average leaves more than ρ says, and σ_o√d is smaller (1)."
    ),
    setup=(grouped_tokens,),
    parameters={"n_groups": (8, 4, 16)},
    solve=lambda n_groups: averaged(n_groups)["measured"],
    traps={
        "That is the formula's number. What do the eight averages give?": lambda n_groups: averaged(n_groups)["formula"],
        "That is what is left of the values. By what must the matrix be divided?": lambda n_groups: averaged(n_groups)["std"],
        "Is that 1 over the standard deviation, or over the variance?": lambda n_groups: averaged(n_groups)["square"],
        "That is the mean of all tokens. Which weights has the map?": lambda n_groups: averaged(n_groups)["even"],
        "That is the formula for independent values, and no measurement. What do the averages give?": (
            lambda n_groups: averaged(n_groups)["participation"]
        ),
    },
    ask="Is it 1 over the standard deviation of all entries of weights @ values, and the mean over the seeds 0 to 7?",
    rtol=0.015,
)  # fmt: skip

EXERCISES = [
    foreign_adapters, other_tokens, other_rate, lsuv_code, turn_code, dead_adapters, alike_in_groups,
]  # fmt: skip
