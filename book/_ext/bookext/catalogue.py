"""The catalogue of initialization schemes: one entry for each scheme of ``attntut.init``, made when the book is built.

The directive ``catalogue`` reads the registry, draws a small model from every scheme (:mod:`bookext.drawn`), and shows
formula, source, requirements, and predictions beside measurements. A scheme without a formula, a source or a
measurement, or one whose measurement is not what it predicts, fails the build.

A form filters the entries. ``book/_static/catalogue.js`` brings it to life; without that script the form stays hidden
and every entry is shown.
"""

from __future__ import annotations

import html
import importlib
import inspect
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx.writers.html5 import HTML5Translator

from . import mathml
from .address import Repository, from_environment

if TYPE_CHECKING:
    from attntut.init import Scheme

    from .drawn import Drawn, Pair

CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "notebooks/05-why-at-random": ("zeros", "constant", "zero_query", "zero_output"),
    "notebooks/06-the-gaussian": ("normal", "bert", "gpt2_released", "xavier_packed", "torch_default"),
    "notebooks/07-keeping-the-variance": ("plain", "fan"),
}
"""Page to the names of schemes, or of whole families, that it treats. A page that is not there (yet) gets no link."""

ROLES = {
    "query": "query",
    "key": "key",
    "value": "value",
    "output": "output",
    "feed_forward_in": "feed-forward in",
    "feed_forward_out": "feed-forward out",
    "embedding": "embedding",
    "position": "positions",
    "readout": "readout",
}
GAPS = re.compile(r",?\s*\\q?quad\s*(?![^{]*\})")
AUTHORS = re.compile(
    r"(?P<first>[A-Z][\w'-]+)(?:(?:, | & )[A-Z][\w'-]+)*(?: et al\.)? \(\d{4}\)"  # Glorot & Bengio (2010)
)


# --- what is wrong with the registry ----------------------------------------------------------------------------------


def problems_of(schemes: Mapping[str, Scheme], known_sources: Iterable[str] | None = None) -> list[str]:
    """Return what entries lack that must be there before anything is drawn.

    Args:
        schemes: the registry.
        known_sources: the keys of the bibliography; None if the book has none.
    """
    known = None if known_sources is None else set(known_sources)
    found = []
    for name, scheme in schemes.items():
        found += [
            f"{name} has no {what}"
            for what, text in (("formula", scheme.formula), ("source", scheme.source), ("reason (why)", scheme.why))
            if not text.strip()
        ]
        for piece in pieces(scheme.formula):
            try:
                mathml.to_mathml(piece, display=True)
            except ValueError as error:
                found.append(f"{name}: {error}")
        if known is not None and scheme.cite and scheme.cite not in known:
            found.append(f"{name} cites {scheme.cite!r}, which the bibliography does not have")
    return found


def draw_all(schemes: Mapping[str, Scheme]) -> tuple[dict[str, Drawn], list[str]]:
    """Return every scheme's numbers, and what is wrong with them."""
    from .drawn import draw  # brings torch: books without a catalogue do without

    drawn, found = {}, []
    for name, scheme in schemes.items():
        try:
            drawn[name] = draw(scheme)
        except Exception as error:  # whatever it was: the entry has no measurement
            found.append(f"{name} has no measurement: {type(error).__name__}: {error}")
        else:
            found += [f"{name} does not keep its promise: {problem}" for problem in drawn[name].problems]
    return drawn, found


# --- the parts of an entry --------------------------------------------------------------------------------------------


def pieces(formula: str) -> list[str]:
    r"""Return the parts of a formula that may stand on lines of their own.

    >>> pieces(r"W = 0, \quad \sigma^2 = \frac{2}{n} \qquad x")
    ['W = 0', '\\sigma^2 = \\frac{2}{n}', 'x']
    >>> pieces(r"\text{a \quad b}, x")
    ['\\text{a \\quad b}, x']
    """
    return [piece for piece in GAPS.split(formula) if piece.strip()]


