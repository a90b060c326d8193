"""The Sphinx extension of this book: its theme, and what Jupyter Book does not do.

Each module is one concern with its own ``setup(app)``:

* ``theme``: templates, styles, the few scripts; what a page loads
* ``mathml``: formulas become MathML when the book is built; ``mathfont`` ships the font, reduced to what is used
* ``figures``: alternative text of output images, and a warning where there is none
* ``diagrams``: drawings become part of the page
* ``portable``: plain Markdown becomes citations and notes
* ``anchors``: links to a label on another page; ``numbers``: a chapter's number is that of its file
* ``records``: what ``attntut.evidence`` left in the chapters; ``claims``: the ledger of the article's claims made of
  it; ``evidence``: all of it on one page
* ``questions``: the map, drawn from the rules of ``attntut.recommend``
* ``sheet``: what all chapters say to remember, on one page to print
* ``exercises``: a place to answer them on the page, and their map
* ``playground``: the data of the page in which a small Transformer trains; ``presets``: its questions, and their
  answers
* ``address``: buttons that point to the repository, when its address is known
* ``published``: copies of the chapters that install what they need, to download or to open in Colab

``catalogue`` (with ``drawn``, what it measures) and ``methods`` are no part of the build: they are what the cells of
these two pages show, and ``entries`` is what both have in common. ``sortable`` draws a table
that a reader sorts and filters.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sphinx.application import Sphinx

NAMES = """
    address theme mathml mathfont figures diagrams portable anchors numbers
    records claims evidence questions remedies sheet exercises playground presets published
"""
MODULES = tuple(import_module(f"{__name__}.{name}") for name in NAMES.split())


def setup(app: Sphinx) -> dict[str, Any]:
    """Set up every module."""
    for module in MODULES:
        module.setup(app)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
