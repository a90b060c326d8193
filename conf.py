"""What plain Sphinx reads (``sphinx-build . OUT``): all of it stands in ``_config.yml``, in Sphinx's own words."""

import sys
from pathlib import Path

import yaml

root = Path(__file__).parent
book = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
sys.path += [str(root / folder) for folder in book["sphinx"]["local_extensions"].values()]
author, copyright = book["author"], book["copyright"]
globals().update(book["sphinx"]["config"])
extensions = [name for name in book["sphinx"]["config"]["extensions"] if name != "jupyter_book"]
