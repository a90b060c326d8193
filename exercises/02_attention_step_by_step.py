"""Exercises of chapter 2, *Computing attention, step by step*."""

import math

import torch
from torch import Tensor, nn

from exercises.exercise import Choice, Code, Explain, Mend, Number

equal_but_one = Choice(
    number="2.1",
    title="A lead of one",
    minutes=1,
    difficulty="easy",
    points=1,
    statement="Three keys score 1000, 1000 and 1001 against a query. What are their weights?",
    hint="Add a constant to every exponent of the softmax, and cancel.",
    options={
        "⅓, ⅓ and ⅓": "The scores differ by 1. What is the ratio of two exponentials whose exponents differ by 1?",
        "0, 0 and 1": "How many times as large is the third exponential? Is that enough to take everything?",
        "0.333, 0.333 and 0.334": "Is a weight proportional to the score, or to the exponential of the score?",
        "0.212, 0.212 and 0.576": "",
        "1, 1 and 2.718": "These are exponentials. What do the weights of one query sum to?",
        "none, because $e^{1000}$ is infinite": "A program may overflow here. But what is left of 1000 in the quotient?",
    },
)

divisor = Number(
    number="2.2",
    title="The divisor",
    minutes=3,
    difficulty="easy",
    points=2,
    needs=("The prediction: a dot product grows with its width",),
    statement=(
        "The entries of your queries have standard deviation <<of_query>>, those of your keys <<of_key>>. All are "
        "independent with mean 0. By what must you divide the dot products $q^\\top k$ so that the logits have variance "
        "1, for a `d_head` of <<d_head>>?"
    ),
    hint="Redo the derivation. What is the variance of one product $q_r k_r$, and what is it for the sum?",
    parameters={"d_head": (64, 36, 100, 144), "of_query": (3, 5, 7), "of_key": (0.5, 0.25)},
    solve=lambda d_head, of_query, of_key: math.sqrt(d_head) * of_query * of_key,
    traps={
        "One product $q_r k_r$ has this deviation. How many of them does the logit add?": (
            lambda d_head, of_query, of_key: of_query * of_key
        ),
        "Is this the variance of the logit, or its standard deviation?": (
            lambda d_head, of_query, of_key: d_head * of_query**2 * of_key**2
        ),
        "That is the usual root. Which assumption of the derivation does not hold here?": (
            lambda d_head, of_query, of_key: math.sqrt(d_head)
        ),
        "Do the standard deviations of independent terms add, or do their variances?": (
            lambda d_head, of_query, of_key: d_head * of_query * of_key
        ),
        "You took one of the two numbers for a variance. Which of them is squared in the variance of a product?": (
            lambda d_head, of_query, of_key: math.sqrt(d_head) * of_query * math.sqrt(of_key)
        ),
        "Is that the variance of a query or of a logit? Where is the key?": (
            lambda d_head, of_query, of_key: math.sqrt(d_head) * of_query
        ),
    },
    ask="What is $E[q_r^2]\\,E[k_r^2]$, and what is the variance of a sum of `d_head` such terms?",
    wrong={"the inverse": lambda d_head, of_query, of_key: 1 / (math.sqrt(d_head) * of_query * of_key)},
)

growth = Number(
    number="2.3",
    title="Wider keys",
    minutes=5,
    difficulty="medium",
    points=2,
    needs=("2.2",),
    statement=(
        "Two layers receive the same gradient at their logits. One divides by $\\sqrt{d_k}$, the other does not. The keys "
        "have unit variance. You make `d_head` <<factor>> times as large, and the gradient at the logits stays what it "
        "was. By which factor does the typical *length* $\\lVert\\delta_i\\rVert$ of the gradient at a query grow with the "
        "root, and by which without it? Predict two numbers."
    ),
    hint="The gradient at a query is $c\\sum_j g_{ij} k_j$. How long is a key, and what is $c$?",
    starter="answer = (..., ...)  # with the root, without it",
    parameters={"factor": (4, 9, 16, 25)},
    solve=lambda factor: (1, math.sqrt(factor)),
    traps={
        "You divide by the root. But how long is a key when it is wider?": lambda factor: (1 / math.sqrt(factor), 1),
        "The key is longer. And what became of $c$ in the layer with the root?": (
            lambda factor: (math.sqrt(factor), math.sqrt(factor))
        ),
        "Is that the length of a key, or the square of its length?": lambda factor: (1, factor),
        "Nothing divides in the second layer. What does the longer key do to the sum there?": lambda factor: (1, 1),
        "Which of the two layers divides by the root? Are the numbers in the order that was asked for?": (
            lambda factor: (math.sqrt(factor), 1)
        ),
    },
    ask="A key is longer by some factor, and $c$ is smaller by which? What is the product in each layer?",
)


