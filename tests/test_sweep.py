"""Sweeps: nothing is lost, nothing is made twice, whatever dies, fills up or fails on the way."""

import copy
import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from attntut import sweeps
from attntut.data import digits
from attntut.device import seeded
from attntut.evidence import Disagreement, compare
from attntut.init import initialize_
from attntut.sweep import (
    Sweep,
    best_rate,
    engine,
    execute,
    files,
    grid,
    jobs,
    missing,
    ranking,
    source,
    store,
    stored,
    workers,
)
from attntut.sweeps import __main__ as command
from attntut.sweeps import depth, first_steps, logits, swiglu, width
from attntut.train import train
from attntut.transformer import Transformer

LOG = "ATTNTUT_TEST_LOG"  # a folder in which runs leave a mark
X = grid(x=range(6))


@pytest.fixture(autouse=True)
def log(tmp_path, monkeypatch):
    folder = tmp_path / "log"
    folder.mkdir()
    monkeypatch.setenv(LOG, str(folder))
    return folder


def note(config):
    with Path(os.environ[LOG], "runs").open("a") as file:
        file.write(f"{config['x']}\n")


def made():
    """Which runs were begun since the last look."""
    path = Path(os.environ[LOG], "runs")
    found = sorted(map(int, path.read_text().split())) if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def square(config):
    note(config)
    return {"y": config["x"] ** 2, "half": config["x"] / 2, "missing": math.nan, "threads": torch.get_num_threads()}


def fails_at_3(config):
    note(config)
    if config["x"] == 3:
        raise ArithmeticError("three")
    return {"y": config["x"]}


def together(configs):
    return [fails_at_3(config) | {"company": len(configs)} for config in configs]


def dies(config):
    """Once at 1, as where memory was short for a moment; always at 3."""
    mark = Path(os.environ[LOG], "died")
    if config["x"] == 3 or (config["x"] == 1 and not mark.exists()):
        mark.touch()
        time.sleep(0.3)  # while others are running
        os.kill(os.getpid(), signal.SIGKILL)
    return square(config)


