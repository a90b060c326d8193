"""Faults of the logits: all alike, too large, or all on one key."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any

from attntut.diagnose.faults.facts import Facts, Layer
from attntut.diagnose.faults.fault import ERROR, NOTE, RANDOM, SIGMA, STEPS, WARNING, Hit, Remedy, fault, hit
from attntut.evidence import number

Ulps = Annotated[float, "units in the last place of float32 by which sums of products may differ"]
ROUNDING = 8.0
TOKENS_DIFFER = 1e-3
"""1 − cosine from which on tokens are not alike, whatever rounding does (to bfloat16, 2⁻⁸ of each number)."""
SINK_SHARE = 0.5
"""Share of the weight on one place from which on it is a sink."""


def _flat(layer: Layer, facts: Facts, ulps: float) -> Hit | None:
    """The heads whose logits differ by no more than rounding."""
    most = {
        row["head"]: max(ulps * 2**-23 * max(1.0, row["logit_max"]), facts.epsilon / 2 * row["logit_max"])
        for row in layer.rows
    }
    flat = [row for row in layer.rows if row["entropy"] > 0 and row["logit_std"] <= most[row["head"]]]
    if not flat:
        return None
    apart = 1 - (0.0 if math.isnan(layer.cosine) else min(layer.cosine, 1.0))
    usual = layer.of("query", "fan_in") * 0.02**2 * math.sqrt(apart)
    lowest = min(row["logit_std"] for row in flat)
    return hit(lowest, expected=usual, threshold=most[flat[0]["head"]], heads=layer.heads(flat))


_UNIFORM: dict[str, Any] = dict(
    quantity="std of the logits in a row",
    source="sums in float32 differ by 8 units in the last place, and rounding to fewer digits moves a logit by half a "
    "unit; N(0, 0.02²) at this width would give d·σ²·√(1 − ρ)",
)


@fault(
    "attention uniform (zero weights)",
    WARNING,
    **_UNIFORM,
    text="{zero} zero: every query weighs all keys alike. {remedy}",
    chapter=RANDOM + "#the-argument",
    explains=("gradients vanishing", "rank collapsing", "no gradient (zero weights)"),
)
def zero_weights(layer: Layer, facts: Facts, *, ulps: Ulps = ROUNDING) -> Iterator[Hit]:
    r"""Several keys are seen, the row-wise std of the logits is
    :math:`\le \max(8 \cdot 2^{-23} \max(1, \lvert s\rvert_\text{max}), \frac12\epsilon\lvert s\rvert_\text{max})`, and
    :math:`W_q` or :math:`W_k` is zero."""
    zero = [f"W_{role[0]}" for role in ("query", "key") if layer.is_zero(role)]
    if zero and (found := _flat(layer, facts, ulps)):
        severity, verb, remedy = ERROR, "are", "Each holds the other's gradient at zero, for ever: draw both."
        if len(zero) == 1:
            severity, verb = "", "is"
            remedy = "The other's gradient is zero until one step has freed it; μP starts like this on purpose."
        yield found | dict(severity=severity, words=dict(zero=f"{' and '.join(zero)} {verb}", remedy=remedy))


@fault(
    "attention uniform (tokens alike)",
    WARNING,
    **_UNIFORM,
    text="Every query weighs all keys alike, {why}",
    chapter=SIGMA + "#the-prediction-the-scale-of-the-logits",
    explains=("gradients vanishing",),
)
def tokens_alike(layer: Layer, facts: Facts, *, ulps: Ulps = ROUNDING) -> Iterator[Hit]:
    """The same logits as in "attention uniform (zero weights)", and neither matrix is known to be zero."""
    unread = [f"W_{role[0]}" for role in ("query", "key") if role not in layer.weights]
    if not (layer.is_zero("query") or layer.is_zero("key")) and (found := _flat(layer, facts, ulps)):
        alike = "Are all the tokens alike, or zero? Look at what comes into this layer."
        if not layer.is_first and layer.cosine < 1 - TOKENS_DIFFER:
            alike = (
                f"The tokens differ (mean cosine {number(layer.cosine, digits=2)}): does a gain or a temperature of "
                "zero multiply queries, keys or logits?"
            )
        why = f"though its matrix is not zero. {alike}"
        if unread:
            why = f"though whether {' or '.join(unread)} is zero could not be read. {alike}"
        elif layer.of("query", "fan_in") * layer.std("query") * layer.std("key") <= found["threshold"]:
            stds = " and ".join(number(layer.std(role), digits=2) for role in ("query", "key"))
            why = f"because W_q and W_k are so small (std {stds}): draw them again."
        yield found | dict(words=dict(why=why))


def _large(layer: Layer, statistic: str, threshold: float, expected: float) -> Hit | None:
    """The heads whose statistic is above a threshold."""
    ill = [row for row in layer.rows if row[statistic] > threshold]
    if not ill:
        return None
    value = max(row[statistic] for row in ill)
    largest, excess = number(layer.mean("max_weight")), number(value, digits=2)
    found = hit(value, expected=expected, threshold=threshold, heads=layer.heads(ill))
    return found | dict(words=dict(n=layer.n_key, largest=largest, excess=excess))


def _scale(facts: Facts, layer: Layer) -> float | None:
    """What the products of queries and keys are multiplied with; None if that is unknown."""
    seen = layer.rows[0].get("scale", math.nan)
    return facts.traits.get("scale") if math.isnan(seen) else seen


def _usual(facts: Facts, layer: Layer) -> float:
    """Std of the logits of independent tokens of unit variance (by 1/√d_head, where the scale is unknown)."""
    root = layer.d_head**-0.5
    return abs(_scale(facts, layer) or root) / root * layer.gain("query") * layer.gain("key")


def _cause(facts: Facts, layer: Layer) -> str:
    """What makes the logits of a fresh layer large: the norms of queries and keys, the scale, the weights, or else."""
    scale, normed = _scale(facts, layer), facts.traits.get("qk_norm")
    if scale is not None and abs(scale) > 1.01 * layer.d_head**-0.5:
        return "norms and scale" if normed else "scale"
    usual = min(math.sqrt(2 * math.log(layer.n_key)), layer.mean("logit_std") / 2)
    return "norms" if normed else "else" if _usual(facts, layer) < usual else "weights"


def _remedy(cause: str, text: str) -> Remedy:
    return Remedy(text, lambda facts, layer: _cause(facts, layer) == cause)


GAINS_MOVED = 0.1
"""Share of the std of W_q and W_k from which on a change of the norms' gains says that these were learned, too."""


