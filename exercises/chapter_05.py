"""Solutions and checks of the exercises of chapter 5, *Random initialization*."""

import math

import torch
from exercise import Exercise
from torch import Tensor


def check_zero_output(answer: set[str]) -> None:
    answer = set(answer)
    assert answer <= {"query", "key", "value", "output"}, (
        "The roles are query, key, value and output. Which do you mean?"
    )
    assert not answer & {"query", "key"}, "The chain rule carries the gradient of W_q through W_o. What is W_o?"
    assert "value" not in answer, "The gradient of W_v is W_oᵀ times something. What is that product here?"
    assert "output" in answer, "The gradient of W_o is the upstream gradient times the heads' outputs. Are those zero?"


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


def draw(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {role: torch.randn(d_model, d_model, generator=generator) / math.sqrt(d_model) for role in roles}


def draw_seeding_each(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    return {role: draw([role], d_model, seed)[role] for role in roles}


def draw_globally(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {role: torch.randn(d_model, d_model) / math.sqrt(d_model) for role in roles}


def draw_without_seed(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator()
    generator.seed()
    return {role: torch.randn(d_model, d_model, generator=generator) / math.sqrt(d_model) for role in roles}


def draw_variance_for_std(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    return {role: matrix / math.sqrt(d_model) for role, matrix in draw(roles, d_model, seed).items()}


def check_draw(answer) -> None:
    roles = ["query", "key", "value", "output"]
    before = torch.random.get_rng_state()
    first = answer(roles, 64, 3)
    untouched = torch.equal(before, torch.random.get_rng_state())
    torch.random.set_rng_state(before)
    assert list(first) == roles and all(w.shape == (64, 64) for w in first.values()), (
        "Is there one square matrix a role?"
    )
    second = answer(roles, 64, 3)
    torch.random.set_rng_state(before)
    assert all(torch.equal(first[role], second[role]) for role in roles), (
        "The same seed gave two answers. Where does the seed go?"
    )
    cosine = torch.corrcoef(torch.stack([w.flatten() for w in first.values()])).fill_diagonal_(0).abs().max()
    assert cosine < 0.1, "Two roles have the same matrix. How often is a generator made?"
    assert untouched, "torch.rand gives other numbers after your function than before. Whose generator did you seed?"
    other = answer(roles, 64, 4)
    torch.random.set_rng_state(before)
    assert not torch.equal(first["query"], other["query"]), "Another seed gave the same matrix. Is the seed used?"
    std = torch.stack(list(first.values())).std().item()
    assert math.isclose(std, 1 / 8, rel_tol=0.05), (
        "The variance is 1/d_model. What is the standard deviation for width 64?"
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
    low, top, over = accuracies
    assert top - over > 0.15, "At σ√d = 4 the Gaussian was over the edge. Has your σ reached the weights?"
    assert 0.3 < low < 0.75 and 0.4 < top < 0.8, (
        "Are these the means over five seeds, after 100 steps, of σ√d = 1, 2, 4?"
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


EXERCISES = [
    Exercise(
        "5.1",
        solution={"output"},
        check=check_zero_output,
        wrong={"all four": {"query", "key", "value", "output"}, "none": set(), "value too": {"value", "output"}},
    ),
    Exercise(
        "5.2",
        solution=(0.307, 0.0361),
        check=check_gpt2,
        wrong={
            "the variance": (0.0944, 0.0361),
            "width of a head": (0.0256, 0.125),
            "std of Xavier's 2/(5d)": (0.307, math.sqrt(2 / 5 / 768)),
        },
    ),
    Exercise(
        "5.3",
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
        "5.4",
        solution=draw,
        check=check_draw,
        wrong={
            "the trap": draw_seeding_each,
            "the global generator": draw_globally,
            "no seed": draw_without_seed,
            "variance for std": draw_variance_for_std,
        },
    ),
    Exercise(
        "5.5",
        solution=(fill, [0.48, 0.52, 0.28]),
        check=check_uniform,
        wrong={
            "a = σ": (fill_to_sigma, [0.39, 0.54, 0.55]),
            "positive only": (fill_positive, [0.48, 0.52, 0.28]),
            "still the Gaussian": (fill_gaussian, [0.58, 0.63, 0.29]),
            "σ did not change": (fill, [0.6, 0.6, 0.6]),
        },
    ),
    Exercise(
        "5.6",
        solution=sigma_for,
        check=check_sigma_for,
        wrong={
            "by the formula": by_the_formula,
            "returns σ_s": returns_the_std,
            "no square root": divides_by_the_width,
        },
    ),
]