def slow(config):
    note(config)
    time.sleep(0.2)
    return {"y": config["x"]}


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_row_a_run_in_the_order_of_the_sweep(tmp_path):
    frame = execute(Sweep("s", square, X, cost=lambda config: config["x"]), tmp_path).frame
    assert made() == [0, 1, 2, 3, 4, 5]
    assert list(frame.columns) == ["x", "y", "half", "missing", "threads", "seconds", "machine"]
    assert frame["y"].tolist() == [0, 1, 4, 9, 16, 25]
    assert frame["half"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    assert frame["missing"].isna().all(), "A NaN is a result."
    assert frame["machine"].str.contains(f"torch {torch.__version__.split('+')[0]}").all()


def test_what_is_there_is_not_made_again(tmp_path):
    first = execute(Sweep("s", square, X[:4]), tmp_path)
    second = execute(Sweep("s", square, X), tmp_path)
    assert (first.new, second.new) == (4, 2)
    assert made() == [0, 1, 2, 3, 4, 5]
    pd.testing.assert_frame_equal(second.frame[:4], first.frame)
    assert not missing(Sweep("s", square, X), tmp_path)


def test_long_jobs_start_first_and_no_job_is_too_large():
    parts = jobs(Sweep("s", together, X, shape=lambda c: c["x"] % 2, at_once=2, cost=lambda c: c["x"]))
    assert [[config["x"] for config in job] for job in parts] == [[5], [4], [1, 3], [0, 2]]


def test_runs_have_one_thread_each_and_the_caller_keeps_his(tmp_path):
    torch.set_num_threads(2)
    for executor in (None, ThreadPoolExecutor(2)):
        frame = execute(Sweep(f"{executor}"[:5], square, X[:3]), tmp_path, executor).frame
        assert frame["threads"].tolist() == [1, 1, 1]
        assert torch.get_num_threads() == 2


def test_a_function_that_others_cannot_import_is_refused(tmp_path, monkeypatch):
    def inside(config):
        return {}

    source.digest.cache_clear()  # another test may have asked for it
    monkeypatch.setattr(fails_at_3, "__module__", "__main__")
    for run in (inside, lambda config: {}, print, fails_at_3):
        with pytest.raises(ValueError, match="top level of a file that other processes can import"):
            execute(Sweep("s", run, X), tmp_path)
    assert not any(tmp_path.glob("s/*"))


@pytest.mark.parametrize(
    "configs, error, message",
    [
        ([{"x": None}], TypeError, r"configs\[0\] must hold strings, numbers and bools: got x=None"),
        ([{"x": torch.tensor(1)}], TypeError, "tensor"),
        ([{"seconds": 1}], TypeError, "seconds"),
        ([{"x": 1}, {"y": 1}], ValueError, r"configs\[1\] must have the keys \['x'\]: got \['y'\]"),
        ([{"x": 1}, {"x": 2}, {"x": 1}], ValueError, r"configs\[2\] stands twice"),
    ],
)
def test_configurations_are_plain_data(configs, error, message):
    with pytest.raises(error, match=message):
        Sweep("s", square, configs)


def not_numbers(config):
    return {"y": "four"}


def takes_a_name(config):
    return {"x": 4}


def too_few(configs):
    return [{"y": 1}]


@pytest.mark.parametrize(
    "made_of, message",
    [
        (Sweep("s", not_numbers, X[:1]), r"must return a dictionary of numbers: got \{'y': 'four'\}"),
        (Sweep("s", takes_a_name, X[:1]), "names that are not taken: got x"),
        (Sweep("s", together, X[:1]), "indices must be integers"),
    ],
)
def test_what_a_run_must_return(made_of, message, tmp_path):
    (failure,) = execute(made_of, tmp_path).failures
    assert failure.config == {"x": 0}
    with pytest.raises(type(failure.error), match=message):
        raise failure.error


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_failure_takes_no_other_run_with_it(tmp_path):
    outcome = execute(Sweep("s", together, X, shape=lambda config: 0), tmp_path)
    assert [failure.config for failure in outcome.failures] == [{"x": 3}]
    assert outcome.frame["y"].tolist() == [0, 1, 2, 4, 5]
    assert str(outcome).endswith("1 failed\n  x=3: ArithmeticError: three")
    assert made() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5]  # together up to the failure, then one by one
    again = execute(Sweep("s", together, X, shape=lambda config: 0), tmp_path)
    assert (again.new, len(again.failures), made()) == (0, 1, [3])


def test_too_few_results_are_a_failure_of_each(tmp_path):
    outcome = execute(Sweep("s", too_few, X[:2], shape=lambda config: 0), tmp_path)
    assert (outcome.new, len(outcome.failures)) == (2, 0), "One by one, there is one result each."


def test_a_killed_worker_costs_nothing_and_a_run_that_kills_is_found(tmp_path):
    outcome = execute(Sweep("s", dies, X), tmp_path, 2)
    assert outcome.frame["x"].tolist() == [0, 1, 2, 4, 5]
    assert set(outcome.frame["threads"]) == {1}
    (failure,) = outcome.failures
    assert failure.config == {"x": 3}
    assert isinstance(failure.error, BrokenExecutor)
    assert made() == [0, 1, 2, 4, 5], "Nothing was made twice: what ran beside the dying ones had ended."


def test_workers_that_always_die_are_given_up(tmp_path, monkeypatch):
    pools = []

    class Broken(ThreadPoolExecutor):
        def __init__(self, *_):
            super().__init__(1)
            pools.append(self)

        def submit(self, *_):
            raise BrokenExecutor("no process starts")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Broken)
    outcome = execute(Sweep("s", square, grid(x=range(100))), tmp_path, 2)
    assert len(outcome.failures) == 100
    assert len(pools) < 40


