"""Plain Markdown, as every notebook viewer shows it, becomes what the book has of its own.

A chapter is also read in JupyterLab, in an editor and on a code host, where roles and directives are raw markup. So it
is written without them, and here, on what was parsed (code and formulas are out of reach),

* a quote that begins with a bold sentence, ``> **Title.** Text``, becomes a note of that title;
* a link to the address of a paper in the bibliography becomes a citation of it: ``[He et al. (2015)](…)`` in running
  text, ``([He et al., 2015](…))`` in parentheses. A label that names other authors or another year is a warning.

A hint that folds (``<details>``, ``<summary>Hint</summary>``, text, ``</details>``) does so in a page as it is.

What runs and what is downloaded stays as it was, and so does the cache of executed notebooks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import sphinxcontrib.bibtex.plugin
from docutils import nodes
from pybtex.database import Entry
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinxcontrib.bibtex.style.referencing import BracketStyle
from sphinxcontrib.bibtex.style.referencing.author_year import AuthorYearReferenceStyle

logger = logging.getLogger(__name__)

CITES = re.compile(r".*\w\.?(, \d{4}| \(\d{4}\))", re.DOTALL)


def address(entry: Entry) -> str | None:
    """Where a paper is found: its ``url``, else its ``doi``, else its ``eprint`` on arXiv."""
    fields = entry.fields
    if "url" in fields:
        return str(fields["url"])
    if "doi" in fields:
        return f"https://doi.org/{fields['doi']}"
    return f"https://arxiv.org/abs/{fields['eprint']}" if "eprint" in fields else None


def labels(entry: Entry) -> dict[str, str]:
    """How a link names a paper, and the role of the citation that it becomes: textual, or for use in parentheses."""
    persons = entry.persons.get("author") or entry.persons.get("editor") or []
    names = [" ".join(map(str, person.rich_prelast_names + person.rich_last_names)) for person in persons]
    who = f"{names[0]} et al." if len(names) > 2 else " and ".join(names)
    year = entry.fields.get("year", "")
    return {f"{who} ({year})": "t", f"{who}, {year}": "alp"}


class Portable(SphinxTransform):
    """Replace the two in one document."""

    default_priority = 5  # before translation and the collection of titles

    def apply(self, **kwargs: object) -> None:
        for section in self.document.findall(nodes.section):
            self.check_folds(section)
        for quote in list(self.document.findall(nodes.block_quote)):
            self.note(quote)
        for link in list(self.document.findall(nodes.reference)):
            self.cite(link)

    def check_folds(self, section: nodes.section) -> None:
        """Warn of a ``<details>`` that does not end: it would hide the rest of the page."""
        raw = "".join(node.astext() for node in section.children if isinstance(node, nodes.raw))
        if raw.count("<details") != raw.count("</details>"):
            logger.warning("a <details> has no </details> in a paragraph of its own", location=section, type="book")

    def note(self, quote: nodes.block_quote) -> None:
        """Make a note of ``quote`` if its first words are bold and end like a sentence."""
        first = quote[0] if len(quote) else None
        if not isinstance(first, nodes.paragraph):
            return
        words = [node for node in first if node.astext()]  # before bold words stands an empty text
        if not isinstance(words[0], nodes.strong) or not words[0].astext().endswith((".", "?", "!", "。")):
            return
        title = words[0].astext().removesuffix(".").removesuffix("。")
        text = nodes.paragraph(first.rawsource.partition(f"{words[0].astext()}**")[2].strip())
        text.line, text.source = first.line, first.source
        if len(words) > 1 and isinstance(words[1], nodes.Text):
            words[1] = nodes.Text(words[1].lstrip())
        text += words[1:]
        rest = [*([text] if text.astext().strip() else []), *quote.children[1:]]
        quote.replace_self(nodes.admonition("", nodes.title(title, title), *rest, classes=["note"]))

    def cite(self, link: nodes.reference) -> None:
        """Make a citation of ``link`` if its address is that of a paper."""
        found = self.papers().get(link.get("refuri", ""))
        label = " ".join(link.astext().split())
        if found is None:
            if CITES.fullmatch(label) and "://" in link.get("refuri", ""):
                logger.warning("the bibliography has no %s for %r", link["refuri"], label, location=link, type="book")
            return
        key, names = found
        if label not in names:
            wanted = " or ".join(map(repr, names))
            logger.warning("%s is %s, not %r", link["refuri"], wanted, label, location=link, type="book")
            return
        role, source = names[label], link.source or self.document.get("source", "")
        inliner: Any = SimpleNamespace(document=self.document, reporter=SimpleNamespace())
        inliner.reporter.get_source_and_line = lambda line=None: (source, line)
        made, _ = self.env.get_domain("cite").role(role)("", f"{{cite:{role}}}`{key}`", key, link.line or 0, inliner)
        link.replace_self(made)

    def papers(self) -> dict[str, tuple[str, dict[str, str]]]:
        """The key and the labels of every paper, by address."""
        if "cite" not in self.env.domains:
            return {}
        entries = self.env.get_domain("cite").bibdata.data.entries
        return {where: (key, labels(entry)) for key, entry in entries.items() if (where := address(entry))}


def _round() -> BracketStyle:
    return BracketStyle("(", ")")


@dataclass
class Round(AuthorYearReferenceStyle):
    """Author and year in round brackets, as the labels of links have them."""

    bracket_textual: BracketStyle = field(default_factory=_round)
    bracket_parenthetical: BracketStyle = field(default_factory=_round)


def setup(app: Sphinx) -> None:
    """Register the transform, and ``bibtex_reference_style: round``."""
    sphinxcontrib.bibtex.plugin.register_plugin("sphinxcontrib.bibtex.style.referencing", "round", Round)
    app.add_transform(Portable)
