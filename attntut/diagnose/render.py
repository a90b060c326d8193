"""A report as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attntut._checks import check_int
from attntut.evidence import number

if TYPE_CHECKING:
    from attntut.diagnose import Report

# Statistic, its heading, and what it means; where there is little room the last ones go first.
COLUMNS = (
    ("logit_std", "logit std", "standard deviation of the logits around the mean of their row"),
    ("entropy_share", "entropy", "entropy of a row of weights, as a share of the most that the mask allows"),
    ("max_weight", "largest", "largest weight of a row, on average"),
    ("saturated", "> 0.99", "share of the rows that give more than 0.99 to one key"),
    ("ratio_query", "∇q/∇v", "norm of the query's gradient over that of the value's"),
    ("ratio_key", "∇k/∇v", "norm of the key's gradient over that of the value's"),
    ("first", "to first", "weight on the first token"),
    ("self", "to self", "weight of a token on itself"),
    ("token_cosine", "cosine", "mean cosine of two tokens of the heads' outputs"),
)
NARROWEST = 40
COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


def text(report: Report, width: int = 80) -> str:
    """A report as plain text, the same everywhere; in a terminal ``rich.print(report)`` gives it colours.

    Args:
        report: what to show.
        width: no line is longer than this; at least 40.

    Returns:
        The model, the findings, a table of the layers (averages over their heads) and the notes.

    Raises:
        TypeError: ``report`` is no report, or ``width`` no integer.
        ValueError: ``width`` is less than 40.

    Example:
        >>> from attntut.diagnose import Report
        >>> row = dict(layer="attention", kind="self", head=0, n_query=8, n_key=8, logit_std=0.5, entropy=2.0)
        >>> row |= dict(entropy_share=0.96, logit_max=1.5, max_weight=0.25, saturated=0.0)
        >>> print(text(Report(rows=[row], model=dict(name="Net", parameters=1234)), width=60))
        Net: 1 attention layer, 1,234 parameters
        <BLANKLINE>
        No findings.
        <BLANKLINE>
        layer      heads  keys  logit std  entropy  largest  > 0.99
        attention      1     8        0.5     0.96     0.25       0
    """
    _check(report, width)
    return plain(pieces(report, width), width)


def pieces(report: Report, width: int) -> Iterator[RenderableType]:
    """What :func:`text` consists of, for a :class:`rich.console.Console`."""
    yield Text(_headline(report))
    for finding in report.findings:
        yield ""
        title = f"{finding.name} in {finding.place}"
        yield labelled(f"{finding.severity.upper()}:", title, COLOURS[finding.severity])
        said = [f"{finding.measurement}.", finding.text, f"Why: {finding.source}.", f"Read: {finding.chapter}"]
        if finding.advice:
            said.insert(2, f"Try: {finding.advice}")
        yield from (Padding(Text(part), (0, 0, 0, 2)) for part in said)
    if not report.findings:
        yield from ("", _verdict(report))
    if report.rows:
        yield from ("", _table(*_layer_table(report), width))
    if report.notes:
        yield ""
    yield from (labelled("Note:", note) for note in report.notes)


def html(report: Report, *, book: str | None = None, figure: bool = True) -> str:
    """A report for a notebook: escaped, self-contained, in the colours of the page around it.

    Args:
        report: what to show.
        book: address of the book, put before the findings' chapters to make them links; without it they are named.
        figure: whether to draw the report too (see :func:`attntut.diagnose.draw.plot`), as a picture inside the page.

    Returns:
        One ``<div>`` that asks nothing of the network.

    Raises:
        TypeError: an argument is of the wrong kind.

    Example:
        >>> from attntut.diagnose import Report
        >>> "<script>" in html(Report(model=dict(name="<script>")))
        False
    """
    _check(report, NARROWEST)
    if book is not None and not isinstance(book, str):
        raise TypeError(f"book must be an address or None: got {type(book).__name__}.")
    picture, notes = "", list(report.notes)
    if figure and report.rows:
        try:
            picture = report.plot().picture().html
        except ModuleNotFoundError as missing:
            notes.append(f"No figure: {missing}.")
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    return jinja2.Template(template, autoescape=True).render(
        headline=_headline(report),
        findings=report.findings,
        verdict=_verdict(report),
        address=book if not book else f"{book.rstrip('/')}/",
        picture=picture,
        layers=_layer_table(report) if report.rows else None,
        heads=_cells(report.rows, ("head", "head", "")),
        meanings={heading: meaning for _, heading, meaning in COLUMNS},
        notes=notes,
    )


def comparison(before: Report, after: Report, width: int = 80, labels: tuple[str, str] = ("before", "after")) -> str:
    """Two reports of one model beside each other: what has changed in each layer, and which findings came and went.

    Args:
        before, after: the reports.
        width: no line is longer than this.
        labels: what to call the two.

    Example:
        >>> from attntut.diagnose import Report
        >>> row = dict(layer="attention", kind="self", head=0, n_query=8, n_key=8, logit_max=0.5, max_weight=0.2)
        >>> row |= dict(entropy_share=0.96, saturated=0.0)
        >>> print(comparison(*(Report(rows=[row | dict(logit_std=std)]) for std in (0.5, 1.0)), width=40))
        layer      logit std      entropy
        attention    0.5 → 1  0.96 → 0.96
        <BLANKLINE>
        before: no findings
        after: no findings
    """
    for report in (before, after):
        _check(report, width)
    later = {(layer["layer"], layer["kind"]): layer for layer in _layers(after)}
    pairs = [(a, later[key]) for a in _layers(before) if (key := (a["layer"], a["kind"])) in later]
    shown = [column for column in _shown([a for a, _ in pairs]) if any(column[0] in b for _, b in pairs)]
    rows = [[_place(a), *(f"{_short(a.get(key))} → {_short(b.get(key))}" for key, *_ in shown)] for a, b in pairs]
    parts: list[RenderableType] = [_table(["layer", *(name for _, name, _ in shown)], rows, width), ""]
    for label, report in zip(labels, (before, after), strict=True):
        names = ", ".join(f"{each.name} ({each.severity})" for each in report.findings) or "no findings"
        parts.append(labelled(f"{label}:", names))
    return plain(parts, width)


def _check(report: object, width: object) -> None:
    if not hasattr(report, "layers"):
        raise TypeError(f"report must be a Report: got {type(report).__name__}.")
    check_int("width", width, low=NARROWEST)


def _headline(report: Report) -> str:
    count, parameters = len(report.layers()), report.model.get("parameters")
    said = f"{report.model.get('name', 'Model')}: {count or 'no'} attention layer{'' if count == 1 else 's'}"
    said += f", {parameters:,} parameters" if parameters else ""
    steps = report.model.get("steps") or 1
    return said + (f", {steps} steps" if steps > 1 else "")


def _verdict(report: Report) -> str:
    return "No findings." if report.rows else "Nothing to judge."


def _layer_table(report: Report) -> tuple[list[str], list[list[str]]]:
    return _cells(_layers(report), ("heads", "heads", ""), ("n_key", "keys", ""))


def _cells(rows: Sequence[dict[str, Any]], *sizes: tuple[str, str, str]) -> tuple[list[str], list[list[str]]]:
    """The header of a table, and its rows: the layer, sizes, and the statistics that there are."""
    shown = [*sizes, *_shown(rows)]
    cells = [[_place(row), *(_short(row.get(key)) for key, *_ in shown)] for row in rows]
    return ["layer", *(name for _, name, _ in shown)], cells


def _layers(report: Report) -> list[dict[str, Any]]:
    """The rows averaged over heads, with the ratios of the gradients."""
    gradients = {entry["layer"]: entry for entry in report.gradients}
    return [{**gradients.get(layer["layer"], {}), **layer} for layer in report.layers()]


def _shown(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]


def _place(row: dict[str, Any]) -> str:
    return row["layer"] + (" (cross)" if row.get("kind") == "cross" else "")


def _short(value: float | None) -> str:
    if isinstance(value, int):
        return str(value)
    return "" if value is None or math.isnan(value) else number(value, digits=2)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Table:
    """A table whose last columns go where there is no room for whole names; with few left, names take several lines."""
    widths = [max(map(cell_len, column)) + 2 for column in zip(header, *rows, strict=True)]
    least = header.index("logit std") + 1 if "logit std" in header else 2
    while len(widths) > least and sum(widths) - 2 > width:
        widths.pop()
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(header[0], overflow="fold")
    for name in header[1 : len(widths)]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row[: len(widths)]))
    return table


def labelled(label: str, words: str, style: str = "") -> Table:
    """A label, and words that begin to the right of it on every line."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(label, style), Text(words))
    return grid


def show(what: Any, as_text: Callable[[Any, int], str], width: int) -> None:
    """Print with colours in a terminal, and as plain text elsewhere."""
    terminal = Console(width=width)
    if terminal.is_terminal:
        terminal.print(what)
    else:
        print(as_text(what, width))


def plain(parts: Iterable[RenderableType], width: int) -> str:
    """The same as text, with no line longer than ``width``."""
    file = io.StringIO()
    Console(file=file, width=width, color_system=None, force_jupyter=False, legacy_windows=False).print(Group(*parts))
    return "\n".join(line.rstrip() for line in file.getvalue().split("\n")).rstrip()
