"""Faults that stand in the weights: equal, cloned, dead, or of the wrong scale for their place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from attntut.diagnose.faults.facts import Facts, Layer, Record, relative_error
from attntut.diagnose.faults.fault import (
    DEPTH,
    ERROR,
    LOGITS,
    NOTE,
    RANDOM,
    SIGMA,
    VARIANCE,
    WARNING,
    Hit,
    Remedy,
    fault,
    hit,
)


@fault(
    "heads identical",
    ERROR,
    quantity="different heads",
    source="symmetry: equal weights get equal gradients, so they stay equal",
    text="All heads compute one map, and unless the output matrix tells them apart they always will.",
    remedies=('Draw every matrix at random, from one generator: initialize_(model, "xavier_normal").',),
    chapter=RANDOM + "#the-argument",
    explains=("attention uniform", "query equals key", *DEPTH, *LOGITS),
)
def heads_identical(
    layer: Layer,
    facts: Facts,
    *,
    apart: Annotated[float, "of ln n, that rounding may set entropies apart"] = 1e-4,
) -> Iterator[Hit]:
    """The rows of :math:`W_q`, and of :math:`W_k` (unless all share one key), are equal in all heads, exactly, and not
    zero; and so are the entropies, but for rounding (biases, or positions head by head, may tell heads apart)."""
    roles = ("query",) if layer.of("key", "fan_out") == layer.d_head else ("query", "key")
    alike = all(layer.weights.get(role, {}).get("heads_alike") and not layer.is_zero(role) for role in roles)
    entropies = [row["entropy"] for row in layer.rows if not math.isnan(row["entropy"])]
    if alike and max(entropies, default=0.0) - min(entropies, default=0.0) <= apart * math.log(layer.n_key):
        yield hit(1, expected=len(layer.rows))


@fault(
    "query equals key",
    WARNING,
    quantity="mean weight of a token on itself",
    source="with one matrix in both places, a token scores itself by √d_head at Xavier's scale, others by about 1",
    text="W_q and W_k hold the same numbers: was the seed set inside the function that draws?",
    remedies=("Draw both from one generator. Sharing them on purpose is a choice; attention to oneself is its price.",),
    chapter=RANDOM + "#the-article-s-code-and-a-trap-in-it",
    explains=LOGITS,
)
def query_equals_key(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """The two matrices are equal, exactly, and fresh."""
    if layer.weights.get("query", {}).get("equals") == "key" and layer.is_drawn:
        yield hit(layer.mean("self"), expected=1 / layer.n_key)


def _are_adapters(facts: Facts) -> bool:
    """Whether all clones are adapters'."""
    return all(record["role"].startswith("adapter") for record in facts.weights if record.get("clone_of"))


def _is_learned(facts: Facts) -> bool:
    return any(layer.is_drawn is False for layer in facts.layers)


@fault(
    "layers cloned",
    WARNING,
    quantity="matrices equal to an earlier layer's",
    source="independent draws never agree; nn.TransformerEncoder copies one layer with deepcopy",
    text="{roles}: the same numbers as in {origin}.",
    remedies=(
        Remedy("Draw each adapter anew, and nothing else.", lambda facts, model: _are_adapters(facts)),
        Remedy(
            "Some layers are not as drawn: a deeper model may be copied from a shallower one on purpose.",
            lambda facts, model: not _are_adapters(facts) and _is_learned(facts),
        ),
        Remedy(
            'Draw each layer anew: initialize_(model, "xavier_uniform"). nn.Transformer does so by itself, '
            "nn.TransformerEncoder does not.",
            lambda facts, model: not _are_adapters(facts) and not _is_learned(facts),
        ),
    ),
    chapter=RANDOM + "#what-frameworks-do",
    over="model",
)
def layers_cloned(model: Facts, facts: Facts) -> Iterator[Hit]:
    """A matrix of any role, adapters too, equals an earlier one of its role, exactly; they share no memory, and it is
    not frozen (as that of a teacher is, which follows its student)."""
    clones: dict[tuple[str, int], list[Record]] = {}
    for record in facts.weights:
        if record.get("clone_of") and record.get("trainable") is not False:
            clones.setdefault(facts.layer_of(record), []).append(record)
    for (layer, order), records in clones.items():
        roles = ", ".join(dict.fromkeys(record["role"] for record in records))
        yield hit(len(records), expected=0, at=layer, order=order, roles=roles, origin=records[0]["clone_of"])


