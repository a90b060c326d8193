"""Run the published copies of chapters where nothing of the book is installed (``nox -s fresh -- 02 07``).

A new environment gets torch and Jupyter, and nothing else. Beside it lies a site of two things: the wheel, built from
this checkout, and the copies with the cell that installs it, as the download button and Colab give them. The copies
must run there, and must leave the torch that they find.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_build" / "fresh"
sys.path[:0] = [str(ROOT), str(ROOT / "book" / "_ext")]

from bookext.published import published  # type: ignore[import-not-found]  # noqa: E402

from tools.notebooks import find  # noqa: E402

HERE = ("torch", "ipykernel", "nbclient")
KNOWN = "from importlib.util import find_spec; print(find_spec('attntut'))"
ASK = "import os, torch; print(torch.__version__, os.stat(torch.__file__).st_mtime_ns)"


def main(names: list[str]) -> int:
    """Make the environment, and run the copies of the chapters named: the second, if none is."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    site, env = FOLDER / "site", FOLDER / "env"
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", site, ROOT], check=True)
    copies = []
    for path in find(names or ["02"]):
        where = path.relative_to(ROOT).as_posix()
        copy = published(nbformat.read(path, 4), where, f"{site.as_uri()}/", lambda name: (ROOT / name).read_bytes())
        copies.append(FOLDER / "elsewhere" / path.name)
        copies[-1].parent.mkdir(exist_ok=True)
        nbformat.write(copy, copies[-1])

    print("Installing torch and Jupyter", flush=True)
    venv.create(env, with_pip=True)
    programs = env / ("Scripts" if sys.platform == "win32" else "bin")
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "JUPYTER_", "ATTNTUT_")
    apart = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    apart |= {"PATH": os.pathsep.join([str(programs), apart["PATH"]])}
    apart |= {f"JUPYTER_{name}_DIR": str(FOLDER / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}

    def run(program: str, *arguments: str) -> str:
        command = [str(programs / program), *arguments]
        return subprocess.run(
            command, env=apart, cwd=FOLDER / "elsewhere", check=True, stdout=subprocess.PIPE, text=True
        ).stdout

    run("python", "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *HERE)
    before = run("python", "-c", ASK)
    for copy in copies:
        assert run("python", "-c", KNOWN).strip() == "None", "attntut is here already: the copy would install nothing."
        run("jupyter-execute", "--timeout=600", copy.name)
        print(f"{copy.name}: ran", flush=True)
        run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "attntut")
    if (after := run("python", "-c", ASK)) != before:
        print(f"The copies installed another torch: {before} before, {after} after.")
        return 1
    shutil.rmtree(FOLDER)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
