"""Exercises of chapter 19, *The tournament*."""

import functools
import itertools
import math
import statistics

import torch
from torch import Tensor

from exercises.exercise import Choice, Code, Explain, Mend, Number

behind_the_first = Choice(
    number="19.1",
    title="Behind the first",
    minutes=4,
    difficulty="easy",
    points=1,
    needs=("The placebo", "What does it take to win?"),
    statement=(
        "In a cell of twelve starts, with eight seeds each, start A is first. Start B is behind it by 0.02. The paired interval of this gap excludes 0, and after Holm's "
        "correction B is within the noise. Seed 100 has chosen two different rates for A and B. What may you say?"
    ),
    hint="Which of the twelve is A, and how was it found? What does *within the noise* not mean?",
    options={
        "B is worse. Its interval excludes 0.": (
            "A is the best of twelve by these very runs. How often does such an interval call an equal start worse?"
        ),
        "B is as good as A. It is within the noise.": "If a test finds no difference, has it shown that there is none?",
        "B is worse with a probability of 95 %.": "Is 95 % said of a pair that was named before the runs, or of one that the runs have picked?",
        "B is the better one. A was only lucky.": (
            "That A looks better than it is, is likely. Does it follow that another start is in truth ahead of it?"
        ),
        "These runs do not settle it. The luck of A, or of a rate, may have made the gap.": "",
        "Nothing at all. Two starts may be compared only at one rate, the same for both.": (
            "Whose best rate would that be, and what would the other start have lost by it?"
        ),
    },
)


