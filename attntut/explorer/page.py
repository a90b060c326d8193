"""The static page: a figure that holds its picture and its data, and that ``explorer.js`` brings to life."""

from __future__ import annotations

import base64
import gzip
import html
import struct
from pathlib import Path

from .picture import webp

HERE = Path(__file__).parent
SCRIPT, STYLE = HERE / "explorer.js", HERE / "explorer.css"


def assets() -> dict[str, Path]:
    """The files that a page with explorers loads once: ``{"js": …, "css": …}``.

    The script is an ES module: ``<script type="module" src="explorer.js"></script>``.
    """
    return {"js": SCRIPT, "css": STYLE}


def figure(*, title: str, alt: str, caption: str, png: bytes, data: bytes) -> str:
    """Return the ``<figure>`` of one explorer; it stands alone and asks for nothing."""
    width, height = struct.unpack(">II", png[16:24])  # of its header
    mime, picture = webp(png)
    lines = [
        '<figure class="attntut-explorer">',
        f'<figcaption class="attntut-title">{html.escape(title)}</figcaption>',
        f'<img class="attntut-picture" width="{width}" height="{height}" alt="{html.escape(alt)}" '
        f'src="data:{mime};base64,{base64.b64encode(picture).decode()}">',
        f'<p class="attntut-caption">{html.escape(caption)}</p>' if caption else "",
        f'<script type="application/json" class="attntut-data">"{base64.b64encode(data).decode()}"</script>',
        "</figure>",
    ]
    return "\n".join(filter(None, lines))


def weight(text: str) -> int:
    """Bytes of the text as a server sends it."""
    return len(gzip.compress(text.encode(), 9))
