"""Make the runs of a sweep that are not there yet, and keep each as soon as it is."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attntut._extras import extra
from attntut.sweep import source
from attntut.sweep.files import write_whole
from attntut.sweep.plan import OURS, Config, Job, Sweep, jobs
from attntut.sweep.workers import outcomes, work

with extra("tables"):
    import pandas as pd
with extra("train"):
    from tqdm import tqdm


@dataclass(frozen=True)
class Failure:
    """A run that gave no numbers, or whose numbers could not be written, and why."""

    config: Config
    error: BaseException

    def __str__(self) -> str:
        what = ", ".join(f"{key}={value}" for key, value in self.config.items())
        return f"{what}: {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True)
class Outcome:
    """What became of a sweep.

    Attributes:
        frame: a row a finished run, in the order of the sweep: its configuration, its numbers, ``seconds`` (its share
            of the time of one thread) and the ``machine`` with its versions.
        failures: the others.
        new: how many runs were made now; the rest of the rows was there.
    """

    frame: pd.DataFrame
    failures: list[Failure]
    new: int

    def __str__(self) -> str:
        seconds = self.frame["seconds"].sum() if len(self.frame) else 0.0
        counts = f"{len(self.frame)} runs, {self.new} of them new, {seconds:.0f} s of one thread; "
        return "\n  ".join([f"{counts}{len(self.failures)} failed", *map(str, self.failures)])


def execute(
    sweep: Sweep, folder: str | Path, executor: Executor | int | None = None, *, progress: bool | None = None
) -> Outcome:
    """Make the runs of a sweep that are not there yet.

    Each run is written at once and as a whole, into a file of its own below ``folder``, under the hash of its
    configuration and of the code that it depends on (:func:`attntut.sweep.source.dependencies`, and torch's version).
    What is interrupted goes on where it was; what has changed is made again. A run that fails takes no other with it:
    jobs of several are repeated one by one. While the disk is full, results wait in memory and are tried again.

    Args:
        sweep: what to run.
        folder: where results are kept; made if it is missing.
        executor: None runs in this process; a number starts so many. A process that dies is replaced, and what it may
            have been running is tried once more, alone. Or any executor with ``submit``: of
            :mod:`concurrent.futures`, ``dask.distributed.Client(…).get_executor()``, submitit's. Each run has one
            thread, and a process makes one job at a time.
        progress: whether to show a bar; by default only where stderr is a terminal.

    Raises:
        ValueError: ``run`` does not lie in a file.

    Example:
        >>> import tempfile
        >>> from attntut.sweep import grid
        >>> from attntut.sweeps.depth import run, shape
        >>> configs = grid(scheme="gpt2", norm="pre", depth=1, lr=1e-3, seed=range(2))
        >>> sweep = Sweep("small", run, configs, shape=shape)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(execute(sweep, folder))
        ...     print(execute(sweep, folder))
        2 runs, 2 of them new, ... s of one thread; 0 failed
        2 runs, 0 of them new, ... s of one thread; 0 failed
    """
    kept = _Kept(Path(folder) / sweep.name, source.digest(sweep.run))
    todo, new, failures = jobs(sweep, missing(sweep, folder)), 0, list[Failure]()
    call = partial(work, sweep.run, sweep.shape is not None, kept.code)
    threads = torch.get_num_threads()
    total = sum(sweep.cost(config) for job in todo for config in job)
    form = "{percentage:3.0f} % |{bar}| {elapsed} < {remaining}{postfix}"
    try:
        with tqdm(total=total, disable=None if progress is None else not progress, bar_format=form) as bar:
            while todo:
                again: list[Job] = []
                with closing(outcomes(call, todo, executor)) as ended:
                    for job, came in ended:
                        if isinstance(came, dict):
                            kept.put(job, came)
                            new += len(job)
                        elif len(job) > 1:
                            again += [[config] for config in job]
                            continue
                        else:
                            failures.append(Failure(job[0], came))
                        bar.set_postfix_str(f"{new} runs, {len(failures)} failed{kept.waiting}", refresh=False)
                        bar.update(sum(map(sweep.cost, job)))
                todo = again
    finally:
        torch.set_num_threads(threads)
        kept.put([], {})
    failures += [Failure(record["config"], kept.full) for record in kept.held.values() if kept.full]
    records = filter(None, map(kept.get, sweep.configs))
    rows = [each["config"] | each["result"] | {key: each[key] for key in OURS} for each in records]
    return Outcome(pd.DataFrame(rows), failures, new)


def missing(sweep: Sweep, folder: str | Path) -> list[Config]:
    """The configurations whose results are not there yet, or are of other code."""
    kept = _Kept(Path(folder) / sweep.name, source.digest(sweep.run))
    return [config for config in sweep.configs if kept.get(config) is None]


@dataclass
class _Kept:
    """The results of a sweep: one file per run, written as a whole or not at all."""

    folder: Path
    code: str
    held: dict[Path, dict[str, Any]] = field(default_factory=dict)  # what could not be written yet
    full: OSError | None = None

    def path(self, config: Config) -> Path:
        what = json.dumps([config, self.code, torch.__version__.partition("+")[0]], sort_keys=True)
        return self.folder / f"{hashlib.sha256(what.encode()).hexdigest()[:20]}.json"

    def get(self, config: Config) -> dict[str, Any] | None:
        """The record of a run; None if there is none, or only a part of one."""
        path = self.path(config)
        try:
            return self.held.get(path) or json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None

    def put(self, job: Job, came: dict[str, Any]) -> None:
        """Write the records of a job, and what waits from before."""
        about = {key: came[key] for key in (*OURS, "code") if key in came}
        for config, result in zip(job, came.get("results", ()), strict=True):
            self.held[self.path(config)] = {"config": config, "result": result, **about}
        for path, record in list(self.held.items()):
            try:
                write_whole(path, json.dumps(record))
            except OSError as error:
                self.full = error
                return
            del self.held[path]

    @property
    def waiting(self) -> str:
        return f", {len(self.held)} not written yet: {self.full}" if self.held else ""
