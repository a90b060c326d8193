"""Faults of weights that are equal, zero, or of the wrong scale for their place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from attntut.diagnose.faults.facts import Facts, Layer, Record
from attntut.diagnose.faults.fault import ERROR, NOTE, RANDOM, SIGMA, VARIANCE, WARNING, Hit, fault, hit

_LOGITS = ("logits too large", "logits too large (trained)", "entropy collapsed", "gradients vanishing")
_DEPTH = ("stream growing", "depth scaling absent", "rank collapsing")
_UNIFORM = ("attention uniform (zero weights)", "attention uniform (tokens alike)")


@fault(
    "heads identical",
    ERROR,
    quantity="different heads",
    source="symmetry: equal weights get equal gradients, so they stay equal",
    text="All heads compute one map, and unless the output matrix tells them apart they always will.",
    remedies=('Draw every matrix at random, from one generator: initialize_(model, "xavier_normal").',),
    chapter=RANDOM + "#the-argument",
    explains=(*_UNIFORM, "query equals key", *_DEPTH, *_LOGITS),
)
def heads_identical(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """The rows of :math:`W_q`, and of :math:`W_k`, are equal in all heads, exactly, and not zero."""
    if all(layer.weights.get(role, {}).get("heads_alike") and not layer.is_zero(role) for role in ("query", "key")):
        yield hit(1, expected=len(layer.rows))


Ulps = Annotated[float, "units in the last place by which rounding may set logits apart that should be equal"]
ROUNDING = 8.0


def _flat(layer: Layer, facts: Facts, ulps: float) -> tuple[list[str], Hit] | None:
    """The matrices that are zero, and the heads whose logits differ by no more than rounding."""
    most = {row["head"]: ulps * max(2.0**-23, facts.epsilon * row["logit_max"]) for row in layer.rows}
    flat = [row for row in layer.rows if layer.n_key > 1 and row["logit_std"] <= most[row["head"]]]
    if not flat:
        return None
    apart = 1 - (0.0 if math.isnan(layer.cosine) else min(layer.cosine, 1.0))
    usual = layer.fan_in("query") * 0.02**2 * math.sqrt(apart)
    zero = [f"W_{role[0]}" for role in ("query", "key") if layer.is_zero(role)]
    lowest = min(row["logit_std"] for row in flat)
    return zero, hit(lowest, expected=usual, threshold=most[flat[0]["head"]], heads=layer.heads(flat))


_FLAT_SOURCE = "8 units in the last place, for rounding; N(0, 0.02²) at this width would give d·σ²·√(1 − ρ)"


@fault(
    "attention uniform (zero weights)",
    WARNING,
    quantity="std of the logits in a row",
    source=_FLAT_SOURCE,
    text="{zero} zero: every query weighs all keys alike. {remedy}",
    chapter=RANDOM + "#the-argument",
    explains=("gradients vanishing", "rank collapsing"),
)
def zero_weights(layer: Layer, facts: Facts, *, ulps: Ulps = ROUNDING) -> Iterator[Hit]:
    r"""Row-wise std of the logits :math:`\le 8 \max(2^{-23}, \epsilon\,|s|_\text{max})`, and a matrix is zero."""
    zero, found = _flat(layer, facts, ulps) or ([], None)
    if found and zero:
        both = len(zero) == 2
        remedy = "The gradient of the other matrix is zero until one step has freed it; μP starts like this on purpose."
        if both:
            remedy = "Each holds the other's gradient at zero, for ever: draw both."
        words = dict(zero=f"{' and '.join(zero)} {'are' if both else 'is'}", remedy=remedy)
        yield found | dict(severity=ERROR if both else "", words=words)


@fault(
    "attention uniform (tokens alike)",
    WARNING,
    quantity="std of the logits in a row",
    source=_FLAT_SOURCE,
    text="Every query weighs all keys alike, though its matrix is not zero. Are all the tokens alike?",
    remedies=("Look at what comes into this layer.",),
    chapter=SIGMA + "#the-prediction-the-scale-of-the-logits",
    explains=("gradients vanishing",),
)
def tokens_alike(layer: Layer, facts: Facts, *, ulps: Ulps = ROUNDING) -> Iterator[Hit]:
    r"""Row-wise std of the logits :math:`\le 8 \max(2^{-23}, \epsilon\,|s|_\text{max})`, and no matrix is zero."""
    zero, found = _flat(layer, facts, ulps) or ([], None)
    if found and not zero:
        yield found


@fault(
    "query equals key",
    WARNING,
    quantity="mean weight of a token on itself",
    source="with one matrix in both places, a token scores itself by √d_head at Xavier's scale, others by about 1",
    text="W_q and W_k hold the same numbers: was the seed set inside the function that draws?",
    remedies=("Draw both from one generator. Sharing them on purpose is a choice; attention to oneself is its price.",),
    chapter=RANDOM + "#the-article-s-code-and-a-trap-in-it",
    explains=_LOGITS,
)
def query_equals_key(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """The two matrices are equal, exactly, and fresh."""
    if layer.weights.get("query", {}).get("equals") == "key" and layer.is_drawn:
        yield hit(layer.mean("self"), expected=1 / layer.n_key)


@fault(
    "layers cloned",
    WARNING,
    quantity="matrices equal to an earlier layer's",
    source="independent draws never agree; nn.TransformerEncoder copies one layer with deepcopy",
    text="{roles}: the same numbers as in {origin}.",
    remedies=(
        'Draw each layer anew: initialize_(model, "xavier_uniform"). nn.Transformer does so by itself, '
        "nn.TransformerEncoder does not.",
    ),
    chapter=RANDOM + "#what-frameworks-do",
)
def layers_cloned(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """A matrix equals an earlier layer's, exactly, in other memory."""
    origins = {role: record["clone_of"] for role, record in layer.weights.items() if record.get("clone_of")}
    if origins:
        yield hit(len(origins), expected=0, roles=", ".join(origins), origin=next(iter(origins.values())))


@fault(
    "packed query-key-value scale",
    NOTE,
    quantity="std of the query matrix",
    source="√(2/(fan_in + fan_out)) of one projection; the packed shape (3d, d) gives √(2/(4d)), √2 too small",
    text="The logits have half the standard deviation that Xavier's rule means them to have. It is on the gentle side, "
    "and every nn.MultiheadAttention starts so;",
    remedies=('initialize_(model, "xavier_uniform") takes each projection by its own fans.',),
    chapter=VARIANCE + "#the-packed-trap",
)
def packed_scale(
    layer: Layer, facts: Facts, *, standard_errors: Annotated[float, "one draw in 16 000 is farther off"] = 4.0
) -> Iterator[Hit]:
    r"""Query, key and value lie in one tensor, and have the std :math:`\sqrt{2/(3\,\text{fan_out} + \text{fan_in})}`
    of its shape, which takes the three outputs for one."""
    three = [layer.weights.get(role, {}) for role in ("query", "key", "value")]
    if layer.is_drawn and all(each.get("packed") and _is_packed_xavier(each, standard_errors) for each in three):
        yield hit(three[0]["std"], expected=math.sqrt(2 / (three[0]["fan_in"] + three[0]["fan_out"])))


def _is_packed_xavier(record: Record, standard_errors: float) -> bool:
    predicted = math.sqrt(2 / (3 * record["fan_out"] + record["fan_in"]))
    error = predicted / math.sqrt(2 * record["fan_in"] * record["fan_out"])
    return bool(abs(record["std"] - predicted) <= standard_errors * error)
