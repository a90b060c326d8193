"""Exercises of chapter 16, *Taming the logits*."""

import functools
import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

longer_query = Choice(
    number="16.1",
    title="Eight times the query",
    minutes=3,
    difficulty="easy",
    points=1,
    needs=("QK-norm sets the standard deviation",),
    statement=(
        "A layer has QK-norm. You multiply $W_q$ alone by 8 and send the same batch through it again. What happens to the logits, and "
        "what to the gradients of $W_q$ and $W_k$?"
    ),
    hint="What of a query does the logit still see? Which change of $W_q$ turns the longer queries by the same angle?",
    options={
        "The logits are 8 times as large, and both gradients 8 times.": (
            "By what is each query divided before it meets a key?"
        ),
        "The logits stay, and so do both gradients.": (
            "A step of a given length turns a matrix that is 8 times as long. By the same angle?"
        ),
        "The logits stay. The gradient of $W_q$ is 8 times as large, that of $W_k$ stays.": (
            "Does a given change of $W_q$ turn the longer queries farther, or less far?"
        ),
        "The logits stay. Both gradients are an eighth.": (
            "Which of the two matrices has become longer? What does $W_k$ see of the other's length?"
        ),
        "The logits stay. The gradient of $W_q$ is 0, for its length does not count.": (
            "The length does not count. Does the direction?"
        ),
        "The logits stay. The gradient of $W_q$ is an eighth, that of $W_k$ stays.": "",
    },
)


def cap_for(p: float, n: float) -> float:
    """The bound under which one of n keys takes the share p at most."""
    return float(f"{math.log(p * (n - 1) / (1 - p)) / 2:.4g}")


share_for_one = Number(
    number="16.2",
    title="A bound that does bound",
    minutes=5,
    difficulty="easy",
    points=2,
    needs=("What a bound is worth",),
    statement=(
        "No query of a model may ever give more than the share <<p>> to one of its $n = $ <<n>> keys, whatever the weights are. How "
        "large may the soft-cap $c$ be? And how large the gain $g$, if QK-norm (by the RMS, $d_h = $ <<d_h>>) is to guarantee it "
        "instead? Answer with two numbers."
    ),
    hint="Solve $p_\\text{max} = 1/(1 + (n-1)e^{-2B})$ for $B$. Each method has its own $B$.",
    starter="answer = (..., ...)  # c, g",
    parameters={"p": (0.9, 0.2, 0.75), "n": (1024, 128, 512, 256), "d_h": (64, 16)},
    solve=lambda p, n, d_h: (cap_for(p, n), cap_for(p, n) / math.sqrt(d_h)),
    traps={
        "That would do if all other logits were 0. How low may they be?": (
            lambda p, n, d_h: (2 * cap_for(p, n), 2 * cap_for(p, n) / math.sqrt(d_h))
        ),
        "That is the bound for one half. Which share is allowed here?": (
            lambda p, n, d_h: (cap_for(0.5, n), cap_for(0.5, n) / math.sqrt(d_h))
        ),
        "Does a larger share need a larger bound in your formula, or a smaller one?": (
            lambda p, n, d_h: (cap_for(1 - p, n), cap_for(1 - p, n) / math.sqrt(d_h))
        ),
        "If one key has $p$, how much have the others together?": (
            lambda p, n, d_h: (math.log(p * (n - 1)) / 2, math.log(p * (n - 1)) / 2 / math.sqrt(d_h))
        ),
        "$c$ is right. The largest logit under QK-norm is that of two parallel vectors. How long are they?": (
            lambda p, n, d_h: (cap_for(p, n), cap_for(p, n))
        ),
        "$c$ is right. Is QK-norm's bound $g\\sqrt{d_h}$, or $g/\\sqrt{d_h}$?": (
            lambda p, n, d_h: (cap_for(p, n), cap_for(p, n) * math.sqrt(d_h))
        ),
        "$c$ is right. The logit is divided by $\\sqrt{d_h}$ already. Which power of $d_h$ is left?": (
            lambda p, n, d_h: (cap_for(p, n), cap_for(p, n) / d_h)
        ),
        "Are the two numbers in the order that was asked for?": (
            lambda p, n, d_h: (cap_for(p, n) / math.sqrt(d_h), cap_for(p, n))
        ),
    },
    ask="Which $B$ makes $(n-1)e^{-2B} = 1/p - 1$, and which $g$ makes QK-norm's bound that $B$?",
)  # fmt: skip


