"""What the chapters measure: pure functions of tensors, which know no model."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attntut._checks import check_choice, check_tensor

ROLES: Mapping[str, tuple[str, ...]] = {
    "query": ("*.query.weight",),
    "key": ("*.key.weight",),
    "value": ("*.value.weight",),
    "output": ("*.attention.output.weight",),
    "feed_forward_in": ("*.feed_forward.0.weight",),
    "feed_forward_out": ("*.feed_forward.2.weight",),
    "embedding": ("embedding.weight",),
    "readout": ("readout.weight",),
}


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


def participation(weights: Tensor) -> Tensor:
    r"""The sum of squared weights, :math:`\sum_j p_{ij}^2`: 1 for one key, 1/n for n equal ones.

    It is the factor by which averaging with these weights shrinks the variance of independent values.

    Args:
        weights: ``(..., n_query, n_key)``.

    Returns:
        ``(..., n_query)``.

    Example:
        >>> participation(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
        tensor([1.0000, 0.5000])
    """
    return _check_weights(weights).square().sum(-1)


def logit_statistics(logits: Tensor) -> LogitStatistics:
    """Mean, standard deviation within a row, and largest absolute value, of the last two dimensions.

    The standard deviation is taken around each row's own mean, because a softmax does not see what a whole row shares.
    Entries of −inf (masked) are left out.

    Args:
        logits: ``(..., n_query, n_key)``.

    Returns:
        Three tensors of shape ``(...)``.

    Example:
        >>> logit_statistics(torch.tensor([[0.0, 2.0], [10.0, 12.0]]))
        LogitStatistics(mean=tensor(6.), std=tensor(1.), max=tensor(12.))
    """
    check_tensor("logits", logits, min_ndim=2)
    seen = logits != -math.inf
    count = seen.sum(-1).clamp(min=1)
    kept = logits.where(seen, 0)
    row_mean = kept.sum(-1) / count
    deviation = (kept - row_mean[..., None]).where(seen, 0)
    total = seen.sum((-2, -1))
    return LogitStatistics(
        mean=kept.sum((-2, -1)) / total,
        std=(deviation.square().sum((-2, -1)) / total).sqrt(),
        max=kept.abs().amax((-2, -1)),
    )


def rank_residual(x: Tensor, *, norm: str = "frobenius", relative: bool = False) -> Tensor:
    r"""How far the tokens are from being all alike.

    .. math:: r(X) = \lVert X - \mathbf 1 \bar x^\top \rVert, \qquad \bar x = \tfrac1n \sum_i x_i

    Dong et al. (2021) use :math:`\sqrt{\lVert\cdot\rVert_1 \lVert\cdot\rVert_\infty}`, called ``"composite"`` here.
    Their :math:`\bar x` minimizes that norm; the mean is its usual stand-in.

    Args:
        x: ``(..., n, d)``.
        norm: ``"frobenius"`` or ``"composite"``.
        relative: divide by the same norm of ``x``.

    Returns:
        ``(...)``; 0 when all tokens are equal.

    Example:
        >>> rank_residual(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor(1.4142)
    """
    check_tensor("x", x, min_ndim=2)
    check_choice("norm", norm, ("frobenius", "composite"))
    size = _composite_norm if norm == "composite" else torch.linalg.matrix_norm
    residual = size(x - x.mean(-2, keepdim=True))
    return residual / size(x) if relative else residual


def token_cosine(x: Tensor) -> Tensor:
    r"""Mean cosine of the angle between two different tokens.

    .. math:: \rho = \frac{1}{n(n-1)} \sum_{i \ne j} \frac{x_i^\top x_j}{\lVert x_i\rVert \lVert x_j\rVert}

    0 for independent directions, 1 when all tokens point the same way. Noci et al. (2022) follow it through depth.

    Args:
        x: ``(..., n, d)`` with ``n ≥ 2``.

    Returns:
        ``(...)``.

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


def rms_by_depth(stream: Sequence[Tensor]) -> Tensor:
    """The scale of the residual stream after each block.

    Args:
        stream: one ``(B, T, d_model)`` a depth, as in :class:`~attntut.transformer.Trace`.

    Returns:
        ``(len(stream),)``.

    Example:
        >>> rms_by_depth([torch.ones(2, 3, 4), 2 * torch.ones(2, 3, 4)])
        tensor([1., 2.])
    """
    if not stream:
        raise ValueError("stream must hold at least one tensor: got none.")
    return torch.stack([rms(x) for x in stream])


def gradient_norms(
    named_parameters: Iterable[tuple[str, Tensor]], roles: Mapping[str, Iterable[str]] = ROLES
) -> dict[str, float]:
    r"""The Frobenius norm of the gradient, summed over all the parameters of a role.

    .. math:: \lVert \nabla_\text{role} \rVert = \sqrt{\textstyle\sum_{W \in \text{role}} \lVert \nabla_W \rVert_F^2}

    Args:
        named_parameters: as ``model.named_parameters()`` gives them, after a backward pass.
        roles: for each role, the patterns of the names that belong to it (as in :mod:`fnmatch`). The default fits
            ``attntut``'s models with separate projections.

    Returns:
        Role to norm, for the roles that occur. A parameter without a gradient counts as 0.

    Raises:
        ValueError: no parameter matches any role.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2, 2))
        >>> weight.sum().backward()
        >>> gradient_norms([("blocks.0.attention.query.weight", weight)])
        {'query': 2.0}
    """
    squares: dict[str, float] = {}
    names = []
    for name, parameter in named_parameters:
        names.append(name)
        for role, patterns in roles.items():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                gradient = parameter.grad
                squares[role] = squares.get(role, 0.0) + (0.0 if gradient is None else gradient.square().sum().item())
    if not squares:
        raise ValueError(f"No parameter matches the patterns of any role ({', '.join(roles)}): got {', '.join(names)}.")
    return {role: math.sqrt(squares[role]) for role in roles if role in squares}


def update_size(before: Tensor, after: Tensor) -> Tensor:
    r"""How much a step changed an output: :math:`\operatorname{RMS}(F(\theta - \eta g) - F(\theta))`.

    Args:
        before: the output before the step, any shape.
        after: the output after it, on the same inputs; the same shape.

    Returns:
        A tensor of no dimension.

    Example:
        >>> update_size(torch.zeros(4), torch.full((4,), 0.5))
        tensor(0.5000)
    """
    check_tensor("before", before)
    check_tensor("after", after)
    if before.shape != after.shape:
        raise ValueError(f"before and after must have one shape: got {tuple(before.shape)} and {tuple(after.shape)}.")
    return rms(after - before)


def _composite_norm(x: Tensor) -> Tensor:
    columns, rows = x.abs().sum(-2).amax(-1), x.abs().sum(-1).amax(-1)  # the 1-norm and the ∞-norm
    return (columns * rows).sqrt()


def _check_weights(weights: Tensor) -> Tensor:
    check_tensor("weights", weights, min_ndim=1)
    if weights.numel() and (weights.min() < 0 or weights.max() > 1 + 1e-4):
        raise ValueError(
            "weights must be probabilities, between 0 and 1 (the softmax's output, not its input): "
            f"got values from {weights.min().item():.3g} to {weights.max().item():.3g}."
        )
    return weights
