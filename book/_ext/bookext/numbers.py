"""Chapters have the number that their file has: ``12-signal-propagation`` is chapter 12, whichever are not written yet.

Sphinx counts the chapters of the table of contents. The text, the exercises and the sets of the instructors go by the
names of the files.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

CHAPTER = re.compile(r"notebooks/(\d+)-")


def renumber(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Put the number of the file in front, wherever Sphinx keeps one; return the chapters that this changed."""
    changed = []
    for docname in env.found_docs:
        if (match := CHAPTER.match(docname)) is None:
            continue
        number, sections = int(match[1]), env.toc_secnumbers.get(docname, {})
        if any(each[0] != number for each in sections.values() if each):
            changed.append(docname)
        for anchor, each in sections.items():
            sections[anchor] = (number, *each[1:]) if each else each
        for node in (env.titles[docname], *env.tocs[docname].findall(nodes.reference)):
            if node.get("secnumber"):
                node["secnumber"] = (number, *node["secnumber"][1:])
    return changed


def setup(app: Sphinx) -> None:
    """Register it after Sphinx's own count."""
    app.connect("env-get-updated", renumber, priority=900)