def gains_for(rho: float, n: float, d_h: float, power: float = -0.5) -> tuple[float, float, float]:
    g = math.sqrt(2 * math.log(n)) * (1 - rho) ** power
    rms, layer, l2 = (float(f"{x:.4g}") for x in (g, g * math.sqrt((d_h - 1) / d_h), g * math.sqrt(d_h)))
    return rms, layer, l2


three_gains = Number(
    number="16.3",
    title="Three gains, one spread",
    minutes=8,
    difficulty="medium",
    points=2,
    needs=("Where the law needs a word more",),
    statement=(
        "A fresh layer with QK-norm reads $n = $ <<n>> tokens, and its heads have $d_h = $ <<d_h>>. The keys have a mean cosine "
        "of <<rho>>, and queries do not know them. Predict the gain that gives the logits of a row, around their mean, just the critical standard deviation "
        "$\\sigma_c$: with the norm by the RMS, with LayerNorm in its place, and with $\\ell_2$ and a gain, $s = g\\cos\\theta$. (Take it that the mean "
        "cosine is the same under all three.) Answer with three numbers."
    ),
    hint="First the gain of the RMS: which part of the logits does the softmax not see? Then ask by what the other two differ from it.",
    starter="answer = (..., ..., ...)  # RMS, LayerNorm, l2",
    parameters={"rho": (0.36, 0.19, 0.64), "n": (64, 256, 1024, 16), "d_h": (8, 4, 6)},
    solve=gains_for,
    traps={
        "That is right for unrelated keys. What does the part do that all keys share?": (
            lambda rho, n, d_h: gains_for(rho, n, d_h, 0)
        ),
        "Alike keys make the spread smaller. Must the gain be smaller for it, or larger?": (
            lambda rho, n, d_h: gains_for(rho, n, d_h, 0.5)
        ),
        "Is $1 - \\rho$ what is left of the variance, or of the standard deviation?": (
            lambda rho, n, d_h: gains_for(rho, n, d_h, -1)
        ),
        "Is $\\sigma_c$ equal to $2\\ln n$, or is that its square?": (
            lambda rho, n, d_h: tuple(g * math.sqrt(2 * math.log(n)) for g in gains_for(rho, n, d_h))
        ),
        "Which factor stands before $\\ln n$ in $\\sigma_c$?": (
            lambda rho, n, d_h: tuple(g / math.sqrt(2) for g in gains_for(rho, n, d_h))
        ),
        "The first and the last are right. In fewer dimensions cosines are larger. Must the gain of LayerNorm be larger than that of the RMS?": (
            lambda rho, n, d_h: (gains_for(rho, n, d_h)[0], gains_for(rho, n, d_h)[0] * math.sqrt(d_h / (d_h - 1)),
                                 gains_for(rho, n, d_h)[2])
        ),
        "The first two are right. Which is longer, a vector of $\\ell_2$ norm 1 or one of RMS 1?": (
            lambda rho, n, d_h: (*gains_for(rho, n, d_h)[:2], gains_for(rho, n, d_h)[0] / math.sqrt(d_h))
        ),
        "The first is right. Do the three norms leave the same lengths and the same dimensions?": (
            lambda rho, n, d_h: (gains_for(rho, n, d_h)[0],) * 3
        ),
    },
    ask="With the RMS the spread is $g\\sqrt{1-\\rho}$. Which $g$ makes it $\\sqrt{2\\ln n}$, and by what do the others differ?",
)  # fmt: skip


def clip_heads(query, key, x, n_heads, limit, causal):
    q, k = ((x @ w.mT).unflatten(-1, (n_heads, -1)).transpose(1, 2) for w in (query, key))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        hidden = torch.ones(logits.shape[-2:]).triu(1).bool()
        logits = logits.masked_fill(hidden, -math.inf)
    largest = logits.amax((0, 2, 3))
    factor = (limit / largest.clamp(min=limit)).sqrt()
    rows = factor.repeat_interleave(q.shape[-1])[:, None]
    return query * rows, key * rows


