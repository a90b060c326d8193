"""Which axe-core checks the pages: the newest tested one from npm, or the older one that a Python package brings along.

npm is asked once; the script then lies in ``_build``. ``AXE_CORE`` names another version, or ``latest``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

VERSION = "4.14.1"
KEPT = Path(__file__).resolve().parent.parent / "_build" / "axe-core"


@cache
def script() -> str:
    """The source of ``axe.min.js``."""
    version = os.environ.get("AXE_CORE") or VERSION
    path = KEPT / f"{version}.js"
    if not path.exists() or version == "latest":
        _from_npm(version, path)
    if path.exists():
        return path.read_text(encoding="utf-8")
    from axe_playwright_python.base import AXE_SCRIPT

    return str(AXE_SCRIPT)


def about(source: str) -> str:
    """Say which version a script is.

    >>> about("/*! axe v4.14.1")
    'axe-core 4.14.1'
    """
    found = re.search(r"axe v([\d.]+)", source)
    version = found[1] if found else "of an unknown version"
    older = "" if version == VERSION or os.environ.get("AXE_CORE") else f"; npm could not bring {VERSION}"
    return f"axe-core {version}{older}"


def _from_npm(version: str, path: Path) -> None:
    """Put the script of a release at ``path``, if npm is there and finds it."""
    npm = shutil.which("npm")
    if npm is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"axe-core@{version}", "--silent", "--pack-destination", folder]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError):
            return
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as files:
            member = files.extractfile("package/axe.min.js")
            assert member is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(member.read())
