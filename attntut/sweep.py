"""Experiments that take longer than a reader waits: grids of runs on any executor, each result kept as it comes.

A *run* is a function from a configuration to numbers; a :class:`Sweep` is a grid of them; :func:`execute` makes those
that are missing, and :func:`stored` reads what the book has stored.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import numbers
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attntut import _source
from attntut._checks import check_choice, check_int
from attntut._extras import extra
from attntut.device import machine

with extra("tables"):
    import pandas as pd
with extra("train"):
    from tqdm import tqdm

Config = dict[str, Any]
Job = list[Config]
PLAIN = (str, int, float, bool)
POLL = 0.02  # seconds between two looks at what has ended
DEATHS = 8  # so many broken pools, and what is left is given up
OURS = ("seconds", "machine")
ROOT = Path(__file__).resolve().parent
_one_at_a_time = threading.Lock()


def grid(**axes: Any) -> list[Config]:
    """Every combination of the values of the axes, the last axis fastest; a plain value stands for itself.

    Example:
        >>> grid(depth=[2, 8], lr=1e-3, seed=range(2))[1:3]
        [{'depth': 2, 'lr': 0.001, 'seed': 1}, {'depth': 8, 'lr': 0.001, 'seed': 0}]
    """
    values = [[axis] if isinstance(axis, PLAIN) else list(axis) for axis in axes.values()]
    return [dict(zip(axes, each, strict=True)) for each in itertools.product(*values)]


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Args:
        name: of its folder and of its file.
        run: from a configuration to a dictionary of numbers, NaN among them. Pure, and at the top level of a module, so
            that other processes find it. With ``shape``, from a list of configurations to a list of such dictionaries.
        configs: what to run: dictionaries of strings, numbers and bools, all different and with the same keys.
        shape: configurations with an equal shape are given to ``run`` together, so that ``train_many`` can train them
            at once. Their numbers do not depend on the company, but for rounding.
        at_once: how many at most.
        cost: of a run, relative to others: long jobs start first, and the remaining time is estimated by it.

    Raises:
        TypeError, ValueError: a configuration is not plain data, has other keys, or stands twice.

    Example:
        >>> from attntut.sweeps.depth import run, shape
        >>> configs = grid(scheme=["gpt2", "layer_scale"], norm="pre", depth=1, lr=1e-3, seed=range(3))
        >>> [len(job) for job in jobs(Sweep("small", run, configs, shape=shape, at_once=2))]
        [2, 2, 1, 1]
    """

    name: str
    run: Callable[..., Any]
    configs: Sequence[Config]
    shape: Callable[[Config], Hashable] | None = None
    at_once: int = 16
    cost: Callable[[Config], float] = lambda config: 1.0

    def __post_init__(self) -> None:
        check_int("at_once", self.at_once)
        seen = set()
        for i, config in enumerate(self.configs):
            for key, value in config.items():
                if type(value) not in PLAIN or key in OURS:
                    raise TypeError(f"configs[{i}] must hold strings, numbers and bools: got {key}={value!r}.")
            if config.keys() != self.configs[0].keys():
                raise ValueError(f"configs[{i}] must have the keys {list(self.configs[0])}: got {list(config)}.")
            if (key := json.dumps(config, sort_keys=True)) in seen:
                raise ValueError(f"configs must be different: configs[{i}] stands twice, {config}.")
            seen.add(key)


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
    configuration and of the code that it depends on (:func:`attntut._source.dependencies`, and the version of torch).
    Whatever is interrupted goes on where it was; what has changed is made again. A run that fails takes no other with
    it: jobs of several are repeated one by one. While the disk is full, results wait in memory and are tried again.

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
        >>> from attntut.sweeps.depth import run, shape
        >>> configs = grid(scheme="gpt2", norm="pre", depth=1, lr=1e-3, seed=range(2))
        >>> sweep = Sweep("small", run, configs, shape=shape)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(execute(sweep, folder))
        ...     print(execute(sweep, folder))
        2 runs, 2 of them new, ... s of one thread; 0 failed
        2 runs, 0 of them new, ... s of one thread; 0 failed
    """
    kept = _Kept(Path(folder) / sweep.name, _source.digest(sweep.run))
    todo, new, failures = jobs(sweep, missing(sweep, folder)), 0, list[Failure]()
    work = partial(_work, sweep.run, sweep.shape is not None, kept.code)
    threads = torch.get_num_threads()
    total = sum(sweep.cost(config) for job in todo for config in job)
    form = "{percentage:3.0f} % |{bar}| {elapsed} < {remaining}{postfix}"
    try:
        with tqdm(total=total, disable=None if progress is None else not progress, bar_format=form) as bar:
            while todo:
                again: list[Job] = []
                with closing(_outcomes(work, todo, executor)) as outcomes:
                    for job, came in outcomes:
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
    return Outcome(_frame(records), failures, new)


def missing(sweep: Sweep, folder: str | Path) -> list[Config]:
    """The configurations whose results are not there yet, or are of other code."""
    kept = _Kept(Path(folder) / sweep.name, _source.digest(sweep.run))
    return [config for config in sweep.configs if kept.get(config) is None]


def jobs(sweep: Sweep, configs: Iterable[Config] | None = None) -> list[Job]:
    """The configurations, those that are run together in one list; the most expensive first."""
    groups: dict[Hashable, Job] = {}
    for i, config in enumerate(sweep.configs if configs is None else configs):
        groups.setdefault(sweep.shape(config) if sweep.shape else i, []).append(config)
    n = sweep.at_once
    parts = [group[start : start + n] for group in groups.values() for start in range(0, len(group), n)]
    return sorted(parts, key=lambda job: -sum(map(sweep.cost, job)))


# --- where it runs ----------------------------------------------------------------------------------------------------


def _work(run: Callable[..., Any], together: bool, code: str, job: Job) -> dict[str, Any]:
    """What happens in a worker: one thread, and one job at a time, since torch's random state is one a process."""
    if (here := _source.digest(run)) != code:
        raise RuntimeError(f"The worker has other code: {here}, where {code} is asked for.")
    with _one_at_a_time:
        torch.set_num_threads(1)
        start = time.perf_counter()
        results = list(run(job)) if together else [run(job[0])]
        seconds = (time.perf_counter() - start) / len(job)
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


