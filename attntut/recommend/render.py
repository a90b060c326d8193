"""A recommendation as text for a terminal and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attntut._checks import check_int
from attntut.diagnose.render import NARROWEST, labelled, plain
from attntut.evidence import number
from attntut.recommend.rules import STRENGTHS, described

if TYPE_CHECKING:
    from attntut.recommend.advice import Advice, Recommendation

COLUMNS = ("", "start", "sure", "logit std", "measured", "stream", "gradient")
MEANINGS = (
    "sure: "
    + "; ".join(f"{name}, {meaning}" for name, meaning in STRENGTHS.items())
    + ". logit std: predicted for tokens of unit variance, and measured at step 0. stream: variance after the last "
    "block over that after the first. gradient: the first block's over the last one's. σ: predicted standard deviation "
    "of the entries."
)
NONE = "No evidence: no rule of the book names a start for a model like this."


def text(answer: Recommendation, width: int = 100) -> str:
    """A recommendation as plain text, the same everywhere.

    Args:
        answer: what to show.
        width: no line is longer than this; at least 40.
    """
    check_int("width", width, low=NARROWEST)
    return plain(pieces(answer, width), width)


def pieces(answer: Recommendation, width: int) -> Iterator[RenderableType]:
    """What :func:`text` consists of, for a :class:`rich.console.Console`."""
    yield Text(f"{answer.model}: {described(answer.facts)}")
    rows, shown = table(answer), Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    kept = [i for i, name in enumerate(COLUMNS) if not name or any(row[i] for row in rows)]
    while len(kept) > 4 and sum(2 + max(len(COLUMNS[i]), *(len(row[i]) for row in rows)) for i in kept) > width:
        kept.pop()
    for i in kept:
        shown.add_column(COLUMNS[i], overflow="fold", no_wrap=i != 1, justify="right" if i > 2 else "left")
    for row in rows:
        shown.add_row(*(Text(row[i]) for i in kept))
    yield from ("", shown)
    for heading, lines in paragraphs(answer):
        yield from ("", Text(heading, "bold"))
        yield from (Padding(Text(line), (0, 0, 0, 3)) for line in lines)
    yield from ("" for _ in answer.notes[:1])
    yield from (labelled("Note:", note) for note in answer.notes)


def table(answer: Recommendation) -> list[list[str]]:
    """The cells of :data:`COLUMNS`, a row for the model as it is and for each start that was drawn or is taken."""
    rows, takes = [], answer.of("take")
    for each in (answer.as_it_is, *takes, *answer.of("avoid")):
        if each.measured or each in takes:
            rank = str(takes.index(each) + 1) if each in takes else "✗" if each.verdict == "avoid" else ""
            measured = [_short(each.measured.get(name)) for name in ("logit_std", "stream", "gradient")]
            rows.append([rank, each.start, each.strength if rank else "", _short(each.logit_std), *measured])
    return rows


def paragraphs(answer: Recommendation) -> Iterator[tuple[str, list[str]]]:
    """Headings and the lines below them."""
    takes, said = answer.of("take"), dict[str, int]()
    if all(each.is_method for each in takes):
        yield NONE, []
    for i, each in enumerate(takes, 1):
        yield f"{i}. {each.start}: {_sure(each)}", [*_lines(each, said.get(each.why)), each.call]
        said.setdefault(each.why, i)
    for why in dict.fromkeys(each.why for each in answer.of("avoid")):
        same = [each for each in answer.of("avoid") if each.why == why]
        yield f"Worse here: {_named(same)}: {_sure(same[0])}", _lines(same[0], said.get(why))
    for why in dict.fromkeys(each.why for each in answer.of("noise")):
        same = [each for each in answer.of("noise") if each.why == why]
        others = [_compared(each) for each in same[1:] if each.found and each.found.comparisons]
        yield f"Within the noise: {_named(same)}: {_sure(same[0])}", [*_lines(same[0], said.get(why)), *others]
    rest = [each for each in answer.of("other") if each.strength == "none"]
    for each in answer.of("other"):
        if each not in rest:
            yield f"Fits, and no rule takes it: {each.start}: {_sure(each)}", _lines(each)
    shown = ", ".join(f"{each.start} ({_short(each.logit_std) or 'unknown'})" for each in rest)
    yield "Fit, and no evidence for or against them; in brackets the std of the logits that they predict", [shown]
    for finding in answer.findings:
        advice = [f"Try: {finding.advice}"] if finding.advice else []
        yield f"As it is, {finding.severity}: {finding.name} in {finding.place}", [f"{finding.measurement}.", *advice]
    if looks := answer.as_it_is.why:
        yield f"As it is, its weights look like those of {looks}", []
    if answer.also:
        yield "Also", [*answer.also]
    if answer.asks:
        yield 'Only you know, and the map (book/map.html) asks; answer by given={"data": "Yes"}', [*answer.asks]
    yield "What the columns say", [MEANINGS]


def _sure(each: Advice) -> str:
    outside = "; ".join(each.found.outside) if each.found else ""
    return STRENGTHS[each.strength] + (f" ({outside})" if outside else "")


def _lines(each: Advice, as_for: int | None = None) -> list[str]:
    lines = [f"By the same rule as {as_for}."] if as_for else [each.why] if each.why else []
    if each.verdict == "take" and each.std:
        lines.append(f"σ: {', '.join(f'{role} {_short(std)}' for role, std in each.std.items())}.")
    if each.found and each.found.comparisons:
        first = each.found.comparisons[0]
        said = f"Run {first.run}: {first.says}, each at its own best rate, minus {first.than}, {first.n} seeds"
        lines.append(f"{said}: {_compared(each)}")
    elif each.found:
        lines.append("The default of the stored runs: the others are compared with it.")
    if each.records and not as_for:
        cited = (f"chapter {chapter}, “{name}”" for chapter, _, name in (one.partition(": ") for one in each.records))
        lines.append(f"Records: {'; '.join(cited)}.")
    if each.findings:
        lines.append(
            "diagnose warns of it here: " + "; ".join(f"{f.name}, {f.measurement}" for f in each.findings) + "."
        )
    return [*lines, *filter(None, (each.doubt, each.note))]


def _named(advice: Sequence[Advice]) -> str:
    """Several starts, or several methods."""
    names = ", ".join(each.start.removeprefix("+ ") for each in advice)
    return f"the method{'s' * (len(advice) > 1)} {names}" if advice[0].is_method else names


def _compared(each: Advice) -> str:
    """The differences from the default; with the name where several stand below each other."""
    name = f"{each.start.removeprefix('+ ')}: " if each.verdict == "noise" else ""
    return f"{name}{'; '.join(map(str, each.found.comparisons if each.found else ()))}."


def _short(value: float | None) -> str:
    return "" if value is None else number(value, digits=2)


def html(answer: Recommendation) -> str:
    """A recommendation for a notebook: escaped, self-contained, in the colours of the page around it."""
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    return jinja2.Template(template, autoescape=True).render(
        headline=f"{answer.model}: {described(answer.facts)}",
        columns=COLUMNS,
        rows=table(answer),
        paragraphs=list(paragraphs(answer)),
        notes=answer.notes,
    )