@fault(
    "adapters without gradient",
    ERROR,
    quantity="adapters that no gradient reaches",
    source="of y = B A x, ∇A = Bᵀ(∇y xᵀ) is 0 if B is, and ∇B = ∇y (A x)ᵀ is 0 if A is",
    text="{pairs}: {why}, so the gradient is zero at every step.",
    remedies=("Draw the matrix that comes first (A) as a linear layer's, and leave B at zero; both must be trained.",),
    chapter=RANDOM + "#one-zero-matrix-does-not-stay-zero",
    over="model",
)
def adapters_without_gradient(model: Facts, facts: Facts) -> Iterator[Hit]:
    """Both matrices of an adapter are zero, or the zero one is frozen: then no gradient ever moves it."""
    ends = [record for record in facts.weights if record["role"] == "adapter_out"]
    dead: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for first in (record for record in facts.weights if record["role"] == "adapter_in"):
        near = [end for end in ends if end["layer"] == first["layer"]]
        if not near:
            continue
        second = max(near, key=lambda end: _parts_in_common(end["parameter"], first["parameter"]))
        zero = [each for each in (first, second) if each["std"] == 0 and each["mean"] == 0]
        frozen = [each for each in zero if each.get("trainable") is False]
        if len(zero) == 2 or frozen:
            why = "both matrices are zero" if len(zero) == 2 else "the one that is zero is frozen"
            dead.setdefault(facts.layer_of(first), []).append((first["parameter"], why))
    for (layer, order), pairs in dead.items():
        names, why = ", ".join(name for name, _ in pairs), "; ".join(dict.fromkeys(why for _, why in pairs))
        yield hit(len(pairs), expected=0, at=layer, order=order, pairs=names, why=why)


def _parts_in_common(one: str, other: str) -> int:
    return sum(a == b for a, b in zip(one.split("."), other.split("."), strict=False))


@fault(
    "tied embedding drawn for one use",
    NOTE,
    quantity="std of the read-out's logits, for features of unit variance",
    source="σ√d; beyond √(2 ln V), V = {classes} classes, a handful of them holds all probability (as for n keys)",
    text="One matrix is table and read-out; σ = {std} gives tokens of that scale, but logits of {logits}, unless what "
    "comes in is scaled, which cannot be seen from the weights.",
    remedies=(
        "Draw it with σ = 1/√d = {fitting} and multiply the tokens by √d, or multiply the read-out's input by 1/√d, as "
        "T5 does.",
    ),
    chapter=SIGMA + "#which-standard-deviation-then",
    over="model",
)
def tied_for_one_use(
    model: Facts, facts: Facts, *, t5_within: Annotated[float, "a round margin around 1/√d_head"] = 0.1
) -> Iterator[Hit]:
    r"""A parameter is embedding and read-out, σ√d > √(2 ln V), no layer is known to be trained, and the read-out is not
    known to be scaled (as it is in T5, whose queries are drawn smaller than keys by 1/√d_head)."""
    over_t5 = [layer.std("query") * layer.d_head**0.5 / (layer.std("key") or math.nan) for layer in facts.layers]
    scaled = facts.traits.get("readout_scale") not in (None, 1) or all(abs(r - 1) < t5_within for r in over_t5)
    for record in facts.weights:
        if not record.get("reads_out") or scaled or _is_learned(facts):
            continue
        width, classes = record["shape"]
        logits, most = record["std"] * math.sqrt(width), math.sqrt(2 * math.log(classes))
        if logits > most:
            numbers = dict(std=record["std"], logits=logits, fitting=width**-0.5)
            words: Hit = {name: f"{number:.2g}" for name, number in numbers.items()} | dict(classes=classes)
            yield hit(logits, expected=1.0, threshold=most, at=record["layer"], **words)


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
    r"""Query, key and value lie in one tensor, and have the std :math:`\sqrt{2/(3\,\text{fan\_out} + \text{fan\_in})}`
    of its shape, which takes the three outputs for one: in all packed layers, and no scheme of the catalogue that looks
    at one projection accounts for all of them."""
    three = [layer.weights.get(role, {}) for role in ("query", "key", "value")]
    if not layer.is_drawn or not all(record.get("packed") for record in three):
        return
    packed = [record for record in facts.weights if record.get("packed")]
    other = facts.explained(packed) - {"xavier_packed", "fairseq", "torch_default"}
    if all(_is_packed_xavier(each, standard_errors) for each in packed) and not other:
        yield hit(three[0]["std"], expected=math.sqrt(2 / (three[0]["fan_in"] + three[0]["fan_out"])))


def _is_packed_xavier(record: Record, standard_errors: float) -> bool:
    predicted = math.sqrt(2 / (3 * record["fan_out"] + record["fan_in"]))
    return bool(abs(record["std"] / predicted - 1) <= standard_errors * relative_error(record))
