"""A report as a figure, with an alternative text made of its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from attntut import plots
from attntut._extras import extra
from attntut.evidence import number

if TYPE_CHECKING:
    from attntut.diagnose import Report

with extra("plots"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Drawing(Figure):
    """A figure that brings its alternative text (:attr:`alt`) along when a notebook shows it."""

    alt = ""

    def picture(self) -> plots.Picture:
        """The figure as notebooks and pages show it."""
        return plots.Picture(self, self.alt)

    def __repr__(self) -> str:
        return f"Figure: {self.alt}"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, str], dict[str, Any]]:
        return self.picture()._repr_mimebundle_()


def plot(report: Report) -> Drawing:
    """Draw a report: entropy of every head, scale of the logits, the stream and the gradients by depth.

    Args:
        report: with at least one row.

    Returns:
        A matplotlib figure; its ``alt`` says in words what it shows.

    Raises:
        TypeError: ``report`` is no report.
        ValueError: it has no rows.

    Example:
        >>> from attntut.diagnose import Report
        >>> row = dict(layer="attention", kind="self", n_key=8, logit_std=0.5)
        >>> plot(Report(rows=[row | dict(head=0, entropy_share=0.9), row | dict(head=1, entropy_share=1.0)]))
        Figure: Attention of model in 1 layer. Entropy, as a share of the most that is possible, by layer and head: 0.9
        to 1, mean 0.95. Standard deviation of the logits by layer: 0.5.
    """
    if not hasattr(report, "layers"):
        raise TypeError(f"report must be a Report: got {type(report).__name__}.")
    if not report.rows:
        raise ValueError("report must hold at least one attention layer to be drawn: got none.")
    panels = [_entropy, _logits] + [_stream] * bool(report.stream)
    panels += [_gradients] * bool(np.isfinite(_ratios(report, "query")).any())
    lines = math.ceil(len(panels) / 2)
    figure, grid = plots.subplots(lines, 2, height=2.6 * lines, figure_class=Drawing, squeeze=False)
    axes = grid.ravel()
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    count = len(report.layers())
    said = [f"Attention of {report.model.get('name', 'model')} in {count} layer{'s' if count > 1 else ''}."]
    said += [panel(where, report) for panel, where in zip(panels, axes, strict=False)]
    figure.alt = " ".join(said)
    return figure


def _entropy(axes: Axes, report: Report) -> str:
    groups = ([row["entropy_share"] for row in heads] for heads in report.heads().values())
    shares = np.array(list(zip_longest(*groups, fillvalue=math.nan))).T  # (layers, most heads)
    x, y = (range(size) if size <= 16 else None for size in shares.shape[::-1])
    plots.heat_map(
        axes, shares, title="Entropy share", x=x, y=y, xlabel="head", ylabel="layer", low=0, high=1, bar="of ln(keys)"
    )
    return "Entropy, as a share of the most that is possible, by layer and head: " + _range(shares.ravel()) + "."


def _logits(axes: Axes, report: Report) -> str:
    stds = [layer["logit_std"] for layer in report.layers()]
    n = max(row["n_key"] for row in report.rows)
    axes.plot(range(len(stds)), stds, "o-", label="measured")
    if n > 1:
        plots.theory(axes, [0, max(len(stds) - 1, 1)], [math.sqrt(2 * math.log(n))] * 2, label=f"√(2 ln {n})")
    axes.set(title="Std of the logits", xlabel="layer", ylim=(0, None))
    axes.legend()
    return f"Standard deviation of the logits by layer: {_course(stds)}."


def _stream(axes: Axes, report: Report) -> str:
    rms, cosine = ([entry[key] for entry in report.stream] for key in ("rms", "token_cosine"))
    axes.plot(range(1, len(rms) + 1), rms, "o-", label="RMS")
    axes.plot(range(1, len(rms) + 1), cosine, "s-", label="token cosine")
    finite = [each for each in rms if math.isfinite(each) and each > 0]
    if finite and max(finite) > 20 * min(finite):
        axes.set_yscale("log")
    axes.set(title="Stream after each block", xlabel="block")
    axes.legend()
    return f"RMS of the stream after each block: {_course(rms)}; token cosine: {_course(cosine)}."


def _gradients(axes: Axes, report: Report) -> str:
    query, key = (_ratios(report, role) for role in ("query", "key"))
    axes.plot(query, "o-", label="query / value")
    axes.plot(key, "s-", label="key / value")
    if not (np.concatenate([query, key]) <= 0).any():
        axes.set_yscale("log")
    axes.set(title="Gradient ratio", xlabel="layer")
    axes.legend()
    return f"Gradient of the query over that of the value, by layer: {_course(query)}; of the key: {_course(key)}."


def _ratios(report: Report, role: str) -> np.ndarray:
    """``(layers,)``, NaN where there is none."""
    return np.array([entry.get(f"ratio_{role}") for entry in report.gradients], dtype=float)


def _course(values: Sequence[float] | np.ndarray) -> str:
    """How a quantity goes: all values if they are few, else first, last and extremes."""
    if len(values) <= 4:
        return ", ".join(number(value) for value in values)
    return f"from {number(values[0])} to {number(values[-1])} ({_range(values)})"


def _range(values: Sequence[float] | np.ndarray) -> str:
    finite = [float(value) for value in values if math.isfinite(value)]
    if not finite:
        return "no number"
    return f"{number(min(finite))} to {number(max(finite))}, mean {number(math.fsum(finite) / len(finite))}"
