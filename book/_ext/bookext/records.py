"""The records that ``attntut.evidence`` leaves in the chapters, gathered from all pages of this build.

A cell's output holds its records under a MIME type of their own, beside the table that the page shows. ``claims`` and
``evidence`` show them again elsewhere, with a link to the row. Nothing is typed by hand, and a record that failed
without an explanation fails the build.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)

MIME = "application/vnd.attntut.evidence+json"  # attntut.evidence.MIME; importing it brings torch


@dataclass(frozen=True)
class Record:
    """What was said before a measurement, what it gave, and where; as :class:`attntut.evidence.Evidence`."""

    page: str
    slug: str
    name: str
    kind: str = "predicted"
    predicted: float | None = None
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 1
    tolerance: str = ""
    unit: str = ""
    passed: bool = True
    explained: str | None = None
    claim: str | None = None
    supports: bool = True
    when: str | None = None

    @property
    def anchor(self) -> str:
        """Of its row on its page."""
        return f"evidence-{self.slug}"

    @property
    def cells(self) -> list[str]:
        """Its name, and what was predicted, measured and found, as its chapter prints them.

        >>> Record("", "", "a", predicted=1.0, measured=0.98, tolerance="within 5 %").cells
        ['a', '1', '0.98', '✓ within 5 %']
        """
        from attntut.evidence import Evidence  # brings torch: not before there is something to print

        values = asdict(self)
        del values["page"]
        return [self.name, "", "", ""] if self.measured is None else list(Evidence(**values).cells)


def read_records(notebook: Mapping[str, Any], page: str = "") -> list[Record]:
    """Return the records in the outputs of an executed notebook.

    Args:
        notebook: its JSON.
        page: its name in the book.

    >>> output = {"data": {MIME: [{"name": "a", "slug": "a", "claim": "C01"}]}}
    >>> read_records({"cells": [{"outputs": [output]}]})
    [Record(page='', slug='a', name='a', ... claim='C01', supports=True, when=None)]
    """
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [Record(page=page, **values) for output in outputs for values in output.get("data", {}).get(MIME, [])]


@dataclass
class Store:
    """What the environment remembers between two builds: the records by page, and which directive shows them where."""

    records: dict[str, list[Record]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)


def store(env: BuildEnvironment) -> Store:
    """Return the environment's store."""
    if not hasattr(env, "book_records"):
        env.book_records = Store()  # type: ignore[attr-defined]
    return env.book_records  # type: ignore[attr-defined]


Show = Callable[[Sphinx, str], list[nodes.Node]]
SHOWS: dict[str, Show] = {}


class place_of_records(nodes.General, nodes.Element):  # docutils names nodes in lower case
    """Where records will stand, once all pages are read."""


class ShowsRecords(SphinxDirective):
    """A directive whose place is filled once all pages are read."""

    def run(self) -> list[nodes.Node]:
        store(self.env).pages[self.env.docname] = self.name
        return [place_of_records(shows=self.name)]


def add_directive(app: Sphinx, name: str, show: Show) -> None:
    """Make ``name`` a directive in whose place stands what ``show(app, docname)`` returns."""
    SHOWS[name] = show
    app.add_directive(name, ShowsRecords)


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the records where a directive stood."""
    for hole in list(doctree.findall(place_of_records)):
        hole.replace_self(SHOWS[hole["shows"]](app, docname))


def in_reading_order(app: Sphinx) -> list[Record]:
    """Return the records of the whole book."""
    includes: Mapping[str, list[str]] = app.env.toctree_includes
    order: dict[str, int] = {}

    def walk(page: str) -> None:
        if page not in order:
            order[page] = len(order)
            for child in includes.get(page, []):
                walk(child)

    walk(app.config.root_doc)
    known = store(app.env).records
    return [record for page in sorted(known, key=lambda page: order.get(page, len(order))) for record in known[page]]


def link(app: Sphinx, source: str, target: str, anchor: str, text: str) -> nodes.reference:
    """Return a link from one page to an anchor on another."""
    address = app.builder.get_relative_uri(source, target) + (f"#{anchor}" if anchor else "")
    return nodes.reference("", text, internal=True, refuri=address)


def place(app: Sphinx, page: str) -> str:
    """Return what a page is called, with the number of its chapter."""
    section = app.env.toc_secnumbers.get(page, {}).get("")
    title = app.env.titles[page].astext()
    return f"chapter {'.'.join(map(str, section))}, {title}" if section else title


def failures(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return what is wrong with them: pairs of a page and a message."""
    return [
        (record.page, f"the comparison {record.name!r} ({record.anchor}) failed")
        for record in records
        if not (record.passed or record.explained)
    ]


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Remember the records of a page that was just read."""
    executed = Path(app.env.mystnb_config.output_folder, f"{app.env.docname}.ipynb")  # type: ignore[attr-defined]
    notebook = json.loads(executed.read_text(encoding="utf-8")) if executed.exists() else {"cells": []}
    found = read_records(notebook, app.env.docname)
    for anchor, times in Counter(record.anchor for record in found).items():
        if times > 1:
            logger.warning("%s comparisons have the name %s", times, anchor, location=app.env.docname, type="book")
    for page, message in failures(found):
        logger.warning("%s", message, location=page, type="book")
    store(app.env).records[app.env.docname] = found


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that will be read again."""
    store(env).records.pop(docname, None)
    store(env).pages.pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Take over what another process read."""
    mine, theirs = store(env), store(other)
    mine.records |= {docname: theirs.records[docname] for docname in docnames if docname in theirs.records}
    mine.pages |= {docname: theirs.pages[docname] for docname in docnames if docname in theirs.pages}


def outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Read the pages that show records again whenever any other page changed."""
    return sorted(store(env).pages.keys() - removed) if added | changed | removed else []


def setup(app: Sphinx) -> None:
    """Follow the build."""
    app.add_node(place_of_records)
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("env-get-outdated", outdated)
    app.connect("doctree-resolved", fill)
