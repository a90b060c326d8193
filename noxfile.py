"""Everything that can be run on this book. ``nox -l`` lists it; options after ``--`` go to pytest or to the tool.

All sessions share one environment, ``.nox/attntut``. It is installed once, and again when the dependencies in
``pyproject.toml`` or ``constraints.txt`` changed, so only the first session takes minutes to start.

Options of our own, for every session, after ``--``:
    --device NAME   run on this device (``cpu``, the default, or ``cuda``); skipped with a message where it is not there
    --threads N     threads of the linear algebra in tests and kernels (default 1)
    --newest        install the newest releases instead of the tested ones
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["test"]

ROOT = Path(__file__).resolve().parent
SITE = ROOT / "_build" / "html"
VENV = ROOT / ".nox" / "attntut"
BIN = VENV / ("Scripts" if sys.platform == "win32" else "bin")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WORKERS = str(max(1, min(4, os.cpu_count() or 1)))


@nox.session(venv_backend="none")
def book(session: nox.Session) -> None:
    """Build the site and say where it is."""
    prepare(session)
    build_site(session)


@nox.session(venv_backend="none")
def test(session: nox.Session) -> None:
    """Run every check: lint, unit tests and doctests, the notebooks, the site, the site in a browser."""
    start = time.monotonic()
    options = prepare(session)
    took = [("installation", time.monotonic() - start)]
    for name, stage in {
        "lint": lambda: run_lint(session),
        "unit tests and doctests": lambda: run_unit(session, options),
        "notebooks": lambda: run_nbval(session),
        "site": lambda: build_site(session),
        "browser": lambda: run_browser(session),
    }.items():
        session.log(f"----- {name} -----")
        start = time.monotonic()
        stage()
        took.append((name, time.monotonic() - start))
    session.log("Everything passed: " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took) + ".")


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Check style, format and types."""
    prepare(session)
    run_lint(session)


@nox.session(venv_backend="none")
def unit(session: nox.Session) -> None:
    """Run the unit tests and doctests."""
    run_unit(session, prepare(session))


@nox.session(venv_backend="none")
def nbval(session: nox.Session) -> None:
    """Execute every notebook again and compare its outputs with the committed ones."""
    run_nbval(session, prepare(session))


@nox.session(venv_backend="none")
def browser(session: nox.Session) -> None:
    """Drive the built site and JupyterLab in Chromium."""
    options = prepare(session)
    if not (SITE / "index.html").exists():
        build_site(session)
    run_browser(session, options)


@nox.session(venv_backend="none")
def notebooks(session: nox.Session) -> None:
    """Execute and normalize the notebooks in place, all or those named."""
    run(session, "python", "tools/notebooks.py", *prepare(session))


@nox.session(venv_backend="none")
def lab(session: nox.Session) -> None:
    """Open JupyterLab on the notebooks; its root is the repository, so that their links and drawings are found."""
    options = prepare(session)
    run(session, "jupyter-lab", f"--ServerApp.root_dir={ROOT}", "--LabApp.default_url=/lab/tree/notebooks", *options)


@nox.session(venv_backend="none")
def fresh(session: nox.Session) -> None:
    """Run the copies to download, of chapter 2 or those named, where only torch and Jupyter are installed."""
    run(session, "python", "tools/fresh.py", *prepare(session))


@nox.session(venv_backend="none")
def chaos(session: nox.Session) -> None:
    """Run the chapters with nudged weights: would the verdicts stand on another machine? (``-- --seeds 3 05``)"""
    run(session, "python", "tools/chaos.py", *prepare(session))


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Measure speed and weight; ``-- --write`` puts the table into the README."""
    run(session, "python", "-m", "bench", *prepare(session, threads=str(os.cpu_count() or 1)))


# --- what the sessions are made of ------------------------------------------------------------------------------------


def prepare(session: nox.Session, *, threads: str = "1") -> list[str]:
    """Install the book, set the environment, and return the options that are not ours."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default=os.environ.get("ATTNTUT_DEVICE", "cpu"))
    parser.add_argument("--threads", default=threads)
    parser.add_argument("--newest", action="store_true")
    ours, rest = parser.parse_known_args(session.posargs)

    install(session, newest=ours.newest)
    session.env.update(VIRTUAL_ENV=str(VENV), PATH=os.pathsep.join([str(BIN), os.environ["PATH"]]))
    session.env.update(PYTHONUTF8="1", ATTNTUT_DEVICE=ours.device)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        session.env[name] = ours.threads
    if ours.device != "cpu":
        ask = "import sys, torch\ntry: torch.zeros(1, device=sys.argv[1])\nexcept Exception: sys.exit('missing')"
        if run(session, "python", "-c", ask, ours.device, silent=True, log=False, success_codes=[0, 1]):
            session.skip(f"this machine has no device {ours.device!r}. Leave --device out to run on the CPU.")
    return rest


