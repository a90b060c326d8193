"""Solutions and checks of the exercises of chapter 4, *Compared with traditional attention*."""

import math

import torch
from exercise import Exercise
from torch import Tensor


def check_crossing(answer: float) -> None:
    assert not math.isclose(answer, 1536, rel_tol=0.01), (
        "That is the crossing with an LSTM. How many products has a GRU?"
    )
    assert not math.isclose(answer, 2304, rel_tol=0.01), "Attention has projections too. Did you count their 4nd²?"
    assert 767.5 < answer < 769.5, "Solve 4nd² + 2n²d = 6nd² for n. What is left when you divide by nd?"


def check_gigabytes(answer: float) -> None:
    assert not math.isclose(answer, 10, rel_tol=0.01), "How many bytes has a 16-bit number?"
    assert not math.isclose(answer, 160, rel_tol=0.01), "Are these gigabytes or gigabits?"
    assert math.isclose(answer, 20, rel_tol=0.01), "How many pairs are there, and how many bytes has each?"


def check_needle(answer: tuple[float, float]) -> None:
    rise, factor = answer
    assert not math.isclose(rise, 32, rel_tol=0.02), (
        "The sum over the hay grows 32-fold. By how much does its logarithm?"
    )
    assert not math.isclose(rise, 5, rel_tol=0.02), "Which logarithm undoes the exponential of the softmax?"
    assert math.isclose(rise, math.log(32767 / 1023), abs_tol=0.02), "What is ln(n − 1) + σ_s²/2 at the two lengths?"
    assert not math.isclose(factor, 32, rel_tol=0.02), "The needle has half of the sum itself. Does that half grow too?"
    assert math.isclose(factor, 16.5, rel_tol=0.02), "Needle 1, hay 1 gives ½. What does needle 1, hay 32 give?"


def check_forget_bias(answer: float) -> None:
    assert not math.isclose(answer, math.log(99), abs_tol=0.02), "The recurrent weights add to σ(b). Where is ¼U?"
    assert answer > 0, "U comes with a factor of ¼. Which two gates give it?"
    assert math.isclose(answer, 1.70, abs_tol=0.02), "Which factor a token do you want, and what must σ(b) be for it?"


def attend(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    factor = math.log(key.shape[-2]) / math.log(n_trained)
    logits = factor * (query @ key.mT) / math.sqrt(query.shape[-1])
    return torch.softmax(logits, dim=-1) @ value


def upside_down(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    factor = math.log(n_trained) / math.log(max(key.shape[-2], 2))
    return torch.softmax(factor * (query @ key.mT) / math.sqrt(query.shape[-1]), dim=-1) @ value


def counts_queries(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    factor = math.log(query.shape[-2]) / math.log(n_trained)
    return torch.softmax(factor * (query @ key.mT) / math.sqrt(query.shape[-1]), dim=-1) @ value


def forgets_the_root(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    factor = math.log(key.shape[-2]) / math.log(n_trained)
    return torch.softmax(factor * (query @ key.mT), dim=-1) @ value


def never_below_one(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    return attend(query, key, value, min(n_trained, key.shape[-2]))


def cube_root(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    factor = (key.shape[-2] / n_trained) ** (1 / 3)
    return torch.nn.functional.scaled_dot_product_attention(factor * query, key, value)


def ordinary(query: Tensor, key: Tensor, value: Tensor, n_trained: int) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def check_attend(answer) -> None:
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int, width: int = 8) -> Tensor:
        return torch.randn(2, n, width, generator=generator)

    query, key, value = tokens(5), tokens(64), tokens(64, 3)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    same = answer(query, key, value, 64)
    assert torch.allclose(same, sdpa(query, key, value), atol=1e-5), (
        "As many keys as in training must give ordinary attention. Is n the number of keys, and is the √d_k still there?"
    )
    longer = answer(query, key, value, 8)
    assert torch.allclose(longer, sdpa(2 * query, key, value), atol=1e-5), (
        "64 = 8²: the logits should be doubled. Which of the two logarithms is on top?"
    )
    shorter = answer(query, key[:, :16], value[:, :16], 64)
    assert torch.allclose(shorter, sdpa(2 / 3 * query, key[:, :16], value[:, :16]), atol=1e-5), (
        "16 keys instead of 64: the factor is ln 16 / ln 64 = 2/3. Do you clip it, or take another function of n?"
    )
    alone = answer(query, key[:, :1], value[:, :1], 64)
    assert torch.allclose(alone, value[:, :1].expand_as(alone), atol=1e-6), "What is the mean of a single value?"


def check_two_layers(answer: tuple[float, float]) -> None:
    first, second = answer
    assert max(answer) <= 1, "Accuracies are shares of the test set. Did you give percent?"
    assert not (first < 0.6 and second > 0.9), "Which of the two layers did you replace first?"
    assert first > 0.9, "Which token must a value hear from to know its key? Does every row of your table look there?"
    assert second < 0.5, (
        "Every sequence asks for another place. How can one table find it? Is the second layer a table?"
    )
    assert second > 0.3, "The commonest of four values is right more often than that. Can your table see all of them?"


EXERCISES = [
    Exercise(
        "4.1",
        solution=768,
        check=check_crossing,
        wrong={"the LSTM's": 1536, "no projections": 2304, "the RNN's": 0, "half of it": 384},
    ),
    Exercise("4.2", solution=20, check=check_gigabytes, wrong={"one byte": 10, "bits": 160, "linear": 0.0002}),
    Exercise(
        "4.3",
        solution=(math.log(32767 / 1023), 16.5),
        check=check_needle,
        wrong={"the factor itself": (32, 16.5), "base two": (5, 16.5), "forgets the needle's half": (3.466, 32)},
    ),
    Exercise(
        "4.4",
        solution=math.log(0.8457 / 0.1543),
        check=check_forget_bias,
        wrong={"forget gate alone": math.log(99), "U without its quarter": -0.353, "the usual one": 1},
    ),
    Exercise(
        "4.5",
        solution=attend,
        check=check_attend,
        wrong={
            "upside down": upside_down,
            "counts queries": counts_queries,
            "forgets the root": forgets_the_root,
            "no factor": ordinary,
            "never below one": never_below_one,
            "cube root": cube_root,
        },
    ),
    Exercise(
        "4.6",
        solution=(0.998, 0.39),
        check=check_two_layers,
        wrong={
            "the other way round": (0.39, 0.998),
            "percent": (99.8, 39),
            "no table": (0.984, 0.984),
            "looks at itself": (0.39, 0.39),
            "sees no value": (0.998, 0.125),
        },
    ),
]
