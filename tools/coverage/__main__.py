"""attntut on every architecture of transformers: tiny models from configurations, against independent ground truths.

    nox -s coverage                              every type, eager and sdpa, into runs/coverage.csv
    nox -s coverage -- bert gpt2                 only these
    nox -s coverage -- --out other.csv --workers 2

Nothing is downloaded. Each type has a process of its own, so that a crash or a hang costs one type, and its rows are
written at once: a second start goes on where the first ended. A file by another attntut, torch or transformers is not
continued.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import hashlib
import multiprocessing
import os
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

Row = dict[str, Any]
Check = Callable[[str, str], Row]
IMPLEMENTATIONS = ("eager", "sdpa")
LIMIT = 60.0  # seconds for a type and implementation
COLUMNS = (
    "type implementation status reason layers exact wrong unseen maps_exact maps_wrong maps_other roles gradients "
    "named_otherwise initialize refused drawn_right drawn_wrong drawn_left findings left left_drawing seconds"
).split()
LEGEND = """\
status: ran; not built (reason); crashed (in attntut); died, timeout (the process)
layers: with attention, as diagnosed; exact: with the entropies of Python's softmaxes; wrong, unseen: the others
maps: the same for what output_attentions returns; other: the result of no softmax
roles, gradients: layers with query, key, value and output; initialize: done, refused (why) or crashed
named_otherwise: parameters whose names tell another role than listening does
drawn_right, drawn_wrong: matrices known by name, with Xavier's deviation or not; drawn_left: said to be left
left, left_drawing: what diagnose, or initialize_, left behind"""
LINES: dict[str, tuple[Callable[[Row], bool], ...]] = {
    "ran / not built / crashed, died or late": (
        lambda row: row["status"] == "ran",
        lambda row: row["status"] == "not built",
        lambda row: row["status"] not in ("ran", "not built"),
    ),
    "attention seen": (lambda row: row["layers"] > 0,),
    "per-head entropy exact / wrong / layers unseen": (
        lambda row: row["layers"] > 0 and not (row["wrong"] or row["maps_wrong"] or row["unseen"]),
        lambda row: bool(row["wrong"] or row["maps_wrong"]),
        lambda row: bool(row["unseen"]),
    ),
    "roles known in all layers / partly / none": (
        lambda row: 0 < row["layers"] == row["roles"],
        lambda row: 0 < row["roles"] < row["layers"],
        lambda row: 0 == row["roles"] < row["layers"],
    ),
    "gradients by role in all layers": (lambda row: 0 < row["layers"] == row["gradients"],),
    "names and listening tell different roles": (lambda row: bool(row["named_otherwise"]),),
    "initialize_ with inputs: done, none wrong / a matrix wrong / refused / crashed": (
        lambda row: row["layers"] > 0 and row["initialize"] == "done" and not row["drawn_wrong"],
        lambda row: bool(row["drawn_wrong"]),
        lambda row: row["layers"] > 0 and row["initialize"] == "refused",
        lambda row: row["initialize"] == "crashed",
    ),
    "findings on a fresh model": (lambda row: bool(row["findings"]),),
    "something left behind": (lambda row: bool(row["left"] or row["left_drawing"]),),
}


def main(argv: list[str] | None = None) -> None:
    """Measure what is not measured yet, and print the table."""
    from tqdm import tqdm
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    parser = argparse.ArgumentParser(prog="nox -s coverage --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("types", nargs="*", help="all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "coverage.csv")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    options = parser.parse_args(argv)
    if unknown := [kind for kind in options.types if kind not in MODEL_MAPPING_NAMES]:
        parser.error(f"types must be keys of transformers' MODEL_MAPPING: got {', '.join(unknown)}.")
    done = {(row["type"], row["implementation"]) for row in begin(options.out)}
    types = options.types or list(MODEL_MAPPING_NAMES)
    todo = [(kind, [each for each in IMPLEMENTATIONS if (kind, each) not in done]) for kind in types]
    todo = [(kind, missing) for kind, missing in todo if missing]
    with (
        options.out.open("a", newline="", encoding="utf-8", buffering=1) as file,
        tqdm(total=sum(len(missing) for _, missing in todo), unit="row") as progress,
    ):
        for row in measure(todo, options.workers):
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)
            progress.set_postfix_str(row["type"], refresh=False)
            progress.update()
    print(summary(begin(options.out)))


def begin(path: Path, columns: Sequence[str] = COLUMNS, legend: str = LEGEND) -> list[Row]:
    """The rows of a file; it gets its first lines if it is new, and loses a last one that was cut off."""
    code = b"".join(file.read_bytes() for file in sorted((ROOT / "attntut").rglob("*.py")))
    digest = hashlib.sha256(code).hexdigest()[:12]
    versions = f"# torch {version('torch')}, transformers {version('transformers')}, attntut {digest}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        first = [versions, f"# begun {datetime.date.today()}", *(f"# {line}" for line in legend.splitlines())]
        path.write_text("\n".join([*first, ",".join(columns), ""]), encoding="utf-8")
    text = path.read_text(encoding="utf-8")
    if (had := text.partition("\n")[0]) != versions:
        raise SystemExit(f"{path} was begun with {had[2:]}; this is {versions[2:]}. Delete it, or give another --out.")
    whole = text[: text.rindex("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return list(csv.DictReader(line for line in whole.splitlines() if not line.startswith("#")))


def measure(
    todo: Iterable[tuple[str, list[str]]], workers: int = 1, limit: float = LIMIT, check: Check | None = None
) -> Iterator[Row]:
    """Rows as they come, each type from a process of its own.

    Args:
        todo: types, each with the implementations to measure.
        workers: processes at a time.
        limit: seconds after which a process that gave no row is ended.
        check: what makes a row of a type and implementation; by default :func:`tools.coverage.check.check`.
    """
    warm()
    forks = multiprocessing.get_context("fork")
    queue, running = deque(todo), dict[Connection, tuple[str, list[str], Any, float]]()
    while queue or running:
        while queue and len(running) < workers:
            kind, missing = queue.popleft()
            receiver, sender = forks.Pipe(duplex=False)
            process = forks.Process(target=_one_type, args=(kind, missing, sender, check))
            process.start()
            sender.close()
            running[receiver] = (kind, missing, process, time.monotonic() + limit)
        ready = wait(list(running), timeout=0.5)
        for receiver, (kind, missing, process, end) in list(running.items()):
            try:
                if receiver in ready:
                    row = receiver.recv()
                elif time.monotonic() > end:
                    raise TimeoutError
                else:
                    continue
            except (EOFError, TimeoutError) as error:
                process.kill()
                process.join()
                del running[receiver]
                status = "timeout" if isinstance(error, TimeoutError) else "died"
                yield from ({"type": kind, "implementation": each, "status": status} for each in missing)
            else:
                rest = [each for each in missing if each != row["implementation"]]
                running[receiver] = (kind, rest, process, time.monotonic() + limit)
                yield row


def warm() -> None:
    """Import what every process needs, once."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    import torch
    from transformers import BertModel, LlamaModel  # noqa: F401

    import tools.coverage.check  # noqa: F401

    torch.set_num_threads(1)


def _one_type(kind: str, implementations: list[str], sender: Connection, check: Check | None) -> None:
    from tools.coverage import check as whole

    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for implementation in implementations:
        sender.send({"type": kind, "implementation": implementation} | (check or whole.check)(kind, implementation))


def summary(rows: Iterable[Row]) -> str:
    """How many types behave, by implementation: a table in Markdown."""
    numbers = ("layers", "maps_wrong", "roles", "gradients")
    typed = [row | {key: int(row[key] or 0) for key in numbers} for row in rows]
    table = [["", *IMPLEMENTATIONS], ["---"] * (1 + len(IMPLEMENTATIONS))]
    for label, counts in LINES.items():
        mine = ([row for row in typed if row["implementation"] == each] for each in IMPLEMENTATIONS)
        table.append([label, *(" / ".join(str(sum(map(count, some))) for count in counts) for some in mine)])
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in table)


if __name__ == "__main__":
    main()
