"""A picture of one state, in the style of ``attntut.plots``: for code hosts, paper, and readers without JavaScript."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.text import Annotation
from matplotlib.ticker import NullFormatter
from PIL import Image, features

from .. import plots
from .panels import Panel

# As in explorer.js, and a test compares the two: blue – white – orange. The other colours are those of the plots.
DIVERGING = ("#00456e", "#2a76a8", "#76aacf", "#bdd6e8", "#f7f7f7", "#f6cdb0", "#e69460", "#c5602a", "#8a3800")
MARKERS = "osD^vX"
SMALLEST = 5  # points, before a name is dropped
DPI = 120  # 600 pixels; at 360 the type is still 9 pixels high
STYLE: Any = plots.STYLE | {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "legend.fontsize": 9,
    "mathtext.default": "regular",
}


def draw(panels: Mapping[str, Panel], state: str) -> bytes:
    """Return a PNG of the panels, with the state of the controls above them."""
    numbers = {name: p for name, p in panels.items() if p.kind == "number"}
    charts = {name: p for name, p in panels.items() if p.kind != "number"}
    columns = 1 if len(charts) == 1 else 2
    rows = math.ceil(len(charts) / columns)
    in_a_row = 2 if any(panel.predicted is not None for panel in numbers.values()) else 3
    head = 0.12 + 0.27 * (bool(state) + math.ceil(len(numbers) / in_a_row) * 1.7)
    height = rows * (3.3 if columns == 1 else 2.5)
    with rc_context(STYLE):
        figure = Figure(figsize=(plots.WIDTH, head + height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        top: Figure | SubFigure = figure
        if charts:
            top, frame = cast(Any, figure.subfigures(2, 1, height_ratios=[head, height]))
            axes = np.atleast_1d(frame.subplots(rows, columns)).ravel()
            for axis, (name, panel) in zip(axes, charts.items(), strict=False):
                axis.set_title(name)
                DRAW[panel.kind](axis, panel)
            for axis in axes[len(charts) :]:
                axis.set_visible(False)
        _head(top, head, state, numbers, in_a_row)
        return _png(figure)


def _head(top: Figure | SubFigure, height: float, state: str, numbers: Mapping[str, Panel], in_a_row: int) -> None:
    y = 1 - 0.1 / height
    if state:
        top.text(0.02, y, state, va="top", fontsize=min(10, 650 / len(state)))
        y -= 0.27 / height
    for k, (name, panel) in enumerate(numbers.items()):
        x = 0.02 + k % in_a_row / in_a_row
        line = y - k // in_a_row * 0.46 / height
        top.text(x, line, name, va="top", fontsize=9, color=plots.MUTED)
        measured = f"{panel.value} {panel.unit}".strip()
        shown = top.text(x, line - 0.17 / height, measured, va="top", fontsize=12.5, fontweight="bold")
        if panel.predicted:
            beside: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "fontsize": 10}
            text = f"predicted {panel.predicted}"
            top.add_artist(Annotation(text, (1, 0.5), xycoords=shown, va="center", **beside))


def _heat_map(axis: Axes, panel: Any) -> None:
    about = {"xlabel": panel.xlabel, "ylabel": panel.ylabel, "title": axis.get_title(loc="left")}
    values = np.ma.masked_invalid(panel.values.values)
    plots.heat_map(axis, values, **about, low=panel.low, high=panel.high, cells=False, bar=panel.unit)
    if panel.diverging:
        axis.images[0].set_cmap(LinearSegmentedColormap.from_list("blue-orange", DIVERGING))
    axis.set_facecolor(plots.GRID)
    _name_ticks(axis, "x", panel.columns)
    _name_ticks(axis, "y", panel.rows)


def _name_ticks(axis: Axes, which: Literal["x", "y"], names: tuple[str, ...]) -> None:
    """Name the places of an axis: in smaller type where they are many, slanted where they are words, or only some."""
    spec = axis.get_subplotspec()
    alone = spec is None or spec.get_gridspec().ncols == 1
    room = {"x": 290, "y": 190} if alone else {"x": 130, "y": 125}  # points, about
    texts = [n if len(n) <= 9 else n[:8] + "…" for n in names]
    longest = max(map(len, texts))
    slanted = which == "x" and longest > 3
    wide = 1.0 if slanted or which == "y" or longest == 1 else 0.64 * longest + 0.4  # of the size of the type
    size = room[which] / len(texts) / wide
    step = 1 if size >= SMALLEST else math.ceil(10 / size)
    draw_axis = axis.xaxis if which == "x" else axis.yaxis
    draw_axis.set_ticks(range(0, len(texts), step), texts[::step], fontsize=min(10, size) if step == 1 else 10)
    if slanted:
        for label in axis.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")


def _lines(axis: Axes, panel: Any) -> None:
    x, y = panel.x.values, panel.y.values
    for k, (name, style) in enumerate(zip(panel.series, panel.styles, strict=True)):
        look: dict[str, Any] = {"linestyle": "--" if style == "dashed" else "-"}
        if style == "points":
            look = {"linestyle": "none", "marker": MARKERS[k % len(MARKERS)], "markersize": 4.5}
        axis.plot(x, y[k], label=name, **look)
    axis.set(xlabel=panel.xlabel, xscale=panel.xscale, yscale=panel.yscale)
    axis.xaxis.set_minor_formatter(NullFormatter())
    _finish(axis, panel, panel.low, panel.high)


def _bars(axis: Axes, panel: Any) -> None:
    axis.bar(range(len(panel.names)), panel.values.values, width=0.75)
    _name_ticks(axis, "x", panel.names)
    axis.set(xlabel=panel.xlabel, yscale=panel.yscale)
    _finish(axis, panel, panel.low, panel.high)


def _histogram(axis: Axes, panel: Any) -> None:
    edges = panel.edges.values
    axis.stairs(panel.density.values, edges, fill=True, alpha=0.45)
    for k, (name, curve) in enumerate(zip(panel.series, panel.curves.values, strict=True)):
        x = np.linspace(edges[0], edges[-1], len(curve))
        axis.plot(x, curve, color=f"C{k + 1}", label=name)
    axis.set(xlabel=panel.xlabel)
    _finish(axis, panel, 0, None)


def _finish(axis: Axes, panel: Any, low: float | None, high: float | None) -> None:
    axis.set_ylabel(panel.ylabel + (f" ({panel.unit})" if panel.unit else ""))
    axis.set_ylim(low, high)
    axis.yaxis.set_minor_formatter(NullFormatter())
    if len(getattr(panel, "series", ())) > 1 or any(getattr(panel, "series", ())):
        axis.legend(loc="best", handlelength=1.4, borderaxespad=0.2)


DRAW = {"heat_map": _heat_map, "lines": _lines, "bars": _bars, "histogram": _histogram}


def _png(figure: Figure) -> bytes:
    """A PNG of 96 colours: half the size, and hard to tell apart."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI)
    image = Image.open(raw).convert("RGB").quantize(96, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return out.getvalue()


def webp(png: bytes) -> tuple[str, bytes]:
    """The same picture, a fifth smaller, with its MIME type; as it is where Pillow has no WebP."""
    if not features.check("webp"):
        return "image/png", png
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(out, format="WEBP", lossless=True, quality=50, method=2)
    return "image/webp", out.getvalue()
