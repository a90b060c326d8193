"""The questions of the map and their answers, drawn from the rules that ``attntut.recommend`` reads.

Where the directive ``questions`` stands, the page gets what would stand there in Markdown: a heading and a label for
each question, the answers, the sentences of their rules with their records (one that is missing fails the build), and
links to the schemes and methods that they name.
"""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from attntut.adjust.registry import adjustments
from attntut.init.registry import schemes
from attntut.recommend.rules import PATH, Answer, Question, Rule, parts, questions

NAMED = re.compile(r"(?<![}`\[\w])`(\w+)`(?!`)")  # no role, and no link yet


def markdown() -> str:
    """All questions, as the source of a page."""
    return "\n\n".join(_question(each) for each in questions())


def _question(question: Question) -> str:
    number = f"{_number(question.id)}. " if question.numbered else ""
    answers = [_answer(each, "{}." if question.bullets else "Go on with {}.") for each in question.answers]
    if question.bullets:
        answers = ["\n".join("- " + each.replace("\n", "\n  ") for each in answers)]
    head = [f"(map-{question.id})=\n## {number}{question.title}", _linked(question.intro)]
    return "\n\n".join(filter(None, [*head, *answers]))


def _number(id: str) -> int:
    return [each.id for each in questions() if each.numbered].index(id) + 1


def _answer(answer: Answer, on: str) -> str:
    rules = [_linked(f"{rule.why} {rule.more}".strip(), rule) for rule in answer.rules]
    first = " ".join([f"**{answer.say}**" if answer.say else "", *rules[:1]])
    link = f"[{'Q' if on[0] == '{' else 'q'}uestion {_number(answer.go)}](#map-{answer.go})" if answer.go else ""
    *before, last = [first, *rules[1:]]
    return "\n\n".join([*before, f"{last} {on.format(link) if link else _linked(answer.text)}"]).strip()


def _linked(text: str, rule: Rule | None = None) -> str:
    """The same, where each name of a scheme or a method leads to its entry: of both, to that which the rule names."""
    meant = {name for start in (rule.starts if rule else ()) for name in parts(start)[1]}

    def link(found: re.Match[str]) -> str:
        is_scheme = found[1] in schemes() and found[1] not in meant
        page = "catalogue" if is_scheme else "adjustments" if found[1] in adjustments() else ""
        return f"[{found[0]}]({page}.md#{found[1]})" if page else found[0]

    return NAMED.sub(link, text)


class Questions(SphinxDirective):
    """Its place is taken by :func:`markdown`."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(PATH))
        return self.parse_text_to_nodes(markdown(), allow_section_headings=True)


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("questions", Questions)
