"""Everything that can be run on this book. ``nox -l`` lists it; options after ``--`` go to pytest or to the tool.

All sessions but ``sphinx`` share one environment, ``.nox/attntut``. It is installed once, and again when the
dependencies in ``pyproject.toml`` or ``constraints.txt`` changed, so only the first session takes minutes to start.

Options of our own, for every session, after ``--``:
    --device NAME   run on this device (``cpu``, the default, or ``cuda``); skipped with a message where it is not there
    --threads N     threads of the linear algebra in tests and kernels (default 1)
    --newest        install the newest releases instead of the tested ones
    --oldest        install the oldest releases that ``pyproject.toml`` promises to work
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import sys
import time
import tomllib
import venv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["test"]

ROOT = Path(__file__).resolve().parent
BUILT = ROOT / "_build"
SITE, PLAIN = BUILT / "html", BUILT / "sphinx" / "html"  # by Jupyter Book, and by plain Sphinx
BIN = "Scripts" if sys.platform == "win32" else "bin"
# What plain Sphinx takes of the extra `book`, and what Jupyter Book would have brought.
NOT_FOR_SPHINX = {"jupyter-book", "jupyterlab", "sphinx", "sphinx-book-theme"}
FOR_SPHINX = ["sphinx>=9", "sphinx-external-toc>=1.1", "sphinx-multitoc-numbering", "sphinx-design",
              "sphinxcontrib-bibtex", "accessible-pygments"]  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLACE = re.compile(r'\bid="([^"]+)"')
WORKERS = str(max(1, min(4, os.cpu_count() or 1)))


@nox.session(venv_backend="none")
def book(session: nox.Session) -> None:
    """Build the site and say where it is."""
    prepare(session)
    build_site(session)


@nox.session(venv_backend="none")
def sphinx(session: nox.Session) -> None:
    """Build the same site with the newest Sphinx and without Jupyter Book; compare their addresses."""
    prepare(session, folder="sphinx")
    build(session, PLAIN, "sphinx-build", "-a", "-E", "-d", str(PLAIN.parent / ".doctrees"), ".", str(PLAIN))
    compare_addresses(session)


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
def exercises(session: nox.Session) -> None:
    """Write what is made of the exercises: each chapter's section, and the checks that are shipped."""
    run(session, "python", "tools/exercise_sections.py", *prepare(session))


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


@nox.session(venv_backend="none")
def coverage(session: nox.Session) -> None:
    """Try attntut on every architecture of transformers, into runs/coverage.csv. (``-- bert gpt2 --workers 2``)"""
    run(session, "python", "-m", "tools.coverage", *prepare(session))


@nox.session(venv_backend="none")
def world(session: nox.Session) -> None:
    """Measure how every architecture of transformers starts, into runs/world.csv. (``-- bert gpt2 --workers 2``)"""
    run(session, "python", "-m", "tools.world", *prepare(session))


@nox.session(venv_backend="none")
def release(session: nox.Session) -> None:
    """Write the notebook of a problem set for students. (``-- ps1 --out DIR``)"""
    run(session, "python", "-m", "grading.release", *prepare(session))


@nox.session(venv_backend="none")
def grade(session: nox.Session) -> None:
    """Grade a folder of notebooks. (``-- FOLDER --key KEYFILE --set ps1``)"""
    run(session, "python", "-m", "grading.grade", *prepare(session))


@nox.session(venv_backend="none")
def gradescope(session: nox.Session) -> None:
    """Make the zip that Gradescope wants. (``-- ps1 --key KEYFILE``)"""
    run(session, "python", "-m", "grading.gradescope", *prepare(session))


@nox.session(venv_backend="none")
def runs(session: nox.Session) -> None:
    """Make a sweep of the book again, into runs/NAME.csv. (``-- depth --processes 2``, ``-- depth --executor tcp://…``)"""
    run(session, "python", "-m", "attntut.sweeps", *prepare(session))


# --- what the sessions are made of ------------------------------------------------------------------------------------


def prepare(session: nox.Session, *, threads: str = "1", folder: str = "attntut") -> list[str]:
    """Install the book, set the environment, and return the options that are not ours."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default=os.environ.get("ATTNTUT_DEVICE", "cpu"))
    parser.add_argument("--threads", default=threads)
    versions = parser.add_mutually_exclusive_group()
    for name in ("newest", "oldest"):
        versions.add_argument(f"--{name}", dest="versions", action="store_const", const=name, default="tested")
    ours, rest = parser.parse_known_args(session.posargs)

    home = ROOT / ".nox" / folder
    session.env.update(VIRTUAL_ENV=str(home), PATH=os.pathsep.join([str(home / BIN), os.environ["PATH"]]))
    install(session, home, ours.versions)
    session.env.update(PYTHONUTF8="1", ATTNTUT_DEVICE=ours.device)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        session.env[name] = ours.threads
    if ours.device != "cpu":
        ask = "import sys, torch\ntry: torch.zeros(1, device=sys.argv[1])\nexcept Exception: sys.exit('missing')"
        if run(session, "python", "-c", ask, ours.device, silent=True, log=False, success_codes=[0, 1]):
            session.skip(f"this machine has no device {ours.device!r}. Leave --device out to run on the CPU.")
    return rest


def install(session: nox.Session, home: Path, versions: str) -> None:
    """Make the environment with the book and its tools, unless it is already there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if versions == "oldest":
        pins = oldest(sum(extras.values(), project["dependencies"]))
    elif versions == "newest":
        pins = []
    what = ["-e", ".[book,test]"]
    if home.name == "sphinx":
        book = [need for need in extras["book"] if Requirement(need).name not in NOT_FOR_SPHINX]
        what, pins = ["-e", ".", *book, *FOR_SPHINX], [pin for pin in pins if pin.startswith("torch==")]
    digest = hashlib.sha256(f"{ROOT} {sys.version} {what} {pins} {project['dependencies']} {extras}".encode())
    stamp = home / "installed.sha256"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    session.log(f"Installing into {home} (minutes, once)")
    venv.create(home, clear=True, with_pip=True)
    constraints = home / "constraints.txt"
    constraints.write_text("\n".join(pins), encoding="utf-8")
    run(session, "python", "-m", "pip", "install", "--quiet", "-c", str(constraints), *what)
    stamp.write_text(digest.hexdigest())


