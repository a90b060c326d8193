"""Sweeps: what keeping a run costs, and what a second process brings."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from typing import Any

from attntut.sweep import Sweep, execute, grid
from attntut.sweeps import depth
from bench.table import Row

RUNS, SEEDS = 200, 96


def nothing(config: dict[str, Any]) -> dict[str, float]:
    return {"y": config["x"]}


def sweeps() -> list[Row]:
    """The overhead of a run that does nothing, and two processes against one on 96 models of two blocks."""
    configs = grid(scheme="gpt2", norm="pre", depth=2, lr=1e-3, seed=range(SEEDS))
    overhead = _seconds(Sweep("overhead", nothing, grid(x=range(RUNS))), None) / RUNS
    one, two = (_seconds(replace(depth.SWEEP, configs=configs), processes) for processes in (1, 2))
    return [
        Row("A run of a sweep, overhead", f"{1000 * overhead:.1f} ms", "≤ 20 ms"),
        Row("A sweep in two processes over one, their start included", f"{one / two:.1f}× as fast", "≥ 1.7×"),
    ]


def _seconds(sweep: Sweep, executor: int | None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcome = execute(sweep, folder, executor, progress=False)
        taken = time.perf_counter() - start
    assert not outcome.failures, outcome
    return taken
