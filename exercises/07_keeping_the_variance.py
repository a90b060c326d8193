"""Exercises of chapter 7, *Keeping the variance*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

both_ways = Number(
    number="7.1",
    title="Forward and backward",
    minutes=3,
    difficulty="easy",
    points=2,
    needs=("One matrix, forward and backward",),
    statement=(
        "A matrix reads <<fan_in>> numbers and writes <<fan_out>>. By what do LeCun's and Xavier's rules multiply the "
        "*variance* of a signal on its way forward and of a gradient on its way back? Answer with four numbers: LeCun "
        "forward, LeCun backward, Xavier forward, Xavier backward."
    ),
    hint="$f_\\text{in}\\sigma^2$ and $f_\\text{out}\\sigma^2$. Only Xavier's pair averages to 1.",
    starter="answer = (..., ..., ..., ...)  # LeCun forward, backward, Xavier forward, backward",
    parameters={"fan_in": (64, 100, 48, 150), "fan_out": (256, 300, 200)},
    solve=lambda fan_in, fan_out: both_factors(fan_in, fan_out, 1 / fan_in, 2 / (fan_in + fan_out)),
    traps={
        "Which of the two fans does a signal on its way forward sum over?": (
            lambda fan_in, fan_out: both_factors(fan_out, fan_in, 1 / fan_in, 2 / (fan_in + fan_out))
        ),
        "LeCun's pair is right. Which of Xavier's two factors belongs to the way forward?": (
            lambda fan_in, fan_out: (
                *both_factors(fan_in, fan_out, 1 / fan_in, 0)[:2],
                *both_factors(fan_out, fan_in, 0, 2 / (fan_in + fan_out))[2:],
            )
        ),
        "The question is about variances. Did you take a root?": (
            lambda fan_in, fan_out: tuple(
                math.sqrt(x) for x in both_factors(fan_in, fan_out, 1 / fan_in, 2 / (fan_in + fan_out))
            )
        ),
        "That would be Xavier's pair for a square matrix. Which fans has this one?": (
            lambda fan_in, fan_out: (*both_factors(fan_in, fan_out, 1 / fan_in, 0)[:2], 1, 1)
        ),
        "Which of the two variances do LeCun and his coauthors keep, that of the signal or that of the gradient?": (
            lambda fan_in, fan_out: both_factors(fan_in, fan_out, 1 / fan_out, 2 / (fan_in + fan_out))
        ),
        "Is there a ReLU in front of this matrix? Whose rule has the 2 over the fan-in?": (
            lambda fan_in, fan_out: both_factors(fan_in, fan_out, 2 / fan_in, 2 / (fan_in + fan_out))
        ),
        "To what do Xavier's two factors average? What is it that stands above the sum of the fans?": (
            lambda fan_in, fan_out: both_factors(fan_in, fan_out, 1 / fan_in, 1 / (fan_in + fan_out))
        ),
    },
    ask="What is $\\sigma^2$ by each of the two rules, and what is it times the number of terms in each sum?",
)  # fmt: skip


def both_factors(fan_in: int, fan_out: int, lecun: float, xavier: float) -> tuple[float, float, float, float]:
    """Factors of the variance forward and backward, for two rules that give these σ²."""
    return fan_in * lecun, fan_out * lecun, fan_in * xavier, fan_out * xavier


which_draw = Choice(
    number="7.2",
    title="Six ways to draw",
    minutes=4,
    difficulty="easy",
    points=1,
    needs=("It is the variance, not the bell curve",),
    statement=(
        "An empty matrix `W` of shape $(1024, 1024)$ will be a projection of queries. You want its entries to have a "
        "standard deviation of $1/32$. After which of these lines of `torch.nn.init` do they have it?"
    ),
    hint="The second and third argument of `uniform_` are its ends. `trunc_normal_` has `a=-2, b=2`, unless you say otherwise.",
    options={
        "`uniform_(W, -1/32, 1/32)`": "These are the ends of the distribution. What is the variance of $U(-a, a)$?",
        "`trunc_normal_(W, std=1/32, a=-1/16, b=1/16)`": (
            "Is `std` the deviation before the cut, or after it? How many deviations from the middle does this one cut?"
        ),
        "`trunc_normal_(W).div_(32)`": (
            "The division comes last. What was the standard deviation before it, when the cut was at ±2?"
        ),
        "`kaiming_normal_(W)`": "For what does the 2 in this rule's $\\sigma^2$ make up? Does it stand in front of `W`?",
        "`trunc_normal_(W, std=1/32)`": "",
        "`kaiming_uniform_(W, a=5**0.5)`": (
            "This is what `nn.Linear` calls. Which bound does its gain give, and which standard deviation?"
        ),
    },
)

shared_keys = Number(
    number="7.3",
    title="Shared keys, by Xavier's rule",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("7.1", "What each rule makes of a block"),
    statement=(
        "A token of width <<d_model>> is read by query heads of width 64, which together write <<d_model>> numbers. As in "
        "Llama, they share <<key_heads>> key heads of width 64, and as many value heads. The output projection is square. "
        "Draw each of the four matrices by Xavier's rule, with its own fans. Predict two numbers for tokens of variance 1: "
        "the standard deviation of the logits, and the factor of the variance on the way through value and output, for a "
        "token that attends only to itself."
    ),
    hint=(
        "What are the fan-in and the fan-out of the key matrix? In $\\operatorname{Var} s = d^2\\sigma_q^2\\sigma_k^2$ both "
        "$d$ are widths that are *read*. The output projection reads a value once for each query head."
    ),
    starter="answer = (..., ...)  # the standard deviation, the factor of the variance",
    parameters={"d_model": (2048, 4096, 3072, 6144), "key_heads": (8, 4, 16)},
    solve=lambda d_model, key_heads: (of_shared(d_model, key_heads) ** 0.5, of_shared(d_model, key_heads)),
    traps={
        "Is the first number the variance of the logits, or their standard deviation?": (
            lambda d_model, key_heads: (of_shared(d_model, key_heads), of_shared(d_model, key_heads))
        ),
        "Is the second number a factor of the variance, or of the size?": (
            lambda d_model, key_heads: (of_shared(d_model, key_heads) ** 0.5, of_shared(d_model, key_heads) ** 0.5)
        ),
        "These are the numbers of square matrices. Which fan of the keys has become smaller?": (
            lambda d_model, key_heads: (1, 1)
        ),
        "Did you take one key head for the whole matrix? How many rows has it?": (
            lambda d_model, key_heads: (of_shared(d_model, 1) ** 0.5, of_shared(d_model, 1))
        ),
        "How many numbers does a key matrix read? Is it as many as it writes?": (
            lambda d_model, key_heads: (
                (64 * key_heads / d_model * of_shared(d_model, key_heads)) ** 0.5, of_shared(d_model, key_heads),
            )
        ),
        "How many numbers does the output projection read for a token, when several heads share a value?": (
            lambda d_model, key_heads: (
                of_shared(d_model, key_heads) ** 0.5, 64 * key_heads / d_model * of_shared(d_model, key_heads),
            )
        ),
        "The queries are not shared. Did you give them the σ of the keys?": (
            lambda d_model, key_heads: (of_shared(d_model, key_heads), of_shared(d_model, key_heads) ** 2)
        ),
    },
    ask="What is $\\sigma^2$ of each of the four matrices, and how many numbers does each of them read?",
)  # fmt: skip


def of_shared(d_model: int, key_heads: int) -> float:
    """σ² of a key matrix, times what it reads."""
    return 2 * d_model / (d_model + 64 * key_heads)


def stream_limits(norm, sigmas, d_model, d_ff, n_blocks, start):
    of_values = d_model**2 * sigmas["value"] ** 2 * sigmas["output"] ** 2
    of_network = d_model * sigmas["feed_forward_in"] ** 2 / 2 * d_ff * sigmas["feed_forward_out"] ** 2
    limits = [start]
    for _ in range(n_blocks):
        if norm == "none":
            limits.append(limits[-1] * (1 + of_values) * (1 + of_network))
        else:
            limits.append(limits[-1] + of_values + of_network)
    return limits


ROLES = ("query", "key", "value", "output", "feed_forward_in", "feed_forward_out")


def limit_cases(seed: int) -> list[tuple[str, dict[str, float], int, int, int, float]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for norm, silent, d_model, d_ff, n_blocks in (
        ("pre", "value", 24, 60, 3),
        ("pre", "feed_forward_out", 50, 90, 4),
        ("none", "value", 40, 70, 2),
        ("none", "none", 36, 80, 5),
        ("pre", "none", 30, 75, 6),
    ):
        factors = (0.7 + torch.rand(len(ROLES), generator=generator)).tolist()
        sigmas = {role: round(x * d_model**-0.5, 4) for role, x in zip(ROLES, factors, strict=True)}
        start = round(1.5 + torch.rand((), generator=generator).item(), 2)
        cases.append(
            (norm, {**sigmas, **{role: 0.0 for role in sigmas if role == silent}}, d_model, d_ff, n_blocks, start)
        )
    return cases


def judge_limits(case, got, want):
    norm, sigmas, _, _, n_blocks, start = case
    if isinstance(got, torch.Tensor) and got.ndim == 1:
        got = got.tolist()
    if isinstance(got, (list, tuple)):
        got = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in got]
    many = isinstance(got, list) and all(type(x) in (int, float) and math.isfinite(x) for x in got)
    assert many, "Is what comes back a list of numbers?"
    assert len(got) != n_blocks, (
        f"{n_blocks} blocks, and {len(got)} numbers. Is the stream before the first block among them?"
    )
    assert len(got) == n_blocks + 1, (
        f"{n_blocks} blocks, and {len(got)} numbers. After which of the blocks do you look?"
    )

    def same(some, others):
        return all(abs(a - b) <= 1e-3 * abs(b) for a, b in zip(some, others, strict=True))

    if same(got, want):
        return
    assert not same(got, [x**0.5 for x in want]), "Is this the variance of the stream, or its RMS?"
    assert same(got[:1], [start]), "What is the variance of the stream before the first block?"
    added = [got[i + 1] - got[i] for i in range(n_blocks)]
    times = [got[i + 1] / got[i] if got[i] else 0.0 for i in range(n_blocks)]
    if norm == "none":
        assert same(times, times[:1] * n_blocks), (
            "Without a norm a branch reads the stream as loud as it is. Does a block then add, or multiply?"
        )
        assert sigmas["value"] != 0, (
            "Attention writes nothing here. What do the feed-forward branch and the skip make of 1?"
        )
        raise AssertionError(
            "Each branch has its own skip. What carries the skip of attention to the feed-forward branch, and by what does "
            "the variance grow there?"
        )
    assert same(added, added[:1] * n_blocks), (
        "Behind a LayerNorm every branch reads a variance of 1. Is what it adds the same in each block?"
    )
    assert not same(added, [start * (want[1] - start)] * n_blocks), (
        "Behind a LayerNorm every branch reads a variance of 1. Do you multiply what it adds by `start`?"
    )
    assert min(added) > 0, "The stream does not grow. What does a skip carry past a branch?"
    if sigmas["value"] == 0:
        assert not same(added, [2 * (want[1] - start)] * n_blocks), "What does a ReLU leave of the mean square?"
        raise AssertionError(
            "Only the feed-forward branch writes here. How many numbers do W₁ and W₂ read, and which power of their σ "
            "stands in a variance?"
        )
    assert sigmas["feed_forward_out"] != 0, (
        "Only attention writes here. Which two matrices does a value pass on its way into the stream, and which power of "
        "their σ stands in a variance?"
    )
    raise AssertionError(
        "Either branch alone is right. A norm stands before each of them: what does each add when both write?"
    )


def limits_by(of_values=None, of_network=None, step=None):
    """As the solution, with one formula replaced."""

    def answer(norm, sigmas, d_model, d_ff, n_blocks, start):
        s = {**sigmas, "d": d_model, "d_ff": d_ff}
        v = (of_values or (lambda s: (s["d"] * s["value"] * s["output"]) ** 2))(s)
        f = (of_network or (lambda s: s["d"] * s["d_ff"] * (s["feed_forward_in"] * s["feed_forward_out"]) ** 2 / 2))(s)
        limits = [start]
        for _ in range(n_blocks):
            usual = limits[-1] * (1 + v) * (1 + f) if norm == "none" else limits[-1] + v + f
            limits.append(usual if step is None else step(norm, limits[-1], v, f))
        return limits

    return answer


def times_the_start(norm, sigmas, d_model, d_ff, n_blocks, start):
    limits = stream_limits(norm, sigmas, d_model, d_ff, n_blocks, start)
    return limits if norm == "none" else [start + start * (x - start) for x in limits]


def either(none, pre):
    return lambda norm, x, v, f: none(x, v, f) if norm == "none" else pre(x, v, f)


stream_code = Code(
    number="7.4",
    title="The stream, block by block",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("What each rule makes of a block", "When He is wrong"),
    statement=(
        "How loud can the stream become? Write `stream_limits(norm, sigmas, d_model, d_ff, n_blocks, start)`. `norm` is "
        '`"none"` or `"pre"`. `sigmas` maps each of the six roles `query`, `key`, `value`, `output`, `feed_forward_in` and '
        "`feed_forward_out` to the σ of its matrix. A block is attention, then a feed-forward branch of width `d_ff` with "
        "a ReLU, and each of the two has a skip. `start` is the variance of the stream before the first block. Return a "
        "list of `n_blocks + 1` numbers: `start`, and the limit of the variance after each block, which a stream "
        "reaches when the average over tokens loses nothing."
    ),
    hint=(
        "The chapter has both branches, $d^2\\sigma_v^2\\sigma_o^2$ and $d\\,\\sigma_1^2\\cdot\\tfrac12\\cdot "
        "d_\\text{ff}\\,\\sigma_2^2$. With He's rule and $d_\\text{ff} = d$ a block makes 15 of 1, or adds 6."
    ),
    name="stream_limits",
    starter="def stream_limits(norm, sigmas, d_model, d_ff, n_blocks, start):\n    ...",
    make=limit_cases,
    compare=judge_limits,
    solution=stream_limits,
    wrong={
        "multiplies behind a norm": (
            limits_by(step=lambda norm, x, v, f: x * (1 + v) * (1 + f)), "the same in each block"),
        "adds without a norm": (limits_by(step=lambda norm, x, v, f: x + v + f), "add, or multiply"),
        "post-LN": (limits_by(step=either(lambda x, v, f: x, lambda x, v, f: 1 + v + f)), "the same in each block"),
        "the ReLU forgotten": (
            limits_by(of_network=lambda s: s["d"] * s["d_ff"] * (s["feed_forward_in"] * s["feed_forward_out"]) ** 2),
            "ReLU leave"),
        "a square network": (
            limits_by(of_network=lambda s: (s["d"] * s["feed_forward_in"] * s["feed_forward_out"]) ** 2 / 2),
            "W₁ and W₂ read"),
        "σ for σ² in the network": (
            limits_by(of_network=lambda s: s["d"] * s["d_ff"] * s["feed_forward_in"] * s["feed_forward_out"] / 2),
            "W₁ and W₂ read"),
        "query and key for value and output": (
            limits_by(of_values=lambda s: (s["d"] * s["query"] * s["key"]) ** 2), "feed-forward branch writes"),
        "the root of values": (limits_by(of_values=lambda s: s["d"] * s["value"] * s["output"]), "Only attention"),
        "one matrix": (limits_by(of_values=lambda s: s["d"] * s["output"] ** 2), "feed-forward branch writes"),
        "both branches read the same": (
            limits_by(step=either(lambda x, v, f: x * (1 + v + f), lambda x, v, f: x + v + f)), "its own skip"),
        "no skip": (limits_by(step=either(lambda x, v, f: x * v * f, lambda x, v, f: x)), "past a branch"),
        "no skip without a norm": (
            limits_by(step=either(lambda x, v, f: x * f, lambda x, v, f: x + v + f)), "and the skip make"),
        "attention forgotten": (limits_by(of_values=lambda s: 0.0), "does a skip carry past"),
        "times the start": (times_the_start, "by `start`"),
        "the network reads the new stream": (
            limits_by(step=either(lambda x, v, f: x * (1 + v) * (1 + f), lambda x, v, f: x + v + (1 + v) * f)),
            "before each of them"),
        "RMS": (lambda *case: [math.sqrt(x) for x in stream_limits(*case)], "its RMS"),
        "the start left out": (lambda *case: stream_limits(*case)[1:], "before the first block among"),
        "the last only": (lambda *case: stream_limits(*case)[-1], "list of numbers"),
    },
)  # fmt: skip


def fill_truncated(weight, cut, generator):
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    left = math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))
    sigma = weight.shape[1] ** -0.5 / left
    with torch.no_grad():
        torch.nn.init.trunc_normal_(weight, 0, sigma, -cut * sigma, cut * sigma, generator=generator)


def left_by(cut: float) -> float:
    """Standard deviation of a standard Gaussian between ±cut."""
    return math.sqrt(1 - 2 * cut * math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi) / math.erf(cut / math.sqrt(2)))


def cut_gaussian(weight: Tensor, sigma: float, bound: float, generator: torch.Generator | None) -> None:
    torch.nn.init.trunc_normal_(weight, 0, sigma, -bound, bound, generator=generator)


def clamped(weight: Tensor, cut: float, generator: torch.Generator) -> None:
    sigma = weight.shape[1] ** -0.5
    weight.normal_(0, sigma, generator=generator).clamp_(-cut * sigma, cut * sigma)


def rescaled(weight: Tensor, cut: float, generator: torch.Generator) -> None:
    """The right deviation by force, and the cut where it was."""
    cut_gaussian(weight, weight.shape[1] ** -0.5, cut * weight.shape[1] ** -0.5, generator)
    weight.mul_(weight.shape[1] ** -0.5 / weight.std()).clamp_(
        -cut * weight.shape[1] ** -0.5, cut * weight.shape[1] ** -0.5
    )


def seeded_anew(weight: Tensor, cut: float, generator: torch.Generator) -> None:
    fill_truncated(weight, cut, torch.Generator().manual_seed(0))


def truncated_cases(seed: int) -> list[tuple[int, int, float, int]]:
    cuts = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
    shapes = ((130, 150), (90, 200), (170, 120))
    return [
        (*shape, round(low + width * x, 3), seed)
        for shape, low, width, x in zip(shapes, (1.3, 0.5, 3.0), (0.4, 0.7, 1.0), cuts, strict=True)
    ]


def drawn_and_seen(answer, rows, columns, cut, seed):
    def draw(fan_out, fan_in, of):
        weight = torch.zeros(fan_out, fan_in)
        answer(weight, cut, torch.Generator().manual_seed(of))
        return weight

    first, (once, again, other) = draw(rows, columns, seed), [draw(4, 7, of) for of in (seed, seed, seed + 1)]
    largest = first.abs().max()
    return {
        "std": first.std().item(),
        "mean": first.mean().item(),
        "largest": largest.item(),
        "at the end": (first.abs() > 0.999 * largest).double().mean().item(),
        "again": torch.equal(once, again),
        "other": torch.equal(once, other),
    }


def judge_truncated(case, got, want):
    rows, columns, cut, _ = case
    whole = isinstance(got, dict) and set(got) == set(want) and all(type(x) in (float, bool) for x in got.values())
    assert whole and all(math.isfinite(x) for x in got.values()), "Does every entry hold a number after your function?"
    assert got["largest"] > 0, "The matrix is as it was. Do you fill it in place?"
    assert got["again"], "The same generator gave other numbers. Where do your numbers come from?"
    assert not got["other"], "Two generators gave the same numbers. Is the one that is handed in used?"
    assert got["at the end"] < 0.02, (
        "Many entries lie exactly at the end. Does a truncated Gaussian keep its tails there?"
    )
    std = columns**-0.5
    assert abs(got["mean"]) < 0.05 * std, "The mean is not 0. Is the cut the same on both sides?"
    right = abs(got["std"] - std) < 0.025 * std
    if not right:
        assert abs(got["std"] - rows**-0.5) > 0.025 * rows**-0.5, "Is the number of rows the fan-in?"
        raise AssertionError(
            f"With a cut of {cut} and a fan-in of {columns}, std · √fan-in is {got['std'] / std:.3f}. What has the cut taken away?"
        )
    where = "The standard deviation is right, and the cut is not where it should be. Of which σ is it a multiple"
    if cut < 2.5:
        assert abs(got["largest"] - want["largest"]) < 0.02 * want["largest"], f"{where}?"
    else:
        assert got["largest"] < 1.02 * cut * std, f"{where}, and is there one for a large `cut` too?"


truncated_code = Code(
    number="7.5",
    title="Truncated, with the right σ",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("7.2", "It is the variance, not the bell curve"),
    statement=(
        "Write `fill_truncated(weight, cut, generator)`. It fills `weight`, a tensor of shape `(fan_out, fan_in)` and no "
        "parameter, in place with draws from a truncated Gaussian of mean 0. *After* the cut their standard deviation "
        "is $1/\\sqrt{f_\\text{in}}$, and no entry is further out than `cut` times the σ that the Gaussian had *before* it. "
        "This must hold for any `cut` from 0.5 to 4. All numbers come from `generator`."
    ),
    hint=(
        "With $\\varphi$ and $\\Phi$ of the standard normal, the standard deviation after the cut is "
        "$\\sigma\\sqrt{1 - 2c\\,\\varphi(c)/(2\\Phi(c) - 1)}$, and $2\\Phi(c) - 1$ is `math.erf(c / math.sqrt(2))`. Divide "
        "by the root first. `torch.nn.init.trunc_normal_` takes absolute bounds."
    ),
    name="fill_truncated",
    starter="def fill_truncated(weight, cut, generator):\n    ...",
    make=truncated_cases,
    ask=drawn_and_seen,
    compare=judge_truncated,
    solution=fill_truncated,
    wrong={
        "not corrected": (
            lambda w, c, g: cut_gaussian(w, w.shape[1] ** -0.5, c * w.shape[1] ** -0.5, g), "cut taken away"),
        "corrected for a cut at 2 only": (
            lambda w, c, g: cut_gaussian(w, w.shape[1] ** -0.5 / left_by(2), c * w.shape[1] ** -0.5 / left_by(2), g),
            "cut taken away"),
        "multiplied by the root": (
            lambda w, c, g: cut_gaussian(
                w, w.shape[1] ** -0.5 * left_by(c), c * w.shape[1] ** -0.5 * left_by(c), g), "cut taken away"),
        "the cut as a number": (
            lambda w, c, g: cut_gaussian(w, w.shape[1] ** -0.5 / left_by(c), c, g), "cut taken away"),
        "the cut by the σ after it": (
            lambda w, c, g: cut_gaussian(w, w.shape[1] ** -0.5 / left_by(c), c * w.shape[1] ** -0.5, g),
            "cut taken away"),
        "clamped": (clamped, "keep its tails"),
        "rescaled and clamped": (rescaled, "keep its tails"),
        "no cut": (lambda w, c, g: w.normal_(0, w.shape[1] ** -0.5, generator=g), "Of which σ"),
        "uniform": (
            lambda w, c, g: w.uniform_(-((3 / w.shape[1]) ** 0.5), (3 / w.shape[1]) ** 0.5, generator=g), "Of which σ"),
        "the fan-out": (
            lambda w, c, g: cut_gaussian(
                w, w.shape[0] ** -0.5 / left_by(c), c * w.shape[0] ** -0.5 / left_by(c), g), "rows the fan-in"),
        "the global generator": (
            lambda w, c, g: cut_gaussian(
                w, w.shape[1] ** -0.5 / left_by(c), c * w.shape[1] ** -0.5 / left_by(c), None), "numbers come from"),
        "a generator of its own": (seeded_anew, "handed in"),
        "a copy": (lambda w, c, g: fill_truncated(w.clone(), c, g), "in place"),
        "one side": (lambda w, c, g: (fill_truncated(w, c, g), w.abs_()), "both sides"),
    },
)  # fmt: skip


# fmt: off
class Packed(torch.nn.Module):
    """Attention whose query, key and value stand in one matrix."""

    def __init__(self, d_model, n_heads, n_key_heads):
        super().__init__()
        d_head = d_model // n_heads
        self.n_heads, self.n_key_heads = n_heads, n_key_heads
        self.sizes = [d_model, n_key_heads * d_head, n_key_heads * d_head]
        self.packed = torch.nn.Linear(d_model, sum(self.sizes), bias=False)
        self.output = torch.nn.Linear(d_model, d_model, bias=False)
        for layer in (self.packed, self.output):
            torch.nn.init.xavier_uniform_(layer.weight)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (y.view(B, T, -1, C // self.n_heads).transpose(1, 2)
                   for y in self.packed(x).split(self.sizes, dim=-1))
        k, v = (y.repeat_interleave(self.n_heads // self.n_key_heads, dim=1)
                for y in (k, v))
        weights = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, dim=-1)
        return self.output((weights @ v).transpose(1, 2).reshape(B, T, C))
# fmt: on


def mend(layer):
    weight = layer.packed.weight
    rows, d_model = weight.shape
    with torch.no_grad():
        for block in weight.split(layer.sizes):
            block *= math.sqrt((rows + d_model) / (len(block) + d_model))


@torch.no_grad()
def blockwise(layer: nn.Module, factor, sizes: list[int] | None = None, roles: tuple[int, ...] = (0, 1, 2)) -> None:
    """Multiply blocks by ``factor(rows of the block, rows of all, d_model)``."""
    weight = layer.packed.weight
    for i, block in enumerate(weight.split(sizes or layer.sizes)):
        if i in roles:
            block *= factor(len(block), *weight.shape)


def right_factor(block: int, rows: int, d: int) -> float:
    return math.sqrt((rows + d) / (block + d))


def thirds(layer: nn.Module) -> list[int]:
    return [len(layer.packed.weight) // 3] * 2 + [len(layer.packed.weight) - 2 * (len(layer.packed.weight) // 3)]


def reversed_blocks(layer: nn.Module) -> None:
    blockwise(layer, right_factor, layer.sizes[::-1])


@torch.no_grad()
def drawn_anew(layer: nn.Module) -> None:
    for block in layer.packed.weight.split(layer.sizes):
        nn.init.xavier_uniform_(block)


@torch.no_grad()
def by_measuring(layer: nn.Module) -> None:
    for block in layer.packed.weight.split(layer.sizes):
        block *= math.sqrt(2 / sum(block.shape)) / block.std()


@torch.no_grad()
def output_too(layer: nn.Module) -> None:
    mend(layer)
    layer.output.weight *= math.sqrt(2)


def packed_cases(seed: int) -> list[tuple[int, int, int, int]]:
    return [(10, 5, 1, seed), (18, 6, 2, seed + 1)]


def mended_packed(answer, d_model, n_heads, n_key_heads, seed):
    torch.manual_seed(seed)
    layer = Packed(d_model, n_heads, n_key_heads)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    answer(layer)
    after = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    changed = {name: x for name, x in after.items() if name not in before or not torch.equal(x, before[name])}
    return sorted(after), changed


def judge_packed(case, got, want):
    d_model, n_heads, n_key_heads, seed = case
    assert isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], dict), "Is the layer there still?"
    names, changed = got
    assert names == want[0], "Which parameters had the layer before? Are they all there still?"
    assert changed, "Nothing was changed. Does your function change the layer in place?"
    assert "output.weight" not in changed, "The output projection has changed. In which matrix is it packed?"
    new = changed.get("packed.weight")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = Packed(d_model, n_heads, n_key_heads)
    old = layer.packed.weight.detach()
    assert isinstance(new, torch.Tensor) and new.shape == old.shape, "Has the matrix the shape that it had?"
    assert new.isfinite().all(), "The matrix holds something that is no number. By what did you divide?"
    found, wanted = [], []
    for part, a, b, c in zip(
        ("query", "key", "value"), *(x.split(layer.sizes) for x in (new, old, want[1]["packed.weight"])), strict=True
    ):
        each = a / b
        even = (each - each.median()).abs().max() < 1e-3 * each.abs().max()
        known = (a.flatten() @ b.flatten()) / (a.norm() * b.norm()) > 0.9
        assert known, f"Are these still the random numbers that stood in the block of the {part}?"
        assert even, f"The {part} was not multiplied by one number. In which row does each block begin?"
        found.append(each.median().item())
        wanted.append((c / b).median().item())
    ratios = [f / w for f, w in zip(found, wanted, strict=True)]
    if all(abs(r - 1) < 1e-3 for r in ratios):
        return
    assert all(abs(f - 1) > 1e-3 for f in found), "One of the three is as it was. Which of them are packed?"
    powers = [math.log(f) / math.log(w) if f > 0 else 0.0 for f, w in zip(found, wanted, strict=True)]
    assert not all(abs(p - 2) < 1e-2 for p in powers), "Is that the factor of σ, or of σ²?"
    assert not all(abs(p + 1) < 1e-2 for p in powers), "Did the packed shape make the entries too large, or too small?"
    assert not abs(found[0] - found[1]) < 1e-3 * found[0], (
        "All three got the same factor. Do they write equally many numbers, when keys and values are shared?"
    )
    assert not abs(found[1] - found[2]) > 1e-3 * found[1], (
        "Key and value have the same shape. Is your factor made of the fans, or of the numbers that happened to be drawn?"
    )
    raise AssertionError(
        "Each block has a factor of its own, but another one. Which two fans does Xavier's rule see in the packed matrix, and "
        "which has a projection with all of its heads?"
    )


packed_trap = Mend(
    number="7.6",
    title="Packed, with shared keys",
    minutes=20,
    difficulty="medium",
    points=3,
    needs=("7.3", "The packed trap"),
    statement=(
        "The layer below keeps query, key and value in one matrix and draws it by Xavier's rule. Build `Packed(256, 8, 8)` "
        "and run `attntut.diagnose` on it, with `torch.randn(8, 32, 256)`. It finds the trap. Now build "
        "`Packed(256, 8, 2)`, in which four query heads share a key head: the trap is there as well, but no finding names "
        "it. Compare the `std`, the `fan_in` and the `fan_out` in the `weights` of this report. Then write `mend(layer)`, "
        "which multiplies each of the three blocks by one number, in place, so that its σ becomes what Xavier's rule gives "
        "for its own fans, for any number of key heads. Compute these numbers from the shapes, and draw nothing anew."
    ),
    hint="`layer.packed.weight.split(layer.sizes)` gives views. By what must σ be multiplied when `fan_out` was taken for `sum(sizes)`?",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Packed,),
    make=packed_cases,
    ask=mended_packed,
    compare=judge_packed,
    solution=mend,
    wrong={
        "nothing": (lambda m: None, "Nothing was changed"),
        "√2 for all": (lambda m: blockwise(m, lambda *_: math.sqrt(2)), "equally many"),
        "equal parts": (lambda m: blockwise(m, right_factor, thirds(m)), "begin"),
        "the blocks reversed": (reversed_blocks, "begin"),
        "the value left out": (lambda m: blockwise(m, right_factor, roles=(0, 1)), "as it was"),
        "the query left out": (lambda m: blockwise(m, right_factor, roles=(1, 2)), "as it was"),
        "σ² for σ": (lambda m: blockwise(m, lambda *s: right_factor(*s) ** 2), "of σ²"),
        "the wrong way": (lambda m: blockwise(m, lambda *s: 1 / right_factor(*s)), "too small"),
        "one head as a block": (
            lambda m: blockwise(m, lambda b, r, d: math.sqrt((r + d) / (d / m.n_heads + d))), "equally many"),
        "only the fan-out": (lambda m: blockwise(m, lambda b, r, d: math.sqrt(r / b)), "Which two fans"),
        "the output too": (output_too, "In which matrix"),
        "drawn anew": (drawn_anew, "random numbers"),
        "by measuring": (by_measuring, "happened to be drawn"),
    },
)  # fmt: skip


# fmt: off
def fresh_attention(n, d=256, layers=8):
    """Tokens and what fresh layers make of them, (layers, n, d) each."""
    torch.manual_seed(0)
    tokens, outputs = torch.randn(layers, n, d), []
    for x in tokens:
        layer = torch.nn.MultiheadAttention(d, 8)
        outputs.append(layer(x, x, x)[0].detach())
    return tokens, torch.stack(outputs)
# fmt: on


@functools.cache
def outputs_of_fresh(n: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return fresh_attention(n)[1]


what_is_left = Explain(
    number="7.7",
    title="What is left of a token",
    minutes=20,
    difficulty="hard",
    points=2,
    manual=3,
    needs=("7.3", "The packed trap", "What such logits do to the outputs"),
    statement=(
        "Does a fresh `nn.MultiheadAttention` keep the variance of what it reads? Its output projection is an `nn.Linear` as "
        "it comes, and all biases are 0. The function below draws <<n>> independent tokens of variance 1 for each of eight "
        "layers, and returns them with the outputs. First predict the variance of the outputs. What do value and output "
        "make of a variance of 1, and what does the average over the tokens leave of that? Then measure the variance over all "
        "the numbers in `outputs`. Answer with both, and explain in two sentences in which step most of the variance is "
        "lost, and what would change if all tokens were alike."
    ),
    hint=(
        "The value matrix has variance $1/(2d)$, and that of `nn.Linear` is $1/(3d)$. An average with the weights $p_{ij}$ "
        "has the variance $\\sum_j p_{ij}^2$, and the logits have $\\sigma_s = \\tfrac12$."
    ),
    rubric=(
        "The prediction is ½ · ⅓ · e^(1/4)/n, or at least 1/(6n) with the remark that the weights are not all equal (1 point). "
        "The matrices leave a sixth: the packed fan-out makes ½ of 1, nn.Linear's own rule ⅓ (1). The average over n "
        "independent tokens divides by about n, which is most of the loss; tokens that are all alike would lose nothing in "
        "it, and the output would have 1/6 (1)."
    ),
    setup=(fresh_attention,),
    parameters={"n": (32, 16, 48, 24)},
    solve=lambda n: outputs_of_fresh(n).var().item(),
    traps={
        "That is what is left of a token that attends only to itself. How many does it average here?": lambda n: 1 / 6,
        "That is what equal weights would leave. Did you measure it?": lambda n: 1 / (6 * n),
        "Is that the variance, or its root?": lambda n: outputs_of_fresh(n).std().item(),
        "You took the variance over the tokens of a layer. What do all of its outputs share?": (
            lambda n: outputs_of_fresh(n).var(dim=1).mean().item()
        ),
        "Is that the variance of a number, or the squared length of a token?": (
            lambda n: outputs_of_fresh(n).square().sum(dim=-1).mean().item()
        ),
        "That is the variance of the tokens. What do the layers make of them?": lambda n: 1,
    },
    ask="Is it the variance over all layers, tokens and entries of `outputs`, for this number of tokens?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    both_ways, which_draw, shared_keys, stream_code, truncated_code, packed_trap, what_is_left,
]  # fmt: skip