def test_a_killed_sweep_goes_on_where_it_was(tmp_path):
    code = f"import test_sweep as t; t.execute(t.Sweep('s', t.slow, t.grid(x=range(50))), {str(tmp_path)!r})"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    begun = Path(os.environ[LOG], "runs")
    while not begun.exists() or len(begun.read_text().split()) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = made()
    there = len(list((tmp_path / "s").glob("*.json")))
    assert there in (len(before) - 1, len(before)), "All but the run in progress are there."
    outcome = execute(Sweep("s", slow, grid(x=range(8))), tmp_path)
    assert outcome.frame["y"].tolist() == list(range(8))
    assert len(made()) == outcome.new == 8 - there


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    write, full = files.write_whole, [True, True, False, True]

    def write_whole(path, text):
        if full and full.pop(0):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, text)

    monkeypatch.setattr(engine, "write_whole", write_whole)
    outcome = execute(Sweep("s", square, X), tmp_path)
    assert not outcome.failures, "There was space again before the end."
    assert len(outcome.frame) == len(list((tmp_path / "s").iterdir())) == 6
    assert made() == [0, 1, 2, 3, 4, 5]


def test_a_disk_that_stays_full_is_reported_and_the_results_are_in_the_frame(tmp_path, monkeypatch):
    execute(Sweep("s", square, X[:2]), tmp_path)

    def write_whole(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine, "write_whole", write_whole)
    outcome = execute(Sweep("s", square, X), tmp_path)
    assert outcome.frame["y"].tolist() == [0, 1, 4, 9, 16, 25]
    assert [failure.config["x"] for failure in outcome.failures] == [2, 3, 4, 5]
    assert "No space left on device" in str(outcome)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_a_file_is_the_old_one_or_the_new_one_and_nothing_else_stays(tmp_path):
    import resource

    path = tmp_path / "file"
    files.write_whole(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError):
            files.write_whole(path, "new " * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["file"]
    assert path.read_text() == "old"
    files.write_whole(path, "new")
    assert path.read_text() == "new"


def test_half_a_file_is_none(tmp_path):
    execute(Sweep("s", square, X[:2]), tmp_path)
    path = next((tmp_path / "s").glob("*.json"))
    path.write_text(path.read_text()[:-5])
    made()
    assert execute(Sweep("s", square, X[:2]), tmp_path).new == len(made()) == 1


# --- the code that it depends on --------------------------------------------------------------------------------------

CODE = {
    "inner": "SIZE = 3\n",
    "helper": "from sweep_code import inner\ndef twice(x):\n    return x * inner.SIZE\n",
    "aside": "WORD = 'unused'\n",
    "runs": """
from sweep_code import aside, helper

STEPS = 5
CONFIGS = [config for config in range(4)]

def named(x):
    return helper.twice(x) + STEPS

def run(config):
    '''What it does.'''
    return {"y": named(config["x"])}  # a comment
""",
}
CHANGES = {  # file, old, new, whether a run depends on it
    "its own body": ("runs", "named(config", "-named(config", True),
    "a constant it reaches": ("runs", "STEPS = 5", "STEPS = 6", True),
    "a module that an imported one imports": ("inner", "3", "4", True),
    "an imported module": ("helper", "x * inner", "x + inner", True),
    "its grid": ("runs", "range(4)", "range(5)", False),
    "a comment": ("runs", "# a comment", "# no comment", False),
    "a docstring": ("runs", "What it does", "What it is for", False),
    "layout": ("helper", "x * inner.SIZE", "(x\n        * inner.SIZE)", False),
    "a module that it does not use": ("aside", "unused", "still unused", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_is_that_of_the_code_that_counts(change, tmp_path, monkeypatch):
    package = tmp_path / "sweep_code"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    name, old, new, depends = CHANGES[change]

    def digest(code):
        for file, text in {"__init__": "", **code}.items():
            (package / f"{file}.py").write_text(text)
        for module in [module for module in sys.modules if module.startswith("sweep_code")]:
            del sys.modules[module]
        from sweep_code.runs import run

        return source.digest(run)

    assert old in CODE[name]
    before, after = digest(CODE), digest(CODE | {name: CODE[name].replace(old, new)})
    assert (before != after) == depends


def test_other_code_is_run_again_and_a_worker_with_other_code_is_refused(tmp_path, monkeypatch):
    made_of = Sweep("s", square, X[:1])
    assert execute(made_of, tmp_path).new == 1
    monkeypatch.setattr(source, "digest", lambda run: "another")
    assert execute(made_of, tmp_path).new == 1
    answers = iter(["here", "here", "there"])
    monkeypatch.setattr(source, "digest", lambda run: next(answers))
    (failure,) = execute(made_of, tmp_path).failures
    assert "other code: there, where here is asked for" in str(failure)


def test_a_sweep_depends_on_schemes_and_models_and_not_on_pages_or_reports():
    names = set(source.dependencies(depth.run))
    assert {"attntut.init.depth", "attntut.transformer", "attntut.train.many", "attntut._checks"} <= names
    assert not {name for name in names if name.startswith(("attntut.diagnose", "attntut.explorer", "attntut.sweep."))}
    assert "attntut.sweep" not in names and "attntut" not in names


# --- executors --------------------------------------------------------------------------------------------------------


class Job:
    """A future as submitit's: it knows ``done`` and ``result``, and no more."""

    def __init__(self, call):
        self.call, self.asked = call, 0

    def done(self):
        self.asked += 1
        return self.asked > 2

    def result(self):
        return self.call()

    def cancel(self):
        raise AssertionError("Nobody cancels what has ended.")


class Submits:
    def submit(self, function, *arguments):
        return Job(lambda: function(*arguments))


def test_whatever_has_submit_is_an_executor(tmp_path):
    outcome = execute(Sweep("s", fails_at_3, X), tmp_path, Submits())
    assert outcome.frame["y"].tolist() == [0, 1, 2, 4, 5]
    assert len(outcome.failures) == 1


def test_a_dask_cluster(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        outcome = execute(Sweep("s", fails_at_3, X), tmp_path, client.get_executor())
    assert outcome.frame["y"].tolist() == [0, 1, 2, 4, 5]
    assert [str(failure) for failure in outcome.failures] == ["x=3: ArithmeticError: three"]


# --- who is best ------------------------------------------------------------------------------------------------------


def entries(**losses: list[float]) -> pd.DataFrame:
    return pd.DataFrame(
        [dict(task="t", scheme=name, seed=i, loss=x) for name, each in losses.items() for i, x in enumerate(each)]
    )


def test_the_best_of_a_cell_is_told_from_the_others_by_paired_differences():
    shared = [0.0, 5.0, -5.0, 10.0, 2.0]
    frame = entries(b=[x + 1 for x in shared], a=shared, c=[4.0, 0.0, 3.0, -1.0, 8.0])
    frame["loss"] += [0.01, 0, 0, 0.01, 0] * 3
    rows = ranking(frame, "task").set_index("scheme")
    assert rows["verdict"].to_dict() == {"a": "best", "b": "worse", "c": "within the noise"}, "the seeds are paired"
    assert rows.loc["b", "gap"] == pytest.approx(1) and rows.loc["a", "gap"] == 0


def test_the_correction_is_holms():
    rng = np.random.default_rng(0)
    frame = entries(a=[-1.0] * 8, **{f"s{i}": list(rng.normal(0.1 * i - 0.4, 0.7, 8)) for i in range(4)})
    rows = ranking(frame, "task").set_index("scheme")
    pivot = frame.pivot(index="seed", columns="scheme", values="loss")
    plain = sorted((stats.ttest_1samp(pivot[f"s{i}"] - pivot["a"], 0).pvalue, f"s{i}") for i in range(4))
    wanted, so_far = {}, 0.0
    for i, (p, name) in enumerate(plain):
        so_far = wanted[name] = min(1, max(so_far, p * (4 - i)))
    assert rows["p"].drop("a").to_dict() == pytest.approx(wanted)
    assert np.isnan(rows.loc["a", "p"])


def test_two_entries_that_are_one_are_within_the_noise_and_a_constant_gap_is_not():
    rows = ranking(entries(a=[1.0, 2.0, 3.0], b=[1.0, 2.0, 3.0], c=[1.5, 2.5, 3.5]), "task").set_index("scheme")
    assert rows["verdict"].to_dict() == {"a": "best", "b": "within the noise", "c": "worse"}


def test_a_ranking_needs_every_run():
    with pytest.raises(ValueError, match="must have a number of each seed: got a gap in"):
        ranking(entries(a=[1.0, 2.0], b=[1.0]), "task")
    with pytest.raises(ValueError, match="column must be"):
        ranking(entries(a=[1.0, 2.0]), "cell")


# --- stored runs ------------------------------------------------------------------------------------------------------


def test_a_stored_frame_is_read_as_it_was(tmp_path):
    frame = pd.DataFrame(grid(scheme=["none", "b"], lr=[1e-4, 3e-3], causal=[True, False]))
    frame["loss"] = [math.nan, math.inf, -1.5, 1 / 3, 1e-9, 2e9, 0.0, 7.0]
    frame["step"] = range(8)
    frame["seconds"], frame["machine"] = 0.25, ["a, with a comma", "b"] * 4
    store(frame, tmp_path / "one.csv")
    again = stored("one", tmp_path)
    pd.testing.assert_frame_equal(again, frame, rtol=1e-5, check_dtype=False)
    assert again["causal"].dtype == bool
    assert (tmp_path / "one.csv").read_text().startswith("# one\n# machine 0: a, with a comma\n# machine 1: b\nscheme,")


def test_stored_runs_are_small_and_those_of_the_repository_are_found(repository):
    sizes = {path.name: path.stat().st_size for path in (repository / "runs").glob("*.csv")}
    assert sum(sizes.values()) <= 1_000_000, sizes
    assert len(stored("coverage")) > 900


def test_an_empty_place_is_missing_beside_numbers_and_a_word_beside_words(tmp_path):
    (tmp_path / "some.csv").write_text("method,none,x\n,,1.5\nclip,,\n,,nan\n", encoding="utf-8")
    frame = stored("some", tmp_path)
    assert frame["method"].tolist() == ["", "clip", ""] and frame["none"].tolist() == [""] * 3
    assert frame["x"].iloc[0] == 1.5 and frame["x"].isna().tolist() == [False, True, True]


def test_a_small_part_is_made_live_and_compared_with_what_is_stored(tmp_path, capsys):
    frame = execute(Sweep("s", square, X), tmp_path).frame
    store(frame, tmp_path / "s.csv")
    before = stored("s", tmp_path)
    live = pd.DataFrame([square(config) for config in X[2:4]])
    assert compare("y", before.query("x in (2, 3)")["y"].mean(), live["y"], rtol=1e-6).n == 2
    with pytest.raises(Disagreement):
        compare("y", before["y"].mean(), live["y"], rtol=0.1)


RATES = grid(scheme=["a", "b"], lr=[0.1, 0.3, 1.0], seed=range(2))


def scored(*scores):
    return pd.DataFrame(RATES).assign(accuracy=scores)


@pytest.mark.parametrize(
    "scores, rates, edges",
    [
        ([1, 1, 5, 5, 2, 2, 9, 1, 6, 6, 5, 5], [0.3, 0.3], ["", ""]),  # the mean, not the best seed
        ([9, 9, 1, 1, 1, 1, 1, 1, 2, 2, 3, 3], [0.1, 1.0], ["lowest", "highest"]),
        ([1, 1, 5, math.nan, 2, 2, 1, 1, 2, 2, 1, 1], [1.0, 0.3], ["highest", ""]),  # a run without a number
        ([math.nan] * 6 + [1, 1, 2, 2, 1, 1], [math.nan, 0.3], ["", ""]),
    ],
)
def test_each_scheme_has_its_own_best_rate(scores, rates, edges):
    best = best_rate(scored(*scores), "scheme")
    assert best["scheme"].tolist() == ["a", "b"]
    assert best["lr"].tolist() == pytest.approx(rates, nan_ok=True)
    assert best["edge"].tolist() == edges


def test_the_best_loss_is_the_least():
    best = best_rate(scored(3, 3, 1, 1, 2, 2, 1, 1, 2, 2, 3, 3), ["scheme"], largest=False)
    assert best["lr"].tolist() == [0.3, 0.1]
    assert best["accuracy"].tolist() == [1, 1]


def test_rates_are_compared_only_where_each_has_as_many_seeds():
    frame = scored(*range(12))
    assert best_rate(frame[frame["lr"] == 0.3], "scheme")["edge"].tolist() == ["only", "only"]
    with pytest.raises(ValueError, match="Every lr must have as many runs: got 1 to 2"):
        best_rate(frame[1:], "scheme")
    with pytest.raises(ValueError, match=r"'scheem'\. Did you mean 'scheme'"):
        best_rate(frame, "scheem")


# --- the sweeps of the book -------------------------------------------------------------------------------------------


def test_every_scheme_of_the_sweep_over_depth_trains_with_every_norm_that_it_allows():
    configs = [c for c in depth.SWEEP.configs if (c["depth"], c["lr"]) == (2, 1e-3) and c["seed"] < 2]
    by_shape = jobs(replace(depth.SWEEP, configs=configs))
    results = [numbers for job in by_shape for numbers in depth.run(job, steps=2)]
    assert len(results) == len(configs) == 2 * 16
    assert all(math.isfinite(numbers["loss"]) for numbers in results)
    assert len({(c["scheme"], c["norm"]) for c in configs}) == 16


def test_a_run_does_not_depend_on_its_company():
    configs = grid(scheme=["xavier_uniform", "gpt2"], norm="pre", depth=2, lr=[1e-3, 1e30], seed=1)
    company = depth.run(configs, steps=8)
    alone = [numbers for config in configs for numbers in depth.run([config], steps=8)]
    for one, other in zip(company, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-3, nan_ok=True)
    assert [math.isnan(numbers["diverged_at"]) for numbers in alone] == [True, False] * 2


def test_the_command_says_how_long_and_writes_the_table(tmp_path, monkeypatch, capsys):
    configs = grid(scheme="gpt2", norm="pre", depth=[1, 2], lr=1e-3, seed=range(2))
    monkeypatch.setattr(depth, "SWEEP", replace(depth.SWEEP, configs=configs))
    monkeypatch.setattr(command, "_executor", lambda address: (Submits(), 1))
    options = ["--out", str(tmp_path), "--folder", str(tmp_path / "kept"), "--executor", "tcp://nowhere"]
    assert command.main([]) == 0
    assert "depth: 4 runs. Which schemes train" in capsys.readouterr().out
    assert command.main(["depth", *options]) == 0
    said = capsys.readouterr().out
    assert "depth: 4 runs, of which 4 are missing." in said
    assert "minutes, with 1 at a time." in said
    frame = stored("depth", tmp_path)
    assert len(frame) == 4
    assert frame["accuracy"].min() > 0.8
    assert command.main(["depth", *options]) == 0
    assert "of which 0 are missing" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["deeph"])
    error = capsys.readouterr().err
    assert "NAME must be one of deeper, depth, " in error and ", width: got deeph" in error


def test_nothing_is_written_where_a_run_failed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(depth, "SWEEP", Sweep("depth", fails_at_3, X))
    monkeypatch.setattr(command, "_executor", lambda address: (Submits(), 1))
    options = ["--out", str(tmp_path), "--folder", str(tmp_path / "kept"), "--executor", "tcp://nowhere"]
    assert command.main(["depth", *options]) == 1
    assert not (tmp_path / "depth.csv").exists()
    assert "x=3: ArithmeticError: three" in capsys.readouterr().out


def test_every_sweep_has_the_name_of_its_module():
    for path in Path(sweeps.__file__).parent.glob("[!_]*.py"):
        module = __import__(f"attntut.sweeps.{path.stem}", fromlist=["SWEEP"])
        assert module.SWEEP.name == path.stem
        assert json.dumps(module.SWEEP.configs)


def test_a_frozen_start_moves_nothing_while_the_averages_of_adam_fill():
    config = {"depth": 2, "norm": "post", "scheme": "xavier_uniform", "lr": 1e-2, "seed": 0}
    still, moved = (first_steps.run([config | {"start": "frozen 30"}], steps=first_steps.FROZEN + n)[0] for n in (0, 1))
    assert still["loss"] == depth.run([config | {"lr": 0.0}], steps=1)[0]["loss"] != moved["loss"]
    assert {config["start"] for config in first_steps.SWEEP.configs} == {*first_steps.STARTS}


def test_the_wrong_matrix_of_a_swiglu_makes_the_same_function_and_the_other_placements_do_not():
    x = torch.randn(5, 4, 16)
    plain = initialize_(Transformer(swiglu.shape({"depth": 8}), seed=0), "lecun_normal", generator=seeded(0))
    output = {place: swiglu.place_(copy.deepcopy(plain), place)(x) for place in swiglu.PLACES}
    assert torch.allclose(output["down"], output["up"], atol=1e-5), "Are the biases 0, so that y is linear in W₃?"
    assert not torch.allclose(output["down"], output["both"], atol=1e-3)
    assert torch.equal(output["never"], plain(x))


def test_every_scheme_of_the_sweep_over_width_trains():
    configs = [c for c in width.SWEEP.configs if c["width"] == 32 and c["seed"] == 0 and c["lr"] == 2**-7]
    assert {(c["scheme"], c["power"]) for c in configs} == set(width.RATES)
    results = [numbers for job in jobs(replace(width.SWEEP, configs=configs)) for numbers in width.run(job, steps=2)]
    assert all(math.isfinite(numbers["loss"]) for numbers in results)


def test_every_method_of_the_sweep_over_logits_trains():
    few = replace(logits.SWEEP, configs=[c for c in logits.SWEEP.configs if c["lr"] == 1e-2 and c["seed"] == 0])
    found = {job[0]["method"]: logits.run(job, steps=2) for job in jobs(few)}
    assert set(found) == {*logits.ON_MODEL, *logits.ALONE}
    assert all(math.isfinite(numbers["loss"]) for both in found.values() for numbers in both)
    assert found["soft_cap, 5"][1]["logit_max"] <= 5.001 < found["none"][1]["logit_max"], "Is the method there?"
    assert found["qk_norm"][1]["logit_std"] < 1.5 < 10 < found["sink"][1]["logit_std"]


def test_rates_fall_with_the_width_where_a_sum_over_it_follows_and_nowhere_else():
    at = {d: width.factors(Transformer(width.shape({"scheme": "mup", "width": d}), seed=0), 1.0) for d in (32, 128)}
    assert set(at[32].values()) == {1.0}, "At the base width every rate is the one that was given."
    slow = {name for name, factor in at[128].items() if factor == 0.25}
    assert {at[128][name] for name in at[128].keys() - slow} == {1.0}
    matrices = {f"attention.{role}.weight" for role in ("query", "key", "value", "output")}
    matrices |= {"feed_forward.0.weight", "feed_forward.2.weight"}
    assert slow == {f"blocks.{i}.{name}" for i in (0, 1) for name in matrices} | {"readout.weight"}


def test_power_makes_no_difference_at_the_base_width_and_one_at_another():
    for d, same in ((32, True), (64, False)):
        one, other = (
            width.run([dict(scheme="lecun_normal", power=power, width=d, lr=0.01, seed=0)], steps=3) for power in (0, 1)
        )
        assert (one == other) is same


def test_what_ngpt_normalizes_has_length_1_after_every_step():
    model = width.model_of({"scheme": "ngpt", "width": 32, "seed": 0})
    start = {name: p.clone() for name, p in model.named_parameters()}
    train(model, digits(patch=4), lr=0.1, steps=3, after_step=width.to_sphere(model))
    for name, dim in (("feed_forward.0", 1), ("feed_forward.2", 0), ("attention.query", 1), ("attention.output", 0)):
        weight = model.blocks[0].get_submodule(name).weight
        assert torch.allclose(weight.norm(dim=dim), torch.ones(()), atol=1e-5), name
        assert not torch.allclose(weight, start[f"blocks.0.{name}.weight"], atol=0.01), "Nothing was trained."
    assert torch.allclose(model.positions.norm(dim=1), torch.ones(()), atol=1e-5)
    assert torch.allclose(model.embedding.weight.norm(dim=0), torch.ones(()), atol=1e-5)
