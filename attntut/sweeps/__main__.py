"""Make a sweep of the book again, into ``runs/NAME.csv``.

    nox -s runs                                      which there are
    nox -s runs -- depth                             on all cores of this machine
    nox -s runs -- depth --processes 4
    nox -s runs -- depth --executor tcp://host:8786  on a Dask cluster (pip install 'attntut[cluster]')

It says how long it will take. What is interrupted goes on at the next start; what is done is kept in ``_build/runs``.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
from concurrent.futures import Executor
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from attntut import sweeps
from attntut.sweep import Sweep, execute, jobs, missing, source, store

ROOT = Path(__file__).resolve().parents[2]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return 1 if a run failed."""
    names = [module.name for module in pkgutil.iter_modules(sweeps.__path__) if module.name != "__main__"]
    parser = argparse.ArgumentParser(
        prog="nox -s runs --", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of a sweep: {', '.join(names)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="on this machine (all its cores)")
    parser.add_argument("--executor", metavar="ADDRESS", help="of the scheduler of a Dask cluster")
    parser.add_argument("--out", type=Path, default=ROOT / "runs", help="folder of the CSV files (runs)")
    parser.add_argument("--folder", type=Path, default=ROOT / "_build" / "runs", help="of single results (_build/runs)")
    options = parser.parse_args(argv)
    if unknown := [name for name in options.names if name not in names]:
        parser.error(f"NAME must be one of {', '.join(names)}: got {', '.join(unknown)}.")
    for name in () if options.names else names:
        module = import_module(f"attntut.sweeps.{name}")
        print(f"{name}: {len(module.SWEEP.configs)} runs. {module.__doc__}")
    executor, workers = _executor(options.executor) if options.executor else (options.processes, options.processes)
    failed = False
    for name in options.names:
        sweep = import_module(f"attntut.sweeps.{name}").SWEEP
        foretell(sweep, options.folder, executor, workers)
        outcome = execute(sweep, options.folder, executor)
        print(f"{name}: {outcome}")
        if outcome.failures:
            failed = True
            print(f"{name}.csv is not written. The finished runs are kept: start again when the cause is mended.")
        else:
            about = f"made again by: nox -s runs -- {name}; code {source.digest(sweep.run)}"
            store(outcome.frame, options.out / f"{name}.csv", about=about)
    return int(failed)


def foretell(sweep: Sweep, folder: Path, executor: Executor | int, workers: int) -> None:
    """Say how many runs are missing and how long they will take, by what is there, or by one job that is made first."""
    left = missing(sweep, folder)
    print(f"{sweep.name}: {len(sweep.configs)} runs, of which {len(left)} are missing.", flush=True)
    if len(left) == len(sweep.configs):
        print("How long? One job first.", flush=True)
        ordered = jobs(sweep)
        execute(replace(sweep, configs=ordered[len(ordered) // 2]), folder, executor)
        left = missing(sweep, folder)
    done = execute(replace(sweep, configs=[config for config in sweep.configs if config not in left]), folder).frame
    if left and len(done):
        rate = done["seconds"].sum() / sum(sweep.cost(config) for config in done[list(left[0])].to_dict("records"))
        minutes = rate * sum(map(sweep.cost, left)) / min(workers, len(jobs(sweep, left))) / 60
        print(f"About {minutes:.1f} minutes, with {workers} at a time.", flush=True)


def _executor(address: str) -> tuple[Any, int]:
    from attntut._extras import extra

    with extra("cluster"):
        from distributed import Client
    client = Client(address)
    return client.get_executor(), len(client.nthreads())


if __name__ == "__main__":
    raise SystemExit(main())
