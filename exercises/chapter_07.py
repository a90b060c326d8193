"""Solutions and checks of the exercises of chapter 7, *Keeping the variance*."""

import math

import torch
from exercise import Exercise
from torch import Tensor


def check_factors(answer: tuple[tuple[float, float], tuple[float, float]]) -> None:
    def close(pair: tuple[float, float], wanted: tuple[float, float]) -> bool:
        return all(math.isclose(a, b, rel_tol=0.02) for a, b in zip(pair, wanted, strict=True))

    lecun, xavier = answer
    assert not close(lecun, (1, 2)), "The question is about the variance. What did you take the root of?"
    assert not close(lecun, (4, 1)), "Which of the two fans does a signal on its way forward sum over?"
    assert close(lecun, (1, 4)), "LeCun's σ² is 1/64. What are 64 σ² and 256 σ²?"
    assert not close(xavier, (1.6, 0.4)), "Xavier's pair is right, but which factor belongs to the way forward?"
    assert close(xavier, (0.4, 1.6)), "Xavier's σ² is 2/(64 + 256). Does your pair average to 1?"


def check_value_path(answer: float) -> None:
    assert not math.isclose(answer, 1 / math.sqrt(6), rel_tol=0.02), "Is this the factor of the variance?"
    assert not math.isclose(answer, 1 / 4, rel_tol=0.02), (
        "The output projection is not in the packed matrix. What is it?"
    )
    assert not math.isclose(answer, 1 / 9, rel_tol=0.02), "The value matrix is no nn.Linear. Which rule has drawn it?"
    assert not math.isclose(answer, 1 / 3, rel_tol=0.02), (
        "Is the value matrix Xavier's for its own fans, or for the packed?"
    )
    assert math.isclose(answer, 1 / 6, rel_tol=0.02), "What is d² σ_v² σ_o², with σ_v² = 1/(2d) and σ_o² = 1/(3d)?"


def check_shared_keys(answer: float) -> None:
    wanted = math.sqrt(1.6)
    assert not math.isclose(answer, 1.6, rel_tol=0.02), "Is this the variance or the standard deviation?"
    assert not math.isclose(answer, 1, rel_tol=0.02), (
        "Xavier's rule looks at both fans. What is the fan-out of the keys?"
    )
    assert not math.isclose(answer, wanted / 2, rel_tol=0.02), "A key matrix reads 2048 numbers. Which d goes with σ_k?"
    assert math.isclose(answer, wanted, rel_tol=0.02), "What is d² σ_q² σ_k², with σ_k² = 2/(2048 + 512)?"