def _is_fresh(layer: Layer, facts: Facts) -> bool:
    """Whether the logits are those of a draw.

    Nothing in W_q and W_k is seen to be learned; and either their size alone makes the logits twice too large, or the
    norms' gains, whose entries begin alike and move about as far as those of matrices, have hardly moved.
    """
    are_large = _usual(facts, layer) > 2 * math.sqrt(2 * math.log(max(layer.n_key, 2)))
    have_moved = facts.gain_std > GAINS_MOVED * min(layer.std("query"), layer.std("key"))
    return layer.is_drawn is True and (are_large or not have_moved)


_SHARP = ("entropy collapsed", "gradients vanishing", "attention sink", "soft-cap reached")


@fault(
    "logits too large",
    WARNING,
    quantity="std of the logits in a row",
    source="√(2 ln n), n = {n} keys: beyond it a handful of keys holds everything, however many there are",
    text="The largest weight of a row is {largest} on average, and the gradient dies with the others.",
    remedies=(
        _remedy(
            "norms and scale",
            "Queries and keys are normalized, so the size of their matrices changes nothing. Multiply the logits by "
            "1/√d_head = {root} (now: {scale}), or lower the gains of the two norms.",
        ),
        _remedy(
            "norms",
            "Queries and keys are normalized, so the size of their matrices changes nothing. Lower the gains of the "
            "two norms, what else multiplies queries or keys, or a bias that is added.",
        ),
        _remedy(
            "scale",
            "The logits are multiplied by {scale}: with 1/√d_head = {root} they would have the scale that most schemes "
            "count on. Dividing W_q by {excess} does the same, unless queries and keys are normalized.",
        ),
        _remedy(
            "else",
            "Tokens of unit variance would get {usual} from W_q and W_k, times {scale}: are the tokens larger (a "
            "norm mends that), or is a bias added that is?",
        ),
        _remedy(
            "weights",
            'Divide W_q by {excess}, or draw both with std 1/√d: initialize_(model, "xavier_normal"). '
            "A temperature or QK-norm does the same in the forward pass.",
        ),
    ),
    chapter=SIGMA + "#the-prediction-the-scale-of-the-logits",
    explains=_SHARP,
)
def logits_too_large(
    layer: Layer,
    facts: Facts,
    *,
    keys_at_least: Annotated[int, "with fewer, √(2 ln n) is too close to the std 1 of a good draw"] = 4,
    largest: Annotated[
        float, "mean largest weight of 2048 Gaussian logits of std √(2 ln n) (simulated); fewer: more"
    ] = 0.375,
) -> Iterator[Hit]:
    r"""Fresh: row-wise std :math:`> \sqrt{2 \ln n}` (RMS over the heads, as a head's own scatters by
    :math:`1/\sqrt{2 d_h}`), the zero of :math:`\ln n - \sigma^2/2`; beyond it
    :math:`\sum_j p_j^2 = 1 - \sqrt{2 \ln n}/\sigma` does not fall with n (Derrida 1981). Where :math:`W_q` and
    :math:`W_k` cannot have made them (tokens of unit variance would get less than half), they need not be Gaussian (a
    penalty on distance is not), and the mean largest weight must be what it is for such: 0.375. Where the gains of
    norms have moved by a tenth of the std of these matrices, logits may be learned, unless one is above 256, or the
    matrices alone would make their std twice the threshold."""
    beyond = any(row["logit_max"] > BFLOAT16_NAT for row in layer.rows)
    if not (layer.is_drawn and (beyond or _is_fresh(layer, facts))) or layer.n_key < keys_at_least:
        return
    freezing = math.sqrt(2 * math.log(layer.n_key))
    known = [row["logit_std"] for row in layer.rows if not math.isnan(row["logit_std"])]
    together = math.hypot(*known) > freezing * math.sqrt(len(known))
    spread = _cause(facts, layer) == "else" and layer.mean("max_weight") < largest
    if together and not spread and (found := _large(layer, "logit_std", freezing, 1.0)):
        factor, root = _scale(facts, layer), number(layer.d_head**-0.5)
        scale = f"1/√d_head = {root} (if that is their scale: it is unknown)" if factor is None else number(factor)
        found["words"] |= dict(root=root, scale=scale, usual=number(_usual(facts, layer), digits=2))
        yield found


