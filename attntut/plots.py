"""Figures of one style, each with an alternative text for readers who do not see it."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from attntut import _svg
from attntut._checks import check_int, check_number
from attntut._extras import extra
from attntut.evidence import confidence_interval

with extra("plots"):
    import matplotlib as mpl
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# The palette of pages, diagrams and explorers, as it is by day; a test compares them. The lines' colours are those of
# Okabe & Ito (2008), safe for colour-blind eyes, two of them darker so that they can be seen on paper.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b5548c", "#8a6d00", "#56b4e9")
INK, MUTED, GRID, PAPER = "#1c2430", "#566070", "#dde3e9", "#ffffff"
VARIABLES = {INK: "--text", MUTED: "--muted", GRID: "--line", PAPER: "--paper"}
VARIABLES |= {color: f"--c{i}" for i, color in enumerate(COLORS)}
ON_DARK, ON_LIGHT = "#fdfdfd", "#101010"  # text on a heat map, whose colours are data: no variable has these values

WIDTH = 5.0  # inches, 480 CSS pixels: at the 350 pixels of a phone the type is still 10 pixels high
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": mpl.cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "font.size": 11,
    "grid.color": GRID,
    "image.cmap": "viridis",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "savefig.dpi": 150,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float = 3.2,
    figure_class: type[Figure] = Figure,
    **options: Any,
) -> Any:
    """A figure in the book's style, and its axes.

    All figures have one width, :data:`WIDTH`, so that their type has one size and a phone shows it legibly.

    Args:
        rows, columns: how many axes; more than two columns do not fit a phone, unless they hold nothing but a map.
        height: of the whole figure, in inches.
        figure_class: what to make, if it is to be a subclass.
        options: passed on to :meth:`matplotlib.figure.Figure.subplots`.

    Returns:
        The figure, and one ``Axes`` or an array of them.

    Example:
        >>> figure, (left, right) = subplots(1, 2)
    """
    check_int("rows", rows), check_int("columns", columns)
    mpl.rcParams.update(STYLE)
    figure = figure_class(figsize=(WIDTH, check_number("height", height, low=1)), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def show(figure: Figure, *, alt: str) -> None:
    """Display a figure with its alternative text: as inline SVG when the book is built, otherwise as a PNG.

    The book is built with ``ATTNTUT_EXPLORER=static``. There the colours and the font are the page's, by day and night.

    Args:
        alt: what a reader who cannot see the figure needs to follow the argument: what is drawn, and what it shows.

    Example:
        >>> figure, axes = subplots()
        >>> line = axes.plot([1, 2, 4])
        >>> show(figure, alt="A line that rises ever faster.")
        Figure: A line that rises ever faster.
    """
    if not isinstance(figure, Figure):
        raise TypeError(f"figure must be a matplotlib Figure: got {type(figure).__name__}.")
    if not isinstance(alt, str) or len(alt.split()) < 3:
        raise ValueError(f"alt must say in words what the figure shows: got {alt!r}.")
    with extra("jupyter"):
        from IPython.display import display
    display(Picture(figure, alt))


class Picture:
    """A figure with its alternative text, as notebooks and pages understand it; drawn at once.

    Attributes:
        alt: the alternative text.
        html: an element for a page: ``<figure>`` with inline SVG when the book is built, otherwise ``<img>``.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.alt = alt
        self.width, self.height = (round(96 * side) for side in figure.get_size_inches())  # CSS pixels
        self.is_inline = os.environ.get("ATTNTUT_EXPLORER") == "static"
        if self.is_inline:
            self.html = f'<figure class="attntut-figure">{svg(figure, alt=alt)}</figure>'
        else:
            self.png = base64.b64encode(png(figure)).decode()
            size, source = f'width="{self.width}" height="{self.height}"', f"data:image/png;base64,{self.png}"
            self.html = f'<img alt="{html.escape(alt)}" {size} src="{source}">'

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        if self.is_inline:
            return {"text/html": self.html, "text/plain": repr(self)}, {}
        about = {"alt": self.alt, "width": self.width, "height": self.height}  # JupyterLab and the book obey
        return {"image/png": self.png, "text/plain": repr(self)}, {"image/png": about}


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def svg(figure: Figure, *, alt: str) -> str:
    """A figure as an ``<svg>`` element for a page: text is text, colours are the page's variables.

    Example:
        >>> figure, axes = subplots()
        >>> axes.set(title="Entropy falls")
        [...]
        >>> "Entropy falls</text>" in svg(figure, alt="An empty plot.")
        True
    """
    for image in figure.findobj(AxesImage):
        image.set_interpolation("none")  # one pixel a cell; the browser enlarges it
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "attntut"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _svg.inline(buffer.getvalue(), alt=alt, variables=VARIABLES)


