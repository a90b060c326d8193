"""What the axes of a tensor mean, however its memory is viewed: split, merged, permuted or cut.

An axis is known by its stride in bytes: a view moves dimensions about, but not the memory beneath them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

FAR = 16.0
"""Nats below the rest of its row from which on a masked key is hidden: e⁻¹⁶ is the rounding of single precision."""

Piece = Callable[[slice, slice, int], Tensor]
"""Of sequences, rows and the first so many keys: a part ``(b, H, r, keys)``."""


class Axis(NamedTuple):
    """From this stride (in bytes) on, memory holds this; None is unknown."""

    stride: int
    role: str | None


class Part(NamedTuple):
    """What a dimension consists of, if it merges several axes; innermost first."""

    size: int
    stride: int
    role: str | None


Axes = tuple[Axis, ...]  # by growing stride


def strides(tensor: Tensor) -> list[int]:
    """In bytes."""
    return [stride * tensor.element_size() for stride in tensor.stride()]


def parts(tensor: Tensor, axes: Axes, dim: int) -> list[Part]:
    """What a dimension of a view consists of; nothing if its size is 1.

    Example:
        Heads beside features in the output of a projection, and beside the batch once both are folded into one:

        >>> y = torch.zeros(2, 5, 12)
        >>> axes = (Axis(4, "features"), Axis(48, "rows"))
        >>> parts(y.view(2, 5, 3, 4), axes, 2)
        [Part(size=3, stride=16, role='features')]
        >>> parts(y.view(2, 5, 3, 4)[:, 0].flatten(0, 1), (*axes[:1], Axis(240, "rows")), 0)
        [Part(size=6, stride=16, role='features')]
    """
    size, stride = tensor.shape[dim], tensor.stride(dim) * tensor.element_size()
    found: list[Part] = [] if size else [Part(0, stride, None)]
    while size > 1:
        role = next((axis.role for axis in reversed(axes) if axis.stride <= stride), None)
        above = next((axis.stride for axis in axes if axis.stride > stride), 0)
        fits = above // stride if stride and above % stride == 0 else 0
        if not 0 < fits < size or size % fits:
            fits = size
        found.append(Part(fits, stride, role))
        size, stride = size // fits, above
    return found


def laid(*pieces: tuple[Sequence[Part], int]) -> Axes:
    """Axes of new memory: what each dimension consists of, and its stride there."""
    found: dict[int, str | None] = {}
    for consists, stride in pieces:
        for part in consists:
            if part.size != 1:
                found.setdefault(stride, part.role)
            stride *= part.size
    return tuple(Axis(stride, found[stride]) for stride in sorted(found) if stride)


def follow(result: Tensor, source: Tensor, axes: Axes) -> tuple[Axes, dict[int, int]]:
    """The axes of what an operation without mixing made of ``source``, and where each stride has gone."""
    new, pieces, gone = strides(result), [], {}
    for dim, stride in enumerate(new):
        at = dim - result.ndim + source.ndim
        consists = parts(source, axes, at) if at >= 0 else []
        if len(consists) > 1 and source.shape[at] != result.shape[dim]:
            consists = consists[:1]
        if not consists and result.shape[dim] > 1:
            consists = [Part(result.shape[dim], stride, None)]
        pieces.append((consists, stride))
        for part in consists:
            gone[part.stride] = stride
            stride *= part.size
    return laid(*pieces), gone


@dataclass(frozen=True)
class Laid:
    """A tensor that was laid upon scores: a mask, or a number per row."""

    tensor: Tensor  # expanded to the shape that the scores had
    strides: tuple[int, ...]  # those of the scores, in bytes; where they have moved to, since
    below: float | None = None  # of an added mask: its entries up to here hide; None: boolean, True where set
    factor: float = 1.0  # what the tensor is multiplied with
    value: float | None = None  # the number that was set

    def moved(self, gone: dict[int, int]) -> Laid:
        """The same after the scores have moved to other memory; −1 stands for what is lost."""
        return replace(self, strides=tuple(gone.get(each, -1) for each in self.strides))

    def on(self, scores: Tensor, keys: int) -> Tensor | None:
        """The tensor in the shape of a view of the scores, 1 where it does not vary; None if it does not fit.

        Args:
            scores: the view.
            keys: its dimension that may have got longer since.
        """
        varying = [size > 1 and self.tensor.stride(dim) != 0 for dim, size in enumerate(self.tensor.shape)]
        order: list[int] = []
        shape: list[int] = []
        for dim, (size, stride) in enumerate(zip(scores.shape, strides(scores), strict=True)):
            within = range(stride, stride * size if stride else 1)
            inside = [each for each, at in enumerate(self.strides) if at in within and self.tensor.shape[each] > 1]
            if size == 1 or not any(varying[each] for each in inside):
                shape.append(1)
                continue
            inside.sort(key=self.strides.__getitem__, reverse=True)
            shape.append(math.prod(self.tensor.shape[each] for each in inside))
            order += inside
            if shape[-1] != size and not (dim == keys and shape[-1] < size):
                return None
        rest = [dim for dim in range(self.tensor.ndim) if dim not in order]
        if any(varying[dim] for dim in rest):
            return None
        return self.tensor.permute(*rest, *order)[(0,) * len(rest)].reshape(shape)


@torch.no_grad()
def far_below(mask: Tensor, factor: float = 1.0) -> float | None:
    """Up to which value the entries of an added mask hide; None if it hides nothing.

    A mask has two levels with nothing between: some entries lie far below the largest, and no entry at half their
    distance. What falls evenly (ALiBi) or is small (a learned bias) is a bias, and hides nothing. Minus infinity needs
    no rule.

    Example:
        >>> far_below(torch.tensor([0.0, -100.0])), far_below(torch.tensor([0.3, -1e9]))
        (-32.0, -31.7...)
        >>> far_below(-torch.arange(200.0)), far_below(torch.tensor([0.0, -3.0]))
        (None, None)
    """
    if not mask.numel() or not mask.is_floating_point():
        return None
    low, high = (factor * each.item() for each in torch.aminmax(mask))
    low, high = min(low, high), max(low, high)
    if not high - low > FAR or high == math.inf:
        return None
    octaves: set[float] = set()
    once = mask[tuple(slice(None) if stride else slice(1) for stride in mask.stride())]
    for part in once.reshape(-1).split(2**18):
        distance = high - part.float() * factor
        octaves |= set(distance[distance < math.inf].clamp_(min=1).log2_().floor_().unique().tolist())
    empty = math.log2(FAR)
    while empty in octaves:
        empty += 1
    return high - 2 ** (empty + 1) if octaves and max(octaves) > empty else None


def two_levels(mask: Tensor) -> tuple[float, float] | None:
    """The two values of a mask one of which is 0, the lower first; None if it holds others.

    A tensor that learns, or one of fewer than 3 keys, is no mask: a bias may look so by chance.

    Example:
        >>> two_levels(torch.tensor([1.0, 0.0, 1.0])), two_levels(torch.tensor([0.0, -1e-9, 0.0]))
        ((0.0, 1.0), (-1e-09..., 0.0))
        >>> two_levels(-torch.arange(3.0)), two_levels(torch.zeros(3))
        (None, None)
    """
    if not mask.ndim or mask.shape[-1] < 3 or not mask.numel() or mask.is_complex() or mask.requires_grad:
        return None
    once = mask.detach()[tuple(slice(None) if stride else slice(1) for stride in mask.stride())]
    low, high = (each.item() for each in torch.aminmax(once))
    is_mask = low < high and 0 in (low, high) and bool(((once == low) | (once == high)).all())
    return (float(low), float(high)) if is_mask else None


ORDER = ("batch", "heads", "queries", "attended")


def counts(layout: Sequence[Sequence[Part]]) -> tuple[int, int]:
    """How many dimensions of batch and of heads :func:`arranged` gives, at least one each."""
    roles = [part.role for each in layout for part in each]
    return max(1, roles.count("batch")), max(1, roles.count("heads"))


def arranged(tensor: Tensor, layout: Sequence[Sequence[Part]]) -> Tensor:
    """A view ``(batch …, heads …, queries …, attended)``, with one dimension at least of each.

    Args:
        tensor: any shape.
        layout: what each dimension consists of, innermost first, by the roles of :data:`ORDER`.
    """
    flat = [part for each in layout for part in reversed(each)]
    roles = [ORDER.index(str(part.role)) for part in flat]
    view = tensor.view([part.size for part in flat]).permute(sorted(range(len(flat)), key=roles.__getitem__))
    for role in range(3):
        if role not in roles:
            view = view.unsqueeze(sum(each < role for each in roles) + sum(each not in roles for each in range(role)))
    return view


def piece_of(tensor: Tensor, n_batch: int, n_heads: int) -> Piece:
    """Parts of a tensor ``(batch …, heads …, n, m)`` with so many dimensions of batch and heads, at least one each."""
    if (n_batch, n_heads) == (1, 1):
        return lambda sequences, rows, keys: tensor[sequences, :, rows, :keys]

    def piece(sequences: slice, rows: slice, keys: int) -> Tensor:
        index = torch.arange(sequences.start, sequences.stop, device=tensor.device)
        part = tensor[..., rows, :keys][torch.unravel_index(index, tensor.shape[:n_batch])]
        return part.flatten(1, n_heads)

    return piece
