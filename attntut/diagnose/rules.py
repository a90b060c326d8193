"""What can be wrong with one attention layer, a rule a fault; their table is in :mod:`attntut.diagnose.findings`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from attntut.diagnose.facts import Facts, Layer, Record
from attntut.diagnose.finding import ERROR, Finding, found
from attntut.evidence import number

Rule = Callable[[Facts], Iterator[Finding]]

ROUNDING = 8.0
"""Units in the last place by which logits that should be equal may differ."""
FEW_KEYS = 4
"""With fewer keys, √(2 ln n) is too close to the standard deviation 1 of a good draw to tell the two apart."""
BFLOAT16_NAT = 256.0
"""From here on bfloat16 numbers are 2 apart, so that rounding moves a logit by up to 1."""
MOST = 0.5
MARGIN = 10.0
"""In 36 healthy settings (3 norms, 4 scales, 3 tasks) of 4 layers, no ratio was below a quarter of theory's."""


def not_finite(facts: Facts) -> Iterator[Finding]:
    """NaN or infinity, in a layer's weights or logits or in what its block hands on."""
    for layer in facts.layers:
        ill = [role for role, record in layer.weights.items() if not math.isfinite(record["std"])]
        count = layer.total("non_finite")
        if count or ill:
            heads = _some([row for row in layer.rows if row.get("non_finite")], layer)
            where = (
                f"It is in the weights: {', '.join(ill)}." if ill else "It comes in with the tokens, or is made here."
            )
            yield found(
                "not finite",
                layer.name,
                count or len(ill),
                expected=0,
                threshold=0,
                order=layer.order,
                heads=heads,
                words={"where": where},
            )
        block = next((entry for entry in facts.stream if entry["layer"] == layer.block), None)
        is_last = all(other.block != layer.block for other in facts.layers[layer.order + 1 :])
        if block is not None and is_last and not math.isfinite(block["rms"]):
            where = "It is in what this block hands on."
            yield found(
                "not finite", layer.block, 1, expected=0, threshold=0, order=layer.order, words={"where": where}
            )


def mask_hides_everything(facts: Facts) -> Iterator[Finding]:
    """No query of a layer may see a key; or some may not, and NaN follows."""
    ill = min((finding.order for finding in not_finite(facts)), default=-1)
    for layer in facts.layers:
        masked = layer.total("masked_rows")
        nobody = all(math.isnan(row["entropy"]) for row in layer.rows)
        if masked and (nobody or layer.order <= ill):
            yield found("mask hides everything", layer.name, masked, expected=0, threshold=0, order=layer.order)


def heads_identical(facts: Facts) -> Iterator[Finding]:
    """Equal query and key matrices in all heads of a layer."""
    for layer in facts.layers:
        query, key = (layer.weights.get(role, {}) for role in ("query", "key"))
        n_heads = len(layer.rows)
        if query.get("heads_alike") and key.get("heads_alike") and not _is_zero(query) and not _is_zero(key):
            yield found("heads identical", layer.name, 1, expected=n_heads, threshold=n_heads, order=layer.order)


def attention_uniform(facts: Facts) -> Iterator[Finding]:
    """Logits that do not differ by more than rounding."""
    for layer in facts.layers:
        flat = [row for row in layer.rows if layer.n_key > 1 and row["logit_std"] <= _rounding(row, facts)]
        if not flat:
            continue
        zero = [f"W_{role[0]}" for role in ("query", "key") if _is_zero(layer.weights.get(role, {}))]
        both = len(zero) == 2
        remedy = "The gradient of the other matrix is zero until one step has freed it; μP starts like this on purpose."
        if both:
            remedy = "Each holds the other's gradient at zero, for ever: draw both."
        yield found(
            f"attention uniform ({'zero weights' if zero else 'tokens alike'})",
            layer.name,
            min(row["logit_std"] for row in flat),
            expected=_ordinary_std(layer),
            threshold=_rounding(flat[0], facts),
            order=layer.order,
            severity=ERROR if both else None,
            heads=_some(flat, layer),
            words={"zero": f"{' and '.join(zero)} {'are' if both else 'is'}", "remedy": remedy},
        )


def query_equals_key(facts: Facts) -> Iterator[Finding]:
    """One matrix in two places: a seed set inside the function that draws."""
    for layer in facts.layers:
        if layer.weights.get("query", {}).get("equals") == "key" and layer.is_drawn:
            fair = 1 / layer.n_key
            yield found(
                "query equals key", layer.name, layer.mean("self"), expected=fair, threshold=fair, order=layer.order
            )


def layers_cloned(facts: Facts) -> Iterator[Finding]:
    """Weights equal to those of an earlier layer, in other memory."""
    for layer in facts.layers:
        origins = {role: record["clone_of"] for role, record in layer.weights.items() if record.get("clone_of")}
        if origins:
            words = dict(roles=f"{', '.join(origins)}: the same numbers", origin=next(iter(origins.values())))
            yield found(
                "layers cloned", layer.name, len(origins), expected=0, threshold=0, order=layer.order, words=words
            )


def logits_too_large(facts: Facts) -> Iterator[Finding]:
    """Fresh, beyond the freezing point √(2 ln n); trained, beyond what half precision can tell apart."""
    for layer in facts.layers:
        if layer.is_drawn and layer.n_key < FEW_KEYS:
            continue
        statistic, threshold, expected = ("logit_max", BFLOAT16_NAT, math.nan)
        if layer.is_drawn:
            statistic, threshold, expected = ("logit_std", math.sqrt(2 * math.log(layer.n_key)), 1.0)
        ill = [row for row in layer.rows if row[statistic] > threshold]
        together = _rms([row[statistic] for row in layer.rows])  # a head's own std scatters by 1/√(2·d_head)
        if ill and (together > threshold or not layer.is_drawn):
            value = max(row[statistic] for row in ill)
            yield found(
                "logits too large" + ("" if layer.is_drawn else " (trained)"),
                layer.name,
                value,
                expected=expected,
                threshold=threshold,
                order=layer.order,
                heads=_some(ill, layer),
                words={
                    "n": layer.n_key,
                    "largest": number(layer.mean("max_weight")),
                    "excess": number(value, digits=2),
                },
            )