def clipped_by(scale=lambda d_h, d: d_h**0.5, largest=None, factor=None, mask=True, spread="heads", of=(True, True)):
    """As the solution, with one step replaced."""

    def answer(query, key, x, n_heads, limit, causal):
        q, k = ((x @ w.mT).unflatten(-1, (n_heads, -1)).transpose(1, 2) for w in (query, key))
        logits = q @ k.mT / scale(q.shape[-1], x.shape[-1])
        if causal and mask:
            logits = logits.masked_fill(torch.ones(logits.shape[-2:]).triu(1).bool(), -1e9)
        found = (largest or (lambda s: s.amax((0, 2, 3))))(logits)
        share = limit / found
        gain = factor(share) if factor else share.clamp(max=1).sqrt()
        if spread == "heads":
            rows = gain.repeat_interleave(q.shape[-1])[:, None]
        elif spread == "channels":
            rows = gain.repeat(q.shape[-1])[:, None]
        else:
            rows = gain.min()
        return tuple(w * rows if scaled else w for w, scaled in zip((query, key), of, strict=True))

    return answer


def per_sequence(s):
    return s.amax((2, 3)).mean(0)


def without_sign(s):
    return s.masked_fill(s < -1e8, 0).abs().amax((0, 2, 3))


def clip_cases(seed: int) -> list[tuple[Tensor, Tensor, Tensor, int, float, bool]]:
    generator = torch.Generator().manual_seed(seed)
    cases: list[tuple[Tensor, Tensor, Tensor, int, float, bool]] = []
    n_heads, d_head, d_model = 3, 5, 4
    while len(cases) < 2:
        causal = len(cases) == 1
        x = torch.randn(2, 6, d_model, generator=generator)
        size = torch.tensor([4.0, 1.0, 3.0])[torch.randperm(3, generator=generator)].repeat_interleave(d_head)[:, None]
        query, key = size * torch.randn(2, n_heads * d_head, d_model, generator=generator) / d_model**0.5
        q, k = ((x @ w.mT).unflatten(-1, (n_heads, -1)).transpose(1, 2) for w in (query, key))
        logits = q @ k.mT / d_head**0.5
        seen = logits.masked_fill(torch.ones(6, 6).triu(1).bool(), -1e9) if causal else logits
        largest, every = seen.amax((0, 2, 3)), logits.amax((0, 2, 3))
        low, middle, high = largest.sort().values.tolist()
        limit = round(low + 0.3 * (middle - low), 1)
        clipped, absolute = largest > limit, without_sign(seen)
        told_apart = (
            low > 0.3
            and middle > 1.3 * limit > 1.5 * low
            and high > 1.3 * middle
            and bool((absolute[clipped] > 1.1 * largest[clipped]).any())
            and bool((per_sequence(seen)[clipped] < 0.9 * largest[clipped]).all())
            and (not causal or bool((every[clipped] > 1.1 * largest[clipped]).any()))
        )
        if told_apart:
            cases.append((query, key, x, n_heads, limit, causal))
    return cases


def judge_clip(case, got, want):
    query, key, x, n_heads, limit, causal = case
    assert isinstance(got, (tuple, list)) and len(got) == 2, "What two matrices does the function return?"
    for given, matrix in zip((query, key), got, strict=True):
        assert isinstance(matrix, torch.Tensor) and matrix.shape == given.shape, (
            "Are both of them tensors, in the shapes that they came in?"
        )
        assert matrix.isfinite().all(), "Not all weights are finite. By what do you divide?"
    ratios = [(matrix / given).unflatten(0, (n_heads, -1)) for given, matrix in zip((query, key), got, strict=True)]
    right = (want[0] / query).unflatten(0, (n_heads, -1))[:, 0, 0]

    def near(a, b):
        return torch.allclose(a, b.expand_as(a), rtol=1e-3, atol=1e-5)

    for ratio in ratios:
        assert near(ratio, ratio[:, :1, :1]), (
            "The weights of one head are scaled by different factors. Which rows of the matrix belong to head $h$?"
        )
    of_query, of_key = (ratio[:, 0, 0].to(right.dtype) for ratio in ratios)
    if near(of_query, right) and near(of_key, right):
        return
    one = torch.ones(n_heads)
    assert not (near(of_query, one) and near(of_key, one)), (
        "All weights are what they were. How large are the largest logits of the heads, and how large the limit?"
    )
    assert near(of_query, of_key), (
        "Both matrices should get the same factor of a head. How much of what is too much falls to each?"
    )
    assert not near(of_query, of_query[:1]), "All heads got one factor. Which of them are beyond the limit?"
    assert (of_query < 1.001).all(), (
        "The logits of a head that is within the limit became larger. What should happen to it?"
    )
    assert not near(of_query, right**2), (
        "A logit is a product of a query and a key. How often does your factor stand in it?"
    )
    limits = limit / of_query**2
    largest = limit / right**2
    clipped = (right < 0.999) & (of_query < 0.999)
    assert not near((limits / largest)[clipped], torch.tensor((len(query) / n_heads) ** 0.5)), (
        "By what is the product of query and key divided before it is a logit?"
    )
    assert not near((limits / largest)[clipped], torch.tensor((len(query) / n_heads / x.shape[-1]) ** 0.5)), (
        "Is a logit divided by the root of the model's width, or of the head's?"
    )
    assert not causal, "Without a mask this is right. Does a pair count that no query of a causal layer sees?"
    raise AssertionError(
        "Is it the largest logit of a head, with its sign, over all pairs of all sequences, that you compare with the limit?"
    )


