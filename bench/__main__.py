"""Print the table: ``nox -s bench``; ``nox -s bench -- --write`` puts it into the README.

``--only attention`` (or another part) measures one part; parts that are missing say so.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from attntut.device import machine
from bench import table
from tools.notebooks import ENVIRONMENT

README = Path(__file__).resolve().parent.parent / "README.md"
PARTS = {
    "import": ("bench.imports", "imports"),
    "attention": ("bench.models", "attention"),
    "training": ("bench.models", "training"),
    "sweeps": ("bench.sweeps", "sweeps"),
    "initialization": ("bench.initialization", "initialization"),
    "diagnosis": ("bench.diagnosis", "diagnosis"),
    "adjustments": ("bench.adjusting", "adjusting"),
    "chapters": ("bench.book", "chapters"),
    "pages": ("bench.book", "pages"),
}


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure")
    parser.add_argument("--write", action="store_true", help="put the table into the README")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)

    rows = []
    for part in options.only:
        print(f"{part} …", flush=True)
        module, function = PARTS[part]
        try:
            measure: Callable[[], list[table.Row]] = getattr(importlib.import_module(module), function)
            rows += measure()
        except ImportError as error:
            rows.append(table.Row(part.capitalize(), f"missing: {error}"))
    text = f"{table.markdown(rows)}\n\nMeasured on {machine()}."
    print(text)
    if options.write:
        table.write(text, README)
        print(f"Written into {README.name}.")


if __name__ == "__main__":
    main()
