"""Predict, then measure: the comparison that every chapter prints, asserts and leaves as a record."""

from __future__ import annotations

import html
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from IPython.display import display
from scipy.special import stdtrit

from attntut._checks import check_number

MIME = "application/vnd.attntut.evidence+json"


class Disagreement(AssertionError):
    """A measurement lies outside the tolerance of its prediction."""


@dataclass(frozen=True)
class Evidence:
    """One prediction beside its measurement.

    Attributes:
        name: what was compared.
        slug: ``name`` as an anchor, unique in a page as long as names are.
        predicted: the predicted number, or None where only a range was predicted.
        measured: the measured number; with seeds, their mean.
        low, high: the 95 % confidence interval of the mean, or None for one measurement.
        n: number of measurements.
        tolerance: the tolerance in words.
        unit: the unit of both numbers.
        passed: whether the measurement lies within the tolerance.
        claim: id of the article's claim that this speaks to, or None.
        supports: whether a passed comparison speaks for the claim.
        when: the condition under which it does.
    """

    name: str
    slug: str
    predicted: float | None
    measured: float
    low: float | None
    high: float | None
    n: int
    tolerance: str
    unit: str
    passed: bool
    claim: str | None = None
    supports: bool = True
    when: str | None = None

    @property
    def measured_text(self) -> str:
        text = number(self.measured)
        if self.low is not None and self.high is not None:
            text += f" ± {number((self.high - self.low) / 2, digits=2)}"
        return f"{text} {self.unit}".rstrip()

    @property
    def predicted_text(self) -> str:
        return f"{self.tolerance if self.predicted is None else number(self.predicted)} {self.unit}".rstrip()

    @property
    def verdict(self) -> str:
        seeds = f", {self.n} seeds" if self.n > 1 else ""
        bound = "as predicted" if self.predicted is None else self.tolerance
        return f"{'✓' if self.passed else '✗ not'} {bound}{seeds}"

    def __str__(self) -> str:
        return f"{self.name}   predicted {self.predicted_text}   measured {self.measured_text}   {self.verdict}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"text/plain": str(self), "text/html": self._html(), MIME: asdict(self)}

    def _html(self) -> str:
        parts = {
            "name": self.name,
            "predicted": f"predicted {self.predicted_text}",
            "measured": f"measured {self.measured_text}",
            "verdict": self.verdict,
        }
        spans = " ".join(f'<span class="{key}">{html.escape(text)}</span>' for key, text in parts.items())
        record = html.escape(json.dumps(asdict(self), ensure_ascii=False), quote=True)
        return f'<div class="attntut-evidence" id="evidence-{self.slug}" data-record="{record}">{spans}</div>'


