"""Every exercise of the book by its number, and the problem sets that are made of them."""

from __future__ import annotations

import functools
import importlib
import tomllib
from pathlib import Path

from exercises.exercise import Exercise

HERE = Path(__file__).parent
CHAPTERS = sorted(path.stem for path in HERE.glob("[0-9][0-9]_*.py"))


@functools.cache
def exercises() -> dict[str, Exercise]:
    """Number → exercise, in the order of the book."""
    found = [e for chapter in CHAPTERS for e in importlib.import_module(f"exercises.{chapter}").EXERCISES]
    return {exercise.number: exercise for exercise in found}


@functools.cache
def problem_sets() -> dict[str, dict[str, object]]:
    """Name → ``title`` and ``exercises`` (numbers) of a problem set."""
    return tomllib.loads((HERE / "sets.toml").read_text(encoding="utf-8"))
