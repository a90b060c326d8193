"""Images: alternative text, dimensions, and loading when they come into sight.

myst-nb copies the width and the height of an output image from its metadata, but not the alternative text. Here
that is copied, and the size is the file's own; an image or an inline drawing that has none is a warning of the build.
"""

from __future__ import annotations

import re
from functools import wraps
from pathlib import Path
from typing import Any

import imagesize
from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

NAMELESS = re.compile(r'<img\b(?![^>]*\balt="\s*[^"\s])|<svg\b(?![^>]*\baria-(?:label|hidden)="\s*[^"\s])')


def keep_alternative_text() -> None:
    """Make myst-nb keep ``metadata={"image/png": {"alt": …}}`` of a displayed image."""
    original = NbElementRenderer.render_image
    if getattr(original, "keeps_alt", False):
        return

    @wraps(original)
    def render_image(self: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
        found = original(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        for image in (node for node in found if isinstance(node, nodes.image)):
            if alt:
                image["alt"] = str(alt)
            for side in ("width", "height"):  # docutils makes a style of them, which a phone cannot shrink; see finish
                image.attributes.pop(side, None)
        return found

    render_image.keeps_alt = True  # type: ignore[attr-defined]
    NbElementRenderer.render_image = render_image


def images_without_alt(html: str) -> int:
    """Return how many images and drawings in a piece of HTML have no name.

    >>> images_without_alt('<img src="a.png"><img src="b.png" alt="b"><svg></svg><svg aria-label="c"></svg>')
    2
    """
    return len(NAMELESS.findall(html))


def check(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Warn of every image without alternative text."""
    for image in doctree.findall(nodes.image):
        if not str(image.get("alt", "")).strip():
            logger.warning("an image without alternative text: %s", image["uri"], location=image, type="book")
    for raw in doctree.findall(nodes.raw):
        if "html" in raw.get("format", "") and images_without_alt(raw.astext()):
            logger.warning("an image in HTML without alternative text", location=raw, type="book")


def size(path: Path) -> tuple[int, int]:
    """Return the width and height in CSS pixels (96 an inch): a sharper picture is not a larger one."""
    width, height = imagesize.get(path)
    dpi, _ = imagesize.getDPI(path)
    shrink = 96 / dpi if dpi > 96 else 1
    return round(width * shrink), round(height * shrink)


def finish(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Give every image of the page its size, and let it load when it comes near."""
    body = context.get("body")
    if not body:
        return
    paths = {name: Path(app.srcdir, source) for source, name in getattr(app.builder, "images", {}).items()}

    def attributes(match: re.Match[str]) -> str:
        tag = match.group(0)
        extra = "" if "loading=" in tag else ' loading="lazy" decoding="async"'
        source = re.search(r'src="([^"]*)"', tag)
        path = paths.get(source.group(1).rsplit("/", 1)[-1]) if source else None
        if path and path.exists() and "width" not in tag:
            width, height = size(path)
            extra += f' width="{width}" height="{height}"' if width > 0 else ""
        return f"<img{extra}{tag[4:]}"

    context["body"] = re.sub(r"<img\b[^>]*>", attributes, body)


def setup(app: Sphinx) -> None:
    """Connect the three."""
    keep_alternative_text()
    app.connect("doctree-resolved", check)
    app.connect("html-page-context", finish)
