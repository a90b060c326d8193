"""Exercises of chapter 20, *What the world's models do*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number, short

four_times = Choice(
    number="20.1",
    title="Four times the spread",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("One number for every width",),
    statement=(
        "A model draws all its matrices from the library's default, a Gaussian with `initializer_range` 0.02. A norm stands in front of query "
        "and key, their products are divided by $\\sqrt{d_\\text{head}}$, with heads of 64, and there is no QK-norm. You draw it again, with one thing changed. Which change makes "
        "the standard deviation of the first logits four times what it was?"
    ),
    hint="Which of these stand in $d\\,\\sigma_q\\sigma_k$, and in which power?",
    options={
        "Four times as many heads, at the same width.": (
            "A sum of fewer products, over the root of their number. What is left of $d_\\text{head}$ in $s$?"
        ),
        "An `initializer_range` of 0.08.": "How many of the matrices that were drawn with it stand in a logit?",
        "Twice the width, with heads twice as wide.": "In which power does $d$ stand in $s$, and does the heads' width?",
        "No division by $\\sqrt{d_\\text{head}}$.": "How large is the root of 64?",
        "An `initializer_range` of 0.04.": "",
        "Texts four times as long.": "What do $n$ tokens have to do with one logit, and what with the mean of a row?",
    },
)


def without_root(d: float, d_h: float, n: float, t: float, power: float = 0.5, seen: float = 0.5) -> tuple[float, ...]:
    """Spread at σ = 0.02 and the σ for a spread of t, with a scale of 1."""
    factor = d * d_h**power * (1 - 1 / n) ** seen
    return digits(factor / 2500, math.sqrt(t / factor))


def digits(*values: float) -> tuple[float, ...]:
    """Four digits of each."""
    return tuple(map(short, values))


no_root = Number(
    number="20.2",
    title="Like GPT-Neo, at your width",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("One number for every width", "All of them, and the ones that do not fit"),
    statement=(
        "You train a model from its configuration. It has the width <<d>> and heads of <<d_h>>, a norm in front of the attention, and like GPT-Neo it multiplies $q^\\top k$ by nothing ($c = 1$). "
        "Each token sees $n = $ <<n>> tokens, which are unlike ($\\rho = 0$). Which spread of the logits does the softmax see if all is drawn with $\\sigma = 0.02$? And which `initializer_range` would "
        "make it <<t>>? Answer with two numbers."
    ),
    hint="The formula with $c = 1$, $r = 1$. Then ask how often σ stands in it.",
    starter="answer = (..., ...)  # spread at 0.02, initializer_range",
    parameters={"d": (768, 2048, 512, 1024), "d_h": (64, 256, 16), "n": (10, 5, 16), "t": (1, 0.5, 2)},
    solve=without_root,
    traps={
        "What is $c\\sqrt{d_\\text{head}}$ here?": (
            lambda d, d_h, n, t: without_root(d, d_h, n, t, power=0)
        ),
        "Does a sum of $d_\\text{head}$ products grow like $d_\\text{head}$, or like its root?": (
            lambda d, d_h, n, t: without_root(d, d_h, n, t, power=1)
        ),
        "What does a softmax not notice of the $n$ logits of a row?": (
            lambda d, d_h, n, t: without_root(d, d_h, n, t, seen=0)
        ),
        "The spread is right. If you halve σ, does it fall to one half?": (
            lambda d, d_h, n, t: digits(without_root(d, d_h, n, t)[0], 0.02 * t / without_root(d, d_h, n, t)[0])
        ),
        "Are the two numbers in the order that was asked for?": lambda d, d_h, n, t: without_root(d, d_h, n, t)[::-1],
    },
    ask="What is $c\\sqrt{d_\\text{head}}$, and in which power do $d$, σ and $1 - 1/n$ stand in the formula?",
)  # fmt: skip


def spread_of_segments(d: float, rho: float, power: float = 0.5) -> tuple[float, ...]:
    return digits(rho, d / 2500 * (1 - rho) ** power)


segments = Number(
    number="20.3",
    title="Several segments",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("Does it matter?",),
    statement=(
        "In the chapter all tokens of BERT have one segment. Now a long text, in which no word stands twice, has <<G>> segments of equal length. (It is so long that $1/n$ does not count.) A token is the sum of the vectors of its word, its position and its "
        "segment, as in BERT, and a LayerNorm follows. Words and positions are drawn with one and the same σ, the segments' vectors with <<m>> times that. Query and key have $\\sigma = 0.02$, the width is <<d>>. Predict "
        "$\\rho$, the mean cosine of two different tokens of the text, and the spread of the logits that the softmax sees. Answer with two numbers."
    ),
    hint="Which part of a token's variance do two tokens share if they are of one segment? And how often are two tokens of one segment?",
    starter="answer = (..., ...)  # rho, spread",
    parameters={"d": (768, 1024, 512, 3072), "m": (2, 3, 1.5), "G": (2, 4, 3)},
    solve=lambda d, m, G: spread_of_segments(d, m**2 / (2 + m**2) / G),
    traps={
        "That is right for one segment. How many pairs of tokens share theirs?": (
            lambda d, m, G: spread_of_segments(d, m**2 / (2 + m**2))
        ),
        "If σ is $m$ times as large, by which factor does the variance grow?": (
            lambda d, m, G: spread_of_segments(d, m / (2 + m) / G)
        ),
        "That would be so if all three parts had one σ. How large are the segments' vectors?": (
            lambda d, m, G: spread_of_segments(d, 1 / 3 / G)
        ),
        "$\\rho$ is right. Is $1 - \\rho$ what is left of the variance, or of the spread?": (
            lambda d, m, G: spread_of_segments(d, m**2 / (2 + m**2) / G, power=1)
        ),
        "$\\rho$ is right. What does a softmax not notice?": (
            lambda d, m, G: spread_of_segments(d, m**2 / (2 + m**2) / G, power=0)
        ),
    },
    ask="Which share of the variance is the segment's, and which share of the pairs have it in common? Which root of the rest is left of $d/2500$?",
)  # fmt: skip


def foreseen_std(x, visible, sigma_q, sigma_k, d_head, scale, qk_norm):
    B, n, d = x.shape
    size = x.square().sum(-1).mean()
    products = x @ x.mT
    shared = products.sum() - products.diagonal(dim1=1, dim2=2).sum()
    rho = shared / (B * n * (n - 1)) / size
    seen = 1 - visible.any(dim=1).sum() / visible.sum()
    spread = 1 if qk_norm else sigma_q * sigma_k * size
    return scale * d_head**0.5 * spread * ((1 - rho) * seen).sqrt()


def foreseen_by(
    scale=lambda c, d_h: c * d_h**0.5, rho="pairs", rows="seeing", size="r", normed=True, power=0.5, gains=1
):
    """As the solution, with one step replaced."""

    def answer(x, visible, sigma_q, sigma_k, d_head, c, qk_norm):
        B, n, d = x.shape
        square = x.square().mean()
        if rho == "across":
            x, B, n = x.flatten(0, 1)[None], 1, B * n
        if rho == "sequences":
            x, B, n = x.transpose(0, 1), n, B
        products = x @ x.mT / x.square().sum(-1).mean()
        common = (products.sum() - products.diagonal(dim1=1, dim2=2).sum()) / (B * n * (n - 1))
        common = {"diagonal": products.mean(), "none": torch.zeros(())}.get(rho, common)
        T = len(visible)
        looking = {"seeing": visible.any(1).sum(), "all": T, "keys": visible.any(0).sum()}.get(rows, 0)
        seen = 1 - 1 / T if rows == "1/n" else 1 - looking / visible.sum()
        if rows == "mean":
            counts = visible.sum(1)[visible.any(1)]
            seen = 1 - (1 / counts).mean()
        r = {"r": square, "root": square.sqrt(), "none": 1, "squared": square**2}[size]
        s = 1 if qk_norm and normed else d * (sigma_q * sigma_k) ** gains * r
        if qk_norm and normed == "r":
            s = r
        return scale(c, d_head) * s * ((1 - common) * seen) ** power

    return answer


def foreseen_cases(seed: int) -> list[tuple[Tensor, Tensor, float, float, int, float, bool]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return round(low + (high - low) * torch.rand((), generator=generator).item(), 3)

    cases = []
    for kind, (B, n, d, d_head) in enumerate(((2, 3, 4, 5), (2, 4, 5, 3), (3, 5, 6, 2), (2, 6, 4, 3))):
        x = torch.randn(B, n, d, generator=generator) + draw(0.7, 1.2) * torch.randn(B, 1, d, generator=generator)
        x = draw(1.4, 2) * x * (0.6 + 0.8 * torch.rand(B, n, 1, generator=generator))
        visible = torch.ones(n, n).bool() if kind == 0 else torch.ones(n, n).tril().bool()
        if kind >= 2:  # the last keys are hidden from all, and the first rows see nothing
            visible[:, -1] = False
            visible[:2] = False
        scale = d_head**-0.5 if kind < 2 else draw(1, 2)
        cases.append((x, visible, draw(0.05, 0.1), draw(0.2, 0.4), d_head, scale, kind == 3))
    return cases


def judge_foreseen(case, got, want):
    x, visible, sigma_q, sigma_k, d_head, scale, qk_norm = case
    B, n, d = x.shape
    assert type(got) in (int, float) or (isinstance(got, torch.Tensor) and got.numel() == 1 and not got.is_complex()), (
        "Is one number returned, for all heads, rows and sequences?"
    )
    ratio = float(got) / float(want)
    assert math.isfinite(ratio), "Not a number. Of what do you take a root, or by what do you divide?"

    def near(value):
        return abs(ratio / float(value) - 1) < 2e-3

    if near(1):
        return
    keys, pairs = visible.sum(dim=1), visible.sum()
    seen = 1 - keys.gt(0).sum() / pairs
    r = x.square().mean()
    alike = (x.mean(dim=1).square().mean() / r, x.mean(dim=(0, 1)).square().mean() / r)
    apart = 1 - (n * alike[0] - 1) / (n - 1)
    if qk_norm:
        raise AssertionError("Without QK-norm this is right. Which factors of the formula fall out with it?")
    for power in (-1, -0.5, 0.5, 1):
        assert not near(d_head**power), (
            "`scale` is what the code multiplies by, with all of its roots. Which factor is $c\\sqrt{d_\\text{head}}$?"
        )
        assert not near(r**power), "In which power does the mean square of what is read stand in $q^\\top k$?"
    assert not near(((1 - n / pairs) / seen).sqrt()), (
        "Some rows see no key. Has such a row a mean that could be taken off?"
    )
    assert not near(((1 - 1 / n) / seen).sqrt()), (
        "Here rows see different numbers of keys. Which share of all visible pairs is taken off, one for each row?"
    )
    assert not near(((1 - (1 / keys[keys > 0]).mean()) / seen).sqrt()), (
        "A row with one key has one logit, and one with seven has seven. Is it a mean over rows, or over logits?"
    )
    assert not near(1 / seen.sqrt()), "What else does a softmax not notice, if there are few keys in a row?"
    assert not near(1 / apart.sqrt()), "What does a softmax not notice, if the tokens are alike?"
    assert not near(((1 - alike[0]) / apart).sqrt()), "Which pairs stand in your ρ? Is a token paired with itself?"
    assert not near(((1 - (B * n * alike[1] - 1) / (B * n - 1)) / apart).sqrt()), (
        "Which pairs stand in your ρ? Do tokens of different sequences meet in a row?"
    )
    assert not near((apart * seen).sqrt()), (
        "Are the shares $1 - \\rho$ and $1 - 1/n$ those of a variance, or of its root?"
    )
    if visible.all():
        raise AssertionError(
            "All keys are visible here. Which of the factors is wrong: $d\\,\\sigma_q\\sigma_k$, the mean square, $1 - \\rho$ or $1 - 1/n$?"
        )
    raise AssertionError("Which rows of this mask see a key, and which share of the visible pairs are they?")


foreseen_code = Code(
    number="20.4",
    title="One formula for all",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("All of them, and the ones that do not fit",),
    statement=(
        "Write the chapter's formula for any fresh attention, `foreseen_std(x, visible, sigma_q, sigma_k, d_head, scale, qk_norm)`. `x` `(B, n, d_model)` is what query and key read. `visible` `(n, n)` is true where the token of the row "
        "sees that of the column; rows that see nothing have no logits. `scale` is the factor $c$ by which $q^\\top k$ is multiplied, and `qk_norm` is true if queries and keys are normalized (by the RMS, without a gain). "
        "Measure the two factors: $\\rho$ is the mean product $x_i^\\top x_j$ of two *different* tokens of *one* sequence, over the mean $x_i^\\top x_i$, both over all sequences. And in place of $1/n$ take the rows' share of all logits: "
        "each row that sees something loses one mean. Return one number."
    ),
    hint="A causal mask of 32 tokens has $32 \\cdot 33/2$ logits in 32 rows. The products of all pairs of a sequence are `x @ x.mT`.",
    name="foreseen_std",
    starter="def foreseen_std(x, visible, sigma_q, sigma_k, d_head, scale, qk_norm):\n    ...",
    make=foreseen_cases,
    compare=judge_foreseen,
    solution=foreseen_std,
    wrong={
        "the scale alone": (foreseen_by(scale=lambda c, d_h: c), "what the code multiplies by"),
        "divided again": (foreseen_by(scale=lambda c, d_h: c / d_h**0.5), "what the code multiplies by"),
        "a logit without the root": (foreseen_by(scale=lambda c, d_h: c * d_h), "what the code multiplies by"),
        "no mean square": (foreseen_by(size="none"), "In which power"),
        "the RMS once": (foreseen_by(size="root"), "In which power"),
        "the mean square twice": (foreseen_by(size="squared"), "In which power"),
        "no cosine": (foreseen_by(rho="none"), "if the tokens are alike"),
        "with the diagonal": (foreseen_by(rho="diagonal"), "paired with itself"),
        "across sequences": (foreseen_by(rho="across"), "different sequences"),
        "the same place of two sequences": (foreseen_by(rho="sequences"), "Which of the factors is wrong"),
        "all keys": (foreseen_by(rows="none"), "few keys in a row"),
        "1/n": (foreseen_by(rows="1/n"), "different numbers of keys"),
        "a mean over rows": (foreseen_by(rows="mean"), "or over logits"),
        "rows that see nothing": (foreseen_by(rows="all"), "Some rows see no key"),
        "columns": (foreseen_by(rows="keys"), "Which rows of this mask"),
        "no root": (foreseen_by(power=1), "or of its root"),
        "σ² of both": (foreseen_by(gains=2), "Which of the factors is wrong"),
        "no QK-norm": (foreseen_by(normed=False), "fall out"),
        "QK-norm that keeps the tokens' size": (foreseen_by(normed="r"), "fall out"),
    },
)  # fmt: skip


def rule_of(sizes, sigma):
    logs = torch.tensor(sizes, dtype=torch.float64).log()
    design = torch.cat([torch.ones(len(logs), 1), -logs], dim=1)
    found = torch.linalg.pinv(design) @ torch.tensor(sigma, dtype=torch.float64).log()
    values = [math.exp(found[0]), *found[1:].tolist()]
    for k in range(len(values)):
        others = [column for column in range(len(values)) if column != k]
        if torch.linalg.matrix_rank(design[:, others]) == torch.linalg.matrix_rank(design):
            values[k] = math.nan
    return tuple(values)


def is_told(design: Tensor) -> list[bool]:
    """Whether the measurements tell each of the unknowns."""
    rank = torch.linalg.matrix_rank
    return [bool(rank(design[:, [c for c in range(4) if c != k]]) < rank(design)) for k in range(4)]


def fitted_by(told=is_told, use=None, columns=(0, 1, 2, 3), take=None, log=True):
    """As the solution, with one step replaced."""

    def answer(sizes, sigma):
        logs, target = (torch.tensor(z, dtype=torch.float64) for z in (sizes, sigma))
        if log:
            logs, target = logs.log(), target.log()
        design = torch.cat([torch.ones(len(logs), 1), -logs], dim=1).double()
        rows, of = design[:use, list(columns)], target[:use]
        found = torch.zeros(4, dtype=torch.float64)
        found[list(columns)] = torch.linalg.pinv(rows) @ of
        log_a, *powers = found.tolist()
        values = take(log_a, *powers) if take else (math.exp(log_a), *powers)
        return tuple(x if sure else math.nan for x, sure in zip(values, told(design), strict=True))

    return answer


def two_by_two(sizes, sigma):
    """Each exponent from the smallest and the largest, as if nothing else changed."""
    powers = []
    for column in range(3):
        low, high = (each(range(len(sizes)), key=lambda i: sizes[i][column]) for each in (min, max))
        ratio = math.log(sizes[high][column] / sizes[low][column]) or 1
        powers.append(-math.log(sigma[high] / sigma[low]) / ratio)
    first = math.prod(size**power for size, power in zip(sizes[0], powers, strict=True))
    sure = (not math.isnan(x) for x in rule_of(sizes, sigma))
    return tuple(x if told else math.nan for x, told in zip((sigma[0] * first, *powers), sure, strict=True))


def columns_differ(design: Tensor) -> list[bool]:
    """No two columns differ by a constant alone."""
    return [all(k == c or bool((design[:, k] - design[:, c]).std() > 1e-9) for c in range(4)) for k in range(4)]


def rule_cases(seed: int) -> list[tuple[list[list[int]], list[float]]]:
    generator = torch.Generator().manual_seed(seed)

    def pick(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    cases = []
    for kind in ("exact", "noise", "one width", "last", "aspect"):
        a, w, p, b = pick(20, 60) / 100, pick(30, 80) / 100, pick(25, 60) / 100, pick(30, 90) / 100
        sizes = [[64, 4, 1], [256, 4, 3], [1024, 36, 30], [512, 24, 2]]
        for _ in range(2):
            L = pick(6, 40)
            sizes.append([64 * pick(2, 40), L, pick(1, L + 1)])
        if kind == "one width":
            sizes = [[768, *rest] for _, *rest in sizes]
        elif kind == "last":
            sizes = [[d, L, L] for d, L, _ in sizes]
        elif kind == "aspect":
            sizes = [[64 * L, L, number] for _, L, number in sizes]
        noise = 0.1 * torch.randn(len(sizes), generator=generator) * (kind == "noise")
        sigma = [
            a * d**-w * L**-p * number**-b * math.exp(e)
            for (d, L, number), e in zip(sizes, noise.tolist(), strict=True)
        ]
        cases.append((sizes, list(digits(*sigma))))
    return cases


def judge_rule(case, got, want):
    widths, depths, numbers = zip(*case[0], strict=True)
    assert isinstance(got, (tuple, list)) and len(got) == 4, "Which four numbers has a rule?"
    got = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in got]
    assert all(type(x) in (int, float) and not abs(x) > 1e9 for x in got), "Are all four numbers, or `math.nan`?"
    sure = [k for k in range(4) if want[k] == want[k]]
    for k, name in enumerate(("a", "w", "p", "b")):
        if k not in sure and got[k] == got[k]:
            assert len(set(widths)) > 1, (
                f"All of these have the same width, and you give ${name}$. Can what the width does be told from $a$?"
            )
            assert depths != numbers, (
                f"Each of these is the *last* block of its model, and you give ${name}$. Which of two exponents makes σ fall?"
            )
            raise AssertionError(
                f"In all of these models $d/L$ is the same, and you give ${name}$. If $w$ grows and $p$ falls by as much, which factor is left?"
            )
        assert k not in sure or got[k] == got[k], (
            f"${name}$ can be told here. If you gave it another value, could the other three make up for it?"
        )
    wrong = [k for k in sure if abs(got[k] - want[k]) > (2e-3 if k else 2e-3 * want[0])]
    if not wrong:
        return
    assert not all(abs(got[k] + want[k]) < 5e-3 for k in sure if k), (
        "If σ falls with the width, has $w$ the sign plus or minus, by the formula that was given?"
    )
    if wrong == [0]:
        assert abs(got[0] - math.log(want[0])) > 5e-3, (
            "The exponents are right. Is the first number $a$, or its logarithm?"
        )
        raise AssertionError("The exponents are right. To which base was the logarithm, and how do you come back?")
    assert abs(got[0] - 1) > 1e-6, "Does the rule need a factor of its own, before all powers?"
    assert all(abs(x) > 1e-9 for x in got), "One of your exponents is 0 in any case. On how many sizes does σ depend?"
    fits = [
        want[0] * d ** -want[1] * L ** -want[2] * number ** -want[3] / s
        for (d, L, number), s in zip(*case, strict=True)
    ]
    assert all(abs(x - 1) < 1e-3 for x in fits), (
        "Each measured σ is off by some percent here. Which of the rows do you use, and what is squared in *least squares*?"
    )
    raise AssertionError(
        f"The data are exact, and ${'awpb'[wrong[-1]]}$ is wrong. When you compare two rows, do the other sizes stay the same? In what is a product of powers linear?"
    )


rule_code = Code(
    number="20.5",
    title="Read a rule off its draws",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("Who scales with the depth?", "Library and original"),
    statement=(
        "GPT-2 divides by a root of the depth $L$, BEiT by one of the *block's number* $l$, and CLIP has the width in front. Write `rule_of(sizes, sigma)`, which reads such a rule off matrices that were drawn, as the chapter did with two widths and "
        "two depths. `sizes` is a list of lists `[d, L, l]`, one for each measured matrix, and `sigma` a list of their standard deviations, none of which is 0. The rule is\n\n"
        "$$\\sigma = a\\, d^{-w} L^{-p}\\, l^{-b} .$$\n\n"
        "Return the tuple `(a, w, p, b)` that fits the logarithms of all σ best, by least squares. Several sizes change at once from matrix to matrix. If there are rules with different values of one of the four numbers that fit "
        "these matrices equally well, they cannot tell this number: return `math.nan` for it, and the others all the same."
    ),
    hint="$\\ln\\sigma$ is a sum of four terms, each an unknown times a number that you know. Put these numbers into a matrix with a row for each measurement. An unknown can be told if the rank falls when its column is taken out. Where there are many best fits, `torch.linalg.pinv` gives one.",
    name="rule_of",
    starter="def rule_of(sizes, sigma):\n    ...",
    make=rule_cases,
    compare=judge_rule,
    solution=rule_of,
    wrong={
        "the sign": (fitted_by(take=lambda a, *powers: (math.exp(a), *(-p for p in powers))), "plus or minus"),
        "the logarithm of a": (fitted_by(take=lambda *all_four: all_four), "or its logarithm"),
        "another base": (fitted_by(take=lambda a, *powers: (10**a, *powers)), "To which base"),
        "no factor": (fitted_by(columns=(1, 2, 3)), "a factor of its own"),
        "no block's number": (fitted_by(columns=(0, 1, 2)), "On how many sizes"),
        "no depth": (fitted_by(columns=(0, 1, 3)), "On how many sizes"),
        "without logarithms": (fitted_by(log=False, take=lambda *all_four: all_four), "In what is a product"),
        "smallest and largest": (two_by_two, "do the other sizes stay the same"),
        "the first four": (fitted_by(use=4), "Which of the rows"),
        "never in doubt": (fitted_by(told=lambda design: [True] * 4), "the same width"),
        "enough rows": (fitted_by(told=lambda design: [len(design) >= 4] * 4), "the same width"),
        "all or nothing": (fitted_by(told=lambda design: [all(is_told(design))] * 4), "make up for it"),
        "without the factor": (
            fitted_by(told=lambda design: [True, *is_told(torch.cat([design[:, 1:], torch.zeros(len(design), 1)], 1))[:3]]), "the same width"),
        "sizes that do not change": (
            fitted_by(told=lambda design: [bool(design[:, 1].std() > 1e-9), *(design[:, 1:].std(0) > 1e-9).tolist()]), "the *last* block"),
        "columns that are the same": (fitted_by(told=columns_differ), "$d/L$ is the same"),
        "always in doubt": (fitted_by(told=lambda design: [False] * 4), "make up for it"),
    },
)  # fmt: skip


# fmt: off
class ImageBlock(torch.nn.Module):
    """A block of BLIP-2's images, drawn as the library draws it."""

    def __init__(self, d_model, n_heads, d_ff, std=1e-10):
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = torch.nn.LayerNorm(d_model)
        self.norm2 = torch.nn.LayerNorm(d_model)
        shapes = {"qkv": (d_model, 3 * d_model), "out": (d_model, d_model),
                  "fc1": (d_model, d_ff), "fc2": (d_ff, d_model)}
        for name, shape in shapes.items():
            layer = torch.nn.Linear(*shape)
            torch.nn.init.normal_(layer.weight, 0, std)
            torch.nn.init.zeros_(layer.bias)
            self.add_module(name, layer)

    def forward(self, x):
        B, T, d = x.shape
        packed = self.qkv(self.norm1(x)).view(B, T, 3, self.n_heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4)  # (B, H, T, d_head) each
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v
        x = x + self.out(mix.transpose(1, 2).reshape(B, T, d))
        inside = torch.nn.functional.gelu(self.fc1(self.norm2(x)))
        return x + self.fc2(inside)


