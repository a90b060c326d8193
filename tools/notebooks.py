"""Execute the notebooks and normalize them, so that a diff shows only what changed.

    python tools/notebooks.py                   all of them (``nox -s notebooks``)
    python tools/notebooks.py 02 05             those whose file name begins so
    python tools/notebooks.py --no-execute      only normalize
    python tools/notebooks.py --check           change nothing; fail if a notebook is not normalized
    python tools/notebooks.py --fresh           keep no old output, however similar

Normalized means: identifiers of cells follow from their content, execution counts run from 1 to n, metadata are those
that a reader needs (a cell tagged ``hide-input`` is folded in JupyterLab, VS Code and Colab too), there is no widget
and no data of an explorer, and a cell whose outputs are what they were, up to measured digits and a picture's noise,
keeps the old ones.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import copy
import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
SANITIZE = Path(__file__).with_name("nbval_sanitize.cfg")
sys.path[:0] = [str(ROOT)]

from tools.nbval_plugin import stable  # noqa: E402

ENVIRONMENT = {"ATTNTUT_EXPLORER": "picture", "TQDM_DISABLE": "1"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
    },
}
KEPT_NOTEBOOK_METADATA = {"mystnb", "title", "authors"}
KEPT_CELL_METADATA = {"tags", "mystnb", "nbgrader"}
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # JupyterLab and VS Code; Colab
DROPPED_TYPES = {"application/vnd.jupyter.widget-view+json", "application/vnd.jupyter.widget-state+json"}
EXPLORER = re.compile(
    r'\s*<(div|figure|section|attntut-explorer)\b[^>]*class="[^"]*attntut-explorer|\s*<attntut-explorer'
)
NUMBER = re.compile(r"[-+\u2212]?\d[\d_]*\.?\d*(?:e[-+]?\d+)?")
PLAIN = {ord("\u2212"): "-", ord("_"): ""}
ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")

SAME_NUMBER = 1e-3  # relative: another machine's noise, not another result
SAME_PICTURE = 1.0  # mean absolute difference of a channel, of 255


def normalize(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return a copy of ``notebook`` without whatever changes although nothing changed."""
    notebook = copy.deepcopy(notebook)
    kept = {key: value for key, value in notebook.metadata.items() if key in KEPT_NOTEBOOK_METADATA}
    notebook.metadata = nbformat.from_dict({**kept, **METADATA})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    count = 0
    for cell in notebook.cells:
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        kept = {key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA and value}
        folded = FOLDED if cell.cell_type == "code" and "hide-input" in kept.get("tags", []) else {}
        cell.metadata = nbformat.from_dict({**kept, **folded})
        cell.id = _identifier(cell, seen)
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
            cell.outputs = _outputs(cell)
    return notebook


def _identifier(cell: nbformat.NotebookNode, seen: dict[str, int]) -> str:
    name = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
    seen[name] = seen.get(name, 0) + 1
    return name if seen[name] == 1 else f"{name}-{seen[name]}"


