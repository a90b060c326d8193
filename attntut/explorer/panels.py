"""What the function of an explorer returns: a heat map, lines, bars, a histogram, a number.

A panel is checked and its numbers are rounded where it is made, so that an error points at the line of the chapter that
made it, and the live widget, the page and the picture all show the same digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .._checks import check_choice, check_int, check_number
from .rounding import Floats, Rounded, as_array, fixed, show, significant

SCALES = ("linear", "log")
LEAST_OF_SCALE = 0.05  # a map that uses less of its colours is one colour to the eye
EXACT = 10**14  # integers below it keep all their digits


class Panel(SimpleNamespace):
    """One thing that an explorer shows: the ``kind`` of its picture, and by name what the ES module needs to draw it.

    Attributes:
        blank: why there is nothing to see, or an empty string.
    """

    def __init__(self, kind: str, *, blank: str = "", **drawn: Any) -> None:
        for name in ("unit", "xlabel", "ylabel"):
            check_text(name, drawn.get(name, ""))
        for name in ("xscale", "yscale"):
            check_choice(name, drawn.get(name, "linear"), SCALES)
        super().__init__(kind=kind, blank=blank, **drawn)

    def signature(self) -> tuple[Any, ...]:
        """What may not change from one state of the controls to another."""
        return (self.kind, getattr(self, "series", ()))

    def encode(self) -> dict[str, Any]:
        """The panel as JSON: what the ES module draws."""
        drawn = {name: value for name, value in vars(self).items() if name != "blank"}
        return {name: value.encode() if isinstance(value, Rounded) else value for name, value in drawn.items()}


def _flat(values: Floats, low: float, high: float) -> str:
    """Why a map shows nothing, or an empty string."""
    seen = np.clip(values[np.isfinite(values)], low, high)
    if values.size < 2 or (seen.size and np.ptp(seen) >= LEAST_OF_SCALE * (high - low)):
        return ""
    if not seen.size:
        return "every cell is a gap"
    return f"all cells lie between {seen.min():.3g} and {seen.max():.3g} of a scale from {low:g} to {high:g}"


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
) -> Panel:
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
    rounded = fixed(array, digits, *ends)
    low, high = (float(f"{end:.6g}") for end in ends)  # what an axis can show, and less to store
    return Panel(
        "heat_map",
        blank=_flat(rounded.values, low, high),
        values=rounded,
        low=low,
        high=high,
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
) -> Panel:
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
    rounded = _rounded(np.stack(rows), digits, yscale, low, high)
    return Panel(
        "lines",
        blank=_outside(rounded.values, low, high),
        x=_rounded(axis, 6, xscale),
        y=rounded,
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
) -> Panel:
    """One bar for each name.

    Args:
        values: ``(bars,)``, or a mapping from name to value.
        names: of the bars; their numbers from 0 by default.
        xlabel: what a bar is.
        low, high: the ends of the vertical axis; by default 0 or the smallest value, and the largest.
        ylabel, yscale, unit, digits: as in :func:`lines`.

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
    rounded = _rounded(array, digits, yscale, low, high)
    return Panel(
        "bars",
        blank=_outside(rounded.values, None, None) if rounded.values.any() else "every bar has the height 0",
        values=rounded,
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
    curve: Callable[[Floats], ArrayLike] | Mapping[str, Callable[[Floats], ArrayLike]] | None = None,
    xlabel: str = "",
    digits: int = 3,
) -> Panel:
    """The density of samples: the bars' areas add up to the share of the samples between ``low`` and ``high``.

    Args:
        samples: any shape; NaN and infinities count as outside.
        bins: number of bars.
        low: where the first bar begins; the smallest sample by default.
        high: where the last bar ends; the largest sample by default.
        curve: a density to compare with, as a function of an array; or a mapping from names to such functions.
        xlabel: as in :func:`lines`.
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
    rounded = fixed(density, digits)
    return Panel(
        "histogram",
        blank="" if rounded.values.any() else "no sample lies between low and high",
        edges=edges,
        density=rounded,
        curves=fixed(np.stack(rows) if rows else np.zeros((0, grid.size)), digits),
        series=tuple(curves),
        unit="",
        xlabel=xlabel,
        ylabel="density",
    )


def number(value: Any, *, predicted: Any = None, unit: str = "", digits: int = 3) -> Panel:
    """One number, in large type; with ``predicted``, the measured number and the predicted one side by side.

    Integers keep all their digits.

    Args:
        value: a number, or an array or tensor of one element; what was measured, if there is a prediction.
        predicted: what the formula says, in the same unit. None where no formula holds, in some states or in all.
        unit: shown after the number.
        digits: significant digits.

    Example:
        >>> panel = number(2.398, predicted=2.27, unit="nats")
        >>> panel.value, panel.predicted, panel.unit
        ('2.40', '2.27', 'nats')
        >>> number(262144).value
        '262144'
    """
    return Panel(
        "number",
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