def images(d_model, n_heads, d_ff, n_blocks):
    return torch.nn.Sequential(*(ImageBlock(d_model, n_heads, d_ff)
                                 for _ in range(n_blocks)))
# fmt: on


@torch.no_grad()
def mend(stack):
    for number, block in enumerate(stack, start=1):
        for layer in (block.qkv, block.out, block.fc1, block.fc2):
            layer.weight *= 0.02 / 1e-10
        for layer in (block.out, block.fc2):
            layer.weight /= (2 * number) ** 0.5


def drawn_by(
    last=lambda k, L: (2 * k) ** -0.5,
    names="qkv out fc1 fc2",
    of="out fc2",
    std=0.02,
    fill=None,
    biases=False,
    seed=None,
):
    """Draw the matrices anew, by another rule."""

    @torch.no_grad()
    def answer(stack):
        for number, block in enumerate(stack, start=1):
            if seed is not None:
                torch.manual_seed(seed)
            for name in names.split():
                layer = getattr(block, name)
                sigma = std * (last(number, len(stack)) if name in of.split() else 1)
                (fill or (lambda w, s: w.normal_(0, s)))(layer.weight, sigma)
                if biases:
                    layer.bias.normal_(0, sigma)

    return answer


@torch.no_grad()
def all_parameters(stack: nn.Module) -> None:
    for p in stack.parameters():
        p.normal_(0, 0.02)


