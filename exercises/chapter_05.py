"""Solutions and checks of the exercises of chapter 5, *Why at random?*"""

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


def check_ranks(answer: tuple[int, int]) -> None:
    query, value = answer
    assert query != 64, "Two units of one head start alike in W_q and in W_k. What could tell them apart?"
    assert query != 1, "The output matrix is random. Whom does it tell apart?"
    assert query == 8, "One row for each head is what W_q has. How many heads are there?"
    assert value == 64, "Exchanging two rows of W_v takes two columns of W_o along. Are these alike?"


def check_tenth(answer: float) -> None:
    wanted = math.sqrt(0.1 * math.sqrt(math.pi) / 256)
    assert not math.isclose(answer, 256 * wanted**2, rel_tol=0.02), "Is this s or σ?"
    assert not math.isclose(answer, wanted / math.pi**0.25, rel_tol=0.02), "Where is the √π of the total variation?"
    assert not math.isclose(answer, 16 * wanted, rel_tol=0.02), "Does s grow with d, or with its root?"
    assert math.isclose(answer, wanted, rel_tol=0.02), "What is s for a total variation of 0.1, and σ for that s?"


def check_own_logit(answer: float) -> None:
    assert answer != 16, "How wide is one of four heads?"
    assert answer != 64, "That is the squared length of a query. By what is it divided?"
    assert math.isclose(answer, 8, rel_tol=0.02), "What is the root of the width of a head?"


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


def draw_next_seed(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    return {role: draw([role], d_model, seed + index)[role] for index, role in enumerate(roles)}


def draw_for_one_width(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    return {role: matrix * math.sqrt(d_model) / 8 for role, matrix in draw(roles, d_model, seed).items()}


def draw_uniform(roles: list[str], d_model: int, seed: int) -> dict[str, Tensor]:
    generator, bound = torch.Generator().manual_seed(seed), math.sqrt(3 / d_model)
    return {role: torch.empty(d_model, d_model).uniform_(-bound, bound, generator=generator) for role in roles}


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
    assert not torch.equal(first["key"], other["query"]), (
        "A role of one seed equals another role of the next seed. Is that not the trap again?"
    )
    assert first["query"].abs().max() > 3 / 8, "No weight is three standard deviations out. Is it a Gaussian?"
    std = torch.stack(list(first.values())).std().item()
    assert math.isclose(std, 1 / 8, rel_tol=0.05), (
        "The variance is 1/d_model. What is the standard deviation for width 64?"
    )
    wide = answer(["query"], 256, 3)["query"]
    torch.random.set_rng_state(before)
    assert math.isclose(wide.std().item(), 1 / 16, rel_tol=0.05), "What is the standard deviation for width 256?"


def swap_heads(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    order = list(range(n_heads))
    order[i], order[j] = j, i
    rows = [w.view(n_heads, -1, w.shape[1])[order].reshape(w.shape) for w in (query, key, value)]
    return [*rows, output.view(output.shape[0], n_heads, -1)[:, order].reshape(output.shape)]


def swap_rows_everywhere(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    return [swap_heads(w, w, w, w, i, j, n_heads)[0] for w in (query, key, value, output)]


def swap_without_output(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    return [*swap_heads(query, key, value, output, i, j, n_heads)[:3], output.clone()]


def swap_nothing(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    return [query.clone(), key.clone(), value.clone(), output.clone()]


def swap_single_rows(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    return swap_heads(query, key, value, output, i, j, query.shape[0])


def reverse_heads(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    return swap_heads(query, key, value, output, 0, n_heads - 1, n_heads)


def swap_in_place(query, key, value, output, i: int, j: int, n_heads: int) -> list[Tensor]:
    for old, new in zip((query, key, value, output), swap_heads(query, key, value, output, i, j, n_heads), strict=True):
        old.copy_(new)
    return [query, key, value, output]


def check_swap(answer) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(12, 12, generator=generator, dtype=torch.float64) for _ in range(4)]
    x = torch.randn(5, 12, generator=generator, dtype=torch.float64)

    def layer(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        q, k, v = ((x @ w.T).view(5, 3, 4).transpose(0, 1) for w in (query, key, value))
        heads = torch.softmax(q @ k.mT / 2, dim=-1) @ v
        return heads.transpose(0, 1).reshape(5, 12) @ output.T

    kept = [w.clone() for w in weights]
    swapped = list(answer(*weights, 0, 1, 3))
    assert all(torch.equal(a, b) for a, b in zip(weights, kept, strict=True)), (
        "What became of the matrices that came in?"
    )
    assert not torch.equal(swapped[0], kept[0]), "The first head's queries are where they were. Which rows are a head?"
    assert torch.equal(swapped[0][0:4], kept[0][4:8]), "Head 1 begins at row 4 here. Which rows have you moved?"
    assert torch.equal(swapped[0][8:12], kept[0][8:12]), "Head 2 should stay where it is. Why has it moved?"
    assert torch.allclose(layer(*swapped), layer(*kept)), (
        "The function has changed. The output matrix reads the heads: are they its rows or its columns?"
    )


EXERCISES = [
    Exercise(
        "5.1",
        solution={"output"},
        check=check_zero_output,
        wrong={"all four": {"query", "key", "value", "output"}, "none": set(), "value too": {"value", "output"}},
    ),
    Exercise(
        "5.2",
        solution=(8, 64),
        check=check_ranks,
        wrong={"full": (64, 64), "one unit": (1, 64), "both by heads": (8, 8), "width of a head": (16, 64)},
    ),
    Exercise(
        "5.3",
        solution=0.0263,
        check=check_tenth,
        wrong={
            "s itself": 0.1 * math.sqrt(math.pi),
            "no √π": math.sqrt(0.1 / 256),
            "s = √d σ²": math.sqrt(0.1 * math.sqrt(math.pi) / 16) * 4,
        },
    ),
    Exercise(
        "5.4",
        solution=8.0,
        check=check_own_logit,
        wrong={"width of the model": 16.0, "not divided": 64.0, "logits of variance 1": 1.0},
    ),
    Exercise(
        "5.5",
        solution=draw,
        check=check_draw,
        wrong={
            "the trap": draw_seeding_each,
            "the global generator": draw_globally,
            "no seed": draw_without_seed,
            "variance for std": draw_variance_for_std,
            "seed + 1, + 2, …": draw_next_seed,
            "one width": draw_for_one_width,
            "uniform": draw_uniform,
        },
    ),
    Exercise(
        "5.6",
        solution=swap_heads,
        check=check_swap,
        wrong={
            "rows of the output": swap_rows_everywhere,
            "without the output": swap_without_output,
            "nothing": swap_nothing,
            "one unit each": swap_single_rows,
            "in place": swap_in_place,
            "reversed": reverse_heads,
        },
    ),
]
