"""The records that ``attntut.evidence`` leaves in the chapters, gathered from all pages of this build.

Each is a row ``<tr class="attntut-record" id=… data-record='{…}'>`` of a table on its page. ``claims`` and ``evidence``
show them again elsewhere, with a link to the cell. Nothing is typed by hand, and a record that failed without an
explanation fails the build.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from html.parser import HTMLParser

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What was said before a measurement, what it gave, and where; as :class:`attntut.evidence.Evidence`."""

    page: str
    anchor: str
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
    def cells(self) -> list[str]:
        """Its name, and what was predicted, measured and found, as its chapter prints them.

        >>> Record("", "", "a", predicted=1.0, measured=0.98, tolerance="within 5 %").cells
        ['a', '1', '0.98', '✓ within 5 %']
        """
        from attntut.evidence import Evidence  # brings torch: not before there is something to print

        values = {key: value for key, value in asdict(self).items() if key not in ("page", "anchor")}
        if self.measured is None:
            return [self.name, "", "", ""]
        return list(Evidence(**values, slug="").cells)


class _Rows(HTMLParser):
    """Collects the elements of class ``attntut-record``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "attntut-record" in (values.get("class") or "").split() and values.get("data-record"):
            self.found.append((values.get("id") or "", values["data-record"] or ""))


def read_records(html: str, page: str = "") -> list[Record]:
    """Return the records in a piece of HTML.

    Args:
        html: what a cell displays.
        page: the page on which it stands, by its name in the book.

    >>> read_records('<tr class="attntut-record" id="evidence-a" data-record=\\'{"name": "a", "claim": "C01"}\\'>')
    [Record(page='', anchor='evidence-a', name='a', ... claim='C01', supports=True, when=None)]
    """
    parser = _Rows()
    parser.feed(html)
    known = set(Record.__dataclass_fields__) - {"page", "anchor"}
    found = []
    for anchor, text in parser.found:
        values = {key: value for key, value in json.loads(text).items() if key in known}
        found.append(Record(page=page, anchor=anchor, **({"name": anchor} | values)))
    return found


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


class ShowsRecords(SphinxDirective):
    """A directive whose place is filled once all pages are read."""

    place: type[nodes.Element]

    def run(self) -> list[nodes.Node]:
        store(self.env).pages[self.env.docname] = self.name
        return [self.place()]


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
    found: list[Record] = []
    for raw in doctree.findall(nodes.raw):
        if "html" in raw.get("format", "") and "attntut-record" in raw.astext():
            found += read_records(raw.astext(), app.env.docname)
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
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("env-get-outdated", outdated)