def in_a_list(stack: nn.Module) -> None:
    """Parameters that are replaced by others of another shape."""
    for block in stack:
        block.qkv = torch.nn.Linear(block.qkv.in_features, block.qkv.in_features)


def image_cases(seed: int) -> list[tuple[int, int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    n_heads, d_head, extra, n_blocks = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 4), (14, 17), (3, 20), (3, 5))
    )
    return [(n_heads * d_head, n_heads, n_heads * d_head + extra, n_blocks, seed)]


def mended_images(answer, d_model, n_heads, d_ff, n_blocks, seed):
    torch.manual_seed(seed)
    stack = images(d_model, n_heads, d_ff, n_blocks)
    before = {name: p.detach().clone() for name, p in stack.named_parameters()}
    answer(stack)
    after = {name: p.detach() for name, p in stack.named_parameters()}
    if {name: p.shape for name, p in after.items()} != {name: p.shape for name, p in before.items()}:
        return None
    matrices = [name for name in before if before[name].ndim == 2]
    changed = [name for name in before if name not in matrices and not torch.equal(before[name], after[name])]
    sizes = {}
    for name in matrices:
        rms = after[name].double().square().mean().sqrt()
        largest = after[name].abs().max() / rms
        sizes[name] = float(f"{rms.item():.4g}"), float(f"{largest.item():.3g}")
    first, second = (after[f"{i}.qkv.weight"].flatten().double() for i in range(2))
    return changed, sizes, torch.nn.functional.cosine_similarity(first, second, dim=0).item()