def _outputs(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Merge streams, and drop widgets, the data of explorers, and empty outputs."""
    outputs: list[nbformat.NotebookNode] = []
    for output in cell.outputs:
        if output.output_type == "stream":
            same = [other for other in outputs if other.output_type == "stream" and other.name == output.name]
            if same:
                same[0].text += output.text
            elif output.text:
                outputs.append(output)
            continue
        if output.output_type in ("display_data", "execute_result"):
            for kind in list(output.data):
                text = output.data[kind]
                explorer = kind == "text/html" and EXPLORER.match("".join(text))
                if kind in DROPPED_TYPES or explorer:
                    del output.data[kind]
            output.metadata = nbformat.from_dict(
                {kind: value for kind, value in output.metadata.items() if kind in output.data and value}
            )
            if not output.data:
                continue
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
        outputs.append(output)
    return outputs


def keep_unchanged(new: nbformat.NotebookNode, old: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return ``new`` with the old outputs of each cell whose code and outputs are the same, up to noise.

    Cells are matched by their code, in order.
    """
    new = copy.deepcopy(new)
    patterns = sanitizers()
    waiting: dict[str, list[nbformat.NotebookNode]] = {}
    for cell in old.cells:
        if cell.cell_type == "code":
            waiting.setdefault(cell.source, []).append(cell)
    for cell in new.cells:
        if cell.cell_type == "code" and waiting.get(cell.source):
            before = waiting[cell.source].pop(0)
            if _same_outputs(cell.outputs, before.outputs, patterns):
                cell.outputs = copy.deepcopy(before.outputs)
                for output in cell.outputs:
                    if output.output_type == "execute_result":
                        output.execution_count = cell.execution_count
    return new


def sanitizers(path: Path = SANITIZE) -> list[tuple[re.Pattern[str], str]]:
    """The replacements that nbval makes, read as nbval reads them."""
    pairs = re.findall("^regex: (.*)$\n^replace: (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


def sanitize(text: str, patterns: list[tuple[re.Pattern[str], str]]) -> str:
    """Replace in ``text`` what nbval does not compare."""
    for pattern, replacement in patterns:
        text = pattern.sub(replacement, text)
    return text


def _same_outputs(new: list[Any], old: list[Any], patterns: list[tuple[re.Pattern[str], str]]) -> bool:
    return len(new) == len(old) and all(_same_output(a, b, patterns) for a, b in zip(new, old, strict=True))


def _same_output(new: Any, old: Any, patterns: list[tuple[re.Pattern[str], str]]) -> bool:
    if new.output_type == "error" or any(new.get(key) != old.get(key) for key in ("output_type", "name", "metadata")):
        return False
    a, b = (output.get("data", {"text": output.get("text")}) for output in (new, old))
    return a.keys() == b.keys() and all(_same_data(kind, a[kind], b[kind], patterns) for kind in a)


def _same_data(kind: str, new: Any, old: Any, patterns: list[tuple[re.Pattern[str], str]]) -> bool:
    """Whether two pieces of data agree where nbval compares them, and nearly agree in every number."""
    if kind == "image/png":
        return same_picture(new, old)
    if type(new) is not type(old):
        return False
    compared = [sanitize(data, patterns) if isinstance(data, str) else stable(data) for data in (new, old)]
    texts = [data if isinstance(data, str) else json.dumps(data, ensure_ascii=False) for data in (new, old)]
    a, b = ([float(n.translate(PLAIN)) for n in NUMBER.findall(ADDRESS.sub("", text))] for text in texts)
    return compared[0] == compared[1] and len(a) == len(b) and np.allclose(a, b, rtol=SAME_NUMBER, atol=0)


def same_picture(new: str, old: str) -> bool:
    """Whether two PNG, in base64, look alike."""
    if new == old:
        return True
    a, b = (_pixels(picture) for picture in (new, old))
    return a.shape == b.shape and float(np.abs(a - b).mean()) <= SAME_PICTURE


def _pixels(picture: str) -> np.ndarray[Any, Any]:
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return np.asarray(image.convert("RGBA"), dtype=float)


def execute(notebook: nbformat.NotebookNode, folder: Path, *, timeout: int = 300) -> nbformat.NotebookNode:
    """Run every cell in a new kernel whose working directory is ``folder``; an error in a cell is an error here."""
    from nbclient import NotebookClient

    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources=resources,
        record_timing=False,
        store_widget_state=False,
    )
    client.execute()
    return notebook


def dumps(notebook: nbformat.NotebookNode) -> str:
    """Write as JSON with sorted keys, so that equal notebooks are equal files."""
    nbformat.validate(notebook)
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def update(path: Path, *, run: bool = True, fresh: bool = False) -> tuple[bool, float]:
    """Execute and normalize one file in place.

    Returns:
        Whether the file changed, and the seconds that its execution took.
    """
    os.environ.update(ENVIRONMENT)
    for name in THREADS:
        os.environ.setdefault(name, "1")
    text = path.read_text(encoding="utf-8")
    old = nbformat.reads(text, as_version=4)
    start = time.monotonic()
    new = normalize(execute(old, path.parent)) if run else normalize(old)
    seconds = time.monotonic() - start
    if not fresh:
        new = keep_unchanged(new, normalize(old))
    result = dumps(new)
    if path.read_text(encoding="utf-8") != text:
        raise RuntimeError(f"{path.name} was edited while it ran. What it gave was not written; run it again.")
    if result != text:
        path.write_text(result, encoding="utf-8", newline="\n")
    return result != text, seconds


def find(names: list[str]) -> list[Path]:
    """The notebooks whose file names begin with one of ``names``, which may also be paths; all without names."""
    everything = sorted(path for path in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    if not names:
        return everything
    found = []
    for name in names:
        matches = [Path(name).resolve()] if Path(name).is_file() else []
        matches = matches or [path for path in everything if path.name.startswith(Path(name).name)]
        if not matches:
            known = ", ".join(path.name for path in everything) or "none"
            raise SystemExit(f"No notebook begins with {name!r}. There are: {known}.")
        found += matches
    return list(dict.fromkeys(found))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of file names, or paths; all notebooks by default")
    parser.add_argument("--no-execute", action="store_true", help="only normalize")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a notebook is not normalized")
    parser.add_argument("--fresh", action="store_true", help="keep no old output")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="notebooks at a time (2)")
    options = parser.parse_args(arguments)
    paths = find(options.names)
    if options.check:
        wrong = [path for path in paths if dumps(normalize(nbformat.read(path, 4))) != path.read_text(encoding="utf-8")]
        for path in wrong:
            print(f"{path.name}: not normalized. Run: nox -s notebooks -- {path.name}")
        return bool(wrong)

    failed = False
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(max(1, options.jobs), mp_context=context) as pool:
        runs = {pool.submit(update, path, run=not options.no_execute, fresh=options.fresh): path for path in paths}
        for done in concurrent.futures.as_completed(runs):
            try:
                changed, seconds = done.result()
            except Exception as error:  # a kernel may fail in any way; the other notebooks go on
                failed = True
                print(f"{runs[done].name}: FAILED\n{error}", flush=True)
            else:
                print(f"{runs[done].name}: {'changed' if changed else 'as it was'}, {seconds:.1f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