def source_parts(source: str, family_name: str) -> tuple[str, str]:
    """Split the words on a source where the citation goes: in place of the authors and the year, or in front.

    Args:
        source: the words.
        family_name: of the cited work's first author.

    >>> source_parts("Glorot & Bengio (2010), eq. 12; torch", "Glorot")
    ('', ', eq. 12; torch')
    >>> source_parts("a demonstration; Rumelhart, Hinton & Williams (1986) call it so", "Rumelhart")
    ('a demonstration; ', ' call it so')
    >>> source_parts("torch.nn.Linear", "Paszke")
    ('', '; torch.nn.Linear')
    """
    for match in AUTHORS.finditer(source):
        if match["first"] == family_name:
            return source[: match.start()], source[match.end() :]
    return "", f"; {source}"


def chapters_of(name: str, family: str, pages: Iterable[str]) -> list[str]:
    """Return the pages, of those that exist, that treat a scheme.

    >>> chapters_of("xavier_normal", "fan", ["notebooks/07-keeping-the-variance", "index"])
    ['notebooks/07-keeping-the-variance']
    >>> chapters_of("xavier_normal", "fan", ["index"])
    []
    """
    existing = set(pages)
    return [page for page, treated in CHAPTERS.items() if page in existing and {name, family} & {*treated}]


def code_of(scheme: Scheme, repository: Repository | None) -> tuple[str, str]:
    """Return the name of a scheme's function, and its address if that of the repository is known."""
    function = inspect.unwrap(scheme.function)
    name = f"{function.__module__}.{function.__qualname__}"
    if repository is None:
        return name, ""
    line = inspect.getsourcelines(function)[1]
    return name, f"{repository.url}/blob/{repository.branch}/{function.__module__.replace('.', '/')}.py#L{line}"


def curve(n_keys: int) -> str:
    """Return the picture that all entries share: entropy against the spread of the logits, on a logarithmic axis."""
    from .drawn import gaussian_entropy

    spreads = [10 ** (i / 10) for i in range(-20, 11)]
    points = " ".join(f"{_x(s):.1f},{_y(gaussian_entropy(s), n_keys):.1f}" for s in spreads)
    ticks = "".join(f'<path d="M{_x(s):.0f} 72v4"/>' for s in (0.01, 0.1, 1, 10))
    labels = "".join(f'<text x="{_x(s):.0f}" y="88" text-anchor="middle">{s:g}</text>' for s in (0.01, 0.1, 1, 10))
    return (
        '<svg class="entropy-symbol" aria-hidden="true" width="0" height="0"><symbol id="entropy-curve">'
        f'<g fill="none" stroke="currentColor"><path d="M26 8V72H230" opacity=".55"/><g opacity=".55">{ticks}</g>'
        f'<polyline points="{points}" stroke-width="1.5"/></g>'
        f'<g fill="currentColor" font-size="12" font-family="sans-serif">{labels}'
        '<text x="20" y="16" text-anchor="end">ln n</text><text x="20" y="76" text-anchor="end">0</text></g>'
        "</symbol></svg>"
    )


def _x(logit_std: float) -> float:
    return 32 + 64 * (min(1.0, max(-2.0, math.log10(logit_std or 1e-9))) + 2)


def _y(entropy: float, n_keys: int) -> float:
    return 72 - 60 * entropy / math.log(n_keys)


def picture(logit_std: Pair, entropy: Pair, n_keys: int) -> str:
    """Return where a scheme stands on the curve: a ring where it was predicted, a dot where it was measured."""
    share = entropy.measured / math.log(n_keys)
    words = "every token sees nearly all alike" if share > 0.95 else "tokens choose among a few" if share < 0.75 else ""
    says = f"Spread of the logits {three_digits(logit_std.measured)}, entropy {share:.0%} of ln n"
    ring = f'<circle cx="{_x(logit_std.predicted or 0):.1f}" cy="{_y(entropy.predicted or 0, n_keys):.1f}" r="6"/>'
    return (
        f'<svg class="entropy" viewBox="0 0 240 92" role="img" aria-label="{says}{": " + words if words else ""}">'
        f'<use href="#entropy-curve"/><g fill="none" stroke="currentColor" stroke-width="1.5">{ring}</g>'
        f'<circle class="dot" cx="{_x(logit_std.measured):.1f}" cy="{_y(entropy.measured, n_keys):.1f}" r="3.2"/></svg>'
    )


