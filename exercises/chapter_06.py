"""Solutions and checks of the exercises of chapter 6, *The Gaussian*."""

import math

import torch
from exercise import Exercise
from torch import Tensor


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


def fill(weight: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    bound = math.sqrt(3) * sigma
    return torch.nn.init.uniform_(weight, -bound, bound, generator=generator)


def fill_to_sigma(weight: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return torch.nn.init.uniform_(weight, -sigma, sigma, generator=generator)


def fill_positive(weight: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return torch.nn.init.uniform_(weight, 0, math.sqrt(12) * sigma, generator=generator)


def fill_gaussian(weight: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return torch.nn.init.normal_(weight, std=sigma, generator=generator)


def check_uniform(answer) -> None:
    function, accuracies = answer
    weight = torch.empty(200, 200)
    function(weight, 0.5, torch.Generator().manual_seed(0))
    assert abs(weight.mean().item()) < 0.02, "The mean is not 0. Where does the interval begin?"
    assert math.isclose(weight.std().item(), 0.5, rel_tol=0.02), (
        "The standard deviation is not σ. What is that of U(−a, a)?"
    )
    assert weight.abs().max() < 0.9, "A uniform distribution has an end. Where is that of yours?"
    again = torch.empty(200, 200)
    function(again, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(weight, again), "The same generator gave other numbers. Is it used?"
    top, over = accuracies
    assert top - over > 0.15, "At σ√d = 8 the Gaussian had lost much. Has your σ reached the query and key matrices?"
    assert 0.6 < top < 0.9 and 0.3 < over < 0.6, (
        "Are these the means over eight seeds, after 100 steps, of σ√d = 1 and 8 in query and key?"
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
    names = {"1", "8", "residual_scale", "frozen"}
    assert set(accuracy) == names, f"Which of {sorted(names)} is missing, or which is too many?"
    assert all(0.2 < value < 0.75 for value in accuracy.values()), (
        "Are these accuracies after 100 steps at a rate of 0.02, with positions that start at a fiftieth?"
    )
    gain = {name: value - accuracy["1"] for name, value in accuracy.items()}
    assert gain["8"] > 0.05, "Value and output at 8 were better. Were the positions made small in both groups?"
    assert gain["frozen"] > 0.05, "Have W_v and W_o kept their values? And do all other weights still learn?"
    assert gain["residual_scale"] < 0.1, "Only the branch should be large. At which scale were W_v and W_o drawn?"
    assert cause in ("branch", "step"), "Which of the two is it, 'branch' or 'step'?"
    assert cause == "step", "Which change alone does what the factor 8 did: a large branch, or weights that stay?"


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
        solution=(fill, [0.77, 0.49]),
        check=check_uniform,
        wrong={
            "a = σ": (fill_to_sigma, [0.71, 0.64]),
            "positive only": (fill_positive, [0.76, 0.42]),
            "still the Gaussian": (fill_gaussian, [0.78, 0.48]),
            "σ did not change": (fill, [0.77, 0.77]),
        },
    ),
    Exercise(
        "6.5",
        solution=sigma_for,
        check=check_sigma_for,
        wrong={
            "by the formula": by_the_formula,
            "returns σ_s": returns_the_std,
            "no square root": divides_by_the_width,
        },
    ),
    Exercise(
        "6.6",
        solution=({"1": 0.40, "8": 0.57, "residual_scale": 0.44, "frozen": 0.60}, "step"),
        check=check_one_cause,
        wrong={
            "the branch": ({"1": 0.40, "8": 0.57, "residual_scale": 0.44, "frozen": 0.60}, "branch"),
            "positions left as they were": ({"1": 0.72, "8": 0.73, "residual_scale": 0.70, "frozen": 0.72}, "step"),
            "weights enlarged with the branch": (
                {"1": 0.40, "8": 0.57, "residual_scale": 0.57, "frozen": 0.60},
                "step",
            ),
            "one run missing": ({"1": 0.40, "8": 0.57, "frozen": 0.60}, "step"),
        },
    ),
]