def judge_images(case, got, want):
    n_blocks = case[3]
    assert isinstance(got, tuple) and len(got) == 3, (
        "Which parameters had the stack before? Are they there, in their shapes?"
    )
    changed, sizes, alike = got
    kinds = sorted({name.split(".", 1)[1] for name in changed})
    assert not kinds, f"`{kinds[0]}` was changed. What was ill with it?"
    sigma = {name: pair[0] for name, pair in sizes.items()}
    assert all(math.isfinite(s) for s in sigma.values()), (
        "Not all matrices are finite. Which number has the first block?"
    )
    small = [name for name, s in sigma.items() if s < 1e-9]
    assert not small, (
        f"`{small[0]}` is as small as it was. Which matrices does the original draw, and does your function change them in place?"
    )
    assert all(2.3 < pair[1] < 7 for pair in sizes.values()), (
        "Are the largest entries those of a Gaussian? By which law do you draw?"
    )
    assert abs(alike) < 0.5, "Two blocks have the same matrices. Who sets a seed?"

    def ratios(names):
        return {name: s / 0.02 for name, s in sigma.items() if name.split(".")[1] in names}

    def all_are(values, rule):
        return all(abs(x / rule(int(name.split(".")[0]) + 1) - 1) < 0.12 for name, x in values.items())

    inner, last = ratios(("qkv", "fc1")), ratios(("out", "fc2"))
    assert all_are(inner, lambda k: 1), (
        "Is the σ of `qkv` and `fc1` that of the original, in each block? Which matrices are a branch's *last*?"
    )
    if all_are(last, lambda k: (2 * k) ** -0.5):
        return
    assert not all_are(last, lambda k: 1), (
        "That is 0.02 for all. What does the original do with the last matrix of each branch?"
    )
    assert not all_are(last, lambda k: (2 * n_blocks) ** -0.5), (
        "GPT-2 divides like this. Is it the number of blocks in BLIP-2's original, or the block's own number?"
    )
    assert not all_are(last, lambda k: k**-0.5), (
        "The first block's are not smaller. By what does the original divide them?"
    )
    assert not all_are(last, lambda k: 1 / (2 * k)), "Is that the factor of the variance, or of σ?"
    whole = [name for name, x in last.items() if abs(x - 1) < 0.12]
    assert len(whole) < n_blocks, (
        f"`{whole[0]}` has 0.02 still. How many branches has a block, and with which matrix does each of them end?"
    )
    raise AssertionError("By what does the original divide the last matrices of block $l$, of 0.02?")


