"""Exercises of chapter 18, *Choosing and checking*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number, short

unseen_fault = Choice(
    number="18.1",
    title="What a good step does not show",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("Minute three: the reach",),
    statement=(
        "From the gradient of a batch you compute the reach. Then the optimizer takes its first step at 1 % of the reach, and the loss that you measure on the same batch falls by 1 %. "
        "Which of these faults can your code still have?"
    ),
    hint="For each of them: what steps, what was differentiated, what is measured? Which fault is in all three alike?",
    options={
        "The optimizer was made before the attention was replaced, and holds the old matrices.": (
            "Which part of $\\sum |g|$ steps then? What is left of the 1 %?"
        ),
        "The gradient is that of the sum over the batch, and the loss that you measure, and divide by, is the mean.": (
            "How large is $\\sum |g|$ then, beside that of the loss that you measure?"
        ),
        "The optimizer is SGD, not Adam.": (
            "The step of one weight is then the rate times its gradient. Is $\\eta \\sum g^2$ the same as $\\eta \\sum |g|$?"
        ),
        "The targets have been shuffled among the examples of the batch.": "",
        "The reach was computed from a gradient that was added up twice.": (
            "The step of Adam has the length of the rate for any gradient. And the rate, if $\\sum |g|$ is twice as large?"
        ),
        "The optimizer was made with `maximize=True`.": "Which sign has the change of the loss then?",
        "A scheduler with a warm-up has set the rate of the first step to a tenth of it.": (
            "How far does the step go then, beside the reach?"
        ),
    },
)


def first_of(C: float, T: float, c: float, part: float = 0.5) -> float:
    """First loss for a readout of 1/d; T tokens of cosine c."""
    return short(math.log(C) + part * (1 + (T - 1) * c) / T)


def quiet(d: float, T: float, c: float, part: float = 0.5) -> float:
    """The σ of a readout that adds 0.02 to ln C."""
    return short(math.sqrt(0.02 / (part * d * (1 + (T - 1) * c) / T)))


quiet_readout = Number(
    number="18.2",
    title="A readout that says nothing yet",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("Minute one: predict",),
    statement=(
        "A model of width $d = $ <<d>> tells $C = $ <<C>> classes apart. Its readout receives the mean over $T = $ <<T>> normalized tokens, of which two have the cosine $c = $ <<c>>. "
        "What is its first loss, if the readout is drawn with $\\sigma_r^2 = 1/d$? And with which $\\sigma_r$ would the first loss be only 0.02 above $\\ln C$? Answer with two numbers."
    ),
    hint="First the mean square $m$ of what the readout receives. Then $s^2 = m\\,d\\,\\sigma_r^2$.",
    starter="answer = (..., ...)  # first loss, sigma of the readout",
    parameters={"C": (10, 6, 15), "d": (64, 256, 128, 512), "T": (4, 8), "c": (0.2, 0.4, 0.3)},
    solve=lambda C, d, T, c: (first_of(C, T, c), quiet(d, T, c)),
    traps={
        "That is right for a readout that receives one token. Which mean square has the mean over $T$ of them?": (
            lambda C, d, T, c: (first_of(C, 1, 1), quiet(d, 1, 1))
        ),
        "Which factor has $s^2$ in the first loss?": lambda C, d, T, c: (first_of(C, T, c, 1), quiet(d, T, c, 1)),
        "The second is right. Is $\\ln C$ the first loss of this readout, too?": (
            lambda C, d, T, c: (first_of(C, T, c, 0), quiet(d, T, c))
        ),
        "The first is right. Is the second $\\sigma_r$, or its square?": (
            lambda C, d, T, c: (first_of(C, T, c), short(quiet(d, T, c) ** 2))
        ),
        "The first is right. Does the mean over tokens make the logits smaller only for the first readout?": (
            lambda C, d, T, c: (first_of(C, T, c), quiet(d, 1, 1))
        ),
    },
    ask="What is $m = (1 + (T-1)c)/T$, what is $\\ln C + m/2$, and for which $\\sigma_r$ is $m\\,d\\,\\sigma_r^2/2$ just 0.02?",
)  # fmt: skip


def worth(w: float, b: float, k: float, m: float, km: float = 1) -> float:
    """Runs with all drawn anew whose mean is as sure as that of a table; ``km`` for the part of both."""
    return short(1 / (w / k + b / m + km * (1 - w - b) / (k * m)))


def most_worth(w: float, k: float) -> float:
    return short(k / w)


table_worth = Number(
    number="18.3",
    title="What a table of runs is worth",
    minutes=10,
    difficulty="medium",
    points=2,
    needs=("What pairing saves", "What a fixed seed hides"),
    statement=(
        "Of the variance of a run <<w>> comes from the weights, <<b>> from the batches, and the rest from both together. You have a table like the chapter's: each of <<k>> seeds of the weights with each of "
        "<<m>> seeds of the batches. As an estimate of the scheme's true mean, the mean of the table is as sure as that of how many runs with everything drawn anew? And of how many "
        "at most, if you go on to add seeds of the batches, and none of the weights? Predict two numbers (they need not be whole)."
    ),
    hint="A run is mean + weights' part + batches' part + a part of its own. Which variance has each of them in the mean of the table?",
    starter="answer = (..., ...)  # the table, and at most",
    parameters={"w": (0.4, 0.15, 0.3), "b": (0.1, 0.05), "k": (3, 4, 5, 6), "m": (10, 8, 12)},
    solve=lambda w, b, k, m: (worth(w, b, k, m), most_worth(w, k)),
    traps={
        "Are runs that share their weights independent? Are those that share their batches?": (
            lambda w, b, k, m: (k * m, most_worth(w, k))
        ),
        "The second is right. Has each run of the table batches of its own, or does it share them with a run of each other weight?": (
            lambda w, b, k, m: (worth(w, 0, k, m), most_worth(w, k))
        ),
        "The second is right. Which part is averaged over the $k$ seeds of the weights, and which over the others?": (
            lambda w, b, k, m: (worth(b, w, k, m), most_worth(w, k))
        ),
        "The second is right. Does what belongs to both together not scatter, too?": (
            lambda w, b, k, m: (worth(w, b, k, m, km=0), most_worth(w, k))
        ),
        "The second is right. Is the first the ratio of the standard deviations, or of the variances?": (
            lambda w, b, k, m: (short(worth(w, b, k, m) ** 0.5), most_worth(w, k))
        ),
        "The first is right. Which seeds do you add, and which part do they average away?": (
            lambda w, b, k, m: (worth(w, b, k, m), most_worth(b, m))
        ),
    },
    ask="The variance of the table's mean is a sum of three parts, over $k$, over $m$ and over $km$. What is 1 over that sum, and what is left of it for $m \\to \\infty$?",
)  # fmt: skip


def blind_losses(ids, targets, n_classes):
    def entropy(counts):
        p = counts / counts.sum()
        return -torch.special.xlogy(p, p).sum().item()

    counted = targets != -100
    counts = torch.zeros(n_classes, n_classes)
    counts.index_put_((ids[counted], targets[counted]), torch.ones(()), accumulate=True)
    return entropy(counts.sum(0)), entropy(counts) - entropy(counts.sum(1))


def bars_by(blind=None, by_token=None, counted=lambda targets: targets != -100, scale=1.0):
    """As the solution, with a bar made otherwise; both get the counts of pairs."""

    def answer(ids, targets, n_classes):
        keep = counted(targets)
        rows, columns = ids[keep], targets[keep].clamp(min=0)
        counts = torch.zeros(n_classes, n_classes)
        counts.index_put_((rows, columns), torch.ones(()), accumulate=True)
        first = blind(counts) if blind else entropy_of(counts.sum(0))
        second = by_token(counts) if by_token else entropy_of(counts) - entropy_of(counts.sum(1))
        return first * scale, second * scale

    return answer


def entropy_of(counts: Tensor) -> float:
    p = counts / counts.sum()
    return -torch.special.xlogy(p, p).sum().item()


def naive_blind(counts):
    p = counts.sum(0) / counts.sum()
    return -(p * p.log()).sum().item()


def even_over_tokens(counts):
    """Each token counts alike, however often it comes."""
    rows = [entropy_of(row) for row in counts if row.sum()]
    return sum(rows) / len(rows)


def most_common(counts):
    """Minus the logarithm of the share of the most frequent successor."""
    return -math.log(counts.amax(1).sum() / counts.sum())


def bar_cases(seed: int) -> list[tuple[Tensor, Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    cases: list[tuple[Tensor, Tensor, int]] = []
    while len(cases) < 2:
        B, T, n_classes = ((2, 9, 5), (3, 8, 6))[len(cases)]
        order = torch.randperm(n_classes, generator=generator)
        p = 0.6 ** torch.arange(n_classes).double()
        p[-1] = 0  # one that never comes
        ids = order[torch.multinomial(p, B * T, True, generator=generator)]
        follows = order[torch.randint(n_classes - 1, (n_classes,), generator=generator)]
        fresh = order[torch.multinomial(p.roll(1)[:-1], B * T, True, generator=generator)]
        targets = torch.where(torch.rand(B * T, generator=generator) < 0.5, follows[ids], fresh)
        ids, targets = ids.view(B, T), targets.view(B, T)
        if cases:
            lengths = torch.randperm(T - 3, generator=generator)[:B] + 3
            targets[torch.arange(T) >= lengths[:, None]] = -100
        counted = targets != -100
        counts = torch.zeros(n_classes, n_classes).index_put_(
            (ids[counted], targets[counted]), torch.ones(()), accumulate=True
        )
        blind, of_id, joint = entropy_of(counts.sum(0)), entropy_of(counts.sum(1)), entropy_of(counts)
        rivals = [joint, joint - blind, blind, blind + of_id - joint, even_over_tokens(counts), most_common(counts)]
        apart = abs(blind - of_id) > 0.05 and all(abs(joint - of_id - rival) > 0.05 for rival in rivals)
        if apart and not (counts.sum(0).all() or counts.sum(1).all()) and joint - of_id > 0.3:
            cases.append((ids, targets, n_classes))
    return cases


def judge_bars(case, got, want):
    ids, targets, n_classes = case
    assert isinstance(got, (tuple, list)) and len(got) == 2, "What two losses does the function return?"
    got = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in got]
    assert all(type(x) in (int, float) for x in got), "Is each of the two losses one number?"
    assert all(math.isfinite(x) for x in got), (
        "A loss is not finite. What does a class add to the entropy that never comes, and what a token?"
    )

    def near(a, b):
        return abs(a - b) <= 1e-3

    if near(got[0], want[0]) and near(got[1], want[1]):
        return
    assert not (near(got[0], want[1]) and near(got[1], want[0])), "Are the two losses in the order that was asked for?"
    assert not (near(got[0] * math.log(2), want[0]) and near(got[1] * math.log(2), want[1])), (
        "Which logarithm has the loss of a model, that to the base 2?"
    )
    counted = targets != -100

    def entropy(counts):
        p = counts[counts > 0] / counts.sum()
        return -(p * p.log()).sum().item()

    of_id = entropy(torch.bincount(ids[counted]).double())
    joint = entropy(torch.bincount((ids * n_classes + targets)[counted]).double())
    assert not near(got[0], math.log(n_classes)), (
        "All classes alike? What does a model know that ignores its input, but has seen the targets?"
    )
    assert counted.all() or near(got[0], want[0]), (
        "Where all places count, the first is right. Which places have no target?"
    )
    assert not near(got[0], of_id), (
        "Is that the entropy of the tokens that are read, or of the classes that are to be said?"
    )
    assert near(got[0], want[0]), "How often does each class come as a target, and which entropy have these shares?"
    assert not near(got[1], want[0]), "The blind loss is right. What does the token tell of its target?"
    assert not near(got[1], joint), (
        "That is the entropy of both together, the token and its target. Must the model say the token?"
    )
    assert not near(got[1], joint - want[0]), (
        "That says how much the target leaves open of its token. What is seen here, and what is to be said?"
    )
    assert counted.all(), "Where all places count, both are right. Do you leave the same places out of the second?"
    raise AssertionError(
        "The blind loss is right. Which shares have the targets of one token, which entropy is that, and how often does this token come?"
    )


bars_code = Code(
    number="18.4",
    title="Two bars to pass",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("Minutes nine and ten: the first hundred steps",),
    statement=(
        "A model of language that is below the blind loss may still have learned pairs of letters and no more. Write `blind_losses(ids, targets, n_classes)`. `ids` and `targets` are integers "
        "of the shape `(B, T)`. The model reads `ids` and is to say `targets`, and a target of −100 is padding, which does not count. Return two numbers, in nats: the smallest mean loss that a model can have on these data if it ignores its input, and "
        "the smallest one if what it says at a place depends on the token at this place alone. A class or a token may never come."
    ),
    hint="Count pairs: how often does target $b$ stand at token $a$? The best that a model can say of $b$ is how often it comes. `index_put_` with `accumulate=True` counts, and `torch.special.xlogy` knows $0 \\ln 0$.",
    name="blind_losses",
    starter="def blind_losses(ids, targets, n_classes):\n    ...",
    make=bar_cases,
    compare=judge_bars,
    solution=blind_losses,
    wrong={
        "all classes alike": (bars_by(blind=lambda counts: math.log(len(counts))), "All classes alike"),
        "those that come alike": (bars_by(blind=lambda counts: math.log((counts.sum(0) > 0).sum())), "How often does each"),
        "tokens for targets": (bars_by(blind=lambda counts: entropy_of(counts.sum(1))), "that are read"),
        "0 ln 0": (bars_by(blind=naive_blind), "not finite"),
        "padding as class 0": (bars_by(counted=lambda targets: targets > -1000), "have no target"),
        "to the base 2": (bars_by(scale=1 / math.log(2)), "the base 2"),
        "both together": (bars_by(by_token=entropy_of), "Must the model say"),
        "the other way": (bars_by(by_token=lambda c: entropy_of(c) - entropy_of(c.sum(0))), "is to be said"),
        "what it takes off": (
            bars_by(by_token=lambda c: entropy_of(c.sum(0)) + entropy_of(c.sum(1)) - entropy_of(c)), "how often does this token"),
        "blind twice": (bars_by(by_token=lambda c: entropy_of(c.sum(0))), "tell of its target"),
        "tokens alike": (bars_by(by_token=even_over_tokens), "how often does this token"),
        "the sum over tokens": (bars_by(by_token=lambda c: sum(entropy_of(row) for row in c if row.sum())), "how often does this token"),
        "the most frequent alone": (bars_by(by_token=most_common), "how often does this token"),
        "the other order": (lambda *case: blind_losses(*case)[::-1], "order"),
    },
)  # fmt: skip


def noise_parts(y):
    k, m, r = y.shape
    cells = y.mean(2)
    rows, columns = cells.mean(1), cells.mean(0)
    q = y.var(2).mean()
    both = (cells - rows[:, None] - columns + y.mean()).square().sum() / ((k - 1) * (m - 1))
    return tuple(max(part.item(), 0.0) for part in (rows.var() - both / m, columns.var() - both / k, both - q / r, q))


def parts_by(q=None, both=None, w=None, b=None, e=None, floor=0.0, make=lambda x: x, swap=False):
    """As the solution, with one part made otherwise."""

    def answer(y):
        k, m, r = y.shape
        cells = y.mean(2)
        rows, columns = cells.mean(1), cells.mean(0)
        rest = (cells - rows[:, None] - columns + y.mean()).square().sum()
        inner = (q or (lambda y: y.var(2).mean()))(y)
        mixed = both(cells, rest) if both else rest / ((k - 1) * (m - 1))
        third = (e or (lambda mixed, inner, r: mixed - inner / r))(mixed, inner, r)
        first = w(rows, mixed, inner, third, y) if w else rows.var() - mixed / m
        second = b(columns, mixed, inner, third, y) if b else columns.var() - mixed / k
        parts = [make(max(x.item(), floor)) for x in (first, second, third, inner)]
        return (parts[1], parts[0], *parts[2:]) if swap else tuple(parts)

    return answer


def shares_of_parts(y):
    parts = noise_parts(y)
    return tuple(part / sum(parts) for part in parts)


def from_clamped(of, other):
    """Row or column means less the parts that are left of the clamped estimates."""
    return lambda means, mixed, inner, third, y: (
        means.var() - max(third.item(), 0.0) / y.shape[other] - inner / y.shape[other] / y.shape[2]
    )


def noise_table_cases(seed: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    cases: list[tuple[Tensor]] = []
    sizes = ((4, 3, 2), (3, 5, 2), (5, 4, 3))
    scales = ((1.5, 1.0, 1.2, 0.8), (0.1, 1.5, 1.5, 1.0), (1.5, 1.2, 0.1, 1.5))  # of w, b, e and q
    while len(cases) < 3:
        k, m, r = sizes[len(cases)]
        w, b, e, q = scales[len(cases)]
        y = w * torch.randn(k, 1, 1, generator=generator) + b * torch.randn(1, m, 1, generator=generator)
        y = y + e * torch.randn(k, m, 1, generator=generator) + q * torch.randn(k, m, r, generator=generator)
        y = (0.5 + y).mul(100).round() / 100
        parts = parts_by(floor=-math.inf)(y)
        wanted = [(1, 1, 1), (-1, 1, 1), (1, 1, -1)][len(cases)]
        if all(sign * part > 0.1 for sign, part in zip(wanted, parts[:3], strict=True)):
            cases.append((y,))
    return cases


def judge_parts(case, got, want):
    y = case[0]
    k, m, r = y.shape
    assert isinstance(got, (tuple, list)) and len(got) == 4, "Which four parts has the noise?"
    got = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in got]
    assert all(type(x) in (int, float) and math.isfinite(x) for x in got), "Is each of the four parts one number?"
    assert min(got) >= 0, "One part is below 0. What is the smallest value of a variance?"

    def near(a, b):
        return abs(a - b) <= 1e-3 * abs(b) + 1e-4

    w, b, e, q = got
    if all(near(one, right) for one, right in zip(got, want, strict=True)):
        return
    assert not all(near(one, right**0.5) for one, right in zip(got, want, strict=True)), (
        "Are these variances, or standard deviations?"
    )
    assert not near(q, want[3] * (r - 1) / r), "A cell's own mean was taken out of its runs. By what do you divide?"
    assert near(q, want[3]), (
        "Look at $q$ first. How much do the repeats of one cell scatter around their own mean, on average over the cells?"
    )
    cells = y.mean(2)
    rows, columns = cells.mean(1), cells.mean(0)
    rest = (cells - rows[:, None] - columns + y.mean()).square().sum().item()
    both = rest / (k - 1) / (m - 1)
    assert not near(e, both), "$q$ is right. How much of it is left in the mean of a cell's repeats, and so in $e$?"
    assert not near(e, max(both - want[3], 0)) or want[2] == 0, (
        "$q$ is right. Is it the variance of one run or of a cell's mean that you take off?"
    )
    assert near(e, want[2]), (
        "$q$ is right. What is left of a cell's mean when its row and its column have been taken out? How many of these numbers are free?"
    )
    for name, part, right, means, own in (("w", w, want[0], rows, k), ("b", b, want[1], columns, m)):
        if near(part, right):
            continue
        variance = means.var().item()
        assert not near(part, variance), (
            f"$q$ and $e$ are right. Would the means behind ${name}$ scatter if it were 0? By how much?"
        )
        assert not near(part, max(variance - both / own, 0)), (
            f"$q$ and $e$ are right. Over how many cells goes each of the means that ${name}$ comes from?"
        )
        assert not near(part, want[1] if name == "w" else want[0]), (
            "$q$ and $e$ are right. Which axis has the weights, and which the batches?"
        )
        assert want[2] > 0, (
            f"Where no estimate falls below 0, ${name}$ is right. Here that of $e$ did. Should the 0 that stands there now change what you take off for ${name}$?"
        )
        raise AssertionError(
            f"$q$ and $e$ are right. Of what do the means of ${name}$ consist, besides ${name}$ itself, and over what is each of these parts averaged?"
        )


parts_code = Code(
    number="18.5",
    title="Runs that do not repeat",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("What pairing saves", "18.3"),
    statement=(
        "On a GPU a run with the same weights and the same batches may come out differently when you repeat it. So a run's noise has four parts: $w$ from the weights, $b$ from the batches, $e$ from both together, and $q$ from what no seed sets. Write "
        "`noise_parts(y)`, which estimates these four variances, in this order, as a tuple of numbers. `y` has the shape `(k, m, r)`: $k$ seeds of the weights, each with $m$ seeds of the batches, each run $r$ times. As in "
        "the chapter, no estimate has a bias before it is cut off at 0: take off what the other parts add on average. One that comes out below 0 is returned as 0, and the others stay as they are."
    ),
    hint=(
        "Go from the inside out. The mean of a cell scatters by $q/r$ beside its $e$. The variance of the means of rows is on average $w + (e + q/r)/m$. `parts_of` of the chapter has $k = m$ and $r = 1$."
    ),
    name="noise_parts",
    starter="def noise_parts(y):\n    ...",
    make=noise_table_cases,
    compare=judge_parts,
    solution=noise_parts,
    wrong={
        "standard deviations": (parts_by(make=math.sqrt), "or standard deviations"),
        "shares": (shares_of_parts, "one cell scatter"),
        "not cut off": (parts_by(floor=-math.inf), "smallest value"),
        "divided by r": (parts_by(q=lambda y: y.var(2, correction=0).mean()), "By what do you divide"),
        "all runs for q": (parts_by(q=lambda y: y.var()), "one cell scatter"),
        "q stays in e": (parts_by(e=lambda mixed, inner, r: mixed), "left in the mean"),
        "all of q": (parts_by(e=lambda mixed, inner, r: mixed - inner), "one run or of a cell"),
        "cells that are all free": (parts_by(both=lambda cells, rest: rest / cells.numel()), "are free"),
        "one is not free": (parts_by(both=lambda cells, rest: rest / (cells.numel() - 1)), "are free"),
        "cells with rows and columns": (parts_by(both=lambda cells, rest: cells.var()), "its row and its column"),
        "rows as they are": (parts_by(w=lambda rows, *rest: rows.var()), "if it were 0"),
        "columns as they are": (parts_by(b=lambda columns, *rest: columns.var()), "if it were 0"),
        "over k for m": (parts_by(w=lambda rows, mixed, inner, third, y: rows.var() - mixed / y.shape[0]), "Over how many"),
        "over m for k": (parts_by(b=lambda columns, mixed, inner, third, y: columns.var() - mixed / y.shape[1]), "Over how many"),
        "e without its q": (parts_by(w=lambda rows, mixed, inner, third, y: rows.var() - third / y.shape[1]), "Of what do the means"),
        "w from an e that was cut off": (parts_by(w=from_clamped("w", 1)), "Should the 0"),
        "b from an e that was cut off": (parts_by(b=from_clamped("b", 0)), "Should the 0"),
        "weights for batches": (parts_by(swap=True), "Which axis"),
    },
)  # fmt: skip


# fmt: off
class Refitted(torch.nn.Module):
    """Attention by one head, and a readout of the mean over the tokens."""

    def __init__(self, d_input, d_model, n_classes):
        super().__init__()
        for role, size in {"embed": d_input, "query": d_model,
                           "key": d_model, "value": d_model,
                           "output": d_model}.items():
            layer = torch.nn.Linear(size, d_model, bias=False)
            gain = 2 if role in ("query", "key") else 1
            torch.nn.init.normal_(layer.weight, 0, gain * size ** -0.5)
            self.add_module(role, layer)
        self.norm = torch.nn.LayerNorm(d_model)
        self.readout = torch.nn.Linear(d_model, n_classes, bias=False)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.query(x), self.key(x), self.value(x)
        logits = q @ k.mT / q.shape[-1] ** 0.5
        x = x + self.output(torch.softmax(logits, dim=-1) @ v)
        return self.readout(self.norm(x).mean(dim=1))


def refitted(d_input, d_model, n_classes, lr=1e-3, decay=0.1):
    """A model that gets both ends for other inputs and classes."""
    model = Refitted(3 * d_input, d_model, 1000)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW([
        {"params": [p for p in parameters if p.ndim > 1],
         "lr": lr, "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim == 1],
         "lr": lr, "weight_decay": 0.0}])
    model.embed = torch.nn.Linear(d_input, d_model, bias=False)
    torch.nn.init.normal_(model.embed.weight, 0, d_input**-0.5)
    model.readout = torch.nn.Linear(d_model, n_classes, bias=False)
    torch.nn.init.normal_(model.readout.weight)
    return model, optimizer
# fmt: on


def mend(model, optimizer):
    with torch.no_grad():
        model.query.weight /= 2
        model.key.weight /= 2
        model.readout.weight /= model.readout.in_features**0.5
    optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.ndim > 1]


def refit_by(logits=(0.5, 0.5), readout=lambda d: d**-0.5, values=1.0, group="matrices", ends=("embed", "readout")):
    """As the solution, with one thing made otherwise."""

    def answer(model, optimizer):
        with torch.no_grad():
            model.query.weight *= logits[0]
            model.key.weight *= logits[1]
            model.value.weight *= values
            model.readout.weight *= readout(model.readout.in_features)
        own = {id(p) for p in model.parameters()}
        matrices, norms = optimizer.param_groups
        if group != "old ends":
            matrices["params"] = [p for p in matrices["params"] if id(p) in own]
        new = [getattr(model, name).weight for name in ends]
        settings = {name: matrices[name] for name in ("lr", "weight_decay")}
        if group == "norms":
            norms["params"] += new
        elif group == "default":
            optimizer.add_param_group({"params": new})
        elif group == "own":
            optimizer.add_param_group({"params": new} | settings)
        elif group == "all":
            matrices["params"], norms["params"] = list(model.parameters()), []
        else:
            matrices["params"] = matrices["params"] + new * (2 if group == "twice" else 1)

    return answer


def new_layers(model, optimizer):
    """Queries and keys in new parameters, which the optimizer does not have."""
    mend(model, optimizer)
    model.query.weight = nn.Parameter(model.query.weight.detach().clone())
    model.key.weight = nn.Parameter(model.key.weight.detach().clone())


def new_readout(model, optimizer):
    """A right factor, but a readout that was drawn anew."""
    mend(model, optimizer)
    nn.init.normal_(model.readout.weight, 0, model.readout.in_features**-0.5)


def drawn_anew(model, optimizer):
    mend(model, optimizer)
    nn.init.normal_(model.query.weight, 0, model.query.in_features**-0.5)


def refitted_cases(seed: int) -> list[tuple[int, int, int, float, float, int]]:
    generator = torch.Generator().manual_seed(seed)
    ranges = ((5, 9), (24, 40), (50, 60), (20, 60), (10, 30))
    d_input, d_model, n_classes, lr, decay = (int(torch.randint(*ends, (), generator=generator)) for ends in ranges)
    return [(d_input, d_model, n_classes, lr / 1e4, decay / 100, seed)]


def mended_refitted(answer, d_input, d_model, n_classes, lr, decay, seed):
    torch.manual_seed(seed)
    model, optimizer = refitted(d_input, d_model, n_classes, lr, decay)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    answer(model, optimizer)
    after = dict(model.named_parameters())
    if {name: p.shape for name, p in after.items()} != {name: p.shape for name, p in before.items()}:
        return None
    factors = {}
    for name, p in after.items():
        if not torch.equal(p.detach(), before[name]):
            low, high = (p.detach() / before[name]).aminmax()
            factors[name] = (low.item(), high.item())
    held = [(p, float(g["lr"]), float(g["weight_decay"])) for g in optimizer.param_groups for p in g["params"]]
    steps = {name: [(rate, part) for q, rate, part in held if q is p] for name, p in after.items()}
    return factors, steps, len(held) - sum(map(len, steps.values()))


def judge_refitted(case, got, want):
    d_model, lr, decay = case[1], case[3], case[4]
    assert isinstance(got, tuple) and len(got) == 3, (
        "Which parameters had the model before? Are they there, in their shapes?"
    )
    factors, steps, dead = got
    sizes = []
    for name in ("query.weight", "key.weight", "readout.weight"):
        low, high = factors.pop(name, (1.0, 1.0))
        assert math.isfinite(low) and abs(high - low) < 1e-3 * abs(high), (
            f"`{name}` has other directions than before. Is its size wrong, or what was drawn?"
        )
        sizes.append(high)
    assert not factors, f"`{next(iter(factors))}` was changed. Which number was off because of it?"
    query, key, readout = sizes

    def near(a, b):
        return abs(a / b - 1) < 0.12

    if not (near(query, 0.5) and near(key, 0.5)):
        assert not (near(query, 1) and near(key, 1)), (
            "Queries and keys are as large as they were. What does `diagnose` say of the logits?"
        )
        assert not near(query * key, 0.25), (
            "The logits have the right size now. Have queries and keys the same $\\sigma$?"
        )
        raise AssertionError("With which $\\sigma$ were queries and keys drawn, and with which one should they be?")
    assert not near(readout, 1), (
        "The logits are right, and the readout is as large as it was. What should the first loss be, and what is it?"
    )
    assert not near(readout, 1 / d_model), "Is $1/d$ to be the standard deviation of the readout, or its variance?"
    assert near(readout, d_model**-0.5), "What is $s^2$ of this readout, and which width stands in it?"
    lacking = [name for name in steps if not steps[name]]
    assert not set(lacking) & {"embed.weight", "readout.weight"}, (
        "All sizes are right. Try minute three: does a step of 1 % of the reach take 1 % off? What does the optimizer lack?"
    )
    assert not lacking, f"The optimizer does not hold `{lacking[0]}`. Is it the same parameter as before?"
    for name, found in steps.items():
        assert len(found) == 1, "The optimizer holds a parameter twice. How often should it step?"
        assert math.isclose(found[0][0], lr), (
            f"`{name}` has another rate than the others. Which settings has a new group that is given none?"
        )
        assert math.isclose(found[0][1], 0 if "norm" in name else decay, abs_tol=1e-9), (
            f"`{name}` has another λ than its like. Which group has the matrices, and which the norms?"
        )
    assert dead == 0, "The optimizer still holds parameters that the model no longer has. Which?"


refitted_model = Mend(
    number="18.6",
    title="Three numbers, three faults",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("Minute one: predict", "Minute two: diagnose, and ask", "Minute three: the reach"),
    statement=(
        "Somebody gave a model both ends anew, for other inputs and other classes. Take `model, optimizer = refitted(16, 64, 10)`, `x = torch.randn(32, 8, 16)` and `y = torch.randint(10, (32,))`, and spend three minutes. Run `attntut.diagnose(model, x)`. "
        "Compare the first loss with what a readout of $\\sigma_r^2 = 1/d$ gives, which is on average at most $\\ln 10 + 1/2$. And compute the reach over `model.parameters()`, set the rate of all groups of `optimizer` to 1 % of it, and see what a step takes off the loss. "
        "Each number shows a fault. Write `mend(model, optimizer)`, which mends all three in any such model, in place. Queries, keys and readout get $\\sigma^2 = 1/d$, each by one factor on what was drawn. The optimizer gets what it lacks, with the settings of its like, "
        "and loses what the model no longer has. All else stays as it is."
    ),
    hint="Which $\\sigma$ has each of the three matrices now? `optimizer.param_groups` is a list of dictionaries, and their lists under `\"params\"` may be changed. Compare parameters by `is` or `id`, not by `==`.",
    name="mend",
    starter="def mend(model, optimizer):\n    ...",
    setup=(Refitted, refitted),
    make=refitted_cases,
    ask=mended_refitted,
    compare=judge_refitted,
    solution=mend,
    wrong={
        "nothing": (lambda model, optimizer: None, "as large as they were"),
        "the optimizer alone": (refit_by(logits=(1, 1), readout=lambda d: 1), "as large as they were"),
        "the query alone": (refit_by(logits=(0.25, 1)), "the same $\\sigma$"),
        "a quarter of both": (refit_by(logits=(0.25, 0.25)), "With which $\\sigma$"),
        "as if by He's rule": (refit_by(logits=(0.5**0.5,) * 2), "With which $\\sigma$"),
        "values, too": (refit_by(values=0.5), "Which number was off"),
        "queries drawn anew": (drawn_anew, "other directions"),
        "a readout drawn anew": (new_readout, "other directions"),
        "the readout as it is": (refit_by(readout=lambda d: 1), "What should the first loss"),
        "1/d": (refit_by(readout=lambda d: 1 / d), "or its variance"),
        "the page's width": (refit_by(readout=lambda d: 1 / 8), "which width"),
        "not in the optimizer": (refit_by(ends=()), "Try minute three"),
        "the readout alone in the optimizer": (refit_by(ends=("readout",)), "Try minute three"),
        "new parameters": (new_layers, "the same parameter"),
        "a new group with no settings": (refit_by(group="default"), "is given none"),
        "with the norms": (refit_by(group="norms"), "which the norms"),
        "all in one group": (refit_by(group="all"), "which the norms"),
        "twice": (refit_by(group="twice"), "twice"),
        "the old ends stay": (refit_by(group="old ends"), "no longer has"),
    },
)  # fmt: skip


# fmt: off
def no_difference(most, times=20_000):
    """Seed by seed, two schemes that do not differ: (times, most)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(times, most, generator=generator)