def install(session: nox.Session, *, newest: bool) -> None:
    """Make the environment with the book and its tools, unless it is already there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"], project["optional-dependencies"], (ROOT / "constraints.txt").read_text()
    digest = hashlib.sha256(f"{ROOT} {sys.version} {newest} {wanted}".encode())
    stamp = VENV / "installed.sha256"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    session.log(f"Installing into {VENV} (minutes, once)")
    venv.create(VENV, clear=True, with_pip=True)
    how = ["--upgrade"] if newest else ["-c", "constraints.txt"]
    run(session, "python", "-m", "pip", "install", "--quiet", *how, "-e", ".[book,test]")
    stamp.write_text(digest.hexdigest())


def run(session: nox.Session, program: str, *args: str, env: Mapping[str, str] | None = None, **how: Any) -> Any:
    """Run a program of the environment."""
    return session.run(str(BIN / program), *args, env=env, external=True, **how)


def run_lint(session: nox.Session) -> None:
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    run(session, "mypy")


def run_unit(session: nox.Session, options: list[str]) -> None:
    run(session, "pytest", "--ignore=tests/browser", "-n", WORKERS, "--dist", "worksteal", *options)


def run_nbval(session: nox.Session, options: list[str] | None = None) -> None:
    options = options or []
    what = [] if any(".ipynb" in option for option in options) else ["notebooks"]
    command = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", "tools/nbval_sanitize.cfg"]
    workers = max(1, int(WORKERS) // int(session.env["OMP_NUM_THREADS"] or 1))  # threads and workers share the cores
    command += ["--nbval-cell-timeout", "300", "-n", str(workers), "--dist", "loadfile"]
    run(session, "pytest", *command, *what, *options)


def build_site(session: nox.Session) -> None:
    """Build the site, executing its notebooks; a warning is an error."""
    stamp = ROOT / "_build" / "package.sha256"
    if not stamp.exists() or stamp.read_text() != package_digest(session):
        # The key of the execution cache knows a notebook's code, but not the package that it imports.
        shutil.rmtree(ROOT / "_build" / ".jupyter_cache", ignore_errors=True)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(package_digest(session))
    environment = {"ATTNTUT_EXPLORER": "static", "TQDM_DISABLE": "1"}
    run(session, "jupyter-book", "build", ".", "--all", "-W", "--keep-going", env=environment)
    for old in SITE.glob("attntut-*.whl"):
        old.unlink()
    run(session, "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(SITE), ".")
    session.log(f"The book is here:  {SITE / 'index.html'}")
    session.log(f"Open it:           {(SITE / 'index.html').as_uri()}")
    session.log("Or serve it:       python -m http.server --directory _build/html")


def package_digest(session: nox.Session) -> str:
    """Hash what the output of a notebook depends on besides its own code."""
    digest = hashlib.sha256(f"{sys.version} {session.env['ATTNTUT_DEVICE']}".encode())
    package = [path for path in (ROOT / "attntut").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    for path in [ROOT / "constraints.txt", *sorted(package)]:
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def run_browser(session: nox.Session, options: list[str] | None = None) -> None:
    if not any(map(shutil.which, BROWSERS)):
        session.warn("Skipped the browser's checks: no Chromium or Chrome on the PATH.")
        return
    run(session, "pytest", "tests/browser", *(options or []))
