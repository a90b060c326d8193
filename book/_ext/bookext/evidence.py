"""The page of all records: how many of each kind, how many agree, and which do not and why.

The directive ``evidence`` shows them; ``records`` gathers them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from docutils import nodes
from sphinx.application import Sphinx

from attntut.evidence import COLUMNS

from .records import Record, add_directive, in_reading_order, place, render

PAGE = """\
<p class="claims-summary">{{ summary }}</p>
{% for title, records in tables if records %}
<p class="rubric">{{ title }}</p>
<table class="evidence-records"><colgroup><col style="width: 40%"><col style="width: 18%"></colgroup>
<thead><tr>{% for column in columns %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead><tbody>
{% for record in records %}
<tr><td><a href="{{ uri(record.page, record.anchor) }}">{{ record.name }}</a></td>
{% for text in record.cells[1:] %}<td>{{ text }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endfor %}
"""


def summarize(records: Iterable[Record]) -> str:
    """Return the count of the records by kind, in sentences."""
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


def show(app: Sphinx, docname: str) -> list[nodes.Node]:
    """Return all records."""
    records = in_reading_order(app)
    tables = [("Where theory and measurement differ", [record for record in records if record.explained])]
    for page, found in groupby(records, key=lambda record: record.page):
        title = place(app, page)
        tables.append((title[:1].upper() + title[1:], list(found)))
    return render(app, docname, PAGE, summary=summarize(records), tables=tables, columns=COLUMNS)


def setup(app: Sphinx) -> None:
    """Register the directive."""
    add_directive(app, "evidence", show)
