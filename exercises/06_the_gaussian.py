"""Exercises of chapter 6, *The Gaussian*."""

import math

import torch
from torch import Tensor, nn

from attntut.measure import gaussian_entropy
from exercises.exercise import Choice, Code, Explain, Mend, Number

of_gpt2 = Number(
    number="6.1",
    title="Drawn at 0.02",
    minutes=3,
    difficulty="easy",
    points=2,
    needs=("The prediction: the scale of the logits",),
    statement=(
        "A model with `d_model` <<d_model>> draws query and key with σ = <<sigma>>, and a LayerNorm stands before its "
        "attention. (768 and 0.02 are the numbers of GPT-2 small.) What is the standard deviation of its logits, and "
        "which σ would make it 1? Answer with two numbers."
    ),
    hint="The number of heads is not given, and not needed.",
    starter="answer = (..., ...)  # the standard deviation, the other σ",
    parameters={"d_model": (768, 1024, 1280, 512), "sigma": (0.02, 0.03, 0.01)},
    solve=lambda d_model, sigma: (d_model * sigma**2, d_model**-0.5),
    traps={
        "Is the first number the variance of the logits, or their standard deviation?": (
            lambda d_model, sigma: (d_model**2 * sigma**4, d_model**-0.5)
        ),
        "The first number holds σ once. How many matrices stand in a logit?": (
            lambda d_model, sigma: (math.sqrt(d_model) * sigma, d_model**-0.5)
        ),
        "Did you take the width of a head, 64? What has cancelled it?": (
            lambda d_model, sigma: (64 * sigma**2, 64**-0.5)
        ),
        "You divide the first number by a root once more. Which root is in the formula already?": (
            lambda d_model, sigma: (math.sqrt(d_model) * sigma**2, d_model**-0.5)
        ),
        "Is the second number σ, or its square?": lambda d_model, sigma: (d_model * sigma**2, 1 / d_model),
        "If you double σ, by which factor do the logits grow? What follows for the second number?": (
            lambda d_model, sigma: (d_model * sigma**2, 1 / (d_model * sigma))
        ),
    },
    ask="What is $d\\,\\sigma^2$ for these two numbers, and for which σ is it 1?",
)  # fmt: skip

alike = Choice(
    number="6.2",
    title="Tokens that are alike",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("What the derivation took for granted",),
    statement=(
        "A hundred tokens come from a LayerNorm, and their mean cosine is $\\rho = \\tfrac34$. Query and key are drawn with "
        "$\\sigma = 1/\\sqrt d$. About how large is the standard deviation of the logits within a row?"
    ),
    hint="The formula for a row gives a variance.",
    options={
        "0.06": "You counted $1 - \\rho$ in the query too. How many different queries are there in one row?",
        "0.25": "Is this the variance within the row, or the standard deviation?",
        "0.5": "",
        "0.75": "Is $\\rho$ what the keys share or what sets them apart? And is it a part of the variance or of its root?",
        "0.87": "Is $\\rho$ the part of the keys in which they differ, or the part which they share?",
        "1, because tokens from a LayerNorm have variance 1": (
            "That is the scale of one logit. What does the part that all keys share do to the logits of a row?"
        ),
    },
)

