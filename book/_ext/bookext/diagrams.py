"""Diagrams: drawings in ``book/diagrams`` become part of the page, in its colours and with its text.

A page or a notebook shows one as an image alone in its paragraph, ``![what it shows](../book/diagrams/heads.svg)``, so
JupyterLab and code hosts show it too. There the file is seen as it is: it carries its style, which knows light and
dark, and a card to lie on. Here both are taken away, and the page loads the rules (``book/_static/diagrams.css``) once:

* ``text`` is ink in the page's font; ``d-title``, ``d-small``, ``d-math``, ``d-sub`` change its form
* ``d-box``, ``d-line``, ``d-region``, ``d-fill``, ``d-ink`` are shapes; ``d-dash`` changes their form
* ``d-0`` … ``d-5`` (query, key, value, output, …), ``d-accent``, ``d-muted`` change the colour of any of them
* ``d-card`` is the ground on which the drawing lies where there is no page

So a drawing holds no colour but in its style, the same in all: ``book/diagrams/style.css``, which has the colours where
there is no page, then those rules. Text is text: it is read, searched and translated (Sphinx takes ``heads.zh_CN.svg``
in a Chinese book).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging

logger = logging.getLogger(__name__)

SVG = "{http://www.w3.org/2000/svg}"
FOLDER = "diagrams"


def inline(source: str, *, alt: str, prefix: str) -> str:
    """Return a drawing as a page holds it: without its own style and card, and with a name.

    Args:
        source: the file.
        alt: the drawing's name for readers who do not see it.
        prefix: of its identifiers, so that two drawings on a page do not meet.

    >>> source = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 6"><style>…</style><path class="d-card"/>'
    >>> inline(source + '<path id="p"/><use href="#p"/></svg>', alt="A path", prefix="a-")
    '<svg viewBox="0 0 9 6" width="9" height="6" role="img" aria-label="A path"><path
    id="a-p" /><use href="#a-p" /></svg>'
    """
    for mark in (' id="', "url(#", 'href="#'):
        source = source.replace(mark, mark + prefix)
    root = ElementTree.fromstring(source)
    _, _, width, height = root.get("viewBox", "").split()
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{SVG}style" or child.get("class") == "d-card":
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
    root.attrib |= {"width": width, "height": height, "role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode")


class InlineDiagrams(SphinxPostTransform):
    """Replace the images of diagrams by the diagrams."""

    default_priority = 200
    formats = ("html",)

    def run(self, **kwargs: object) -> None:
        images = [i for i in self.document.findall(nodes.image) if PurePosixPath(i["uri"]).parent.name == FOLDER]
        for number, image in enumerate(images, 1):
            path = Path(self.env.srcdir, image["uri"])
            if not path.exists():
                continue  # Sphinx has said so
            try:
                svg = inline(path.read_text(encoding="utf-8"), alt=image.get("alt", ""), prefix=f"diagram-{number}-")
            except (ElementTree.ParseError, ValueError) as error:
                logger.warning("%s is no drawing with a viewBox: %s", image["uri"], error, location=image, type="book")
                continue
            figure = nodes.raw("", f'<figure class="attntut-figure">{svg}</figure>', format="html")
            figure.source, figure.line = image.source, image.line
            alone = isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1
            (image.parent if alone else image).replace_self(figure)


def setup(app: Sphinx) -> None:
    """Register the transform."""
    app.add_post_transform(InlineDiagrams)
