"""Grade a folder of notebooks: ``nox -s grade -- FOLDER --key KEYFILE [--set ps1]``.

Students' code runs elsewhere (``worker``, in one of the places of ``sandbox``) and gives data; they are judged here, by
the exercise's own judge, on cases that are made from the course's secret key. Written are ``grades.csv`` (nbgrader's
columns, then one a question, then those that a person fills), ``canvas.csv`` and ``feedback/NAME.html``. What was
graded is not run again, unless the file, the key, the set or this code changed.
"""

from __future__ import annotations

import argparse
import builtins
import csv
import hashlib
import hmac
import json
import os
import queue
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import torch
from tqdm import tqdm

from attntut.exercises.public import refuse_forbidden, variant_of
from attntut.exercises.wire import pack, unpack
from exercises import exercises, problem_sets
from exercises.exercise import Code, Exercise, Number, plain_source
from grading.notebook import LARGEST_CELL, NotANotebook, Submission, read
from grading.sandbox import Answered, NoSandbox, Sandbox, choose, staged

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHORTEST_KEY = 16  # bytes
NEVER = {"exercises", "grading"}  # no answer imports these
NBGRADER = "assignment duedate timestamp student_id last_name first_name email".split()
NBGRADER += "raw_score late_submission_penalty score max_score".split()
ENDED = {
    "time": "It ran longer than {seconds:g} seconds. Does every loop end?",
    "size": "What comes back is larger than any right answer. What does it hold?",
    "died": "The process ended before there was an answer. Does the cell end it, or take more memory than there is?",
}
UNREADABLE = "What came back could not be compared. Does it have the type that the exercise asks for?"


@dataclass(frozen=True)
class Mark:
    """What an exercise got, and the question that was asked; no points where it could not be graded."""

    number: str
    points: int | None
    question: str = ""


