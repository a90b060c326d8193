"""A book of a few pages, built with the book's own extension."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

CONFIG = {
    "extensions": ["myst_nb", "bookext"],
    "html_theme": "bookext",
    "html_math_renderer": "mathml",
    "nb_execution_mode": "off",
    "book_claims": "claims.yml",
    "project": "A book",
}


class Built:
    """The pages, and what their build said."""

    def __init__(self, out: Path, warnings: str) -> None:
        self.out, self.warnings = out, re.sub(r"\x1b\[[\d;]*m", "", warnings)

    def page(self, name: str) -> str:
        return (self.out / f"{name}.html").read_text(encoding="utf-8")


def build_book(folder: Path, files: dict[str, str], **config: Any) -> Built:
    """Write the files, build them in ``folder`` and show the result; what the files need is in ``config``."""
    source, warnings = folder / "source", StringIO()
    for name, text in {"claims.yml": "[]", **files}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    with docutils_namespace():
        app = Sphinx(
            source, None, folder / "out", folder / "trees", "html", CONFIG | config, status=None, warning=warnings,
            freshenv=True,
        )  # fmt: skip
        app.build(force_all=True)
    return Built(folder / "out", warnings.getvalue())
