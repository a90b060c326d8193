"""Exercises: a place to answer on the page, and the map of all of them.

A paragraph that begins with ``**Exercise 2.1**`` gets an anchor. If its answer is a number or a choice, a form follows
that is checked in the browser (``book.js``), with the parameters of variant 0. The right answer is in the page, but not
readable at a glance; it is no secret.
"""

from __future__ import annotations

import html
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

BEGINS = re.compile(r"Exercise (\d+\.\d+)$")
CHECK = '<button type="submit" class="check" hidden>Check</button> <output role="status"></output></form>'


def records() -> dict[str, dict[str, Any]]:
    """What ``attntut`` ships of every exercise."""
    from attntut.exercises.public import records  # brings torch

    return records()


def anchor(number: str) -> str:
    """The anchor of an exercise on its page.

    >>> anchor("2.1")
    'exercise-2-1'
    """
    return f"exercise-{number.replace('.', '-')}"


def of_the_page(check: str) -> str:
    """Keep the page's variant of a check.

    >>> every = b64encode(json.dumps({"right": [[1], [2]], "traps": [[[3], [4]]], "ask": "?"}).encode()).decode()
    >>> json.loads(b64decode(of_the_page(every)))
    {'right': [1], 'traps': [[3]], 'ask': '?'}
    """
    every = json.loads(b64decode(check))
    kept = {**every, "right": every["right"][0], "traps": [values[0] for values in every["traps"]]}
    return b64encode(json.dumps(kept, ensure_ascii=False).encode()).decode()


def raw(markup: str) -> nodes.raw:
    """Return a node of HTML."""
    return nodes.raw("", markup, format="html")


def place_after(paragraph: nodes.paragraph, ends: Callable[[nodes.Node], bool]) -> int:
    """Return the place behind an exercise's statement: of its options or hint, else right after its first paragraph."""
    siblings = paragraph.parent.children
    first = siblings.index(paragraph) + 1
    return next((i for i in range(first, len(siblings)) if ends(siblings[i])), first)


def add_forms(app: Sphinx, doctree: nodes.document) -> None:
    """Put an anchor at each exercise of a page that was read, and a form where it can be answered there."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        first = next((node for node in paragraph.children if node.astext()), None)
        found = BEGINS.match(first.astext()) if isinstance(first, nodes.strong) else None
        if not found or found.group(1) not in records():
            continue
        number = found.group(1)
        shipped = records()[number]
        paragraph["ids"].append(anchor(number))
        begin = f'<form class="answer" data-check="{of_the_page(shipped["check"])}">' if "check" in shipped else ""
        if shipped["kind"] == "number":
            place = place_after(paragraph, lambda node: isinstance(node, nodes.raw) and "<details" in node.astext())
            field = f'<label>Your answer to exercise {number} <input name="answer" autocomplete="off"></label> '
            paragraph.parent.insert(place, raw(begin + field + CHECK))
        elif shipped["kind"] == "choice":
            place = place_after(paragraph, lambda node: isinstance(node, nodes.bullet_list))
            options = paragraph.parent[place]
            for item in options.findall(nodes.list_item):
                letter = item.astext()[0]
                item[0].insert(0, raw(f'<label><input type="radio" name="answer" value="{letter}"> '))
                item[0].append(raw("</label>"))
            name = html.escape(f"Options of exercise {number}")
            paragraph.parent.insert(place + 1, raw("</fieldset>" + CHECK))
            paragraph.parent.insert(place, raw(f'{begin}<fieldset><legend class="unseen">{name}</legend>'))


class Map(SphinxDirective):
    """All exercises: number, title, kind, minutes, difficulty, points, and what should come before."""

    HEADS = ("Number", "Exercise", "Kind", "Minutes", "Difficulty", "Points", "Before it")

    def run(self) -> list[nodes.Node]:
        """Return one table with a link to each exercise."""
        pages = {int(doc.split("/")[1][:2]): doc for doc in self.env.found_docs if re.match(r"notebooks/\d\d-", doc)}
        rows = []
        for number, shipped in records().items():
            page = pages.get(int(number.split(".")[0]), self.env.docname)
            link = f"{self.env.app.builder.get_relative_uri(self.env.docname, page)}#{anchor(number)}"
            points = f"{shipped['points']}" + (f" + {shipped['manual']} by you" if shipped["manual"] else "")
            cells = [f'<a href="{link}">{number}</a>', html.escape(shipped["title"]), shipped["kind"]]
            cells += [str(shipped["minutes"]), shipped["difficulty"], points, html.escape(", ".join(shipped["needs"]))]
            rows.append("".join(f"<td>{cell}</td>" for cell in cells))
        head = "".join(f"<th>{name}</th>" for name in self.HEADS)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return [raw(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")]


def setup(app: Sphinx) -> None:
    """Register the directive, and the forms before links to anchors are resolved."""
    app.add_directive("exercise-map", Map)
    app.connect("doctree-read", add_forms, priority=400)
