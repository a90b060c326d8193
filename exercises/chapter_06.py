"""Solutions and checks of the exercises of chapter 6, *The Gaussian*."""

import math

import torch
from exercise import Exercise


def check_gpt2(answer: tuple[float, float]) -> None:
    std, sigma = answer
    assert not math.isclose(std, 768**2 * 0.02**4, rel_tol=0.02), "Is this the variance or the standard deviation?"
    assert not math.isclose(std, 64 * 0.02**2, rel_tol=0.02), "Did the width of a head not cancel?"
    assert math.isclose(std, 768 * 0.02**2, rel_tol=0.02), "What is d σ² for d = 768?"
    assert math.isclose(sigma, 1 / math.sqrt(768), rel_tol=0.02), "For which σ is d σ² = 1?"


def check_query_sigma(answer: float) -> None:
    wanted = math.sqrt(3 * 128) / (128 * 9)
    assert not math.isclose(answer, 9 * wanted, rel_tol=0.02), (
        "The inputs are three times too large, twice. Where are they?"
    )
    assert not math.isclose(answer, 3 * wanted, rel_tol=0.02), "Do only the queries see the large inputs?"
    assert not math.isclose(answer, 1 / (3 * math.sqrt(128)), rel_tol=0.02), "Is σ_k the same as σ_q here?"
    assert math.isclose(answer, wanted, rel_tol=0.02), "What is 9 d σ_q σ_k, with σ_k² = 1/(3d)?"


def check_doubling(answer: tuple[float, float, float]) -> None:
    logits, branch, next_logits = answer
    assert math.isclose(logits, 4, rel_tol=0.02), "How many matrices stand between a token and the logits of block 1?"
    assert math.isclose(branch, 4, rel_tol=0.02), "How many matrices stand between a token and the branch of block 1?"
    assert not math.isclose(next_logits, 4, rel_tol=0.02), "What do the queries and keys of block 2 read?"
    assert not math.isclose(next_logits, 16, rel_tol=0.02), (
        "The stream is four times as large. Do only the queries, or only the keys, read it?"
    )
    assert math.isclose(next_logits, 64, rel_tol=0.02), (
        "What do its own matrices contribute, and what the stream, twice?"
    )


def sigma_for(entropy: float, n: int, d_model: int) -> float:
    rows = torch.randn(4000, n, generator=torch.Generator().manual_seed(0))
    low, high = 0.0, 50.0
    for _ in range(30):
        middle = (low + high) / 2
        weights = torch.softmax(middle * rows, dim=-1)
        too_flat = torch.special.entr(weights).sum(dim=-1).mean() > entropy
        low, high = (middle, high) if too_flat else (low, middle)
    return math.sqrt(middle / d_model)


def by_the_formula(entropy: float, n: int, d_model: int) -> float:
    return math.sqrt(math.sqrt(2 * (math.log(n) - entropy)) / d_model)


def returns_the_std(entropy: float, n: int, d_model: int) -> float:
    return d_model * sigma_for(entropy, n, d_model) ** 2


def divides_by_the_width(entropy: float, n: int, d_model: int) -> float:
    return d_model * sigma_for(entropy, n, d_model) ** 2 / d_model


def check_sigma_for(answer) -> None:
    def reached(n: int, d_model: int, entropy: float) -> float:
        sigma = answer(entropy, n, d_model)
        rows = torch.randn(20000, n, generator=torch.Generator().manual_seed(1)) * d_model * sigma**2
        return torch.special.entr(torch.softmax(rows, dim=-1)).sum(dim=-1).mean().item()

    easy = math.log(256) - 0.5
    got = reached(256, 64, easy)
    assert abs(got - easy) < 0.03, (
        f"With 256 tokens and width 64 the formula holds, but the entropy is {got:.2f} for {easy:.2f}. Does d σ² give σ_s, and is σ what you return?"
    )
    got = reached(64, 256, easy - 1.5)
    assert abs(got - easy + 1.5) < 0.03, (
        f"The entropy is {got:.2f} for {easy - 1.5:.2f} at another width. How does d_model enter?"
    )
    got = reached(16, 64, 1.2)
    assert abs(got - 1.2) < 0.03, f"With 16 tokens the entropy is {got:.2f} for 1.2. What does ln n − σ²/2 leave out?"


