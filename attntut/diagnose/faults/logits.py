"""Faults of logits that are too large, and of gradients that do not come through."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from attntut.diagnose.faults.facts import Facts, Layer
from attntut.diagnose.faults.fault import ERROR, SIGMA, STEPS, WARNING, Hit, fault, hit
from attntut.evidence import number


def _large(layer: Layer, statistic: str, threshold: float, expected: float, *, together: bool) -> Iterator[Hit]:
    """The heads whose statistic is above a threshold; if ``together``, only if their RMS is too."""
    known = [row[statistic] for row in layer.rows if not math.isnan(row[statistic])]
    rms = math.sqrt(math.fsum(value**2 for value in known) / len(known)) if known else math.nan
    ill = [row for row in layer.rows if row[statistic] > threshold]
    if ill and (rms > threshold or not together):
        value = max(row[statistic] for row in ill)
        largest, excess = number(layer.mean("max_weight")), number(value, digits=2)
        found = hit(value, expected=expected, threshold=threshold, heads=layer.heads(ill))
        yield found | dict(words=dict(n=layer.n_key, largest=largest, excess=excess))


@fault(
    "logits too large",
    WARNING,
    quantity="std of the logits in a row",
    source="√(2 ln n), n = {n} keys: beyond it a handful of keys holds everything, however many there are",
    text="The largest weight of a row is {largest} on average, and the gradient dies with the others.",
    remedies=(
        'Divide W_q by {excess}, or draw both with std 1/√d: initialize_(model, "xavier_normal"). '
        "A temperature or QK-norm does the same in the forward pass.",
    ),
    chapter=SIGMA + "#the-prediction-the-scale-of-the-logits",
    explains=("entropy collapsed", "gradients vanishing"),
)
def logits_too_large(
    layer: Layer,
    facts: Facts,
    *,
    keys_at_least: Annotated[int, "with fewer, √(2 ln n) is too close to the std 1 of a good draw"] = 4,
) -> Iterator[Hit]:
    r"""Fresh: row-wise std :math:`> \sqrt{2 \ln n}` (RMS over the heads, as a head's own scatters by
    :math:`1/\sqrt{2 d_h}`), the zero of :math:`\ln n - \sigma^2/2`; beyond it
    :math:`\sum_j p_j^2 = 1 - \sqrt{2 \ln n}/\sigma` does not fall with n (Derrida 1981)."""
    if layer.is_drawn and layer.n_key >= keys_at_least:
        yield from _large(layer, "logit_std", math.sqrt(2 * math.log(layer.n_key)), 1.0, together=True)


@fault(
    "logits too large (trained)",
    WARNING,
    quantity="largest logit",
    source="bfloat16 has 8 bits: from 256 on its numbers are 2 apart, and rounding changes a weight by a factor e",
    text="The largest weight of a row is {largest} on average. The logits have grown in training:",
    remedies=("lower the learning rate, or add QK-norm or weight decay on W_q and W_k.",),
    chapter=STEPS + "#the-knob-behind-the-root-temperature",
    explains=("entropy collapsed", "gradients vanishing"),
)
def trained_logits_too_large(
    layer: Layer, facts: Facts, *, largest: Annotated[float, "bfloat16 numbers are 2 apart from here on"] = 256.0
) -> Iterator[Hit]:
    """Not fresh: a logit of 256 or more."""
    if not layer.is_drawn:
        yield from _large(layer, "logit_max", largest, math.nan, together=False)


@fault(
    "entropy collapsed",
    WARNING,
    quantity="share of rows with a weight above 0.99",
    source="the Jacobian diag(p) − ppᵀ of such a row is below 2·0.99·0.01 ≈ 0.02: most queries learn nothing",
    text="The entropy is {entropy} of {most} nats.",
    remedies=(
        "Check the scale of the inputs and of W_q and W_k; in training, try a lower learning rate, warm-up or QK-norm.",
    ),
    chapter=STEPS + "#saturation-a-few-rows-decide",
    explains=("gradients vanishing",),
)
def entropy_collapsed(
    layer: Layer, facts: Facts, *, share_of_rows: Annotated[float, "most of them: a round margin"] = 0.5
) -> Iterator[Hit]:
    """Most rows give > 0.99 to one key, where the softmax's Jacobian is below 0.02: in a fresh layer, or on average
    over a trained model (one sharp layer may be what a task needs)."""
    shares = [each.mean("saturated") for each in facts.layers if each.n_key > 1]
    known = [share for share in shares if not math.isnan(share)]
    everywhere = bool(known) and math.fsum(known) / len(known) > share_of_rows
    share = layer.mean("saturated") if layer.n_key > 1 else 0.0
    if share > share_of_rows and (layer.is_drawn or everywhere):
        entropy, most = number(layer.mean("entropy")), number(math.log(layer.n_key))
        yield hit(share, expected=0.0, threshold=share_of_rows, entropy=entropy, most=most)


@fault(
    "gradients vanishing",
    WARNING,
    quantity="gradient of {matrix} over that of W_v",
    source="(1 − ρ)·√[(n/d + 1)/(nρ + 1 − ρ)]·d·σ_v·σ; where nothing was wrong, no layer had less than a quarter of it",
    text="The loss hardly reaches {matrix}.",
    remedies=(
        "Is it detached, or multiplied by something tiny? Saturated rows and equal tokens would have been named by "
        "themselves.",
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
) -> Iterator[Hit]:
    r"""Exactly 0; or fresh, and below a tenth of
    :math:`(1-\rho)\sqrt{\frac{n/d+1}{n\rho+1-\rho}}\; d\,\sigma_v \sigma_k` (key: :math:`\sigma_q`), the ratio to the
    value's gradient, times the row-wise std of the logits over :math:`d\,\sigma_q\sigma_k\sqrt{1-\rho}` where tokens
    are small."""
    for role, partner in (("query", "key"), ("key", "query")):
        ratio = _measured_ratio(layer, role)
        if math.isnan(ratio) or layer.n_key < 2:
            continue
        expected = _ratio_in_theory(layer, partner)
        least = expected / below_theory
        if ratio == 0 or (layer.is_drawn and layer.kind == "self" and ratio < least):
            severity = ERROR if ratio == 0 else ""
            yield hit(ratio, expected=expected, threshold=least, severity=severity, matrix=f"W_{role[0]}")
            return


def _measured_ratio(layer: Layer, role: str) -> float:
    """The gradient over the value's; 0 if it never came although the value's did, NaN if there is no such number."""
    gradients = layer.gradients or {}
    ratio = gradients.get(f"ratio_{role}")
    if ratio is None and gradients.get("value") and layer.weights.get(role, {}).get("trainable"):
        return 0.0
    return math.nan if ratio is None or not math.isfinite(ratio) else float(ratio)


def _ratio_in_theory(layer: Layer, partner: str) -> float:
    n, d, rho = layer.n_key, layer.fan_in("query"), layer.cosine
    if not rho < 1:
        return math.nan if math.isnan(rho) else 0.0
    rho = max(rho, 0.0)
    ratio = (1 - rho) * math.sqrt((n / d + 1) / (n * rho + 1 - rho)) * d * layer.std("value") * layer.std(partner)
    # Tokens need not have unit variance: small ones give small logits, and the ratio falls with them.
    unit = d * layer.std("query") * layer.std("key") * math.sqrt(1 - rho)
    return ratio * min(1.0, layer.mean("logit_std") / unit) if unit > 0 else ratio