clip_code = Code(
    number="16.4",
    title="Only the heads that ran away",
    minutes=12,
    difficulty="medium",
    points=3,
    needs=("What acts on the weights",),
    statement=(
        "Write QK-clip, `clip_heads(query, key, x, n_heads, limit, causal)`. `query` and `key` are $W_q$ and $W_k$ of the shape "
        "`(n_heads * d_head, d_model)`. They act as `x @ W.mT` on tokens `x` of the shape `(B, n, d_model)`, and head $h$ has the rows $h\\,d_h$ to "
        "$(h+1)\\,d_h - 1$. There are no biases. A head whose largest logit in the batch is beyond `limit` gets its rows of both matrices scaled, as in the "
        "chapter, so that it is just `limit`. Other heads stay as they are. If `causal` is true, a token sees only itself and those before it. Return "
        "both matrices."
    ),
    hint="The largest logit is over sequences and pairs, one a head. Which pairs has a causal layer? `repeat_interleave` makes one number a row from one a head.",
    name="clip_heads",
    starter="def clip_heads(query, key, x, n_heads, limit, causal):\n    ...",
    make=clip_cases,
    compare=judge_clip,
    solution=clip_heads,
    equivalent=("logits.shape[-3:]", "logits.shape[2:]"),
    wrong={
        "nothing": (clipped_by(factor=lambda share: torch.ones_like(share)), "what they were"),
        "no root": (clipped_by(factor=lambda share: share.clamp(max=1)), "How often"),
        "all heads to the limit": (clipped_by(factor=lambda share: share.sqrt()), "within the limit"),
        "one factor for all": (clipped_by(spread="all"), "one factor"),
        "rows in the wrong order": (clipped_by(spread="channels"), "Which rows"),
        "the query alone": (clipped_by(of=(True, False)), "falls to each"),
        "the query alone, by all": (clipped_by(factor=lambda share: share.clamp(max=1), of=(True, False)), "falls to each"),
        "not divided": (clipped_by(scale=lambda d_h, d: 1), "before it is a logit"),
        "by the model's width": (clipped_by(scale=lambda d_h, d: d**0.5), "model's width"),
        "without the sign": (clipped_by(largest=without_sign), "with its sign"),
        "the mean over sequences": (clipped_by(largest=per_sequence), "all sequences"),
        "no mask": (clipped_by(mask=False), "causal layer"),
    },
)  # fmt: skip


def std_after_norm(query, key, query_gain, key_gain, covariance):
    d_head = len(query_gain)
    query, key = (w.unflatten(0, (-1, d_head)) for w in (query, key))
    of_query, of_key = (w @ covariance @ w.mT for w in (query, key))
    sizes = of_query.diagonal(dim1=1, dim2=2).sum(1) * of_key.diagonal(dim1=1, dim2=2).sum(1)
    gained = query_gain[:, None] * of_query * query_gain, key_gain[:, None] * of_key * key_gain
    return (d_head * (gained[0] * gained[1]).sum((1, 2)) / sizes).sqrt()


