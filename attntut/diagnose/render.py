"""A report as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

import html as escape
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from attntut._checks import check_int
from attntut.diagnose.draw import Drawing, plot
from attntut.diagnose.finding import Finding
from attntut.diagnose.findings import find
from attntut.diagnose.report import Report
from attntut.evidence import number

__all__ = ["Drawing", "comparison", "html", "plot", "text"]

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

STYLE = """
.attntut-report {color: inherit; line-height: 1.45; max-width: 60em; overflow-wrap: anywhere}
.attntut-report table {border-collapse: collapse; font-variant-numeric: tabular-nums; color: inherit; background: none;
  margin: 0}
.attntut-report th, .attntut-report td {padding: .15em .6em; text-align: right; border: 0; white-space: nowrap;
  border-bottom: 1px solid rgba(128, 128, 128, .35); color: inherit; background: none; overflow-wrap: normal}
.attntut-report th:first-child {text-align: left; font-weight: normal}
.attntut-report .scroll {overflow-x: auto; max-height: 24em; margin: .5em 0}
.attntut-report ul {list-style: none; padding: 0; margin: .5em 0}
.attntut-report li {margin: .5em 0}
.attntut-report .badge {border-radius: .3em; padding: .05em .45em; font-size: .85em; color: #fff; background: #555}
.attntut-report .error {background: #a3160f} .attntut-report .warning {background: #8a4b00}
.attntut-report .small {font-size: .85em}
.attntut-report img {max-width: 100%; height: auto; background: #fff; border-radius: .3em}
"""


def text(report: Report, width: int = 80) -> str:
    """A report for a terminal.

    Args:
        report: what to show.
        width: no line is longer than this; at least 40.

    Returns:
        The model, the findings, a table of the layers (averages over their heads) and the notes.

    Raises:
        TypeError: ``report`` is no report, or ``width`` no integer.
        ValueError: ``width`` is less than 40.

    Example:
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
    lines = [*_wrap(_headline(report), width), ""]
    for finding in find(report):
        lines += [*_finding_lines(finding, width), ""]
    if len(lines) == 2:
        lines += ["No findings." if report.rows else "Nothing to judge.", ""]
    if report.rows:
        lines += [*_table(*_layer_table(report), width), ""]
    lines += [line for note in report.notes for line in _wrap(f"Note: {note}", width)]
    return "\n".join(lines).rstrip()


def html(report: Report, *, book: str | None = None, figure: bool = True) -> str:
    """A report for a notebook: escaped, self-contained, in the colours of the page around it.

    Args:
        report: what to show.
        book: address of the book, put before the findings' chapters to make them links; without it they are named.
        figure: whether to draw the report too (see :func:`plot`), as a picture inside the page.

    Returns:
        One ``<div>`` that asks nothing of the network.

    Raises:
        TypeError: an argument is of the wrong kind.

    Example:
        >>> "<script>" in html(Report(model=dict(name="<script>")))
        False
    """
    _check(report, NARROWEST)
    if book is not None and not isinstance(book, str):
        raise TypeError(f"book must be an address or None: got {type(book).__name__}.")
    found = find(report)
    parts = [f"<style>{STYLE}</style>", f"<p><strong>{_escape(_headline(report))}</strong></p>"]
    if found:
        parts.append("<ul>" + "".join(_finding_html(finding, book) for finding in found) + "</ul>")
    else:
        parts.append("<p>No findings.</p>" if report.rows else "<p>Nothing to judge.</p>")
    if report.rows:
        if figure:
            parts.append(f"<div>{plot(report).picture().html}</div>")
        parts.append(_table_html(*_layer_table(report), title="Layers, averaged over their heads"))
        heads = _table_html(*_head_table(report), title="Heads")
        parts.append(f"<details><summary>Every head</summary>{heads}</details>")
    if report.notes:
        parts.append(
            "<ul class='small'>" + "".join(f"<li>Note: {_escape(note)}</li>" for note in report.notes) + "</ul>"
        )
    return f'<div class="attntut-report">{"".join(parts)}</div>'


def comparison(before: Report, after: Report, width: int = 80, labels: tuple[str, str] = ("before", "after")) -> str:
    """Two reports of one model beside each other: what has changed in each layer, and which findings came and went.

    Args:
        before, after: the reports.
        width: no line is longer than this.
        labels: what to call the two.

    Example:
        >>> row = dict(layer="attention", kind="self", head=0, n_query=8, n_key=8, logit_max=0.5, max_weight=0.2)
        >>> row |= dict(entropy_share=0.96, saturated=0.0)
        >>> print(comparison(*(Report(rows=[row | dict(logit_std=std)]) for std in (0.5, 1.0)), width=50))
        layer      logit std     entropy
        attention  0.5 → 1       0.96 → 0.96
        <BLANKLINE>
        before: no findings
        after: no findings
    """
    for report in (before, after):
        _check(report, width)
    later = {(layer["layer"], layer["kind"]): layer for layer in _layers(after)}
    pairs = [(a, later[key]) for a in _layers(before) if (key := (a["layer"], a["kind"])) in later]
    shown = [column for column in _shown([a for a, _ in pairs]) if any(column[0] in b for _, b in pairs)]
    rows = [
        [_place(a), *(f"{_short(a.get(key))} → {_short(b.get(key))}".ljust(12) for key, _, _ in shown)]
        for a, b in pairs
    ]
    lines = _table(["layer", *(name.ljust(12) for _, name, _ in shown)], rows, width)
    lines.append("")
    for label, report in zip(labels, (before, after), strict=True):
        names = ", ".join(f"{each.name} ({each.severity})" for each in find(report)) or "no findings"
        lines += _wrap(f"{label}: {names}", width)
    return "\n".join(line.rstrip() for line in lines)


def _check(report: object, width: object) -> None:
    if not isinstance(report, Report):
        raise TypeError(f"report must be a Report: got {type(report).__name__}.")
    check_int("width", width, low=NARROWEST)


def _headline(report: Report) -> str:
    count, parameters = len(report.layers()), report.model.get("parameters")
    said = f"{report.model.get('name', 'Model')}: {count or 'no'} attention layer{'' if count == 1 else 's'}"
    said += f", {parameters:,} parameters" if parameters else ""
    steps = report.model.get("steps") or 1
    return said + (f", {steps} steps" if steps > 1 else "")


def _layer_table(report: Report) -> tuple[list[str], list[list[str]]]:
    layers = _layers(report)
    shown = _shown(layers)
    header = ["layer", "heads", "keys", *(name for _, name, _ in shown)]
    rows = [
        [
            _place(layer),
            str(layer["heads"]),
            str(layer.get("n_key", "")),
            *(_short(layer.get(key)) for key, *_ in shown),
        ]
        for layer in layers
    ]
    return header, rows


def _head_table(report: Report) -> tuple[list[str], list[list[str]]]:
    shown = _shown(report.rows)
    rows = [[_place(row), str(row["head"]), *(_short(row.get(key)) for key, _, _ in shown)] for row in report.rows]
    return ["layer", "head", *(name for _, name, _ in shown)], rows


def _layers(report: Report) -> list[dict[str, Any]]:
    """The rows averaged over heads, with the ratios of the gradients."""
    gradients = {entry["layer"]: entry for entry in report.gradients}
    return [{**gradients.get(layer["layer"], {}), **layer} for layer in report.layers()]


def _shown(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [column for column in COLUMNS if any(row.get(column[0]) is not None for row in rows)]


def _place(row: dict[str, Any]) -> str:
    return row["layer"] + (" (cross)" if row.get("kind") == "cross" else "")


def _short(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else number(value, digits=2)


def _finding_lines(finding: Finding, width: int) -> Iterable[str]:
    yield from _wrap(f"{finding.severity.upper()}: {finding.name} in {finding.place}", width)
    for part in (f"{finding.measurement}.", finding.text, f"Why: {finding.source}.", f"Read: {finding.chapter}"):
        yield from _wrap(part, width, indent="  ")


def _finding_html(finding: Finding, book: str | None) -> str:
    where = _escape(finding.chapter)
    if book is not None:
        where = f'<a href="{_escape(book.rstrip("/") + "/" if book else "")}{where}">{where}</a>'
    badge = f'<span class="badge {finding.severity}">{finding.severity}</span>'
    return (
        f"<li>{badge} <strong>{_escape(finding.name)}</strong> in {_escape(finding.place)}. "
        f"{_escape(finding.measurement)}.<br>{_escape(finding.text)}<br>"
        f'<span class="small">Why: {_escape(finding.source)}. Read: {where}</span></li>'
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Columns to the right, names to the left and cut in the middle; the last columns go if there is no room."""
    sizes = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    least = min(sizes[0], max(16, width // 3))
    while len(sizes) > 2 and least + sum(size + 2 for size in sizes[1:]) > width:
        sizes.pop()
    sizes[0] = min(sizes[0], max(width - sum(size + 2 for size in sizes[1:]), least))
    return [
        _cut(row[0], sizes[0]).ljust(sizes[0])
        + "".join("  " + cell.rjust(size) for cell, size in zip(row[1:], sizes[1:], strict=False))
        for row in (header, *rows)
    ]


def _table_html(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str) -> str:
    meanings = {name: meaning for _, name, meaning in COLUMNS}
    heads = "".join(
        f'<th scope="col" title="{_escape(meanings.get(name, ""))}">{_escape(name)}</th>' for name in header
    )
    body = "".join(
        f'<tr><th scope="row">{_escape(row[0])}</th>'
        + "".join(f"<td>{_escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_escape(title)}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _wrap(line: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        line, width, initial_indent=indent, subsequent_indent=indent or "  ", break_on_hyphens=False
    ) or [""]


def _cut(name: str, size: int) -> str:
    if len(name) <= size:
        return name
    left = (size - 1) // 2
    return f"{name[:left]}…{name[len(name) - (size - 1 - left) :]}"


def _escape(value: str) -> str:
    return escape.escape(str(value), quote=True)