def three_digits(value: float) -> str:
    """Return a number with three significant digits, zeros included.

    >>> three_digits(0.125), three_digits(3.7), three_digits(0.0), three_digits(0.00012)
    ('0.125', '3.70', '0', '0.00012')
    """
    from attntut.evidence import number  # brings torch: not before there is something to print

    return f"{value:#.3g}" if 1e-3 <= abs(value) < 1e3 else number(value).replace("-", "−")


def table(drawn: Drawn) -> str:
    """Return what was predicted and what was measured."""

    def row(label: str, pair: Pair) -> str:
        predicted = "the batch’s" if pair.predicted is None else three_digits(pair.predicted)
        return f'<tr><th scope="row">{label}</th><td>{predicted}</td><td>{three_digits(pair.measured)}</td></tr>'

    rows = [row(label, drawn.std[role]) for role, label in ROLES.items() if role in drawn.std]
    rows += [row("logits", drawn.logit_std), row("entropy, nats", drawn.entropy)]
    head = '<tr><th scope="col">std of</th><th scope="col">predicted</th><th scope="col">measured</th></tr>'
    return f'<table class="scheme-numbers"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def controls(schemes: Mapping[str, Scheme], families: Iterable[str], requirements: Iterable[str]) -> str:
    """Return the form; the script shows it."""
    of_family = Counter(scheme.family for scheme in schemes.values())
    needing = Counter(need for scheme in schemes.values() for need in scheme.requires)
    nothing = sum(not scheme.requires for scheme in schemes.values())
    radios = [("", f"all ({len(schemes)})"), *((name, f"{name} ({of_family[name]})") for name in families)]
    options = [("", "any, or none"), ("nothing", f"none ({nothing})")]
    options += [(name, f"{name} ({needing[name]})") for name in requirements if needing[name]]
    return (
        '<form class="catalogue-filter" hidden aria-label="Filter the catalogue"><fieldset><legend>Family</legend>'
        + "".join(
            f'<label><input type="radio" name="family" value="{value}"{"" if value else " checked"}>{text}</label>'
            for value, text in radios
        )
        + '</fieldset><p class="needs"><label>Requirement <select name="needs">'
        + "".join(f'<option value="{html.escape(value)}">{html.escape(text)}</option>' for value, text in options)
        + '</select></label> <button type="reset">Show all</button></p></form>'
        + f'<p class="catalogue-count" role="status">{len(schemes)} schemes</p>'
    )


# --- the page ---------------------------------------------------------------------------------------------------------


class scheme_entry(nodes.General, nodes.Element):  # docutils names nodes in lower case
    """One entry, which the filter shows or hides."""


def _visit_entry(self: HTML5Translator, node: scheme_entry) -> None:
    data = {"data-family": node["family"], "data-needs": "|".join(node["needs"])}
    self.body.append(self.starttag(node, "article", CLASS="scheme", **data))


def _depart_entry(self: HTML5Translator, node: scheme_entry) -> None:
    self.body.append("</article>\n")


ENTRY = """\
<div class="scheme-head">
<h3><code>{name}</code> <span class="year">{year}</span>
<a class="headerlink" href="#{name}" title="Link to this scheme">#</a></h3>

{why}

<div class="scheme-formula">

{formula}

</div>
</div>
<dl class="scheme-facts">

{facts}

</dl>
{numbers}
"""


