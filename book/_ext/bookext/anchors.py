"""Links to a label on another page, as ``[section 3.1](../book/article.md#article-3-1)`` to ``(article-3-1)=``.

They are the links that also work in JupyterLab and on a code host. myst-parser follows them to headings only; here
every label joins the anchors of its page, and so does every ``id`` of its HTML: of a scheme, of a record.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Add the labels of a page that was just read to the anchors that links may name."""
    metadata = app.env.metadata[app.env.docname]
    known = dict(metadata.get("myst_slugs", {}))
    found = {label: id for label, id in doctree.nameids.items() if id and doctree.nametypes.get(label)}
    for raw in doctree.findall(nodes.raw):
        found |= {id: id for id in re.findall(r'<[^>]*\bid="([^"]+)"', raw.astext())}
    for label, identifier in found.items():
        known.setdefault(label, (0, identifier, label))
    metadata["myst_slugs"] = known


def setup(app: Sphinx) -> None:
    """Collect after myst-parser did."""
    app.connect("doctree-read", collect)