def _outcomes(
    work: Callable[[Job], Any], todo: list[Job], executor: Executor | int | None
) -> Generator[tuple[Job, Any], None, None]:
    """Every job with what came of it, as they end: a dictionary, or what was raised."""
    if executor is None:
        yield from ((job, _came(partial(work, job))) for job in todo)
    elif isinstance(executor, int):
        yield from _in_processes(work, todo, check_int("executor", executor))
    else:
        yield from _ended(work, todo, executor, set())


def _came(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except (Exception, SystemExit) as error:
        return error


def _ended(work: Callable[[Job], Any], todo: list[Job], executor: Any, started: set[int]) -> Iterator[tuple[Job, Any]]:
    """As :func:`_outcomes`, of an executor; ``started`` gets the identities of jobs that were seen running."""
    pending: dict[int, Any] = {}
    by_id = {id(job): job for job in todo}
    try:
        for job in todo:
            try:
                pending[id(job)] = executor.submit(work, job)
            except BrokenExecutor as error:
                yield job, error
        while pending:
            for key in [key for key, future in pending.items() if future.done()]:
                yield by_id[key], _came(pending.pop(key).result)
            started |= {key for key, future in pending.items() if getattr(future, "running", bool)()}
            time.sleep(POLL)
    finally:
        for future in pending.values():
            future.cancel()


def _in_processes(work: Callable[[Job], Any], todo: list[Job], n: int) -> Iterator[tuple[Job, Any]]:
    """As :func:`_outcomes`, of ``n`` processes; a dead one breaks their pool, and a new pool takes the rest.

    What may have been running is left to the end, where one process takes it in order: the first that is not done when
    it dies is the cause.
    """
    suspects: list[Job] = []
    deaths = 0
    while todo or suspects:
        if not todo:
            todo, suspects, n = suspects, [], 1
        started: set[int] = set()
        broken = []
        with ProcessPoolExecutor(min(n, len(todo)), multiprocessing.get_context("spawn")) as pool:
            for job, came in _ended(work, todo, pool, started):
                if isinstance(came, BrokenExecutor):
                    broken.append((job, came))
                else:
                    yield job, came
        deaths += bool(broken)
        if deaths > DEATHS:
            yield from broken
            broken = []
        elif broken and n == 1:
            yield broken.pop(0)
        suspects += [job for job, _ in broken if id(job) in started and n > 1]
        todo = [job for job, _ in broken if id(job) not in started or n == 1]


# --- what is kept -----------------------------------------------------------------------------------------------------


@dataclass
class _Kept:
    """The results of a sweep: one file a run, written as a whole or not at all."""

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


def _frame(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([each["config"] | each["result"] | {key: each[key] for key in OURS} for each in records])


# --- stored runs ------------------------------------------------------------------------------------------------------


def store(frame: pd.DataFrame, path: str | Path, *, about: str = "") -> None:
    """Write the runs of a sweep as CSV: numbers with six digits, machines with their versions in the first lines.

    Args:
        frame: of an :class:`Outcome`.
        path: of the file.
        about: the first line.
    """
    machines = list(dict.fromkeys(frame["machine"]))
    plain = frame.assign(machine=frame["machine"].map(machines.index))
    for name in plain.select_dtypes("float"):
        plain[name] = plain[name].map(lambda x: float(f"{x:.6g}"))
    lines = [about or Path(path).stem, *(f"machine {i}: {each}" for i, each in enumerate(machines))]
    table = plain.to_csv(index=False, na_rep="nan", lineterminator="\n")
    write_whole(Path(path), "".join(f"# {line}\n" for line in lines) + table)


def stored(name: str, folder: str | Path | None = None) -> pd.DataFrame:
    """The stored runs of a sweep: a row a run, as in :class:`Outcome`.

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
    places = [Path(folder)] if folder else [ROOT / "runs", ROOT.parent / "runs"]
    found = {path.stem: path for place in places for path in place.glob("*.csv")}
    path = found[check_choice("name", name, sorted(found))]
    with path.open(encoding="utf-8") as file:
        notes = [line[2:].strip() for line in itertools.takewhile(lambda line: line.startswith("# "), file)]
    machines = [note.partition(": ")[2] for note in notes if note.startswith("machine ")]
    frame = pd.read_csv(path, skiprows=len(notes), keep_default_na=False, na_values=["nan"])
    return frame.assign(machine=frame["machine"].map(dict(enumerate(machines)))) if machines else frame


def best_rate(
    frame: pd.DataFrame, by: str | Collection[str], *, rate: str = "lr", score: str = "accuracy", largest: bool = True
) -> pd.DataFrame:
    """Each group's own best learning rate: the one with the best mean over the seeds.

    Args:
        frame: runs; every rate of a group must have as many.
        by: the columns that make a group, ``"scheme"`` say.
        rate, score: the columns of the learning rate and of what is to be best.
        largest: whether a large score is a good one.

    Returns:
        A row a group: ``by``, the rate, the mean score there, and ``edge``: ``"lowest"`` or ``"highest"`` where the
        best is at an end of the group's grid, so that a better one may lie beyond; else empty. A rate with a NaN is
        worse than any without; with NaNs everywhere, rate and score are NaN. To get the runs themselves, merge.

    Raises:
        ValueError: a column is missing, or rates of a group have different numbers of runs.

    Example:
        >>> frame = pd.DataFrame(grid(scheme=["a", "b"], lr=[0.1, 0.3, 1.0], seed=range(2)))
        >>> frame["accuracy"] = [0.5, 0.7, 0.8, 0.9, 0.4, 0.2] + [0.1, 0.1, 0.2, 0.4, 0.9, 0.7]
        >>> best = best_rate(frame, "scheme")
        >>> best
          scheme   lr  accuracy     edge
        0      a  0.3      0.85
        1      b  1.0      0.80  highest
        >>> len(frame.merge(best[["scheme", "lr"]]))
        4
    """
    groups = [by] if isinstance(by, str) else list(by)
    for column in (*groups, rate, score):
        check_choice("column", column, map(str, frame.columns))
    rows = []
    for key, group in frame.groupby(groups, sort=False):
        scores = group.groupby(rate)[score]
        if len(counts := sorted(set(scores.size()))) > 1:
            raise ValueError(f"Every {rate} must have as many runs: got {counts[0]} to {counts[-1]} in {key}.")
        means = scores.agg(lambda each: each.mean(skipna=False)) * (1 if largest else -1)
        best = means.idxmax() if means.notna().any() else float("nan")
        edges = {means.index.max(): "highest", means.index.min(): "lowest"} if len(means) > 1 else {best: "only"}
        value = means.get(best, float("nan")) * (1 if largest else -1)
        rows.append([*key, best, value, edges.get(best, "")])
    return pd.DataFrame(rows, columns=[*groups, rate, score, "edge"])
