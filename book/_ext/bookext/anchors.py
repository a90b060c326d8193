"""Links to a label on another page, as ``[section 3.1](../book/article.md#article-3-1)`` to ``(article-3-1)=``.

They are the links that also work in JupyterLab and on a code host. myst-parser follows them to headings only; here
every label joins the anchors of its page.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Add the labels of a page that was just read to the anchors that links may name."""
    metadata = app.env.metadata[app.env.docname]
    known = dict(metadata.get("myst_slugs", {}))
    for label, identifier in doctree.nameids.items():
        if identifier and doctree.nametypes.get(label):
            known.setdefault(label, (0, identifier, label))
    metadata["myst_slugs"] = known


def setup(app: Sphinx) -> None:
    """Collect after myst-parser did."""
    app.connect("doctree-read", collect)