larger = Number(
    number="6.3",
    title="A larger σ, without a norm",
    minutes=5,
    difficulty="medium",
    points=2,
    needs=("Without LayerNorm",),
    statement=(
        "Two blocks without LayerNorm and without a feed-forward network start with $\\sigma\\sqrt d = 8$ in all four "
        "matrices, and the first branch is so large that you may forget the stream beside it. Now make σ <<factor>> "
        "times as large in all four matrices of both blocks. By which factors does the typical size grow of the logits of "
        "block 1, of the branch of block 1 (take its attention weights as they were), and of the logits of block 2? "
        "Predict three numbers."
    ),
    hint="The branch contains $W_v$ and $W_o$. The logits of block 2 contain its own two matrices, and the stream twice.",
    starter="answer = (..., ..., ...)  # logits of block 1, its branch, logits of block 2",
    parameters={"factor": (2, 3, 1.5, 4)},
    solve=lambda factor: (factor**2, factor**2, factor**6),
    traps={
        "How many matrices stand between a token and the logits of block 1, and how many before its branch?": (
            lambda factor: (factor, factor, factor**3)
        ),
        "How many matrices does a value pass on its way into the stream?": (
            lambda factor: (factor**2, factor, factor**4)
        ),
        "That would be so behind a LayerNorm. What do the queries and keys of block 2 read here?": (
            lambda factor: (factor**2, factor**2, factor**2)
        ),
        "The logits of block 2 read a larger stream. Do only the queries read it, or only the keys?": (
            lambda factor: (factor**2, factor**2, factor**4)
        ),
        "You have the factor of a query of block 2. What is multiplied by it in a logit?": (
            lambda factor: (factor**2, factor**2, factor**3)
        ),
        "Are these factors of variances, or of sizes?": lambda factor: (factor**4, factor**4, factor**12),
        "The stream enters the logits of block 2 twice. Do its own two matrices too?": (
            lambda factor: (factor**2, factor**2, factor**5)
        ),
    },
    ask="How often does σ stand in a logit, how often in a branch, and how often in a logit made of two such branches?",
)  # fmt: skip


def row_variances(x, sigma_q, sigma_k):
    length = x.square().sum(dim=-1)
    spread = (x - x.mean(dim=1, keepdim=True)).square().sum(dim=-1)
    return sigma_q**2 * sigma_k**2 * length * spread.mean(dim=1, keepdim=True)


def in_parts(x: Tensor, query: Tensor, key: Tensor, factor: float) -> Tensor:
    """Variances with other lengths of the queries and spreads of the keys."""
    return factor * query.square().sum(-1) * key.square().sum(-1).mean(1, keepdim=True)


