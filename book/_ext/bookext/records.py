"""The records that ``attntut.evidence`` leaves in the chapters, gathered from all pages of this build.

A cell's output holds its records under a MIME type of their own, beside the table that the page shows. They are read
from the executed notebooks once, when all pages are read; ``claims`` and ``evidence`` show them again elsewhere, with a
link to the row, and so does the role ``record`` in a sentence, as in {record}`9: share of the input`, of chapter 9.
Nothing is typed by hand, and a record that does not agree with the text fails the build.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from docutils import nodes
from jinja2 import Environment
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from attntut.evidence import MIME, Evidence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Record(Evidence):
    """What was said before a measurement, what it gave, and on which page."""

    page: str

    @property
    def anchor(self) -> str:
        """Of its row on its page."""
        return f"evidence-{self.slug}"


def read_records(notebook: Mapping[str, Any], page: str = "") -> list[Record]:
    """Return the records in the outputs of an executed notebook, its JSON."""
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return [Record(page=page, **values) for output in outputs for values in output.get("data", {}).get(MIME, [])]


SHOWN = "shows_records"  # in a page's metadata: the directive that it has
Show = Callable[[Sphinx, str], list[nodes.Node]]
SHOWS: dict[str, Show] = {}


class place_of_records(nodes.General, nodes.Element):  # docutils names nodes in lower case
    """Where records will stand, once all pages are read."""


class ShowsRecords(SphinxDirective):
    """A directive whose place is filled once all pages are read."""

    def run(self) -> list[nodes.Node]:
        self.env.metadata[self.env.docname][SHOWN] = self.name
        return [place_of_records(shows=self.name)]


class cited_record(nodes.Inline, nodes.Element):  # docutils names nodes in lower case
    """Where a record will be named, once all pages are read."""


class CitesRecord(SphinxRole):
    """A record's name as a link to its row, with what was predicted and measured."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.metadata[self.env.docname].setdefault(SHOWN, self.name)
        node = cited_record(text=self.text)
        self.set_source_info(node)
        return [node], []


def cite(app: Sphinx, docname: str, node: nodes.Element) -> list[nodes.Node]:
    """Return the name and the numbers of the record that a role names; warn of one that is not there."""
    record = find(in_reading_order(app), node["text"])
    if record is None:
        logger.warning("no record %r", node["text"], location=node, type="book")
        return [nodes.Text(node["text"])]
    uri = f"{app.builder.get_relative_uri(docname, record.page)}#{record.anchor}"
    link = nodes.reference("", record.name, refuri=uri)
    return [nodes.inline("", "", link, nodes.Text(f": {numbers(record)}"), classes=["record"])]


def find(records: Iterable[Record], text: str) -> Record | None:
    """The record that ``"9: its name"`` names, of chapter 9."""
    chapter, _, name = text.partition(": ")
    wanted = f"/{int(chapter):02d}-" if chapter.isdecimal() else chapter
    return next((each for each in records if each.name == name and wanted in f"/{each.page}"), None)


def numbers(record: Evidence) -> str:
    """What a sentence says of a record: its measurement, and the prediction where a formula made one."""
    _, predicted, measured, agreement = record.cells
    seeds = agreement.rpartition(", ")[2] if record.n > 1 else ""
    said = [measured, f"predicted {predicted}" if record.kind == "predicted" else "", seeds]
    return ", ".join(filter(None, said))


def add_directive(app: Sphinx, name: str, show: Show) -> None:
    """Make ``name`` a directive in whose place stands what ``show(app, docname)`` returns."""
    SHOWS[name] = show
    app.add_directive(name, ShowsRecords)


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the records where a directive stood."""
    for hole in list(doctree.findall(place_of_records)):
        hole.replace_self(SHOWS[hole["shows"]](app, docname))
    for node in list(doctree.findall(cited_record)):
        node.replace_self(cite(app, docname, node))


def pages_with(env: BuildEnvironment, *directives: str) -> list[str]:
    """Return the pages that have one of these directives."""
    return sorted(page for page, about in env.metadata.items() if about.get(SHOWN) in directives)


@lru_cache(maxsize=1)  # of one build
def in_reading_order(app: Sphinx) -> list[Record]:
    """Return the records of the whole book."""
    folder = Path(app.env.mystnb_config.output_folder)  # type: ignore[attr-defined]
    order = [*app.env.collect_relations()]
    pages = [*order, *sorted(app.env.found_docs - {*order})]
    executed = {page: path for page in pages if (path := folder / f"{page}.ipynb").exists()}
    return [r for page, path in executed.items() for r in read_records(json.loads(path.read_bytes()), page)]


def render(app: Sphinx, docname: str, template: str, **values: Any) -> list[nodes.Node]:
    """Return HTML on a page; in its template ``uri(page, anchor)`` is where a link leads, and ``place`` as below."""

    def uri(page: str, anchor: str) -> str:
        return f"{app.builder.get_relative_uri(docname, page)}#{anchor}"

    jinja = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = jinja.from_string(template).render(uri=uri, place=partial(place, app), **values)
    return [nodes.raw("", text, format="html")]


def place(app: Sphinx, page: str) -> str:
    """Return what a page is called, with the number of its chapter."""
    section = app.env.toc_secnumbers.get(page, {}).get("")
    title = app.env.titles[page].astext()
    return f"chapter {'.'.join(map(str, section))}, {title}" if section else title


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of records that failed, and of two with one name on a page."""
    found = in_reading_order(app)
    for (page, anchor), times in Counter((record.page, record.anchor) for record in found).items():
        if times > 1:
            logger.warning("%s comparisons have the name %s", times, anchor, location=page, type="book")
    for record in found:
        if not record.agrees:
            logger.warning(
                "the comparison %r (%s) failed", record.name, record.anchor, location=record.page, type="book"
            )


def outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Read the pages that show records again whenever any other page changed."""
    pages = pages_with(env, *SHOWS, "record") if added | changed | removed else []
    return [page for page in pages if page not in removed]


def setup(app: Sphinx) -> None:
    """Follow the build."""
    app.add_node(place_of_records)
    app.add_node(cited_record)
    app.add_role("record", CitesRecord())
    app.connect("env-get-outdated", outdated)
    app.connect("env-check-consistency", check)
    app.connect("doctree-resolved", fill)
