"""What the chapters measure: pure functions of tensors, which know no model."""

from __future__ import annotations

import math
from collections.abc import Callable
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attntut._checks import check_int, check_number, check_tensor
from attntut.device import seeded

EULER = 0.5772156649015329  # the mean of a standard Gumbel variable
WIDEST = 96.0  # standard deviation of logits up to which the integral of gaussian_entropy is exact

PRODUCTS = ("MmBackward0", "AddmmBackward0", "BmmBackward0", "BaddbmmBackward0", "MvBackward0", "DotBackward0")


class LogitStatistics(NamedTuple):
    """Mean, row-wise standard deviation and largest absolute value of attention logits."""

    mean: Tensor
    std: Tensor
    max: Tensor


def attention_entropy(weights: Tensor, *, normalized: bool = False, mask: Tensor | None = None) -> Tensor:
    r"""How many keys a query spreads over, in nats.

    .. math:: H_i = -\sum_j p_{ij} \ln p_{ij}, \qquad \hat H_i = H_i / \ln n

    0 when one key takes everything, :math:`\ln n` when all ``n`` keys share alike. ``exp(H)`` is an effective number
    of keys.

    Args:
        weights: ``(..., n_query, n_key)``, each row a distribution (a row of zeros counts as entropy 0).
        normalized: divide by the logarithm of the number of keys that may be seen: a share between 0 and 1. A row
            that may see at most one key has no share: NaN.
        mask: boolean, broadcasts to ``weights``; True where a query may attend. Only changes what the share is of.

    Returns:
        ``(..., n_query)``.

    Example:
        >>> attention_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([0.0000, 0.6931])
        >>> attention_entropy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), normalized=True)
        tensor([0., 1.])
    """
    _check_weights(weights)
    entropy = torch.special.entr(weights).sum(-1)  # entr(p) = −p ln p, and 0 at 0
    if not normalized:
        return entropy
    visible = torch.tensor(weights.shape[-1]) if mask is None else mask.expand(weights.shape).sum(-1)
    return torch.where(visible > 1, entropy / visible.to(weights).log(), math.nan)


def gaussian_entropy(std: float, n: int) -> float:
    r"""The mean entropy of attention over ``n`` keys whose logits are independent Gaussians, in nats: no approximation.

    .. math:: \bar H = \Bigl(1 - \sigma \frac{d}{d\sigma}\Bigr) F, \qquad
              F(\sigma) = \mathbb{E} \ln \sum_j e^{\sigma z_j} = \mathbb{E} \max_j (\sigma z_j + g_j) - \gamma

    The first is the derivative of :math:`\ln \sum_j e^{\sigma z_j}`; the second holds because standard Gumbel variables
    :math:`g_j` added to logits make their maximum a logarithm of a sum, plus a Gumbel variable whose mean is Euler's
    :math:`\gamma`. The maximum of independent numbers has a distribution that is a power, so one integral remains. For
    small :math:`\sigma` the entropy is :math:`\ln n - \sigma^2 / 2 + \sigma^2 / (2n) + \dots` For large :math:`\sigma`
    only two keys that nearly tie share a row, and such rows are as rare as :math:`1/\sigma`. So above 96, where the
    steps of the integral would be wider than a Gumbel variable, the entropy at 96 is scaled by :math:`96/\sigma`.

    Args:
        std: the standard deviation :math:`\sigma` of the logits.
        n: number of keys.

    Example:
        >>> round(gaussian_entropy(0, 16), 3), round(gaussian_entropy(1, 16), 3), round(gaussian_entropy(8, 16), 3)
        (2.773, 2.357, 0.405)
    """
    check_int("n", n)
    if check_number("std", std, low=0) > WIDEST:
        return gaussian_entropy(WIDEST, n) * WIDEST / std
    sigma = torch.tensor(float(std), dtype=torch.float64, requires_grad=True)
    z = torch.linspace(-9, 9, 901, dtype=torch.float64)
    x = torch.linspace(-9 * std - 10, 9 * std + 40, 601, dtype=torch.float64)
    gumbel = (-(sigma * z - x[:, None]).clamp(max=100).exp()).exp()  # P(σz + g ≤ x | z), (points, points)
    below = torch.trapezoid(gumbel * (-z.square() / 2).exp() / math.sqrt(2 * math.pi), z)
    largest = x[-1] - torch.trapezoid(below**n, x)  # the mean of the maximum
    (slope,) = torch.autograd.grad(largest, sigma)
    return (largest - sigma * slope).item() - EULER


def participation(weights: Tensor) -> Tensor:
    r"""The sum of squared weights, :math:`\sum_j p_{ij}^2`: 1 for one key, 1/n for n equal ones.

    It is the factor by which averaging with these weights, ``(..., n_query, n_key)``, shrinks the variance of
    independent values: ``(..., n_query)``.

    Example:
        >>> participation(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([1.0000, 0.5000])
    """
    return _check_weights(weights).square().sum(-1)


