"""Exercises of chapter 21, *The clinic*: seven more patients."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Explain, Mend, Number

half_the_spread = Choice(
    number="21.1",
    title="Nothing to report",
    minutes=5,
    difficulty="easy",
    points=1,
    needs=("Case 2: the softmax runs over the wrong axis, and nobody notices", "Case 6: a scale that forgot its root"),
    statement=(
        "**The report.** A layer learns more slowly under SGD than it did in another library. It has width 64 and four heads, and all its matrices are as `nn.Linear` "
        "draws them. For `torch.randn(4, 64, 64)` the report of `diagnose` on the fresh layer is\n\n"
        "```text\nNo findings.\n\n"
        "layer    heads  keys  logit std  entropy  largest  > 0.99  to first  to self\n"
        "(model)      4    64       0.17        1    0.023       0     0.016    0.016\n```\n\n"
        "Which number did you expect under *logit std*? And what is wrong with the layer?"
    ),
    hint="`nn.Linear` gives queries and keys a variance of ⅓ each. What is then the variance of a logit, and by which factor is the report's too small?",
    options={
        "The logits are divided by $\\sqrt{d_\\text{head}}$ twice.": "How large is $\\sqrt{d_\\text{head}}$ here? By which factor would the spread be too small?",
        "Nothing. `nn.Linear` gives such logits.": "Case 2 has a $\\sigma^2$ for logits of `nn.Linear`. What is its root?",
        "Query, key and value are packed in one `nn.Linear(64, 192)`.": (
            "That halves the spread under Xavier's rule, which counts outputs. Does `nn.Linear` count them?"
        ),
        "The logits are divided by $\\sqrt{d_\\text{model}}$.": "",
        "The root is missing, as in case 6.": "Would that make the spread smaller, or larger?",
        "The softmax runs over the queries.": "Which column would that change: one from before the softmax, or one from behind it? And would `diagnose` say nothing?",
        "$W_k$ was never drawn and is 0.": "How large would the spread be then?",
    },
)


def row_sums(p: float, n: int, d: int, s2: float = 1 / 9) -> tuple[float, float]:
    """Standard deviation of what a row of weights adds up to: under dropout, and over the wrong axis."""
    return math.sqrt(p / (1 - p) * math.exp(s2) / n), math.sqrt((math.exp(s2) - 1) / n + s2 / d)


two_suspects = Number(
    number="21.2",
    title="Nearly one",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("Case 2: the softmax runs over the wrong axis, and nobody notices",),
    statement=(
        "**The report.** A fresh layer, drawn by `nn.Linear`, gives the same sequence two answers, and the weights of a query add up to 1 only nearly.\n\nSomebody suspects the softmax: it may run over the wrong axis. "
        "Somebody else suspects `F.dropout(weights, p)`, which is on by default, also after `model.eval()`. It sets each weight to 0 with probability $p$, and divides those that "
        "stay by $1-p$. Predict the standard deviation of what a row adds up to: first if it is the dropout (and the softmax is right), with $p$ = <<p>>, then if it is the axis (and there is no dropout). There are $n$ = <<n>> keys, and the width is $d$ = <<d>>."
    ),
    hint=(
        "For fixed weights $a_j$, each product of a weight and its mask has the variance $a_j^2\\,p/(1-p)$. Case 2 knows mean and variance of a weight, so what is the mean of $a_j^2$? And how many are there? "
        "(Which of the two also explains two answers to one sequence?)"
    ),
    starter="answer = (..., ...)  # dropout, axis",
    parameters={"p": (0.1, 0.2, 0.3), "n": (100, 64, 400, 36), "d": (64, 128, 32)},
    solve=row_sums,
    traps={
        "The second is right. What is the mean of a square: the variance alone, or is there something else?": (
            lambda p, n, d: (math.sqrt(p / (1 - p) * (math.exp(1 / 9) - 1) / n), row_sums(p, n, d)[1])
        ),
        "The second is right. Are all weights alike, so that the mean of a square is the square of the mean?": (
            lambda p, n, d: (math.sqrt(p / (1 - p) / n), row_sums(p, n, d)[1])
        ),
        "The second is right. By what does dropout divide the weights that stay?": (
            lambda p, n, d: (math.sqrt(p * (1 - p) * math.exp(1 / 9) / n), row_sums(p, n, d)[1])
        ),
        "The second is right. A weight is about $1/n$. How many of them add up?": (
            lambda p, n, d: (math.sqrt(p / (1 - p) * math.exp(1 / 9)) / n, row_sums(p, n, d)[1])
        ),
        "The first is right. What does the bias of the keys add to all logits of a query, and which softmax divides it out?": (
            lambda p, n, d: (row_sums(p, n, d)[0], math.sqrt((math.exp(1 / 9) - 1) / n))
        ),
        "The first is right. Is $\\sigma^2$ a ninth, or $\\sigma$?": (
            lambda p, n, d: (row_sums(p, n, d)[0], row_sums(p, n, d, 1 / 81)[1])
        ),
        "Are the two numbers in the order that was asked for?": lambda p, n, d: row_sums(p, n, d)[::-1],
    },
    ask="First $\\sqrt{n \\cdot \\overline{a^2}\\, p/(1-p)}$: what is $\\overline{a^2}$? Second: what does case 2 predict?",
    rtol=0.015,
)  # fmt: skip


# fmt: off
class Capped(torch.nn.Module):
    """Attention whose logits cannot leave ±cap; pad is true on padding."""

    def __init__(self, d_model, n_heads, cap=4.0):
        super().__init__()
        self.n_heads, self.cap = n_heads, cap
        for role in ("query", "key", "value", "output"):
            self.add_module(role, torch.nn.Linear(d_model, d_model))

    def weights(self, logits, pad):     # (B, n_heads, n, n) and (B, n)
        logits = logits.masked_fill(pad[:, None, None], -1e9)
        logits = self.cap * torch.tanh(logits / self.cap)
        return torch.softmax(logits, dim=-1)

    def forward(self, x, pad):
        q, k, v = (f(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = self.weights(logits, pad) @ v
        return self.output(mix.transpose(1, 2).flatten(2))
# fmt: on


def mend_cap(logits, pad, cap):
    logits = cap * torch.tanh(logits / cap)
    logits = logits.masked_fill(pad[:, None, None], -math.inf)
    return torch.softmax(logits, dim=-1)


def capped_by(fill=-math.inf, wide=1.0, dim=-1, free=False, before=False, queries=False, zeroed=False):
    """As the solution, with one step replaced."""

    def answer(logits, pad, cap):
        hidden = pad[:, None, :, None] if queries else pad[:, None, None]
        if before:
            logits = logits.masked_fill(hidden, fill)
        if not free:
            logits = cap * wide * torch.tanh(logits / (cap * wide))
        if not before and not zeroed:
            logits = logits.masked_fill(hidden, fill)
        weights = torch.softmax(logits, dim=dim)
        return weights.masked_fill(hidden, 0) if zeroed else weights

    return answer


def sizes(seed: int, *ranges: tuple[int, int]) -> tuple[torch.Generator, list[int]]:
    """A generator, and a size out of each range; the ranges do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    return generator, [int(torch.randint(low, high, (), generator=generator)) for low, high in ranges]


