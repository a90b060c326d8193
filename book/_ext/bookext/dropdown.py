"""Admonitions of class ``dropdown`` become ``<details>``: they fold without any script.

In a chapter: ``:::{admonition} Hint``, then ``:class: dropdown``, the text, and ``:::``.
"""

from __future__ import annotations

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.writers.html5 import HTML5Translator


class details(nodes.General, nodes.Element):  # docutils names nodes in lower case
    """A box that folds; its first child is the summary."""


class summary(nodes.General, nodes.TextElement):
    """What is seen of a folded box."""


class FoldAdmonitions(SphinxPostTransform):
    """Replace every admonition of class ``dropdown`` by ``details``."""

    default_priority = 200
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        for node in list(self.document.findall(nodes.Admonition)):
            if not isinstance(node, nodes.Element) or "dropdown" not in node.get("classes", []):
                continue
            title = next((c for c in node.children if isinstance(c, nodes.title)), None)
            kind = node.tagname
            classes = [c for c in node["classes"] if c != "dropdown" and not c.startswith("admonition-")]
            folded = details(classes=["admonition", "dropdown", *([kind] if kind != "admonition" else []), *classes])
            folded["ids"] = node["ids"]
            text = title.children if title is not None else [nodes.Text(kind.capitalize())]
            folded += summary("", "", *text)
            folded += [child for child in node.children if child is not title]
            node.replace_self(folded)


def visit_details(self: HTML5Translator, node: details) -> None:
    """Open the box."""
    self.body.append(self.starttag(node, "details"))


def depart_details(self: HTML5Translator, node: details) -> None:
    """Close the box."""
    self.body.append("</details>\n")


def visit_summary(self: HTML5Translator, node: summary) -> None:
    """Open the line that stays in sight."""
    self.body.append(self.starttag(node, "summary", "", CLASS="admonition-title"))


def depart_summary(self: HTML5Translator, node: summary) -> None:
    """Close it."""
    self.body.append("</summary>\n")


def setup(app: Sphinx) -> None:
    """Register the nodes and the transform."""
    app.add_node(details, html=(visit_details, depart_details))
    app.add_node(summary, html=(visit_summary, depart_summary))
    app.add_post_transform(FoldAdmonitions)
