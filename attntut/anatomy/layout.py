"""A projection inside a parameter: a ``(fan_out, fan_in)`` matrix that shares its memory, however it is packed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Levels = tuple[tuple[int, int], ...]
"""Nested strides, the outermost first: ``((4, 48), (16, 1))`` is 0 … 15, 48 … 63, 96 …"""
Place = tuple[tuple[int, ...], tuple[int, ...], int]
"""Shape, strides and offset of a piece of a parameter, counted from the parameter's start."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """A ``(fan_out, fan_in)`` matrix in the memory of a parameter.

    Args:
        view: shares the parameter's memory; its first dimensions together are the rows, the others the columns.
        row_dims: how many of its dimensions are rows.

    Example:
        Queries, keys and values of two heads in turn, as GPT-NeoX packs them; the keys:

        >>> packed = torch.arange(12.0).repeat_interleave(4).view(12, 4)  # (2 heads · 3 · 2, 4)
        >>> key = Matrix(packed.view(2, 3, 2, 4)[:, 1], row_dims=2)
        >>> key.read()[:, 0]
        tensor([2., 3., 8., 9.])
        >>> key.write_(torch.zeros(4, 4))
        >>> packed[:, 0]
        tensor([ 0.,  1.,  0.,  0.,  4.,  5.,  6.,  7.,  0.,  0., 10., 11.])
    """

    view: Tensor
    row_dims: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """``(fan_out, fan_in)``."""
        return math.prod(self.view.shape[: self.row_dims]), math.prod(self.view.shape[self.row_dims :])

    def place_in(self, parameter: Tensor) -> str:
        """Which rows of a parameter this is, in words.

        >>> packed = torch.zeros(12, 4)
        >>> Matrix(packed.view(2, 3, 2, 4)[:, 1], row_dims=2).place_in(packed)
        '2 … 3 of every 6'
        """
        if self.view.numel() == parameter.numel():
            return "all"
        own = parameter if self.view.stride() == parameter.stride() else parameter.mT
        if self.view.ndim == own.ndim == 2 and self.row_dims == 1 and len(self.view) == len(own):
            start = (self.view.storage_offset() - parameter.storage_offset()) // own.stride(1)
            return f"all, columns {start} … {start + self.view.shape[1] - 1}"
        (*outer, (size, step)) = zip(self.view.shape[: self.row_dims], self.view.stride(), strict=False)
        start = (self.view.storage_offset() - parameter.storage_offset()) // step
        return f"{start} … {start + size - 1}" + "".join(f" of every {stride // step}" for _, stride in outer)

    def read(self) -> Tensor:
        """The matrix: a view where strides allow it, else a copy."""
        return self.view.reshape(self.shape)

    def write_(self, matrix: Tensor) -> None:
        """Put these numbers into the parameter."""
        with torch.no_grad():
            self.view.copy_(matrix.reshape(self.view.shape))

    def within(self, parameter: Tensor) -> Place:
        """Where it lies in a parameter, for :func:`at`."""
        return self.view.shape, self.view.stride(), int(self.view.storage_offset() - parameter.storage_offset())

    @property
    def is_matrix(self) -> bool:
        """Whether the memory itself is one strided matrix, so that :meth:`read` can be written to."""
        return self.read().data_ptr() == self.view.data_ptr()

    def columns(self, numbers: range) -> Matrix | None:
        """Some of the columns; None where they do not stand in one dimension."""
        one = self.view.ndim == self.row_dims + 1
        return Matrix(self.view[..., numbers.start : numbers.stop], self.row_dims) if one else None

    def rows(self, numbers: Sequence[int]) -> Matrix | None:
        """Some of the rows, in this order; None where they do not lie evenly in memory."""
        view, split = self.view, self.row_dims
        levels: Levels | None
        if split == 1 and isinstance(numbers, range):  # one piece, and perhaps a large one
            first, levels = numbers[0] * view.stride(0), ((len(numbers), numbers.step * view.stride(0)),)
        else:
            offsets = [0]
            for size, stride in zip(view.shape[:split], view.stride(), strict=False):
                offsets = [offset + i * stride for offset in offsets for i in range(size)]
            first, levels = offsets[numbers[0]], nested([offsets[number] for number in numbers])
        if levels is None:
            return None
        sizes, steps = zip(*levels, strict=True)
        shape, strides = (*sizes, *view.shape[split:]), (*steps, *view.stride()[split:])
        return Matrix(view.as_strided(shape, strides, view.storage_offset() + first), len(levels))


def at(tensor: Tensor, place: Place) -> Tensor:
    """What lies at a place of a parameter, in a tensor that has its strides: its gradient, say.

    >>> packed = torch.arange(6.0).view(3, 2)
    >>> at(10 * packed, Matrix(packed[1:], 1).within(packed))
    tensor([[20., 30.],
            [40., 50.]])
    """
    shape, stride, offset = place
    return tensor.as_strided(shape, stride, tensor.storage_offset() + offset)


def nested(offsets: Sequence[int]) -> Levels | None:
    """Nested strides that give these offsets from the first on, in this order; None if there are none.

    >>> nested([0, 1, 6, 7, 12, 13])
    ((3, 6), (2, 1))
    >>> nested([0, 1, 3]) is None
    True
    """
    if len(offsets) == 1:
        return ((1, 1),)
    stride = offsets[1] - offsets[0]
    run = next((i for i in range(1, len(offsets)) if offsets[i] - offsets[i - 1] != stride), len(offsets))
    if run == len(offsets):
        return ((run, stride),)
    if len(offsets) % run:
        return None
    heads = offsets[::run]
    if any(offsets[i] - heads[i // run] != (i % run) * stride for i in range(len(offsets))):
        return None
    outer = nested(heads)
    return None if outer is None else (*outer, (run, stride))


def find_matrix(parameter: Tensor, codes: Tensor, shape: tuple[int, int, int], *, weight_first: bool) -> Matrix | None:
    """Where the entries of a factor ``(batch, rows, columns)`` of a product lie in a parameter.

    Args:
        parameter: any shape.
        codes: of the parameter's shape: for each entry 1 + its number in the factor, 0 where it is not in there.
        shape: of the factor.
        weight_first: whether its columns, not its rows, are summed over.

    Returns:
        The matrix; the outputs of a batch stand below each other. None if the factor is no mere rearrangement.
    """
    size, flat = math.prod(shape), codes.flatten()
    order = flat.argsort()[-size:]  # the entries of the parameter in the order of the factor's
    if flat.count_nonzero() != size or not torch.equal(flat[order], torch.arange(1, size + 1).to(flat)):
        return None
    indices = torch.stack(torch.unravel_index(order, codes.shape), -1)
    offsets = (indices * torch.tensor(parameter.stride()).to(indices)).sum(-1).view(shape)
    offsets = (offsets if weight_first else offsets.mT).flatten(0, 1)  # (fan_out, fan_in)
    rows, columns = nested(offsets[:, 0].tolist()), nested(offsets[0].tolist())
    if not rows or not columns or not torch.equal(offsets, offsets[:, :1] + offsets[:1] - offsets[0, 0]):
        return None
    sizes, strides = zip(*rows, *columns, strict=True)
    start = parameter.storage_offset() + int(offsets[0, 0])
    return Matrix(parameter.detach().as_strided(sizes, strides, start), len(rows))
