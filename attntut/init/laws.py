"""Laws: the distributions that schemes choose from. Each knows its own spread and how to fill a tensor."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from attntut._checks import check_number


@dataclass(frozen=True)
class Law(abc.ABC):
    """A distribution of the entries of a ``(fan_out, fan_in)`` matrix; its first field is their size."""

    signed: ClassVar[bool] = False  # whether the size may be negative

    def __post_init__(self) -> None:
        check_number(size := fields(self)[0].name, getattr(self, size), low=-math.inf if self.signed else 0)

    def __mul__(self, factor: float) -> Self:
        """The law of ``factor · W``, for ``factor ≥ 0``."""
        size = fields(self)[0].name
        changes: dict[str, Any] = {size: getattr(self, size) * check_number("factor", factor, low=0)}
        return replace(self, **changes)

    @property
    def mean(self) -> float:
        """The number around which all entries scatter."""
        return 0.0

    @property
    def support(self) -> float | None:
        """The largest absolute value that an entry can take; None where there is none."""
        return None

    @abc.abstractmethod
    def std(self, fan_out: int, fan_in: int) -> float:
        """Root mean square of (entry − mean), over all entries and all draws."""

    @abc.abstractmethod
    def _fill(self, tensor: Tensor, generator: torch.Generator | None) -> None: ...

    @torch.no_grad()
    def fill_(self, tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Fill ``tensor`` in place, without recording it for autograd, and return it.

        Args:
            tensor: ``(fan_out, fan_in)``, a view of any strides; the laws of independent entries take any shape.
            generator: where the random numbers come from; torch's global generator by default.
        """
        self._fill(tensor, generator)
        return tensor


@dataclass(frozen=True)
class Constant(Law):
    """Every entry the same.

    >>> Constant(0.5).fill_(torch.empty(2, 2))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """

    signed = True
    value: float = 0.0

    @property
    def mean(self) -> float:
        return self.value

    @property
    def support(self) -> float:
        return abs(self.value)

    def std(self, fan_out: int, fan_in: int) -> float:
        return 0.0

    def _fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        tensor.fill_(self.value)


@dataclass(frozen=True)
class IndependentLaw(Law):
    """Entries drawn one by one, all alike: their order in memory does not matter."""

    @abc.abstractmethod
    def _draw(self, tensor: Tensor, generator: torch.Generator | None) -> None: ...

    def _fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        if tensor.is_contiguous():
            self._draw(tensor, generator)
        elif tensor.ndim == 2 and tensor.mT.is_contiguous():
            self._draw(tensor.mT, generator)
        else:  # torch draws eight times faster into contiguous memory
            dense = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
            self._draw(dense, generator)
            tensor.copy_(dense)


@dataclass(frozen=True)
class Normal(IndependentLaw):
    r"""The Gaussian :math:`\mathcal N(0, \sigma^2)`.

    >>> (Normal(0.1) * 2).std(64, 64)
    0.2
    """

    sigma: float

    def std(self, fan_out: int, fan_in: int) -> float:
        return self.sigma

    def _draw(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        tensor.normal_(0, self.sigma, generator=generator)


@dataclass(frozen=True)
class Uniform(IndependentLaw):
    r"""Uniform between :math:`-a` and :math:`a`; its standard deviation is :math:`a/\sqrt 3`.

    >>> Uniform.of_std(1.0)
    Uniform(bound=1.732)
    """

    bound: float

    @classmethod
    def of_std(cls, std: float) -> Uniform:
        """The one with this standard deviation."""
        return cls(math.sqrt(3) * check_number("std", std, low=0))

    @property
    def support(self) -> float:
        return self.bound

    def std(self, fan_out: int, fan_in: int) -> float:
        return self.bound / math.sqrt(3)

    def _draw(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        tensor.uniform_(-self.bound, self.bound, generator=generator)


@dataclass(frozen=True)
class TruncNormal(IndependentLaw):
    r"""A Gaussian without its tails: :math:`\mathcal N(0, \sigma^2)` given that the entry is at most :math:`c\,\sigma`.

    .. math:: \text{std} = \sigma \sqrt{1 - \frac{2 c\, \varphi(c)}{2 \Phi(c) - 1}}

    0.880 σ for :math:`c = 2`. Note that ``cut`` counts multiples of σ, while :func:`torch.nn.init.trunc_normal_` takes
    absolute bounds, by default ±2: write ``cut=2 / sigma`` for what that does.

    >>> TruncNormal(0.02).std(64, 64)
    0.0176
    >>> TruncNormal.of_std(0.02).std(64, 64)
    0.02
    """

    sigma: float
    cut: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("cut", self.cut, low=0, open_low=True)

    @classmethod
    def of_std(cls, std: float, cut: float = 2.0) -> TruncNormal:
        """The one whose entries have this standard deviation after the cut."""
        return cls(check_number("std", std, low=0) / cls(1.0, cut).std(1, 1), cut)

    @property
    def support(self) -> float:
        return self.cut * self.sigma

    def std(self, fan_out: int, fan_in: int) -> float:
        density = math.exp(-(self.cut**2) / 2) / math.sqrt(2 * math.pi)
        inside = math.erf(self.cut / math.sqrt(2))
        return self.sigma * math.sqrt(1 - 2 * self.cut * density / inside)

    def _draw(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        if self.cut < 0.25:  # few draws would be kept
            nn.init.trunc_normal_(tensor, 0, self.sigma or 1, -self.support, self.support, generator=generator)
            return
        flat = tensor.normal_(0, self.sigma, generator=generator).view(-1)
        outside = (flat.abs() > self.support).nonzero()[:, 0]
        while len(outside):  # torch draws all of them again, ten times slower on a large tensor
            again = flat.new_empty(len(outside)).normal_(0, self.sigma, generator=generator)
            flat[outside] = again
            outside = outside[again.abs() > self.support]


@dataclass(frozen=True)
class MatrixLaw(Law):
    """Entries that know of each other: ``gain`` is the length of the rows, or of the columns if there are fewer."""

    gain: float = 1.0

    @property
    def support(self) -> float:
        return abs(self.gain)

    def std(self, fan_out: int, fan_in: int) -> float:
        return abs(self.gain) / math.sqrt(max(fan_out, fan_in))

    def fill_(self, tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if tensor.ndim != 2:
            raise ValueError(f"{type(self).__name__} fills matrices: got shape {tuple(tensor.shape)}.")
        return super().fill_(tensor, generator)


@dataclass(frozen=True)
class Orthogonal(MatrixLaw):
    r"""Rows, or columns if there are fewer of them, orthogonal and of length ``gain``, in random directions.

    .. math:: W W^\top = g^2 I \text{ or } W^\top W = g^2 I, \qquad
              \text{std} = g / \sqrt{\max(\text{fan\_in}, \text{fan\_out})}

    >>> w = Orthogonal(2.0).fill_(torch.empty(3, 8))
    >>> (w @ w.mT).round(decimals=3).abs()
    tensor([[4., 0., 0.],
            [0., 4., 0.],
            [0., 0., 4.]])
    """

    def _fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        dtype = torch.promote_types(tensor.dtype, torch.float32)  # no QR in half precision
        dense = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
        tensor.copy_(nn.init.orthogonal_(dense, self.gain, generator=generator))


@dataclass(frozen=True)
class Identity(MatrixLaw):
    r""":math:`g\,I`, cut or padded with zeros where the matrix is not square.

    >>> Identity().fill_(torch.empty(2, 3))
    tensor([[1., 0., 0.],
            [0., 1., 0.]])
    """

    signed = True

    def _fill(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        tensor.zero_().diagonal().fill_(self.gain)