def compare(
    name: str,
    predicted: Any = None,
    measured: Any = None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    between: tuple[float, float] | None = None,
    unit: str = "",
    claim: str | None = None,
    supports: bool = True,
    when: str | None = None,
) -> Evidence:
    r"""Show a prediction beside its measurement, and fail if they disagree.

    Exactly one of three tolerances says what agreement is:

    .. math:: |m - p| \le \text{rtol}\,|p|, \qquad |m - p| \le \text{atol}, \qquad a \le m \le b

    Args:
        name: what is compared, in a few words.
        predicted: a number; may be None with ``between``.
        measured: a number, or one number a seed. With seeds, ``m`` is their mean, shown with its 95 % confidence
            interval (Student's t).
        rtol, atol: relative or absolute tolerance. With seeds the *mean* must lie within it.
        between: a range ``(a, b)``; either end may be infinite. With seeds the *whole interval* must lie within it,
            so that "a is better than b" is never said of an accident.
        unit: printed after both numbers.
        claim: the article's claim that this speaks to, ``"C07"`` say; it enters the claims ledger.
        supports: whether the comparison, once it passes, speaks for the claim or against it.
        when: the condition under which it speaks for the claim, as in "holds when …".

    Returns:
        The :class:`Evidence`, after displaying it.

    Raises:
        Disagreement: the measurement lies outside (an ``AssertionError``); it is displayed all the same.
        TypeError, ValueError: an argument is missing or of the wrong kind.

    Example:
        >>> evidence = compare("a fair coin", 0.5, 0.493, rtol=0.05)
        a fair coin   predicted 0.5   measured 0.493   ✓ within 5 %
        >>> evidence = compare("accuracy over seeds", measured=[0.80, 0.82, 0.81], between=(0.7, 1))
        accuracy over seeds   predicted between 0.7 and 1   measured 0.81 ± 0.025   ✓ as predicted, 3 seeds
    """
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"name must say what is compared: got {name!r}.")
    if measured is None:
        raise TypeError(f"measured must be given for {name!r}: got None.")
    if claim is not None and not re.fullmatch(r"C\d\d", str(claim)):
        raise ValueError(f"claim must be the id of a claim, such as 'C07': got {claim!r}.")
    given = [key for key, value in (("rtol", rtol), ("atol", atol), ("between", between)) if value is not None]
    if len(given) != 1:
        raise TypeError(f"Exactly one of rtol, atol and between must be given: got {' and '.join(given) or 'none'}.")
    samples = _numbers("measured", measured)
    target = None if predicted is None else float(_numbers("predicted", predicted).item())
    mean, low, high = confidence_interval(samples)
    if between is not None:
        lower, upper = _range(between)
        inside = lower <= (mean if low is None else low) and (mean if high is None else high) <= upper
        tolerance = _range_text(lower, upper)
    else:
        if target is None:
            raise TypeError(f"predicted must be a number with {given[0]}: got None. Or give between=(low, high).")
        name_, bound = given[0], check_number(given[0], rtol if atol is None else atol, low=0)
        inside = abs(mean - target) <= (bound * abs(target) if name_ == "rtol" else bound)
        tolerance = f"within {bound * 100:.3g} %" if name_ == "rtol" else f"within {bound:.3g}"
        tolerance = "exactly" if bound == 0 else tolerance
    evidence = Evidence(
        name, _slug(name), target, mean, low, high, samples.size, tolerance, unit, bool(inside), claim, supports, when
    )
    display(evidence)
    if not inside:
        raise Disagreement(str(evidence))
    return evidence


def confidence_interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float | None, float | None]:
    r"""Mean and 95 % confidence interval (Student's t), :math:`\bar x \pm t_{.975,n-1}\, s / \sqrt n`.

    Args:
        samples: ``(n,)``, one number a seed.

    Returns:
        Mean, low, high; the interval is None for a single sample, which has none.

    Example:
        >>> [round(x, 3) for x in confidence_interval([0.80, 0.82, 0.81])]
        [0.81, 0.785, 0.835]
    """
    samples = _numbers("samples", samples)
    mean = float(samples.mean())
    if samples.size == 1:
        return mean, None, None
    half = float(stdtrit(samples.size - 1, 0.975) * samples.std(ddof=1) / math.sqrt(samples.size))
    return mean, mean - half, mean + half


def number(value: float, *, digits: int = 3) -> str:
    """A number as the book prints it: ``digits`` significant digits, no trailing zeros.

    >>> number(0.041943), number(65536), number(6.55e-7), number(0)
    ('0.0419', '65500', '6.55e-07', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.{digits}g}" if abs(rounded) < 1e-4 or abs(rounded) >= 1e7 else f"{rounded:.10g}"


def _numbers(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    elif isinstance(value, (list, tuple)):
        value = [float(v) for v in value]
    try:
        array = np.asarray(value, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, or one number a seed: got {value!r}.") from error
    array = np.atleast_1d(array)
    if array.ndim != 1 or array.size == 0 or (name == "predicted" and array.size > 1):
        expected = "one number" if name == "predicted" else "a number, or a list of one number a seed"
        raise ValueError(f"{name} must be {expected}: got shape {array.shape}.")
    if name == "predicted" and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite: got {array.tolist()}.")
    return array


def _range(between: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, between)
    except (TypeError, ValueError) as error:
        raise TypeError(f"between must be a pair (low, high): got {between!r}.") from error
    if not low < high:
        raise ValueError(f"between must be (low, high) with low < high: got {between!r}.")
    return low, high


def _range_text(low: float, high: float) -> str:
    if high == math.inf:
        return f"above {low:.4g}"
    return f"below {high:.4g}" if low == -math.inf else f"between {low:.4g} and {high:.4g}"


def _slug(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).lower()
    return re.sub(r"[^\w]+", "-", plain).strip("-")