def capped_cases(seed: int) -> list[tuple[Tensor, Tensor, float]]:
    generator, (B, H, n, tenths) = sizes(seed, (2, 3), (3, 4), (4, 6), (20, 50))
    logits = 5 * torch.randn(B, H, n, n, generator=generator)
    ends = torch.randint(2, n, (B, 1), generator=generator)
    return [(logits, torch.arange(n) >= ends, tenths / 10)]


def call_a_copy(answer, *case):
    return answer(*(x.clone() if isinstance(x, torch.Tensor) else x for x in case))


def judge_capped(case, got, want):
    logits, pad, cap = case
    assert isinstance(got, torch.Tensor) and got.shape == logits.shape, (
        "Is what comes back a tensor of weights, in the shape of the logits?"
    )
    real = ~pad[:, None, :, None].expand(got.shape)
    got = got.to(want.dtype)
    assert not got.isnan().all(dim=-1).any(), (
        "Some queries have NaN for weights. Which keys do they see? Is it a query that the mask should hide, or a key?"
    )
    assert torch.allclose(got.sum(dim=-1), torch.ones(()), atol=1e-4), (
        "The weights of a query do not add up to 1. Over which axis is the softmax, and does it know what is hidden?"
    )
    on_padding = got.masked_fill(~pad[:, None, None], 0)[real]
    ill = torch.softmax(cap * torch.tanh(logits.masked_fill(pad[:, None, None], -1e9) / cap), dim=-1)
    assert not torch.allclose(got[real], ill[real], atol=1e-5), (
        "Padding has weight still. Follow the number that the mask writes, line by line. What is it when it comes to the softmax?"
    )
    assert (on_padding == 0).all(), (
        "Padding has other weights than before, but it has some. What is the lowest logit that your function gives to a key?"
    )
    if torch.allclose(got[real], want[real], atol=1e-5):
        return
    free = torch.softmax(logits.masked_fill(pad[:, None, None], -math.inf), dim=-1)
    assert not torch.allclose(got[real], free[real], atol=1e-5), (
        "Padding is hidden. But the model was trained with a cap: can a logit leave ±cap now?"
    )
    raise AssertionError(
        "Padding is hidden. Has each visible key the capped logit that it had, with the cap of this layer?"
    )