def logit_statistics(logits: Tensor) -> LogitStatistics:
    """Mean, standard deviation within a row, and largest absolute value, of the last two dimensions.

    The standard deviation is taken around each row's own mean, because a softmax does not see what a whole row shares.
    Entries of −inf (masked) are left out. Of ``(..., n_query, n_key)`` three tensors ``(...)`` are made.

    Example:
        >>> logit_statistics(torch.tensor([[0.0, 2.0], [10.0, 12.0]]))
        LogitStatistics(mean=tensor(6.), std=tensor(1.), max=tensor(12.))
    """
    check_tensor("logits", logits, min_ndim=2)
    seen = logits != -math.inf
    kept = logits.where(seen, 0)
    row_mean = kept.sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp(min=1)
    deviation = (kept - row_mean).where(seen, 0)
    total = seen.sum((-2, -1))
    return LogitStatistics(
        mean=kept.sum((-2, -1)) / total,
        std=(deviation.square().sum((-2, -1)) / total).sqrt(),
        max=kept.abs().amax((-2, -1)),
    )


def rank_residual(x: Tensor, *, relative: bool = False) -> Tensor:
    r"""How far the tokens are from being all alike.

    .. math:: r(X) = \lVert X - \mathbf 1 \bar x^\top \rVert_F, \qquad \bar x = \tfrac1n \sum_i x_i

    Dong et al. (2021) use the norm :math:`\sqrt{\lVert\cdot\rVert_1 \lVert\cdot\rVert_\infty}`, and the
    :math:`\bar x` that minimizes it; Frobenius' norm and the mean are the usual stand-ins.

    Args:
        x: ``(..., n, d)``.
        relative: divide by the norm of ``x``.

    Returns:
        ``(...)``; 0 when all tokens are equal.

    Example:
        >>> rank_residual(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor(1.4142)
    """
    check_tensor("x", x, min_ndim=2)
    residual = torch.linalg.matrix_norm(x - x.mean(-2, keepdim=True))
    return residual / torch.linalg.matrix_norm(x) if relative else residual


def token_cosine(x: Tensor) -> Tensor:
    r"""Mean cosine of the angle between two different tokens.

    .. math:: \rho = \frac{1}{n(n-1)} \sum_{i \ne j} \frac{x_i^\top x_j}{\lVert x_i\rVert \lVert x_j\rVert}

    0 for independent directions, 1 when all tokens point the same way. Noci et al. (2022) follow it through depth. Of
    ``(..., n, d)`` with ``n ≥ 2`` it makes ``(...)``.

    Example:
        >>> token_cosine(torch.tensor([[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]))
        tensor(0.3333)
    """
    check_tensor("x", x, min_ndim=2)
    n = x.shape[-2]
    if n < 2:
        raise ValueError(f"x must hold at least two tokens, to have a pair: got shape {tuple(x.shape)}.")
    unit = torch.nn.functional.normalize(x, dim=-1)
    everything = unit.sum(-2).square().sum(-1)  # Σ_ij cos_ij
    return (everything - unit.square().sum((-2, -1))) / (n * (n - 1))


def rms(x: Tensor) -> Tensor:
    r"""Root mean square of all entries, :math:`\sqrt{\operatorname{mean}(x^2)}`, a tensor of no dimension.

    Example:
        >>> rms(torch.tensor([3.0, -3.0]))
        tensor(3.)
    """
    return check_tensor("x", x).square().mean().sqrt()


def update_size(before: Tensor, after: Tensor) -> Tensor:
    r"""How much a step changed an output: :math:`\operatorname{RMS}(F(\theta - \eta g) - F(\theta))`.

    The two outputs are of the same inputs, and of any one shape; the answer is a tensor of no dimension.

    Example:
        >>> update_size(torch.zeros(4), torch.full((4,), 0.5))
        tensor(0.5000)
    """
    check_tensor("before", before), check_tensor("after", after)
    if before.shape != after.shape:
        raise ValueError(f"before and after must have one shape: got {tuple(before.shape)} and {tuple(after.shape)}.")
    return rms(after - before)


def linear_probe(train: Tensor, train_targets: Tensor, test: Tensor, test_targets: Tensor) -> float:
    r"""How well a class can be read off vectors with one linear map: the accuracy on vectors that it was not fitted to.

    .. math:: \min_B \tfrac1N \lVert Z B - Y \rVert_F^2 + 10^{-3} \lVert B \rVert_F^2

    :math:`Z` holds the training vectors, each coordinate standardized, and a column of ones; :math:`Y` has a 1 at each
    vector's class and 0 elsewhere. The answer is the largest of the outputs.

    Args:
        train: ``(N, d)``.
        train_targets: ``(N,)`` integers from 0 to the number of classes less one.
        test: ``(M, d)``.
        test_targets: ``(M,)``.

    Returns:
        The share of the test vectors whose class is read right.

    Example:
        >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
        >>> linear_probe(x, torch.tensor([0, 0, 1, 1]), torch.tensor([[-3.0], [3.0]]), torch.tensor([0, 1]))
        1.0
    """
    check_tensor("train", train, ndim=2), check_tensor("test", test, ndim=2)
    if len(train) != len(train_targets) or len(test) != len(test_targets) or train.shape[1] != test.shape[1]:
        raise ValueError(
            f"train and test must be (N, d) with N targets and one d: got {tuple(train.shape)} with "
            f"{len(train_targets)}, and {tuple(test.shape)} with {len(test_targets)}."
        )
    mean, std = train.double().mean(dim=0), train.double().std(dim=0) + 1e-9
    known, asked = (torch.nn.functional.pad((part - mean) / std, (0, 1), value=1) for part in (train, test))
    answers = torch.nn.functional.one_hot(train_targets).double()  # (N, classes)
    penalty = 1e-3 * len(known) * torch.eye(known.shape[1], dtype=known.dtype, device=known.device)
    fit = torch.linalg.solve(known.mT @ known + penalty, known.mT @ answers)  # (d + 1, classes)
    return ((asked @ fit).argmax(dim=1) == test_targets).double().mean().item()