def softmax(logits):
    exponentials = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def from_shifted(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum(dim=-1, keepdim=True)


def softmax_cases(seed: int) -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(4, 3, 5, generator=generator)
    return [(1000 + rows[0],), (-1000 + rows[1],), (rows * 1000,), (rows[0, 0],)]


def judge_softmax(case, got, want):
    assert isinstance(got, torch.Tensor) and got.shape == want.shape, "Every logit has a weight. Which shape comes out?"
    got = got.to(want.dtype)
    if not got.isfinite().all():
        logits = case[0]
        assert logits.min() < 0, "exp(1000) is infinite in float32. What may you subtract from all logits first?"
        assert logits.max() > 0, "Every exponential of these small logits is 0. Do you subtract the right thing?"
        raise AssertionError(
            "Some rows are NaN: an exponential is infinite, or all of them are 0. Which logit of each row must become 0?"
        )
    ones = torch.ones(got.shape[:-1])
    if not torch.allclose(got.sum(dim=-1), ones, atol=1e-4):
        assert not torch.allclose(got.sum(), torch.tensor(1.0), atol=1e-4), (
            "All weights together sum to 1. Which dimension should?"
        )
        assert (got.sum(dim=-1) - 1).abs().max() < 1e-4, (
            "The rows do not sum to 1. By what is each exponential divided?"
        )
    assert (got >= 0).all(), "A weight is negative. What is always positive?"
    assert torch.allclose(got, want, atol=1e-5), (
        "The rows sum to 1, but two logits that differ by 1 should have weights in the ratio e. Do they?"
    )


own_softmax = Code(
    number="2.4",
    title="A softmax that does not overflow",
    minutes=10,
    difficulty="medium",
    points=3,
    needs=("2.1",),
    statement=(
        "Write `softmax(logits)` for a tensor of any shape, over the last dimension, such that "
        "`softmax(torch.tensor([1000.0, 1001.0]))` is right and not NaN. Do not call torch's."
    ),
    hint="Exercise 2.1 tells what may be subtracted.",
    name="softmax",
    starter="def softmax(logits):\n    ...",
    forbidden=frozenset({"softmax", "log_softmax", "softmin", "Softmax", "LogSoftmax", "Softmin", "logsumexp",
                         "scaled_dot_product_attention", "multi_head_attention_forward", "MultiheadAttention"}),
    make=softmax_cases,
    compare=judge_softmax,
    solution=softmax,
    wrong={
        "overflow": (lambda x: x.exp() / x.exp().sum(-1, keepdim=True), "infinite"),
        "subtracts a constant": (lambda x: (x - 1000).exp() / (x - 1000).exp().sum(-1, keepdim=True), "right thing"),
        "largest of all": (lambda x: (x - x.max()).exp() / (x - x.max()).exp().sum(), "Which dimension"),
        "does not divide": (lambda x: (x - x.amax(-1, keepdim=True)).exp(), "divided"),
        "divides by the scores": (lambda x: x / x.sum(-1, keepdim=True), "ratio e"),
        "over the rows": (lambda x: softmax(x.movedim(0, -1)).movedim(-1, 0), "divided"),
        "powers of two": (lambda x: softmax(x * math.log(2)), "ratio e"),
        "subtracts the mean": (lambda x: from_shifted(x - x.mean(-1, keepdim=True)), "of each row must become 0"),
        "subtracts the largest of all": (lambda x: from_shifted(x - x.max()), "of each row must become 0"),
    },
)  # fmt: skip


def attend(query, key, value, mask):
    logits = query @ key.mT / math.sqrt(query.shape[-1]) + mask
    blind = (mask == -math.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(blind, 0), dim=-1).masked_fill(blind, 0)
    return weights @ value


def mended_too_late(query, key, value, mask):
    logits = query @ key.mT / math.sqrt(query.shape[-1]) + mask
    return torch.softmax(logits, dim=-1).nan_to_num(0) @ value


def masked_after(query, key, value, mask):
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1) * (mask == 0) @ value


