"""The page of all records: how many of each kind, how many agree, and which do not and why.

The directive ``evidence`` shows them; ``records`` gathers them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby

from docutils import nodes
from sphinx.application import Sphinx

from .records import Record, add_directive, in_reading_order, link, place

HEAD = ("quantity", "predicted", "measured", "agreement")


def summarize(records: Iterable[Record]) -> str:
    """Return the count of the records by kind, in sentences.

    >>> print(summarize([Record("", "", "a"), Record("", "", "b", passed=False, explained="why")]))
    2 records. 2 were predicted by a formula: 1 agrees within its tolerance, and 1 differs for a reason that the text
    gives. 0 were expected for a reason, and came out so. 0 are observations.
    """
    records = list(records)
    count = Counter(record.kind for record in records)
    differ = sum(bool(record.explained) for record in records)
    agree, seen = count["predicted"] - differ, count["observed"]
    return (
        f"{len(records)} records. {count['predicted']} were predicted by a formula: {agree} "
        f"{'agrees within its' if agree == 1 else 'agree within their'} tolerance, and {differ} "
        f"{'differs' if differ == 1 else 'differ'} for a reason that the text gives. {count['expected']} were expected "
        f"for a reason, and came out so. {seen} {'is an observation' if seen == 1 else 'are observations'}."
    )


def table(app: Sphinx, docname: str, records: Sequence[Record]) -> nodes.table:
    """Return a table of records, each with a link to its cell."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (40, 18, 21, 21)), cols=len(HEAD))
    head, body = nodes.thead(), nodes.tbody()
    head += nodes.row("", *(nodes.entry("", nodes.paragraph("", title)) for title in HEAD))
    for record in records:
        name, *rest = record.cells
        cells = [nodes.paragraph("", "", link(app, docname, record.page, record.anchor, name))]
        cells += [nodes.paragraph("", text) for text in rest]
        body += nodes.row("", *(nodes.entry("", cell) for cell in cells))
    group += [head, body]
    return nodes.table("", group, classes=["evidence-records"])


def show(app: Sphinx, docname: str) -> list[nodes.Node]:
    """Return all records."""
    records = in_reading_order(app)
    shown: list[nodes.Node] = [nodes.paragraph("", summarize(records), classes=["claims-summary"])]
    explained = [record for record in records if record.explained]
    if explained:
        shown += [nodes.rubric("", "Where theory and measurement differ"), table(app, docname, explained)]
    for page, found in groupby(records, key=lambda record: record.page):
        title = place(app, page)
        shown += [nodes.rubric("", title[:1].upper() + title[1:]), table(app, docname, list(found))]
    return shown


def setup(app: Sphinx) -> None:
    """Register the directive."""
    add_directive(app, "evidence", show)
