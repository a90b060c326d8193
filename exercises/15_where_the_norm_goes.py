"""Exercises of chapter 15, *Where the norm goes*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

which_place = Choice(
    number="15.1",
    title="Told by three numbers",
    minutes=4,
    difficulty="easy",
    points=1,
    needs=("How the stream grows", "Xiong's argument: the gradient of each block", "What a step does to the output"),
    statement=(
        "Of a fresh model of 24 blocks, drawn with $\\sigma^2 = 1/d$, you know this. The gradient of $W_2$ is as long in block 1 as in block 24. "
        "A small change of all weights moves the output by $D = 40\\,p^2$. And the variance of the stream is $10^{11}$ after the last block. "
        "Where does its norm stand?"
    ),
    hint="Two places have the first two properties. What is $3^{24}$?",
    options={
        "Behind each sum: post-LN.": "The first two numbers fit. Which variance does such a norm leave in the stream?",
        "In front of each branch: pre-LN.": "By which factor does the gradient of $W_2$ fall there from block 1 to block 24?",
        "In front of each branch and behind it: a sandwich.": (
            "What does a branch write there, whatever its weights? So how large is the stream after 48 of them?"
        ),
        "Behind each sum, with DeepNorm's $\\alpha$ and $\\beta$.": "Every block gets the same gradient there. How large is $D/p^2$?",
        "In front of each branch, divided by $\\sqrt l$.": "What does block $l$ add there? How large does a sum of $1/l$ become in 24 blocks?",
        "Nowhere.": "",
    },
)

he_stream = Number(
    number="15.2",
    title="Twice the variance",
    minutes=4,
    difficulty="easy",
    points=2,
    needs=("How the stream grows", "How much does the last block say?"),
    statement=(
        "The chapter's pre-LN model, with one token a sequence and ReLU, but all matrices drawn by He's rule, $\\sigma^2 = 2/d$. It has <<L>> blocks, and its "
        "stream starts with variance <<v>>. Which RMS has the stream after the last block? And which share of its variance has the last block written? Answer with two numbers."
    ),
    hint="Each branch has two matrices, and each of them doubles the variance beside $1/d$. What does an attention branch write then, and what a network?",
    starter="answer = (..., ...)  # RMS, share of the last block",
    parameters={"L": (8, 12, 20, 16), "v": (3, 4, 9)},
    solve=lambda L, v: (math.sqrt(v + 6 * L), 6 / (v + 6 * L)),
    traps={
        "That is right for $\\sigma^2 = 1/d$. What do two of He's matrices make of it?": (
            lambda L, v: (math.sqrt(v + 1.5 * L), 1.5 / (v + 1.5 * L))
        ),
        "How many matrices has a branch, each with twice the variance?": lambda L, v: (math.sqrt(v + 3 * L), 3 / (v + 3 * L)),
        "Does a ReLU between two matrices not halve anything?": lambda L, v: (math.sqrt(v + 8 * L), 8 / (v + 8 * L)),
        "Is there but one branch in a block?": lambda L, v: (math.sqrt(v + 4 * L), 4 / (v + 4 * L)),
        "The share is right. Is the first number the variance, or its root?": lambda L, v: (v + 6 * L, 6 / (v + 6 * L)),
        "The RMS is right. Is a share that of the stream behind the block, or in front of it?": (
            lambda L, v: (math.sqrt(v + 6 * L), 6 / (v + 6 * L - 6))
        ),
        "The RMS is right. Is the share one of the variance, or of the RMS?": (
            lambda L, v: (math.sqrt(v + 6 * L), math.sqrt(6 / (v + 6 * L)))
        ),
        "The RMS is right. Have all blocks written equal parts of what there is, and nothing else is there?": (
            lambda L, v: (math.sqrt(v + 6 * L), 1 / L)
        ),
    },
    ask="What is $v$ plus $L$ times what one block adds, and the root of that? And what is one block's part over it?",
)  # fmt: skip


def scaled_post(L: float, alpha: float) -> float:
    """D/p² of post-LN with branches times α."""
    s = alpha**2
    return 2 * L * (s / (1 + s) + s / 2 / (1 + s / 2))


def last_gradient(d: float, alpha: float) -> float:
    s = alpha**2
    return d * math.sqrt(s / 2 / (1 + s / 2))


scaled_sum = Number(
    number="15.3",
    title="A smaller branch behind the sum",
    minutes=10,
    difficulty="medium",
    points=2,
    needs=("Xiong's argument: the gradient of each block", "What a step does to the output"),
    statement=(
        "Take the chapter's post-LN model, with $\\sigma^2 = 1/d$ and $d_\\text{ff} = d = $ <<d>>, and multiply its branches in the forward pass: $\\operatorname{LN}(x + \\alpha f(x))$ with $\\alpha = $ "
        "<<alpha>>. How far does the output of <<L>> blocks move when all weights change by the share $p$, $D/p^2$? And how long is the gradient of $W_2$, in each block? Predict two numbers."
    ),
    hint="What does each branch write now, $w_k$, and which variance $v_k$ has the sum that the norm divides? What does $\\alpha$ do to a gradient on its way into the branch?",
    starter="answer = (..., ...)  # D/p², length of the gradient",
    parameters={"d": (128, 64, 256), "alpha": (0.5, 0.7, 0.6, 0.4), "L": (24, 12, 18, 36)},
    solve=lambda d, alpha, L: (scaled_post(L, alpha), last_gradient(d, alpha)),
    traps={
        "That is right for α = 1. What does a branch write, times α?": lambda d, alpha, L: (scaled_post(L, 1), last_gradient(d, 1)),
        "By which power of α is a variance multiplied?": (
            lambda d, alpha, L: (scaled_post(L, alpha**0.5), last_gradient(d, alpha**0.5))
        ),
        "Is what a branch has written not in the sum, too, which the norm divides?": (
            lambda d, alpha, L: (3 * L * alpha**2, d * alpha / math.sqrt(2))
        ),
        "$D$ is right. The norm divides by $v$ of the sum. Which branch ends in $W_2$, and what does *it* write?": (
            lambda d, alpha, L: (scaled_post(L, alpha), d * math.sqrt(alpha**2 / 2 / (1 + alpha**2)))
        ),
        "$D$ is right. What does α do to the gradient that goes back into the branch?": (
            lambda d, alpha, L: (scaled_post(L, alpha), d * math.sqrt(1 / 2 / (1 + alpha**2 / 2)))
        ),
        "The gradient is right. How many matrices has a branch, and do both change?": (
            lambda d, alpha, L: (scaled_post(L, alpha) / 2, last_gradient(d, alpha))
        ),
        "The gradient is right. Has a block two branches that write alike?": (
            lambda d, alpha, L: (4 * L * alpha**2 / (1 + alpha**2), last_gradient(d, alpha))
        ),
        "The gradient is right. Is $D$ a sum over blocks, and not one block's part?": (
            lambda d, alpha, L: (scaled_post(1, alpha), last_gradient(d, alpha))
        ),
    },
    ask="What are $w_k/v_k$ of an attention branch and of a network, with $\\alpha^2$ in both? And what is $d\\,\\sqrt{\\alpha^2/(2v)}$, with the $v$ behind a network?",
)  # fmt: skip


def follow_sums(start, gains, norm):
    v, variances, moved = start, [], 0
    for gain in gains:
        write = {"pre": gain, "sandwich": 1}.get(norm, gain * v)
        total = v + write
        variances.append(total)
        moved += 2 * write / total
        v = 1 if norm == "post" else total
    return variances, moved


def sums_by(reads=None, writes=None, after=None, share=None, times=2, record=None):
    """As the solution, with one thing changed."""

    def answer(start, gains, norm):
        v, variances, moved = start, [], 0
        for gain in gains:
            read = (reads or (lambda v, norm: 1 if norm in ("pre", "sandwich") else v))(v, norm)
            write = (writes or (lambda gain, read, norm: 1 if norm == "sandwich" else gain * read))(gain, read, norm)
            total = v + write
            new = (after or (lambda total, norm: 1 if norm == "post" else total))(total, norm)
            variances.append((record or (lambda total, new, write: total))(total, new, write))
            moved += times * (share or (lambda write, v, total: write / total))(write, v, total)
            v = new
        return variances, moved

    return answer


def sums_cases(seed: int) -> list[tuple[float, list[float], str]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return round(low + (high - low) * torch.rand((), generator=generator).item(), 3)

    counts = {"none": 5, "pre": 3, "post": 4, "sandwich": 6}
    return [(draw(1.5, 4), [draw(0.2, 3) for _ in range(n)], norm) for norm, n in counts.items()]


def judge_sums(case, got, want):
    start, gains, norm = case
    assert isinstance(got, (tuple, list)) and len(got) == 2, "Which two things are asked for?"
    variances, moved = got
    variances = variances.tolist() if isinstance(variances, torch.Tensor) else variances
    assert isinstance(variances, (list, tuple)) and len(variances) == len(gains), (
        "There is one sum for each branch. How many variances are there?"
    )
    numbers = [x.item() if isinstance(x, torch.Tensor) and x.numel() == 1 else x for x in [*variances, moved]]
    assert all(type(x) in (int, float) and math.isfinite(x) for x in numbers), "Are the variances and $D/p^2$ numbers?"
    *variances, moved = numbers

    def near(a, b):
        return abs(a - b) <= 1e-3 * abs(b)

    first = {"none": gains[0] * start, "pre": gains[0], "post": gains[0] * start, "sandwich": 1}[norm]
    if not near(variances[0], want[0][0]):
        assert not near(variances[0], first), (
            f'For "{norm}" this is what the first branch writes. What is in the sum besides?'
        )
        assert norm != "post" or not near(variances[0], 1), (
            "That is the variance behind the norm of post-LN. What does the norm divide by?"
        )
        assert norm != "sandwich", "In a sandwich a norm stands behind the branch. What does it leave of the gain?"
        raise AssertionError(
            f'For "{norm}" the first sum is wrong. Which variance does the first branch read, the stream\'s or that behind a norm, and how large is the stream before it?'
        )
    for k, (a, b) in enumerate(zip(variances, want[0], strict=True)):
        if not near(a, b):
            raise AssertionError(
                f'For "{norm}" the first {k} sums are right. Which variance does branch {k + 1} read, and to which one is what it writes added?'
            )
    if not near(moved, want[1]):
        assert not near(2 * moved, want[1]), (
            "A branch has two matrices, and both are changed. By what does what it writes change?"
        )
        assert not near(moved, want[1] * len(gains)) and not near(moved, want[1] / len(gains)), (
            "Is $D$ a sum or a mean?"
        )
        raise AssertionError(
            f'For "{norm}" all variances are right. Over which variance stands $w_k$ in $D$: that in front of the branch, that of its sum, or the last one?'
        )


sums_code = Code(
    number="15.4",
    title="Any branches, four places",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("How the stream grows", "What a step does to the output"),
    statement=(
        "The chapter's branches write 1 or ½ of what they read. Let them write anything. Write `follow_sums(start, gains, norm)`. The stream starts with variance `start`. There are "
        "`len(gains)` branches in turn, and number $k$ writes `gains[k]` times the variance that it reads, before a norm behind it, if there is one. `norm` is "
        '`"none"`, `"pre"`, `"post"` or `"sandwich"` (norms in front of the branch and behind it). Return a tuple of two: a list of the variances $v_k$ of the sums $x + f(x)$, '
        "of post-LN *before* the norm divides them, and $D/p^2$ as a number. Each branch has two matrices, and a branch that is normalized changes by the same share as before."
    ),
    hint="Post-LN reads `start` once, in its first branch. $D = 2p^2 \\sum_k w_k/v_k$ with what the branch adds to the stream, $w_k$.",
    name="follow_sums",
    starter="def follow_sums(start, gains, norm):\n    ...",
    make=sums_cases,
    compare=judge_sums,
    solution=follow_sums,
    wrong={
        "what is written alone": (sums_by(record=lambda total, new, write: write), "in the sum besides"),
        "behind the norm": (sums_by(record=lambda total, new, write: new), "behind the norm of post-LN"),
        "a stream that starts at 1": (lambda start, *rest: follow_sums(1, *rest), "the first sum is wrong"),
        "pre-LN reads the stream": (sums_by(reads=lambda v, norm: v), "Which variance does the first branch read"),
        "nothing but norms": (sums_by(reads=lambda v, norm: 1), "the first sum is wrong"),
        "a norm for the first of post-LN": (
            sums_by(reads=lambda v, norm: v if norm == "none" else 1), "the first sum is wrong"),
        "post-LN without its norm": (sums_by(after=lambda total, norm: total), "sums are right"),
        "a sandwich that keeps the gain": (sums_by(writes=lambda gain, read, norm: gain * read), "leave of the gain"),
        "a norm on the stream everywhere": (sums_by(after=lambda total, norm: 1), "sums are right"),
        "one matrix": (sums_by(times=1), "both are changed"),
        "over the stream in front": (sums_by(share=lambda write, v, total: write / v), "Over which variance"),
        "roots": (sums_by(share=lambda write, v, total: (write / total) ** 0.5), "Over which variance"),
        "a mean": (lambda s, g, n: (follow_sums(s, g, n)[0], follow_sums(s, g, n)[1] / len(g)), "a sum or a mean"),
        "over the last variance": (
            lambda s, g, n: (
                (sums := follow_sums(s, g, n))[0],
                2 * sum(b - a for a, b in zip([s, *sums[0]], sums[0], strict=False)) / sums[0][-1]),
            "Over which variance"),
    },
)  # fmt: skip


def rms_twin(embedding, blocks):
    twins = []
    for block in blocks:
        down, bias = block["down"], block["down_bias"]
        twins.append({
            "up": block["up"] * block["gain"],
            "up_bias": block["up"] @ block["shift"] + block["up_bias"],
            "down": down - down.mean(dim=0),
            "down_bias": bias - bias.mean(),
        })  # fmt: skip
    return embedding - embedding.mean(dim=1, keepdim=True), twins


def twin_by(table=lambda E: E - E.mean(dim=1, keepdim=True), **parts):
    """As the solution, with some parts made otherwise."""

    def answer(embedding, blocks):
        _, twins = rms_twin(embedding, blocks)
        return table(embedding), [
            twin | {name: make(block) for name, make in parts.items()}
            for twin, block in zip(twins, blocks, strict=True)
        ]

    return answer


def twin_cases(seed: int) -> list[tuple[Tensor, list[dict[str, Tensor]]]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    rows, d, d_ff = 3, 4, 2
    blocks = [
        {"gain": 1 + 0.5 * draw(d), "shift": draw(d), "up": draw(d_ff, d), "up_bias": draw(d_ff),
         "down": draw(d, d_ff), "down_bias": draw(d)}
        for _ in range(2)
    ]  # fmt: skip
    return [(0.5 + draw(rows, d), blocks)]


def run_twin(answer, embedding, blocks):
    x = embedding
    for block in blocks:
        read = (x - x.mean(dim=1, keepdim=True)) / x.var(dim=1, keepdim=True, correction=0).sqrt()
        read = read * block["gain"] + block["shift"]
        x = x + torch.relu(read @ block["up"].mT + block["up_bias"]) @ block["down"].mT + block["down_bias"]
    x = (x - x.mean(dim=1, keepdim=True)) / x.var(dim=1, keepdim=True, correction=0).sqrt()
    names = {name: block[name].shape for name in ("up", "up_bias", "down", "down_bias")}
    got = answer(embedding, blocks)
    if not (isinstance(got, tuple) and len(got) == 2 and isinstance(got[1], list) and len(got[1]) == len(blocks)):
        return None
    y, twins = got
    for twin in twins:
        if not (isinstance(twin, dict) and set(twin) == set(names)):
            return "names"
        if any(not isinstance(twin[name], torch.Tensor) or twin[name].shape != names[name] for name in names):
            return "shapes"
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        return "shapes"
    for twin in twins:
        read = y / y.square().mean(dim=1, keepdim=True).sqrt()
        y = y + torch.relu(read @ twin["up"].mT + twin["up_bias"]) @ twin["down"].mT + twin["down_bias"]
    apart = (y / y.square().mean(dim=1, keepdim=True).sqrt() - x).abs().max().item()
    return apart, got[0], twins


def judge_twin(case, got, want):
    assert got is not None, "Does your function return the embedding and a list, with a dictionary for each block?"
    assert got != "names", "Which four tensors has a block of the twin?"
    assert got != "shapes", "Which shapes have the table and the four tensors of a block, before and after?"
    assert isinstance(got, tuple) and len(got) == 3, "Does your function return the embedding and a list of blocks?"
    apart, table, twins = got
    assert math.isfinite(apart), "Is something divided by 0?"
    if apart < 1e-3:
        return

    def mean(x, dim):
        return x.mean(dim=dim).abs().max().item()

    assert mean(table, 1) < 1e-4, (
        "The rows of your embedding do not have mean 0. Over which axis is the mean of a token?"
    )
    for twin, right in zip(twins, want[2], strict=True):
        assert mean(twin["down"], 0) < 1e-4, (
            "A block of your twin writes vectors whose mean is not 0. For which axis of `down` must the mean be 0, so that it is for every input?"
        )
        assert mean(twin["down_bias"], 0) < 1e-4, (
            "`down` writes vectors of mean 0 now. What else does a block write to the stream?"
        )
        assert torch.allclose(twin["up"].to(right["up"].dtype), right["up"], rtol=1e-3, atol=1e-4), (
            "All that writes has mean 0. An RMSNorm without a gain reads $x$/RMS. Which entries of `up` meet entry $j$ of `gain`?"
        )
        assert torch.allclose(twin["up_bias"].to(right["up"].dtype), right["up_bias"], rtol=1e-3, atol=1e-4), (
            "All that writes has mean 0, and the gain is in `up`. What does `up` make of the `shift` of the norm, and where can that go?"
        )
    raise AssertionError(
        "All has mean 0, and `up` is right. What is left of `down` and of the embedding, besides their means?"
    )


twin_code = Code(
    number="15.5",
    title="A LayerNorm that nobody needs",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("What the other norms leave out", "15.4"),
    statement=(
        "If all that writes to the stream has mean 0, RMSNorm is LayerNorm for good. So turn a pre-LN model into one with RMSNorm that computes the same. Its stream "
        "begins with a row of `embedding` `(rows, d)`. Each of `blocks` is a dictionary of tensors `gain` `(d,)`, `shift` `(d,)`, `up` `(d_ff, d)`, `up_bias` `(d_ff,)`, "
        "`down` `(d, d_ff)` and `down_bias` `(d,)`, and adds to $x$\n\n"
        "$$W_\\text{down} \\operatorname{ReLU}\\big(W_\\text{up}(\\text{gain} \\odot \\operatorname{LN}(x) + \\text{shift}) + b_\\text{up}\\big) + b_\\text{down} .$$\n\n"
        "(LN itself has no gain, no shift and no ε, and one stands at the end.) Write `rms_twin(embedding, blocks)`. It returns a tuple: an embedding of the same shape, and a list of as many blocks with "
        "`up`, `up_bias`, `down` and `down_bias` alone, in their shapes, of which each adds $W_\\text{down} \\operatorname{ReLU}(W_\\text{up} \\operatorname{RMS}(x) + b_\\text{up}) + b_\\text{down}$. "
        "RMS divides a token by its root mean square and does nothing else. With an RMS at the end the twin's output must be that of the model."
    ),
    hint="A LayerNorm does not see what you take away from all entries of a token. $W(g \\odot z + s) = (W \\operatorname{diag} g)\\,z + W s$.",
    name="rms_twin",
    starter="def rms_twin(embedding, blocks):\n    ...",
    make=twin_cases,
    ask=run_twin,
    compare=judge_twin,
    solution=rms_twin,
    wrong={
        "the embedding as it is": (twin_by(lambda E: E), "rows of your embedding"),
        "the mean of each column": (twin_by(lambda E: E - E.mean(dim=0)), "rows of your embedding"),
        "one mean of all": (twin_by(lambda E: E - E.mean()), "rows of your embedding"),
        "down as it is": (twin_by(down=lambda b: b["down"]), "which axis of `down`"),
        "down's rows": (twin_by(down=lambda b: b["down"] - b["down"].mean(dim=1, keepdim=True)), "which axis of `down`"),
        "the bias as it is": (twin_by(down_bias=lambda b: b["down_bias"]), "What else does a block write"),
        "no gain": (twin_by(up=lambda b: b["up"]), "entry $j$ of `gain`"),
        "the gain divided out": (twin_by(up=lambda b: b["up"] / b["gain"]), "entry $j$ of `gain`"),
        "up's means taken out": (
            twin_by(up=lambda b: b["up"] - b["up"].mean(dim=1, keepdim=True)), "entry $j$ of `gain`"),
        "no shift": (twin_by(up_bias=lambda b: b["up_bias"]), "the `shift` of the norm"),
        "the shift through gain and up": (
            twin_by(up_bias=lambda b: (b["up"] * b["gain"]) @ b["shift"] + b["up_bias"]), "the `shift` of the norm"),
        "the shift alone": (twin_by(up_bias=lambda b: b["up"] @ b["shift"]), "the `shift` of the norm"),
        "all names": (lambda E, blocks: (E, blocks), "Which four tensors"),
        "the blocks alone": (lambda E, blocks: rms_twin(E, blocks)[1], "return the embedding"),
    },
)  # fmt: skip


# fmt: off
class SandwichBlock(torch.nn.Module):
    """A block with norms in front of its branches and behind them."""

    def __init__(self, d_model, n_heads, d_ff):
        super().__init__()
        self.n_heads = n_heads
        shapes = {"query": (d_model, d_model), "key": (d_model, d_model),
                  "value": (d_model, d_model),
                  "output": (d_model, d_model),
                  "up": (d_model, d_ff), "down": (d_ff, d_model)}
        for role, shape in shapes.items():
            layer = torch.nn.Linear(*shape, bias=False)
            torch.nn.init.normal_(layer.weight, 0, shape[0] ** -0.5)
            self.add_module(role, layer)
        for name in ("before1", "after1", "before2", "after2"):
            norm = torch.nn.LayerNorm(d_model)
            torch.nn.init.normal_(norm.weight, 1, 0.1)
            torch.nn.init.normal_(norm.bias, 0, 0.1)
            self.add_module(name, norm)

    def attend(self, x):
        B, T, _ = x.shape
        q, k, v = (layer(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        return self.output(mix.transpose(1, 2).reshape(B, T, -1))

    def forward(self, x):
        x = x + self.after1(self.attend(self.before1(x)))
        inside = torch.relu(self.up(self.before2(x)))
        return x + self.after2(self.down(inside))


def sandwiches(d_model, n_heads, d_ff, n_blocks):
    return torch.nn.Sequential(*(SandwichBlock(d_model, n_heads, d_ff)
                                 for _ in range(n_blocks)))
# fmt: on


@torch.no_grad()
def mend(stack):
    for block in stack:
        for norm in (block.after1, block.after2):
            norm.weight *= (2 * len(stack)) ** -0.5
            norm.bias *= (2 * len(stack)) ** -0.5


def times(factor, *names: str, parts: str = "weight bias"):
    """Multiply parameters of each block."""

    @torch.no_grad()
    def answer(stack):
        for block in stack:
            for name in names:
                for part in parts.split():
                    if getattr(getattr(block, name), part) is not None:
                        getattr(getattr(block, name), part).mul_(factor(len(stack)))

    return answer


def by_depth(L: int) -> float:
    return (2 * L) ** -0.5


@torch.no_grad()
def filled(stack: nn.Module) -> None:
    """Gains that forget what was drawn."""
    for block in stack:
        for norm in (block.after1, block.after2):
            norm.weight.fill_(by_depth(len(stack)))
            norm.bias.zero_()


@torch.no_grad()
def by_number(stack: nn.Module) -> None:
    for number, block in enumerate(stack, start=1):
        for norm in (block.after1, block.after2):
            norm.weight *= number**-0.5
            norm.bias *= number**-0.5


def sandwich_cases(seed: int) -> list[tuple[int, int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    n_heads, d_head, extra, n_blocks = (
        int(torch.randint(low, high, (), generator=generator)) for low, high in ((2, 4), (5, 8), (3, 9), (3, 7))
    )
    return [(n_heads * d_head, n_heads, 2 * n_heads * d_head + extra, n_blocks, seed)]


def mended_sandwiches(answer, d_model, n_heads, d_ff, n_blocks, seed):
    torch.manual_seed(seed)
    stack = sandwiches(d_model, n_heads, d_ff, n_blocks)
    before = {name: p.detach().clone() for name, p in stack.named_parameters()}
    answer(stack)
    after = {name: p.detach() for name, p in stack.named_parameters()}
    if {n: p.shape for n, p in after.items()} != {n: p.shape for n, p in before.items()}:
        return None
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    ratios = {}
    for name in before:
        if ".after" in name:
            ratio = after[name] / before[name]
            ratios[name] = (ratio.mean().item(), (ratio.max() - ratio.min()).item())
    return changed, ratios


def judge_sandwiches(case, got, want):
    n_blocks = case[3]
    assert isinstance(got, tuple) and len(got) == 2, (
        "Which parameters had the stack before? Are they there, in their shapes?"
    )
    changed, ratios = got
    assert changed, "All parameters are what they were. Does your function change the stack in place?"
    kinds = {name.split(".", 1)[1] for name in changed}
    writers = kinds & {"output.weight", "down.weight"}
    assert not writers, (
        "$W_o$ or $W_2$ is smaller now. A norm stands behind it: what does that make of a factor? So what has become of the stream?"
    )
    others = sorted(kinds - {"after1.weight", "after1.bias", "after2.weight", "after2.bias"})
    assert not others, f"`{others[0]}` was changed. Does it stand between a branch and the stream?"
    values = list(ratios.values())
    assert all(math.isfinite(x) for pair in values for x in pair), "Are all the gains numbers still?"
    assert all(spread < 1e-3 * max(1e-3, abs(mean)) + 1e-4 for mean, spread in values), (
        "The gains were drawn, and those of a model that you load were learned. Is each of them the same factor of what it was, and each shift?"
    )
    gains = [pair for name, pair in ratios.items() if name.endswith("weight")]
    shifts = [pair for name, pair in ratios.items() if name.endswith("bias")]
    right = want[1][sorted(want[1])[0]][0]

    def all_are(factor, pairs=values):
        return all(abs(mean / factor - 1) < 1e-3 for mean, _ in pairs)

    if all_are(right):
        return
    assert not all_are(right, gains), "The gains are right. What else does such a norm add to the stream?"
    assert not all_are(right**2), "Is that the factor of the variance, or of what is written?"
    assert not all_are(n_blocks**-0.5), "How many branches has a block?"
    assert not all_are(1 / right), "Is the stream to grow faster now?"
    moved = [abs(mean - 1) > 1e-3 for mean, _ in gains + shifts]
    assert all(moved), (
        "Some norms are what they were. How many branches are there, and which norm does each of them end in?"
    )
    raise AssertionError("How many branches does the *whole* stack have? Is it the same factor for all of them?")


growing_sandwich = Mend(
    number="15.6",
    title="Advice that changes nothing",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("A model that is ill", "What frameworks do"),
    statement=(
        "Build `sandwiches(64, 4, 128, 16)` and run `attntut.diagnose` on it, with `x = 0.3 * torch.randn(4, 16, 64)`. Read the finding. "
        "Its advice is not the one that GPT-2 is known for. Follow GPT-2, multiply `output.weight` and `down.weight` of each block by $1/\\sqrt{2L}$, and compare `stack(x).square().mean()` before and after: "
        "the stream stays as it is, and so does the finding. Then write `mend(stack)`, which does what the finding says "
        "to any such stack, in place: each branch is to write $1/\\sqrt{2L}$ times what it wrote into the stream, and all matrices stay. Mind "
        "that the norms are not as torch draws them: they have gains and shifts as in a model that was trained."
    ),
    hint="LN$(c\\,y)$ is LN$(y)$. What comes after the division, in an `nn.LayerNorm`? `len(stack)` is $L$.",
    name="mend",
    starter="def mend(stack):\n    ...",
    setup=(SandwichBlock, sandwiches),
    make=sandwich_cases,
    ask=mended_sandwiches,
    compare=judge_sandwiches,
    solution=mend,
    wrong={
        "nothing": (lambda stack: None, "in place"),
        "the matrices": (times(by_depth, "output", "down"), "what does that make of a factor"),
        "both": (times(by_depth, "output", "down", "after1", "after2"), "what does that make of a factor"),
        "the norms in front": (times(by_depth, "before1", "before2"), "Does it stand between"),
        "all norms": (times(by_depth, "before1", "after1", "before2", "after2"), "Does it stand between"),
        "gains alone": (times(by_depth, "after1", "after2", parts="weight"), "What else does such a norm add"),
        "the attention alone": (times(by_depth, "after1"), "Some norms are what they were"),
        "1/√L": (times(lambda L: L**-0.5, "after1", "after2"), "How many branches has a block"),
        "1/(2L)": (times(lambda L: 1 / (2 * L), "after1", "after2"), "of the variance, or"),
        "√(2L)": (times(lambda L: (2 * L) ** 0.5, "after1", "after2"), "grow faster"),
        "1/√l": (by_number, "Some norms are what they were"),
        "24 blocks": (times(lambda L: 48**-0.5, "after1", "after2"), "the *whole* stack"),
        "set, not scaled": (filled, "of what it was"),
    },
)  # fmt: skip


# fmt: off
def one_block_again(L, d=256, n=64):
    """The stream (n, d) after L branches of pre-LN, one W for all."""
    torch.manual_seed(0)
    W = torch.randn(d, d) / d**0.5
    x = torch.nn.functional.layer_norm(torch.randn(n, d), (d,))
    for _ in range(L):
        x = x + torch.nn.functional.layer_norm(x, (d,)) @ W.mT
    return x
# fmt: on


@functools.cache
def again(L: int, kind: str = "rms") -> float:
    """RMS of the stream after L times the same branch, or something like it."""
    with torch.random.fork_rng(devices=[]):
        x, last = one_block_again(L), one_block_again(L - 1)
    values = {
        "rms": x.square().mean().sqrt(),
        "absolute": x.abs().mean(),
        "branch": (x - last).square().mean().sqrt(),
        "last": last.square().mean().sqrt(),
    }
    return float(f"{values[kind].item():.4g}")


same_branch = Explain(
    number="15.7",
    title="One block for all",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("How the stream grows",),
    statement=(
        "Some models use one block again and again, and draw its matrices once. `one_block_again(L)` passes 64 tokens through <<L>> branches of "
        "pre-LN, each of which reads variance 1 and writes variance 1 by *the same* random matrix. First predict by the chapter's rule which RMS the stream has at the end for "
        "$L$ = <<L>>. Then measure it, over all entries of what comes back. Answer with both, and explain in two or three sentences why they differ. Does the RMS still grow like $\\sqrt L$?"
    ),
    hint="The rule adds variances, because a fresh branch is uncorrelated with the stream. Is the second branch? What are $x + Wx$ and then $W(x + Wx)$?",
    rubric=(
        "The prediction is √(1 + L) (1 point). Variances add where what is written is uncorrelated with the stream. With one W the second branch reads x + Wx and writes Wx + W²x, of which Wx "
        "stands in the stream already: what branches write is correlated, so the covariance adds to the variances (1). The stream turns towards directions that W keeps, where each "
        "branch adds along the stream, so it grows faster than √L, and in the end in proportion to L (1)."
    ),
    setup=(one_block_again,),
    parameters={"L": (24, 16, 32, 48)},
    solve=again,
    traps={
        "That is the rule's number, for branches that are drawn independently. What does one matrix for all give?": lambda L: math.sqrt(1 + L),
        "Is that the RMS, or the mean square?": lambda L: again(L) ** 2,
        "Is that the mean of the absolute values, or the root of the mean square?": lambda L: again(L, "absolute"),
        "That is what the last branch writes. How large is the stream?": lambda L: again(L, "branch"),
        "Is that one branch too few?": lambda L: again(L - 1),
        "That is pre-LN with a network in each block. Which branches does the function have, and what do they write?": (
            lambda L: math.sqrt(1 + 1.5 * L)
        ),
    },
    ask="Is it the root of the mean square over all entries of `one_block_again(L)`, with this $L$?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    which_place, he_stream, scaled_sum, sums_code, twin_code, growing_sandwich, same_branch,
]  # fmt: skip