def large_but_finite(query, key, value, mask):
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    return torch.softmax(logits + mask.clamp(min=-1e9), dim=-1) @ value


def zero_by_detaching(query, key, value, mask):
    blind = (mask == -math.inf).all(dim=-1, keepdim=True)
    return attend(query.detach(), key, value, mask).masked_fill(blind, 0)


def unscaled(query, key, value, mask):
    return attend(query * math.sqrt(query.shape[-1]), key, value, mask)


def by_width_of_value(query, key, value, mask):
    return attend(query * math.sqrt(query.shape[-1] / value.shape[-1]), key, value, mask)


def attend_cases(seed: int) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, *shape, generator=generator) for shape in ((4, 7), (5, 7), (5, 3)))
    visible = torch.rand(2, 4, 5, generator=generator) < 0.6
    visible[..., 1] = True
    visible[0, 2], visible[1, 3] = False, False
    masks = torch.zeros(2, 4, 5).masked_fill(~visible, -math.inf)
    upstream = torch.randn(2, 4, 3, generator=generator)
    return [(query, key, value, mask, upstream) for mask in (masks[0], masks)]


def output_and_gradients(answer, query, key, value, mask, upstream):
    inputs = [x.requires_grad_() for x in (query, key, value)]
    output = answer(*inputs, mask)
    gradients = torch.autograd.grad((output * upstream).sum(), inputs, allow_unused=True)
    return output, [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


def judge_attend(case, got, want):
    output, gradients = got[0].to(want[0].dtype), got[1]
    mask = case[3]
    blind = (mask == -math.inf).all(dim=-1).expand(2, 4)
    assert output.shape == want[0].shape, "There is one output a query. How long is it?"
    zero = output[blind]
    assert zero.isfinite().all(), "The query that may see nothing gets NaN. What is a softmax of nothing but −∞?"
    assert (zero == 0).all(), "One query may see nothing. What does it return, and what is a mean of nothing?"
    right = torch.allclose(output[~blind], want[0][~blind], atol=1e-5)
    assert right, (
        "Do the visible keys of a row share the whole, and is the product divided by the root of the width of a query?"
    )
    assert all(g.isfinite().all() for g in gradients), (
        "The output is right. Which step of the backward pass divides 0 by 0?"
    )
    close = [torch.allclose(g, w, atol=1e-4) for g, w in zip(gradients, want[1], strict=True)]
    assert all(close), "The output is right, and a gradient is not. Which path from it to the inputs is cut, or added?"


masked_attention = Code(
    number="2.5",
    title="A row that sees nothing",
    minutes=20,
    difficulty="hard",
    points=4,
    needs=("2.4",),
    statement=(
        "Write `attend(query, key, value, mask)` for a mask that is *added* to the logits: 0 where a query may look, "
        "$-\\infty$ where it may not. Query, key and value are `(B, n, d_k)`, `(B, m, d_k)` and `(B, m, d_v)`, the mask is "
        "`(n, m)` or `(B, n, m)`, and the logits are divided by $\\sqrt{d_k}$. A query that may see nothing must return zero *and* have a gradient of zero. It is "
        "easy to get the first without the second. Write the softmax yourself, or call `torch.softmax`, but not torch's "
        "attention."
    ),
    hint="Replacing a NaN after the softmax is too late: the backward pass multiplies by it. What could you feed the softmax in such a row?",
    name="attend",
    starter="def attend(query, key, value, mask):\n    ...",
    forbidden=frozenset({"scaled_dot_product_attention", "_scaled_dot_product_attention_math", "flex_attention",
                         "multi_head_attention_forward", "MultiheadAttention", "MultiHeadAttention"}),
    make=attend_cases,
    ask=output_and_gradients,
    compare=judge_attend,
    solution=attend,
    wrong={
        "no mending": (lambda q, k, v, m: torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + m, -1) @ v, "NaN"),
        "mended too late": (mended_too_late, "0 by 0"),
        "masked after": (masked_after, "share the whole"),
        "large but finite": (large_but_finite, "mean of nothing"),
        "gradient cut": (zero_by_detaching, "is cut"),
        "no root": (unscaled, "divided by the root"),
        "root of another width": (by_width_of_value, "divided by the root"),
    },
    equivalent=("masked_fill(blind, 1), dim",),
)  # fmt: skip


