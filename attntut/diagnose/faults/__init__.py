"""What can be wrong with a model's attention: a decorated function each, and :func:`find`, which asks them all.

Thresholds are derived, or are figures that the book measured; each states which. "Fresh" means that the query and key
matrices cannot be told from random ones, because none of their singular values lies beyond the edge where those of a
random matrix end (:func:`attntut.diagnose.weights.is_drawn`); a layer that was trained briefly may still be fresh.
A cause hides its consequences: logits that are too large because the stream grows are not reported.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from attntut.diagnose.faults import chance, depth, finite, gradients, logits, masks, weights
from attntut.diagnose.faults.facts import Facts, Measured
from attntut.diagnose.faults.fault import SEVERITIES, Fault, Finding, fault, faults, hit, table

__all__ = ["SEVERITIES", "Fault", "Finding", "fault", "faults", "find", "hit", "table"]
_ = finite, masks, weights, logits, gradients, depth, chance  # registered by being imported


def find(report: Measured) -> list[Finding]:
    """Judge a report.

    Args:
        report: as :func:`attntut.diagnose.diagnose` and :func:`~attntut.diagnose.listen` give it.

    Returns:
        Findings, worst first; one a fault, with all the layers that have it. Empty for a healthy model.

    Raises:
        TypeError: ``report`` is no report.

    Example:
        >>> from attntut.diagnose import Report
        >>> row = dict(layer="attention", kind="self", head=0, n_query=16, n_key=16, entropy=math.log(16), logit_std=0)
        >>> report = Report(rows=[row | dict(logit_max=0.0, saturated=0.0, non_finite=0, masked_rows=0)])
        >>> print(find(report)[0])
        warning: attention uniform in attention. std of the logits in a row: 0.
    """
    facts = Facts.of(report)
    single = [finding for each in faults().values() for finding in each.judge(facts)]
    kept = [finding for finding in single if not _is_explained(finding, single)]
    merged = [_merge([each for each in kept if each.name == name]) for name in dict.fromkeys(f.name for f in kept)]
    return sorted(merged, key=lambda finding: (SEVERITIES.index(finding.severity), finding.order))


def _is_explained(finding: Finding, others: Iterable[Finding]) -> bool:
    for other in others:
        cause = faults()[other.fault]
        if finding.fault in cause.explains or finding.name in cause.explains:
            later = cause.spreads and finding.order >= other.order
            if later or set(finding.layers) & set(other.layers):
                return True
    return False


def _merge(findings: list[Finding]) -> Finding:
    """One finding for a fault in several layers: that of the worst layer, or the first, from where it spreads."""
    worst = findings[0] if faults()[findings[0].fault].spreads else max(findings, key=_excess)
    severity = min((finding.severity for finding in findings), key=SEVERITIES.index)
    layers = tuple(dict.fromkeys(layer for finding in findings for layer in finding.layers))
    return replace(worst, severity=severity, layers=layers)


def _excess(finding: Finding) -> float:
    """How far beyond the threshold, in powers of e; the sign of the side does not matter."""
    tiny = 1e-300
    return abs(math.log(max(abs(finding.value), tiny)) - math.log(max(abs(finding.threshold), tiny)))
