"""The table from a symptom over its causes to what helps, each remedy with the record that shows whether it does.

The directive ``remedies`` reads ``book/remedies.yml``. Which methods are *made* for a cause, the registry knows: those
without a record are named too, as not measured. A cause, a remedy or a record that does not exist fails the build.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ConfigError
from sphinx.util import logging

from attntut.adjust import adjustments
from attntut.diagnose.faults import faults, table
from attntut.evidence import Evidence
from attntut.init import schemes

from .records import Record, add_directive, find, in_reading_order, numbers, pages_with, render

logger = logging.getLogger(__name__)

GAINS = ("higher", "lower")
PAGE = """\
{% for symptom in symptoms %}
<section class="claim" id="{{ symptom.anchor }}">
<h2>{{ symptom.symptom }}<a class="headerlink" href="#{{ symptom.anchor }}" title="Link to this symptom">#</a></h2>
<p>{{ symptom.see }}</p>
<p class="claim-head">{% if symptom.faults %}Causes:{% else %}<code>diagnose</code> looks for no cause of it.{% endif %}

{% for fault in symptom.faults %}
<a href="{{ uri("book/diagnose", ids[fault]) }}">{{ fault }}</a>
{% endfor %}
</p>
<ul>
{% for remedy in symptom.remedies %}
{% for record, verdict in remedy.found %}
<li class="remedy"><span class="remedy-name">
{%- if remedy.page %}<a href="{{ uri(remedy.page, remedy.of) }}"><code>{{ remedy.of }}</code></a>
{%- else %}{{ remedy.of }}{% endif %}</span>
<span class="claim-verdict verdict-{{ verdict.split()[0] }}">{{ verdict }}</span>
<p><a href="{{ uri(record.page, record.anchor) }}">{{ record.name }}</a>:
<span class="numbers">{{ numbers(record) }}</span> ({{ place(record.page) }})</p></li>
{% endfor %}
{% endfor %}
{% if symptom.unmeasured %}
<li>Also made for it, and not measured here:
{% for name in symptom.unmeasured %}
<a href="{{ uri("book/adjustments", name) }}"><code>{{ name }}</code></a>{{ ", " if not loop.last else "." }}
{% endfor %}</li>
{% endif %}
</ul>
</section>
{% endfor %}
"""


@dataclass
class Remedy:
    """What is done against a symptom.

    Attributes:
        of: a method's or scheme's name, or words for what is neither.
        records: ``"16: name"`` each.
        gain: which measurement is a gain, ``"higher"`` or ``"lower"`` than 0, where the records are differences to the
            same without the remedy; empty where they are no differences.
        says: what the records say of it where they are no differences, a few words.
    """

    of: str
    records: list[str]
    gain: str = ""
    says: str = ""
    found: list[tuple[Record, str]] = field(default_factory=list)

    @property
    def page(self) -> str:
        """Where the remedy is listed; empty if it is neither a method nor a scheme."""
        return "book/adjustments" if self.of in adjustments() else "book/catalogue" if self.of in schemes() else ""


@dataclass
class Symptom:
    """What is seen, the faults behind it, and what is done."""

    symptom: str
    see: str
    faults: list[str]
    remedies: list[Remedy]

    @property
    def anchor(self) -> str:
        """Of its section."""
        return nodes.make_id(f"symptom {self.symptom}")

    @property
    def unmeasured(self) -> list[str]:
        """Methods that are made for one of the faults, and that no record here is about."""
        shown = {remedy.of for remedy in self.remedies}
        made = (name for name, each in adjustments().items() if {*self.faults} & {*each.treats})
        return [name for name in made if name not in shown]


def read_symptoms(path: Path) -> list[Symptom]:
    """Return the symptoms of a YAML file, checked against the registries."""
    try:
        entries: list[Mapping[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))
        symptoms = [Symptom(**{**each, "remedies": [Remedy(**one) for one in each["remedies"]]}) for each in entries]
    except (OSError, TypeError, KeyError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path} must be a list of symptoms with symptom, see, faults and remedies: {error}"
        ) from error
    for each in symptoms:
        if unknown := {*each.faults} - {*faults()}:
            raise ConfigError(f"{path}: {each.symptom!r} names faults that diagnose does not know: {sorted(unknown)}.")
        for remedy in each.remedies:
            if not remedy.records:
                raise ConfigError(f"{path}: {remedy.of!r} of {each.symptom!r} has no record.")
            if remedy.gain and remedy.gain not in GAINS:
                raise ConfigError(f"{path}: gain must be one of {GAINS}: got {remedy.gain!r}.")
            if bool(remedy.gain) == bool(remedy.says):
                raise ConfigError(f"{path}: {remedy.of!r} of {each.symptom!r} must have one of gain and says.")
            if " " not in remedy.of and not remedy.page:
                raise ConfigError(f"{path}: {remedy.of!r} is neither a method nor a scheme.")
    return symptoms


def verdict(record: Evidence, gain: str, says: str = "") -> str:
    """What a record says of a remedy: ``helps``, ``harms`` or ``within the noise`` by its interval, or ``says``.

    Args:
        record: of a difference to the same without the remedy, or of something else.
        gain: which difference is a gain; empty where the record is no difference.
        says: what such a record says, if it is as its text says.
    """
    if not gain:
        return says if record.agrees else "not as said"
    low = record.measured if record.low is None else record.low
    high = record.measured if record.high is None else record.high
    if low <= 0 <= high:
        return "within the noise"
    return "helps" if (low > 0) == (gain == "higher") else "harms"


def filled(symptoms: Iterable[Symptom], records: list[Record]) -> tuple[list[Symptom], list[str]]:
    """Give each remedy its records with their verdicts; say which are missing."""
    symptoms, missing = list(symptoms), []
    for symptom in symptoms:
        for remedy in symptom.remedies:
            for text in remedy.records:
                if (record := find(records, text)) is None:
                    missing.append(text)
                else:
                    remedy.found.append((record, verdict(record, remedy.gain, remedy.says)))
    return symptoms, missing


def _symptoms(app: Sphinx) -> tuple[list[Symptom], list[str]]:
    return filled(read_symptoms(Path(app.srcdir, app.config.book_remedies)), in_reading_order(app))


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of records that are not there."""
    if pages := pages_with(env, "remedies"):
        for text in _symptoms(app)[1]:
            logger.warning("no record %r", text, location=pages[0], type="book")


def show(app: Sphinx, docname: str) -> list[nodes.Node]:
    """Return the tables."""
    ids = {row["finding"]: row["id"] for row in table()}
    return render(app, docname, PAGE, symptoms=_symptoms(app)[0], ids=ids, numbers=numbers)


def setup(app: Sphinx) -> None:
    """Register the directive and follow the build."""
    app.add_config_value("book_remedies", "book/remedies.yml", "env")
    add_directive(app, "remedies", show)
    app.connect("env-check-consistency", check)
