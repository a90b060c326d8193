"""What the function of an explorer returns: a heat map, lines, bars, a histogram, a number.

A panel is checked and its numbers are rounded where it is made, so that an error points at the line of the chapter that
made it, and the live widget, the page and the picture all show the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_choice, check_int, check_number
from .rounding import Floats, Rounded, as_array, fixed, show, significant

SCALES = ("linear", "log")
LEAST_OF_SCALE = 0.05  # a map that uses less of its colours is one colour to the eye
EXACT = 10**14  # integers below it keep all their digits


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One thing that an explorer shows."""

    kind: ClassVar[str]
    unit: str

    def __post_init__(self) -> None:
        for name in ("unit", "xlabel", "ylabel"):
            check_text(name, getattr(self, name, ""))
        for name in ("xscale", "yscale"):
            check_choice(name, getattr(self, name, "linear"), SCALES)

    def signature(self) -> tuple[Any, ...]:
        """What may not change from one state of the controls to another."""
        return (self.kind, getattr(self, "series", ()))

    def encode(self) -> dict[str, Any]:
        """The panel as JSON: what the ES module draws."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {name: value.encode() if isinstance(value, Rounded) else value for name, value in values.items()}
        return {"kind": self.kind, **plain}

    def blank(self) -> str:
        """Why there is nothing to see, or an empty string."""
        return ""


@dataclass(frozen=True, kw_only=True)
class HeatMap(Panel):
    """A matrix as colours. Made by :func:`heat_map`."""

    kind: ClassVar[str] = "heat_map"
    values: Rounded  # (rows, columns)
    low: float
    high: float
    xlabel: str
    ylabel: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    diverging: bool

    def blank(self) -> str:
        values = self.values.values
        seen = np.clip(values[np.isfinite(values)], self.low, self.high)
        if values.size < 2 or (seen.size and np.ptp(seen) >= LEAST_OF_SCALE * (self.high - self.low)):
            return ""
        if not seen.size:
            return "every cell is a gap"
        scale = f"a scale from {self.low:g} to {self.high:g}"
        return f"all cells lie between {seen.min():.3g} and {seen.max():.3g} of {scale}"


@dataclass(frozen=True, kw_only=True)
class Lines(Panel):
    """Curves over a common axis. Made by :func:`lines`."""

    kind: ClassVar[str] = "lines"
    x: Rounded  # (points,)
    y: Rounded  # (series, points)
    series: tuple[str, ...]
    styles: tuple[str, ...]  # line, dashed or points, for each series
    low: float | None
    high: float | None
    xlabel: str
    ylabel: str
    xscale: str
    yscale: str

    def blank(self) -> str:
        return _outside(self.y.values, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Bars(Panel):
    """One bar for each name. Made by :func:`bars`."""

    kind: ClassVar[str] = "bars"
    values: Rounded  # (names,)
    names: tuple[str, ...]
    low: float | None
    high: float | None
    xlabel: str
    ylabel: str
    yscale: str

    def blank(self) -> str:
        values = self.values.values
        return "every bar has the height 0" if not values.any() else _outside(values, None, None)


@dataclass(frozen=True, kw_only=True)
class Histogram(Panel):
    """The density of samples, with curves to compare it to. Made by :func:`histogram`."""

    kind: ClassVar[str] = "histogram"
    edges: Rounded  # (bins + 1,)
    density: Rounded  # (bins,)
    curves: Rounded  # (curves, points), at equal distances from the first edge to the last
    series: tuple[str, ...]
    top: float | None
    xlabel: str
    ylabel: str

    def blank(self) -> str:
        return "no sample lies between low and high" if not self.density.values.any() else ""


@dataclass(frozen=True, kw_only=True)
class Number(Panel):
    """One number as text, in large type, and beside it what was predicted. Made by :func:`number`."""

    kind: ClassVar[str] = "number"
    value: str
    predicted: str | None = None

    @property
    def parts(self) -> list[str]:
        """The number and its unit; and, if there is one, the prediction with its name."""
        return [f"{self.value} {self.unit}".strip(), *([f"predicted {self.predicted}"] if self.predicted else [])]


def _outside(values: Floats, low: float | None, high: float | None) -> str:
    inside = np.isfinite(values)
    inside &= values >= (-math.inf if low is None else low)
    inside &= values <= (math.inf if high is None else high)
    return "" if inside.any() else "no value is a number within its axis"


# -- what chapters call -----------------------------------------------------------------------------------------------


def heat_map(
    values: Any,
    *,
    xlabel: str = "column",
    ylabel: str = "row",
    rows: Iterable[object] | None = None,
    columns: Iterable[object] | None = None,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    digits: int = 3,
    diverging: bool = False,
) -> HeatMap:
    """A matrix as colours, row 0 at the top. NaN and infinities are gaps.

    Args:
        values: ``(rows, columns)``.
        xlabel, ylabel: what a column is, and what a row is.
        rows, columns: their names (tokens, say); their numbers from 0 by default.
        low: where the colours begin; the smallest value by default, which may differ from state to state. A map that
            is constant has the colour in the middle.
        high: where the colours end; the largest value by default.
        unit: of the values.
        digits: digits of the largest value (or bound) that are kept; fewer make a lighter page.
        diverging: blue below zero, white at zero, orange above.

    Example:
        >>> heat_map([[0.25, 0.75], [1.0, 0.0]], xlabel="key", ylabel="query", low=0, high=1).values.text(0, 1)
        '0.750'
    """
    array = as_array("values", values, ndim=2)
    low, high = _check_bounds(low, high)
    finite = array[np.isfinite(array)] if np.isfinite(array).any() else np.zeros(1)
    if diverging and low is None and high is None and finite.any():
        high = float(np.abs(finite).max())
        low = -high
    ends = float(finite.min()) if low is None else low, float(finite.max()) if high is None else high
    if not ends[0] < ends[1]:  # a constant, or nothing within the one bound that was given
        middle = next(x for x in (low, high, ends[0]) if x is not None)
        room = abs(middle) or 1.0
        ends = (middle - room if low is None else low, middle + room if high is None else high)
    low, high = ends
    return HeatMap(
        values=fixed(array, digits, low, high),
        low=_short(low),
        high=_short(high),
        unit=unit,
        xlabel=xlabel,
        ylabel=ylabel,
        rows=_check_names("rows", rows, array.shape[0]),
        columns=_check_names("columns", columns, array.shape[1]),
        diverging=bool(diverging),
    )


def lines(
    x: Any,
    y: Any,
    *,
    xlabel: str = "",
    ylabel: str = "",
    low: float | None = None,
    high: float | None = None,
    xscale: str = "linear",
    yscale: str = "linear",
    points: Sequence[str] = (),
    dashed: Sequence[str] = (),
    unit: str = "",
    digits: int = 4,
) -> Lines:
    """Curves over one axis. NaN breaks a curve.

    Args:
        x: ``(points,)``, shared by the curves.
        y: ``(points,)``, or a mapping from the name of each curve to such values.
        xlabel: the quantity on the horizontal axis, with its unit in parentheses.
        ylabel: the quantity on the vertical axis.
        low, high: its ends; chosen from the values by default, which may differ from state to state.
        xscale, yscale: ``"linear"`` or ``"log"``.
        points: names of the curves drawn as points (measurements).
        dashed: names of the curves drawn dashed (predictions).
        unit: of the values.
        digits: digits of the largest value that are kept; on a logarithmic axis, of each value.

    Example:
        >>> panel = lines([1, 2, 3], {"measured": [1.1, 1.9, 3.2], "formula": [1, 2, 3]}, points=["measured"])
        >>> panel.series, panel.styles
        (('measured', 'formula'), ('points', 'line'))
    """
    curves = dict(y) if isinstance(y, Mapping) else {"": y}
    if not curves:
        raise ValueError("y must hold at least one curve: got an empty mapping.")
    for name in curves:
        check_text("the name of a curve", name)
    axis = as_array("x", x, ndim=1)
    rows = [as_array(f"y[{name!r}]" if name else "y", row, ndim=1) for name, row in curves.items()]
    for name, row in zip(curves, rows, strict=True):
        if row.shape != axis.shape:
            raise ValueError(
                f"{f'y[{name!r}]' if name else 'y'} must have as many values as x ({len(axis)}): got {len(row)}."
            )
    if not np.isfinite(axis).all():
        raise ValueError("x must be finite: got NaN or infinity.")
    if xscale == "log" and axis.min() <= 0:
        raise ValueError(f"x must be > 0 on a logarithmic axis: got {axis.min():g}.")
    low, high = _check_bounds(low, high, yscale)
    points, dashed = ([names] if isinstance(names, str) else list(names) for names in (points, dashed))
    styles = ["points" if name in points else "dashed" if name in dashed else "line" for name in curves]
    for argument, names in (("points", points), ("dashed", dashed)):
        for name in names:
            check_choice(argument, name, list(curves))
    return Lines(
        x=_rounded(axis, 6, xscale),
        y=_rounded(np.stack(rows), digits, yscale, low, high),
        series=tuple(curves),
        styles=tuple(styles),
        low=low,
        high=high,
        unit=unit,
        xlabel=xlabel,
        ylabel=ylabel,
        xscale=xscale,
        yscale=yscale,
    )


def bars(
    values: Any,
    *,
    names: Iterable[object] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    low: float | None = None,
    high: float | None = None,
    yscale: str = "linear",
    unit: str = "",
    digits: int = 4,
) -> Bars:
    """One bar for each name.

    Args:
        values: ``(bars,)``, or a mapping from name to value.
        names: of the bars; their numbers from 0 by default.
        xlabel: what a bar is.
        ylabel: the quantity on the vertical axis.
        low, high: its ends; by default 0 or the smallest value, and the largest.
        yscale: ``"linear"`` or ``"log"``.
        unit: of the values.
        digits: digits of the largest value that are kept; on a logarithmic axis, of each value.

    Example:
        >>> bars({"query": 0.5, "key": 2}).names
        ('query', 'key')
    """
    if isinstance(values, Mapping):
        if names is not None:
            raise ValueError("names must be left out when values is a mapping: the keys are the names.")
        names, values = list(values), list(values.values())
    array = as_array("values", values, ndim=1)
    low, high = _check_bounds(low, high, yscale)
    return Bars(
        values=_rounded(array, digits, yscale, low, high),
        names=_check_names("names", names, len(array)),
        low=low,
        high=high,
        unit=unit,
        xlabel=xlabel,
        ylabel=ylabel,
        yscale=yscale,
    )


def histogram(
    samples: Any,
    *,
    bins: int = 32,
    low: float | None = None,
    high: float | None = None,
    top: float | None = None,
    curve: Callable[[Floats], ArrayLike] | Mapping[str, Callable[[Floats], ArrayLike]] | None = None,
    xlabel: str = "",
    ylabel: str = "density",
    unit: str = "",
    digits: int = 3,
) -> Histogram:
    """The density of samples: the bars' areas add up to the share of the samples between ``low`` and ``high``.

    Args:
        samples: any shape; NaN and infinities count as outside.
        bins: number of bars.
        low: where the first bar begins; the smallest sample by default.
        high: where the last bar ends; the largest sample by default.
        top: upper end of the vertical axis; chosen from the values by default.
        curve: a density to compare with, as a function of an array; or a mapping from names to such functions.
        xlabel: the quantity on the horizontal axis, with its unit in parentheses.
        ylabel: the quantity on the vertical axis.
        unit: of the densities.
        digits: digits of the largest density that are kept.

    Example:
        >>> panel = histogram([0.1, 0.2, 0.3, 0.9], bins=2, low=0, high=1)
        >>> panel.density.values.tolist()
        [1.5, 0.5]
    """
    array = as_array("samples", samples).ravel()
    bins = check_int("bins", bins, low=1, high=400)
    low, high = _check_bounds(low, high)
    finite = array[np.isfinite(array)] if np.isfinite(array).any() else np.zeros(1)
    low = float(finite.min()) if low is None else low
    high = float(finite.max()) if high is None else high
    if not low < high:
        low, high = low - 0.5, low + 0.5
    edges = fixed(np.linspace(low, high, bins + 1), 5)
    counts, _ = np.histogram(finite, bins=bins, range=(low, high))
    density = counts / (array.size * (high - low) / bins)
    curves = dict(curve) if isinstance(curve, Mapping) else {} if curve is None else {"predicted": curve}
    grid = np.linspace(low, high, 2 * math.ceil(32 / bins) * bins + 1)  # the middle of each bar is on it
    rows = []
    for name, function in curves.items():
        check_text("the name of a curve", name)
        if not callable(function):
            raise TypeError(f"curve must be a function of an array: got {type(function).__name__}.")
        row = as_array(f"curve {name!r}", function(grid))
        if row.shape != grid.shape:
            raise ValueError(
                f"curve {name!r} must return as many values as it is given ({grid.size}): got shape {row.shape}."
            )
        rows.append(row)
    top = None if top is None else check_number("top", top, low=0, open_low=True)
    return Histogram(
        edges=edges,
        density=fixed(density, digits, top),
        curves=fixed(np.stack(rows) if rows else np.zeros((0, grid.size)), digits, top),
        series=tuple(curves),
        top=top,
        unit=unit,
        xlabel=xlabel,
        ylabel=ylabel,
    )


def number(value: Any, *, predicted: Any = None, unit: str = "", digits: int = 3) -> Number:
    """One number, in large type; with ``predicted``, the measured number and the predicted one side by side.

    Integers keep all their digits.

    Args:
        value: a number, or an array or tensor of one element; what was measured, if there is a prediction.
        predicted: what the formula says, in the same unit. None where no formula holds, in some states or in all.
        unit: shown after the number.
        digits: significant digits.

    Example:
        >>> number(2.7182818, unit="nats").parts
        ['2.72 nats']
        >>> number(2.398, predicted=2.27, unit="nats").parts
        ['2.40 nats', 'predicted 2.27']
        >>> number(262144).value
        '262144'
    """
    return Number(
        value=_one("value", value, digits),
        predicted=None if predicted is None else _one("predicted", predicted, digits),
        unit=unit,
    )


def _one(name: str, value: Any, digits: int) -> str:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if whole and abs(value) < EXACT:
        return show(value, 0)
    array = as_array(name, value)
    if array.size != 1:
        raise ValueError(f"{name} must be one number: got shape {array.shape}.")
    return significant(array.ravel(), 6 if whole else digits).text(0)


def _rounded(values: Floats, digits: int, scale: str, *bounds: float | None) -> Rounded:
    return significant(values, digits) if scale == "log" else fixed(values, digits, *bounds)


# -- checks -----------------------------------------------------------------------------------------------------------


def check_text(name: str, value: object) -> str:
    """Return ``value`` if it is a string, or say what it is."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string: got {value!r} ({type(value).__name__}).")
    return value


def _check_bounds(low: float | None, high: float | None, scale: str = "linear") -> tuple[float | None, float | None]:
    low = None if low is None else check_number("low", low, low=0 if scale == "log" else -math.inf)
    high = None if high is None else check_number("high", high)
    if scale == "log" and low == 0:
        raise ValueError("low must be > 0 on a logarithmic axis: got 0.")
    if low is not None and high is not None and not low < high:
        raise ValueError(f"high must be a number > low ({low:g}): got {high:g}.")
    return low, high


def _check_names(name: str, names: Iterable[object] | None, length: int) -> tuple[str, ...]:
    if names is None:
        return tuple(map(str, range(length)))
    if isinstance(names, str):
        raise TypeError(f"{name} must be a list of names: got the string {names!r}. Did you mean list({names!r})?")
    texts = tuple(map(str, names))
    if len(texts) != length:
        raise ValueError(f"{name} must hold {length} names, one for each: got {len(texts)}.")
    return texts


def _short(value: float) -> float:
    """Six digits: what an axis can show, and less to store."""
    return float(f"{value:.6g}")