def entropy_collapsed(facts: Facts) -> Iterator[Finding]:
    """Most rows frozen: in a fresh layer, or in a whole trained model (one sharp layer may be what a task needs)."""
    shares = {layer.order: layer.mean("saturated") for layer in facts.layers if layer.n_key > 1}
    known = [share for share in shares.values() if not math.isnan(share)]
    everywhere = bool(known) and math.fsum(known) / len(known) > MOST
    for layer in facts.layers:
        share = shares.get(layer.order, 0.0)
        if share > MOST and (layer.is_drawn or everywhere):
            words = dict(entropy=number(layer.mean("entropy")), most=number(math.log(layer.n_key)))
            yield found(
                "entropy collapsed", layer.name, share, expected=0.0, threshold=MOST, order=layer.order, words=words
            )


def gradients_vanishing(facts: Facts) -> Iterator[Finding]:
    """Gradients of query or key exactly zero; or, in a fresh layer, far below theory's ratio to the value's."""
    for layer in facts.layers:
        for role, partner in (("query", "key"), ("key", "query")):
            ratio = _measured_ratio(layer, role)
            if math.isnan(ratio) or layer.n_key < 2:
                continue
            expected = _gradient_ratio(layer, partner)
            fresh = layer.is_drawn and layer.kind == "self"
            if ratio == 0 or (fresh and ratio < expected / MARGIN):
                yield found(
                    "gradients vanishing",
                    layer.name,
                    ratio,
                    expected=expected,
                    threshold=expected / MARGIN,
                    order=layer.order,
                    severity=ERROR if ratio == 0 else None,
                    words={"matrix": f"W_{role[0]}"},
                )
                break


def packed_scale(facts: Facts) -> Iterator[Finding]:
    """Xavier's rule on a packed query-key-value matrix, which takes the three outputs for one."""
    for layer in facts.layers:
        three = [layer.weights.get(role, {}) for role in ("query", "key", "value")]
        if layer.is_drawn and all(record.get("packed") and _is_packed_xavier(record) for record in three):
            own = math.sqrt(2 / (three[0]["fan_in"] + three[0]["fan_out"]))
            yield found(
                "packed query-key-value scale",
                layer.name,
                three[0]["std"],
                expected=own,
                threshold=own,
                order=layer.order,
            )


LAYER_RULES: tuple[Rule, ...] = (
    not_finite,
    mask_hides_everything,
    heads_identical,
    attention_uniform,
    query_equals_key,
    layers_cloned,
    logits_too_large,
    entropy_collapsed,
    gradients_vanishing,
    packed_scale,
)


def _rms(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.sqrt(math.fsum(value**2 for value in known) / len(known)) if known else math.nan


def _is_zero(record: Record) -> bool:
    return bool(record) and record["std"] == 0 and record["mean"] == 0


def _rounding(row: Record, facts: Facts) -> float:
    """What rounding makes of logits that should be equal."""
    return ROUNDING * max(2.0**-23, facts.epsilon * row["logit_max"])


def _some(rows: list[Record], layer: Layer) -> tuple[int, ...]:
    """The heads of these rows, or none if it is all of them."""
    return () if len(rows) == len(layer.rows) else tuple(row["head"] for row in rows)


def _ordinary_std(layer: Layer) -> float:
    """The row-wise std of the logits for σ = 0.02 and inputs of unit variance; NaN where the width is not known."""
    apart = 1 - (0.0 if math.isnan(layer.cosine) else min(layer.cosine, 1.0))
    return layer.fan_in("query") * 0.02**2 * math.sqrt(apart)


def _measured_ratio(layer: Layer, role: str) -> float:
    """The gradient over the value's; 0 if it never came although the value's did, NaN if there is no such number."""
    gradients = layer.gradients or {}
    ratio = gradients.get(f"ratio_{role}")
    if ratio is None and gradients.get("value") and layer.weights.get(role, {}).get("trainable"):
        return 0.0
    return math.nan if ratio is None or not math.isfinite(ratio) else float(ratio)


def _gradient_ratio(layer: Layer, partner: str) -> float:
    """Theory's ‖∇W_q‖/‖∇W_v‖, or the key's: see the table in :mod:`attntut.diagnose.findings`."""
    n, d, rho = layer.n_key, layer.fan_in("query"), layer.cosine
    if not rho < 1:
        return math.nan if math.isnan(rho) else 0.0
    rho = max(rho, 0.0)
    ratio = (1 - rho) * math.sqrt((n / d + 1) / (n * rho + 1 - rho)) * d * layer.std("value") * layer.std(partner)
    # Tokens need not have unit variance: small ones give small logits, and the ratio falls with them.
    unit = d * layer.std("query") * layer.std("key") * math.sqrt(1 - rho)
    return ratio * min(1.0, layer.mean("logit_std") / unit) if unit > 0 else ratio


def _is_packed_xavier(record: Record) -> bool:
    """Whether the std is Xavier's for the shape ``(3·fan_out, fan_in)``, within four standard errors."""
    predicted = math.sqrt(2 / (3 * record["fan_out"] + record["fan_in"]))
    error = predicted / math.sqrt(2 * record["fan_in"] * record["fan_out"])
    return abs(record["std"] - predicted) <= 4 * error