def row_cases(seed: int) -> list[tuple[Tensor, float, float]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for shape in ((2, 5, 7), (4, 3, 6)):
        size, shared = torch.rand(shape[0], shape[1], 1, generator=generator), torch.randn(shape, generator=generator)
        x = (1 + 2 * size) * (torch.randn(shape, generator=generator) + shared[:, :1] + 0.5)
        sigmas = (0.2 + torch.rand(2, generator=generator)).tolist()
        cases.append((x, *sigmas))
    return cases


def judge_row_variances(case, got, want):
    assert isinstance(got, torch.Tensor) and got.is_floating_point(), "Which numbers come back? Are they a tensor?"
    B, n, _ = case[0].shape
    assert got.shape == want.shape, f"There are {B} sequences of {n} queries each. How many rows have their logits?"
    assert got.isfinite().all(), "Some variances are no numbers. Where do you divide?"
    got = got.to(want.dtype)
    if torch.allclose(got, want, rtol=1e-3):
        return
    assert not torch.allclose(got, want.sqrt(), rtol=1e-3), "Is this the variance, or its root?"
    ratio = got / want
    even = torch.allclose(ratio, ratio[:, :1].expand(B, n), rtol=1e-3)
    assert even, "The rows of one sequence are not in the right proportion. What of a row belongs to its own query?"
    same = torch.allclose(ratio, ratio[:1, :1].expand(B, n), rtol=1e-3)
    assert same, "Right but for a factor that each sequence has of its own. Around what do its keys spread?"
    raise AssertionError(
        "Right but for one factor. Which powers have the two σ, are the lengths sums or means, and over how many keys do "
        "you average?"
    )


of_rows = Code(
    number="6.4",
    title="The variance of a row",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("6.2", "What the derivation took for granted"),
    statement=(
        "Write `row_variances(x, sigma_q, sigma_k)`. The tokens `x` are `(B, n, d)`, as they come: neither of length "
        "$\\sqrt d$ nor of mean 0. The matrices will be drawn with $\\sigma_q$ and $\\sigma_k$. Return the predicted variance "
        "of the logits *within* the row of each query, `(B, n)`, before anything is drawn."
    ),
    hint="$\\lVert x_i\\rVert^2$ belongs to the query, and the mean of $\\lVert x_j - \\bar x\\rVert^2$ to the keys of its sequence.",
    name="row_variances",
    starter="def row_variances(x, sigma_q, sigma_k):\n    ...",
    make=row_cases,
    compare=judge_row_variances,
    solution=row_variances,
    wrong={
        "mean not subtracted": (lambda x, a, b: in_parts(x, x, x, (a * b) ** 2), "keys spread"),
        "mean over the width": (lambda x, a, b: in_parts(x, x, x - x.mean(-1, keepdim=True), (a * b) ** 2), "keys spread"),
        "mean over all": (lambda x, a, b: in_parts(x, x, x - x.mean((0, 1)), (a * b) ** 2), "keys spread"),
        "over the batch": (lambda x, a, b: in_parts(x, x, x - x.mean(0), (a * b) ** 2), "keys spread"),
        "mean taken from the query": (
            lambda x, a, b: in_parts(x, x - x.mean(1, keepdim=True), x, (a * b) ** 2), "its own query"),
        "mean taken from both": (
            lambda x, a, b: in_parts(x, *[x - x.mean(1, keepdim=True)] * 2, (a * b) ** 2), "its own query"),
        "every query of the same length": (
            lambda x, a, b: row_variances(x, a, b).mean(1, keepdim=True).expand(x.shape[:2]), "its own query"),
        "length √d taken for granted": (
            lambda x, a, b: row_variances(x, a, b) / x.square().sum(-1) * x.shape[-1], "its own query"),
        "the root": (lambda x, a, b: row_variances(x, a, b).sqrt(), "its root"),
        "σ not squared": (lambda x, a, b: row_variances(x, a, b) / (a * b), "powers"),
        "σ_q twice": (lambda x, a, b: row_variances(x, a, a), "powers"),
        "n − 1": (lambda x, a, b: row_variances(x, a, b) * x.shape[1] / (x.shape[1] - 1), "how many keys"),
        "means over the width": (lambda x, a, b: row_variances(x, a, b) / x.shape[2] ** 2, "sums or means"),
        "one number": (lambda x, a, b: row_variances(x, a, b).mean(), "How many rows"),
    },
)  # fmt: skip


def sigma_for(entropy, rows, d_model):
    low, high = 0.0, 1000.0
    for _ in range(45):
        std = (low + high) / 2
        weights = torch.softmax(std * rows, dim=-1)
        if torch.special.entr(weights).sum(dim=-1).mean() > entropy:
            low = std
        else:
            high = std
    return math.sqrt(low / d_model)


def bisected(entropy: float, rows: Tensor, d_model: int, of, high: float = 1000.0) -> float:
    """As the solution, with another entropy."""
    low = 0.0
    for _ in range(45):
        std = (low + high) / 2
        low, high = (std, high) if of(std * rows) > entropy else (low, std)
    return math.sqrt(low / d_model)


def in_bits(logits: Tensor) -> Tensor:
    return torch.special.entr(torch.softmax(logits, -1)).sum(-1).mean() / math.log(2)


def over_the_rows(logits: Tensor) -> Tensor:
    return torch.special.entr(torch.softmax(logits, 0)).sum(0).mean()


def of_the_mean_row(logits: Tensor) -> Tensor:
    return torch.special.entr(torch.softmax(logits, -1).mean(0)).sum()


def of_the_first_row(logits: Tensor) -> Tensor:
    return torch.special.entr(torch.softmax(logits[0], -1)).sum()


def by_the_formula(entropy: float, rows: Tensor, d_model: int) -> float:
    return math.sqrt(math.sqrt(2 * (math.log(rows.shape[-1]) - entropy)) / d_model)


def entropy_cases(seed: int) -> list[tuple[float, Tensor, int]]:
    generator = torch.Generator().manual_seed(seed)
    parts = 0.05 * torch.rand(3, generator=generator)
    shapes, shares = ((6, 11), (9, 5), (10, 7)), (0.95, 0.6, 0.15)
    return [
        (round((share + part.item()) * math.log(shape[1]), 4), torch.randn(shape, generator=generator), d_model)
        for shape, share, part, d_model in zip(shapes, shares, parts, (48, 20, 96), strict=True)
    ]


def judge_sigma_for(case, got, want):
    entropy, rows, d_model = case
    if isinstance(got, torch.Tensor) and got.numel() == 1:
        got = got.item()
    number = isinstance(got, (int, float)) and not isinstance(got, bool) and math.isfinite(got)
    assert number and 0 <= got < 1000, "Is what comes back one σ, a number that is not negative?"
    if abs(got - want) <= 0.004 * want:
        return
    std = d_model * want**2
    for wrong, question in (
        (std, "Did you return σ, or the standard deviation of the logits?"),
        (std**0.5, "The search is right. Where does the width of the tokens come in?"),
        (std / d_model, "Is this σ, or its square?"),
        (std / d_model**0.5, "By which power of the width do the logits grow, and how often does σ stand in them?"),
        (2 * abs(math.log(rows.shape[-1]) - entropy), "Is this what the formula says for the variance of the logits?"),
    ):
        assert abs(got - wrong) > 0.004 * wrong, question
    formula = (2 * abs(math.log(rows.shape[-1]) - entropy)) ** 0.25 / d_model**0.5
    assert abs(got - formula) > 0.004 * formula, (
        "That is what ln n − σ_s²/2 gives. How many keys hold most of the weight in these rows?"
    )
    weights = torch.softmax(d_model * got**2 * rows, dim=-1)
    found = torch.special.entr(weights).sum(dim=-1).mean().item()
    assert abs(found - entropy * math.log(2)) > 0.004, "In which unit is your entropy?"
    raise AssertionError(
        f"At your σ the mean entropy of these rows is {found:.3f} nats, and {entropy:.3f} was asked for. Does your search "
        "reach far enough, is each row a softmax, and do you average their entropies?"
    )


entropy_to_sigma = Code(
    number="6.5",
    title="A σ for an entropy",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("From the scale to the map",),
    statement=(
        "Which σ gives a map the entropy that you want? Write `sigma_for(entropy, rows, d_model)`. Each of the `rows`, "
        "`(m, n)`, holds $n$ draws from $\\mathcal N(0, 1)$. Multiplied by $\\sigma_s = d\\,\\sigma^2$ they are the logits of "
        "$m$ queries. Return the σ, a number, at which the mean of the entropies of these rows is `entropy` nats. It must "
        "be right to three digits, and even where $\\ln n - \\sigma_s^2/2$ fails. No $\\sigma_s$ that you need is larger than "
        "500."
    ),
    hint="The mean entropy falls as $\\sigma_s$ grows, so bisect. The entropy of one row is `torch.special.entr(weights).sum(-1)`.",
    name="sigma_for",
    starter="def sigma_for(entropy, rows, d_model):\n    ...",
    make=entropy_cases,
    compare=judge_sigma_for,
    solution=sigma_for,
    wrong={
        "by the formula": (by_the_formula, "most of the weight"),
        "returns σ_s": (lambda h, rows, d: d * sigma_for(h, rows, d) ** 2, "standard deviation of the logits"),
        "without the width": (lambda h, rows, d: math.sqrt(d) * sigma_for(h, rows, d), "width of the tokens"),
        "no root": (lambda h, rows, d: sigma_for(h, rows, d) ** 2, "its square"),
        "σ once": (lambda h, rows, d: math.sqrt(d) * sigma_for(h, rows, d) ** 2, "how often does σ"),
        "in bits": (lambda h, rows, d: bisected(h, rows, d, in_bits), "unit"),
        "softmax over the rows": (lambda h, rows, d: bisected(h, rows, d, over_the_rows), "each row a softmax"),
        "entropy of the mean": (lambda h, rows, d: bisected(h, rows, d, of_the_mean_row), "average their"),
        "one row": (lambda h, rows, d: bisected(h, rows, d, of_the_first_row), "average their"),
        "search too short": (
            lambda h, rows, d: bisected(h, rows, d, lambda s: in_bits(s) * math.log(2), 2.0), "far enough"),
        "a tenth at a time": (lambda h, rows, d: math.sqrt(round(d * sigma_for(h, rows, d) ** 2, 1) / d), "far enough"),
    },
    equivalent=("1001.0", "range(46)", "(low + high) / 3", "dim=1)"),
)  # fmt: skip


# fmt: off
class BareBlock(torch.nn.Module):
    """Attention and a skip connection, drawn with σ = 1/√d; no norm."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        for role in ("query", "key", "value", "output"):
            layer = torch.nn.Linear(d_model, d_model, bias=False)
            torch.nn.init.normal_(layer.weight, std=d_model**-0.5)
            self.add_module(role, layer)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5  # (B, H, T, T)
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        return x + self.output(mix.transpose(1, 2).reshape(B, T, C))


def shouting(d_model, n_heads, n_blocks, ill, of_value, of_output):
    """A stack in which one block's value and output are too large."""
    stack = torch.nn.Sequential(
        *(BareBlock(d_model, n_heads) for _ in range(n_blocks)))
    with torch.no_grad():
        stack[ill].value.weight *= of_value
        stack[ill].output.weight *= of_output
    return stack
# fmt: on


def mend(stack):
    with torch.no_grad():
        for block in stack:
            for weight in (block.value.weight, block.output.weight):
                usual = weight.shape[1] ** -0.5
                if weight.std() > 2 * usual:
                    weight *= usual / weight.std()


def ill_block(stack: nn.Sequential) -> int:
    return max(range(len(stack)), key=lambda i: stack[i].value.weight.std().item())


@torch.no_grad()
def divided(stack: nn.Sequential, places: dict[int, str], by: float | None = None) -> None:
    """Divide matrices by a number, or to the usual σ."""
    for i, roles in places.items():
        for role in roles.split():
            weight = getattr(stack[i], role).weight
            weight /= by or weight.std() * math.sqrt(weight.shape[1])


@torch.no_grad()
def redrawn(stack: nn.Sequential) -> None:
    block = stack[ill_block(stack)]
    for layer in (block.value, block.output):
        layer.weight.normal_(0, layer.in_features**-0.5)


@torch.no_grad()
def one_factor(stack: nn.Sequential) -> None:
    block = stack[ill_block(stack)]
    both = [layer.weight.std() * math.sqrt(layer.in_features) for layer in (block.value, block.output)]
    divided(stack, {ill_block(stack): "value output"}, math.sqrt(both[0] * both[1]))


def after_ill(stack: nn.Sequential) -> int:
    return ill_block(stack) + 1


def stack_cases(seed: int) -> list[tuple[int, int, int, int, float, float, int]]:
    generator = torch.Generator().manual_seed(seed)
    cases = []
    for d_model, n_heads, n_blocks in ((12, 2, 4), (15, 3, 5)):
        ill = int(torch.randint(1, n_blocks - 1, (), generator=generator))
        times = (5 + torch.rand(2, generator=generator)).tolist()
        times[seed % 2] *= 3  # one factor for both is wrong
        cases.append((d_model, n_heads, n_blocks, ill, *times, seed))
    return cases


def mended_stack(answer, d_model, n_heads, n_blocks, ill, of_value, of_output, seed):
    torch.manual_seed(seed)
    stack = shouting(d_model, n_heads, n_blocks, ill, of_value, of_output)
    before = {name: parameter.detach().clone() for name, parameter in stack.named_parameters()}
    answer(stack)
    after = {name: parameter.detach() for name, parameter in stack.named_parameters()}
    changed = {name: x for name, x in after.items() if name not in before or not torch.equal(x, before[name])}
    return len(after), changed


def judge_mended_stack(case, got, want):
    d_model, n_heads, n_blocks, ill, of_value, of_output, seed = case
    assert isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], dict), "Is the stack there still?"
    assert got[0] == want[0], "Which parameters had the stack before? Are they all there still?"
    changed = got[1]
    assert changed, "Nothing was changed. Does your function change the stack in place?"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        before = dict(shouting(d_model, n_heads, n_blocks, ill, of_value, of_output).named_parameters())
    names = {f"{ill}.value.weight", f"{ill}.output.weight"}
    others = set(changed) - names
    logits = {f"{i}.{role}.weight" for i in range(n_blocks) for role in ("query", "key")}
    assert not others & logits, (
        "A query or a key was changed. Large logits are what you see, but were these matrices drawn too large?"
    )
    assert not others, "A matrix was changed that had the right σ. Which block does the finding name?"
    assert set(changed) == names, "One of the two matrices is as it was. What is a branch made of?"
    for name in sorted(names):
        old, new = before[name].detach(), changed[name]
        assert isinstance(new, torch.Tensor) and new.shape == old.shape, "Has each matrix the shape that it had?"
        assert new.isfinite().all(), "A matrix holds something that is no number. By what did you divide?"
        scale = (new * old).sum() / old.square().sum()
        assert torch.allclose(new, scale * old, atol=1e-4) and scale > 0, (
            "Are these still the random numbers that stood there, up to one factor?"
        )
        std = (new.std() * math.sqrt(d_model)).item()
        assert 0.75 < std < 1.25, (
            f"In a mended matrix σ√d is {std:.2g}. What is it in the other blocks, and were both matrices too large by the "
            "same factor?"
        )


