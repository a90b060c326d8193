"""Numbers as integers and a power of ten: what is stored is exactly what is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FINITE, NAN, PLUS_INFINITY, MINUS_INFINITY = range(4)
LARGEST = 2**47  # six bytes with their sign: exact in a JavaScript number
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def as_array(name: str, value: Any, *, ndim: int | None = None) -> Floats:
    """Return ``value`` (a list, a NumPy array, a tensor on any device) as an array of float64.

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
    return array.astype(np.float64)


@dataclass(frozen=True)
class Quantized:
    """The numbers ``integers / 10**decimals``.

    Attributes:
        integers: any shape; 0 where a number is not finite.
        decimals: one for all, or one for each number.
        codes: the same shape; what a number that is not finite was (``NAN``, ``PLUS_INFINITY``, ``MINUS_INFINITY``).
    """

    integers: Ints
    decimals: int | Ints
    codes: Ints

    def floats(self) -> Floats:
        """The numbers that are shown."""
        numbers = self.integers / np.power(10.0, self.decimals)
        lost = np.array([0.0, np.nan, np.inf, -np.inf])
        return np.where(self.codes == FINITE, numbers, lost[self.codes])

    def show(self, *index: int) -> str:
        """The text of one number."""
        decimals = self.decimals if isinstance(self.decimals, int) else int(self.decimals[index])
        return show(int(self.integers[index]), decimals, int(self.codes[index]))


def decimals_for(top: float, digits: int) -> int:
    """Decimals that leave ``digits`` digits to the numbers of a range whose largest magnitude is ``top``.

    >>> decimals_for(1.0, 3), decimals_for(20.0, 3), decimals_for(5e6, 3)
    (3, 1, -4)
    """
    return digits - math.ceil(math.log10(top) - 1e-12) if top > 0 and math.isfinite(top) else digits


def _split(values: ArrayLike) -> tuple[Floats, Ints]:
    array = np.asarray(values, dtype=np.float64)
    codes = np.select(
        [np.isnan(array), array == np.inf, array == -np.inf], [NAN, PLUS_INFINITY, MINUS_INFINITY], FINITE
    )
    return np.where(codes == FINITE, array, 0.0), codes.astype(np.int64)


def fixed(values: ArrayLike, digits: int, *bounds: float | None) -> Quantized:
    """Round to the same decimals everywhere: ``digits`` digits of the largest magnitude, ``bounds`` included.

    >>> fixed([0.12345, 0.0004], 3, 0.0, 1.0).integers
    array([123,   0])
    """
    array, codes = _split(values)
    magnitudes = [abs(b) for b in bounds if b is not None] + [float(np.abs(array).max(initial=0.0))]
    decimals = decimals_for(max(magnitudes), digits)
    return Quantized(_round(array, decimals), decimals, codes)


def significant(values: ArrayLike, digits: int) -> Quantized:
    """Round each number to ``digits`` significant digits.

    >>> q = significant([123.4, 0.00098765], 3)
    >>> q.integers, q.decimals
    (array([123, 988]), array([0, 6]))
    """
    array, codes = _split(values)
    zero = array == 0
    decimals = digits - 1 - np.floor(np.log10(np.where(zero, 1.0, np.abs(array)))).astype(np.int64)
    integers = _round(array, decimals)
    over = np.abs(integers) >= 10**digits  # 9.999 → 10.0
    integers, decimals = np.where(over, integers // 10, integers), np.where(over, decimals - 1, decimals)
    return Quantized(integers, np.where(zero, 0, decimals), codes)


def exact(value: int) -> Quantized:
    """An integer, all its digits kept."""
    if abs(value) >= LARGEST:
        return significant([value], 6)
    return Quantized(np.array([value], dtype=np.int64), np.array([0], dtype=np.int64), np.array([FINITE]))


def _round(array: Floats, decimals: int | Ints) -> Ints:
    power = np.asarray(decimals, dtype=np.float64)
    scaled = np.where(power >= 0, array * 10.0 ** np.maximum(power, 0), array / 10.0 ** np.maximum(-power, 0))
    integers = np.rint(scaled).astype(np.int64)
    halves = (
        np.abs(np.abs(scaled - np.trunc(scaled)) - 0.5) < 1e-6
    )  # decided by all the digits, as Python's format does
    places = np.broadcast_to(power, array.shape)
    for index in zip(*np.nonzero(halves), strict=True):
        integers[index] = round(Decimal(float(array[index])).scaleb(int(places[index])))
    return integers


def show(integer: int, decimals: int, code: int = FINITE) -> str:
    """The text of ``integer / 10**decimals``. ``explorer.js`` has the same function, and a test compares the two.

    >>> show(123, 3), show(-5, 1), show(123, -1), show(123, 8), show(0, 3), show(0, 0, NAN)
    ('0.123', '−0.5', '1230', '1.23×10⁻⁶', '0.000', 'NaN')
    """
    if code != FINITE:
        return ("", "NaN", "∞", "−∞")[code]
    sign, digits = "−" * (integer < 0), str(abs(integer))
    power = len(digits) - 1 - decimals  # of the leading digit
    if integer == 0:
        return "0." + "0" * decimals if 0 < decimals <= 6 else "0"
    if power < -5 or (power > 6 and decimals < 0):
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        return f"{sign}{mantissa}×10{str(power).translate(_SUPERSCRIPTS)}"
    if decimals <= 0:
        return sign + digits + "0" * -decimals
    digits = digits.zfill(decimals + 1)
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}"
