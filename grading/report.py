"""What is written: ``grades.csv``, ``canvas.csv`` and a page of feedback for each submission."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from exercises.exercise import Exercise
from grading.judge import Assignment, Mark

NBGRADER = "assignment duedate timestamp student_id last_name first_name email".split()
NBGRADER += "raw_score late_submission_penalty score max_score".split()
CANVAS = ["Student", "ID", "SIS User ID", "SIS Login ID", "Section"]


@dataclass
class Graded:
    """A submission with its marks.

    Attributes:
        name: of the submission, and of the student who handed it in.
        marks: one an exercise.
        notes: for the student too.
        answers: number → code that was graded.
        student: what stands after ``%student``.
        canvas_id: of the student, where Canvas named the file; or "".
        private: for the instructor.
        by_hand: number → points that a person gave.
    """

    name: str
    marks: Sequence[Mark]
    notes: Sequence[str]
    answers: dict[str, str]
    student: str = ""
    canvas_id: str = ""
    private: list[str] = field(default_factory=list)
    by_hand: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The sum of what the grader and a person gave, or none if the file was not graded."""
        points = [mark.points for mark in self.marks if mark.points is not None]
        return sum(points) + sum(self.by_hand.values()) if len(points) == len(self.marks) else None


def settle(graded: Sequence[Graded]) -> None:
    """Tell the instructor which submissions say that they are the same student."""
    count = Counter(one.student.casefold() for one in graded if one.student)
    for one in graded:
        if count[one.student.casefold()] > 1:
            others = [x.name for x in graded if x is not one and x.student.casefold() == one.student.casefold()]
            one.private.append(f"%student {one.student} stands in {', '.join(others)} too: whose work is it?")


def column(exercise: Exercise) -> str:
    """The heading under which a person gives points."""
    return f"{exercise.number} by hand (of {exercise.manual})"


def header(assignment: Assignment) -> list[str]:
    """The columns of ``grades.csv``."""
    return [*NBGRADER, *(e.number for e in assignment.exercises), *map(column, assignment.by_hand)]


def points_by_hand(path: Path, assignment: Assignment) -> dict[str, dict[str, float]]:
    """Submission → exercise → points that a person wrote into ``grades.csv``; a ``SystemExit`` if it cannot be read.

    The table is written anew from these, so one that holds something else is not touched.
    """
    if not path.exists():
        return {}
    text = path.read_text("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text), delimiter=";" if text.split(",")[0].count(";") else ","))
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if missing := [name for name in header(assignment) if name not in row]:
            raise SystemExit(f"{path} has no column {missing[0]!r}. Is it of another set? Move it away, or name --out.")
        for e in assignment.by_hand:
            if not (cell := (row[column(e)] or "").strip()):
                continue
            try:
                points = float(cell.replace(",", "."))
            except ValueError:
                points = -1
            if not 0 <= points <= e.manual:
                where = f"{row['student_id']}, {column(e)!r}"
                raise SystemExit(f"{path}: {where} must be a number from 0 to {e.manual}: got {cell!r}.")
            found.setdefault(row["student_id"], {})[e.number] = points
    return found


def write_tables(out: Path, assignment: Assignment, graded: Sequence[Graded]) -> None:
    """``grades.csv`` and ``canvas.csv``."""
    rows, canvas = [header(assignment)], [[*CANVAS, assignment.name]]
    canvas.append(["    Points Possible", *[""] * 4, f"{assignment.most}"])
    for one in graded:
        score = "" if one.score is None else f"{one.score:g}"
        points = ["" if mark.points is None else f"{mark.points}" for mark in one.marks]
        hand = [f"{one.by_hand[e.number]:g}" if e.number in one.by_hand else "" for e in assignment.by_hand]
        rows.append([assignment.name, "", "", one.name, "", "", "", score, "0", score, f"{assignment.most}"])
        rows[-1] += [*points, *hand]
        canvas.append([one.name, one.canvas_id, "", "" if one.canvas_id else one.name, "", score])
    for file, table in (("grades.csv", rows), ("canvas.csv", canvas)):
        write(out / file, as_csv(table))


def as_csv(table: Sequence[Sequence[str]]) -> str:
    """A table as CSV; no cell is a formula to a spreadsheet."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([inert(cell) for cell in row] for row in table)
    return text.getvalue()


def inert(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    Example:
        >>> inert("=1+1"), inert("ada")
        ("'=1+1", 'ada')
    """
    return f"'{cell}" if cell.startswith(tuple("=+-@\t\r")) else cell


def feedback(assignment: Assignment, graded: Graded) -> str:
    """The page that a student reads: answers, points and questions."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("feedback.html").read_text("utf-8"))
    rows = zip(assignment.exercises, graded.marks, strict=True)
    return template.render(set=assignment.name, graded=graded, most=assignment.most, rows=list(rows))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_bytes(text.encode("utf-8", errors="backslashreplace"))
    os.replace(draft, path)