class Assignment:
    """Exercises and a key: what is run, and how it is judged.

    Args:
        exercises: in the order of the notebook.
        key: the course's secret; each exercise has its seed from it.
    """

    def __init__(self, exercises: Sequence[Exercise], key: bytes) -> None:
        if not __debug__:
            raise RuntimeError("python -O drops the judges' asserts, and everything would be right: run without it.")
        self.exercises = exercises
        self.starters = {e.number: e.starter for e in exercises}
        self.cases: dict[str, list[Any]] = {}
        self.want: dict[str, list[Any]] = {}  # packed: a judge may change what it is given
        for e in exercises:
            seed = int.from_bytes(hmac.digest(key, e.number.encode(), "sha256")[:4], "big") >> 1
            self.cases[e.number] = [pack(case) for case in e.cases(seed)]
            self.want[e.number] = [pack(want) for want in e.want(seed)]

    @property
    def most(self) -> int:
        """Points of all exercises, those by hand too."""
        return sum(e.points + e.manual for e in self.exercises)

    def marks(self, submission: Submission, sandbox: Sandbox, slot: int = 0) -> list[Mark]:
        """Run and judge one submission."""
        questions = {e.number: self.refusal(e, submission.answers.get(e.number, "")) for e in self.exercises}
        jobs = [self.job(e, submission.answers[e.number]) for e in self.exercises if not questions[e.number]]
        for number, answered in sandbox.run(jobs, slot).items():
            exercise = next(e for e in self.exercises if e.number == number)
            questions[number] = self.question(exercise, submission.student, answered)
        return [Mark(e.number, 0 if questions[e.number] else e.points, questions[e.number]) for e in self.exercises]

    def job(self, exercise: Exercise, source: str) -> dict[str, Any]:
        """What the worker is told: no seed, nothing that is wanted."""
        probe = plain_source(exercise.ask, "probe") if isinstance(exercise, Code) else None
        cases = self.cases[exercise.number] if probe else []
        own = dict(number=exercise.number, name=exercise.name, setup=exercise.prelude(), seconds=exercise.seconds)
        return {**own, "source": source, "probe": probe, "cases": cases}

    def refusal(self, exercise: Exercise, source: str) -> str:
        """Why a cell is not run, or ""."""
        if not source:
            return f"There is no answer: no cell that begins with %%exercise {exercise.number} was changed."
        if len(source) > LARGEST_CELL:
            return f"The cell has more than {LARGEST_CELL} characters. Which of them are needed?"
        try:
            refuse_forbidden(exercise.number, source, sorted(exercise.forbidden | NEVER))
        except AssertionError as question:
            return str(question)
        except SyntaxError as error:
            return f"The cell is no Python at line {error.lineno}. What does the notebook say when you run it?"
        except (ValueError, RecursionError, MemoryError):
            return "The cell cannot be read as Python. What does the notebook say when you run it?"
        return ""

    def question(self, exercise: Exercise, student: str, answered: Answered) -> str:
        """The question that an answer is asked, or "" if it is right. What came back is a student's, so not trusted."""
        if answered.ended != "data":
            return ENDED[answered.ended].format(seconds=exercise.seconds)
        try:
            came = json.loads(answered.data)
            if "missing" in came:
                return f"The cell defines no {exercise.name!r}. Under which name is the answer looked for?"
            if "raised" in came:
                return self.raised(came)
            if isinstance(exercise, Number):
                exercise.judge(variant_of(student, exercise.number), unpack(came["values"][0]), None)
                return ""
            triples = zip(self.cases[exercise.number], came["values"], self.want[exercise.number], strict=True)
            for case, got, want in triples:
                exercise.judge(unpack(case), unpack(got), unpack(want))
        except AssertionError as question:
            return str(question)[:1000] or UNREADABLE
        except Exception:
            return UNREADABLE
        return ""

    @staticmethod
    def raised(came: dict[str, Any]) -> str:
        """Say which exception it was. Its text, and a name that is not Python's, could hold the inputs."""
        kind, line = came["raised"], came.get("line")
        known = isinstance(kind, str) and isinstance(getattr(builtins, kind, None), type)
        where = f" at line {line} of the cell" if isinstance(line, int) and 0 < line < 10_000 else ""
        what = f"A {kind}" if known else "An exception"
        return f"{what} was raised{where}. Which inputs did you not think of? Does the check in the notebook pass?"


@dataclass
class Graded:
    """A submission with its marks.

    Attributes:
        notes: for the student too.
        private: for the instructor.
    """

    name: str
    student: str
    marks: list[Mark]
    notes: list[str]
    answers: dict[str, str]
    private: list[str] = field(default_factory=list)

    @property
    def score(self) -> int | None:
        """The sum, if all is known."""
        points = [mark.points for mark in self.marks if mark.points is not None]
        return sum(points) if len(points) == len(self.marks) else None