# fmt: off
class Unscaled(torch.nn.Module):
    """Attention that forgot to divide by the root of d_head."""

    def __init__(self, d_model, n_heads):
        super().__init__()
        self.n_heads = n_heads
        for role in ("query", "key", "value", "output"):
            self.add_module(role, torch.nn.Linear(d_model, d_model))

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2)
                   for f in (self.query, self.key, self.value))
        mix = torch.softmax(q @ k.mT, dim=-1) @ v  # (B, H, T, d_head)
        return self.output(mix.transpose(1, 2).reshape(B, T, C))
# fmt: on


def mend(layer):
    d_head = layer.query.out_features // layer.n_heads
    with torch.no_grad():
        layer.query.weight /= math.sqrt(d_head)
        layer.query.bias /= math.sqrt(d_head)


def scaled_by(layer: nn.Module, roles: str, power: float, width: int, bias: bool = True) -> None:
    with torch.no_grad():
        for role in roles.split():
            for parameter in [getattr(layer, role).weight, *([getattr(layer, role).bias] if bias else [])]:
                parameter *= width**power


def head(layer: nn.Module) -> int:
    return layer.query.out_features // layer.n_heads


def layer_cases(seed: int) -> list[tuple[int, int, int]]:
    return [(12, 3, seed), (20, 2, seed + 1)]


def mended_layer(answer, d_model, n_heads, seed):
    torch.manual_seed(seed)
    layer = Unscaled(d_model, n_heads)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    x = torch.randn(2, 5, d_model)
    answer(layer)
    after = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    kept = sorted(name for name in after if name in before and after[name].shape == before[name].shape)
    changed = [name for name in kept if not torch.equal(before[name], after[name])]
    ratio = (after["query.weight"] / before["query.weight"]).median() if "query.weight" in kept else 0.0
    return kept, changed, ratio, layer(x)


def judge_mended(case, got, want):
    kept, changed, ratio, output = got
    assert kept == want[0], "Which parameters had the layer before? Are they all there still, in their shapes?"
    assert changed, "Nothing was changed. Does your function change the layer in place?"
    others = sorted(name for name in changed if not name.startswith("query"))
    assert not others, "Something else than the query changed. Which one projection does T5 draw smaller?"
    assert "query.bias" in changed, "A logit is (W x + b)ᵀk. Which part of it did you leave as it was?"
    d_model, n_heads = case[:2]
    assert abs(ratio - d_model**-0.5) > 1e-4 * ratio, (
        "That is the root of d_model. How wide is what one head multiplies?"
    )
    assert abs(ratio - n_heads / d_model) > 1e-4 * ratio, "Did you divide by the root, or by what stands under it?"
    assert torch.allclose(output, want[3], atol=1e-4), (
        "Are the logits now those of a layer that divides by the root of d_head?"
    )


