"""Rows, how long something takes, and the table in the README."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

START, END = "<!-- bench -->", "<!-- /bench -->"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured.
        result: the number with its unit, or why there is none.
        goal: what it should be; empty where there is no goal.
    """

    what: str
    result: str
    goal: str = ""


def seconds(*calls: Callable[[], object], repeats: int = 7, warm_up: bool = True) -> list[float]:
    """Median seconds of each call. The calls take turns, so that a busy minute of the machine meets all of them."""
    if warm_up:
        for call in calls:
            call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def markdown(rows: list[Row]) -> str:
    """The rows as a table of Markdown.

    >>> print(markdown([Row("a ratio", "1.2×", "≤ 2×")]))
    | What | Measured | Goal |
    | :--- | ---: | ---: |
    | a ratio | 1.2× | ≤ 2× |
    """
    lines = ["| What | Measured | Goal |", "| :--- | ---: | ---: |"]
    return "\n".join(lines + [f"| {row.what} | {row.result} | {row.goal} |".replace("  ", " ") for row in rows])


def write(text: str, path: Path) -> None:
    """Put ``text`` between the markers of a file."""
    before = path.read_text(encoding="utf-8")
    if not (START in before and END in before):
        raise ValueError(f"{path.name} must hold the markers {START} and {END}.")
    head, tail = before.split(START)[0], before.split(END)[1]
    path.write_text(f"{head}{START}\n{text}\n{END}{tail}", encoding="utf-8", newline="\n")
