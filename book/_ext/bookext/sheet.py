"""The sheet to print: what each chapter says to remember, taken from the chapter itself.

Where the directive ``sheet`` stands, the page gets a link to each chapter and the list under its heading "What to
remember". A chapter without one fails the build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from .numbers import CHAPTER

logger = logging.getLogger(__name__)

TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
LIST = re.compile(r"^## What to remember\n+((?:(?:- |  +)\S.*(?:\n|\Z))+)", re.MULTILINE)


def remembered(notebook: Mapping[str, Any]) -> tuple[str, str]:
    """Return a chapter's title and its list, in Markdown; the list is empty where there is none.

    >>> cells = [{"cell_type": "markdown", "source": text} for text in ("# Depth", "## What to remember\\n\\n- It.")]
    >>> remembered({"cells": cells})
    ('Depth', '- It.')
    """
    text = "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    title, points = TITLE.search(text), LIST.search(text)
    return title[1] if title else "", points[1].rstrip() if points else ""


class Sheet(SphinxDirective):
    """Its place is taken by the lists of all chapters."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # whichever chapter is new or changed
        parts = []
        for page in sorted(filter(CHAPTER.match, self.env.found_docs)):
            title, points = remembered(json.loads(Path(self.env.doc2path(page)).read_bytes()))
            if not points:
                message = "%s has no list under a heading 'What to remember', which the sheet needs"
                logger.warning(message, page, location=page, type="book")
            number = int(CHAPTER.match(page)[1])  # type: ignore[index]
            parts.append(f"## {{doc}}`{number}. {title} </{page}>`\n\n{points}")
        return self.parse_text_to_nodes("\n\n".join(parts), allow_section_headings=True)


def setup(app: Any) -> None:
    """Add the directive."""
    app.add_directive("sheet", Sheet)
