"""Make the zip that Gradescope wants: ``nox -s gradescope -- ps1 --key KEYFILE [--out DIR]``; and run there.

There, ``/autograder`` holds the submission and takes the results. ``setup.sh`` installs the book's package and takes
the rights of others from everything else; a student's code runs as another user, or in bubblewrap where that works.
``AUTOGRADER`` names another root, for a trial.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

from grading.grade import read_key
from grading.judge import Assignment, exercises_of
from grading.notebook import NotANotebook, read
from grading.sandbox import NoSandbox, choose, staged

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("attntut", "exercises", "grading")
FILES = ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "LICENSE-prose")
SETUP = """\
#!/usr/bin/env bash
# Install Python and the book's package, once, when the image is made. On Linux, pip's own choice of torch brings CUDA
# along; PIP_EXTRA_INDEX_URL can point to where torch's CPU wheels lie. Students' code must read nothing of source.
set -euo pipefail
root=${AUTOGRADER:-/autograder}
apt-get update -q
apt-get install -y -q --no-install-recommends python3 python3-venv
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Choose an image whose Python is 3.11 or newer.")'
python3 -m venv "$root/python"
"$root/python/bin/python" -m pip install --quiet -c "$root/source/constraints.txt" "$root/source[train]"
"$root/python/bin/python" -m pip uninstall --quiet --yes attntut  # whose copy in source is closed to others
chmod -R go-rwx "$root/source"
"""
RUN = """\
#!/usr/bin/env bash
set -euo pipefail
root=${AUTOGRADER:-/autograder}
mkdir -p "$root/results"
chmod -R go-rwx "$root/source" "$root/submission" "$root/results"
cd "$root/source"
exec "${AUTOGRADER_PYTHON:-$root/python/bin/python}" -m grading.gradescope --run
"""


def pack(name: str, key: Path, out: Path) -> Path:
    """Write the zip of a problem set; it holds the key and the solutions, and is the instructor's alone."""
    exercises_of(name)
    path = out / f"{name}-gradescope.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for script, text in (("setup.sh", SETUP), ("run_autograder", RUN)):
            entry = zipfile.ZipInfo(script)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
        archive.writestr("key", read_key(key))
        archive.writestr("set", name)
        for folder in SOURCES:
            for file in sorted((ROOT / folder).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, file.relative_to(ROOT))
        for file_name in FILES:
            archive.write(ROOT / file_name, file_name)
    path.chmod(0o600)
    return path


def grade(root: Path) -> dict[str, Any]:
    """Grade the submission under ``root``: what Gradescope reads as ``results.json``."""
    start, source = time.monotonic(), root / "source"
    key = read_key(source / "key")
    name = (source / "set").read_text()
    assignment = Assignment(name, exercises_of(name), key)
    paths = sorted((root / "submission").rglob("*.ipynb"))
    if len(paths) != 1:
        return {"score": 0, "output": f"Hand in one notebook: {len(paths)} came."}
    try:
        submission = read(paths[0], paths[0].stem, assignment.starters)
    except NotANotebook as error:
        return {"score": 0, "output": f"This file is no notebook: {error}"}
    with staged() as stage:
        sandbox = choose(stage, [source, root / "submission", root / "results"])
        print(sandbox.says)  # in the instructor's log
        marks = assignment.marks(submission, sandbox)
    tests = [
        {"number": e.number, "name": e.title, "score": mark.points, "max_score": e.points,
         "output": mark.question or "Right.", "visibility": "visible"}
        for e, mark in zip(assignment.exercises, marks, strict=True)
    ]  # fmt: skip
    said = "\n".join([*submission.notes, *stranger(root, submission.student)])
    return {"execution_time": round(time.monotonic() - start, 1), "output": said, "tests": tests}


def stranger(root: Path, student: str) -> list[str]:
    """A note if the notebook's id is none of those that Gradescope knows of the one who handed it in."""
    path = root / "submission_metadata.json"
    users = json.loads(path.read_text("utf-8")).get("users", []) if path.exists() else []
    known = {str(user.get(key, "")).lower() for user in users for key in ("sid", "email", "name")}
    known |= {name.partition("@")[0] for name in known}
    return (
        [f"The id {student} is not yours, as Gradescope knows you."] if users and student.lower() not in known else []
    )


def main(arguments: list[str] | None = None) -> int:
    """Make the zip, or, on Gradescope, grade."""
    parser = argparse.ArgumentParser(prog="gradescope", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("set", nargs="?", default="ps1", help="problem set (default ps1)")
    parser.add_argument("--key", type=Path, help="file with the course's secret")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "gradescope", help="folder to write to")
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.run:
        root = Path(os.environ.get("AUTOGRADER", "/autograder"))
        try:
            results = grade(root)
        except NoSandbox as error:
            print(error, file=sys.stderr)  # the instructor's log
            return 1
        (root / "results" / "results.json").write_text(json.dumps(results), encoding="utf-8")
        return 0
    if not options.key:
        parser.error("--key must name the file with the course's secret")
    path = pack(options.set, options.key, options.out)
    print(f"{path}\nIt holds the key and the solutions. Upload it as the autograder, and try it there once.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
