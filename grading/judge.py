"""Judge one submission: its code runs elsewhere and gives data, which are compared here with what is wanted."""

from __future__ import annotations

import builtins
import hmac
import inspect
import json
import re
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attntut.exercises.public import refuse_forbidden, used_names, variant_of
from attntut.exercises.wire import pack, unpack
from exercises import exercises, problem_sets
from exercises.exercise import Code, Exercise, Number, plain_source
from grading.notebook import LARGEST_CELL, Submission
from grading.sandbox import Answered, Sandbox

NEVER = {"exercises", "grading"}  # no answer imports these
AROUND = {"_C", "ops", "eval", "exec", "__import__", "import_module"}  # ways to a name that is not written down
ENDED = {
    "time": "It ran longer than {seconds:g} seconds. Does every loop end?",
    "size": "What comes back is larger than any right answer. What does it hold?",
    "died": "The process ended before there was an answer. Does the cell end it, or take more memory than there is?",
}
NUMERAL = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
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
        name: of the problem set.
        exercises: in the order of the notebook.
        key: the course's secret; each exercise has its seed from it.
    """

    def __init__(self, name: str, exercises: Sequence[Exercise], key: bytes) -> None:
        if not __debug__:
            raise RuntimeError("python -O drops the judges' asserts, and everything would be right: run without it.")
        self.name, self.exercises = name, exercises
        self.starters = {e.number: e.starter for e in exercises}
        self.cases: dict[str, list[Any]] = {}
        self.want: dict[str, list[Any]] = {}  # packed: a judge may change what it is given
        for e in exercises:
            seed = int.from_bytes(hmac.digest(key, e.number.encode(), "sha256")[:4], "big") >> 1
            self.cases[e.number] = [pack(case) for case in e.cases(seed)]
            self.want[e.number] = [pack(want) for want in e.want(seed)]
        self._one_judge = threading.Lock()  # judges may draw from torch's one generator

    @property
    def by_hand(self) -> list[Exercise]:
        """The exercises for which a person gives points too."""
        return [e for e in self.exercises if e.manual]

    @property
    def most(self) -> int:
        """Points of all exercises, those by hand too."""
        return sum(e.points + e.manual for e in self.exercises)

    def marks(self, submission: Submission, sandbox: Sandbox, slot: int = 0) -> list[Mark]:
        """Run and judge one submission.

        Args:
            submission: what was read of it.
            sandbox: where its code runs.
            slot: which of the submissions that run at the same time it is.
        """
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
        setup = exercise.prelude()
        forbidden = exercise.forbidden - used_names(f"{setup}\n{probe or ''}")  # what runs beside the answer may
        own = dict(number=exercise.number, name=exercise.name, setup=setup, seconds=exercise.seconds)
        return {**own, "source": source, "probe": probe, "cases": cases, "forbidden": sorted(forbidden)}

    def refusal(self, exercise: Exercise, source: str) -> str:
        """Why a cell is not run, or ""."""
        if not source:
            return f"There is no answer: no cell that begins with %%exercise {exercise.number} was changed."
        if len(source) > LARGEST_CELL:
            return f"The cell has more than {LARGEST_CELL} characters. Which of them are needed?"
        refused = exercise.forbidden | NEVER | (AROUND if exercise.forbidden else set())
        try:
            refuse_forbidden(exercise.number, source, sorted(refused))
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
                return raised(came, exercise)
            cases, want = self.cases[exercise.number], self.want[exercise.number]
            if isinstance(exercise, Number):  # whose cases are the students
                cases, want = [variant_of(student, exercise.number)], [None]
            with self._one_judge:
                for case, got, wanted in zip(cases, came["values"], want, strict=True):
                    exercise.judge(unpack(case), unpack(got), unpack(wanted))
        except AssertionError as question:
            return told(str(question), exercise)[:1000] if "?" in str(question) else UNREADABLE
        except Exception:
            return UNREADABLE
        return ""


def told(question: str, exercise: Exercise) -> str:
    """A question without the numbers of a hidden case: those that its chapter's file does not hold."""
    if not isinstance(exercise, Code):
        return question
    known = set(NUMERAL.findall(inspect.getsource(sys.modules[exercise.compare.__module__])))
    return NUMERAL.sub(lambda match: match[0] if match[0] in known else "…", question)


def raised(came: dict[str, Any], exercise: Exercise) -> str:
    """Say which exception it was. Its text, and a name that is not Python's, could hold the inputs."""
    kind, line = came["raised"], came.get("line")
    if kind == "Forbidden":
        return f"Exercise {exercise.number} asks you to do without a function that was called. What else leads there?"
    known = isinstance(kind, str) and isinstance(getattr(builtins, kind, None), type)
    where = f" at line {line} of the cell" if isinstance(line, int) and 0 < line < 10_000 else ""
    what = f"A {kind}" if known else "An exception"
    return f"{what} was raised{where}. Which inputs did you not think of? Does the check in the notebook pass?"


def exercises_of(name: str) -> list[Exercise]:
    """The exercises of a problem set; a ``SystemExit`` that lists the sets."""
    if name not in problem_sets():
        raise SystemExit(f"There is no problem set {name!r}. There are: {', '.join(problem_sets())}.")
    numbers = problem_sets()[name]["exercises"]
    missing = [number for number in numbers if number not in exercises()]  # type: ignore[attr-defined]
    if missing:
        raise SystemExit(f"{name} names exercises that are not there: {', '.join(missing)}.")
    return [exercises()[number] for number in numbers]  # type: ignore[attr-defined]
