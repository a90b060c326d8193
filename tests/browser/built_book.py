"""Where the built book is, and which pages it has."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILT = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))


def built_pages() -> list[str]:
    """Return the addresses of the built pages within the site, in order; empty when the book is not built."""
    names = (path.relative_to(BUILT).as_posix() for path in BUILT.rglob("*.html"))
    return sorted(name for name in names if not name.startswith(("_", "index.html")))
