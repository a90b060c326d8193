"""The ledger of the article's claims, from the records of the chapters.

The directive ``claims`` shows each claim with its verdict, its numbers and a link to the cell. A ledger that cannot be
trusted fails the build: a claim without evidence, a record of an unknown claim, a claim that waits for a chapter
that is there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError
from sphinx.util import logging

from .numbers import CHAPTER
from .records import Record, add_directive, in_reading_order, pages_with, render

logger = logging.getLogger(__name__)


PAGE = """\
<p class="claims-summary">{{ summary }}</p>
{% for verdict in verdicts %}
{% set claim = verdict.claim %}
<div class="claim claim-{{ verdict.kind }}" id="{{ claim.id | lower }}">
<p class="claim-head"><strong>{{ claim.id }}</strong>
<a href="{{ uri(article, claim.anchor) }}">article, section {{ claim.section }}</a>
<span class="claim-verdict">{{ verdict.text }}</span></p>
<p>{{ claim.text }}</p>
<ul>
{% for record in verdict.records %}
<li><a href="{{ uri(record.page, record.anchor) }}">{{ record.name }}</a>:
speaks {{ "for" if record.supports else "against" }} the claim{{ " when " ~ record.when if record.when }}.
<span class="numbers">{{ (record | string).split("   ")[1:] | join(" · ") }}</span> ({{ place(record.page) }})</li>
{% endfor %}
{% if claim.later %}
<li>Waits for {{ claim.later }}.</li>
{% endif %}
</ul>
</div>
{% endfor %}
"""


@dataclass(frozen=True)
class Claim:
    """One claim of the article, in our words, and what it still waits for."""

    id: str
    section: str
    text: str
    later: str = ""

    @property
    def anchor(self) -> str:
        """The anchor of the article's section on the page about the article."""
        return "article-" + self.section.replace(".", "-")


@dataclass
class Verdict:
    """What all records together say of a claim."""

    claim: Claim
    records: list[Record] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """``holds``, ``mixed``, ``fails``, or ``later`` when there is no record yet."""
        if not self.records:
            return "later"
        if all(record.supports for record in self.records):
            return "holds"
        return "mixed" if any(record.supports for record in self.records) else "fails"

    @property
    def text(self) -> str:
        """The verdict in words."""
        if self.kind == "later":
            return f"waits for {self.claim.later}" if self.claim.later else "no evidence"
        if self.kind != "mixed":
            return self.kind
        conditions = [record.when for record in self.records if record.supports and record.when]
        return "holds when " + "; or when ".join(dict.fromkeys(conditions)) if conditions else "holds in part"


def read_claims(path: Path) -> list[Claim]:
    """Return the claims of a YAML file: a list of ``id``, ``section``, ``text`` and, what it waits for, ``later``."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        claims = [Claim(**{key: str(value).strip() for key, value in entry.items()}) for entry in entries]
    except (OSError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} must be a list of claims with id, section and text: {error}") from error
    for identifier, times in Counter(claim.id for claim in claims).items():
        if times > 1:
            raise ConfigError(f"{path} has the claim {identifier} {times} times.")
    return claims


def judge(claims: Iterable[Claim], records: Iterable[Record]) -> tuple[list[Verdict], list[tuple[str, str]]]:
    """Return every claim's verdict, and what is wrong: pairs of a page (or "") and a message."""
    verdicts = {claim.id: Verdict(claim) for claim in claims}
    problems = []
    for record in records:
        where = f"{record.name!r} ({record.anchor})"
        if record.claim is None:
            continue
        if record.claim not in verdicts:
            known = ", ".join(verdicts)
            problems.append((record.page, f"the comparison {where} names the claim {record.claim!r}; known: {known}"))
            continue
        verdicts[record.claim].records.append(record)
    for verdict in verdicts.values():
        if not verdict.records and not verdict.claim.later:
            problems.append(("", f"the claim {verdict.claim.id} has no evidence: no comparison names it"))
        elif verdict.text == "holds in part":
            problems.append((verdict.records[0].page, f"the claim {verdict.claim.id} holds in part: say `when=…`"))
    return list(verdicts.values()), problems


def _verdicts(app: Sphinx) -> tuple[list[Verdict], list[tuple[str, str]]]:
    return judge(read_claims(Path(app.srcdir, app.config.book_claims)), in_reading_order(app))


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of whatever is wrong with the ledger."""
    ledgers = pages_with(env, "claims")
    verdicts, problems = _verdicts(app) if ledgers else ([], [])
    written = {int(found[1]) for found in map(CHAPTER.match, env.found_docs) if found}
    for claim in (verdict.claim for verdict in verdicts):
        if (found := re.match(r"chapter (\d+)", claim.later)) and int(found[1]) in written:
            problems.append(("", f"the claim {claim.id} waits for chapter {found[1]}, which is there"))
    for page, message in problems:
        logger.warning("%s", message, location=page or ledgers[0], type="claims")


def summarize(verdicts: Iterable[Verdict]) -> str:
    """Return the count of the verdicts, and which claims wait for more, in sentences."""
    verdicts = list(verdicts)
    count = Counter(verdict.kind for verdict in verdicts)
    waiting = [verdict.claim.id for verdict in verdicts if verdict.claim.later]

    def say(kind: str, one: str, many: str) -> str:
        times = count[kind]
        return f"{times or 'none'} {one if times < 2 else many}"

    return (
        f"Of {count.total()} claims, {say('holds', 'holds', 'hold')}, "
        f"{say('mixed', 'holds under a condition', 'hold under a condition')}, and {say('fails', 'fails', 'fail')}."
        + (f" Waiting for more: {', '.join(waiting)}." if waiting else "")
    )


def show(app: Sphinx, docname: str) -> list[nodes.Node]:
    """Return the ledger."""
    verdicts, _ = _verdicts(app)
    return render(app, docname, PAGE, summary=summarize(verdicts), verdicts=verdicts, article=app.config.book_article)


def setup(app: Sphinx) -> None:
    """Register the directive and follow the build."""
    app.add_config_value("book_claims", "book/claims.yml", "env")
    app.add_config_value("book_article", "book/article", "env")
    add_directive(app, "claims", show)
    app.connect("env-check-consistency", check)