hidden_by_cap = Mend(
    number="21.3",
    title="A very negative number",
    minutes=8,
    difficulty="easy",
    points=2,
    needs=("Case 3: the mask that hides nothing",),
    statement=(
        "**The report.** What this model says of a sentence depends on how long the others in its batch are. Trained alone it was fine. The fill has been checked: "
        "it is −1e9, and −∞ changes nothing.\n\nRun `attntut.diagnose(layer, (x, pad))` on a `Capped(64, 4)`, with `x = torch.randn(4, 64, 64)` and a `pad` that is true from some place on. "
        "Read what it finds, and why no fill helps. Then write `mend(logits, pad, cap)`, which stands in for the method `weights`. The cap has to stay, because the model was trained with it."
    ),
    hint="What is $c\\tanh(-10^9/c)$?",
    name="mend",
    starter="def mend(logits, pad, cap):\n    ...",
    setup=(Capped,),
    make=capped_cases,
    ask=call_a_copy,
    compare=judge_capped,
    solution=mend_cap,
    wrong={
        "nothing": (capped_by(fill=-1e9, before=True), "line by line"),
        "−∞ before the cap": (capped_by(before=True), "line by line"),
        "no cap": (capped_by(free=True), "leave ±cap"),
        "a wider cap": (capped_by(fill=-1e9, wide=5.0, before=True), "the lowest logit"),
        "a much wider cap": (capped_by(wide=100.0, before=True, fill=-1e9), "the capped logit that it had"),
        "a fill of −2c": (lambda logits, pad, cap: capped_by(fill=-4 * cap)(logits, pad, cap), "the lowest logit"),
        "weights set to 0": (capped_by(zeroed=True), "add up to 1"),
        "queries hidden": (capped_by(queries=True), "a query that the mask should hide"),
        "over the queries": (capped_by(dim=-2), "add up to 1"),
        "hidden where it is not": (lambda logits, pad, cap: mend_cap(logits, ~pad, cap), "the lowest logit"),
    },
)  # fmt: skip


