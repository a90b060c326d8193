"""Numbers rounded once, where a panel is made: the page, the live widget and the picture show the same digits."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._checks import check_int

Floats = NDArray[np.float64]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def as_array(name: str, value: Any, *, ndim: int | None = None) -> Floats:
    """Return ``value`` (a list, a NumPy array, a tensor on any device) as an array of float64, not empty.

    >>> as_array("values", [1, 2], ndim=1)
    array([1., 2.])
    >>> as_array("values", [[1, 2]], ndim=1)
    Traceback (most recent call last):
    ...
    ValueError: values must have 1 dimension: got shape (1, 2).
    """
    if hasattr(value, "detach"):  # a torch tensor, whatever its device and dtype
        value = value.detach()
        value = value if value.is_complex() else value.cpu().double().numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:  # ragged lists, complex tensors on a GPU
        raise TypeError(f"{name} must be an array of numbers: {error}.") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} must be an array of real numbers: got {type(value).__name__} of {array.dtype}.")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimension{'s' * (ndim != 1)}: got shape {array.shape}.")
    if array.size == 0:
        raise ValueError(f"{name} must not be empty: got shape {array.shape}.")
    return array.astype(np.float64)


@dataclass(frozen=True)
class Rounded:
    """Numbers as they are shown.

    Attributes:
        values: any shape, rounded.
        decimals: that each of them has; negative for whole tens. None where each has so many significant digits.
        digits: significant digits of each of them, where ``decimals`` is None.
    """

    values: Floats
    decimals: int | None = None
    digits: int | None = None

    def text(self, *index: int) -> str:
        """The text of one number."""
        return show(float(self.values[index]), self.decimals, self.digits)

    def encode(self) -> dict[str, Any]:
        """What the ES module reads: a flat list, in which a string stands for what is not finite."""
        flat = self.values.ravel().tolist()
        values = [int(v) if v.is_integer() else v if math.isfinite(v) else json.dumps(v) for v in flat]
        return {"values": values, "decimals": self.decimals, "digits": self.digits}


def fixed(values: ArrayLike, digits: int, *bounds: float | None) -> Rounded:
    """Round to the same decimals everywhere: ``digits`` digits of the largest magnitude, ``bounds`` included.

    >>> fixed([0.12345, 0.0004], 3, 0.0, 1.0)
    Rounded(values=array([0.123, 0.   ]), decimals=3, digits=None)
    >>> fixed([1234567.0], 3).values.tolist()
    [1230000.0]
    """
    check_int("digits", digits, low=1, high=6)
    array = np.asarray(values, dtype=np.float64)
    ends = [abs(b) for b in bounds if b is not None]
    top = max([*ends, float(np.abs(array[np.isfinite(array)]).max(initial=0.0))])
    decimals = digits - math.ceil(math.log10(top) - 1e-12) if top > 0 else digits
    rounded = [round(v, decimals) for v in array.ravel().tolist()]
    return Rounded(np.reshape(rounded, array.shape) + 0.0, decimals=decimals)  # + 0.0: no zero has a sign


def significant(values: ArrayLike, digits: int) -> Rounded:
    """Round each number to ``digits`` significant digits.

    >>> significant([123.4, 0.00098765], 3).values.tolist()
    [123.0, 0.000988]
    """
    check_int("digits", digits, low=1, high=6)
    array = np.asarray(values, dtype=np.float64)
    rounded = [float(f"{v:.{digits - 1}e}") for v in array.ravel().tolist()]
    return Rounded(np.reshape(rounded, array.shape) + 0.0, digits=digits)


def show(value: float, decimals: int | None = None, digits: int | None = None) -> str:
    """The text of a rounded number. ``explorer.js`` has the same function, and a test compares the two.

    >>> show(0.123, 3), show(-0.5, 1), show(1230, -1), show(1.23e-6, 8), show(0, 3), show(float("nan"), 0)
    ('0.123', '−0.5', '1230', '1.23×10⁻⁶', '0.000', 'NaN')
    >>> show(0.0235, digits=3), show(1230, digits=3), show(1e9, digits=3)
    ('0.0235', '1230', '1.00×10⁹')
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    power = int(f"{value:.9e}".split("e")[1])  # of the leading digit
    if decimals is None:
        decimals = (digits or 1) - 1 - power if value else 0
    if value == 0 and decimals > 6:
        return "0"
    if power < -5 or (power > 6 and decimals < 0):
        mantissa, exponent = f"{value:.{max(0, power + decimals)}e}".split("e")
        return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPTS)}".replace("-", "−")
    return f"{value:.{max(0, decimals)}f}".replace("-", "−")
