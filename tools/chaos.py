"""Would the verdicts stand on another machine? Every number that is drawn is nudged, and every chapter run again.

    python tools/chaos.py                        all chapters, ten seeds, one and two threads (``nox -s chaos``)
    python tools/chaos.py --seeds 3 05           one chapter, three seeds
    python tools/chaos.py --counts 1 --all       one thread, and every record in the report

Another processor rounds differently, and training amplifies the difference. Here each normal or uniform number that
torch draws, and so each initial weight, shrinks by up to one millionth. By how much depends on the number itself and on
the seed of the nudge: numbers that were equal stay equal, and what is exact by construction stays exact.

A verdict that changes in one of the runs is a flip. The *room* of a record says how near it came: the distance to its
bound as a share of the tolerance or, for a direction, of the half-width of its interval. Reword what flips, or give it
more seeds.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools.notebooks import ENVIRONMENT, THREADS, find  # noqa: E402

SIZE = 1e-6
NEAR = 0.1  # less room than this is worth a look


# --- one run ----------------------------------------------------------------------------------------------------------


def nudge(tensor: Any, seed: int, size: float = SIZE) -> Any:
    """Shrink each number of ``tensor``, in place, by a share between 0 and ``size`` that follows from it and the seed.

    >>> import torch
    >>> x = torch.tensor([1.0, -1.0, 2.0, 0.0])
    >>> y = nudge(x.clone(), seed=1, size=0.5)
    >>> bool(y[0] == -y[1]), bool(y[0] / 1 != y[2] / 2), y[3].item(), bool((y.abs() >= x.abs() / 2).all())
    (True, True, 0.0, True)
    """
    import torch

    if not tensor.is_floating_point():
        return tensor
    with torch.no_grad():
        angle = tensor.double().abs().clamp_min(1e-30).log() * (1000 + 137 * seed)
        return tensor.copy_(tensor.double() * (1 - size / 2 * (1 + angle.cos())))


def disturb(seed: int, size: float = SIZE) -> None:
    """Make torch nudge whatever it draws from now on."""
    import torch

    def nudged(draw: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **options: nudge(draw(*args, **options), seed, size)

    places = {torch.Tensor: ("normal_", "uniform_"), torch: ("randn", "rand", "randn_like", "rand_like", "normal")}
    for place, names in places.items():
        for name in names:
            setattr(place, name, nudged(getattr(place, name)))


def run_once(path: Path, seed: int | None, size: float = SIZE) -> dict[str, list[Any]]:
    """Run the cells of a notebook in this process; return its records, and the errors of its cells.

    Args:
        path: of the notebook.
        seed: of the nudge; None runs it as it is.
        size: of the nudge, relative.
    """
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    import attntut.explorer
    from attntut import evidence, plots
    from attntut.evidence import Evidence

    records: list[dict[str, Any]] = []

    def keep(evidence: Evidence) -> Evidence:
        records.append(asdict(evidence) | {"agrees": bool(evidence.agrees)})
        return evidence

    evidence.record = keep
    plots.show = attntut.Explorer = lambda *args, **options: None  # type: ignore[assignment, misc]
    attntut.explorer.Explorer = attntut.Explorer  # type: ignore[misc]
    if seed is not None:
        disturb(seed, size)
    os.chdir(path.parent)
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    errors = []
    code = (cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
    for number, source in enumerate(code, 1):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            result = shell.run_cell(source)
        if error := result.error_before_exec or result.error_in_exec:
            errors.append(f"cell {number}: {type(error).__name__}: {error}")
    return {"records": records, "errors": errors}


def run_apart(path: Path, seed: int | None, threads: int, size: float = SIZE) -> dict[str, list[Any]]:
    """The same in a process of its own, with so many threads."""
    environment = os.environ | ENVIRONMENT | dict.fromkeys(THREADS, str(threads)) | {"MPLBACKEND": "agg"}
    options = ["--one", str(path), "--size", str(size)] + ([] if seed is None else ["--seeds", str(seed)])
    command = [sys.executable, __file__, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        return {"records": [], "errors": [f"the run ended: {done.stderr[-500:]}"]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- the report -------------------------------------------------------------------------------------------------------


def room(record: dict[str, Any]) -> float:
    """How far a record is from the other verdict, as a share of its tolerance or interval; negative beyond.

    >>> agrees = dict(kind="predicted", predicted=2.0, measured=2.05, low=None, high=None, explained=None)
    >>> round(room(agrees | dict(at_least=1.9, at_most=2.1)), 2), room(agrees | dict(at_least=2.0, at_most=2.0))
    (0.5, -1.0)
    >>> gain = dict(kind="expected", measured=0.05, low=0.04, high=0.06, at_least=0.0, at_most=None, explained=None)
    >>> round(room(gain), 2)
    4.0
    """
    mean, half = record["measured"], 0.0 if record["low"] is None else (record["high"] - record["low"]) / 2
    low = -math.inf if record["at_least"] is None else record["at_least"]
    high = math.inf if record["at_most"] is None else record["at_most"]
    bound = (high - low) / 2
    if record["explained"]:
        away = abs(mean - record["predicted"])
        return min((away - part) / part for part in (bound, half) if part) if bound or half else float(away > 0)
    if not bound:  # exactly
        return float(mean == low) * 2 - 1
    edge = half if record["kind"] == "expected" else 0.0
    interval = 0.0 if record["kind"] == "predicted" else half
    unit = interval or (bound if math.isfinite(bound) else abs(mean)) or 1.0
    return (min(mean - low, high - mean) - edge) / unit


def verdicts(runs: Iterable[dict[str, list[Any]]]) -> pd.DataFrame:
    """One row a record, those that flip first, then those with the least room."""
    seen = [record for run in runs for record in run["records"]]
    rows = [(r["slug"], not r["agrees"], room(r), r["kind"], r["name"]) for r in seen]
    records = pd.DataFrame(rows, columns=["slug", "flipped", "room", "kind", "record"]).groupby("slug", sort=False)
    counts = dict(runs=("flipped", "size"), flips=("flipped", "sum"), room=("room", "min"))
    found = records.agg(**counts, kind=("kind", "first"), record=("record", "first"))
    return found.sort_values(["flips", "room"], ascending=[False, True])


def report(chapter: str, runs: list[dict[str, list[Any]]], *, everything: bool = False) -> bool:
    """Print what happened to a chapter; return whether nothing flipped."""
    found = verdicts(runs)
    errors = Counter(error for run in runs for error in run["errors"])
    flipped = int((found.flips > 0).sum())
    near = found if everything else found[(found.flips > 0) | (found.room < NEAR)]
    print(f"\n{chapter}: {len(runs)} runs, {len(found)} records, {flipped} flipped, {errors.total()} errors in cells")
    if len(near):
        print(near.to_string(index=False, float_format="%.2f"))
    for error, times in errors.items():
        print(f"  {times} times {error}")
    sys.stdout.flush()
    return not flipped and not errors and len(found) > 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 if a verdict flipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of file names, or paths; all notebooks by default")
    parser.add_argument("--seeds", type=int, help="how many seeds of the nudge (10)")
    parser.add_argument("--counts", default="1,2", help="numbers of threads, with commas (1,2)")
    parser.add_argument("--size", type=float, default=SIZE, help="of the nudge, relative (1e-6)")
    parser.add_argument("--all", action="store_true", help="report every record, not only those that flip or come near")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(run_once(options.one, options.seeds, options.size)))
        return 0
    seeds = range(1, 1 + (10 if options.seeds is None else options.seeds))
    counts = [int(count) for count in options.counts.split(",")]
    steady = True
    for path in find(options.names):
        runs: list[dict[str, list[Any]]] = []
        for threads in counts:
            with concurrent.futures.ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // threads)) as pool:
                runs += pool.map(partial(run_apart, path, threads=threads, size=options.size), seeds)
        steady &= report(path.stem, runs, everything=options.all)
    return int(not steady)


if __name__ == "__main__":
    sys.exit(main())
