"""The copies that install what they need: for the download button and for Colab."""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "book" / "_ext")]

from bookext import address  # noqa: E402
from bookext.published import needs, published  # noqa: E402
from small_book import build_book  # noqa: E402

from tools.notebooks import find  # noqa: E402

SITE = "https://someone.example/book/"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


def copied(*cells: nbformat.NotebookNode | str, site: str = SITE) -> nbformat.NotebookNode:
    made = [new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    return published(new_notebook(cells=made), "notebooks/02-b.ipynb", site, lambda path: SVG)


# --- the cell that installs ------------------------------------------------------------------------------------------


def test_the_cell_stands_before_all_other_code():
    kinds = [cell.get("id") == "install" for cell in copied("# T", "Text", new_code_cell("import torch"), "T").cells]
    assert kinds == [False, False, True, False, False]


def test_with_an_address_it_installs_the_wheel_and_what_else_is_imported():
    code = copied(new_code_cell("import transformers, math\nfrom torch import nn")).cells[0].source
    assert f'"attntut": "attntut[jupyter]@{SITE}attntut-{version("attntut")}-py3-none-any.whl",' in code
    assert '"transformers": "transformers",' in code
    assert "torch" not in code, "A torch that is installed must stay."


def run_cell(code: str, missing: set[str]) -> list[str]:
    """Run the code with these packages missing; return what pip was told to install."""
    told: list[str] = []

    class Shell:
        def run_line_magic(self, name, line):
            told.append(f"{name} {line}")

    find = lambda name: None if name in missing else object()  # noqa: E731
    text = TransformerManager().transform_cell(code).replace("from importlib.util import find_spec", "")
    names: dict[str, object] = {"find_spec": find, "get_ipython": Shell}
    exec(text, names)
    return [line.replace("{missing}", str(names["missing"])) for line in told]


def test_it_installs_only_what_is_missing():
    code = copied(new_code_cell("import transformers")).cells[0].source
    wheel = f"attntut[jupyter]@{SITE}attntut-{version('attntut')}-py3-none-any.whl"
    assert run_cell(code, {"attntut"}) == [f"pip install --quiet {wheel}"]
    assert run_cell(code, {"attntut", "transformers"}) == [f"pip install --quiet {wheel} transformers"]
    assert run_cell(code, set()) == []


def test_without_an_address_it_says_what_to_install():
    code = copied(new_code_cell("import torch"), site="").cells[0].source
    assert run_cell(code, set()) == []
    with pytest.raises(ModuleNotFoundError, match=r"(?s)Not installed: attntut\..*pip install -e '\.\[book\]'.*\.whl"):
        run_cell(code, {"attntut"})


@pytest.mark.parametrize("path", find([]), ids=lambda path: path.stem)
def test_what_a_chapter_needs_besides_has_a_tested_version(path):
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {canonicalize_name(line.split("==")[0]) for line in lines if not line.startswith("#")}
    others = needs(nbformat.read(path, 4))[1:]
    assert {canonicalize_name(name) for name in others} <= tested, "The name of an import must be that of its package."


# --- links and drawings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link, with_address, without",
    [
        ("[next](03-c.ipynb)", f"[next]({SITE}notebooks/03-c.html)", "next"),
        ("[it](../book/article.md#article-1)", f"[it]({SITE}book/article.html#article-1)", "it"),
        ("[below](#below)", "[below](#below)", "[below](#below)"),
        ("[A (2017)](https://arxiv.org/abs/1)", "[A (2017)](https://arxiv.org/abs/1)", "[A (2017)](https://arxiv.org/abs/1)"),
        ("`[next](03-c.ipynb)`", "`[next](03-c.ipynb)`", "`[next](03-c.ipynb)`"),
        ("```\n[next](03-c.ipynb)\n```", "```\n[next](03-c.ipynb)\n```", "```\n[next](03-c.ipynb)\n```"),
        (
            "![a map](../book/diagrams/b.svg)",
            f"![a map]({SITE}book/diagrams/b.svg)",
            f"![a map](data:image/svg+xml;base64,{base64.b64encode(SVG).decode()})",
        ),
    ],
)  # fmt: skip
def test_nothing_in_a_copy_is_relative(link, with_address, without):
    assert copied(link, site=SITE).cells[0].source == with_address
    assert copied(link, site="").cells[0].source == without


