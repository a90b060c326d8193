"""Solutions and checks of the exercises of chapter 3, *Joint representation and heads*."""

import torch
from exercise import Exercise
from torch import Tensor, nn

from attntut import MultiHeadAttention, TransformerBlock, TransformerConfig


def check_costs(answer: tuple[int, int, int, int]) -> None:
    eight, sixteen, weights_of_eight, weights_of_sixteen = answer
    assert eight == sixteen, "Twice as many heads, each half as wide. What happens to the size of the four matrices?"
    assert eight != 3 * (512**2 + 512), "What joins the heads again?"
    assert eight != 4 * 512**2, "Does each of the four maps have a bias?"
    assert eight == 4 * (512**2 + 512), "What is the shape of each of the four matrices, whatever the number of heads?"
    assert weights_of_eight != weights_of_sixteen, "Does a map of a narrow head have fewer rows or columns?"
    assert weights_of_eight == 8 * 1024**2, "How many queries meet how many keys, and in how many heads?"
    assert weights_of_sixteen == 16 * 1024**2, "How many maps do sixteen heads have?"


def check_places(answer: tuple[list[int], list[int]]) -> None:
    plain, causal = (sorted(part) for part in answer)
    assert plain == [0, 2, 3], "Without a mask every place sees one bag. What else does the output depend on?"
    assert causal == [], "The mask lets each place see another bag. How many a and b does each one see?"


def post_ln(block: nn.Module, x: Tensor) -> Tensor:
    x = block.attention_norm(x + block.attention(x))
    return block.feed_forward_norm(x + block.feed_forward(x))


def pre_ln(block: nn.Module, x: Tensor) -> Tensor:
    x = x + block.attention(block.attention_norm(x))
    return x + block.feed_forward(block.feed_forward_norm(x))


def norm_of_the_branch(block: nn.Module, x: Tensor) -> Tensor:
    x = x + block.attention_norm(block.attention(x))
    return x + block.feed_forward_norm(block.feed_forward(x))


def norms_on_both_sides(block: nn.Module, x: Tensor) -> Tensor:
    x = block.attention_norm(x + block.attention(block.attention_norm(x)))
    return block.feed_forward_norm(x + block.feed_forward(block.feed_forward_norm(x)))


def norms_exchanged(block: nn.Module, x: Tensor) -> Tensor:
    x = block.feed_forward_norm(x + block.attention(x))
    return block.attention_norm(x + block.feed_forward(x))


def one_norm_at_the_end(block: nn.Module, x: Tensor) -> Tensor:
    x = x + block.attention(x)
    return block.feed_forward_norm(x + block.feed_forward(x))


def check_post_ln(answer) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = dict(n_classes=2, d_input=4, d_model=8, n_heads=2)
        block = TransformerBlock(TransformerConfig(**shape))
        wanted = TransformerBlock(TransformerConfig(**shape, norm="post"))
        for norm in (block.attention_norm, block.feed_forward_norm):  # trained norms are not alike
            nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
        wanted.load_state_dict(block.state_dict())
        x = 3 * torch.randn(2, 5, 8) + 1
    with torch.no_grad():
        y, right = answer(block, x), wanted(x)
        assert y.shape == x.shape, "Does the stream keep its shape?"
        assert not torch.allclose(y, block(x), atol=1e-4), "This is pre-LN still. What does a branch read in post-LN?"
        assert not torch.allclose(y, norms_exchanged(block, x), atol=1e-4), "Which norm belongs to which branch?"
        assert not torch.allclose(y, norm_of_the_branch(block, x), atol=1e-4), (
            "Here the branch goes through the norm, and the stream past it. Which sum should be normalized?"
        )
        assert torch.allclose(y, right, atol=1e-4), (
            "How many norms does x pass on its way through the block, and where does each of them stand?"
        )


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
    generator = torch.Generator().manual_seed(0)
    return all(_reordered(layer, x, torch.randperm(x.shape[1], generator=generator)) for _ in range(10))


def reversal_only(layer, x: Tensor) -> bool:
    return _reordered(layer, x, torch.arange(x.shape[1] - 1, -1, -1))


def two_tokens_only(layer, x: Tensor) -> bool:
    return _reordered(layer, x, torch.tensor([1, 0, *range(2, x.shape[1])]))


def nearly(layer, x: Tensor) -> bool:
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=0.1)


def shift_only(layer, x: Tensor) -> bool:
    return _reordered(layer, x, torch.arange(x.shape[1]).roll(1))


def invariant(layer, x: Tensor) -> bool:
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0))
    return torch.allclose(layer(x[:, order]), layer(x), atol=1e-4)


def to_the_last_bit(layer, x: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(x.shape[1], generator=generator) for _ in range(10)]
    return all(torch.equal(layer(x[:, order]), layer(x)[:, order]) for order in orders)


class _Smooth(nn.Module):
    """A circular convolution along the tokens; its kernel is symmetric."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 + (x.roll(1, dims=1) + x.roll(-1, dims=1)) / 4


class _Placed(nn.Module):
    """Adds to each token a vector of its place."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[1])[:, None]


class _Faint(nn.Module):
    """Adds a little to the token in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        mark = torch.zeros(x.shape[1], 1)
        mark[x.shape[1] // 2] = 0.02
        return x + mark


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
        assert not answer(_Faint(), x), (
            "This layer treats one token in the middle a little differently. Which tokens moved, and how far apart may "
            "results lie?"
        )


EXERCISES = [
    Exercise(
        "3.1",
        solution=(1_050_624, 1_050_624, 8_388_608, 16_777_216),
        check=check_costs,
        wrong={
            "no output matrix": (787_968, 787_968, 8_388_608, 16_777_216),
            "no biases": (1_048_576, 1_048_576, 8_388_608, 16_777_216),
            "grows with the heads": (1_050_624, 2_101_248, 8_388_608, 16_777_216),
            "one matrix": (262_656, 262_656, 8_388_608, 16_777_216),
            "maps are free": (1_050_624, 1_050_624, 1_048_576, 1_048_576),
            "one map more": (1_050_624, 1_050_624, 1_048_576, 2_097_152),
        },
    ),
    Exercise(
        "3.2",
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
        "3.3",
        solution=post_ln,
        check=check_post_ln,
        wrong={
            "pre-LN": pre_ln,
            "norm of the branch": norm_of_the_branch,
            "norms on both sides": norms_on_both_sides,
            "norms exchanged": norms_exchanged,
            "one norm at the end": one_norm_at_the_end,
        },
    ),
    Exercise(
        "3.4",
        solution=best_share,
        check=check_share,
        wrong={
            "always half": lambda a, b: 0.5,
            "signs ignored": lambda a, b: max(a**2, b**2) / (a**2 + b**2),
            "looks left": lambda a, b: 1.0 if a * b >= 0 else a**2 / (a**2 + b**2),
        },
    ),
    Exercise(
        "3.5",
        solution=is_equivariant,
        check=check_equivariance,
        wrong={
            "reversal only": reversal_only,
            "shift only": shift_only,
            "two tokens only": two_tokens_only,
            "nearly equal": nearly,
            "invariance": invariant,
            "to the last bit": to_the_last_bit,
        },
    ),
]