_TRAINED: dict[str, Any] = dict(
    quantity="largest logit",
    source="bfloat16 has 8 bits: from 256 on its numbers are 2 apart, and rounding changes a weight by a factor e",
    chapter=STEPS + "#the-knob-behind-the-root-temperature",
    explains=_SHARP,
)
Half = Annotated[float, "bfloat16 numbers are 2 apart from here on"]
BFLOAT16_NAT = 256.0


def _beyond_half_precision(layer: Layer, drawn: bool | None, largest: float) -> Iterator[Hit]:
    if layer.is_drawn is drawn and (found := _large(layer, "logit_max", largest, math.nan)):
        yield found


@fault(
    "logits too large (trained)",
    WARNING,
    text="The largest weight of a row is {largest} on average. W_q or W_k has a direction that no random matrix has: "
    "it seems that the logits have grown in training;",
    remedies=("lower the learning rate, or add QK-norm or weight decay on W_q and W_k.",),
    **_TRAINED,
)
def trained_logits_too_large(layer: Layer, facts: Facts, *, largest: Half = BFLOAT16_NAT) -> Iterator[Hit]:
    """Not fresh: a logit above 256."""
    return _beyond_half_precision(layer, False, largest)


@fault(
    "logits too large (weights unknown)",
    WARNING,
    text="The largest weight of a row is {largest} on average. Whether the logits were drawn so large or have grown in "
    "training is unknown, because the weights could not be read.",
    remedies=(
        "Before training, look at the std of W_q and W_k (1/√d keeps logits near 1; memory that was never drawn holds "
        "anything); in training, lower the learning rate, or add QK-norm.",
    ),
    **_TRAINED,
)
def unknown_logits_too_large(layer: Layer, facts: Facts, *, largest: Half = BFLOAT16_NAT) -> Iterator[Hit]:
    """Unknown whether fresh: a logit above 256."""
    return _beyond_half_precision(layer, None, largest)