def heat_map(
    axes: Axes,
    values: Any,
    *,
    title: str = "",
    x: Sequence[Any] | None = None,
    y: Sequence[Any] | None = None,
    xlabel: str = "key",
    ylabel: str = "query",
    low: float | None = 0,
    high: float | None = None,
    cells: bool | None = None,
    bar: str | None = None,
) -> None:
    """Draw a matrix, the first row on top.

    Args:
        values: ``(rows, columns)``.
        x, y: labels of the columns and rows (words, say).
        xlabel, ylabel: what columns and rows are.
        low, high: the ends of the colour scale; None takes the smallest and largest value.
        cells: print each value in its cell; by default for at most 8 × 8 of them.
        bar: label of a colour bar; none is drawn without it.

    Example:
        >>> figure, axes = subplots()
        >>> heat_map(axes, [[1, 0], [0.5, 0.5]], x=["the", "cat"], y=["the", "cat"])
    """
    matrix = _matrix("values", values)
    image = axes.imshow(matrix, vmin=low, vmax=high, aspect="auto" if matrix.shape[0] != matrix.shape[1] else "equal")
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(False)
    rotated = x is not None and max(len(str(label)) for label in x) * len(x) > 24
    for axis, labels, size in ((axes.xaxis, x, matrix.shape[1]), (axes.yaxis, y, matrix.shape[0])):
        if labels is None:
            continue
        if len(labels) != size:
            raise ValueError(f"x and y must label every column and row: got {len(labels)} labels for {size}.")
        turn = {"rotation": 90} if rotated and axis is axes.xaxis else {}
        axis.set_ticks(range(size), [str(label) for label in labels], **turn)
    if max(matrix.shape) <= 8 if cells is None else cells:
        middle = (image.norm.vmin + image.norm.vmax) / 2
        for (i, j), value in np.ndenumerate(matrix):
            color = ON_DARK if value < middle else ON_LIGHT
            axes.text(j, i, f"{value:.2f}".replace("0.", ".", 1), ha="center", va="center", color=color, fontsize=9)
    if bar is not None:
        axes.figure.colorbar(image, ax=axes, label=bar, shrink=0.8)


def runs(axes: Axes, x: Any, values: Any, *, label: str, color: str | None = None, marker: str = "o") -> None:
    """Draw the mean over seeds as a line with markers, and its 95 % confidence interval as a band.

    Args:
        x: ``(points,)``.
        values: ``(seeds, points)``, or ``(points,)`` for a single run.
        color, marker: as matplotlib takes them.

    Example:
        >>> figure, axes = subplots()
        >>> runs(axes, [1, 2, 3], [[0.1, 0.2, 0.3], [0.2, 0.2, 0.4]], label="accuracy")
    """
    matrix = _matrix("values", values)
    positions = np.asarray(x, dtype=float)
    if positions.shape != matrix.shape[1:]:
        raise ValueError(f"x must have one entry per point, {matrix.shape[1]}: got shape {positions.shape}.")
    mean, low, high = zip(*(confidence_interval(column) for column in matrix.T), strict=True)
    (line,) = axes.plot(positions, mean, marker=marker, label=label, color=color)
    if matrix.shape[0] > 1:
        axes.fill_between(positions, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def theory(axes: Axes, x: Any, y: Any, *, label: str = "predicted") -> None:
    """Draw a prediction as a dashed line in ink, behind the measurements.

    Args:
        x, y: ``(points,)`` each.

    Example:
        >>> figure, axes = subplots()
        >>> theory(axes, [1, 2, 3], [1, 4, 9])
    """
    axes.plot(np.asarray(x, dtype=float), np.asarray(y, dtype=float), "--", color=INK, label=label, zorder=1.5)


def histogram(axes: Axes, samples: Any, *, label: str, bins: int = 40, color: str | None = None) -> None:
    """Draw the density of samples.

    Args:
        samples: any shape; what is not finite is left out.

    Example:
        >>> figure, axes = subplots()
        >>> histogram(axes, [0.1, 0.2, 0.2, 0.4], label="weights", bins=3)
    """
    values = np.asarray(samples, dtype=float).ravel()
    finite = values[np.isfinite(values)]
    axes.hist(finite, bins=check_int("bins", bins), density=True, alpha=0.5, label=label, color=color)
    axes.set_ylabel("density")


def _matrix(name: str, values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    matrix = np.asarray(values, dtype=float)
    matrix = matrix[None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix (rows, columns): got shape {matrix.shape}.")
    return matrix
