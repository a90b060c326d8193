"""Stored runs: tables of numbers beside the code, small enough to lie in a repository."""

from __future__ import annotations

import itertools
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from attntut._checks import check_choice
from attntut._extras import extra

with extra("tables"):
    import pandas as pd

PACKAGE = Path(__file__).resolve().parents[1]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that at any moment it is the old one or the new one, whole.

    Raises:
        OSError: the disk is full, say; nothing has changed then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(handle)  # some disks say only now that they are full
        os.replace(part, path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def store(frame: pd.DataFrame, path: str | Path, *, about: str = "") -> None:
    """Write the runs of a sweep as CSV: six digits (three of seconds); machines with their versions in the first lines.

    Args:
        frame: of an :class:`Outcome`.
        path: of the file.
        about: the first line.
    """
    machines = list(dict.fromkeys(frame["machine"]))
    plain = frame.assign(machine=frame["machine"].map(machines.index))
    for name in plain.select_dtypes("float"):
        digits = 3 if name == "seconds" else 6
        plain[name] = plain[name].map(lambda x, digits=digits: float(f"{x:.{digits}g}"))
    lines = [about or Path(path).stem, *(f"machine {i}: {each}" for i, each in enumerate(machines))]
    table = plain.to_csv(index=False, na_rep="nan", lineterminator="\n")
    write_whole(Path(path), "".join(f"# {line}\n" for line in lines) + table)


def stored(name: str, folder: str | Path | None = None) -> pd.DataFrame:
    """The stored runs of a sweep: a row per run, as in :class:`Outcome`. Beside numbers, an empty place is a NaN.

    Args:
        name: of the sweep, or of another file there.
        folder: where ``NAME.csv`` lies; by default ``runs/``, of the repository or in the installed package.

    Raises:
        ValueError: nothing is stored under this name.

    Example:
        >>> stored("deeph")
        Traceback (most recent call last):
        ...
        ValueError: name must be one of ...: got 'deeph'...
    """
    places = [Path(folder)] if folder else [PACKAGE / "runs", PACKAGE.parent / "runs"]
    found = {path.stem: path for place in places for path in place.glob("*.csv")}
    path = found[check_choice("name", name, sorted(found))]
    with path.open(encoding="utf-8") as file:
        notes = [line[2:].strip() for line in itertools.takewhile(lambda line: line.startswith("# "), file)]
    machines = [note.partition(": ")[2] for note in notes if note.startswith("machine ")]
    frame = pd.read_csv(path, skiprows=len(notes), keep_default_na=False, na_values=["nan"])
    for name in frame.select_dtypes(exclude=["number", "bool"]):
        there = frame[name].where(frame[name] != "")
        with suppress(ValueError, TypeError):  # words: an empty one is one, too
            frame[name] = pd.to_numeric(there) if there.notna().any() else frame[name]
    return frame.assign(machine=frame["machine"].map(dict(enumerate(machines)))) if machines else frame
