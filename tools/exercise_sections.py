"""Write what is made of the exercises: the section of each chapter, and the public checks that are shipped.

python tools/exercise_sections.py            write them (``nox -s exercises``)
python tools/exercise_sections.py --check    change nothing; fail if one of them is not what the sources give
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from exercises import exercises  # noqa: E402
from exercises.exercise import Choice, Code, Exercise  # noqa: E402
from tools.notebooks import normalize  # noqa: E402

PUBLIC = ROOT / "attntut" / "exercises" / "public.json"
HEADING = "## Exercises"
HOW = """To check an answer in a notebook, run `%load_ext attntut.exercises` and begin its cell with the line
`%%exercise {number}`. Such a cell must not need another one."""


def text(exercise: Exercise) -> str:
    """One exercise as Markdown, with the parameters of the page."""
    unit = "minute" if exercise.minutes == 1 else "minutes"
    parts = [f"**Exercise {exercise.number}** ({exercise.minutes} {unit}, {exercise.difficulty}). {exercise.text()}"]
    if isinstance(exercise, Choice):
        parts.append("\n".join(f"- **{letter}.** {option}" for letter, (option, _) in exercise.letters().items()))
    if exercise.setup:
        parts.append(f"```python\n{exercise.prelude()}\n```")
    parts.append(f"<details>\n<summary>Hint</summary>\n\n{exercise.hint}\n\n</details>")
    return "\n\n".join(parts)


def section(chapter: int) -> str:
    """The exercises of a chapter as one Markdown cell."""
    own = [exercise for number, exercise in exercises().items() if int(number.split(".")[0]) == chapter]
    code = next(exercise.number for exercise in own if isinstance(exercise, Code))
    return "\n\n".join([HEADING, HOW.format(number=code), *map(text, own)])


def with_section(notebook: nbformat.NotebookNode, chapter: int) -> nbformat.NotebookNode:
    """A chapter whose last cell is its exercises; what stood from their heading on is replaced."""
    kept: list[nbformat.NotebookNode] = []
    for cell in notebook.cells:
        before, heading, _ = cell.source.partition(HEADING) if cell.cell_type == "markdown" else (cell.source, "", "")
        if heading:
            if before.strip():
                kept.append(nbformat.v4.new_markdown_cell(before))
            break
        kept.append(cell)
    notebook.cells = [*kept, nbformat.v4.new_markdown_cell(section(chapter))]
    return normalize(notebook)


def made() -> dict[Path, str]:
    """File → what it should hold."""
    public = {number: exercise.public() for number, exercise in exercises().items()}
    files = {PUBLIC: json.dumps(public, ensure_ascii=False, indent=0) + "\n"}
    for chapter in sorted({int(number.split(".")[0]) for number in exercises()}):
        path = next((ROOT / "notebooks").glob(f"{chapter:02}-*.ipynb"))
        notebook = with_section(nbformat.read(path, as_version=4), chapter)
        files[path] = nbformat.writes(notebook) + "\n"
    return files


def main(arguments: list[str] | None = None) -> int:
    """Write the files that differ, or list them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(arguments)
    files = made()
    stale = [path for path, wanted in files.items() if not path.exists() or path.read_text("utf-8") != wanted]
    for path in stale:
        if not options.check:
            path.write_text(files[path], "utf-8")
        print(f"{path.relative_to(ROOT)}: {'is not what the exercises give' if options.check else 'written'}")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    raise SystemExit(main())