def grade_folder(
    folder: Path, out: Path, name: str, assignment: Assignment, key: bytes, sandbox: Sandbox, jobs: int = 2
) -> list[Graded]:
    """Grade every notebook under ``folder``, and write the tables and the feedback.

    Args:
        folder: with the notebooks, in any depth.
        out: where to write; what was graded there is not run again.
        name: of the problem set.
        assignment: the exercises, under ``key``.
        key: the course's secret.
        sandbox: where students' code runs.
        jobs: how many submissions run at the same time.
    """
    paths = sorted(path for path in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
    names = unique_names(folder, paths)
    code = digest_of_code(name, assignment, key, sandbox)
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def one(path: Path) -> Graded:
        slot, kept = slots.get(), out / "graded" / f"{names[path]}.json"
        try:
            return grade_file(path, names[path], kept, assignment, code, sandbox, slot)
        except Exception as error:
            unknown = [Mark(e.number, None, "It could not be graded.") for e in assignment.exercises]
            return Graded(names[path], "", unknown, [], {}, [f"Not graded: {type(error).__name__}: {error}"])
        finally:
            slots.put(slot)

    pool = ThreadPoolExecutor(jobs)
    try:
        graded = list(tqdm(pool.map(one, paths), total=len(paths), desc="grading", unit="file"))
    finally:
        pool.shutdown(cancel_futures=True)
    settle_names(graded)
    write_tables(out, name, assignment, graded)
    for one_graded in graded:
        write(out / "feedback" / f"{one_graded.name}.html", feedback(name, assignment, one_graded))
    return graded


def unique_names(folder: Path, paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each file, which no other has and which is short enough for a file's name."""
    names: dict[Path, str] = {}
    for path in paths:
        name = "--".join(path.relative_to(folder).with_suffix("").parts)
        if name in names.values() or len(name.encode(errors="replace")) > 200:
            name = f"{name[:40]}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
        names[path] = name
    return names


def grade_file(
    path: Path, name: str, kept: Path, assignment: Assignment, code: bytes, sandbox: Sandbox, slot: int
) -> Graded:
    """Grade one file, or take what is known of it."""
    try:
        submission = read(path, name, assignment.starters)
    except NotANotebook as error:
        nothing = [Mark(e.number, None, "The file could not be read.") for e in assignment.exercises]
        return Graded(name, "", nothing, [f"Not a notebook: {error}"], {})
    digest = hashlib.sha256(code + path.read_bytes()).hexdigest()
    known = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    if known.get("digest") == digest:
        marks = [Mark(**mark) for mark in known["marks"]]
    else:
        marks = assignment.marks(submission, sandbox, slot)
        write(kept, json.dumps({"digest": digest, "marks": [asdict(mark) for mark in marks]}))
    return Graded(name, submission.student, marks, list(submission.notes), dict(submission.answers))


def digest_of_code(name: str, assignment: Assignment, key: bytes, sandbox: Sandbox) -> bytes:
    """A hash of all that a mark depends on besides the notebook."""
    said = [name, torch.__version__, sandbox.kind, *assignment.starters]
    digest = hmac.new(key, "\n".join(said).encode(), "sha256")
    for folder in ("grading", "exercises", "attntut"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    digest.update(json.dumps([assignment.cases, assignment.want]).encode())
    return digest.digest()


def settle_names(graded: Iterable[Graded]) -> None:
    """Say which files share an id, and use it for none of them: the last would overwrite the others' grades."""
    graded = list(graded)
    count = Counter(one.student.lower() for one in graded if one.student)
    for one in graded:
        if count[one.student.lower()] > 1:
            others = ", ".join(x.name for x in graded if x.student.lower() == one.student.lower() and x is not one)
            one.private.append(f"The id {one.student} stands in other files too ({others}): whose is it?")
            one.student = ""


def write_tables(out: Path, name: str, assignment: Assignment, graded: Sequence[Graded]) -> None:
    """``grades.csv`` and ``canvas.csv``."""
    by_hand = [e for e in assignment.exercises if e.manual]
    header = [*NBGRADER, *(e.number for e in assignment.exercises)]
    header += [f"{e.number} by hand (of {e.manual})" for e in by_hand]
    rows, canvas = [header], [["Student", "ID", "SIS User ID", "SIS Login ID", "Section", name]]
    canvas.append(["    Points Possible", "", "", "", "", str(assignment.most)])
    for one in graded:
        student, score = one.student or one.name, "" if one.score is None else str(one.score)
        points = ["" if mark.points is None else str(mark.points) for mark in one.marks]
        rows.append([name, "", "", student, "", "", "", score, "0", score, str(assignment.most), *points])
        rows[-1] += [""] * len(by_hand)
        if one.student:
            canvas.append(["", "", "", student, "", score])
    for file, table in (("grades.csv", rows), ("canvas.csv", canvas)):
        write(out / file, as_csv(table))


def as_csv(table: Sequence[Sequence[str]]) -> str:
    """A table as CSV; no cell is a formula to a spreadsheet."""
    lines: list[str] = []
    writer = csv.writer(SimpleNamespace(write=lines.append))
    writer.writerows([f"'{cell}" if cell[:1] in tuple("=+-@\t\r") else cell for cell in row] for row in table)
    return "".join(lines)


def feedback(name: str, assignment: Assignment, graded: Graded) -> str:
    """The page that a student reads: answers, points and questions."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string((HERE / "feedback.html").read_text("utf-8"))
    rows = zip(assignment.exercises, graded.marks, strict=True)
    return template.render(set=name, graded=graded, most=assignment.most, rows=list(rows))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    os.replace(draft, path)


def read_key(path: Path) -> bytes:
    """The course's key; a ``SystemExit`` that says how to make one."""
    key = path.read_bytes().strip() if path.is_file() else b""
    if len(key) < SHORTEST_KEY:
        what = f"it has {len(key)} bytes" if path.exists() else "there is no such file"
        how = f'{Path(sys.executable).name} -c "import secrets; print(secrets.token_hex())" > {path}'
        raise SystemExit(f"{path} must hold a secret of at least {SHORTEST_KEY} bytes: {what}. Make one with\n  {how}")
    return key


def exercises_of(name: str) -> list[Exercise]:
    """The exercises of a problem set; a ``SystemExit`` that lists the sets."""
    if name not in problem_sets():
        raise SystemExit(f"There is no problem set {name!r}. There are: {', '.join(problem_sets())}.")
    numbers = problem_sets()[name]["exercises"]
    missing = [number for number in numbers if number not in exercises()]  # type: ignore[attr-defined]
    if missing:
        raise SystemExit(f"{name} names exercises that are not there: {', '.join(missing)}.")
    return [exercises()[number] for number in numbers]  # type: ignore[attr-defined]


def main(arguments: list[str] | None = None) -> int:
    """Grade; 1 if a file could not be."""
    parser = argparse.ArgumentParser(prog="grade", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, help="with the notebooks that were handed in")
    parser.add_argument("--key", type=Path, required=True, help="file with the course's secret")
    parser.add_argument("--set", default="ps1", help="problem set (default ps1)")
    parser.add_argument("--out", type=Path, help="where to write (default: FOLDER-graded)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="submissions at the same time")
    parser.add_argument("--docker", default="", metavar="IMAGE", help="run in Docker, in this image")
    parser.add_argument("--trust", action="store_true", help="run students' code without isolation")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    out = (options.out or folder.with_name(folder.name + "-graded")).resolve()
    if not folder.is_dir():
        parser.error(f"FOLDER must be a folder of notebooks: got {options.folder}")
    if out.is_relative_to(folder):
        parser.error(f"--out must not lie in FOLDER, whose notebooks are all graded: got {out}")
    key, start = read_key(options.key), time.monotonic()
    assignment = Assignment(exercises_of(options.set), key)
    with staged() as stage:
        secrets = [options.key, folder, out, ROOT / "exercises"]
        try:
            sandbox = choose(stage, secrets, trust=options.trust, image=options.docker)
        except NoSandbox as error:
            raise SystemExit(str(error)) from None
        print(sandbox.says)
        graded = grade_folder(folder, out, options.set, assignment, key, sandbox, options.jobs)
    for one in graded:
        score = "?" if one.score is None else one.score
        print(f"{one.name:32} {score:>3} of {assignment.most}", *one.notes, *one.private, sep="  ")
    hand = sum(e.manual for e in assignment.exercises)
    print(f"{len(graded)} files in {time.monotonic() - start:.0f} s: {out / 'grades.csv'}")
    if hand:
        print(f"{hand} of the {assignment.most} points are given by hand: read the explanations in {out / 'feedback'}")
    return int(any(one.score is None for one in graded))


if __name__ == "__main__":
    raise SystemExit(main())