forgotten_root = Mend(
    number="2.6",
    title="The forgotten root",
    minutes=15,
    difficulty="medium",
    points=3,
    needs=("2.2", "What frameworks do"),
    statement=(
        "The layer `Unscaled(d_model, n_heads)`, with linear maps `query`, `key`, `value` and `output`, does not divide its "
        "logits by $\\sqrt{d_h}$. Draw an `Unscaled(256, 4)`, run `attntut.diagnose` on it with random tokens of shape "
        "`(4, 16, 256)`, and read what it finds. You may not edit the class. Write `mend(layer)`, which changes *one* projection in place, as T5 does it, such that the "
        "layer computes from now on what it would compute with the root."
    ),
    hint="$\\frac{1}{\\sqrt{d_h}}\\,q^\\top k = \\big(\\frac{1}{\\sqrt{d_h}}\\,q\\big)^\\top k$. What is $q$ made of?",
    name="mend",
    starter="def mend(layer):\n    ...",
    setup=(Unscaled,),
    make=layer_cases,
    ask=mended_layer,
    compare=judge_mended,
    solution=mend,
    wrong={
        "without the bias": (lambda m: scaled_by(m, "query", -0.5, head(m), bias=False), "leave as it was"),
        "root of d_model": (lambda m: scaled_by(m, "query", -0.5, m.query.out_features), "root of d_model"),
        "no root": (lambda m: scaled_by(m, "query", -1, head(m)), "under it"),
        "query and key": (lambda m: scaled_by(m, "query key", -0.5, head(m)), "one projection"),
        "half at each": (lambda m: scaled_by(m, "query key", -0.25, head(m)), "one projection"),
        "multiplied": (lambda m: scaled_by(m, "query", 0.5, head(m)), "divides by the root"),
        "nothing": (lambda m: None, "Nothing was changed"),
        "the value": (lambda m: scaled_by(m, "value", -0.5, head(m)), "one projection"),
    },
)


def entropies(n: int, sigma: float, dim: int = -1) -> Tensor:
    logits = torch.randn(4096, n, generator=torch.Generator().manual_seed(0)) * sigma
    weights = torch.softmax(logits, dim=dim)
    return -torch.special.xlogy(weights, weights).sum(dim=dim)


where_it_fails = Explain(
    number="2.7",
    title="Where the formula fails",
    minutes=15,
    difficulty="medium",
    points=2,
    manual=3,
    needs=("The knob behind the root: temperature",),
    statement=(
        "Predict the mean entropy in nats of a row of <<n>> independent Gaussian logits of standard deviation <<sigma>> by "
        "$\\ln n - \\sigma_s^2/2$. Then measure it on 4096 such rows. Answer with both numbers, and explain the "
        "difference in two sentences."
    ),
    hint="How much of the weight does the largest of the keys take, on average?",
    rubric=(
        "The prediction is the formula's number (1 point). The formula counts on many keys that share the weight (1); here "
        "the few largest take most of it, the sum of exponentials is no longer its mean, and an entropy is never below 0 (1)."
    ),
    parameters={"n": (64, 128, 256), "sigma": (2.5, 3.0, 2.25, 3.5)},
    solve=lambda n, sigma: entropies(n, sigma).mean().item(),
    traps={
        "That is the formula's number. What do 4096 rows give?": lambda n, sigma: math.log(n) - sigma**2 / 2,
        "Did you take the logarithm to base 2? Which unit is asked for?": (
            lambda n, sigma: entropies(n, sigma).mean().item() / math.log(2)
        ),
        "That is the entropy of a row of 4096. Over which dimension is the softmax?": (
            lambda n, sigma: entropies(n, sigma, dim=0).mean().item()
        ),
        "Is that the deviation of a logit, or its variance?": lambda n, sigma: entropies(n, sigma**2).mean().item(),
        "That is the entropy of even weights. Are all logits alike, or did you average the rows before their entropy?": lambda n, sigma: math.log(n),
    },
    ask="Are the logits drawn with this standard deviation, and is the entropy −Σ p ln p of each row, averaged over the rows?",
    rtol=0.025,
)  # fmt: skip

EXERCISES = [
    equal_but_one, divisor, growth, own_softmax, masked_attention, forgotten_root, where_it_fails,
]  # fmt: skip
