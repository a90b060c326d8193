"""Solutions and checks of the exercises of chapter 2, *Computing attention, step by step*."""

import math

import torch
from exercise import Exercise
from torch import Tensor


def check_equal_scores(answer: tuple[list[float], list[float]]) -> None:
    for weights in answer:
        assert len(weights) == 3 and math.isclose(sum(weights), 1, abs_tol=0.01), (
            "There is one weight a key, and they share the whole. What do they sum to?"
        )
        assert max(weights) - min(weights) < 0.01, "The three scores are equal. What could tell the keys apart?"


def check_divisor(answer: float) -> None:
    assert answer > 1.5 + 1e-6, "One product q_c k_c has this deviation. How many of them does the logit add?"
    assert not math.isclose(answer, 144), "Is this the variance or the standard deviation of the logit?"
    assert not math.isclose(answer, 8), "That is √d_k. Which assumption of the derivation does not hold here?"
    assert math.isclose(answer, 12, rel_tol=0.01), "What is E[q_c²] E[k_c²], and what does a sum of 64 such terms have?"


def check_growth(answer: tuple[float, float]) -> None:
    rooted, without = answer
    assert not math.isclose(rooted, 0.5, abs_tol=0.01), "You divide by √d_k. But how long is a key, when it is wider?"
    assert math.isclose(rooted, 1, abs_tol=0.01), "A key is longer by some factor, and c smaller by which?"
    assert not math.isclose(without, 4, abs_tol=0.01), "Is that the length of a key, or the square of the length?"
    assert math.isclose(without, 2, abs_tol=0.01), "Here nothing divides. What does the longer key do to Σ g k?"


def softmax(logits: Tensor) -> Tensor:
    exponentials = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def check_softmax(answer) -> None:
    large = answer(torch.tensor([1000.0, 1001.0]))
    assert large.isfinite().all(), "exp(1000) is infinite in float32. What may you subtract from all logits first?"
    right = torch.tensor([0.2689, 0.7311])  # 1/(1 + e) and e/(1 + e)
    assert torch.allclose(large, right, atol=1e-3), "The two differ by 1. Does your softmax still see that?"
    small = answer(torch.tensor([[-1000.0, -1001.0], [5.0, 5.0]]))
    assert small.isfinite().all(), "Now every exponential is 0. Do you subtract the right thing?"
    assert torch.allclose(small[0], right.flip(0), atol=1e-3), "What is left of a difference of 1 among small logits?"
    rows = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 50
    assert torch.allclose(answer(rows).sum(dim=-1), torch.ones(4, 3)), "Which dimension sums to 1?"
    assert torch.allclose(answer(rows), torch.softmax(rows, dim=-1), atol=1e-6), "Are both steps there, exp and divide?"


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    logits = query @ key.mT / math.sqrt(query.shape[-1]) + mask
    blind = (mask == -math.inf).all(dim=-1, keepdim=True)
    weights = torch.softmax(logits.masked_fill(blind, 0), dim=-1).masked_fill(blind, 0)
    return weights @ value


def mended_too_late(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    logits = query @ key.mT / math.sqrt(query.shape[-1]) + mask
    return torch.softmax(logits, dim=-1).nan_to_num(0) @ value


def masked_after(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), dim=-1) * (mask == 0) @ value


def large_but_finite(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    return torch.softmax(logits + mask.clamp(min=-1e9), dim=-1) @ value


def check_attend(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(4, 8, generator=generator).requires_grad_() for _ in range(3))
    visible = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)
    mask = torch.zeros(4, 4).masked_fill(~visible, -math.inf)
    output = answer(query, key, value, mask)
    seen = [0, 1, 3]
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.allclose(output[seen], expected[seen], atol=1e-5), "Do the visible keys of a row share the whole?"
    assert (output[2] == 0).all(), (
        "The third query may see nothing. What does it return, and what is a mean of nothing?"
    )
    gradients = torch.autograd.grad(output.sum(), (query, key, value))
    assert all(g.isfinite().all() for g in gradients), (
        "The output is right. Which step of the backward pass divides 0 by 0?"
    )
    assert (gradients[0][2] == 0).all(), "Nothing depends on the third query. Why does it have a gradient?"


EXERCISES = [
    Exercise(
        "2.1",
        solution=([1 / 3] * 3, [1 / 3] * 3),
        check=check_equal_scores,
        wrong={"not normalized": ([1, 1, 1], [1000, 1000, 1000]), "winner takes all": ([1 / 3] * 3, [1, 0, 0])},
    ),
    Exercise(
        "2.2",
        solution=12,
        check=check_divisor,
        wrong={"one term only": 1.5, "the variance": 144, "the usual root": 8, "variances of 3 and ½": math.sqrt(96)},
    ),
    Exercise(
        "2.3",
        solution=(1, 2),
        check=check_growth,
        wrong={
            "the scale alone": (0.5, 1),
            "the keys alone": (2, 2),
            "the squared length": (1, 4),
            "no factor anywhere": (1, 1),
        },
    ),
    Exercise(
        "2.4",
        solution=softmax,
        check=check_softmax,
        wrong={
            "overflow": lambda x: x.exp() / x.exp().sum(-1, keepdim=True),
            "subtracts a constant": lambda x: (x - 1000).exp() / (x - 1000).exp().sum(-1, keepdim=True),
            "whole tensor": lambda x: (x - x.max()).exp() / (x - x.max()).exp().sum(),
            "does not divide": lambda x: (x - x.amax(-1, keepdim=True)).exp(),
        },
    ),
    Exercise(
        "2.5",
        solution=attend,
        check=check_attend,
        wrong={"mended too late": mended_too_late, "masked after": masked_after, "large but finite": large_but_finite},
    ),
]