dark_images = Mend(
    number="20.6",
    title="Images that nobody sees",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("Library and original",),
    statement=(
        "`images` builds the blocks of BLIP-2's images as the library does. Draw `images(64, 4, 256, 12)`, and run `attntut.diagnose(stack, torch.randn(2, 16, 64))`. Read what it finds, and how large it says that $W_q$ and $W_k$ are. "
        "Now follow the table of the chapter: write `mend(stack)`, which gives any such stack the σ of BLIP-2's *original*, in place. Multiply what was drawn, or draw anew. Each block gets matrices of its own, all of them "
        "Gaussian, and norms and biases stay. Run `attntut.diagnose` again."
    ),
    hint="Each block has two branches, and the last matrix of a branch is the one that writes into the stream. `enumerate(stack, start=1)` counts the blocks. Change parameters under `torch.no_grad()`.",
    name="mend",
    starter="def mend(stack):\n    ...",
    setup=(ImageBlock, images),
    make=image_cases,
    ask=mended_images,
    compare=judge_images,
    solution=mend,
    wrong={
        "nothing": (lambda stack: None, "as small as it was"),
        "0.02 for all": (drawn_by(last=lambda k, L: 1), "That is 0.02 for all"),
        "the depth": (drawn_by(last=lambda k, L: (2 * L) ** -0.5), "GPT-2 divides"),
        "one branch": (drawn_by(last=lambda k, L: k**-0.5), "are not smaller"),
        "no root": (drawn_by(last=lambda k, L: 1 / (2 * k)), "of the variance, or"),
        "from two": (drawn_by(last=lambda k, L: (2 * k + 2) ** -0.5), "what does the original divide"),
        "from zero": (drawn_by(last=lambda k, L: (2 * k - 2) ** -0.5 if k > 1 else math.inf), "Which number has the first block"),
        "from the end": (drawn_by(last=lambda k, L: (2 * (L + 1 - k)) ** -0.5), "what does the original divide"),
        "the attention's last alone": (drawn_by(of="out"), "fc2.weight` has 0.02 still"),
        "the network's last alone": (drawn_by(of="fc2"), "out.weight` has 0.02 still"),
        "the factor everywhere": (drawn_by(of="qkv out fc1 fc2"), "a branch's *last*"),
        "queries, keys and values alone": (drawn_by(names="qkv"), "as small as it was"),
        "the attention alone": (drawn_by(names="qkv out"), "as small as it was"),
        "by the width": (drawn_by(std=48**-0.5), "that of the original"),
        "uniform": (drawn_by(fill=lambda w, s: w.uniform_(-s * 3**0.5, s * 3**0.5)), "By which law"),
        "biases, too": (drawn_by(biases=True), "What was ill with it"),
        "all parameters": (all_parameters, "What was ill with it"),
        "one seed for all": (drawn_by(seed=0), "Who sets a seed"),
        "another layer": (in_a_list, "in their shapes"),
    },
)  # fmt: skip