def holm(p: tuple[float, ...], most: int = 0, rising: bool = True, cap: float = 1.0) -> tuple[float, ...]:
    """Holm's adjusted p-values, in the order given; the smallest times ``most``."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    times = [x * ((most or len(p)) - rank) for rank, x in enumerate(sorted(p))]
    adjusted = list(itertools.accumulate(times, max)) if rising else times
    return tuple(min(cap, adjusted[order.index(i)]) for i in range(len(p)))


holm_by_hand = Number(
    number="19.2",
    title="Five starts, corrected",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("What does it take to win?",),
    statement=(
        "A cell has five starts. The paired tests of the other four against the first gave $p = $ <<p>>. Correct them by Holm's rule. (None of the corrected numbers is "
        "smaller than the one before it in the order of size, and none is above 1.) Answer with the four corrected numbers, in the order in which the $p$ stand here."
    ),
    hint="Sort them, and multiply the smallest by 4. Then look whether a product fell below its predecessor.",
    starter="answer = (..., ..., ..., ...)",
    parameters={
        "p": (
            (0.016, 0.56, 0.014, 0.66),
            (0.73, 0.013, 0.63, 0.015),
            (0.57, 0.009, 0.011, 0.78),
            (0.82, 0.015, 0.012, 0.61),
            (0.65, 0.74, 0.017, 0.014),
            (0.011, 0.69, 0.01, 0.52),
        )
    },
    solve=holm,
    traps={
        "Can a start with a larger $p$ have a smaller one after the correction?": lambda p: holm(p, rising=False),
        "How large can a probability be?": lambda p: holm(p, cap=math.inf),
        "Is the second smallest multiplied by as much as the smallest?": lambda p: tuple(min(1, 4 * x) for x in p),
        "How many comparisons with the first has a cell of five starts?": lambda p: holm(p, most=5),
        "In which order stand your numbers, and in which the four $p$?": lambda p: tuple(sorted(holm(p))),
        "These are not corrected. By how much is the smallest of four multiplied?": lambda p: p,
        "Which of the four is multiplied by 4, the largest or the smallest?": (
            lambda p: tuple(min(1, x * (1 + rank)) for x, rank in zip(p, [sorted(p).index(x) for x in p], strict=True))
        ),
    },
    ask="The smallest times 4, the next times 3, and so on; none below its predecessor, none above 1: is it that?",
)  # fmt: skip


def failing(S: int, m: int, N: int) -> tuple[float, float]:
    """Shares of the variance: the start, and its interaction with the norm."""
    return (S - m) / (S * N - m), (S - m) * (N - 1) / (S * N - m)


shares_foreseen = Number(
    number="19.3",
    title="Some fail without a norm",
    minutes=10,
    difficulty="medium",
    points=2,
    needs=("How much does it matter?",),
    statement=(
        "A tournament whose result is known beforehand: <<S>> starts, in deep models, at each of <<N>> places of the norm, one of which is *no norm*. Without a norm <<m>> of the starts only guess. "
        "Everything else ends at one and the same loss, with every seed. Predict which share of the variance of the loss is the start's by itself, "
        "and which that of its interaction with the norm, before you make the table. Answer with two numbers."
    ),
    hint="Let the loss be 1 where a start only guesses and 0 elsewhere. Which mean has each start, which mean each norm, and which variance have these means?",
    starter="answer = (..., ...)  # start, start × norm",
    parameters={"S": (9, 7, 11), "m": (5, 3, 2, 4), "N": (3, 4)},
    solve=failing,
    traps={
        "The second is right. Is the first the variance of the means of starts, or of those of norms?": (
            lambda S, m, N: (m * (N - 1) / (S * N - m), failing(S, m, N)[1])
        ),
        "The first is right. The table varies with start and norm together. Which part of that is no interaction?": (
            lambda S, m, N: (failing(S, m, N)[0], 1.0)
        ),
        "That is the case in which one start fails. How many fail here?": lambda S, m, N: failing(S, 1, N),
        "Is the variance of the whole taken around 0, or around the mean?": (
            lambda S, m, N: tuple(x * (1 - m / S / N) for x in failing(S, m, N))
        ),
        "Is that a share of the variance, or of the standard deviation?": (
            lambda S, m, N: tuple(math.sqrt(x) for x in failing(S, m, N))
        ),
        "If all of it were interaction, would the means of the starts not be alike?": lambda S, m, N: (0.0, 1.0),
    },
    ask="With 1 for a guess: what is the variance of the starts' means, what that of the norms' means, and what is left of the whole?",
)  # fmt: skip


def judge_at_own_rate(losses, guess):
    rate = losses[:, :, -1].nan_to_num(nan=math.inf).argmin(dim=1)
    judged = losses[torch.arange(len(losses)), rate, :-1]
    at_end = (rate == 0) | (rate == losses.shape[1] - 1)
    return judged.nan_to_num(nan=guess).clamp(max=guess), at_end


def judge_by(
    by=lambda losses, guess: losses[:, :, -1].nan_to_num(nan=math.inf).argmin(1),
    judges=slice(None, -1),
    ends=(0, -1),
    clip=True,
):
    """As the solution, with one step replaced."""

    def answer(losses, guess):
        rate = by(losses, guess)
        judged = losses[torch.arange(len(losses)), rate][:, judges]
        judged = judged.nan_to_num(nan=guess)
        at_end = sum((rate == end % losses.shape[1]).int() for end in ends) > 0
        return judged.clamp(max=guess) if clip else judged, at_end

    return answer  # fmt: skip


def counted(losses: Tensor, guess: float) -> Tensor:
    """What each loss counts as."""
    return losses.nan_to_num(nan=guess).clamp(max=guess)


def by_the_judges(losses, guess):
    return counted(losses, guess)[:, :, :-1].mean(2).argmin(1)


def by_all(losses, guess):
    return counted(losses, guess).mean(2).argmin(1)


def by_the_first(losses, guess):
    return losses[:, :, 0].nan_to_num(nan=math.inf).argmin(1)


def by_counted(losses, guess):
    return counted(losses, guess)[:, :, -1].argmin(1)


def by_torch(losses, guess):
    """argmin takes a nan for the least."""
    return losses[:, :, -1].argmin(1)


def by_one_for_all(losses, guess):
    return counted(losses, guess)[:, :, -1].mean(0).argmin().expand(len(losses))


def each_seed_its_own(losses, guess):
    _, at_end = judge_at_own_rate(losses, guess)
    return counted(losses, guess)[:, :, :-1].amin(1), at_end


def diverged_left(losses, guess):
    rate = losses[:, :, -1].nan_to_num(nan=math.inf).argmin(1)
    return losses[torch.arange(len(losses)), rate, :-1].clamp(max=guess), judge_at_own_rate(losses, guess)[1]


def means_alone(losses, guess):
    judged, at_end = judge_at_own_rate(losses, guess)
    return judged.mean(1), at_end


def seeds_for_rates(losses, guess):
    return judge_at_own_rate(losses.mT, guess)


def rate_cases(seed: int) -> list[tuple[Tensor, float]]:
    generator = torch.Generator().manual_seed(seed)

    def shuffled(n):
        return torch.randperm(n, generator=generator).tolist()

    cases: list[tuple[Tensor, float]] = []
    while len(cases) < 2:
        guess = (2.3, 1.8)[len(cases)]
        shape = n_starts, n_rates, n_seeds = ((5, 3, 4), (4, 5, 3))[len(cases)]
        losses = (0.4 + 1.2 * torch.rand(shape, generator=generator)).mul(100).round() / 100
        low, high, late, odd = shuffled(n_starts)[:4]
        rate = torch.tensor([1 + start % (n_rates - 1) for start in range(n_starts)])
        rate[low], rate[high], rate[odd] = 0, n_rates - 1, 1
        losses[torch.arange(n_starts), rate, -1] = 0.3
        losses[odd, 2, -1] = losses[low, 0, 0] = losses[high, 0, 0] = math.nan  # the choice, and what is judged
        losses[odd, 1, 1] = losses[low, 1, 0] = guess + 0.7
        losses[late, :, -1] = guess + torch.tensor(shuffled(n_rates)) / 10 + 0.2  # worse than a guess at every rate
        losses[late, rate[late], -1] = guess + 0.1
        rows = counted(losses, guess)[:, :, :-1]
        apart = (rows[:, :, None] - rows[:, None]).abs().amax(3) + torch.eye(n_rates)
        rivals = by_the_judges, by_all, by_the_first, by_one_for_all
        if apart.min() > 0.02 and not any(torch.equal(by(losses, guess), rate) for by in rivals):
            cases.append((losses, guess))
    return cases


def judge_rates(case, got, want):
    losses, guess = case
    assert isinstance(got, (tuple, list)) and len(got) == 2, "Which two things are asked for?"
    judged, at_end = got
    assert isinstance(judged, torch.Tensor) and isinstance(at_end, torch.Tensor), "Are both of them tensors?"
    assert judged.shape != losses[:, 0].shape, "Has the seed that has chosen the rate judged it, too?"
    assert judged.shape == want[0].shape, "Which axis has the starts, and how many seeds judge each of them?"
    judged = judged.to(want[0].dtype)
    assert judged.isfinite().all(), "Not all of these are numbers. What does a run that diverged count as?"
    assert (judged <= guess + 1e-5).all(), "A loss is above that of guessing. What does it count as?"
    counts = losses.nan_to_num(nan=guess).clamp(max=guess)
    chosen, right = (
        (counts[:, :, :-1] - table[:, None]).abs().amax(2) < 1e-5 for table in (judged, want[0].to(judged.dtype))
    )
    if not chosen.any(1).all():
        assert not torch.allclose(judged, counts[:, :, :-1].amin(1), atol=1e-5), (
            "Each seed has its own best rate here. How many rates has a start when it is judged?"
        )
        others = (counts[:, :, 1:] - judged[:, None]).abs().amax(2) < 1e-5
        assert not others.any(1).all(), "Which seed is it that chooses, the first or the last?"
        raise AssertionError("Are these the losses of a start at *one* rate, seed by seed, in their order?")
    if not torch.equal(chosen, right):
        assert not chosen.all(0).any(), "All starts are judged at one rate. Has each its own?"
        rate = chosen.int().argmax(1)
        best = counts[:, :, :-1].mean(2).argmin(1), counts.mean(2).argmin(1)
        assert not any(torch.equal(rate, each) for each in best), (
            "These are the rates at which the judging seeds do well. Which seed was to choose?"
        )
        tried = losses[torch.arange(len(losses)), rate, -1]
        assert not tried.isnan().any(), "At one of these rates the run that chooses has diverged. Could it win?"
        wrong = (chosen != right).any(1)
        assert not (tried[wrong] > guess).all(), (
            "In one start all losses of the seed that chooses are above that of guessing. Which of them is the least?"
        )
        raise AssertionError("At which rate has the *last* seed its least loss?")
    assert at_end.dtype == torch.bool and at_end.shape == want[1].shape, "Is `at_end` true or false, for each start?"
    assert torch.equal(at_end, want[1]), "The losses are right. How many ends has a grid of rates, and who lies there?"


rate_code = Code(
    number="19.4",
    title="At its own rate",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("The field",),
    statement=(
        "Judge starts as the tournament does. `losses` has the shape `(n_starts, n_rates, n_seeds)`, rates in rising order, and a run that diverged is `nan`. The last seed chooses: each start gets the rate at "
        "which that seed's loss is least, as it is. The other seeds judge. Write `judge_at_own_rate(losses, guess)`, where `guess` is the loss of guessing. It returns a tuple of two: the losses of each start at "
        "its rate, of the judging seeds, in the shape `(n_starts, n_seeds - 1)`, in which a loss above `guess` counts as `guess` and a run that diverged too; and a tensor of the shape `(n_starts,)`, true where the "
        "rate lies at an end of the grid, so that a better one may lie beyond."
    ),
    hint="What does `argmin` do with a `nan`? `losses[torch.arange(n), rate]` takes one rate of each start.",
    name="judge_at_own_rate",
    starter="def judge_at_own_rate(losses, guess):\n    ...",
    make=rate_cases,
    compare=judge_rates,
    solution=judge_at_own_rate,
    wrong={
        "chosen by the judges": (judge_by(by_the_judges), "the judging seeds do well"),
        "chosen by all": (judge_by(by_all), "the judging seeds do well"),
        "chosen by the first seed": (judge_by(by_the_first, judges=slice(1, None)), "the first or the last"),
        "judged by the chooser, too": (judge_by(judges=slice(None)), "judged it, too"),
        "each seed at its best rate": (each_seed_its_own, "How many rates"),
        "one rate for all": (judge_by(by_one_for_all), "judged at one rate"),
        "a diverged run is the best": (judge_by(by_torch), "Could it win"),
        "a guess for all that is worse, before the choice": (judge_by(by_counted), "Which of them is the least"),
        "losses as they are": (judge_by(clip=False), "above that of guessing"),
        "diverged runs as they are": (diverged_left, "that diverged count"),
        "the means": (means_alone, "how many seeds"),
        "seeds for rates": (seeds_for_rates, "Which axis"),
        "the highest end alone": (judge_by(ends=(-1,)), "How many ends"),
        "the lowest end alone": (judge_by(ends=(0,)), "How many ends"),
    },
)  # fmt: skip


def share_of_parts(y, having, without):
    part = y - y.mean()
    for axis in without:
        part = part.mean(axis, keepdim=True)
    for axis in having:
        part = part - part.mean(axis, keepdim=True)
    return part.square().mean() / y.var(correction=0)


def effects(y: Tensor) -> dict[frozenset[int], float]:
    """Share of the variance of each factor and each interaction, as in the chapter."""
    found: dict[frozenset[int], Tensor] = {}
    axes = range(y.ndim)
    for size in range(1, y.ndim + 1):
        for kept in map(frozenset, itertools.combinations(axes, size)):
            rest = [axis for axis in axes if axis not in kept]
            mean = y.mean(rest, keepdim=True) if rest else y
            found[kept] = mean - y.mean() - sum(other for key, other in found.items() if key < kept)
    return {key: float(part.square().mean() / y.var(correction=0)) for key, part in found.items()}


RIVALS = {  # which parts a mistaken answer adds up
    "exactly": lambda parts, having, without: parts == having,
    "any": lambda parts, having, without: bool(having & parts) and not without & parts,
    "out": lambda parts, having, without: having <= parts,
    "all out": lambda parts, having, without: having <= parts and not (without and without <= parts),
    "none": lambda parts, having, without: not without & parts,
}


def sum_of(parts: dict[frozenset[int], float], rule: str, having: tuple[int, ...], without: tuple[int, ...]) -> float:
    takes = RIVALS[rule]
    return sum(share for part, share in parts.items() if takes(part, frozenset(having), frozenset(without)))


def share_by(rule):
    """The sum of other parts."""
    return lambda y, having, without: sum_of(effects(y.double()), rule, having, without)


def of_the_means(y, having, without):
    means = y.mean(without, keepdim=True) if without else y
    return share_of_parts(y, having, without) * y.var(correction=0) / means.var(correction=0)


def of_unbiased(y, having, without):
    """The variance of the whole by n - 1."""
    return share_of_parts(y, having, without) * (1 - 1 / y.numel())


def means_at_once(y, having, without):
    """Subtract all means of the table from it, and do not add their overlap again."""
    part = y - y.mean()
    for axis in without:
        part = part.mean(axis, keepdim=True)
    for axis in having:
        part = part - (y - y.mean()).mean([a for a in range(y.ndim) if a == axis or a in without], keepdim=True)
    return part.square().mean() / y.var(correction=0)


def overall_mean_stays(y, having, without):
    return share_of_parts(y, having, without) + (0 if having else y.mean() ** 2 / y.var(correction=0))


def not_divided(y, having, without):
    return share_of_parts(y, having, without) * y.var(correction=0)


def share_cases(seed: int) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    asked = [((2, 5, 3), (1,), (2,)), ((4, 2, 5, 3), (2, 0), (3,)), ((4, 2, 3), (1,), (2, 0)), ((5, 2, 4), (2,), ()),
             ((4, 5, 3), (), (0,))]  # fmt: skip
    cases: list[tuple] = []
    while len(cases) < len(asked):
        shape, having, without = asked[len(cases)]
        y = torch.full(shape, 0.6)
        for size in range(1, len(shape) + 1):  # parts of every kind
            for kept in itertools.combinations(range(len(shape)), size):
                own = [n if axis in kept else 1 for axis, n in enumerate(shape)]
                y = y + torch.randn(own, generator=generator)
        y = y.mul(100).round() / 100
        parts, right = effects(y.double()), share_of_parts(y, having, without).item()
        rivals = [float(f"{sum_of(parts, rule, having, without):.7g}") for rule in RIVALS]
        rivals = [None if abs(rival - right) < 1e-5 else rival for rival in rivals]
        numbers = [right, *{rival for rival in rivals if rival is not None}]
        if min(abs(a - b) / b for a, b in itertools.permutations([*numbers, right**0.5], 2) if b) > 0.01:
            cases.append((y, having, without, rivals))
    return cases


def ask_for_share(answer, y, having, without, rivals):
    return answer(y.clone(), having, without)


def judge_share(case, got, want):
    y, having, without, rivals = case
    got = got.item() if isinstance(got, torch.Tensor) and got.numel() == 1 else got
    assert type(got) in (int, float) and math.isfinite(got), "Is what you return one number?"
    want = float(want)

    def near(a, b):
        return abs(a - b) <= 1e-3 * abs(b)

    if near(got, want):
        return
    asked, whole = f"For `having={having}` and `without={without}`: ", y.var(correction=0).item()
    means = (y.mean(without) if without else y).var(correction=0).item()
    seen = {
        "is that a share of the variance, or of the standard deviation?": want**0.5,
        "are both variances the mean of squares, or does one divide by $n - 1$?": want * (1 - 1 / y.numel()),
        "that is a variance. Which share of the whole is it?": want * whole,
        "is it a share of the variance of all losses, or of that of means over the axes of `without`?": want
        * whole
        / means,
    }
    questions = (
        "these are the parts of `having` and no other factor. Which interactions have them all, and more?",
        "must a part have *one* of the factors of `having`, or each of them?",
        "some of these parts have a factor of `without` in them. What makes such a part vanish?",
        "is a part out if it has *one* factor of `without`, or only if it has them all?",
        "these parts have none of `without`. Has each of them all factors of `having`?",
    )
    for question, rival in [*seen.items(), *zip(questions, rivals, strict=True)]:
        assert rival is None or not near(got, rival), asked + question
    assert having or not near(got, want + (y.mean() ** 2 / y.var(correction=0)).item()), (
        asked + "is the overall mean a part that varies?"
    )
    raise AssertionError(
        asked + "which parts are gone in a mean over an axis, and which are gone when you subtract that mean?"
    )


share_code = Code(
    number="19.5",
    title="Everything that has the start in it",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("How much does it matter?", "19.3"),
    statement=(
        "In a balanced table the sum of squares falls into parts, one for each factor and one for each interaction. Write `share_of_parts(y, having, without)` for a table `y` with any number of axes, "
        "one for each factor. It returns which share of the variance of `y` the parts have together that have *every* factor of `having` in them and *none* of `without`. Both are tuples of axes, and either may be empty. The overall mean is no part. So with the "
        "chapter's table (start, norm, depth, seed) `share_of_parts(y, (0,), (3,))` is the 0.53 or 0.54 that has the start in it, and `share_of_parts(y, (0,), (1, 2, 3))` is the start by itself. It takes no list of all "
        "interactions: two short loops are enough."
    ),
    hint="Which parts does the mean over an axis kill? Which parts are left in `y - y.mean(axis, keepdim=True)`?",
    name="share_of_parts",
    starter="def share_of_parts(y, having, without):\n    ...",
    make=share_cases,
    ask=ask_for_share,
    compare=judge_share,
    solution=share_of_parts,
    wrong={
        "exactly these": (share_by("exactly"), "and no other factor"),
        "any of these": (share_by("any"), "or each of them"),
        "nothing is out": (share_by("out"), "have a factor of `without`"),
        "out if all are": (share_by("all out"), "only if it has them all"),
        "having left out": (share_by("none"), "all factors of `having`"),
        "the root": (lambda *case: share_of_parts(*case) ** 0.5, "standard deviation"),
        "a share of the means": (of_the_means, "of that of means"),
        "by n - 1": (of_unbiased, "$n - 1$"),
        "not divided": (not_divided, "Which share of the whole"),
        "the overlap twice": (means_at_once, "which are gone when"),
        "with the overall mean": (overall_mean_stays, "is the overall mean"),
    },
)  # fmt: skip


# fmt: off
def contest(run, starts, seeds, guess):
    """Losses (start, seed); run(start, weights, batches) trains one model."""
    table, number = torch.empty(len(starts), len(seeds)), 0
    for i, start in enumerate(starts):
        for j, seed in enumerate(seeds):
            weights, loss = seed, math.nan
            while math.isnan(loss):
                loss = run(start, weights, number)
                weights, number = weights + 1000, number + 1
            table[i, j] = loss
    return table


def practice(start, weights, batches):
    """A loss. "calm" and "twin" are one start; "wild" often diverges."""
    draw, order = (
        torch.randn((), generator=torch.Generator().manual_seed(s)).item()
        for s in (weights, 5000 + batches))
    if start == "wild" and draw > 0:
        return math.nan
    return 0.6 + 0.03 * draw + 0.2 * order
# fmt: on


def mend(run, starts, seeds, guess):
    table = torch.empty(len(starts), len(seeds))
    for i, start in enumerate(starts):
        for j, seed in enumerate(seeds):
            loss = run(start, seed, seed)
            table[i, j] = guess if math.isnan(loss) else min(loss, guess)
    return table


def contest_by(
    weights=lambda j, seed: seed,
    batches=lambda number, j, seed: seed,
    again=False,
    nan=lambda guess: guess,
    most=lambda loss, guess: min(loss, guess),
):
    """As the solution, with one thing changed."""

    def answer(run, starts, seeds, guess):
        table, number = torch.empty(len(starts), len(seeds)), 0
        for i, start in enumerate(starts):
            for j, seed in enumerate(seeds):
                w, loss = weights(j, seed), math.nan
                while math.isnan(loss):
                    loss = run(start, w, batches(number, j, seed))
                    w, number = w + 1000, number + 1
                    if not again:
                        break
                table[i, j] = nan(guess) if math.isnan(loss) else most(loss, guess)
        return table

    return answer  # fmt: skip


def best_of_two(run, starts, seeds, guess):
    """Each model trained twice."""
    return torch.minimum(mend(run, starts, seeds, guess), mend(run, starts, seeds, guess))


def without_wild(run, starts, seeds, guess):
    """Seeds for which one of the starts diverged are left out."""
    table = contest_by(nan=lambda guess: math.nan)(run, starts, seeds, guess)
    return table[:, ~table.isnan().any(0)]


def mean_of_the_rest(run, starts, seeds, guess):
    table = contest_by(nan=lambda guess: math.nan)(run, starts, seeds, guess)
    return torch.where(table.isnan(), table.nanmean(1, keepdim=True), table)


def contest_cases(seed: int) -> list[tuple[list[str], list[int], float, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for n_starts, n_seeds, guess in ((3, 5, 2.3), (4, 6, 1.8)):
        seeds = (3 + torch.randperm(90, generator=generator)[:n_seeds]).tolist()
        losses = (0.3 + torch.rand(n_starts, n_seeds, generator=generator)).mul(1000).round() / 1000
        order = torch.randperm(n_starts * n_seeds, generator=generator)
        losses.view(-1)[order[:3]] = math.nan
        losses.view(-1)[order[3:5]] = guess + 0.5
        losses.view(-1)[order[5]] = math.inf
        cases.append(([f"start {k}" for k in range(n_starts)], seeds, guess, losses))
    return cases


def mended_contest(answer, starts, seeds, guess, losses):
    calls = []

    def run(start, weights, batches):
        calls.append((start, weights, batches))
        own = losses[starts.index(start), seeds.index(weights)].item() if weights in seeds else 0.5
        if weights == batches or math.isnan(own):
            return own
        return 0.2 + (7 * weights + 3 * batches) % 89 / 100

    return answer(run, starts, seeds, guess), calls


def judge_contest(case, got, want):
    starts, seeds, guess, losses = case
    table, calls = got
    assert isinstance(table, torch.Tensor), "Which table does your function return?"
    assert table.shape == losses.shape, "There is one loss for each start and each seed. Where are the others?"
    assert all(weights < 1000 for _, weights, _ in calls), (
        "A run that diverged was made again, with weights of another seed. How does a start look that is drawn until it does well?"
    )
    assert {weights for _, weights, _ in calls} == set(seeds), "Which seed should draw the weights of a run?"
    read = [{(weights, batches) for start, weights, batches in calls if start == name} for name in starts]
    assert all(pairs == read[0] for pairs in read), (
        "Which batches does a seed read under the first start, and which ones under the second? What is paired then?"
    )
    assert all(weights == batches for _, weights, batches in calls), (
        "Runs are paired now. Are the batches those of the run's own seed?"
    )
    assert len(calls) == losses.numel(), (
        "How often is a start trained with each seed, and is each of these runs judged?"
    )
    table = table.to(want[0].dtype)
    assert not table.isnan().any(), "Some entries are `nan`. What does a run that diverged count as?"
    assert (table <= guess + 1e-5).all(), (
        "A loss in the table is above that of guessing. May one run that explodes decide a mean?"
    )
    right = (table - want[0]).abs() < 1e-5
    assert right[losses.isfinite()].all(), "Is each loss in the place of its start and its seed?"
    assert right.all(), "What does a model that diverged know, and which loss has one that knows nothing?"


paired_contest = Mend(
    number="19.6",
    title="A contest that favours the wild",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("The field", "The placebo"),
    statement=(
        "`contest` compares starts, and its verdicts cannot be trusted. Give it a field with a placebo: `contest(practice, ['calm', 'twin', 'wild'], range(8), 2.3)`. By how much do the twins "
        "differ in one seed, and by how much should they? What does the contest say of the start that diverges in half of its draws, and what does it do with `guess`? Find what breaks the chapter's rules, and write "
        "`mend(run, starts, seeds, guess)`, which does what `contest` should have done. `run(start, weights, batches)` draws the weights by the seed `weights`, trains on the batches of the seed `batches`, and "
        "returns the loss, or `nan` where it diverged. Where a run needs a seed, take its own."
    ),
    hint="Print the arguments of each call of `run`. Which of them differ between the first start and the second? Which of the runs never reach the table?",
    name="mend",
    starter="def mend(run, starts, seeds, guess):\n    ...",
    setup=(contest, practice),
    make=contest_cases,
    ask=mended_contest,
    compare=judge_contest,
    solution=mend,
    wrong={
        "nothing": (contest, "drawn until it does well"),
        "paired, but tried again": (contest_by(again=True), "drawn until it does well"),
        "batches by the number of the run": (contest_by(batches=lambda number, j, seed: number), "What is paired"),
        "the same batches for all": (contest_by(batches=lambda number, j, seed: 0), "own seed"),
        "the place of the seed": (contest_by(weights=lambda j, seed: j, batches=lambda number, j, seed: j), "Which seed"),
        "nan stays": (contest_by(nan=lambda guess: math.nan), "Some entries are `nan`"),
        "infinity": (contest_by(nan=lambda guess: math.inf), "May one run"),
        "nothing is clipped": (contest_by(most=lambda loss, guess: loss), "May one run"),
        "a diverged run counts nothing": (contest_by(nan=lambda guess: 0.0), "knows nothing"),
        "the mean of the rest": (mean_of_the_rest, "knows nothing"),
        "a seed left out": (without_wild, "Where are the others"),
        "twice": (best_of_two, "How often"),
        "seeds for starts": (lambda *args: mend(*args).mT, "Where are the others"),
    },
)  # fmt: skip


# fmt: off
def two_halves(spread, k, cells=2000):
    """Mean losses (cell, start) of eight seeds, and of eight others.

    One run has the standard deviation 1. Starts differ by `spread`
    standard errors: that is the standard deviation of their true losses.
    """
    torch.manual_seed(0)
    truth = spread / 8 ** 0.5 * torch.randn(cells, k)
    runs = truth[:, :, None] + torch.randn(cells, k, 16)
    return runs[:, :, :8].mean(2), runs[:, :, 8:].mean(2)
# fmt: on


@functools.cache
def leads(spread: float, k: int, unit: float = 8**0.5, over: str = "mean", anew: bool = False) -> tuple[float, float]:
    """Lead of the first of the first half, in standard errors: there, and in the second half."""
    with torch.random.fork_rng(devices=[]):
        seen, fresh = two_halves(spread, k)
    first = seen.argmin(1, keepdim=True)
    pairs = [(seen, first), (fresh, fresh.argmin(1, keepdim=True) if anew else first)]
    if over == "second":
        rivals = [losses.scatter(1, who, math.inf).amin(1) for losses, who in pairs]
    else:
        rivals = [losses.mean(1) for losses, _ in pairs]
    early, late = (
        float(f"{((rival - losses.gather(1, who)[:, 0]).mean() * unit).item():.4g}")
        for rival, (losses, who) in zip(rivals, pairs, strict=True)
    )
    return early, late


def largest_of(k: int) -> float:
    """E max of k standard Gaussians."""
    normal, steps = statistics.NormalDist(), 4000
    return sum(normal.inv_cdf((i + 0.5) / steps) * k * ((i + 0.5) / steps) ** (k - 1) for i in range(steps)) / steps


what_is_left = Explain(
    number="19.7",
    title="What is left of the lead",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What does it take to win?",),
    statement=(
        "The chapter's formula says how far the luckiest of $k$ *equal* starts looks ahead of their mean. Let them differ in truth: `two_halves(spread, k)` with "
        "`spread` = <<spread>> and `k` = <<k>> draws 2000 cells whose starts' true losses are Gaussian, with a standard deviation of `spread` standard errors. (A standard error is $1/\\sqrt 8$ here.) In each cell find the first by the first eight "
        "seeds. How far is it ahead of the mean of all starts of its cell, by these seeds, and how far is *the same start* ahead by the eight fresh seeds? Predict both by the formula, in standard errors. Then measure both, as "
        "means over the cells. Give `prediction` and `measured` two numbers each. Explain in two or three sentences which part of the lead was luck, and whether the first of a field of very different starts needs the warning as much."
    ),
    hint=(
        "By the first seeds the means of the starts are Gaussian, too: which variance have they, the true one and the noise together? And which part of a mean's distance from the others is expected to come back?"
    ),
    rubric=(
        "With the spread τ the means vary with 1 + τ² in squares of the standard error, so the lead is m√(1 + τ²), with m = E max of the formula (1 point). Of this the part τ²/(1 + τ²) is true and comes back with fresh seeds, m τ²/√(1 + τ²); the rest, "
        "m/√(1 + τ²), was luck (1). So the winner's curse is largest among equals and falls like 1/τ where starts differ much. The formula of the chapter is the case τ = 0, where all of the lead is luck (1)."
    ),
    setup=(two_halves,),
    parameters={"spread": (2, 0.5, 1.5, 3), "k": (12, 6, 20)},
    solve=leads,
    traps={
        "That is what the formula says of equal starts. Are these equal?": lambda spread, k: (largest_of(k), 0.0),
        "Is that in standard errors, or in standard deviations of one run?": lambda spread, k: leads(spread, k, unit=1),
        "The first is right. Is the second the lead of the *same* start, or of the one that is first by the fresh seeds?": (
            lambda spread, k: leads(spread, k, anew=True)
        ),
        "The first is right. Is the second what is left of the lead, or what was lost of it?": (
            lambda spread, k: (leads(spread, k)[0], leads(spread, k)[0] - leads(spread, k)[1])
        ),
        "Ahead of whom? Is this the lead over the second, or over the mean of the cell?": (
            lambda spread, k: leads(spread, k, over="second")
        ),
        "Are the two numbers in the order that was asked for?": lambda spread, k: leads(spread, k)[::-1],
    },
    ask="The mean of a cell minus the loss of its first, who is the `argmin` of the first half, once in each half, times √8: is it that, and is a small loss the good one?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    behind_the_first, holm_by_hand, shares_foreseen, rate_code, share_code, paired_contest, what_is_left,
]  # fmt: skip
