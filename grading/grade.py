"""Grade a folder of notebooks: ``nox -s grade -- FOLDER --key KEYFILE [--set ps1]``.

Students' code runs elsewhere (``worker``, in one of the places of ``sandbox``) and gives data; they are judged here, by
the exercise's own judge, on cases that are made from the course's secret key. Written are ``grades.csv`` (nbgrader's
columns, then one a question, then those that a person fills), ``canvas.csv`` and ``feedback/NAME.html``. What was
graded is not run again, unless the file, the key, the set or this code changed; what a person filled in stays.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import queue
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from grading.judge import Assignment, Mark, exercises_of
from grading.notebook import NotANotebook, printable, read
from grading.report import Graded, feedback, inert, points_by_hand, settle, write, write_tables
from grading.sandbox import MOST_SLOTS, NoSandbox, Sandbox, choose, staged

ROOT = Path(__file__).resolve().parent.parent
SHORTEST_KEY = 16  # bytes
LONGEST_NAME = 150  # of a file, in bytes
CANVAS = re.compile(r"[^_]+(?:_LATE)?_(\d+)_\d+_.+")  # how Canvas names a file: who, id of the student, id of the file


def grade_folder(
    folder: Path, out: Path, assignment: Assignment, key: bytes, sandbox: Sandbox, jobs: int = 2
) -> list[Graded]:
    """Grade every submission in ``folder``, and write the tables and the feedback.

    Args:
        folder: see :func:`submissions`.
        out: where to write; what was graded there is not run again.
        assignment: the exercises, under ``key``.
        key: the course's secret.
        sandbox: where students' code runs.
        jobs: how many submissions run at the same time.
    """
    by_hand = points_by_hand(out / "grades.csv", assignment)
    code = digest_of_code(assignment, key, sandbox)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def one(item: tuple[str, Path]) -> Graded:
        name, path = item
        slot = slots.get()
        try:
            graded = grade_file(path, name, out / "graded" / f"{name}.json", assignment, code, sandbox, slot)
        except Exception as error:  # a file hurts no other
            unknown = [Mark(e.number, None, "It could not be graded.") for e in assignment.exercises]
            graded = Graded(name, unknown, [f"Not graded: {type(error).__name__}: {error}"], {})
        finally:
            slots.put(slot)
        graded.by_hand = by_hand.get(inert(name), {})
        if match := CANVAS.fullmatch(path.name):
            graded.canvas_id = match[1]
        return graded

    found = submissions(folder)
    pool = ThreadPoolExecutor(jobs)
    try:
        graded = list(tqdm(pool.map(one, found.items()), total=len(found), desc="grading", unit="file"))
    finally:
        pool.shutdown(cancel_futures=True)
    settle(graded)
    write_tables(out, assignment, graded)
    for one_graded in graded:
        write(out / "feedback" / f"{one_graded.name}.html", feedback(assignment, one_graded))
    return graded


def submissions(folder: Path) -> dict[str, Path]:
    """Name → file of each submission.

    A submission is a notebook in the folder, which is named as its file, or the notebook in a folder of it, in any
    depth, which is named as that folder. Where such a folder has several, each is one; where it has none, any file
    stands for it, which will be reported. Names differ, in capitals too, and are short enough for a file's name.
    """
    files: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not path.is_dir() and not any(part.startswith((".", "__MACOSX")) for part in parts):
            files.setdefault(folder / parts[0], []).append(path)
    names: dict[str, Path] = {}
    for top, inside in files.items():
        notebooks = [path for path in inside if path.suffix.lower() == ".ipynb"]
        for path in notebooks or inside[:1]:
            parts = path.relative_to(folder).with_suffix("").parts
            name = "--".join(parts) if len(notebooks) > 1 else top.stem if top == path else top.name
            name = printable(name)
            if name.casefold() in map(str.casefold, names) or len(name.encode()) > LONGEST_NAME:
                name = f"{name[:30]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
            names[name] = path
    return names


def grade_file(
    path: Path, name: str, kept: Path, assignment: Assignment, code: bytes, sandbox: Sandbox, slot: int
) -> Graded:
    """Grade one file, or take what is known of it."""
    try:
        submission = read(path, name, assignment.starters)
    except NotANotebook as error:
        nothing = [Mark(e.number, None, "The file could not be read.") for e in assignment.exercises]
        return Graded(name, nothing, [f"{path.name} is no notebook: {error}"], {})
    graded = Graded(name, [], submission.notes, dict(submission.answers), submission.student)
    digest = hashlib.sha256(code + path.read_bytes()).hexdigest()
    known = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if known.get("digest") == digest:
        graded.marks = [Mark(**mark) for mark in known["marks"]]
        return graded
    if known:
        graded.private.append("Graded anew: are the points by hand still right?" * bool(assignment.by_hand))
    graded.marks = assignment.marks(submission, sandbox, slot)
    write(kept, json.dumps({"digest": digest, "marks": [asdict(mark) for mark in graded.marks]}))
    return graded


def digest_of_code(assignment: Assignment, key: bytes, sandbox: Sandbox) -> bytes:
    """A hash of all that a mark depends on besides the notebook."""
    said = [assignment.name, torch.__version__, sandbox.kind, *assignment.starters]
    digest = hmac.new(key, "\n".join(said).encode(), "sha256")
    for folder in ("grading", "exercises", "attntut"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(json.dumps([assignment.cases, assignment.want]).encode())
    return digest.digest()


def read_key(path: Path) -> bytes:
    """The course's key; a ``SystemExit`` that says how to make one."""
    key = path.read_bytes().strip() if path.is_file() else b""
    if len(key) < SHORTEST_KEY:
        what = f"it has {len(key)} bytes" if path.exists() else "there is no such file"
        how = f'{Path(sys.executable).name} -c "import secrets; print(secrets.token_hex())" > {path}'
        raise SystemExit(f"{path} must hold a secret of at least {SHORTEST_KEY} bytes: {what}. Make one with\n  {how}")
    return key


