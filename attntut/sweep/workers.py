"""Where runs run: in this process, in others, or wherever an executor puts them."""

from __future__ import annotations

import multiprocessing
import numbers
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from attntut._checks import check_int
from attntut.device import machine
from attntut.sweep import source
from attntut.sweep.plan import OURS, Config, Job

POLL = 0.02  # seconds between two looks at what has ended
DEATHS = 8  # so many broken pools, and what is left is given up
_one_at_a_time = threading.Lock()


def work(run: Callable[..., Any], together: bool, code: str, job: Job) -> dict[str, Any]:
    """What happens in a worker: one thread, and one job at a time, since torch's random state is one a process."""
    if (here := source.digest(run)) != code:
        raise RuntimeError(f"The worker has other code: {here}, where {code} is asked for.")
    with _one_at_a_time:
        torch.set_num_threads(1)
        start = time.thread_time()
        results = list(run(job)) if together else [run(job[0])]
        seconds = (time.thread_time() - start) / len(job)
        about = {"seconds": seconds, "machine": machine(), "code": code}
    if len(results) != len(job):
        raise ValueError(f"run must return one dictionary a configuration, {len(job)} in all: got {len(results)}.")
    return about | {"results": [_numbers(*pair) for pair in zip(results, job, strict=True)]}


def _numbers(result: Any, config: Config) -> dict[str, float]:
    """The numbers of a run as Python's own."""
    if not isinstance(result, dict) or not all(isinstance(value, numbers.Real) for value in result.values()):
        raise TypeError(f"run must return a dictionary of numbers: got {result!r}.")
    if taken := result.keys() & {*config, *OURS}:
        raise ValueError(f"run must return names that are not taken: got {', '.join(sorted(taken))}.")
    return {key: int(x) if isinstance(x, numbers.Integral) else float(x) for key, x in result.items()}


def outcomes(
    call: Callable[[Job], Any], todo: list[Job], executor: Executor | int | None
) -> Generator[tuple[Job, Any], None, None]:
    """Every job with what came of it, as they end: a dictionary, or what was raised."""
    if executor is None:
        yield from ((job, _came(partial(call, job))) for job in todo)
    elif isinstance(executor, int):
        yield from _in_processes(call, todo, check_int("executor", executor))
    else:
        yield from _ended(call, todo, executor, set())


def _came(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (Exception, SystemExit) as error:
        return error


def _ended(call: Callable[[Job], Any], todo: list[Job], executor: Any, started: set[int]) -> Iterator[tuple[Job, Any]]:
    """As :func:`outcomes`, of an executor; ``started`` gets the identities of jobs that were seen running."""
    pending: dict[int, Any] = {}
    by_id = {id(job): job for job in todo}
    try:
        for job in todo:
            try:
                pending[id(job)] = executor.submit(call, job)
            except BrokenExecutor as error:
                pending[id(job)] = Future()
                pending[id(job)].set_exception(error)
        while pending:
            for key in [key for key, future in pending.items() if future.done()]:
                yield by_id[key], _came(pending.pop(key).result)
            started |= {key for key, future in pending.items() if getattr(future, "running", bool)()}
            time.sleep(POLL)
    finally:
        for future in pending.values():
            future.cancel()


def _in_processes(call: Callable[[Job], Any], todo: list[Job], n: int) -> Iterator[tuple[Job, Any]]:
    """As :func:`outcomes`, of ``n`` processes; a dead one breaks their pool, and a new pool takes the rest.

    What may have been running is left to the end, where one process takes it in order: the first that is not done when
    it dies is the cause.
    """
    suspects: list[Job] = []
    alone, deaths = False, 0
    while todo or suspects:
        if not todo:
            todo, suspects, alone = suspects, [], True
        started: set[int] = set()
        broken = []
        size = 1 if alone else min(n, len(todo))
        with ProcessPoolExecutor(size, multiprocessing.get_context("spawn")) as pool:
            for job, came in _ended(call, todo, pool, started):
                if isinstance(came, BrokenExecutor):
                    broken.append((job, came))
                else:
                    yield job, came
        deaths += bool(broken)
        given_up = len(broken) if deaths > DEATHS else int(alone)
        yield from broken[:given_up]
        rest = [job for job, _ in broken[given_up:]]
        suspects += [job for job in rest if id(job) in started and not alone]
        todo = [job for job in rest if id(job) not in started or alone]