def test_the_notebook_itself_stays_as_it_is():
    notebook = new_notebook(cells=[new_markdown_cell("[next](03-c.ipynb)"), new_code_cell("1")])
    before = nbformat.writes(notebook)
    published(notebook, "notebooks/02-b.ipynb", SITE, lambda path: SVG)
    assert nbformat.writes(notebook) == before


# --- in the book -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["", SITE])
def test_the_book_has_the_copies_and_what_they_show(tmp_path, monkeypatch, site):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.setenv("BOOK_URL", site)
    about = {"language_info": {"name": "python", "pygments_lexer": "python"}}
    cells = [new_markdown_cell("# T\n\n![a map](../drawn/map.svg)"), new_code_cell("import torch")]
    files = {
        "index.md": "# Book\n\n```{toctree}\nnotebooks/one\n```\n",
        "notebooks/one.ipynb": nbformat.writes(new_notebook(cells=cells, metadata=about)),
        "drawn/map.svg": SVG.decode(),
    }
    built = build_book(tmp_path, files)
    (download,) = re.findall(r'href="([^"]*)" download', built.page("notebooks/one"))
    copy = nbformat.read(built.out / "notebooks" / download, 4)
    nbformat.validate(copy)
    assert copy.cells[1].id == "install"
    assert ("%pip install" in copy.cells[1].source) == bool(site)
    assert (built.out / "drawn" / "map.svg").exists() == bool(site)


# --- Binder ----------------------------------------------------------------------------------------------------------


def test_binder_installs_tested_versions():
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if line and not line.startswith("#")]
    (constraints,) = [line.split()[1] for line in lines if line.startswith("-c ")]
    assert (folder / constraints).resolve() == ROOT / "constraints.txt", "pip reads this path from where the file lies."
    (local,) = [line.split()[1] for line in lines if line.startswith("-e ")]
    assert (ROOT / local.partition("[")[0] / "pyproject.toml").exists(), (
        "pip reads this path from the repository's root."
    )
    tested = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {line.lower() for line in lines if not line.startswith("-")} <= tested
    assert re.fullmatch(r"python-3\.(1[1-9])", (folder / "runtime.txt").read_text().strip())


def test_the_workflow_publishes_the_copies_where_colab_looks(tmp_path):
    """The step runs here, on a repository of one commit whose origin is a folder."""
    if shutil.which("git") is None or shutil.which("bash") is None:
        pytest.skip("git and bash are needed to run the step of the workflow")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    (script,) = [step["run"] for step in steps if "git push" in step.get("run", "")]
    here = tmp_path / "here"
    (here / "_build" / "html" / "notebooks").mkdir(parents=True)
    (here / "_build" / "html" / "notebooks" / "one.ipynb").write_text("{}", encoding="utf-8")

    def run(*command: str) -> str:
        who = {f"GIT_{role}_{what}": "a" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        who |= {"GIT_CONFIG_GLOBAL": os.devnull, "GITHUB_SHA": "abc"}
        done = subprocess.run(command, cwd=here, env=os.environ | who, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("git", "init", "--quiet", "--bare", str(tmp_path / "origin"))
    run("git", "init", "--quiet")
    run("git", "commit", "--quiet", "--allow-empty", "-m", "first")
    run("git", "remote", "add", "origin", str(tmp_path / "origin"))
    for _ in range(2):  # the second time the branch exists
        run("bash", "-e", "-c", script)
        shutil.rmtree(here / "_build" / "published")
    files = run("git", "--git-dir", str(tmp_path / "origin"), "ls-tree", "-r", "--name-only", address.COPIES)
    assert files.split() == ["notebooks/one.ipynb"]


def test_the_wheel_has_the_name_that_the_copies_install():
    """A wheel is named after the version and what it holds; ``nox -s fresh`` builds it and installs it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{version("attntut")}"' in text, "The installed package is of another version: install it again."
    assert 'build-backend = "hatchling.build"' in text
    assert not list(ROOT.glob("setup.*")), "A wheel with compiled code has another name."
