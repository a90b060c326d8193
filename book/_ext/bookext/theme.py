"""What a page is made of: the templates beside this file, one stylesheet, one small script.

The templates inherit from Sphinx's plain ``basic`` theme. A page loads only what it uses: the script and the style of
explorers, say, where it has one.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from pygments.formatters import HtmlFormatter
from sphinx.application import Sphinx

from . import playground

HERE = Path(__file__).parent
LIGHT, DARK = "a11y-high-contrast-light", "a11y-high-contrast-dark"
STYLES, SCRIPTS = ("pygments.css", "book.css"), ("book.js",)


def highlighting() -> str:
    """Return the style of code, for the light and the dark page."""
    light, dark = HtmlFormatter(style=LIGHT), HtmlFormatter(style=DARK)

    def rules(formatter: HtmlFormatter, prefix: str) -> list[str]:
        found = formatter.get_style_defs(f"{prefix}.highlight").splitlines()
        return [rule for rule in found if rule.startswith(prefix) and not rule.startswith(f"{prefix}.highlight {{")]

    night = rules(dark, ':root[data-theme="dark"] ')
    unset = [rule.replace('[data-theme="dark"]', ":not([data-theme])") for rule in night]
    day = [rule.replace("@", "", 1) for rule in rules(light, "@")]
    return "\n".join([*day, *night, "@media (prefers-color-scheme: dark) {", *unset, "}", ""])


def sections(toc: str) -> str:
    """Return the list of a page's sections from Sphinx's list, which begins with the page's own title.

    >>> sections('<ul><li><a href="#">Page</a><ul><li><a href="#a">A</a></li></ul></li></ul>')
    '<ul><li><a href="#a">A</a></li></ul>'
    >>> sections('<ul><li><a href="#">Page</a></li></ul>')
    ''
    """
    found = re.match(r"\s*<ul>\s*<li>\s*<a\b.*?</a>\s*(<ul>.*</ul>)\s*</li>\s*</ul>\s*$", toc, flags=re.DOTALL)
    return found.group(1) if found else ""


def scrollable(body: str) -> str:
    """Put every table into a box of its own, in which it scrolls when the page is narrow."""
    return re.sub(r"<table\b.*?</table>", r'<div class="table-box">\g<0></div>', body, flags=re.DOTALL)


def add(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: object) -> None:
    """Prepare what the templates need."""
    body = context.get("body", "")
    body = re.sub(r' role="(?:list|doc-biblioentry)"', "", body)  # roles that docutils gives to lists that are none
    body = body.replace(' aria-label="Toggle hidden content"', "")  # it hides that the summary says "Show the code"
    context["body"] = scrollable(body)
    context["sections"] = sections(context.get("toc", "")) if context.get("display_toc") else ""
    context["root_title"] = app.env.titles[app.config.root_doc].astext()
    context["uses_design"] = re.search(r'class="[^"]*\bsd-', body) is not None
    design = [getattr(f, "filename", str(f)) for f in context.get("css_files", [])]
    context["design_styles"] = [str(f).removeprefix("_static/") for f in design if "design" in str(f)]
    is_notebook = pagename in app.env.found_docs and str(app.env.doc2path(pagename)).endswith(".ipynb")
    context["notebook"] = f"{pagename}.ipynb" if is_notebook else None  # bookext.published
    context["playground_scripts"] = playground.SCRIPTS
    context["digest"] = lambda name: _digest(Path(app.srcdir), name)
    if doctree is not None:
        first = re.search(r"<p>(.*?)</p>", body, flags=re.DOTALL)
        context["description"] = " ".join(re.sub(r"<[^>]*>", "", first.group(1)).split())[:200] if first else ""
    navigation = context.get("toctree")
    if navigation:  # Sphinx calls a caption a heading, of no level: it is a label of the list below
        context["navigation"] = lambda **options: navigation(**options).replace(' role="heading"', "")


def explorer_files() -> list[Path]:
    """Return the files of ``attntut.explorer`` that a page with an explorer loads."""
    from attntut.explorer import assets  # brings torch

    return list(assets().values())


def _digest(root: Path, name: str) -> str:
    places = [root / "book" / "_static" / name, *(path for path in explorer_files() if path.name == name)]
    if name == playground.NAME:
        return hashlib.sha256(playground.script().encode()).hexdigest()[:8]
    data = next((path.read_bytes() for path in places if path.exists()), highlighting().encode())
    return hashlib.sha256(data).hexdigest()[:8]


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write the style of code over Sphinx's own, add the explorers' files, and take away what no page loads."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    (static / "pygments.css").write_text(highlighting(), encoding="utf-8")
    for path in explorer_files():
        shutil.copy(path, static)
    for name in ("basic.css", "plus.png", "minus.png", "file.png", "mystnb.css", "design-tabs.js"):
        for path in static.glob(f"{name.rsplit('.', 1)[0]}*.{name.rsplit('.', 1)[1]}"):
            path.unlink()


def setup(app: Sphinx) -> None:
    """Register the theme."""
    app.add_config_value("comments_config", {}, "")  # Jupyter Book sets it for an extension that the book does not use
    app.add_html_theme("bookext", str(HERE / "theme"))
    app.connect("html-page-context", add, priority=900)
    app.connect("build-finished", write)
