"""The catalogue of initialization schemes: the output of the cells of ``book/catalogue.md``.

The cells read the registry, draw a small model from every scheme (:mod:`bookext.drawn`), and show formula, source,
requirements, and predictions beside measurements. A measurement that is not what was predicted is an error of its cell;
a formula that is no LaTeX, or a citation that the bibliography does not have, is a warning of the build.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from IPython.display import HTML, Markdown

from attntut.evidence import number
from attntut.init import Scheme, schemes
from attntut.init.registry import FAMILIES
from attntut.init.requirements import REQUIREMENTS

from . import entries
from .drawn import N_KEYS, Drawn, draw, gaussian_entropy

CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "notebooks/05-why-at-random": ("zeros", "constant", "zero_query", "zero_output"),
    "notebooks/06-the-gaussian": ("normal", "bert", "gpt2_released", "xavier_packed", "torch_default"),
    "notebooks/07-keeping-the-variance": ("plain", "fan"),
    "notebooks/08-structured-weights": ("structured",),
    "notebooks/09-depth": ("depth", "zero_output", "dyt"),
    "notebooks/10-width": ("width",),
    "notebooks/11-from-data-or-another-model": ("data",),
    "notebooks/15-where-the-norm-goes": ("deepnorm", "dyt", "ln_scale"),
}
"""Page to the names of schemes, or of whole families, that it treats."""

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

# The picture that all entries share: entropy against the spread of the logits, on a logarithmic axis.
CURVE = """\
<svg class="entropy-symbol" aria-hidden="true" width="0" height="0"><symbol id="entropy-curve">
<g fill="none" stroke="currentColor"><path d="M26 8V72H230" opacity=".55"/>
<polyline points="{{ points }}" stroke-width="1.5"/></g>
<g fill="currentColor" font-size="12" font-family="sans-serif">
{% for std in (0.01, 0.1, 1, 10) %}
<path d="M{{ x(std) }} 72v4" stroke="currentColor" opacity=".55"/>
<text x="{{ x(std) }}" y="88" text-anchor="middle">{{ "%g" | format(std) }}</text>
{% endfor %}
<text x="24" y="16" text-anchor="end">ln n</text><text x="20" y="76" text-anchor="end">0</text></g></symbol></svg>
"""

DRAWN = """\
<svg class="entropy" viewBox="0 0 240 92" role="img" aria-label="{{ says }}"><use href="#entropy-curve"/>
<g fill="none" stroke="currentColor" stroke-width="1.5"><circle cx="{{ x(logit_std.predicted) }}" \
cy="{{ y(entropy.predicted) }}" r="6"/></g>
<circle class="dot" cx="{{ x(logit_std.measured) }}" cy="{{ y(entropy.measured) }}" r="3.2"/></svg>
<table class="entry-numbers">
<thead><tr><th scope="col">std of</th><th scope="col">predicted</th><th scope="col">measured</th></tr></thead>
<tbody>
{% for label, pair in rows.items() %}
<tr><th scope="row">{{ label }}</th><td>{{ digits(pair.predicted) }}</td><td>{{ digits(pair.measured) }}</td></tr>
{% endfor %}
</tbody></table>
"""


def digits(value: float | None) -> str:
    """Three significant digits, zeros included.

    >>> digits(0.125), digits(3.7), digits(0.0), digits(0.00012), digits(None)
    ('0.125', '3.70', '0', '0.00012', 'the batch’s')
    """
    if value is None:
        return "the batch’s"
    return f"{value:#.3g}" if 1e-3 <= abs(value) < 1e3 else number(value).replace("-", "−")


def x(logit_std: float) -> str:
    """The place of a spread of logits on the horizontal axis of the picture."""
    return f"{32 + 64 * (min(1.0, max(-2.0, math.log10(logit_std or 1e-9))) + 2):.1f}"


def y(entropy: float) -> str:
    """The place of an entropy on the vertical axis."""
    return f"{72 - 60 * entropy / math.log(N_KEYS):.1f}"


entries.jinja.globals |= dict(x=x, y=y, digits=digits)


def head() -> HTML:
    """The form, the number of schemes, and the curve that the entries refer to."""
    needs = [(scheme, scheme.requires) for scheme in schemes().values()]
    form = entries.form(needs, FAMILIES, REQUIREMENTS, label="Requirement", key="needs", noun="schemes")
    points = " ".join(f"{x(std)},{y(gaussian_entropy(std))}" for std in (10 ** (i / 10) for i in range(-20, 11)))
    return HTML(form + entries.jinja.from_string(CURVE).render(points=points))


def family(name: str) -> Markdown:
    """The entries of a family."""
    return Markdown("\n".join(entry(scheme) for scheme in schemes().values() if scheme.family == name))


def entry(scheme: Scheme) -> str:
    """What the page says of a scheme.

    Raises:
        ArithmeticError: a model drawn from it is not as predicted.
    """
    drawn = draw(scheme)
    if drawn.problems:
        raise ArithmeticError(f"{scheme.name} does not keep its promise: {'; '.join(drawn.problems)}")
    rows = {ROLES[role]: drawn.std[role] for role in ROLES} | {
        "logits": drawn.logit_std,
        "entropy, nats": drawn.entropy,
    }
    measured = dict(says=_picture(drawn), rows=rows, logit_std=drawn.logit_std, entropy=drawn.entropy)
    picture = entries.jinja.from_string(DRAWN).render(measured)
    return entries.entry(scheme, "needs", scheme.requires, facts(scheme), picture)


def _picture(drawn: Drawn) -> str:
    share = drawn.entropy.measured / math.log(N_KEYS)
    words = ": every token sees nearly all alike" if share > 0.95 else ": tokens choose among a few" * (share < 0.75)
    return f"Spread of the logits {digits(drawn.logit_std.measured)}, entropy {share:.0%} of ln n{words}"


def facts(scheme: Scheme) -> dict[str, str]:
    """What stands in an entry's list, in Markdown."""
    return {
        "Needs": entries.needs(scheme),
        "Source": entries.source(scheme),
        "Options": entries.options(scheme),
        "Chapter": entries.chapters(scheme, CHAPTERS),
        "Code": entries.code(scheme),
    }