# fmt: off
class TwoReaches(torch.nn.Module):
    """Head h sees the keys that are near[h] to far[h] places back."""

    def __init__(self, d_model, near=(0, 2), far=(1, 5)):
        super().__init__()
        self.near, self.far = torch.tensor(near), torch.tensor(far)
        for role in ("query", "key", "value", "output"):
            self.add_module(role, torch.nn.Linear(d_model, d_model))

    def sees(self, pad):                # (B, n) to (B, n_heads, n, n)
        i = torch.arange(pad.shape[1])
        back = i[:, None] - i
        window = ((back >= self.near[:, None, None])
                  & (back <= self.far[:, None, None]))
        return window & ~pad[:, None, None]

    def forward(self, x, pad):
        q, k, v = (f(x).unflatten(-1, (len(self.near), -1))
                   .transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        logits = q @ k.mT / q.shape[-1] ** 0.5
        logits = logits.masked_fill(~self.sees(pad), -torch.inf)
        mix = torch.softmax(logits, dim=-1) @ v
        return self.output(mix.transpose(1, 2).flatten(2))
# fmt: on


def mend_reach(sees):
    blind = ~sees.any(dim=-1, keepdim=True)
    itself = torch.eye(sees.shape[-1], dtype=torch.bool)
    return sees | (blind & itself)


def nearest_before(sees: Tensor) -> Tensor:
    """A blind query sees its neighbour, and the first one itself."""
    back = (torch.arange(sees.shape[-1]) - 1).clamp(min=0)
    return sees | (~sees.any(dim=-1, keepdim=True) & torch.eye(sees.shape[-1], dtype=torch.bool)[back])


def reach_cases(seed: int) -> list[tuple[Tensor]]:
    generator, (B, H, n) = sizes(seed, (2, 4), (4, 6), (7, 10))
    near = torch.arange(H)[torch.randperm(H, generator=generator)]  # one head sees itself
    layer = TwoReaches(H, near.tolist(), (near + 1 + torch.randint(2, (H,), generator=generator)).tolist())
    ends = torch.randint(2, n - 1, (B, 1), generator=generator)
    ends[0] = n
    return [(layer.sees(torch.arange(n) >= ends),)]


def judge_reach(case, got, want):
    (sees,) = case
    assert isinstance(got, torch.Tensor) and got.dtype == torch.bool and got.shape == sees.shape, (
        "Is what comes back a mask of truth values, in the shape that came in?"
    )
    if torch.equal(got, want):
        return
    assert not torch.equal(got, ~want), "Is your mask true where a query sees a key, or where it does not?"
    assert not (sees & ~got).any(), "A query saw a key, and does not any more. Which pairs were not ill?"
    blind, seeing = ~sees.any(dim=-1), got.any(dim=-1)
    assert seeing.all(), (
        "There is still a query that sees nothing. Each head has a softmax of its own, and each sequence its end. Over which axis do you ask?"
    )
    added = got & ~sees
    gained = added.any(dim=-1) & ~blind
    elsewhere = blind.any(dim=1, keepdim=True).expand(blind.shape)
    assert not gained.any() or (gained & ~elsewhere).any(), (
        "A query that is blind in one head has a new key in another head, too. Was its row there 0/0?"
    )
    assert not gained.any(), "A query that saw keys has one more now. Is the model still the one that was reported?"
    n = sees.shape[-1]
    assert not (added.sum(dim=-1) > 1).any(), (
        "A blind query sees several keys now. May it look at those that come later, and at padding?"
    )
    assert not (added & ~torch.eye(n).bool()).any(), (
        "Which key does a blind query get? Is it the one that was asked for?"
    )
    raise AssertionError("Which queries see no key, in which head of which sequence? And what does each of them get?")


blind_head = Mend(
    number="21.4",
    title="Two distances",
    minutes=10,
    difficulty="medium",
    points=3,
    needs=("Case 1: the loss is finite, the gradients are NaN",),
    statement=(
        "**The report.** The heads of this layer look back to different distances. The loss is taken of the fourth token only, and is a plain number. After one step $W_v$ and $W_o$ are NaN. "
        "With the first head alone, and without padding, it trains.\n\nDraw a `TwoReaches(64)` and run `attntut.diagnose(layer, (x, pad), lambda y: y[:, 3].square().mean())` on `x = torch.randn(4, 8, 64)`, with a `pad` that is true from "
        "some place on, the fifth or a later one. Read what it finds.\n\nWrite `mend(sees)`, through which the layer is to send the mask that its method `sees` returns: from `(B, n_heads, n, n)` to the same shape, "
        "true where a query sees a key. For any reaches and any padding no gradient may be NaN, whatever the loss looks at. A query that needs a key gets itself. Where nothing is ill, all stays as it was."
    ),
    hint="A softmax is taken for each sequence, each head and each query. Which of these rows of the mask are empty? Case 1's remedy lets *every* query see itself: what would it change here, in the second head?",
    name="mend",
    starter="def mend(sees):\n    ...",
    setup=(TwoReaches,),
    make=reach_cases,
    ask=call_a_copy,
    compare=judge_reach,
    solution=mend_reach,
    equivalent=("sees.shape[-2]",),
    wrong={
        "nothing": (lambda sees: sees, "still a query that sees nothing"),
        "every query sees itself": (lambda sees: sees | torch.eye(sees.shape[-1]).bool(), "has one more now"),
        "in all heads": (
            lambda sees: sees | (~sees.any(-1, keepdim=True)).any(1, keepdim=True) & torch.eye(sees.shape[-1]).bool(),
            "in another head"),
        "all keys": (lambda sees: sees | ~sees.any(-1, keepdim=True), "come later"),
        "all keys before it": (
            lambda sees: sees | ~sees.any(-1, keepdim=True) & torch.ones(sees.shape[-2:]).tril().bool(), "come later"),
        "the first key": (
            lambda sees: sees | ~sees.any(-1, keepdim=True) & (torch.arange(sees.shape[-1]) == 0), "the one that was asked for"),
        "the one before": (nearest_before, "the one that was asked for"),
        "blind in all heads": (
            lambda sees: sees | ~sees.any(-1, keepdim=True).any(1, keepdim=True) & torch.eye(sees.shape[-1]).bool(),
            "still a query that sees nothing"),
        "blind in all sequences": (
            lambda sees: sees | ~sees.any(-1, keepdim=True).any(0, keepdim=True) & torch.eye(sees.shape[-1]).bool(),
            "still a query that sees nothing"),
        "itself alone": (lambda sees: torch.eye(sees.shape[-1]).bool().expand(sees.shape).clone(), "Which pairs were not ill"),
        "hidden for seen": (lambda sees: ~mend_reach(sees), "or where it does not"),
        "numbers": (lambda sees: mend_reach(sees).float(), "truth values"),
    },
)  # fmt: skip


# fmt: off
def kernel(q, k, v):
    """Compiled: not yours to change. lse is ln Σ exp(logit), a query."""
    logits = q @ k.mT / q.shape[-1] ** 0.5
    mix = torch.softmax(logits, dim=-1) @ v     # (B, n_heads, n, d_head)
    return mix, torch.logsumexp(logits, dim=-1)  # lse (B, n_heads, n)


class FastPort(torch.nn.Module):
    """Loads the weights of a trained model, learned sinks included."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.sink = torch.nn.Parameter(torch.zeros(n_heads))
        for role in ("query", "key", "value", "output"):
            self.add_module(role, torch.nn.Linear(d_model, d_model))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (len(self.sink), -1))
                   .transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        mix, lse = kernel(q, k, v)
        return self.output(mix.transpose(1, 2).flatten(2))
# fmt: on


def mend_sink(mix, lse, sink):
    left = torch.sigmoid(lse - sink[:, None])
    return mix * left[..., None]


def sink_by(rule):
    """The output times what a rule makes of lse and of the sinks in its shape."""
    return lambda mix, lse, sink: mix * rule(lse, sink[:, None].expand_as(lse))[..., None]


def sink_cases(seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    generator, (B, H, n, d_head) = sizes(seed, (2, 3), (3, 4), (5, 6), (4, 5))
    level = torch.tensor([0.0, 2.0, 100.0])[torch.randperm(H, generator=generator)]
    mix = torch.randn(B, H, n, d_head, generator=generator)
    lse = level[:, None] + 2.5 + torch.randn(B, H, n, generator=generator)
    sink = level + 2.5 + torch.rand(H, generator=generator)
    return [(mix, lse, sink)]


def judge_sink(case, got, want):
    mix, lse, sink = case
    assert isinstance(got, torch.Tensor) and got.shape == mix.shape, (
        "Is what comes back a tensor in the shape of `mix`?"
    )
    assert got.isfinite().all(), (
        "Not all numbers are finite. In a trained model a logit may be 100. Is there a float for $e^{100}$, and do you need it?"
    )
    got = got.to(want.dtype)
    if torch.allclose(got, want, rtol=1e-3, atol=1e-5):
        return
    ratio = got / mix
    assert not torch.allclose(got, mix, rtol=1e-3, atol=1e-5), (
        "All is as the kernel gave it. What takes part in the softmax of the original, and is not here?"
    )
    assert torch.allclose(ratio, ratio[..., :1].expand(ratio.shape), rtol=1e-2, atol=1e-4), (
        "The channels of one query are changed by different factors. What does a sink do to the *weights* of a query?"
    )
    ratio, left = ratio[..., 0], want[..., 0] / mix[..., 0]
    flat = torch.allclose(ratio, ratio.mean(dim=(0, 2), keepdim=True).expand(ratio.shape), rtol=1e-2, atol=1e-4)
    assert not flat, "All queries of a head got one factor. What stands against the sink in the row of each of them?"
    ordinary = lse.amax(dim=(0, 2)) < 50
    assert not torch.allclose(ratio[:, ordinary], (1 / left)[:, ordinary], rtol=1e-2), (
        "The output has grown. What becomes of the other weights where a sink takes a share?"
    )
    assert not torch.allclose(ratio, 1 - left, rtol=1e-2, atol=1e-3), (
        "Is that the share that the sink takes, or what it leaves?"
    )
    assert not torch.allclose(ratio, torch.sigmoid(lse), rtol=1e-2, atol=1e-3), (
        "That is a sink whose logit is 0. Which logit has each head learned?"
    )
    raise AssertionError(
        "In a row with sums $e^{\\text{lse}}$ for the keys and $e^{b}$ for the sink $b$: which share is left for the keys?"
    )


sink_outside = Mend(
    number="21.5",
    title="Worst where little is said",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("Case 12: the sink that was left out",),
    statement=(
        "**The report.** We moved a trained model to a fast kernel. It loads without an error, and `attntut.diagnose` finds nothing in the fresh port. But its answers are worse than the original's, most of all for short prompts, where the heads "
        "hand on values that are several times too large. The kernel is compiled. All that it gives beside its output is the logarithm of the sum of exponentials of each row.\n\n"
        "Write `mend(mix, lse, sink)`, which makes of the kernel's output `(B, n_heads, n, d_head)`, of `lse` `(B, n_heads, n)` and of the layer's `sink` `(n_heads,)` what the "
        "heads of the original hand on, in the shape of `mix`. In trained models logits may be large."
    ),
    hint="With $b$ for the sink, the original's weights are $e^{s_j}/(e^b + \\sum_i e^{s_i})$. Which factor lies between these and the kernel's? Which function of $\\text{lse} - b$ is it?",
    name="mend",
    starter="def mend(mix, lse, sink):\n    ...",
    setup=(kernel, FastPort),
    make=sink_cases,
    ask=call_a_copy,
    compare=judge_sink,
    solution=mend_sink,
    wrong={
        "nothing": (lambda mix, lse, sink: mix, "as the kernel gave it"),
        "the sink's share": (sink_by(lambda lse, b: torch.sigmoid(b - lse)), "or what it leaves"),
        "divided": (sink_by(lambda lse, b: 1 + torch.exp(b - lse)), "has grown"),
        "exponentials": (sink_by(lambda lse, b: lse.exp() / (lse.exp() + b.exp())), "Is there a float"),
        "a mean share": (
            sink_by(lambda lse, b: torch.sigmoid(lse - b).mean((0, 2), keepdim=True).expand_as(lse)), "one factor"),
        "a share for the longest": (
            sink_by(lambda lse, b: torch.sigmoid(lse.amax((0, 2), keepdim=True) - b)), "one factor"),
        "a sink of 0": (sink_by(lambda lse, b: torch.sigmoid(lse)), "whose logit is 0"),
        "a weight, no logit": (sink_by(lambda lse, b: 1 - b / (b + lse)), "which share is left"),
        "subtracted": (lambda mix, lse, sink: mix - torch.sigmoid(sink[:, None] - lse)[..., None], "different factors"),
        "a difference": (sink_by(lambda lse, b: lse - b), "which share is left"),
        "the root of the share": (sink_by(lambda lse, b: torch.sigmoid(lse - b).sqrt()), "which share is left"),
    },
)  # fmt: skip


# fmt: off
class FewKeys(torch.nn.Module):
    """n_heads heads of queries share n_kv heads of keys and values."""

    def __init__(self, d_model, n_heads, n_kv):
        super().__init__()
        self.d_head = d_model // n_heads
        self.query = torch.nn.Linear(d_model, d_model)
        self.key = torch.nn.Linear(d_model, n_kv * self.d_head)
        self.value = torch.nn.Linear(d_model, n_kv * self.d_head)
        self.output = torch.nn.Linear(d_model, d_model)

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        groups = q.shape[1] // k.shape[1]
        k, v = (z.repeat(1, groups, 1, 1) for z in (k, v))
        logits = q @ k.mT / self.d_head ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, n_heads, n, d_head)
        return self.output(mix.transpose(1, 2).flatten(2))
# fmt: on


@torch.no_grad()
def mend_few(layer):
    d_head = layer.d_head
    n_heads = layer.query.out_features // d_head
    n_kv = layer.key.out_features // d_head
    heads = torch.arange(n_heads).view(n_kv, -1).T.flatten()
    rows = (heads[:, None] * d_head + torch.arange(d_head)).flatten()
    layer.query.weight.copy_(layer.query.weight[rows])
    layer.query.bias.copy_(layer.query.bias[rows])
    layer.output.weight.copy_(layer.output.weight[:, rows])


def few_by(
    of: str = "query.weight query.bias output.columns",
    order=lambda heads, n_kv: heads.view(n_kv, -1).T,
    channels: bool = False,
):
    """Permute parts of the layer."""

    @torch.no_grad()
    def answer(layer):
        n_heads, n_kv = (f.out_features // layer.d_head for f in (layer.query, layer.key))
        heads = order(torch.arange(n_heads), n_kv).flatten()
        rows = (heads[:, None] * layer.d_head + torch.arange(layer.d_head)).flatten()
        if channels:
            rows = torch.arange(len(rows)).view(n_kv, -1).T.flatten()
        for name in of.split():
            layer_name, part = name.split(".")
            f = getattr(layer, layer_name)
            if part == "columns":
                f.weight.copy_(f.weight[:, rows])
            else:
                getattr(f, part).copy_(getattr(f, part)[rows])

    return answer


def another_forward(layer: nn.Module) -> None:
    """Right in this model only, and not in its weights."""
    twin = FewKeys(
        layer.query.in_features, layer.query.out_features // layer.d_head, layer.key.out_features // layer.d_head
    )
    twin.load_state_dict(layer.state_dict())
    mend_few(twin)
    layer.forward = twin.forward  # type: ignore[method-assign]


def one_to_one(layer: nn.Module) -> None:
    """Keys and values for each head: other shapes."""
    groups = layer.query.out_features // layer.key.out_features
    for f in (layer.key, layer.value):
        for name in ("weight", "bias"):
            heads = getattr(f, name).detach().unflatten(0, (-1, layer.d_head)).repeat_interleave(groups, dim=0)
            setattr(f, name, nn.Parameter(heads.flatten(0, 1)))


def few_cases(seed: int) -> list[tuple[int, int, int, int]]:
    _, (d_head,) = sizes(seed, (4, 7))
    return [(2, 3, d_head, seed), (4, 2, 3, seed)]


def mended_few(answer, n_kv, groups, d_head, seed):
    torch.manual_seed(seed)
    layer = FewKeys(n_kv * groups * d_head, n_kv * groups, n_kv)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.4)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    x = torch.randn(1, 3, n_kv * groups * d_head)
    answer(layer)
    after = {name: p.detach().clone() for name, p in layer.named_parameters()}
    if {name: p.shape for name, p in after.items()} != {name: p.shape for name, p in before.items()}:
        return None
    twin = FewKeys(n_kv * groups * d_head, n_kv * groups, n_kv)
    twin.load_state_dict(after)
    names = {"query.weight": 0, "query.bias": 0, "output.weight": 1}
    blocks = {}
    for name, axis in names.items():
        old, new = (p[name].movedim(axis, 0).unflatten(0, (-1, d_head)).flatten(1) for p in (before, after))
        same = (new[:, None] == old).all(dim=-1)
        blocks[name] = [row.nonzero().flatten()[0].item() if row.any() else -1 for row in same]
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return changed, blocks, twin(x).detach()


def judge_few(case, got, want):
    n_kv, groups = case[:2]
    assert isinstance(got, tuple) and len(got) == 3, (
        "Which parameters had the layer before? Are they there, in their shapes?"
    )
    changed, blocks, output = got
    right = torch.allclose(output, want[2], rtol=1e-3, atol=1e-4)
    if right and set(changed) <= set(blocks):
        return
    assert changed, (
        "All weights are what they were. Does your function change them in place, so that a saved copy has them?"
    )
    assert not set(changed) & {"key.weight", "key.bias", "value.weight", "value.bias"}, (
        "Keys or values were changed. Can another order of few keys give one of them to *neighbouring* queries, if the class deals them out in turn?"
    )
    assert "output.bias" not in changed, "The bias of $W_o$ was changed. Which head does it belong to?"
    for name, order in blocks.items():
        assert sorted(order) == list(range(n_kv * groups)), (
            f"`{name}` does not hold all its heads in one piece any more. What moves: channels, or heads of `d_head` of them? And along which axis does this matrix have them?"
        )
    queries, biases, outputs = blocks["query.weight"], blocks["query.bias"], blocks["output.weight"]
    assert queries == biases or queries == sorted(queries), (
        "The rows of $W_q$ have moved, and its bias has not moved with them. What else makes a query?"
    )
    assert queries != sorted(queries), "$W_q$ is as it was. Which key does the class give to each head of queries?"
    assert queries == outputs, (
        "The heads of $W_q$ stand in another order than those that $W_o$ reads. Which columns of $W_o$ belong to the head at place $p$?"
    )
    at = {head: place % n_kv for place, head in enumerate(queries)}
    shares = [{at[kv * groups + member] for member in range(groups)} for kv in range(n_kv)]
    assert all(len(found) == 1 for found in shares), (
        "Take two query heads that had the same key in the original. Where do they stand now, and which key does the class give to each of these places?"
    )
    raise AssertionError("Each key has its queries together. Are they those that it had in the original?")


dealt_out = Mend(
    number="21.6",
    title="One line apart",
    minutes=15,
    difficulty="hard",
    points=4,
    needs=("Case 10: fluent nonsense",),
    statement=(
        "**The report.** A checkpoint loads into this class without an error, and what it says is fluent nonsense. Fresh, it trains, and `attntut.diagnose` finds nothing. It speaks sense only if there is one head of keys, or one for each head of queries. "
        "The code that wrote the file has one other line, `z.repeat_interleave(groups, dim=1)`.\n\nThe class has to stay as it is, because models that were trained in it use it. So write `mend(layer)`, which changes the loaded weights in place. Afterwards the layer, and every `FewKeys` that loads its `state_dict()`, "
        "computes exactly what the original computed with the file. No parameter changes its shape."
    ),
    hint="Write down for 6 heads and 2 keys which key each head gets, in the original and here. At which place must a head of the file stand in order to get its own key? Who reads what this head hands on?",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(FewKeys,),
    make=few_cases,
    ask=mended_few,
    compare=judge_few,
    solution=mend_few,
    wrong={
        "nothing": (lambda layer: None, "what they were"),
        "another forward": (another_forward, "what they were"),
        "a key for each head": (one_to_one, "in their shapes"),
        "queries alone": (few_by("query.weight query.bias"), "Which columns"),
        "without the bias": (few_by("query.weight output.columns"), "has not moved with them"),
        "output alone": (few_by("output.columns"), "is as it was"),
        "the output's rows": (few_by("query.weight query.bias output.weight"), "along which axis"),
        "the output's bias": (few_by("query.weight query.bias output.columns output.bias"), "Which head does it belong to"),
        "backwards": (few_by(order=lambda heads, n_kv: heads.view(-1, n_kv).T), "Where do they stand now"),
        "channels": (few_by(channels=True), "in one piece"),
        "reversed": (few_by(order=lambda heads, n_kv: heads.flip(0)), "Where do they stand now"),
        "keys in another order": (few_by(order=lambda heads, n_kv: heads.view(n_kv, -1).flip(0).T), "that it had in the original"),
    },
)  # fmt: skip


# fmt: off
def learn(scale, optimizer, lr, seed, d=16, n=8, models=6, steps=40):
    """Loss of each model, a mean over steps: symbols backwards, one head."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, sigma=d ** -0.5):
        drawn = torch.randn(models, *shape, generator=generator,
                            dtype=torch.float64)
        return (sigma * drawn).requires_grad_()

    symbols, places = draw(10, d, sigma=1.0), draw(1, n, d, sigma=1.0)
    W_q, W_k, W_v, W_o = (draw(1, d, d) for _ in range(4))
    readout = draw(1, d, 10)
    step = optimizer([symbols, places, W_q, W_k, W_v, W_o, readout], lr=lr)
    total = torch.zeros(models)
    for _ in range(steps):
        ids = torch.randint(10, (32, n), generator=generator)
        x = symbols[:, ids] + places            # (models, 32, n, d)
        x = torch.nn.functional.layer_norm(x, (d,))
        logits = scale * (x @ W_q) @ (x @ W_k).mT
        mix = torch.softmax(logits, dim=-1) @ x @ W_v
        guess = (x + mix @ W_o) @ readout       # (models, 32, n, 10)
        right = ids.flip(1).expand(models, -1, -1)
        loss = torch.nn.functional.cross_entropy(
            guess.movedim(-1, 1), right, reduction="none").mean((1, 2))
        step.zero_grad()
        loss.sum().backward()
        step.step()
        total += loss.detach() / steps
    return total
# fmt: on


@functools.cache
def mean_loss(scale: float, adam: bool, seed: int) -> float:
    with torch.random.fork_rng(devices=[]):
        optimizer = torch.optim.Adam if adam else torch.optim.SGD
        loss = learn(scale, optimizer, 0.1 if adam else 1.0, seed).mean()
        return float(f"{loss.item():.5g}")


def spared(seed: int, before: float = 1 / 16, after: float = 1 / 4) -> tuple[float, float]:
    """Loss of the patient minus that of the healthy one, under SGD and under Adam."""
    sgd, adam = (mean_loss(before, kind, seed) - mean_loss(after, kind, seed) for kind in (False, True))
    return float(f"{sgd:.4g}"), float(f"{adam:.4g}")


def four_losses(seed: int, scale: float) -> tuple[float, float]:
    return mean_loss(scale, False, seed), mean_loss(scale, True, seed)


root_twice = Explain(
    number="21.7",
    title="One patient, two optimizers",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("Case 9: one rule, two scales",),
    statement=(
        "**The report.** Queries are divided by $\\sqrt{d_\\text{head}}$, and then handed to `F.scaled_dot_product_attention`, which divides once more. *So attention starts flat and can hardly learn,* somebody writes. *Nobody will see a difference,* writes "
        "somebody else.\n\n`learn(scale, optimizer, lr, seed)` trains six small models of one head with $d_\\text{head} = 16$, so the patient has a scale of 1/16, and the healthy ones 1/4. It is to be "
        "`torch.optim.SGD` with a rate of 1 and `torch.optim.Adam` with 0.1, which are the best of three rates for both scales. The seed is <<seed>>. First predict: how large is the spread of the logits at the start, by which factor are the gradients of $W_q$ and $W_k$ smaller in the patient, and what does each optimizer make of such a gradient? "
        "Then measure the mean loss of the patient minus that of the healthy models. Give `prediction` and `measured` two numbers each, SGD first, and explain in two or three sentences why they are so unlike. Who is right in the thread?"
    ),
    hint="How long is a step of SGD, and how long is one of Adam, if all gradients of a matrix are divided by four? Four calls, `.mean()` of each.",
    rubric=(
        "The logits start with a spread of 1 and of ¼, and the gradients of W_q and W_k have the scale as a factor, so they are about a fourth (1 point). A step of SGD is in proportion to the gradient, so queries and keys learn at a fourth of the speed, and what "
        "they have learned counts for a fourth in the logits: the fault costs most of the progress. A step of Adam has the length of the rate whatever the gradient, so W_q and W_k move as fast as in the healthy model; a flat start then costs little, and at a rate as high as 0.1 gentler logits "
        "may even help: in all of eight seeds that we tried the patient was a little ahead (1). Both are right about their own training: what a fault costs belongs to the fault, the optimizer and the rate together, and has to be measured (1). (With Adam at 0.03 the patient is behind: 0.99 against 0.92 for seed 0.)"
    ),
    setup=(learn,),
    parameters={"seed": (0, 3, 5, 4)},
    solve=spared,
    traps={
        "Is the loss of the patient taken first, and that of the healthy models taken from it?": lambda seed: spared(seed, 1 / 4, 1 / 16),
        "Are the two numbers in the order that was asked for?": lambda seed: spared(seed)[::-1],
        "Those are the losses of the patient. And without the fault?": lambda seed: four_losses(seed, 1 / 16),
        "Those are the losses of the healthy models. And of the patient?": lambda seed: four_losses(seed, 1 / 4),
        "Is that a ratio of two losses, or their difference?": (
            lambda seed: tuple(a / b for a, b in zip(four_losses(seed, 1 / 16), four_losses(seed, 1 / 4), strict=True))
        ),
        "Is that the sum over six models, or the mean?": lambda seed: tuple(6 * x for x in spared(seed)),
    },
    ask="Is it `learn(1 / 16, …).mean()` minus `learn(1 / 4, …).mean()`, with the two rates and with this seed?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    half_the_spread, two_suspects, hidden_by_cap, blind_head, sink_outside, dealt_out, root_twice,
]  # fmt: skip
