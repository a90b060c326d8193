"""Solutions and checks of the exercises of chapter 3, *Joint representation and heads*."""

import torch
from exercise import Exercise
from torch import Tensor, nn

from attntut import MultiHeadAttention


def check_parameters(answer: tuple[int, int]) -> None:
    eight, sixteen = answer
    assert eight == sixteen, "Twice as many heads, each half as wide. What happens to the size of the four matrices?"
    assert eight != 3 * (512**2 + 512), "What joins the heads again?"
    assert eight != 4 * 512**2, "Does each of the four maps have a bias?"
    assert eight == 4 * (512**2 + 512), "What is the shape of each of the four matrices, whatever the number of heads?"


def check_ranks(answer: tuple[int, int]) -> None:
    one, together = answer
    assert one == 4, "How wide is a head, and how many rows has its W_q?"
    assert together == 64, "Sixteen matrices of that rank, each from other rows. How large can the rank of the sum be?"


def check_places(answer: tuple[list[int], list[int]]) -> None:
    plain, causal = (sorted(part) for part in answer)
    assert plain == [0, 2, 3], "Without a mask every place sees one bag. What else does the output depend on?"
    assert causal == [], "The mask lets each place see another bag. How many a and b does each one see?"


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    B, T, d = x.shape
    return x.view(B, T, n_heads, d // n_heads).transpose(1, 2)


def check_split(answer) -> None:
    x = torch.arange(2 * 3 * 8.0).view(2, 3, 8)
    heads = answer(x, 4)
    assert heads.shape == (2, 4, 3, 2), "Which four sizes are asked for, and in which order?"
    for h in range(4):
        expected = x[:, :, 2 * h : 2 * h + 2]
        assert heads[:, h].sum() == expected.sum(), (
            "Which columns belong to this head? Do other tokens or columns come in?"
        )
        assert torch.equal(heads[:, h], expected), "Does each token keep its own row in each head?"


def best_share(a: float, b: float) -> float:
    return 1.0 if a * b >= 0 else max(a**2, b**2) / (a**2 + b**2)


def check_share(answer) -> None:
    for a, b in ((1, 1), (2, 3), (-1, -4), (0, 2)):
        assert abs(answer(a, b) - 1) < 1e-9, f"a = {a}, b = {b}: which weights and which factor give both at once?"
    for a, b, share in ((1, -1, 1 / 2), (2, -1, 4 / 5), (-1, 3, 9 / 10)):
        assert abs(answer(a, b) - share) < 1e-9, f"a = {a}, b = {b}: which of the two places is it better to look at?"


def _reordered(layer, x: Tensor, order: Tensor) -> bool:
    return torch.allclose(layer(x[:, order]), layer(x)[:, order], rtol=1e-4, atol=1e-4)


def is_equivariant(layer, x: Tensor) -> bool:
    draw = torch.Generator().manual_seed(0)
    return all(_reordered(layer, x, torch.randperm(x.shape[1], generator=draw)) for _ in range(10))


def reversal_only(layer, x: Tensor) -> bool:
    return _reordered(layer, x, torch.arange(x.shape[1] - 1, -1, -1))


def shift_only(layer, x: Tensor) -> bool:
    return _reordered(layer, x, torch.arange(x.shape[1]).roll(1))


def invariant(layer, x: Tensor) -> bool:
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.allclose(layer(x[:, order]), layer(x), atol=1e-4)


def to_the_last_bit(layer, x: Tensor) -> bool:
    draw = torch.Generator().manual_seed(0)
    orders = [torch.randperm(x.shape[1], generator=draw) for _ in range(10)]
    return all(torch.equal(layer(x[:, order]), layer(x)[:, order]) for order in orders)


class _Smooth(nn.Module):
    """A circular convolution along the tokens; its kernel is symmetric."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 + (x.roll(1, dims=1) + x.roll(-1, dims=1)) / 4


class _Placed(nn.Module):
    """Adds to each token a vector of its place."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[1])[:, None]


def check_equivariance(answer) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention, causal = MultiHeadAttention(16, 4), MultiHeadAttention(16, 4, is_causal=True)
        mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        x = torch.randn(3, 50, 16)
    with torch.no_grad():
        assert answer(mlp, x), "Each token is treated alone. With what do you compare the layer's output?"
        assert answer(attention, x), (
            "Attention without a mask. With what do you compare, and how exactly can float32 sums agree?"
        )
        assert not answer(causal, x), (
            "A causal layer treats the first token unlike the last. Did you reorder the output too?"
        )
        assert not answer(_Placed(), x), "This layer adds a vector of the place. Did the tokens change places at all?"
        assert not answer(_Smooth(), x), (
            "This convolution commutes with reversals and shifts. Which other orders are there?"
        )


EXERCISES = [
    Exercise(
        "3.1",
        solution=(1_050_624, 1_050_624),
        check=check_parameters,
        wrong={
            "no output matrix": (787_968, 787_968),
            "no biases": (1_048_576, 1_048_576),
            "grows with the heads": (1_050_624, 2_101_248),
            "one matrix": (262_656, 262_656),
        },
    ),
    Exercise(
        "3.2",
        solution=(4, 64),
        check=check_ranks,
        wrong={"number of heads": (16, 64), "full rank": (64, 64), "the sum gains nothing": (4, 4)},
    ),
    Exercise(
        "3.3",
        solution=([0, 2, 3], []),
        check=check_places,
        wrong={
            "a mask changes nothing": ([0, 2, 3], [0, 2, 3]),
            "order is seen": ([], []),
            "neighbours": ([0, 2, 3], [2, 3]),
            "the bag alone": ([0, 1, 2, 3], []),
        },
    ),
    Exercise(
        "3.4",
        solution=split_heads,
        check=check_split,
        wrong={
            "one view": lambda x, h: x.view(x.shape[0], h, x.shape[1], -1),
            "heads interleaved": lambda x, h: x.view(*x.shape[:2], -1, h).permute(0, 3, 1, 2),
            "not transposed": lambda x, h: x.view(*x.shape[:2], h, -1),
        },
    ),
    Exercise(
        "3.5",
        solution=best_share,
        check=check_share,
        wrong={
            "always half": lambda a, b: 0.5,
            "signs ignored": lambda a, b: max(a**2, b**2) / (a**2 + b**2),
            "looks left": lambda a, b: 1.0 if a * b >= 0 else a**2 / (a**2 + b**2),
        },
    ),
    Exercise(
        "3.6",
        solution=is_equivariant,
        check=check_equivariance,
        wrong={
            "reversal only": reversal_only,
            "shift only": shift_only,
            "invariance": invariant,
            "to the last bit": to_the_last_bit,
        },
    ),
]