def main(arguments: list[str] | None = None) -> int:
    """Grade, and print what an instructor should know."""
    parser = argparse.ArgumentParser(prog="grade", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="with the notebooks that were handed in")
    parser.add_argument("--key", type=Path, required=True, help="file with the course's secret")
    parser.add_argument("--set", default="ps1", help="problem set (default ps1)")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER-graded)")
    parser.add_argument(
        "--jobs", type=int, default=min(MOST_SLOTS, os.cpu_count() or 1), help="submissions at the same time"
    )
    parser.add_argument("--docker", default="", metavar="IMAGE", help="run in Docker, in this image")
    parser.add_argument("--trust", action="store_true", help="run students' code without isolation")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    out = (options.out or folder.with_name(folder.name + "-graded")).resolve()
    if not folder.is_dir():
        parser.error(f"FOLDER must be a folder of notebooks: got {options.folder}")
    if out.is_relative_to(folder):
        parser.error(f"--out must not lie in FOLDER, whose notebooks are all graded: got {out}")
    if not 1 <= options.jobs <= MOST_SLOTS:
        parser.error(f"--jobs must be from 1 to {MOST_SLOTS}: got {options.jobs}")
    key, start = read_key(options.key), time.monotonic()
    assignment = Assignment(options.set, exercises_of(options.set), key)
    with staged() as stage:
        secrets = [options.key, folder, out, ROOT / "exercises"]
        try:
            sandbox = choose(stage, secrets, trust=options.trust, image=options.docker)
        except NoSandbox as error:
            raise SystemExit(str(error)) from None
        print(f"{options.set} is graded. {sandbox.says}", flush=True)
        graded = grade_folder(folder, out, assignment, key, sandbox, options.jobs)
    for one in graded:
        score = "?" if one.score is None else f"{one.score:g}"
        print(f"{one.name:32} {score:>4} of {assignment.most}", *one.notes, *filter(None, one.private), sep="  ")
    print(f"{len(graded)} submissions in {time.monotonic() - start:.0f} s: {out / 'grades.csv'}")
    if lost := sum(one.score is None for one in graded):
        print(f"{lost} of them could not be graded, and have no score: see above.")
    if assignment.by_hand:
        points = sum(e.manual for e in assignment.by_hand)
        print(
            f"{points} of the {assignment.most} points are given by hand: read the explanations in {out / 'feedback'},"
        )
        print("fill the last columns of grades.csv and run this again, which adds them to the scores and the feedback.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
