"""The ledger of the article's claims, from the records that ``attntut.evidence.compare`` leaves in the chapters.

A chapter's comparison leaves ``<div class="attntut-evidence" id=… data-record='{…}'>`` on its page. The records of all
pages of this build are gathered, and the directive ``claims`` shows each claim with its verdict, its numbers and a link
to the cell. Nothing is typed by hand, and a ledger that cannot be trusted fails the build: a claim without evidence, a
record of an unknown claim, a comparison that failed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """One claim of the article, in our words."""

    id: str
    section: str
    text: str
    later: str = ""

    @property
    def anchor(self) -> str:
        """The anchor of the article's section on the page about the article."""
        return "article-" + self.section.replace(".", "-")


@dataclass(frozen=True)
class Record:
    """What one comparison found, and where."""

    page: str
    anchor: str
    name: str
    predicted: object = None
    measured: object = None
    low: float | None = None
    high: float | None = None
    n: int = 1
    tolerance: str = ""
    unit: str = ""
    passed: bool = True
    claim: str | None = None
    supports: bool = True
    when: str | None = None


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
            return f"answered in {self.claim.later}" if self.claim.later else "no evidence"
        if self.kind != "mixed":
            return self.kind
        conditions = [record.when for record in self.records if record.supports and record.when]
        return "holds when " + " or ".join(dict.fromkeys(conditions)) if conditions else "holds in part"


class _Records(HTMLParser):
    """Collects the elements of class ``attntut-evidence``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if "attntut-evidence" in (values.get("class") or "").split() and values.get("data-record"):
            self.found.append((values.get("id") or "", values["data-record"] or ""))


def read_records(html: str, page: str = "") -> list[Record]:
    """Return the records in a piece of HTML.

    Args:
        html: what a cell displays.
        page: the page on which it stands, by its name in the book.

    >>> read_records('<div class="attntut-evidence" id="evidence-a" data-record=\\'{"name": "a", "claim": "C01"}\\'>')
    [Record(page='', anchor='evidence-a', name='a', ... claim='C01', supports=True, when=None)]
    """
    parser = _Records()
    parser.feed(html)
    known = set(Record.__dataclass_fields__) - {"page", "anchor"}
    found = []
    for anchor, text in parser.found:
        values = {key: value for key, value in json.loads(text).items() if key in known}
        found.append(Record(page=page, anchor=anchor, **({"name": anchor} | values)))
    return found


def read_claims(path: Path) -> list[Claim]:
    """Return the claims of a YAML file: a list of ``id``, ``section``, ``text`` and, if answered later, ``later``."""
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
        if not record.passed:
            problems.append((record.page, f"the comparison {where} failed"))
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


def number(value: object, unit: str = "") -> str:
    """Return a number as the chapters print it, with a true minus sign; a list as its numbers.

    >>> number(0.041923), number(65536.0, "nats"), number(-1.2e-7), number(None), number([1, 2])
    ('0.0419', '65500 nats', '−1.2e−07', '', '1, 2')
    """
    from attntut.evidence import number as as_printed  # brings torch: not before there is something to print

    if value is None:
        return ""
    if isinstance(value, list | tuple):
        text = ", ".join(map(number, value))
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    else:
        text = as_printed(value).replace("-", "−")
    return f"{text} {unit}" if unit else text


def numbers(record: Record) -> str:
    """Return what a record predicted and measured, in one line.

    >>> numbers(Record("", "", "a", predicted=1.0, measured=0.98, low=0.95, high=1.01, n=5))
    'predicted 1 · measured 0.98, 95 % interval 0.95 to 1.01 over 5 seeds'
    """
    parts = [f"predicted {number(record.predicted, record.unit)}"] if record.predicted is not None else []
    if record.measured is not None:
        text = f"measured {number(record.measured, record.unit)}"
        if record.low is not None and record.high is not None and record.n > 1:
            text += f", 95 % interval {number(record.low)} to {number(record.high)} over {record.n} seeds"
        parts.append(text)
    if record.tolerance:
        parts.append(record.tolerance)
    return " · ".join(parts)


class ledger(nodes.General, nodes.Element):  # docutils names nodes in lower case
    """Where the ledger will stand, once all pages are read."""


class ClaimsDirective(SphinxDirective):
    """``claims``: the ledger."""

    def run(self) -> list[nodes.Node]:
        _store(self.env).pages.add(self.env.docname)
        return [ledger()]


@dataclass
class Store:
    """What the environment remembers between two builds."""

    records: dict[str, list[Record]] = field(default_factory=dict)
    pages: set[str] = field(default_factory=set)


def _store(env: BuildEnvironment) -> Store:
    if not hasattr(env, "book_claims"):
        env.book_claims = Store()  # type: ignore[attr-defined]
    return env.book_claims  # type: ignore[attr-defined]


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Remember the records of a page that was just read."""
    found: list[Record] = []
    for raw in doctree.findall(nodes.raw):
        if "html" in raw.get("format", "") and "attntut-evidence" in raw.astext():
            found += read_records(raw.astext(), app.env.docname)
    for anchor, times in Counter(record.anchor for record in found).items():
        if times > 1:
            logger.warning("%s comparisons have the name %s", times, anchor, location=app.env.docname, type="book")
    _store(app.env).records[app.env.docname] = found


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page that will be read again."""
    _store(env).records.pop(docname, None)
    _store(env).pages.discard(docname)


def merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    """Take over what another process read."""
    for docname in docnames:
        if docname in _store(other).records:
            _store(env).records[docname] = _store(other).records[docname]
    _store(env).pages |= _store(other).pages & set(docnames)


def _verdicts(app: Sphinx) -> tuple[list[Verdict], list[tuple[str, str]]]:
    claims = read_claims(Path(app.srcdir, app.config.book_claims))
    order = {page: place for place, page in enumerate(_reading_order(app))}
    pages = sorted(_store(app.env).records, key=lambda page: order.get(page, len(order)))
    return judge(claims, [record for page in pages for record in _store(app.env).records[page]])


def _reading_order(app: Sphinx) -> list[str]:
    includes: Mapping[str, list[str]] = app.env.toctree_includes
    found: list[str] = []

    def walk(page: str) -> None:
        if page not in found:
            found.append(page)
            for child in includes.get(page, []):
                walk(child)

    walk(app.config.root_doc)
    return found


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of whatever is wrong with the ledger."""
    if not _store(env).pages:
        return
    for page, message in _verdicts(app)[1]:
        logger.warning("%s", message, location=page or sorted(_store(env).pages)[0], type="claims")


def outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Read the ledger's page again whenever any other page changed."""
    return sorted(_store(env).pages - removed) if added | changed | removed else []


def _link(app: Sphinx, source: str, target: str, anchor: str, text: str) -> nodes.reference:
    address = app.builder.get_relative_uri(source, target) + (f"#{anchor}" if anchor else "")
    return nodes.reference("", text, internal=True, refuri=address)


def _place(app: Sphinx, page: str) -> str:
    section = app.env.toc_secnumbers.get(page, {}).get("")
    title = app.env.titles[page].astext()
    return f"chapter {'.'.join(map(str, section))}, {title}" if section else title


def _entry(app: Sphinx, docname: str, verdict: Verdict) -> nodes.container:
    claim = verdict.claim
    box = nodes.container(classes=["claim", f"claim-{verdict.kind}"], ids=[claim.id.lower()])
    head = nodes.paragraph(classes=["claim-head"])
    article = _link(app, docname, app.config.book_article, claim.anchor, f"article, section {claim.section}")
    head += [nodes.strong("", claim.id), nodes.Text(" "), article, nodes.Text(" ")]
    head += nodes.inline("", verdict.text, classes=["claim-verdict"])
    box += [head, nodes.paragraph("", claim.text)]
    evidence = nodes.bullet_list()
    for record in verdict.records:
        line = nodes.paragraph()
        line += _link(app, docname, record.page, record.anchor, record.name)
        side = "speaks for the claim" if record.supports else "speaks against the claim"
        when = f" when {record.when}" if record.when else ""
        line += nodes.Text(f": {side}{when}. ")
        line += nodes.inline("", numbers(record), classes=["numbers"])
        line += nodes.Text(f" ({_place(app, record.page)})")
        evidence += nodes.list_item("", line)
    if claim.later:
        evidence += nodes.list_item("", nodes.paragraph("", f"Answered in full in {claim.later}."))
    if evidence.children:
        box += evidence
    return box


def summarize(verdicts: Iterable[Verdict]) -> str:
    """Return the count of the verdicts, as a sentence.

    >>> summarize([Verdict(Claim("C01", "1", "…"), [Record("", "", "a")]), Verdict(Claim("C02", "1", "…", "part III"))])
    'Of 2 claims, 1 holds, none holds under a condition, none fails, and 1 waits for a later part.'
    """
    count = Counter(verdict.kind for verdict in verdicts)

    def say(kind: str, one: str, many: str) -> str:
        times = count[kind]
        return f"{times or 'none'} {one if times < 2 else many}"

    return (
        f"Of {count.total()} claims, {say('holds', 'holds', 'hold')}, "
        f"{say('mixed', 'holds under a condition', 'hold under a condition')}, {say('fails', 'fails', 'fail')}, "
        f"and {say('later', 'waits', 'wait')} for a later part."
    )


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the ledger where the directive stood."""
    for place in list(doctree.findall(ledger)):
        verdicts, _ = _verdicts(app)
        summary = nodes.paragraph("", summarize(verdicts), classes=["claims-summary"])
        place.replace_self([summary, *(_entry(app, docname, verdict) for verdict in verdicts)])


def setup(app: Sphinx) -> None:
    """Register the directive and follow the build."""
    app.add_config_value("book_claims", "book/claims.yml", "env")
    app.add_config_value("book_article", "book/article", "env")
    app.add_node(ledger)
    app.add_directive("claims", ClaimsDirective)
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("env-get-outdated", outdated)
    app.connect("env-check-consistency", check)
    app.connect("doctree-resolved", fill)
