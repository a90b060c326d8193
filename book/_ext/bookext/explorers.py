"""The explorer's script and style, on the pages that have an explorer and nowhere else."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.fileutil import copy_asset_file

MARK = 'class="attntut-explorer'
SCRIPT, STYLE = "explorer.js", "explorer.css"


def assets() -> list[Path]:
    """Return the files of ``attntut.explorer`` that a static page needs."""
    spec = find_spec("attntut")
    places = list(spec.submodule_search_locations or []) if spec else []
    return [path for place in places for name in (SCRIPT, STYLE) if (path := Path(place, "explorer", name)).exists()]


def copy(app: Sphinx, exception: Exception | None) -> None:
    """Copy the explorer's files among the static ones."""
    if exception is None and app.builder.format == "html":
        target = Path(app.outdir, "_static")
        target.mkdir(parents=True, exist_ok=True)
        for path in assets():
            copy_asset_file(str(path), str(target))


def add(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Say to the template whether the page has an explorer."""
    context["has_explorer"] = MARK in context.get("body", "")


def setup(app: Sphinx) -> None:
    """Connect the two."""
    app.connect("build-finished", copy)
    app.connect("html-page-context", add)