loud_block = Mend(
    number="6.6",
    title="The block that shouts",
    minutes=20,
    difficulty="medium",
    points=3,
    needs=("6.3", "Without LayerNorm"),
    statement=(
        "In one block of this stack, never the first or the last, somebody drew value and output too large, each by "
        "another factor of 5 or more. Draw one, `shouting(64, 4, 6, ill=2, of_value=8, of_output=6)`, and look at it "
        "with `attntut.diagnose`, on `torch.randn(8, 16, 64)`. Read the finding, and compare the standard deviation of "
        "the logits in the block that it names and in the next. Then write `mend(stack)`. It changes in place what was "
        "drawn wrongly and nothing else, so that $\\sigma\\sqrt d$ is 1 there too, for any width, any depth and any block "
        "that is ill. Keep the random numbers, and change only their scale."
    ),
    hint="What is `weight.std() * math.sqrt(weight.shape[1])` for each matrix of the stack?",
    name="mend",
    starter="def mend(stack):\n    ...",
    setup=(BareBlock, shouting),
    make=stack_cases,
    ask=mended_stack,
    compare=judge_mended_stack,
    solution=mend,
    wrong={
        "nothing": (lambda s: None, "Nothing was changed"),
        "the logits of the next block": (lambda s: divided(s, {after_ill(s): "query key"}), "drawn too large"),
        "its own query and key": (lambda s: divided(s, {ill_block(s): "query key"}, 8), "drawn too large"),
        "the next block's branch": (lambda s: divided(s, {after_ill(s): "value output"}, 8), "does the finding name"),
        "all blocks": (
            lambda s: divided(s, dict.fromkeys(range(len(s)), "value output")), "does the finding name"),
        "one of two": (lambda s: divided(s, {ill_block(s): "output"}), "made of"),
        "one takes both": (lambda s: divided(s, {ill_block(s): "value"}, 8 * 6), "made of"),
        "variance for deviation": (lambda s: divided(s, {ill_block(s): "value output"}, 64), "in the other blocks"),
        "to σ = 1": (lambda s: divided(s, {ill_block(s): "value output"}, 2), "in the other blocks"),
        "one factor for both": (one_factor, "by the same factor"),
        "drawn anew": (redrawn, "random numbers"),
    },
    equivalent=("weight.std() > 3 * usual", "weight.std() >= 2", "weight.shape[2]"),
)  # fmt: skip