def check_one_cause(answer: tuple[dict[str, float], str]) -> None:
    accuracy, cause = answer
    names = {"1", "8", "branch", "step"}
    assert set(accuracy) == names, f"Which of {sorted(names)} is missing, or which is too many?"
    gain = {name: value - accuracy["1"] for name, value in accuracy.items()}
    assert gain["8"] > 0.05, "Value and output at 8 were better. Were the positions made small in both groups?"
    assert gain["step"] > 0.05, "Are W_v and W_o drawn at 8 there, and the positions small?"
    assert gain["branch"] < 0.1, "Only the branch should be large. At which scale were W_v and W_o drawn?"
    assert gain["branch"] != 0, "The branch changed nothing at all. Has residual_scale reached the model?"
    assert all(0.2 < value < 0.75 for value in accuracy.values()), (
        "Are these accuracies after 100 steps at a rate of 0.02, with positions that start at a fiftieth?"
    )
    assert cause in ("branch", "step"), "Which of the two is it, 'branch' or 'step'?"
    assert cause == "step", "Which change alone does what the factor 8 did: a large branch, or large weights?"


EXERCISES = [
    Exercise(
        "6.1",
        solution=(0.307, 0.0361),
        check=check_gpt2,
        wrong={
            "the variance": (0.0944, 0.0361),
            "width of a head": (0.0256, 0.125),
            "std of Xavier's 2/(5d)": (0.307, math.sqrt(2 / 5 / 768)),
        },
    ),
    Exercise(
        "6.2",
        solution=math.sqrt(3 * 128) / (128 * 9),
        check=check_query_sigma,
        wrong={
            "inputs forgotten": math.sqrt(3 * 128) / 128,
            "inputs once": math.sqrt(3 * 128) / (128 * 3),
            "both σ equal": 1 / (3 * math.sqrt(128)),
            "σ_k² taken as 1/d": 1 / (9 * math.sqrt(128)),
        },
    ),
    Exercise(
        "6.3",
        solution=(4, 4, 64),
        check=check_doubling,
        wrong={
            "one matrix each": (2, 2, 8),
            "the branch through one matrix": (4, 2, 16),
            "the stream forgotten": (4, 4, 4),
            "the stream once": (4, 4, 16),
            "variances": (16, 16, 4096),
        },
    ),
    Exercise(
        "6.4",
        solution=sigma_for,
        check=check_sigma_for,
        wrong={
            "by the formula": by_the_formula,
            "returns σ_s": returns_the_std,
            "no square root": divides_by_the_width,
        },
    ),
    Exercise(
        "6.5",
        solution=({"1": 0.40, "8": 0.57, "branch": 0.44, "step": 0.62}, "step"),
        check=check_one_cause,
        wrong={
            "the branch": ({"1": 0.40, "8": 0.57, "branch": 0.44, "step": 0.62}, "branch"),
            "positions left as they were": ({"1": 0.74, "8": 0.71, "branch": 0.65, "step": 0.81}, "step"),
            "weights enlarged with the branch": ({"1": 0.40, "8": 0.57, "branch": 0.60, "step": 0.62}, "step"),
            "residual_scale forgotten": ({"1": 0.40, "8": 0.57, "branch": 0.40, "step": 0.57}, "step"),
            "weights small in the step": ({"1": 0.40, "8": 0.57, "branch": 0.44, "step": 0.40}, "step"),
            "one run missing": ({"1": 0.40, "8": 0.57, "step": 0.62}, "step"),
        },
    ),
]