# fmt: off
def alike_logits(rho, turn, n=64, d=768, d_head=64):
    """Logits (n_heads, n, n) of tokens with cosine rho; σ = 0.02."""
    torch.manual_seed(0)
    common, own = torch.randn(1, d), torch.randn(n, d)
    x = rho**0.5 * common + (1 - rho) ** 0.5 * own
    x = torch.nn.functional.rms_norm(x, (d,))
    query, key = 0.02 * torch.randn(2, d, d)
    q, k = ((x @ w).view(n, -1, d_head).transpose(0, 1)
            for w in (query, key))
    if turn:  # a rotary embedding: pairs turn by the token's place
        rates = 10_000 ** -torch.linspace(0, 1, d_head // 2 + 1)[:-1]
        angles = torch.arange(n)[:, None] * rates
        turned = torch.polar(torch.ones_like(angles), angles)
        pairs = (z.unflatten(-1, (-1, 2)).contiguous() for z in (q, k))
        q, k = (torch.view_as_real(torch.view_as_complex(z) * turned)
                .flatten(-2) for z in pairs)
    return q @ k.mT / d_head**0.5
# fmt: on


@functools.cache
def std_in_rows(rho: float, turn: bool, own_mean: bool = True) -> float:
    """Std of the logits around the mean of their row, or around the mean of all."""
    with torch.random.fork_rng(devices=[]):
        logits = alike_logits(rho, turn)
    mean = logits.mean(dim=-1, keepdim=True) if own_mean else logits.mean()
    return float(f"{(logits - mean).square().mean().sqrt().item():.4g}")


def foreseen_alike(rho: float, seen: bool = True) -> float:
    return 768 / 2500 * math.sqrt((1 - rho) * (1 - 1 / 64) if seen else 1)


turned_alike = Explain(
    number="20.7",
    title="Alike, and turned",
    minutes=15,
    difficulty="hard",
    points=2,
    manual=3,
    needs=("All of them, and the ones that do not fit", "20.4"),
    statement=(
        "The chapter says that where tokens are much alike and a rotation turns the keys, the factor $\\sqrt{1-\\rho}$ takes off too much. How much? `alike_logits(rho, turn)` gives the logits of a fresh layer with BERT's widths, whose 64 tokens have the "
        "mean cosine <<rho>> (`rho`), and if `turn` is true, query and key pass a rotary embedding. First predict by the chapter's formula the standard deviation of the logits within their rows, which is the same "
        "number with and without the rotation. Then measure both: the root of the mean square of the differences from the mean of the *row*, over all heads and rows. Give `prediction` and `measured` two numbers each, without the rotation first. "
        "Explain in two or three sentences why one of them is far from its prediction. Would the turned logits have a spread if all tokens were the same? And why do they stay below $d/2500$?"
    ),
    hint="A rotation changes no length. Write a token as the common part and its own. Which part of the key meets the query at which angle, in a row?",
    rubric=(
        "The prediction is 768/2500 · √((1 − ρ) · 63/64), twice (1 point). Without the rotation the common part of the keys adds the same number to all logits of a row, which its mean takes off. With it "
        "the common part is turned by the place of the key, so its product with the query depends on the distance and differs within the row: what the softmax did not see comes back, and stays even for tokens "
        "that are all the same (1). It does not come back in full: most pairs of channels turn slowly and hardly at all within 64 places, so that their part of the common key is still common; if all "
        "of it differed from key to key, the spread would be d/2500 (1)."
    ),
    setup=(alike_logits,),
    parameters={"rho": (0.9, 0.8, 0.95, 0.7)},
    solve=lambda rho: (std_in_rows(rho, False), std_in_rows(rho, True)),
    traps={
        "That is the formula. What do you measure with the rotation?": lambda rho: (foreseen_alike(rho),) * 2,
        "From which mean are the differences taken?": (
            lambda rho: (std_in_rows(rho, False, own_mean=False), std_in_rows(rho, True, own_mean=False))
        ),
        "Are the two numbers in the order that was asked for?": lambda rho: (std_in_rows(rho, True), std_in_rows(rho, False)),
        "Is that the standard deviation, or its square?": (
            lambda rho: (std_in_rows(rho, False) ** 2, std_in_rows(rho, True) ** 2)
        ),
        "The first is right. Does the rotation make all keys strangers to each other?": (
            lambda rho: (std_in_rows(rho, False), foreseen_alike(rho, seen=False))
        ),
    },
    ask="Is the mean over the last axis taken off, and the root taken of the mean of all squares?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    four_times, no_root, segments, foreseen_code, rule_code, dark_images, turned_alike,
]  # fmt: skip
