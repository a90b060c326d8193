"""Faults of gradients that do not come, or hardly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from attntut.diagnose.faults.facts import Facts, Layer
from attntut.diagnose.faults.fault import ERROR, NOTE, RANDOM, SIGMA, WARNING, Hit, Remedy, fault, hit
from attntut.diagnose.faults.finite import ROLES

_NONE = "a layer that gets no gradient does not learn, whatever the learning rate"


def _is_reached(layer: Layer) -> bool | None:
    """Whether any of its trainable matrices has a gradient; None where that was not measured."""
    trainable = [role for role in ROLES if layer.weights.get(role, {}).get("trainable")]
    return any((layer.gradients or {}).get(role) for role in trainable) if layer.gradients and trainable else None


def _hands_on_nothing(layer: Layer) -> bool:
    """Whether what its heads hand on is zero (of which the rank residual is 0/0)."""
    return all(
        row.get("output_rms") == 0
        or ("output_rms" not in row and math.isnan(row.get("rank_residual", 0.0)) and math.isfinite(row["entropy"]))
        for row in layer.rows
    )


def _unreached(layer: Layer, variety: str) -> Iterator[Hit]:
    if _is_reached(layer) is not False:
        return
    if layer.is_zero("value"):
        found = "weights" if layer.is_zero("output") else "unknown"
    else:
        found = "values" if _hands_on_nothing(layer) else "unknown"
    if found == variety:
        came = any((layer.gradients or {}).get(role) is not None for role in ROLES)
        yield hit(0.0, how="is exactly 0" if came else "never came")


@fault(
    "no gradient (zero weights)",
    ERROR,
    quantity="gradient of its matrices",
    source="∇W_v contains W_o, and ∇W_o the values; " + _NONE,
    text="W_v and W_o are zero: each holds the other's gradient at zero, for ever, and those of W_q and W_k.",
    remedies=("Draw one of them; W_o = 0 alone is a good start.",),
    chapter=RANDOM + "#one-zero-matrix-does-not-stay-zero",
    explains=("gradients vanishing",),
)
def both_ends_zero(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """All gradients of a layer are exactly 0, and :math:`W_v` and :math:`W_o` are zero."""
    return _unreached(layer, "weights")


@fault(
    "no gradient (zero values)",
    WARNING,
    quantity="gradient of its matrices",
    source="∇W_v contains what comes in as value, ∇W_q and ∇W_k how values differ, ∇W_o their mean; " + _NONE,
    text="The gradient {how}, because what the heads hand on is 0: the values are 0 (what comes in as value is zero), "
    "or the weights have become so after the softmax. All the layer can hand on is a bias.",
    remedies=(
        "Feed it what the tokens hold (values are often taken before positions are added, or from a target that starts "
        "at zero, as in DETR's first decoder layer, where the layer does nothing and may be left out).",
    ),
    chapter=RANDOM + "#the-argument",
    explains=("gradients vanishing", "attention uniform", "rank collapsing"),
)
def zero_values(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """All gradients of a layer are exactly 0, and so is what its heads hand on."""
    return _unreached(layer, "values")


@fault(
    "no gradient",
    NOTE,
    quantity="gradient of its matrices",
    source=_NONE,
    text="The gradient {how}, though the layer hands something on: it is detached, multiplied by 0, or not used by "
    "the loss.",
    remedies=("A gate that starts at 0 (ReZero, adaLN-zero, Flamingo) is meant so: it learns first.",),
    chapter=RANDOM + "#one-zero-matrix-does-not-stay-zero",
    explains=("gradients vanishing",),
)
def unreached(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """All gradients of a layer are exactly 0 or never came, while another layer of its stack has some (so an unused
    tower is not reported), or any other if it is in no stack; its values are not 0, and no gain on the branch is
    known. Where :math:`W_o` may be zero (a good start), nothing is said."""
    beside = next((stack.layers for stack in facts.stacks if layer in stack.layers), facts.layers)
    elsewhere = any(_is_reached(other) for other in beside)
    good_start = layer.is_zero("output") or facts.traits.get("branch_gain") is not None
    if elsewhere and "output" in layer.weights and not good_start:
        yield from _unreached(layer, "unknown")


@fault(
    "gradients vanishing",
    WARNING,
    quantity="gradient of {matrix} over that of W_v",
    source="(1 − ρ)·√[(n/d + 1)/(nρ + 1 − ρ)]·d·σ_v·σ, for tokens whose gradients are independent; a loss of the mean "
    "or of one token lowers W_q and W_k alike, to 0.001 of it in DeiT-III",
    text="The loss {reaches} {matrix}.",
    remedies=(
        Remedy(
            "W_q and W_k are zero: each holds the other's gradient at zero, for ever, though a bias makes the logits "
            "differ. Draw both.",
            lambda facts, layer: _both_zero(layer),
        ),
        Remedy(
            "Is it detached, or multiplied by something tiny? In float16, all below 6e-8 is 0: is the loss scaled? "
            "Does it look only at queries that see one key, such as the first of a causal model, or that another "
            "matrix makes? Saturated rows and equal tokens would have been named by themselves.",
            lambda facts, layer: not _both_zero(layer),
        ),
    ),
    chapter=SIGMA + "#does-it-matter-for-training",
)
def gradients_vanishing(
    layer: Layer,
    facts: Facts,
    *,
    below_theory: Annotated[
        float, "in 36 healthy settings (3 norms, 4 scales, 3 tasks) no layer had less than a quarter of theory's ratio"
    ] = 10.0,
    rounding: Annotated[float, "of gradients that are 0, rounding left 3e-6 of theory's; DeiT-III has 9e-4"] = 3e-5,
) -> Iterator[Hit]:
    r"""Exactly 0 (and the values are not, and the tokens differ, or both matrices are 0); or fresh, and below a tenth
    of :math:`(1-\rho)\sqrt{\frac{n/d+1}{n\rho+1-\rho}}\; d\,\sigma_v \sigma_k` (key: :math:`\sigma_q`), the ratio to
    the value's gradient, times the row-wise std of the logits over :math:`d\,\sigma_q\sigma_k\sqrt{1-\rho}` where
    tokens are small; and also below a tenth of what the other of query and key has of theory's, or so small (3e-5 of
    theory) that it is 0 but for rounding."""
    pairs = (("query", "key"), ("key", "query"))
    expected = {role: _ratio_in_theory(layer, partner) for role, partner in pairs}
    share = {role: _measured_ratio(layer, role) / expected[role] if expected[role] else math.nan for role, _ in pairs}
    for role, partner in pairs:
        ratio, least = _measured_ratio(layer, role), expected[role] / below_theory
        if math.isnan(ratio) or layer.n_key < 2 or layer.is_zero("value"):
            continue
        if expected[role] == 0 and not _both_zero(layer):
            continue
        low = layer.is_drawn and layer.kind == "self" and ratio < least
        if ratio == 0 or (low and share[role] < max(share[partner] / below_theory, rounding)):
            severity, reaches = (ERROR, "does not reach") if ratio == 0 else ("", "hardly reaches")
            words: Hit = dict(matrix=f"W_{role[0]}", reaches=reaches)
            yield hit(ratio, expected=expected[role] or math.nan, threshold=least, severity=severity, **words)
            return


def _both_zero(layer: Layer) -> bool:
    return layer.is_zero("query") and layer.is_zero("key")


def _measured_ratio(layer: Layer, role: str) -> float:
    """The gradient over the value's; 0 if it never came although the value's did, NaN if there is no such number."""
    gradients = layer.gradients or {}
    ratio = gradients.get(f"ratio_{role}")
    if ratio is None and gradients.get("value") and layer.weights.get(role, {}).get("trainable"):
        return 0.0
    return math.nan if ratio is None or not math.isfinite(ratio) else float(ratio)


def _ratio_in_theory(layer: Layer, partner: str) -> float:
    n, d, rho = layer.n_key, layer.of("query", "fan_in"), layer.cosine
    if not rho < 1:
        return math.nan if math.isnan(rho) else 0.0
    rho = max(rho, 0.0)
    ratio = (1 - rho) * math.sqrt((n / d + 1) / (n * rho + 1 - rho)) * d * layer.std("value") * layer.std(partner)
    # Tokens need not have unit variance: small ones give small logits, and the ratio falls with them.
    unit = d * layer.std("query") * layer.std("key") * math.sqrt(1 - rho)
    return ratio * min(1.0, layer.mean("logit_std") / unit) if unit > 0 else ratio
