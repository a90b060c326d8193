r"""Findings: what is wrong with a model's attention, worst first, each with its number, threshold and source.

Thresholds are derived, or are figures that the book measured; four are round margins on top of these: a tenth (of
theory's gradient ratio), half (of the rows), 0.01 (of 1 − cosine) and 256 (of a logit). "Fresh" means that no query or
key matrix of the layer has a singular value beyond the edge of a random matrix's
(:func:`attntut.diagnose.weights.is_drawn`); what training makes of a layer is judged by the rules without that word.

============================  =====================================================================================
finding                       rule and where it comes from
============================  =====================================================================================
not finite                    a logit, a weight or the stream is NaN or infinite; the first place is named
mask hides everything         queries that may see no key: all of a layer's, or some and NaN follows (softmax of
                              nothing is 0/0)
heads identical               the rows of :math:`W_q`, and of :math:`W_k`, are equal in all heads, exactly
attention uniform             row-wise std of the logits :math:`\le 8 \max(2^{-23}, \epsilon\,|s|_\text{max})`: rounding
query equals key              the two matrices are equal, exactly; a token then scores itself by
                              :math:`\sqrt{d_h}` (chapter 5)
layers cloned                 a matrix equals an earlier layer's, exactly, in other memory
logits too large              fresh: row-wise std :math:`> \sqrt{2 \ln n}` (RMS over the heads), the zero of
                              :math:`\ln n - \sigma^2/2`; beyond it :math:`\sum_j p_j^2 = 1 - \sqrt{2 \ln n}/\sigma`
                              does not fall with n (Derrida 1981). Needs 4 keys or more.
                              Trained: a logit of 256 or more; bfloat16 numbers are 2 apart there
entropy collapsed             more than half of the rows give > 0.99 to one key, where the softmax's Jacobian is below
                              0.02: in a fresh layer, or on average over a trained model
gradients vanishing           exactly 0; or fresh, and below a tenth of
                              :math:`(1-\rho)\sqrt{\frac{n/d+1}{n\rho+1-\rho}}\; d\,\sigma_v \sigma_k` (key:
                              :math:`\sigma_q`), the ratio to the value's gradient, times the row-wise std of the
                              logits over :math:`d\,\sigma_q\sigma_k\sqrt{1-\rho}` where tokens are small. In 36 healthy
                              settings (3 norms, 4 scales, 3 tasks) no layer had less than a quarter of that
rank collapsing               fresh: 1 − token cosine falls below 0.01, and by more than a factor
                              :math:`\frac12 (1 - \frac{1}{2\pi}) = 0.42` a block: attention doubles the common mode
                              (:math:`m \to 2m`, Noci et al. 2022), and a ReLU branch keeps at least
                              :math:`1 - 1/\pi` of what sets tokens apart
stream growing                fresh: variance × more than 4 a block after the first: two branches of unit gain
depth scaling absent          fresh, L ≥ 8 (:math:`1/\sqrt{2L} \le 1/4`), :math:`W_o` not scaled down (gain over that of
                              :math:`W_v` at least :math:`(2L)^{-1/4}`, half-way on a log scale), and
                              :math:`v_L / v_1 > (1 + \frac32 L)/(1 + \frac32)`, the upper bound of Xiong et al. (2020);
                              and the branches are not scaled in the forward pass
packed query-key-value scale  all three within 4 standard errors of :math:`\sqrt{2/(3\,\text{fan\_out} +
                              \text{fan\_in})}`, and kept in one tensor
============================  =====================================================================================

A cause hides its consequences (:data:`EXPLAINS`): logits that are too large because the stream grows are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from attntut.diagnose.depth_rules import DEPTH_RULES
from attntut.diagnose.facts import facts
from attntut.diagnose.finding import SEVERITIES, Finding
from attntut.diagnose.report import Report
from attntut.diagnose.rules import LAYER_RULES

__all__ = ["EXPLAINS", "Finding", "find"]

_LOGITS = ("logits too large", "logits too large (trained)", "entropy collapsed", "gradients vanishing")
_DEPTH = ("depth scaling absent", "rank collapsing")
_UNIFORM = ("attention uniform (zero weights)", "attention uniform (tokens alike)")
EXPLAINS: Mapping[str, tuple[str, ...]] = {
    "mask hides everything": ("not finite", *_UNIFORM, *_LOGITS),
    "heads identical": (*_UNIFORM, "query equals key", "stream growing", *_DEPTH, *_LOGITS),
    "attention uniform (zero weights)": ("gradients vanishing", "rank collapsing"),
    "attention uniform (tokens alike)": ("gradients vanishing",),
    "stream growing": (*_DEPTH, *_LOGITS),
    "rank collapsing": ("attention uniform (tokens alike)", "gradients vanishing"),
    "query equals key": _LOGITS,
    "logits too large": ("entropy collapsed", "gradients vanishing"),
    "logits too large (trained)": ("entropy collapsed", "gradients vanishing"),
    "entropy collapsed": ("gradients vanishing",),
}
"""Fault to the faults that it accounts for in the same layers; if it spreads, also in later ones."""
_SPREADS = ("mask hides everything", "not finite")


def find(report: Report) -> list[Finding]:
    """Judge a report.

    Args:
        report: as :func:`attntut.diagnose.diagnose` and :func:`~attntut.diagnose.listen` give it.

    Returns:
        Findings, worst first; one a fault, with all the layers that have it. Empty for a healthy model.

    Raises:
        TypeError: ``report`` is no report.

    Example:
        >>> row = dict(layer="attention", kind="self", head=0, n_query=16, n_key=16, entropy=math.log(16), logit_std=0)
        >>> report = Report(rows=[row | dict(logit_max=0.0, saturated=0.0, non_finite=0, masked_rows=0)])
        >>> print(find(report)[0])
        warning: attention uniform in attention. std of the logits in a row: 0.
    """
    sorted_ = facts(report)
    single = [finding for rule in (*LAYER_RULES, *DEPTH_RULES) for finding in rule(sorted_)]
    kept = [finding for finding in single if not _is_explained(finding, single)]
    merged = [_merge([each for each in kept if each.name == name]) for name in dict.fromkeys(f.name for f in kept)]
    return sorted(merged, key=lambda finding: (SEVERITIES.index(finding.severity), finding.order))


def _is_explained(finding: Finding, others: Iterable[Finding]) -> bool:
    for cause in others:
        if finding.fault in EXPLAINS.get(cause.fault, ()):
            later = cause.name in _SPREADS and finding.order >= cause.order
            if later or set(finding.layers) & set(cause.layers):
                return True
    return False


def _merge(findings: list[Finding]) -> Finding:
    """One finding for a fault in several layers: that of the worst layer, or the first, from where it spreads."""
    first = findings[0]
    if first.name == "not finite":
        return min(findings, key=lambda finding: finding.order)
    if first.name in _SPREADS:
        worst = first
    else:
        worst = max(findings, key=_excess)
    severity = min((finding.severity for finding in findings), key=SEVERITIES.index)
    layers = tuple(dict.fromkeys(layer for finding in findings for layer in finding.layers))
    return replace(worst, severity=severity, layers=layers)


def _excess(finding: Finding) -> float:
    """How far beyond the threshold, in powers of e; the sign of the side does not matter."""
    tiny = 1e-300
    return abs(math.log(max(abs(finding.value), tiny)) - math.log(max(abs(finding.threshold), tiny)))