def half_width(d):
    """Half of the 95 % interval of the mean of each row; d (times, n)."""
    t = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365,
         9: 2.306, 10: 2.262, 11: 2.228, 12: 2.201}  # n - 1 degrees
    return t[d.shape[1]] * d.std(dim=1) / d.shape[1] ** 0.5
# fmt: on


@functools.cache
def alarms(first: int, most: int) -> dict[str, float]:
    """Share of comparisons that end with a difference, and mistakes of counting it."""
    d = no_difference(most)
    looks = [d[:, :n] for n in range(first, most + 1)]
    out = torch.stack([x.mean(1).abs() > half_width(x) for x in looks])
    above = torch.stack([x.mean(1) > half_width(x) for x in looks])
    shares = {
        "right": out.any(0),
        "early": out[:-1].any(0),
        "above": above.any(0),
        "sum": out.sum(0),
    }
    return {name: short(share.float().mean().item()) for name, share in shares.items()}


one_more_seed = Explain(
    number="18.7",
    title="One more seed",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("How many seeds",),
    statement=(
        "Two schemes do not differ, and you do not know it. You run <<first>> pairs and look at the 95 % interval of the difference. If it holds 0 you add one pair and look again, and so on, up to <<most>> pairs. As soon as it excludes 0 you stop, and report a "
        "difference. In which share of such comparisons do you report one? First predict it as if each look were a new comparison that knows nothing of the others. Then measure it with `no_difference(<<most>>)`, whose first $n$ columns are the differences "
        "that you have after $n$ pairs, and `half_width`. Explain in three sentences: why is it more than 5 %, why less than the prediction, and what would you do, having seen after <<first>> pairs that they are not told apart?"
    ),
    hint="With $j$ looks that know nothing of each other all are silent with the probability $0.95^j$. How many looks are there? A row counts if any look excludes 0.",
    rubric=(
        "The prediction is 1 − 0.95^j for j looks, 0.40 on the page, where there are 10, and 0.18 is measured (1 point). Each look is a new chance for the noise to leave the interval, and one is enough, for you stop there; but the looks share most of their pairs, so what the first of them did not find the "
        "next one finds less often than one time in twenty (1). The number of pairs is to be fixed before the first look: take a new set of seeds of the planned size, by the formula for n, and report all of it, or pay for the looks with wider intervals, or say that they are not told apart. Without an end of looking the share goes to 1 (1)."
    ),
    setup=(no_difference, half_width),
    parameters={"first": (3, 4), "most": (12, 11, 9)},
    solve=lambda first, most: alarms(first, most)["right"],
    traps={
        "That is the prediction for looks that know nothing of each other. What do you measure?": (
            lambda first, most: short(1 - 0.95 ** (most - first + 1))
        ),
        "That is the share of one look. In how many comparisons does *any* look exclude 0?": lambda first, most: 0.05,
        "Is that how often the looks of a comparison exclude 0, or whether one of them does?": (
            lambda first, most: alarms(first, most)["sum"]
        ),
        "Do you look once more, after the last pair?": lambda first, most: alarms(first, most)["early"],
        "On how many sides of 0 may an interval lie?": lambda first, most: alarms(first, most)["above"],
        "Is that the share that reports a difference, or the share that does not?": (
            lambda first, most: short(1 - alarms(first, most)["right"])
        ),
    },
    ask="For each $n$ from the first look to the last: does `d[:, :n].mean(1)` lie farther from 0 than `half_width(d[:, :n])`? In which share of the rows does that happen at least once?",
    rtol=0.015,
)  # fmt: skip

EXERCISES = [
    unseen_fault, quiet_readout, table_worth, bars_code, parts_code, refitted_model, one_more_seed,
]  # fmt: skip