@fault(
    "entropy collapsed",
    WARNING,
    quantity="share of rows with a weight above 0.99",
    source="the Jacobian diag(p) − ppᵀ of such a row is below 2·0.99·0.01 ≈ 0.02: such queries hardly learn",
    text="The entropy is {entropy} of {most} nats.",
    remedies=(
        "Check the scale of the inputs and of W_q and W_k; in training, try a lower learning rate, warm-up or QK-norm.",
    ),
    chapter=STEPS + "#saturation-a-few-rows-decide",
    explains=_SHARP[1:],
)
def entropy_collapsed(
    layer: Layer, facts: Facts, *, share_of_rows: Annotated[float, "most of them: a round margin"] = 0.5
) -> Iterator[Hit]:
    """Most rows give > 0.99 to one key, where the softmax's Jacobian is below 0.02: in a fresh layer, or on average
    over the model (one sharp layer may be what a task needs). What most of the weight of a layer rests on must not be
    columns that belong to no key."""
    shares = [each.mean("saturated") for each in facts.layers if each.n_key > 1]
    known = [share for share in shares if not math.isnan(share)]
    everywhere = bool(known) and math.fsum(known) / len(known) > share_of_rows
    share = layer.mean("saturated") if layer.n_key > 1 and not layer.mean("sink") > SINK_SHARE else 0.0
    if share > share_of_rows and (_is_fresh(layer, facts) or everywhere):
        entropy, most = number(layer.mean("entropy")), number(math.log(layer.n_key))
        yield hit(share, expected=0.0, threshold=share_of_rows, entropy=entropy, most=most)


@fault(
    "soft-cap reached",
    NOTE,
    quantity="largest logit over the soft-cap",
    source="c·tanh(s/c) passes 1 − (s/c)² of the gradient, s the capped logit: less than a tenth from √0.9 = 0.95 on",
    text="The soft-cap of {cap} holds the largest logits down, and little of their gradient comes through.",
    remedies=("QK-norm, weight decay on W_q and W_k or a lower learning rate keep the logits smaller.",),
    chapter=STEPS + "#the-knob-behind-the-root-temperature",
)
def soft_cap_reached(
    layer: Layer, facts: Facts, *, share_of_cap: Annotated[float, "√0.9: a tenth of the gradient is left"] = 0.9**0.5
) -> Iterator[Hit]:
    """The largest logit is beyond 0.95 of a soft-cap."""
    cap = facts.traits.get("soft_cap")
    if cap and (found := _large(layer, "logit_max", share_of_cap * cap, math.nan)):
        share = found["value"] / cap
        yield hit(share, expected=0.0, threshold=share_of_cap, heads=found["heads"], cap=f"{cap:g}")


@fault(
    "attention sink",
    NOTE,
    quantity="mean weight on {where}",
    source="more than all other keys together; without a reason, a token has 1/n of the weight (H_n/n if causal)",
    text="Most of the attention goes to one place that every query sees. Trained heads often rest there. It is "
    "no fault, but matters for quantization, caches and pruning.",
    remedies=(
        Remedy(
            "An output gate, or an extra logit, makes it unnecessary.",
            lambda facts, layer: not facts.traits.get("output_gate") and not layer.mean("sink") > 0,
        ),
        Remedy(
            "But this layer is fresh: the extra logit began too large, and little comes through. Let it begin near 0.",
            lambda facts, layer: layer.is_drawn is True,
        ),
    ),
    chapter=STEPS + "#saturation-a-few-rows-decide",
)
def attention_sink(
    layer: Layer,
    facts: Facts,
    *,
    share_of_weight: Annotated[float, "more than all other keys together: a round margin"] = SINK_SHARE,
    keys_at_least: Annotated[int, "a causal row of 8 or fewer gives its first key 0.34 or more by itself"] = 8,
) -> Iterator[Hit]:
    """Self-attention over more than 8 keys: most of the weight lies on columns that belong to no key or, in a layer not
    known to be fresh, on the first token."""
    if layer.kind != "self" or layer.n_key <= keys_at_least:
        return
    places = (("sink", "columns that belong to no key"), ("first", "the first token"))
    for statistic, where in places[:1] if layer.is_drawn else places:
        if (share := layer.mean(statistic)) > share_of_weight:
            heads = layer.heads([row for row in layer.rows if row.get(statistic, math.nan) > share_of_weight])
            yield hit(share, expected=1 / layer.n_key, threshold=share_of_weight, heads=heads, where=where)
            return
