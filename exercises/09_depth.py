"""Exercises of chapter 9, *Depth*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

same_variance = Choice(
    number="9.1",
    title="The same variance",
    minutes=2,
    difficulty="easy",
    points=1,
    needs=("What share each scheme leaves",),
    statement=(
        "A fresh model has 24 blocks. You measure the variance of its stream before the first block and after each: it is 1 "
        "everywhere. How much of what leaves the last block is still the input?"
    ),
    hint="Which schemes of the chapter hold the variance near 1, and which shares do they keep?",
    options={
        "All of it, because nothing was added.": (
            "Every block adds what its branches write. What can a factor or a norm do about the sum afterwards?"
        ),
        "Half of it. The other half are the branches.": (
            "So it is where branches add up to 1, and the stream goes from 1 to 2. Does this one grow?"
        ),
        "A 49th, because the input is one of 49 equal parts.": (
            "A normalized residual makes such parts, where branches have variance 1. Does every scheme that holds the variance?"
        ),
        "Nearly all of it, as with DeepNorm.": (
            "So it is with DeepNorm, whose skips are large beside its branches. What does Admin keep, whose variance is 1 as well?"
        ),
        "The variance does not tell.": "",
        "About 3 %, as without a scheme in pre-LN.": (
            "So it is with Admin and with a normalized residual. What does DeepNorm keep, whose variance is 1 as well?"
        ),
    },
)

small_start = Number(
    number="9.2",
    title="A small start",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("Does GPT-2's factor double the stream?",),
    statement=(
        "A pre-LN model of <<L>> blocks has ReLU networks with $d_\\text{ff} = $ <<m>>$\\,d$. All its matrices are drawn with "
        "$\\sigma = 1/\\sqrt d$, the one behind the ReLU too. Then the last matrix of each branch is divided by $\\sqrt{2L}$, as "
        "in GPT-2. The embedding has variance <<v>>, and each sequence is one token. By what factor does the variance of the stream grow over "
        "all blocks, and which share of it is still the input at the end? Answer with two numbers."
    ),
    hint="What do the two branches of a block add before the division? Then how much do all $2L$ branches add after it?",
    starter="answer = (..., ...)  # growth, share",
    parameters={"v": (0.02, 0.04, 0.05, 0.01), "m": (4, 2, 8), "L": (12, 24)},
    solve=lambda v, m, L: growth_and_share(v, (1 + m / 2) / 2),
    traps={
        "That is a start of variance 1. How large is the embedding, and does a branch see that behind its norm?": (
            lambda v, m, L: growth_and_share(1, (1 + m / 2) / 2)
        ),
        "Which half of what the network reads does the ReLU keep?": (
            lambda v, m, L: growth_and_share(v, (1 + m) / 2)
        ),
        "That is the growth without the factor. Who divides by $\\sqrt{2L}$, and what becomes of the variance of a branch?": (
            lambda v, m, L: growth_and_share(v, L * (1 + m / 2))
        ),
        "The chapter's network is as wide as the stream. How many products does each output of this one add?": (
            lambda v, m, L: growth_and_share(v, 0.75)
        ),
        "A matrix is divided by $\\sqrt{2L}$. By what is its branch's variance divided, and how many branches are there?": (
            lambda v, m, L: growth_and_share(v, (1 + m / 2) / (4 * L))
        ),
        "Is that the growth of the variance, or of the standard deviation?": (
            lambda v, m, L: tuple(math.sqrt(x) for x in growth_and_share(v, (1 + m / 2) / 2))
        ),
        "That is the variance at the end. How many times that of the start is it?": (
            lambda v, m, L: (v + (1 + m / 2) / 2, v / (v + (1 + m / 2) / 2))
        ),
        "Is the second number the share of the input, or that of the branches?": (
            lambda v, m, L: (growth_and_share(v, (1 + m / 2) / 2)[0], 1 - growth_and_share(v, (1 + m / 2) / 2)[1])
        ),
        "$L$ blocks have $2L$ branches. Through how many is the sum of all divided here?": (
            lambda v, m, L: growth_and_share(v, 1 + m / 2)
        ),
    },
    ask="What do all branches add together, and how large is that beside the embedding?",
)  # fmt: skip


def growth_and_share(start: float, added: float) -> tuple[float, float]:
    """Growth of a stream's variance by a sum of branches, and the share that is still the start."""
    return 1 + added / start, 1 / (1 + added / start)


