"""Read a submission: answers by their text alone, so that copied cells and lost metadata do no harm."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MARK = re.compile(r"\s*%%exercise[ \t]+(\S+)[^\n]*(?:\n|$)")
STUDENT = re.compile(r"^[ \t]*%student[ \t]+(\S[^\n]*)", re.MULTILINE)
LARGEST_FILE, LARGEST_CELL, LONGEST_NAME = 50_000_000, 100_000, 200  # bytes, characters, characters
MOST_MAGICS = 50  # of one cell
MOST_NOTES = 20


class NotANotebook(Exception):
    """A file that holds no cells."""


@dataclass(frozen=True)
class Submission:
    """What a file says.

    Attributes:
        name: of the file, unique among the submissions.
        student: what stands after ``%student``, which decides on the numbers of exercises, or "".
        answers: number → code of the cell that counts.
        notes: what the instructor and the student should know about how it was read.
    """

    name: str
    student: str
    answers: Mapping[str, str]
    notes: tuple[str, ...] = ()


def read(path: Path, name: str, starters: Mapping[str, str]) -> Submission:
    """Read a notebook.

    Args:
        path: of the file.
        name: of the submission.
        starters: number → what stood in the answer's cell before; it counts for as little as an empty cell.

    Raises:
        NotANotebook: if the file holds no cells; the message says why.
    """
    students: list[str] = []
    found: dict[str, str] = {}
    notes: list[str] = []
    for text in cells(path):
        students += [printable(line) for line in STUDENT.findall(text)]
        if not (mark := MARK.match(text)):
            continue
        number, source = mark[1], text[mark.end() :].rstrip()
        if number not in starters:
            notes.append(f"{printable(number)[:9]} is no exercise of this set.")
        elif source and source != starters[number].rstrip():
            if number in found:
                notes.append(f"{number} is answered more than once: the last cell counts.")
            found[number] = without_magics(source)
    student = students[-1][:LONGEST_NAME] if students else ""
    if len({one.lower() for one in students}) > 1:
        notes.append("There is more than one %student line: the last counts.")
    if not student:
        notes.append("There is no name after %student: the numbers are those of the page.")
    return Submission(name, student, found, tuple(dict.fromkeys(notes))[:MOST_NOTES])


def printable(text: str) -> str:
    """A text that fits on a line, and that a terminal does not take for a command.

    Example:
        >>> printable("ada \\x1b[2J")
        'ada ?[2J'
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text.strip())


def cells(path: Path) -> list[str]:
    """The text of each cell."""
    if not path.is_file() or path.is_symlink():
        raise NotANotebook("it is no file.")
    if path.suffix.lower() != ".ipynb":
        raise NotANotebook("its name does not end in .ipynb.")
    if path.stat().st_size > LARGEST_FILE:
        raise NotANotebook(f"it has more than {LARGEST_FILE // 1_000_000} MB.")
    try:
        found = json.loads(path.read_bytes())["cells"]
        texts = [cell["source"] for cell in found]
        texts = [text if isinstance(text, str) else "".join(text) for text in texts]
        return [text.encode(errors="replace").decode() for text in texts]  # no half of a character
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotANotebook(f"it holds no cells ({type(error).__name__}).") from None


def without_magics(source: str) -> str:
    """The same code without IPython's lines, which mean nothing here. What is Python already stays.

    Example:
        >>> without_magics("if True:\\n    %time answer = 1\\nanswer = (7\\n  % 4)")
        'if True:\\n    pass\\nanswer = (7\\n  % 4)'
    """
    lines = source.split("\n")
    for _ in range(MOST_MAGICS):
        problem = syntax_error("\n".join(lines))
        at = problem.lineno - 1 if problem and problem.lineno else len(lines)
        if at >= len(lines) or not re.match(r"\s*([%!?]|[\w.]+\?{1,2}\s*$)", lines[at]):
            break
        lines[at] = re.match(r"\s*", lines[at])[0] + "pass"  # type: ignore[index]
    return "\n".join(lines)


def syntax_error(source: str) -> SyntaxError | None:
    """Where a cell is no Python, if that can be told."""
    try:
        if len(source) <= LARGEST_CELL:
            ast.parse(source)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError):
        pass
    return None