class CatalogueDirective(SphinxDirective):
    """``catalogue``: the form, and every scheme, by family."""

    def run(self) -> list[nodes.Node]:
        from attntut.init import registry, requirements, schemes

        found = schemes()
        bibliography = self._bibliography()
        problems = problems_of(found, bibliography)
        drawn, disagreements = draw_all(found)
        if problems + disagreements:
            raise ExtensionError("The catalogue cannot be shown:\n- " + "\n- ".join(problems + disagreements))
        self._follow_the_package()
        families = [name for name in registry.FAMILIES if any(scheme.family == name for scheme in found.values())]
        form = controls(found, families, requirements.REQUIREMENTS)
        result: list[nodes.Node] = [nodes.raw("", form + curve(_n_keys()), format="html")]
        for family in families:
            section = nodes.section(ids=[f"family-{family}"], names=[f"family-{family}"], classes=["family"])
            section += nodes.title("", family.capitalize())
            section += nodes.paragraph("", _summary(family))
            members = [scheme for scheme in found.values() if scheme.family == family]
            section += [self._entry(scheme, drawn[scheme.name], bibliography) for scheme in members]
            result.append(section)
        return result

    def _entry(self, scheme: Scheme, drawn: Drawn, bibliography: Mapping[str, Any] | None) -> nodes.Node:
        entry = scheme_entry(family=scheme.family, needs=scheme.requires, ids=[scheme.name], names=[scheme.name])
        self.state.document.note_explicit_target(entry)
        facts = self._facts(scheme, bibliography)
        markdown = ENTRY.format(
            name=scheme.name,
            year=scheme.year,
            why=scheme.why,
            formula="\n".join(f"```{{math}}\n{piece}\n```" for piece in pieces(scheme.formula)),
            facts="\n\n".join(f"<dt>{term}</dt>\n<dd>\n\n{text}\n\n</dd>" for term, text in facts.items() if text),
            numbers=picture(drawn.logit_std, drawn.entropy, _n_keys()) + table(drawn),
        )
        entry += self.parse_text_to_nodes(markdown)
        return entry

    def _facts(self, scheme: Scheme, bibliography: Mapping[str, Any] | None) -> dict[str, str]:
        from attntut.init.requirements import REQUIREMENTS

        needs = [f"**{name}**: {_sentence(REQUIREMENTS[name].reason)}" for name in scheme.requires]
        options = ", ".join(f"{name}={default!r}" for name, default in scheme.options.items())
        pages = chapters_of(scheme.name, scheme.family, self.env.found_docs)
        name, address = code_of(scheme, from_environment(os.environ))
        return {
            "Needs": "\n\n".join(needs) or "nothing of the model.",
            "Source": _source(scheme, bibliography),
            "Options": options and f"`{options}`",
            "Chapter": ", ".join(f"{{doc}}`/{page}`" for page in pages),
            "Code": f"[`{name}`]({address})" if address else f"`{name}`",
        }

    def _bibliography(self) -> Mapping[str, Any] | None:
        if "cite" not in self.env.domains:
            return None
        entries: Mapping[str, Any] = self.env.get_domain("cite").bibdata.data.entries  # type: ignore[attr-defined]
        return entries

    def _follow_the_package(self) -> None:
        """Read the page again when the package has changed."""
        for module in ("attntut", "attntut.init"):
            for path in Path(inspect.getfile(importlib.import_module(module))).parent.glob("*.py"):
                self.env.note_dependency(str(path))


def _source(scheme: Scheme, bibliography: Mapping[str, Any] | None) -> str:
    if bibliography is None or not scheme.cite:
        return f"{scheme.source}."
    first = bibliography[scheme.cite].persons["author"][0].last_names[-1]
    before, after = source_parts(scheme.source, first)
    return f"{before}{{cite:t}}`{scheme.cite}`{after}."


def _sentence(text: str) -> str:
    return text if text.endswith((".", "…")) else f"{text}."


def _n_keys() -> int:
    from .drawn import N_KEYS

    return N_KEYS


def _summary(family: str) -> str:
    """The first paragraph of the module that holds a family."""
    return " ".join((importlib.import_module(f"attntut.init.{family}").__doc__ or "").split("\n\n")[0].split())


def setup(app: Sphinx) -> None:
    """Register the directive and its node."""
    app.add_node(scheme_entry, html=(_visit_entry, _depart_entry))
    app.add_directive("catalogue", CatalogueDirective)
