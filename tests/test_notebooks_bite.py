"""nbval notices what it should: each test breaks one thing in a chapter and expects the run to fail there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from attntut.evidence import MIME
from tests.test_notebooks import unexecuted
from tools import notebooks as tool

ROOT = Path(__file__).resolve().parent.parent

SMALL = [
    "import torch\n\nfrom attntut import compare, scaled_dot_product_attention, seeded",
    "q, k, v = torch.randn(3, 64, 256, generator=seeded(0))\nq.shape",
    "output, weights = scaled_dot_product_attention(q, k, v)\nprint('loss', f'≈ {output.var():.6f}')",
    "predicted = 1.0\nlogits = weights.log() - weights.log().mean(-1, keepdim=True)\n"
    "compare('variance of the scaled scores', predicted, logits.var(), rtol=0.1)",
]

# Appended to attntut/attention.py: the scale is forgotten.
WRONG_FORMULA = """

_right = attention_logits


def attention_logits(query, key, *, scale=None):
    return _right(query, key, scale=scale) * query.shape[-1] ** 0.5
"""


def nbval(path: Path, *, package: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run one notebook as ``nox -s nbval`` does."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--nbval",
        "--nbval-current-env",
        "--color=no",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--nbval-sanitize-with", str(tool.SANITIZE), "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += ["-p", "conftest", str(path)]
    environment = {**os.environ, **tool.ENVIRONMENT, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in (package, ROOT) if folder)
    return subprocess.run(command, cwd=path.parent, env=environment, capture_output=True, text=True, encoding="utf-8")


def write(notebook: nbformat.NotebookNode, path: Path) -> Path:
    path.write_text(tool.dumps(notebook), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> nbformat.NotebookNode:
    """A chapter in four cells, executed."""
    folder = tmp_path_factory.mktemp("small")
    path = write(new_notebook(cells=[new_code_cell(source) for source in SMALL]), folder / "small.ipynb")
    tool.update(path)
    return nbformat.read(path, 4)


@pytest.fixture
def broken_package(tmp_path) -> Path:
    """A folder with a copy of the package in which one formula is wrong."""
    folder = tmp_path / "package"
    shutil.copytree(ROOT / "attntut", folder / "attntut", ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "attntut" / "attention.py").open("a", encoding="utf-8") as file:
        file.write(WRONG_FORMULA)
    return folder


def test_an_unchanged_notebook_passes_although_other_digits_were_measured(small, tmp_path):
    shown = small.cells[3].outputs[0].data
    measured = f"{shown[MIME][0]['measured']:.3g}"
    assert measured in shown["text/plain"].splitlines()[1]
    shown[MIME][0]["measured"] *= 1.01
    shown["text/plain"] = shown["text/plain"].replace(f" {measured} ", f" {measured}0001 ")
    small.cells[2].outputs[0].text = "loss ≈ 0.5\n"
    result = nbval(write(small, tmp_path / "same.ipynb"))
    assert result.returncode == 0, result.stdout
    assert "4 passed" in result.stdout


def test_a_changed_prediction_fails(small, tmp_path):
    small.cells[3].source = small.cells[3].source.replace("predicted = 1.0", "predicted = 1.05")
    result = nbval(write(small, tmp_path / "prediction.ipynb"))
    assert result.returncode == 1, result.stdout
    assert "1 failed, 3 passed" in result.stdout
    assert "Cell outputs differ" in result.stdout


def test_a_prediction_that_differs_in_the_record_alone_fails(small, tmp_path):
    small.cells[3].outputs[0].data[MIME][0]["predicted"] = 1.002
    result = nbval(write(small, tmp_path / "record.ipynb"))
    assert result.returncode == 1, result.stdout
    assert MIME in result.stdout


def test_a_changed_formula_fails(small, tmp_path, broken_package):
    result = nbval(write(small, tmp_path / "formula.ipynb"), package=broken_package)
    assert result.returncode == 1, result.stdout
    assert "Disagreement" in result.stdout, "The comparison itself should have failed, not a comparison of digits."


def test_an_unexecuted_cell_fails_although_nbval_lets_it_pass(small, tmp_path):
    small.cells[3].outputs, small.cells[3].execution_count = [], None
    result = nbval(write(small, tmp_path / "unexecuted.ipynb"))
    assert result.returncode == 0, "nbval has learned to notice; this check and test_notebooks.unexecuted can go."
    assert unexecuted(small) == [3]


def chapter() -> Path:
    """The chapter that computes attention step by step."""
    found = tool.find(["02"]) if any(path.name.startswith("02") for path in tool.find([])) else []
    return found[0] if found else pytest.skip("the chapter 02 is not in the tree")


@pytest.mark.slow
def test_a_changed_formula_fails_a_real_chapter(tmp_path, broken_package):
    path = shutil.copy(chapter(), tmp_path / "chapter.ipynb")
    result = nbval(Path(path), package=broken_package)
    assert result.returncode == 1, result.stdout[-3000:]
    assert "Disagreement" in result.stdout


def test_a_changed_prediction_fails_a_real_chapter(tmp_path):
    notebook = nbformat.read(chapter(), 4)
    shown = [
        [output for output in cell.get("outputs", []) if MIME in output.get("data", {})] for cell in notebook.cells
    ]
    first = next((position for position, outputs in enumerate(shown) if outputs), None)
    assert first is not None, "The chapter was not executed, or it compares nothing."
    notebook.cells = notebook.cells[: first + 1]
    right = nbval(write(notebook, tmp_path / "right.ipynb"))
    assert right.returncode == 0, right.stdout[-3000:]
    record = shown[first][0].data[MIME][0]
    record["predicted"] = (record["predicted"] or 1) * 1.1
    wrong = nbval(write(notebook, tmp_path / "wrong.ipynb"))
    assert wrong.returncode == 1, wrong.stdout[-3000:]
    assert "1 failed" in wrong.stdout
