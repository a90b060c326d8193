"""Write the notebook of a problem set: ``nox -s release -- ps1 [--out DIR]``.

Statements, starters and hints, no solution and no case. The first cell installs what is missing, as in the published
copies of the chapters: from the book's own site where its address is known (``BOOK_URL`` or ``GITHUB_REPOSITORY``), and
where it is not, it says what to install.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "book" / "_ext")]

from bookext.address import site  # type: ignore[import-not-found]  # noqa: E402
from bookext.published import published  # type: ignore[import-not-found]  # noqa: E402

from exercises import problem_sets  # noqa: E402
from exercises.exercise import Exercise, Number  # noqa: E402
from grading.judge import exercises_of  # noqa: E402
from tools.exercise_sections import text  # noqa: E402

HOW = """\
# {title}

{count} exercises, {points} points, about {minutes} minutes.

1. Write your id after `%student`, as your instructor knows it. Some exercises have numbers that belong to this id.
2. Answer in the cells that begin with `%%exercise`, and leave that line the first. Such a cell is graded alone: what it
   uses must stand in it. `math` and `torch` are imported.
3. Run the cell. It runs once in the notebook and once alone, which checks your answer on one case and asks a question
   if it is wrong. What you hand in is graded on other cases of the same kind.
4. Save this file and hand it in. Where a number is answered in more than one cell, the last counts."""
YOURS = "*The numbers in this text are those of the book's page. Run the cell below to see yours.*"


def notebook(title: str, exercises: Sequence[Exercise], address: str = "") -> nbformat.NotebookNode:
    """The notebook of a problem set.

    Args:
        title: its first heading.
        exercises: in the order in which they stand.
        address: of the book's site, with a slash at its end, or "".
    """
    points = sum(e.points + e.manual for e in exercises)
    how = HOW.format(title=title, count=len(exercises), points=points, minutes=sum(e.minutes for e in exercises))
    cells = [new_markdown_cell(how, id="how")]
    cells.append(new_code_cell("%load_ext attntut.exercises\n%student", id="student"))
    for e in exercises:
        name = e.number.replace(".", "-")
        by_hand = f", and up to {counted(e.manual)} for the explanation" if e.manual else ""
        parts = [f"## {e.title} ({counted(e.points)}{by_hand})", text(e)]
        if isinstance(e, Number) and e.parameters:
            parts.append(YOURS)
        cells.append(new_markdown_cell("\n\n".join(parts), id=f"exercise-{name}"))
        cells.append(new_code_cell(f"%%exercise {e.number}\n{e.starter}", id=f"answer-{name}"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    made = published(made, "notebooks/problem-set.ipynb", address, lambda path: (ROOT / path).read_bytes())
    nbformat.validate(made)
    return made


def counted(points: int) -> str:
    """Points, in words that agree."""
    return f"{points} point" if points == 1 else f"{points} points"


def main(arguments: list[str] | None = None) -> int:
    """Write the notebook."""
    parser = argparse.ArgumentParser(prog="release", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", help=f"one of {', '.join(problem_sets())}")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "release", help="folder to write to")
    options = parser.parse_args(arguments)
    exercises = exercises_of(options.set)
    path = options.out / f"{options.set}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(str(problem_sets()[options.set]["title"]), exercises, site(os.environ)), path)
    print(f"{len(exercises)} exercises: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