def std_by(power=0.5, head=lambda d_h: d_h, sees=True, gain=2, divided="bare", product="both", split=True):
    """As the solution, with one step replaced."""

    def answer(query, key, query_gain, key_gain, covariance):
        d_h = len(query_gain)
        many = (-1, d_h) if split else (d_h, -1)
        A, B = (w.unflatten(0, many) for w in (query, key))
        if not split:
            A, B = A.transpose(0, 1), B.transpose(0, 1)
        S = covariance if sees else torch.eye(len(covariance))
        A, B = A @ S @ A.mT, B @ S @ B.mT
        bare = A, B
        g, h = (z.abs() ** (gain / 2) for z in (query_gain, key_gain))
        A, B = g[:, None] * A * g, h[:, None] * B * h
        below = [z.diagonal(dim1=1, dim2=2).sum(1) for z in ((A, B) if divided == "gained" else bare)]
        if product == "both":
            above = (A * B).sum((1, 2))
        elif product == "query":
            above, below = (A * A).sum((1, 2)), [below[0]] * 2
        else:
            above = (A.diagonal(dim1=1, dim2=2) * B.diagonal(dim1=1, dim2=2)).sum(1)
        return (head(d_h) * above / (below[0] * below[1])) ** power

    return answer


def by_the_gains(query, key, query_gain, key_gain, covariance):
    """The law for queries that do not know their keys."""
    return (query_gain * key_gain).square().mean().sqrt().expand(len(query) // len(query_gain))


def law_cases(seed: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    cases = []
    for kind, (n_heads, d_head, d_model) in enumerate(((2, 3, 5), (3, 4, 5), (2, 3, 4))):
        query, key, shared = normal(3, n_heads * d_head, d_model)
        uneven = torch.linspace(0.3, 2, d_model)
        query, key = (query + shared) * uneven, (key + 0.7 * shared) * uneven
        gains = torch.ones(2, d_head) if kind == 0 else 0.4 + 2 * torch.rand(2, d_head, generator=generator)
        mixed = normal(d_model, d_model) * uneven.flip(0)
        covariance = mixed @ mixed.mT / d_model if kind == 2 else torch.eye(d_model)
        cases.append((query, key, gains[0], gains[1], covariance))
    return cases


def judge_law(case, got, want):
    query, key, query_gain, key_gain, covariance = case
    d_head = len(query_gain)
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, (
        "There is one number for each head. How many heads has a matrix of these rows?"
    )
    assert not got.is_complex() and got.isfinite().all(), "Not all of these are numbers. Of what do you take a root?"
    got = got.to(want.dtype)

    def near(a, b):
        return torch.allclose(a, b, rtol=2e-3, atol=1e-5)

    if near(got, want):
        return
    assert not near(got, want**2), "Is that the variance of the logits, or its root?"
    law = (query_gain * key_gain).square().mean().sqrt().expand_as(want)
    assert not near(got, law), (
        "That is the law for queries that do not know their keys. Do these matrices prefer the same directions?"
    )
    for power in (-1, -0.5, 0.5, 1):
        assert not near(got, want * d_head**power), (
            "Each normalized vector has the length $\\sqrt{d_h}$, and the logit is divided by $\\sqrt{d_h}$. What is left?"
        )
    if torch.equal(query_gain, torch.ones(d_head)):
        raise AssertionError(
            "All gains are 1 here, and the tokens' covariance is the identity. What is $\\mathbb E\\,(q^\\top k)^2$, by the covariances of a head's "
            "queries and of its keys, and which rows are a head's?"
        )
    if torch.equal(covariance, torch.eye(len(covariance))):
        raise AssertionError(
            "Without gains this is right. Does a gain act before the norm, or after it, and how often does it stand in $s^2$?"
        )
    raise AssertionError(
        "For tokens without preferred directions this is right. What is the covariance of $Wx$ when that of $x$ is not the identity?"
    )


law_code = Code(
    number="16.5",
    title="Queries that know their keys",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("Where the law needs a word more", "After training"),
    statement=(
        "How large are the logits under QK-norm if queries and keys prefer some directions? Write `std_after_norm(query, key, query_gain, key_gain, "
        "covariance)`. `query` and `key` are $W_q$ and $W_k$ as in 16.4, and the gains have one number a channel, the same for all heads: "
        "$\\hat q = g_q \\odot q / \\operatorname{RMS}(q)$, $\\hat k = g_k \\odot k / \\operatorname{RMS}(k)$, and $s = \\hat q^\\top \\hat k / \\sqrt{d_h}$. "
        "Two different tokens are independent and have mean 0 and the `covariance` of the shape `(d_model, d_model)`. Put for the square of each RMS "
        "its mean over tokens, which is how the chapter gets its formula for $W_q = W_k$. Return $\\sqrt{\\mathbb E\\,s^2}$ of two different tokens, in the shape `(n_heads,)`."
    ),
    hint=(
        "$\\mathbb E\\,(q^\\top k)^2 = \\operatorname{tr}(C_q C_k)$ with $C_q = \\mathbb E\\,qq^\\top$ of a head. What is $C_q$, when $q = Wx$? What do "
        "the gains make of it, and what is the mean square of an entry of $q$?"
    ),
    name="std_after_norm",
    starter="def std_after_norm(query, key, query_gain, key_gain, covariance):\n    ...",
    make=law_cases,
    compare=judge_law,
    solution=std_after_norm,
    wrong={
        "the law of the fresh layer": (by_the_gains, "do not know their keys"),
        "the variance": (std_by(power=1), "or its root"),
        "no width": (std_by(head=lambda d_h: 1), "What is left"),
        "the width twice": (std_by(head=lambda d_h: d_h**2), "What is left"),
        "the queries twice": (std_by(product="query"), "All gains are 1"),
        "the diagonals": (std_by(product="diagonal"), "All gains are 1"),
        "heads by the rest": (std_by(split=False), "which rows"),
        "no gains": (std_by(gain=0), "Without gains"),
        "gains once": (std_by(gain=1), "Without gains"),
        "gains twice as often": (std_by(gain=4), "Without gains"),
        "gains before the norm": (std_by(divided="gained"), "before the norm"),
        "no covariance": (std_by(sees=False), "covariance of"),
    },
)  # fmt: skip


# fmt: off
class Ported(torch.nn.Module):
    """Attention with QK-norm: RMS, and one gain for each head."""

    def __init__(self, d_model, n_heads, d_head):
        super().__init__()
        self.n_heads, inner = n_heads, n_heads * d_head
        shapes = {"query": (d_model, inner), "key": (d_model, inner),
                  "value": (d_model, inner), "output": (inner, d_model)}
        for role, shape in shapes.items():
            layer = torch.nn.Linear(*shape, bias=False)
            torch.nn.init.normal_(layer.weight, 0, shape[0] ** -0.5)
            self.add_module(role, layer)
        self.gain = torch.nn.Parameter(8 + 4 * torch.rand(n_heads))

    def forward(self, x):
        B, T, _ = x.shape
        q, k, v = (layer(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))
        q, k = (torch.nn.functional.rms_norm(z, z.shape[-1:])
                for z in (q, k))
        q = self.gain[:, None, None] * q
        logits = q @ k.mT / q.shape[-1] ** 0.5
        mix = torch.softmax(logits, dim=-1) @ v  # (B, H, T, d_head)
        return self.output(mix.transpose(1, 2).reshape(B, T, -1))
# fmt: on


def mend(layer):
    with torch.no_grad():
        layer.gain /= (layer.query.out_features / layer.n_heads) ** 0.5


def gain_by(rule):
    """Set the gains by a rule."""

    @torch.no_grad()
    def answer(layer):
        layer.gain.copy_(rule(layer, layer.query.out_features // layer.n_heads).expand_as(layer.gain))

    return answer


@torch.no_grad()
def smaller_matrices(layer: nn.Module) -> None:
    layer.query.weight /= 10


@torch.no_grad()
def matrices_too(layer: nn.Module) -> None:
    layer.query.weight /= 10
    mend(layer)


def without_gain(layer: nn.Module) -> None:
    del layer.gain
    layer.gain = torch.ones(layer.n_heads)


def ported_cases(seed: int) -> list[tuple[int, int, int, int]]:
    generator = torch.Generator().manual_seed(seed)
    ranges = ((40, 50), (2, 5), (7, 30))
    return [(*(int(torch.randint(low, high, (), generator=generator)) for low, high in ranges), seed)]


def mended_ported(answer, d_model, n_heads, d_head, seed):
    torch.manual_seed(seed)
    layer = Ported(d_model, n_heads, d_head)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    answer(layer)
    after = {name: p.detach() for name, p in layer.named_parameters()}
    if {name: p.shape for name, p in after.items()} != {name: p.shape for name, p in before.items()}:
        return None
    changed = [name for name in before if name != "gain" and not torch.equal(before[name], after[name])]
    return changed, after["gain"] / before["gain"], after["gain"]


def judge_ported(case, got, want):
    d_model, n_heads, d_head = case[:3]
    assert isinstance(got, tuple) and len(got) == 3, (
        "Which parameters had the layer before? Are they there, in their shapes?"
    )
    changed, ratio, gain = got
    assert not changed, (
        f"`{changed[0]}` was changed. What does QK-norm do with the size of $W_q$ and $W_k$, and what was ill with the others?"
    )
    right = torch.full((n_heads,), d_head**-0.5)

    def near(a, b):
        return torch.allclose(a, b.expand_as(a), rtol=1e-3)

    if near(ratio, right):
        return
    assert gain.isfinite().all(), "Not all gains are finite. By what do you divide?"
    assert not near(ratio, torch.ones(1)), "All gains are what they were. Does your function change them in place?"
    assert not near(gain, gain[:1]), "All heads have one gain now. They had learned to differ. What has become of that?"
    assert not near(ratio, right**2), (
        "A gain of $\\ell_2$ stands for both vectors. By which power of $d_h$ do the two kinds of gain differ?"
    )
    assert not near(ratio, 1 / right), (
        "The gains have grown. Which is longer, a vector of RMS 1 or one of $\\ell_2$ norm 1?"
    )
    assert not near(ratio, torch.tensor(d_model**-0.5)), (
        "Over how many channels is a norm taken here: the model's, or a head's?"
    )
    raise AssertionError(
        "$s = g\\cos\\theta$ there and $g\\sqrt{d_h}\\cos\\theta$ here. Which gain here gives the logits of there?"
    )


ported_gain = Mend(
    number="16.6",
    title="A gain from another code",
    minutes=10,
    difficulty="medium",
    points=3,
    needs=("Where the law needs a word more",),
    statement=(
        "`Ported` normalizes queries and keys by the RMS. Its learned gains were copied from a model that uses $\\ell_2$ and a gain for each head, $s = g\\cos\\theta$, and "
        "there they were right. Draw a `Ported(64, 4, 32)` and run `attntut.diagnose(layer, torch.randn(4, 16, 64))`. Read what it finds, and what it says of the matrices. Write "
        "`mend(layer)`, which gives any such layer the logits of the other model, in place: only `gain` changes, and heads that differ go on to differ. "
        "Run `attntut.diagnose` again."
    ),
    hint="Two vectors of RMS 1 have the product $d_h\\cos\\theta$, which is then divided by $\\sqrt{d_h}$. How much is that for a gain of 1? Change a parameter under `torch.no_grad()`.",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Ported,),
    make=ported_cases,
    ask=mended_ported,
    compare=judge_ported,
    solution=mend,
    wrong={
        "nothing": (lambda layer: None, "what they were"),
        "smaller matrices": (smaller_matrices, "size of"),
        "matrices, too": (matrices_too, "size of"),
        "a gain of 1": (gain_by(lambda layer, d_h: torch.ones(1)), "learned to differ"),
        "the mean of the heads": (gain_by(lambda layer, d_h: layer.gain.mean() / d_h**0.5), "learned to differ"),
        "by d_h": (gain_by(lambda layer, d_h: layer.gain / d_h), "which power"),
        "the other way": (gain_by(lambda layer, d_h: layer.gain * d_h**0.5), "have grown"),
        "the model's width": (gain_by(lambda layer, d_h: layer.gain / layer.query.in_features**0.5), "or a head's"),
        "all heads' width": (gain_by(lambda layer, d_h: layer.gain / layer.query.out_features**0.5), "gives the logits of there"),
        "by the default of 10": (gain_by(lambda layer, d_h: layer.gain / 10), "gives the logits of there"),
        "no parameter": (without_gain, "Which parameters"),
    },
)  # fmt: skip


# fmt: off
def spiked(d, times, n=512):
    """W_q, W_k (d, d): σ² = 1/d and one strong direction; tokens (n, d)."""
    torch.manual_seed(0)
    matrices = []
    for _ in range(2):
        there, along = torch.nn.functional.normalize(torch.randn(2, d))
        fresh = torch.randn(d, d) / d**0.5
        matrices.append(fresh + times * torch.outer(there, along))
    return *matrices, torch.randn(n, d)
# fmt: on


@functools.cache
def std_of_spiked(d: int, times: float, divide: str = "spectral", normed: bool = True, root: bool = True) -> tuple:
    """Standard deviation of the logits under σReparam and under QK-norm."""
    with torch.random.fork_rng(devices=[]):
        W_q, W_k, x = spiked(d, times)
    norms = [torch.linalg.matrix_norm(W, 2) for W in (W_q, W_k)]
    if divide == "frobenius":
        norms = [W.norm() for W in (W_q, W_k)]
    elif divide == "none":
        norms = [torch.tensor(1.0)] * 2
    elif divide == "one":
        norms[1] = torch.tensor(1.0)
    q, k = x @ W_q.mT, x @ W_k.mT
    size = (d if root else 1) ** 0.5
    reparam = (q @ k.mT / norms[0] / norms[1] / size).std().item()
    unit = [z * z.square().mean(-1, keepdim=True).rsqrt() for z in (q, k)]
    norm = ((unit[0] @ unit[1].mT) / size).std().item() if normed else reparam
    return float(f"{reparam:.4g}"), float(f"{norm:.4g}")


strong_direction = Explain(
    number="16.7",
    title="One strong direction",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("What a bound is worth", "One table"),
    statement=(
        "The table says what σReparam and QK-norm make of matrices that are 8 times too large. Now give $W_q$ and $W_k$ one direction that is much stronger than all "
        "others, with `spiked(d, times)` and `d` = <<d>>, `times` = <<times>>. One head has all of the width, $d_h = d$. Predict by the table the standard deviation of the logits "
        "under σReparam with $\\gamma = 1$, which divides each matrix by its largest singular value, and under QK-norm by the RMS with $g = 1$. Then measure both, over all "
        "pairs of the tokens. Give `prediction` and `measured` two numbers each, σReparam first. Explain in two or three sentences why one of them is so far from its prediction and the other is not. What "
        "would γ have to be?"
    ),
    hint=(
        "`torch.linalg.matrix_norm(W, 2)` is the largest singular value. From which directions does it come, and from which ones does the length of a "
        "usual query come?"
    ),
    rubric=(
        "The predictions are ¼ and 1 (1 point). The largest singular value is now that of the one strong direction, about times + 1/times in place of 2, and σReparam divides "
        "all other directions by it: it sets the largest possible logit, and the typical one only where the spectrum is that of a Gaussian matrix. QK-norm "
        "divides each query by its own length, to which the strong direction adds only times²/d of what the others give (1). For the standard deviation of the table, ¼, γ² would have to be ¼ over the measured number: γ ≈ 3.5 on the page (1)."
    ),
    setup=(spiked,),
    parameters={"d": (256, 192, 320), "times": (8, 6, 10, 5)},
    solve=std_of_spiked,
    traps={
        "Those are the predictions. What do these matrices give?": lambda d, times: (0.25, 1.0),
        "The second is right. By what have you divided the matrices for the first?": (
            lambda d, times: std_of_spiked(d, times, divide="none")
        ),
        "The second is right. Is the root of the sum of all squares the largest singular value?": (
            lambda d, times: std_of_spiked(d, times, divide="frobenius")
        ),
        "The second is right. How many matrices does σReparam divide?": lambda d, times: std_of_spiked(d, times, divide="one"),
        "By which root is the product of query and key divided?": lambda d, times: std_of_spiked(d, times, root=False),
        "Is that the standard deviation, or its square?": (
            lambda d, times: tuple(x**2 for x in std_of_spiked(d, times))
        ),
        "Are the two numbers in the order that was asked for?": lambda d, times: std_of_spiked(d, times)[::-1],
        "The first is right. What does QK-norm do, and does it need the singular value?": (
            lambda d, times: std_of_spiked(d, times, normed=False)
        ),
    },
    ask="First: `(x @ W_q.mT) @ (x @ W_k.mT).mT` over both norms and $\\sqrt d$, and its standard deviation. Second: the same with each query and key over its own RMS?",
    rtol=0.02,
)  # fmt: skip

EXERCISES = [
    longer_query, share_for_one, three_gains, clip_code, law_code, ported_gain, strong_direction,
]  # fmt: skip