@torch.no_grad()
def fill_blocks(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    for block in weight.split(sizes):
        bound = math.sqrt(6 / (block.shape[0] + block.shape[1]))
        block.uniform_(-bound, bound, generator=generator)
    return weight


@torch.no_grad()
def fill_packed(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    return torch.nn.init.xavier_uniform_(weight, generator=generator)


@torch.no_grad()
def fill_equal_parts(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    for block in weight.chunk(len(sizes)):
        torch.nn.init.xavier_normal_(block, generator=generator)
    return weight


@torch.no_grad()
def fill_square(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    return weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)


@torch.no_grad()
def fill_bound_for_std(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    for block in weight.split(sizes):
        bound = math.sqrt(2 / (block.shape[0] + block.shape[1]))
        block.uniform_(-bound, bound, generator=generator)
    return weight


@torch.no_grad()
def fill_reseeding(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    for block in weight.split(sizes):
        torch.nn.init.xavier_normal_(block, generator=torch.Generator().manual_seed(0))
    return weight


@torch.no_grad()
def fill_globally(weight: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    for block in weight.split(sizes):
        torch.nn.init.xavier_normal_(block)
    return weight


def check_fill_blocks(answer) -> None:
    for sizes, fan_in, hint in [
        ([128, 128, 128], 128, "Is the fan-out that of one projection?"),
        ([256, 64, 64], 256, "With shared keys the blocks have different fans. Which are they?"),
    ]:
        before, weight, again = (
            torch.random.get_rng_state(),
            torch.zeros(sum(sizes), fan_in),
            torch.zeros(sum(sizes), fan_in),
        )
        answer(weight, sizes, torch.Generator().manual_seed(0))
        answer(again, sizes, torch.Generator().manual_seed(0))
        torch.random.set_rng_state(before)
        assert torch.equal(weight, again), "The same generator gave other numbers. Which one was used?"
        for size, block in zip(sizes, weight.split(sizes), strict=True):
            wanted, got = math.sqrt(2 / (fan_in + size)), block.std().item()
            assert not math.isclose(got * math.sqrt(3), wanted, rel_tol=0.03), (
                f"A block of {size} rows is √3 too narrow. What is the standard deviation of U(−a, a)?"
            )
            assert math.isclose(got, wanted, rel_tol=0.03), (
                f"A block of {size} rows out of {sum(sizes)} has a standard deviation of {got:.4f} for {wanted:.4f}. {hint}"
            )
        assert abs(weight.mean().item()) < 0.003, "The mean is not 0. Where does your distribution begin?"
        last, one_before = weight.split(sizes)[-1:-3:-1]
        assert not torch.equal(last, one_before), "Two blocks hold the same numbers. How often does a generator start?"


def check_head_start(answer: tuple[float, float]) -> None:
    early, late = answer
    assert max(abs(early), abs(late)) <= 1, "Is an accuracy a share or a percentage?"
    assert early > 0, (
        "Which of the two reads more digits? The gap is the loud positions' accuracy minus the quiet ones'."
    )
    assert not early < late, "The gap after 40 steps comes first. Did you exchange the two, or give accuracies?"
    assert not early > 0.6, "Is this a gap, or the accuracy of one of the two?"
    assert not early < 0.2, (
        "After 40 steps the gap is larger. Does the quieter model have positions of 0.02, and the other of 1?"
    )
    assert not late > 0.2, "After 400 steps most of the gap is gone. Did the second race have ten times as many steps?"
    assert late > -0.05, "Is the second number a gap after 400 steps, the same way round as the first?"


def _left_by_the_cut(cut: float) -> float:
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


@torch.no_grad()
def fill_truncated(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    sigma = weight.shape[1] ** -0.5 / _left_by_the_cut(cut)
    return torch.nn.init.trunc_normal_(weight, 0, sigma, -cut * sigma, cut * sigma, generator=generator)


@torch.no_grad()
def fill_uncorrected(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    sigma = weight.shape[1] ** -0.5
    return torch.nn.init.trunc_normal_(weight, 0, sigma, -cut * sigma, cut * sigma, generator=generator)


@torch.no_grad()
def fill_for_two(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    sigma = weight.shape[1] ** -0.5 / 0.8796
    return torch.nn.init.trunc_normal_(weight, 0, sigma, -cut * sigma, cut * sigma, generator=generator)


@torch.no_grad()
def fill_with_absolute_cut(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    return torch.nn.init.trunc_normal_(weight, 0, weight.shape[1] ** -0.5, -cut, cut, generator=generator)


@torch.no_grad()
def fill_with_clamp(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    sigma = weight.shape[1] ** -0.5 / _left_by_the_cut(cut)
    return weight.normal_(0, sigma, generator=generator).clamp_(-cut * sigma, cut * sigma)


@torch.no_grad()
def fill_untruncated(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    return weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)


@torch.no_grad()
def fill_truncated_globally(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    sigma = weight.shape[1] ** -0.5 / _left_by_the_cut(cut)
    return torch.nn.init.trunc_normal_(weight, 0, sigma, -cut * sigma, cut * sigma)


@torch.no_grad()
def fill_for_one_width(weight: Tensor, cut: float, generator: torch.Generator) -> Tensor:
    sigma = 1 / 20 / _left_by_the_cut(cut)
    return torch.nn.init.trunc_normal_(weight, 0, sigma, -cut * sigma, cut * sigma, generator=generator)


def check_truncated(answer) -> None:
    for cut, fan_in in ((2.0, 400), (0.5, 225), (1.0, 400), (4.0, 900)):
        weight, again = torch.zeros(800, fan_in), torch.zeros(800, fan_in)
        answer(weight, cut, torch.Generator().manual_seed(0))
        wanted = fan_in**-0.5
        sigma = wanted / _left_by_the_cut(cut)
        assert weight.abs().max() <= cut * sigma * 1.001, (
            f"With a cut of {cut} there are entries beyond it. Is your bound in multiples of the σ before the cut?"
        )
        at_the_end = (weight.abs() > 0.999 * cut * sigma).double().mean()
        assert at_the_end < 0.01, (
            "Many entries lie exactly on the bound. Does a truncated Gaussian keep its tails there?"
        )
        got = weight.std().item()
        assert math.isclose(got, wanted, rel_tol=0.01), (
            f"With a cut of {cut} and a fan-in of {fan_in} the standard deviation is {got:.4f} for {wanted:.4f}. "
            "What has the cut taken away?"
        )
        assert weight.mean().abs() < 0.02 * wanted, "The mean is not 0. Is the cut the same on both sides?"
        assert weight.abs().max() >= min(cut, 3.0) * sigma * 0.95, "Is your cut nearer than it was asked to be?"
        answer(again, cut, torch.Generator().manual_seed(0))
        assert torch.equal(weight, again), "The same generator gave other numbers. Is it used?"


EXERCISES = [
    Exercise(
        "7.1",
        solution=((1, 4), (0.4, 1.6)),
        check=check_factors,
        wrong={
            "fans exchanged": ((4, 1), (1.6, 0.4)),
            "standard deviations": ((1, 2), (0.632, 1.265)),
            "Xavier exchanged": ((1, 4), (1.6, 0.4)),
            "Xavier as for a square matrix": ((1, 4), (1, 1)),
        },
    ),
    Exercise(
        "7.2",
        solution=1 / 6,
        check=check_value_path,
        wrong={
            "standard deviation": 1 / math.sqrt(6),
            "output packed too": 1 / 4,
            "both nn.Linear": 1 / 9,
            "value not packed": 1 / 3,
            "both Xavier": 1.0,
        },
    ),
    Exercise(
        "7.3",
        solution=math.sqrt(1.6),
        check=check_shared_keys,
        wrong={
            "the variance": 1.6,
            "as if not shared": 1.0,
            "width of the keys for d": math.sqrt(1.6) / 2,
            "LeCun backward": 2.0,
        },
    ),
    Exercise(
        "7.4",
        solution=fill_blocks,
        check=check_fill_blocks,
        wrong={
            "a new generator a block": fill_reseeding,
            "the trap": fill_packed,
            "equal parts": fill_equal_parts,
            "all as square": fill_square,
            "bound for std": fill_bound_for_std,
            "the global generator": fill_globally,
        },
    ),
    Exercise(
        "7.5",
        solution=(0.37, 0.06),
        check=check_head_start,
        wrong={
            "exchanged": (0.06, 0.37),
            "40 steps twice": (0.37, 0.37),
            "the accuracies": (0.76, 0.92),
            "no positions against 0.02": (0.01, 0.0),
            "quiet minus loud": (-0.37, -0.06),
            "percent": (37.0, 6.0),
        },
    ),
    Exercise(
        "7.6",
        solution=fill_truncated,
        check=check_truncated,
        wrong={
            "the global generator": fill_truncated_globally,
            "one width": fill_for_one_width,
            "not corrected": fill_uncorrected,
            "corrected for a cut at 2 only": fill_for_two,
            "absolute cut": fill_with_absolute_cut,
            "clamped": fill_with_clamp,
            "no cut": fill_untruncated,
        },
    ),
]