def numbers_kept(function: Callable[[], object]) -> int:
    """How many numbers torch keeps of a forward pass so that it can go back: what makes training need more memory.

    Inputs and weights that the backward pass reads count too. A tensor and its views count once.

    Example:
        The softmax keeps its output, and adding keeps nothing:

        >>> x = torch.randn(5, 7, requires_grad=True)
        >>> numbers_kept(lambda: torch.softmax(x, dim=-1)), numbers_kept(lambda: x + x)
        (35, 0)
    """
    kept: dict[int, int] = {}  # by the address of the memory

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        kept[memory.data_ptr()] = memory.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function()  # held until all is counted, so that no address is used twice
    del output
    return sum(kept.values())


def gradient_by_distance(read: Callable[[Tensor], Tensor], x: Tensor, *, seed: int = 0) -> Tensor:
    r"""How strongly the last output depends on each token, ordered by how far back the token stands.

    .. math:: g(\Delta) = \lVert \nabla_{x_{n-\Delta}}\, u^\top y_n \rVert , \qquad u \sim \mathcal{N}(0, I)

    Args:
        read: maps ``(B, n, d)`` to outputs ``(B, n, d_out)``, or to the last one alone, ``(B, 1, d_out)``.
        x: ``(B, n, d)``.
        seed: of the directions :math:`u`, one a sequence.

    Returns:
        ``(n,)``, the mean over the sequences; entry 0 is the last token itself.

    Example:
        A running sum feels every token alike, and a window of two ends at distance 1:

        >>> sums = gradient_by_distance(lambda x: x.cumsum(dim=1), torch.randn(1, 4, 3))
        >>> pairs = gradient_by_distance(lambda x: x + x.roll(1, dims=1), torch.randn(1, 4, 3))
        >>> sums / sums[0], pairs / pairs[0]
        (tensor([1., 1., 1., 1.]), tensor([1., 1., 0., 0.]))
    """
    x = check_tensor("x", x, ndim=3).detach().clone().requires_grad_()
    last = read(x)[:, -1]  # (B, d_out)
    direction = torch.randn(last.shape, generator=seeded(seed)).to(last)
    (gradient,) = torch.autograd.grad(last, x, direction)
    return gradient.norm(dim=-1).mean(dim=0).flip(0)


def products_in_a_row(output: Tensor) -> int:
    """How many products of matrices had to wait for one another: what no parallel machine can shorten.

    It is the longest chain of products in the graph that torch keeps for the backward pass. A layer that torch runs as
    one operation (``nn.LSTM``, fused attention) is one node of that graph and hides its products. There must be inputs
    or weights that require a gradient.

    Example:
        >>> W = torch.ones(2, 2, requires_grad=True)
        >>> products_in_a_row(W @ W + W @ W), products_in_a_row(W @ (W @ W))
        (1, 2)
    """
    if check_tensor("output", output).grad_fn is None:
        raise ValueError("output must come from something that requires a gradient: it has no graph.")
    graph: dict[Any, list[Any]] = {}
    waiting: list[Any] = [output.grad_fn]
    while waiting:
        if (node := waiting.pop()) not in graph:
            graph[node] = [previous for previous, _ in node.next_functions if previous is not None]
            waiting += graph[node]
    longest: dict[Any, int] = {}
    for node in TopologicalSorter(graph).static_order():
        longest[node] = max((longest[previous] for previous in graph[node]), default=0) + (node.name() in PRODUCTS)
    return longest[output.grad_fn]


def multiply_adds(build: Callable[[], Callable[[Tensor], object]], *shape: int) -> int:
    """How many multiplications with an addition a layer takes: those of its products of matrices.

    Torch counts them on the device ``meta``, where a tensor has a shape and no numbers, so nothing is computed.

    Example:
        >>> multiply_adds(lambda: torch.nn.Linear(3, 4), 10, 3)
        120
    """
    with torch.device("meta"):
        layer, x = build(), torch.empty(*shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(x)
    return counter.get_total_flops() // 2


def _check_weights(weights: Tensor) -> Tensor:
    check_tensor("weights", weights, min_ndim=1)
    if weights.numel() and (weights.min() < 0 or weights.max() > 1 + 1e-4):
        raise ValueError(
            "weights must be probabilities, between 0 and 1 (the softmax's output, not its input): "
            f"got values from {weights.min().item():.3g} to {weights.max().item():.3g}."
        )
    return weights