def oldest(needs: list[str]) -> list[str]:
    """Pin each requirement to the lowest version that it allows."""
    bounds = [(need.name, bound) for need in map(Requirement, needs) for bound in need.specifier]
    return [f"{name}=={bound.version}" for name, bound in bounds if bound.operator == ">="]


def run(session: nox.Session, program: str, *args: str, env: Mapping[str, str] | None = None, **how: Any) -> Any:
    """Run a program of the environment."""
    return session.run(str(Path(session.env["VIRTUAL_ENV"], BIN, program)), *args, env=env, external=True, **how)


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
    """Build the site with Jupyter Book."""
    build(session, SITE, "jupyter-book", "build", ".", "--all")


def build(session: nox.Session, site: Path, *command: str) -> None:
    """Build a site, executing its notebooks; a warning is an error."""
    stamp = site.parent / "package.sha256"
    if not stamp.exists() or stamp.read_text() != package_digest(session):
        # The key of the execution cache knows a notebook's code, but not the package that it imports.
        shutil.rmtree(site.parent / ".jupyter_cache", ignore_errors=True)
    shutil.rmtree(site, ignore_errors=True)  # or pages stay that no longer have a source
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(package_digest(session))
    env = {"ATTNTUT_EXPLORER": "static", "TQDM_DISABLE": "1", "JUPYTERCACHE": str(site.parent / ".jupyter_cache")}
    execute(session, env)
    run(session, *command, "-W", "--keep-going", env=env)
    run(session, "python", "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(site), ".")
    session.log(f"The book is here:  {site / 'index.html'}")
    session.log(f"Open it:           {(site / 'index.html').as_uri()}")
    session.log(f"Or serve it:       python -m http.server --directory {site.relative_to(ROOT).as_posix()}")


def execute(session: nox.Session, env: Mapping[str, str]) -> None:
    """Execute what the cache lacks, side by side; Sphinx would take one after the other. It reports what fails here."""
    Path(env["JUPYTERCACHE"]).mkdir(exist_ok=True)
    pages = [path for path in sorted((ROOT / "book").glob("*.md")) if "{code-cell}" in path.read_text("utf-8")]
    for reader, paths in {"nbformat": sorted((ROOT / "notebooks").glob("*.ipynb")), "myst_nb_md": pages}.items():
        run(session, "jcache", "notebook", "add", "--reader", reader, *map(str, paths), env=env, silent=True)
    run(session, "jcache", "project", "execute", "--executor", "local-parallel", "--timeout", "120", env=env)


def compare_addresses(session: nox.Session) -> None:
    """Fail where a link to a page of Jupyter Book's site would not lead to the same place in plain Sphinx's."""
    if not (SITE / "index.html").exists():
        session.warn("Not compared with the site of Jupyter Book, which is not built: `nox -s book` builds it.")
        return
    theirs, ours = addresses(SITE), addresses(PLAIN)
    lost = [name for name in sorted(theirs - ours) if "#" not in name or name.partition("#")[0] in ours]
    new = [name for name in sorted(ours - theirs) if "#" not in name]
    if lost or new:
        session.error(f"Only by Jupyter Book: {', '.join(lost) or '-'}. Only by Sphinx: {', '.join(new) or '-'}.")
    session.log(f"All {len(theirs)} addresses of Jupyter Book's site, of pages and of places in them, are there.")


def addresses(site: Path) -> set[str]:
    """Return a site's pages, and the places in them that a link can name."""
    found = {page.relative_to(site).as_posix(): page for page in site.rglob("*.html")}
    places = {f"{name}#{place}" for name, page in found.items() for place in PLACE.findall(page.read_text("utf-8"))}
    return {*found, *places}


def package_digest(session: nox.Session) -> str:
    """Hash what the output of a notebook depends on besides its own code."""
    installed = Path(session.env["VIRTUAL_ENV"], "installed.sha256").read_text()
    digest = hashlib.sha256(f"{installed} {session.env['ATTNTUT_DEVICE']}".encode())
    files = [path for folder in ("attntut", "runs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(path for path in files if "__pycache__" not in path.parts):
        digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def run_browser(session: nox.Session, options: list[str] | None = None) -> None:
    if not any(map(shutil.which, BROWSERS)):
        session.warn("Skipped the browser's checks: no Chromium or Chrome on the PATH.")
        return
    run(session, "pytest", "tests/browser", "-n", WORKERS, "--dist", "worksteal", *(options or []))
