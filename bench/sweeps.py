"""Sweeps: what keeping a run costs, and what a second process brings."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from typing import Any

from attntut.sweep import Sweep, execute, grid
from attntut.sweeps import depth
from bench.table import Row

RUNS, SEEDS, TASKS = 200, 96, 1000


def nothing(config: dict[str, Any]) -> dict[str, float]:
    return {"y": config["x"]}


def sweeps() -> list[Row]:
    """The overhead of a run that does nothing, two processes against one on 96 models, and empty tasks through Dask."""
    configs = grid(scheme="gpt2", norm="pre", depth=2, lr=1e-3, seed=range(SEEDS))
    overhead = _seconds(Sweep("overhead", nothing, grid(x=range(RUNS))), None) / RUNS
    one, two = (_seconds(replace(depth.SWEEP, configs=configs), processes) for processes in (1, 2))
    return [
        Row("A run of a sweep, overhead", f"{1000 * overhead:.1f} ms", "≤ 20 ms"),
        Row("A sweep in two processes over one, their start included", f"{one / two:.1f}× as fast", "≥ 1.7×"),
        Row("Empty tasks a second, through Dask over a pool, two processes each", _through_dask()),
    ]


def _through_dask() -> str:
    """Rate of a local Dask cluster, and of a pool; the start of neither counts."""
    from distributed import Client, LocalCluster

    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        plain = _rate(pool)
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        dask = _rate(client.get_executor())
    return f"{dask:.0f} over {plain:.0f}"


def _rate(executor: Executor) -> float:
    list(executor.map(abs, range(10)))
    start = time.perf_counter()
    list(executor.map(abs, range(TASKS)))
    return TASKS / (time.perf_counter() - start)


def _seconds(sweep: Sweep, executor: int | None) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        outcome = execute(sweep, folder, executor, progress=False)
        taken = time.perf_counter() - start
    assert not outcome.failures, outcome
    return taken