def of_second_half(blocks: list[float]) -> float:
    """Share of the later blocks in 1 plus what all blocks add."""
    return sum(blocks[len(blocks) // 2 :]) / (1 + sum(blocks))


last_word = Number(
    number="9.3",
    title="Who has the last word",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("What share each scheme leaves",),
    statement=(
        "How much do the later blocks say? Take a pre-LN model of <<L>> blocks as the chapter measures them: one token, "
        "an input of variance 1, ReLU, $d_\\text{ff} = d$, all matrices with $\\sigma = 1/\\sqrt d$. Which share of the variance at the end was "
        "written by the last <<half>> blocks? Answer for the depth index, which divides the last matrix of each branch of "
        "block $l$ by $\\sqrt{2l}$, and then for no scheme at all."
    ),
    hint="What does block $l$ add by each rule? The whole is the input and the sum over all blocks.",
    starter="answer = (..., ...)  # depth index, no scheme",
    parameters={"L": (12, 24, 48, 16, 32, 8), "half": (6, 12, 24, 8, 16, 4)},
    solve=lambda L, half: shares_of_half(L, lambda n: 0.75 / n),
    traps={
        "Is that the share of what the blocks wrote? What else does the stream hold at the end?": (
            lambda L, half: tuple(x / y for x, y in zip(
                shares_of_half(L, lambda n: 0.75 / n), (1 - 1 / (1 + 0.75 * harmonic(L)), 1 - 1 / (1 + 1.5 * L)), strict=True))
        ),
        "Is that what the last blocks have written, or what the first ones have?": (
            lambda L, half: shares_of_half(L, lambda n: 0.75 / n, first=True)
        ),
        "Are the two numbers in the order that was asked for?": (
            lambda L, half: shares_of_half(L, lambda n: 0.75 / n)[::-1]
        ),
        "The matrix is divided by $\\sqrt{2l}$. By what is the variance divided of what it writes?": (
            lambda L, half: shares_of_half(L, lambda n: 1.5 / (2 * n) ** 2)
        ),
        "What does the ReLU leave of the network's branch?": (
            lambda L, half: shares_of_half(L, lambda n: 1 / n, 2.0)
        ),
        "By $\\sqrt l$, or by $\\sqrt{2l}$? How much does the first block add?": (
            lambda L, half: shares_of_half(L, lambda n: 1.5 / n)
        ),
        "That is GPT-2's factor, the same in every block. What does block $l$ add by the depth index?": (
            lambda L, half: shares_of_half(L, lambda n: 0.75 / L)
        ),
        "That is right for the input's share. Which blocks were asked for?": (
            lambda L, half: (1 / (1 + 0.75 * harmonic(L)), 1 / (1 + 1.5 * L))
        ),
    },
    ask="What does block $l$ add by each rule, what is the sum over the last blocks, and what is the whole?",
)  # fmt: skip


def harmonic(n: int) -> float:
    return sum(1 / block for block in range(1, n + 1))


def shares_of_half(L: int, law, plain: float = 1.5, first: bool = False) -> tuple[float, float]:
    """What the last (or first) half of the blocks has written, by a law for each block and by the plain one."""
    turn = -1 if first else 1
    laws = ([law(block) for block in range(1, L + 1)], [plain] * L)
    return tuple(of_second_half(blocks[::turn]) for blocks in laws)


def sources(start, skips, branches, norm):
    parts = torch.tensor([start])
    for skip, branch in zip(skips, branches, strict=True):
        read = 1 if norm == "pre" else parts.sum()
        parts = torch.cat([parts * skip**2, (branch * read).reshape(1)])
    return parts / parts.sum()


def sources_by(power=2, read=None, old=None, end=None, begin=lambda start: start):
    """As the solution, with one step replaced."""

    def answer(start, skips, branches, norm):
        parts = [torch.tensor(float(begin(start)))]
        for skip, branch in zip(skips, branches, strict=True):
            seen = (read or (lambda norm, v: 1 if norm == "pre" else v))(norm, sum(parts))
            parts = (old or (lambda parts, factor: [factor * x for x in parts]))(parts, skip**power)
            parts = [*parts, branch * seen]
        whole = torch.stack(parts)
        return (end or (lambda x: x / x.sum()))(whole)

    return answer


def input_alone(parts: list[Tensor], factor: Tensor) -> list[Tensor]:
    """The skip weakens the input, and not what was written since."""
    return [factor * parts[0], *parts[1:]]


def sources_cases(seed: int) -> list[tuple[float, Tensor, Tensor, str]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for norm, n, kind in (("pre", 4, "sum"), ("pre", 6, "skips"), ("none", 8, "skips"), ("post", 10, "skips")):
        branches = 0.2 + 1.3 * torch.rand(n, generator=generator)
        skips = torch.ones(n) if kind == "sum" else 0.5 + torch.rand(n, generator=generator)
        start = 1.0 if kind == "sum" else round(2 + 3 * torch.rand((), generator=generator).item(), 2)
        cases.append((start, skips, branches, norm))
    return cases


def judge_sources(case, got, want):
    start, skips, branches, norm = case
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, (
        "The input is one source, and each branch is another. How many numbers is that, in one tensor?"
    )
    assert got.isfinite().all(), "A share is no number. By what did you divide?"
    got = got.to(want.dtype)

    def same(x):
        return torch.allclose(x, want, rtol=1e-3, atol=1e-5)

    if same(got):
        return
    assert abs(got.sum() - 1) < 1e-3, "What do all the parts of a whole sum to?"
    assert not same(got.flip(0)), "Which source comes first in the tensor, and which one last?"
    if (skips == 1).all() and norm == "pre":
        square = got.square() / got.square().sum()
        assert not same(square), "Do the standard deviations of uncorrelated parts add, or do their variances?"
        raise AssertionError(
            "All skips are 1 here, and the input has variance 1. What does each branch of pre-LN add, and what is the whole?"
        )
    old, alone = torch.tensor([1.0]), torch.tensor([float(start)])
    single = torch.tensor([float(start)])
    for skip, branch in zip(skips, branches, strict=True):
        old = torch.cat([old * skip**2, branch.reshape(1)])
        alone = torch.cat([alone[:1] * skip**2, alone[1:], branch.reshape(1)])
        single = torch.cat([single * skip, branch.reshape(1)])
    if norm == "pre":
        assert not torch.allclose(got, old / old.sum(), rtol=1e-3), (
            "The input has not always variance 1. Does a branch of pre-LN notice, and does the sum?"
        )
        assert not torch.allclose(got, alone / alone.sum(), rtol=1e-3), (
            "A skip carries all that is in the stream. Which other sources go through it, besides the input?"
        )
        assert not torch.allclose(got, single / single.sum(), rtol=1e-3), (
            "The stream is multiplied by $a_k$. By what is its variance multiplied?"
        )
        raise AssertionError(
            "Without a norm before it a branch would see how large the stream is. Which variance does it read in pre-LN? And "
            "through which of the skips has what branch $k$ wrote still to go?"
        )
    raise AssertionError(
        f'Pre-LN is right. Here norm = "{norm}". Which variance does a branch read that has no norm before it? If there is a '
        "norm after the addition, what does it do to the shares?"
    )


sources_code = Code(
    number="9.4",
    title="Where the stream comes from",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("One number for every scheme: the share of the input", "9.2"),
    statement=(
        "The chapter follows the share of the input. Follow all sources at once. Write `sources(start, skips, branches, "
        "norm)`. It returns a tensor of $K + 1$ numbers: the shares of the variance at the end that come from the input, from "
        "branch 1, …, from branch $K$. `start` is the variance of the input, a float. `skips` holds the factors $a_k$ by which the stream is multiplied, and "
        "`branches` the variances $b_k$ that the branches write when they read variance 1; both have the shape `(K,)`. A branch that reads variance $u$ "
        'writes $b_k\\,u$. `norm` says where a norm brings the variance to 1: `"pre"` before each branch, `"post"` after each '
        'addition, `"none"` nowhere; in the last two a branch reads the stream as it is. What a branch writes is uncorrelated '
        "with the stream."
    ),
    hint="Keep a list of variances, one a source. What does a branch do to the list, and what do a skip and a norm do to all that is in it?",
    name="sources",
    starter="def sources(start, skips, branches, norm):\n    ...",
    make=sources_cases,
    compare=judge_sources,
    solution=sources,
    wrong={
        "a, not a²": (sources_by(power=1), "is its variance multiplied"),
        "input alone goes through the skips": (sources_by(old=input_alone), "besides the input"),
        "a start of 1": (sources_by(begin=lambda start: 1), "Does a branch of pre-LN notice"),
        "no norm anywhere": (sources_by(read=lambda norm, v: v), "What does each branch of pre-LN add"),
        "a norm before every branch": (sources_by(read=lambda norm, v: 1), "Pre-LN is right"),
        "no skips": (sources_by(power=0), "wrote still to go"),
        "not divided": (sources_by(end=lambda x: x), "parts of a whole"),
        "standard deviations": (sources_by(end=lambda x: x.sqrt() / x.sqrt().sum()), "do their variances"),
        "backward": (sources_by(end=lambda x: (x / x.sum()).flip(0)), "comes first"),
        "without the input": (sources_by(end=lambda x: x[1:] / x[1:].sum()), "How many numbers"),
        "the input alone": (lambda *case: sources(*case)[0], "How many numbers"),
        "variances after each branch": (sources_by(end=lambda x: x.cumsum(0) / x.sum()), "parts of a whole"),
    },
)  # fmt: skip


def factor_for_share(branches, share, power, norm):
    block = torch.arange(len(branches)) // 2 + 1
    b = branches.double() * block ** (-2.0 * power)
    if norm == "pre":
        return math.sqrt((1 / share - 1) / b.sum())
    low, high = 0.0, 1 / share / b.max()
    for _ in range(50):
        middle = (low + high) / 2
        if (1 + middle * b).prod() < 1 / share:
            low = middle
        else:
            high = middle
    return math.sqrt(high)


def factor_with(share=None, power=None, norm=None, end=None, branches=None):
    """As the solution, with another argument or another end."""

    def answer(b, S, p, where):
        b = branches(b, p) if branches else b
        found = factor_for_share(b, share(S) if share else S, power(p) if power else p, norm or where)
        return end(found) if end else found

    return answer


def by_branch(branches: Tensor, power: float) -> Tensor:
    """Undo the law of the blocks, and take the branch's number for the block's."""
    k = torch.arange(1, len(branches) + 1)
    return branches * ((k + 1) // 2) ** (2.0 * power) * k ** (-2.0 * power)


def from_zero(branches: Tensor, power: float) -> Tensor:
    """Branches 1 and 2 in different blocks."""
    k = torch.arange(1, len(branches) + 1)
    return branches * ((k + 1) // 2) ** (2.0 * power) * (k // 2 + 1) ** (-2.0 * power)


def by_exponential(b, S, p, where):
    """Takes 1 + x for the exponential of x."""
    block = torch.arange(len(b)) // 2 + 1
    weight = (b * block ** (-2.0 * p)).sum()
    return math.sqrt((1 / S - 1) / weight) if where == "pre" else math.sqrt(-math.log(S) / weight)


def factor_cases(seed: int) -> list[tuple[Tensor, float, float, str]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for norm, blocks, power, low, high in (
        ("pre", 3, 0.0, 0.3, 0.7), ("pre", 5, 0.5, 0.3, 0.7), ("post", 4, 0.0, 0.2, 0.4), ("none", 6, 0.5, 0.5, 0.8),
        ("post", 7, 1.0, 0.005, 0.01),
    ):  # fmt: skip
        branches = 0.2 + 2 * torch.rand(2 * blocks, generator=generator)
        cases.append((branches, round(low + (high - low) * torch.rand((), generator=generator).item(), 3), power, norm))
    return cases


def judge_factor(case, got, want):
    branches, share, power, norm = case
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        got = got.item()
    assert type(got) in (int, float) and math.isfinite(got), "By which one number are all branches multiplied?"
    if abs(got - want) <= 1e-3 * want:
        return
    assert got > 0, "Which sign and size has a factor that makes the input's share neither 0 nor 1?"

    def near(x):
        return abs(got / x - 1) <= 2e-3

    assert not near(want**2), "Is that what the variance of a branch is multiplied by, or what the branch is?"
    if norm == "pre" and power == 0:
        lone = branches.sum().item()
        assert not near(((1 / share) / lone) ** 0.5), "The whole is the input and what was added. How much was added?"
        assert not near((share / (1 - share) / lone) ** 0.5), "Is `share` what is left of the input, or what is added?"
        raise AssertionError(
            "In pre-LN a branch adds α²b, however large the stream is. What is the sum of them, when `share` is left of the "
            "input?"
        )
    if norm == "pre":
        block = torch.arange(len(branches)) // 2 + 1
        once = (branches * block ** (-float(power))).sum().item()
        assert not near(((1 / share - 1) / once) ** 0.5), (
            "The branch of block l is multiplied by α l^(−power). What is its variance multiplied by?"
        )
        raise AssertionError(
            "Without the power it is right. Which number has the block of branch k, when two branches make a block?"
        )
    block = torch.arange(len(branches)) // 2 + 1
    kept = 1 / (1 + got**2 * branches.double() * block ** (-2.0 * power)).prod().item()
    lone = (branches * block ** (-2.0 * power)).sum().item()
    assert not near(((1 / share - 1) / lone) ** 0.5), (
        f'Your factor adds as in pre-LN, and it leaves another share with norm = "{norm}". What does a branch read there?'
    )
    assert not near((-math.log(share) / lone) ** 0.5), (
        "Is 1 + x as large as the exponential of x, for branches of this size?"
    )
    raise AssertionError(
        "Pre-LN is right. Put your factor into the product: "
        + ("the input keeps more" if kept > share else "the input keeps less")
        + " than it should. Has your search room enough, and steps enough?"
    )


factor_code = Code(
    number="9.5",
    title="A scheme to order",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("What share each scheme leaves", "9.4"),
    statement=(
        "Make a scheme that keeps as much of the input as you wish. The branches of block $l$ are multiplied by "
        "$\\alpha\\,l^{-p}$; with $p = 0$ all are alike, and with $p = \\frac12$ they fall as with the depth index. Write "
        "`factor_for_share(branches, share, power, norm)`, which returns $\\alpha$ as one float. `branches` of shape `(2L,)` holds the $b_k$ "
        "of all branches before they are multiplied, in the order of the chapter: the attention and the network of block 1, "
        "those of block 2, and so on. `share` is the $S$ that is wanted, between 0 and 1, and `power` is $p$. The input has variance 1, all "
        '$a_k$ are 1, and `norm` is `"pre"`, `"post"` or `"none"`. Without a norm before it, a branch writes in proportion to '
        "the stream that it reads."
    ),
    hint=(
        'For `"pre"` you can solve for $\\alpha$. In the two other cases the share is a product that falls as $\\alpha$ grows: '
        "halve an interval that holds the right $\\alpha^2$, again and again. Which end is surely too large?"
    ),
    name="factor_for_share",
    starter="def factor_for_share(branches, share, power, norm):\n    ...",
    make=factor_cases,
    compare=judge_factor,
    solution=factor_for_share,
    wrong={
        "α²": (factor_with(end=lambda a: a**2), "or what the branch is"),
        "the sum is the inverse": (
            lambda b, S, p, where: math.sqrt(1 / S / (b * (torch.arange(len(b)) // 2 + 1) ** (-2.0 * p)).sum())
            if where == "pre" else factor_for_share(b, S, p, where), "How much was added"),
        "what is added": (factor_with(share=lambda S: 1 - S), "or what is added"),
        "power of the variance": (factor_with(power=lambda p: p / 2), "its variance multiplied by"),
        "the branch's number": (factor_with(branches=by_branch), "block of branch k"),
        "blocks from 0": (factor_with(branches=from_zero), "block of branch k"),
        "no power": (factor_with(power=lambda p: 0), "block of branch k"),
        "pre-LN everywhere": (factor_with(norm="pre"), "as in pre-LN"),
        "a product everywhere": (factor_with(norm="none"), "however large the stream"),
        "the exponential": (by_exponential, "exponential of x"),
        "GPT-2's": (lambda b, S, p, where: len(b) ** -0.5, "however large the stream"),
        "searched below 1 only": (factor_with(end=lambda a: min(a, 1)), "room enough"),
    },
    equivalent=("range(51)", "/ 3", "2 / share / b.max()", "1 / share * b.max()", "1 / (share * b.max())"),
)  # fmt: skip


# fmt: off
class Gated(torch.nn.Module):
    """A pre-LN block: attention, and a SwiGLU with its three matrices."""

    def __init__(self, d_model, n_heads, d_ff, n_blocks):
        super().__init__()
        self.n_heads = n_heads
        for role in ("query", "key", "value", "output",
                     "gate", "up", "down"):
            fan_in = d_ff if role == "down" else d_model
            fan_out = d_ff if role in ("gate", "up") else d_model
            linear = torch.nn.Linear(fan_in, fan_out, bias=False)
            torch.nn.init.normal_(linear.weight, std=fan_in ** -0.5)
            if role in ("output", "gate"):  # GPT-2's factor
                linear.weight.data /= (2 * n_blocks) ** 0.5
            self.add_module(role, linear)

    def forward(self, x):
        y = torch.nn.functional.layer_norm(x, x.shape[-1:])
        q, k, v = (f(y).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        mix = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.output(mix.transpose(1, 2).flatten(2))
        y = torch.nn.functional.layer_norm(x, x.shape[-1:])
        gate = torch.nn.functional.silu(self.gate(y))
        return x + self.down(gate * self.up(y))


def gated_stack(d_model, n_heads, d_ff, n_blocks):
    """Blocks in a torch.nn.Sequential."""
    return torch.nn.Sequential(*(
        Gated(d_model, n_heads, d_ff, n_blocks) for _ in range(n_blocks)))
# fmt: on


def mend(stack):
    factor = math.sqrt(2 * len(stack))
    with torch.no_grad():
        for block in stack:
            block.gate.weight *= factor
            block.down.weight /= factor


def multiplied(factor=lambda L, n: math.sqrt(2 * L), **powers):
    """Multiply matrices by powers of a factor of the depth and of the block."""

    @torch.no_grad()
    def answer(stack):
        for number, block in enumerate(stack, start=1):
            for role, power in powers.items():
                getattr(block, role).weight.mul_(factor(len(stack), number) ** power)

    return answer


@torch.no_grad()
def drawn_again(stack: nn.Module) -> None:
    for block in stack:
        nn.init.normal_(block.gate.weight, std=block.gate.in_features**-0.5)
        nn.init.normal_(block.down.weight, std=(block.down.in_features * 2 * len(stack)) ** -0.5)


@torch.no_grad()
def swapped(stack: nn.Module) -> None:
    """Exchange the layers instead of the factor."""
    for block in stack:
        block.gate, block.up = block.up, block.gate


def stack_cases(seed: int) -> list[tuple[int, int, int, int, int]]:
    return [(12, 3, 20, 4, seed), (8, 2, 14, 3, seed + 1)]


def mended_stack(answer, d_model, n_heads, d_ff, n_blocks, seed):
    torch.manual_seed(seed)
    stack = gated_stack(d_model, n_heads, d_ff, n_blocks)
    old = {name: parameter.detach().clone() for name, parameter in stack.named_parameters()}
    answer(stack)
    new = {name: parameter.detach() for name, parameter in stack.named_parameters()}
    found = {}
    for name, before in old.items():
        if name in new and new[name].shape == before.shape:
            times = (new[name] * before).sum() / before.square().sum()
            beside = (new[name] - times * before).norm() / before.norm()
            found.setdefault(name.split(".")[1], []).append((round(times.item(), 5), round(beside.item(), 5)))
    return len(new), found


def judge_stack(case, got, want):
    n_blocks = case[3]
    assert isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], dict), "Is the stack there still?"
    number, found = got
    assert number == want[0] and {role: len(pairs) for role, pairs in found.items()} == dict.fromkeys(
        want[1], n_blocks
    ), "Which parameters had the stack before? Are they all there still, in their shapes?"
    assert all(math.isfinite(y) for pairs in found.values() for pair in pairs for y in pair), (
        "A matrix holds something that is no number. By what did you multiply?"
    )
    for role, pairs in found.items():
        assert max(beside for _, beside in pairs) < 1e-3, (
            f"The {role} has other directions than before. Which numbers did you draw or exchange?"
        )
    times = {role: [factor for factor, _ in pairs] for role, pairs in found.items()}

    def is_by(role, factor):
        return all(abs(x / factor - 1) < 1e-3 for x in times[role])

    root = (2 * n_blocks) ** 0.5
    if all(is_by(role, want[1][role][0][0]) for role in times):
        return
    assert not all(is_by(role, 1) for role in times), (
        "Nothing was changed. Does your function change the stack in place?"
    )
    for role in ("query", "key", "value", "output"):
        assert is_by(role, 1), (
            f"The {role} of a block is not as it was. In which branch does the finding see a factor misplaced?"
        )
    assert is_by("up", 1), (
        "The up matrix was drawn without a factor, and it does not write to the stream. Why change it?"
    )
    assert not is_by("gate", 1), "The gate still has the factor. What does a silu do with small numbers?"
    assert not is_by("down", 1), (
        "The gate has got something back. Which matrix writes to the stream, and what should it have?"
    )
    for role in ("gate", "down"):
        assert max(times[role]) / min(times[role]) < 1.001, (
            f"The factors of the {role} differ from block to block. Do they in GPT-2, or is that the depth index?"
        )
    for role, right in (("gate", root), ("down", 1 / root)):
        assert not is_by(role, 1 / right), f"The {role} was changed the wrong way. Was it too small, or too large?"
        assert not is_by(role, right**2), f"Look at the {role}. Is 2L the factor of a matrix, or of its variance?"
    raise AssertionError(
        "How many branches write to this stream, and by the root of what does GPT-2 divide? Is it fixed?"
    )


misplaced = Mend(
    number="9.6",
    title="The factor on the gate",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("Does the factor on the wrong matrix cost anything?",),
    statement=(
        "`gated_stack` has GPT-2's factor on the wrong matrix of its SwiGLU. Draw a `gated_stack(64, 4, 128, 12)` and run "
        "`attntut.diagnose` on it, with `torch.randn(4, 16, 64)`. Read which matrix it finds. In the chapter's lab a wrong matrix costs "
        "nothing; this is not that one. Then write `mend(stack)`, which puts the factor where it belongs, in place, in a stack of any "
        "size. Draw nothing anew: each matrix is to keep the numbers that were drawn, up to one factor. Run `attntut.diagnose` again."
    ),
    hint="$y = W_2\\,(\\operatorname{silu}(W_1 x) \\odot W_3 x)$. In which of the three is $y$ linear? `gate` is $W_1$, `up` is $W_3$, `down` is $W_2$.",
    name="mend",
    starter="def mend(stack):\n    ...",
    setup=(Gated, gated_stack),
    make=stack_cases,
    ask=mended_stack,
    compare=judge_stack,
    solution=mend,
    wrong={
        "nothing": (lambda stack: None, "Nothing was changed"),
        "down only": (multiplied(down=-1), "The gate still has"),
        "gate only": (multiplied(gate=1), "Which matrix writes"),
        "to the up matrix": (multiplied(gate=1, up=-1), "up matrix"),
        "up and down": (multiplied(gate=1, up=-1, down=-1), "up matrix"),
        "the output again": (multiplied(gate=1, down=-1, output=-1), "misplaced"),
        "the output free": (multiplied(gate=1, down=-1, output=1), "misplaced"),
        "no root": (multiplied(lambda L, n: 2 * L, gate=1, down=-1), "of its variance"),
        "√L": (multiplied(lambda L, n: math.sqrt(L), gate=1, down=-1), "How many branches"),
        "twelve blocks": (multiplied(lambda L, n: math.sqrt(24), gate=1, down=-1), "How many branches"),
        "depth index": (multiplied(lambda L, n: math.sqrt(2 * n), gate=1, down=-1), "differ from block"),
        "the wrong way": (multiplied(gate=-1, down=1), "wrong way"),
        "drawn again": (drawn_again, "other directions"),
        "layers exchanged": (swapped, "other directions"),
    },
)  # fmt: skip


# fmt: off
def tied_stack(L, seed, d=256):
    """Tokens before and after L pre-LN blocks with W_o = W_v transposed."""
    generator = torch.Generator().manual_seed(seed)
    first = x = torch.randn(64, d, generator=generator)
    for _ in range(L):
        W = torch.randn(d, d, generator=generator) / d**0.5
        read = x / x.square().mean(dim=-1, keepdim=True).sqrt()
        x = x + read @ W.mT @ W
    return first, x
# fmt: on


@functools.cache
def tied(L: int) -> tuple[float, float, float]:
    """Mean cosine of first and last, its square, and the variance of the first over that of the last: means of 8 seeds."""
    stacks = [tied_stack(L, seed) for seed in range(8)]
    cosines = [torch.cosine_similarity(*stack, dim=-1).mean().item() for stack in stacks]
    return (
        sum(cosines) / 8,
        sum(c**2 for c in cosines) / 8,
        sum((first.var() / last.var()).item() for first, last in stacks) / 8,
    )


tied_output = Explain(
    number="9.7",
    title="An output that is not fresh",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("One number for every scheme: the share of the input",),
    statement=(
        "You save memory and take the transposed value matrix for the output, $W_o = W_v^\\top$, drawn anew in each block. The "
        "function below passes 64 tokens, each of which sees itself alone, through $L$ pre-LN blocks without networks. First "
        "predict the share of the input after <<L>> blocks by the chapter's formula, as if $W_o$ were drawn by itself. Then "
        "measure it as the chapter does, as the squared mean cosine between the first tokens and the last, and take the mean over the "
        "seeds 0 to 7. Answer with both numbers. Explain in two or three sentences which assumption fails, and why the share "
        "errs to this side."
    ),
    hint="$x^\\top W^\\top W x = \\lVert W x\\rVert^2$. Which sign has it, and what does that say about a branch and the stream?",
    rubric=(
        "The prediction is 1/(1 + L) (1 point). The last matrix of a branch is not drawn apart from what came before, so what "
        "the branch writes is correlated with the stream and variances do not simply add (1). WᵀW has only positive "
        "eigenvalues, xᵀWᵀWx = |Wx|² > 0, so every branch points along the stream, and so along the input, which grows in length; "
        "only the rest of the branch is new, and the share stays high (1)."
    ),
    setup=(tied_stack,),
    parameters={"L": (12, 6, 24, 8, 16)},
    solve=lambda L: tied(L)[1],
    traps={
        "That is the formula's number. What do the eight stacks give?": lambda L: 1 / (1 + L),
        "Is the share the cosine, or its square?": lambda L: tied(L)[0],
        "Is that the share of the input, or of the rest?": lambda L: 1 - tied(L)[1],
        "The share is the first variance over the last only where a branch is uncorrelated with the stream. Is it here?": (
            lambda L: tied(L)[2]
        ),
        "The variances of such branches are twice as large, but do they simply add?": lambda L: 1 / (1 + 2 * L),
    },
    ask="Is it the cosine of first and last token, averaged over the tokens, squared, and averaged over the seeds 0 to 7, for this L?",
    rtol=0.015,
)  # fmt: skip

EXERCISES = [
    same_variance, small_start, last_word, sources_code, factor_code, misplaced, tied_output,
]  # fmt: skip