# fmt: off
def logits_of_narrow_heads(sigma_s, n, d=64, layers=4):
    """Fresh layers with d heads of width 1: (layers, d, n, n)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(layers, n, d, generator=generator)
    W_q, W_k = torch.randn(2, layers, d, d, generator=generator)
    sigma = (sigma_s / d) ** 0.5
    query, key = x @ (sigma * W_q).mT, x @ (sigma * W_k).mT
    return query.mT[..., :, None] * key.mT[..., None, :]
# fmt: on


def of_narrow_heads(sigma_s: float, n: int) -> float:
    weights = torch.softmax(logits_of_narrow_heads(sigma_s, n), dim=-1)
    return torch.special.entr(weights).sum(dim=-1).mean().item()


narrow_heads = Explain(
    number="6.7",
    title="Heads of width one",
    minutes=20,
    difficulty="hard",
    points=2,
    manual=3,
    needs=("6.1", "From the scale to the map"),
    statement=(
        "The standard deviation of the logits is $d\\,\\sigma^2$ whatever the number of heads. Is the entropy, too, the same "
        "for any number of heads? The function below gives the logits of fresh layers that have as many heads as numbers "
        "in a token, so `d_head` is 1. Predict the mean entropy of their rows in nats for <<n>> tokens and "
        "$\\sigma_s$ = <<sigma_s>>, by `attntut.measure.gaussian_entropy(std, n)`. Measure it, and check the standard "
        "deviation of the logits as well. Answer with the two entropies, and explain the difference in two sentences."
    ),
    hint="All logits of a row share one query. What is the standard deviation of a row whose query is 0.1, or 3?",
    rubric=(
        "The prediction is the integral's number (1 point). A row's logits are its query times the keys, so the standard "
        "deviation of a row is proportional to |q|, and σ_s is only the root of their mean square (1). With d_head = 1 that "
        "scatters widely: the entropy of rows with small |q| is near ln n, and that of rows with large |q| cannot fall "
        "below 0, so the mean is higher than at the mean square; with wide heads all rows are alike and the integral "
        "holds (1)."
    ),
    setup=(logits_of_narrow_heads,),
    parameters={"n": (64, 128, 32), "sigma_s": (2, 3, 2.5, 1.75)},
    solve=lambda n, sigma_s: of_narrow_heads(sigma_s, n),
    traps={
        "That is what the integral says of independent logits. What do the rows of these layers give?": (
            lambda n, sigma_s: gaussian_entropy(sigma_s, n)
        ),
        "That is what the formula for small logits says. What do the rows of these layers give?": (
            lambda n, sigma_s: math.log(n) - sigma_s**2 / 2
        ),
        "Did you take the logarithm to base 2? Which unit is asked for?": (
            lambda n, sigma_s: of_narrow_heads(sigma_s, n) / math.log(2)
        ),
        "Is that the entropy, or its share of ln n?": lambda n, sigma_s: of_narrow_heads(sigma_s, n) / math.log(n),
        "Is that the entropy of one row, or a sum over all queries?": lambda n, sigma_s: n * of_narrow_heads(sigma_s, n),
        "That is the entropy at which all keys weigh the same. Which of these rows are as flat?": (
            lambda n, sigma_s: math.log(n)
        ),
        "Is $\\sigma_s$ the variance of the logits, or their standard deviation? Which of the two did you give?": (
            lambda n, sigma_s: of_narrow_heads(sigma_s**2, n)
        ),
    },
    ask="Is the softmax over the keys, and the entropy −Σ p ln p that of each row, averaged over all of them?",
    rtol=0.01,
)  # fmt: skip

EXERCISES = [of_gpt2, alike, larger, of_rows, entropy_to_sigma, loud_block, narrow_heads]
