"""The Sphinx extension of this book: its theme, and what Jupyter Book does not do.

Each module is one concern with its own ``setup(app)``:

* ``theme``: templates, styles, the few scripts; what a page loads
* ``mathml``: formulas become MathML when the book is built; ``mathfont`` ships the font, reduced to what is used
* ``figures``: alternative text of output images, and a warning where there is none
* ``dropdown``: admonitions that fold, without a script
* ``anchors``: links to a label on another page
* ``claims``: the ledger of the article's claims, from the records that the chapters leave
* ``catalogue``: every initialization scheme of the registry, predicted (``drawn``: and measured) on one page
* ``explorers``: the explorer's script and style, on the pages that have one
* ``address``: buttons that point to the repository, when its address is known
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

from . import address, anchors, catalogue, claims, dropdown, explorers, figures, mathfont, mathml, theme


def setup(app: Sphinx) -> dict[str, Any]:
    """Set up every module."""
    for module in (address, theme, mathml, mathfont, figures, dropdown, anchors, claims, catalogue, explorers):
        module.setup(app)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
