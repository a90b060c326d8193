"""Copies of the chapters that run by themselves: what the download button and "Open in Colab" lead to.

A chapter as it lies in the repository needs ``attntut`` installed and its drawings beside it. Its copy lies next to its
page in the built book and has one cell more, which installs what is missing and leaves what is there: Colab keeps its
torch. Where the site's address is known (see ``address``), that cell takes the wheel which ``nox -s book`` puts at the
site's root, links lead to the site's pages, and drawings are the site's. Where it is not, the cell says what to
install, drawings are embedded, and a link to another page is its text.

A pure wheel's name follows from its version, so nothing needs to be built to write the copies.
"""

from __future__ import annotations

import ast
import base64
import copy
import mimetypes
import re
import sys
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import quote

import nbformat
from sphinx.application import Sphinx

PACKAGE = "attntut"
WHEEL = f"{PACKAGE}-{{}}-py3-none-any.whl"
LINK = re.compile(r"(?P<code>```.*?```|`[^`\n]*`)|(?P<mark>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.DOTALL)

INSTALLS = """\
# Install what this notebook needs and this machine lacks. What is there stays.
from importlib.util import find_spec

needed = {{
{needed}
}}
missing = " ".join(need for name, need in needed.items() if not find_spec(name))
if missing:
    %pip install --quiet {{missing}}
"""
ASKS = """\
# This notebook needs the book's package, {package} {version}.
from importlib.util import find_spec

missing = [name for name in {names} if not find_spec(name)]
if missing:
    raise ModuleNotFoundError(
        f"Not installed: {{', '.join(missing)}}.\\n"
        "In a clone of the book, run   python -m pip install -e '.[book]'\\n"
        "Or save {wheel} from the root of the\\n"
        "book's site, and run   python -m pip install '{wheel}[jupyter]'\\n"
        "Then restart the kernel."
    )
"""


def needs(notebook: nbformat.NotebookNode) -> list[str]:
    """The packages that a notebook imports and that ``attntut`` does not bring, ``attntut`` first.

    >>> cell = nbformat.v4.new_code_cell("import math, transformers\\nfrom torch import nn\\nfrom attntut import plots")
    >>> needs(nbformat.v4.new_notebook(cells=[cell]))
    ['attntut', 'transformers']
    """
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    found = set()
    for node in ast.walk(ast.parse(re.sub(r"^\s*[%!].*$", "pass", code, flags=re.MULTILINE))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    brought = {re.split(r"\W", need.lower())[0] for need in requires(PACKAGE) or [] if "extra ==" not in need}
    return [PACKAGE, *sorted(n for n in found - {PACKAGE} - sys.stdlib_module_names if n.lower() not in brought)]


def install_cell(notebook: nbformat.NotebookNode, site: str) -> str:
    """The code of the cell that installs what ``notebook`` needs, or says what to install where ``site`` is empty."""
    names, wheel = needs(notebook), WHEEL.format(version(PACKAGE))
    if not site:
        return ASKS.format(package=PACKAGE, version=version(PACKAGE), names=names, wheel=wheel)
    where = {name: f"{PACKAGE}[jupyter]@{site}{wheel}" if name == PACKAGE else name for name in names}
    return INSTALLS.format(needed="\n".join(f'    "{name}": "{place}",' for name, place in where.items()))


def published(
    notebook: nbformat.NotebookNode, path: str, site: str, read: Callable[[str], bytes]
) -> nbformat.NotebookNode:
    """Return a copy of a notebook that runs by itself.

    Args:
        notebook: as it is in the repository.
        path: where it is there, with slashes.
        site: the address of the built book, with a slash at its end, or "".
        read: gives the content of a file of the repository.
    """
    notebook = copy.deepcopy(notebook)

    def elsewhere(match: re.Match[str]) -> str:
        target, text = match["target"], match["text"]
        if match["code"] or re.match(r"\w+:|#", target):
            return match[0]
        file, _, anchor = target.partition("#")
        file = normpath(join(dirname(path), file))
        if match["mark"] and not site:
            kind = mimetypes.guess_type(file)[0] or "application/octet-stream"
            return f"![{text}](data:{kind};base64,{base64.b64encode(read(file)).decode()})"
        if not site:
            return text
        page = file if match["mark"] else re.sub(r"\.(ipynb|md)$", ".html", file)
        return f"{match['mark']}[{text}]({site}{quote(page)}{'#' + anchor if anchor else ''})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(elsewhere, cell.source)
    first = next((i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"), len(notebook.cells))
    install = nbformat.v4.new_code_cell(install_cell(notebook, site).strip(), id="install")
    notebook.cells.insert(first, install)
    return notebook


def drawings(notebook: nbformat.NotebookNode, path: str) -> set[str]:
    """The files of the repository that a notebook shows as images."""
    matches = (m for cell in notebook.cells if cell.cell_type == "markdown" for m in LINK.finditer(cell.source))
    targets = {m["target"] for m in matches if m["mark"] and not re.match(r"\w+:", m["target"])}
    return {normpath(join(dirname(path), target)) for target in targets}


def write(app: Sphinx, exception: Exception | None) -> None:
    """Write the copy of each notebook beside its page, and the drawings to where the copies look for them."""
    if exception or app.builder.format != "html":
        return
    source, out = Path(app.srcdir), Path(app.outdir)
    for name in sorted(app.env.found_docs):
        file = Path(app.env.doc2path(name))
        if file.suffix != ".ipynb":
            continue
        notebook, path = nbformat.read(file, as_version=4), f"{name}.ipynb"
        site = app.config.html_baseurl
        result = published(notebook, path, site, lambda where: (source / where).read_bytes())
        (out / path).write_text(nbformat.writes(result) + "\n", encoding="utf-8", newline="\n")
        for drawing in drawings(notebook, path) if site else ():
            (out / drawing).parent.mkdir(parents=True, exist_ok=True)
            (out / drawing).write_bytes((source / drawing).read_bytes())


def setup(app: Sphinx) -> None:
    """Write the copies when the book is built."""
    app.connect("build-finished", write)
