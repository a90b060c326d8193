"""Solutions and checks of the exercises of chapter 1, *What self-attention is*."""

import math

import torch
from exercise import Exercise
from torch import Tensor


def check_even(answer: tuple[float, float]) -> None:
    entropy, weight = answer
    assert math.isclose(weight, 1 / 8, abs_tol=1e-3), "Eight equal weights sum to 1. How large is each?"
    assert not math.isclose(entropy, 3, abs_tol=0.01), "That is the entropy in bits. Which logarithm counts in nats?"
    assert math.isclose(entropy, math.log(8), abs_tol=0.01), "What is −Σ p ln p when every p is ⅛?"


def check_itself(answer: float) -> None:
    assert 0 < answer < 1, "A softmax gives no weight of 0 and none of 1. Did you normalize?"
    assert not math.isclose(answer, 1 / (1 + math.exp(-8)), abs_tol=1e-4), "By what are the scores divided?"
    assert answer > 0.95, "What is x·x when x has four entries of 1, and how far is that from −x·x?"
    assert math.isclose(answer, 1 / (1 + math.exp(-4)), abs_tol=1e-3), "The scores are 2 and −2. What is their softmax?"


def check_two_pairs(answer: float) -> None:
    assert not math.isclose(answer, 1 / 2, abs_tol=1e-3), "It guesses one of two. What if the two values are the same?"
    assert not math.isclose(answer, 1 / 8, abs_tol=1e-3), "It has seen which values occur. Why guess among all eight?"
    assert math.isclose(answer, 9 / 16, abs_tol=5e-3), (
        "How likely are equal values, and how often is it right if they differ?"
    )


def self_attention(x: Tensor) -> tuple[Tensor, Tensor]:
    T, d = x.shape[-2:]
    logits = x @ x.mT / math.sqrt(d)  # (B, T, T)
    weights = torch.softmax(logits.masked_fill(torch.eye(T, dtype=torch.bool), -math.inf), dim=-1)
    return weights @ x, weights


def with_itself(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(x @ x.mT / math.sqrt(x.shape[-1]), dim=-1)
    return weights @ x, weights


def removed_after(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = with_itself(x)[1] * (1 - torch.eye(x.shape[-2]))
    return weights @ x, weights


def zero_logit(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = torch.softmax(x @ x.mT / math.sqrt(x.shape[-1]) * (1 - torch.eye(x.shape[-2])), dim=-1)
    return weights @ x, weights


def unscaled(x: Tensor) -> tuple[Tensor, Tensor]:
    return self_attention(x)[0], self_attention(x * x.shape[-1] ** 0.25)[1]


def wrong_axis(x: Tensor) -> tuple[Tensor, Tensor]:
    weights = self_attention(x)[1].mT
    return weights @ x, weights


def check_self_attention(answer) -> None:
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    output, weights = answer(x)
    assert weights.shape == (3, 5, 5) and output.shape == x.shape, (
        "There is one weight a pair. Which two shapes result?"
    )
    assert (weights.diagonal(0, 1, 2) == 0).all(), "A token still hears itself. A logit of which value has weight 0?"
    sums = weights.sum(dim=-1)
    assert torch.allclose(sums, torch.ones(3, 5), atol=1e-5), "A row must sum to 1. Was the diagonal removed too late?"
    assert torch.allclose(output, weights @ x, atol=1e-5), "Are the outputs the averages under these very weights?"
    logits = weights.log()
    lead = (x[:, 0] * (x[:, 1] - x[:, 2])).sum(dim=-1) / 2  # row 0: the score of token 1 less that of token 2
    assert torch.allclose(logits[:, 0, 1] - logits[:, 0, 2], lead, atol=1e-4), "Are the scores divided by √d?"


def check_loss_of_averaging(answer: float) -> None:
    assert not math.isclose(answer, math.log(65), abs_tol=0.2), (
        "That is the loss of a model that knows nothing. Did it train?"
    )
    assert answer < 3, (
        "That is what the frequencies of the characters give. Which character is in the stream at every place?"
    )
    assert answer > 2.42, "That is what learned weights reach. Are the weights equal, and is d_ff = 0?"
    assert answer < 2.55, "The bigram pays 2.442 nats, and the model can be that good. Did it train for 200 steps?"


def check_gain(answer: float) -> None:
    assert answer > 0, "Learned weights are ahead. Which of the two did you subtract?"
    assert answer > 0.1, "That is about the gain with the feed-forward layer. Is it gone?"
    assert answer < 0.35, "Averaging should still be right in two cases of three. Was it trained as long?"


EXERCISES = [
    Exercise(
        "1.1",
        solution=(math.log(8), 1 / 8),
        check=check_even,
        wrong={"in bits": (3, 1 / 8), "only itself": (0, 1), "not normalized": (math.log(8), 1)},
    ),
    Exercise(
        "1.2",
        solution=1 / (1 + math.exp(-4)),
        check=check_itself,
        wrong={
            "not divided": 1 / (1 + math.exp(-8)),
            "divided by four": 1 / (1 + math.exp(-2)),
            "empty patch scores zero": 1 / (1 + math.exp(-2)),
            "exponential only": math.exp(2),
        },
    ),
    Exercise(
        "1.3",
        solution=9 / 16,
        check=check_two_pairs,
        wrong={"never equal": 1 / 2, "blind guess": 1 / 8, "equal half of the time": 3 / 4},
    ),
    Exercise(
        "1.4",
        solution=self_attention,
        check=check_self_attention,
        wrong={
            "hears itself": with_itself,
            "removed after the softmax": removed_after,
            "a logit of zero": zero_logit,
            "not divided by the root": unscaled,
            "columns for rows": wrong_axis,
        },
    ),
    Exercise(
        "1.5",
        solution=2.47,
        check=check_loss_of_averaging,
        wrong={"learned weights": 2.35, "learned, d_ff = 0": 2.375, "unigram": 3.24, "untrained": math.log(65)},
    ),
    Exercise(
        "1.6",
        solution=0.21,
        check=check_gain,
        wrong={"the wrong way round": -0.21, "with the feed-forward layer": 0.05, "an untrained rival": 0.77},
    ),
]
