"""Predict, then measure: the records that every chapter shows, asserts and leaves behind, in three kinds."""

from __future__ import annotations

import html
import json
import math
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from attntut._checks import check_number
from attntut._extras import extra

MIME = "application/vnd.attntut.evidence+json"
COLUMNS = ("quantity", "predicted", "measured", "agreement")


class Disagreement(AssertionError):
    """A measurement lies where it must not."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One measurement, beside what was said of it before.

    Attributes:
        name: what was measured.
        slug: ``name`` as an anchor, unique in a page as long as names are.
        kind: ``"predicted"`` (a formula gave the number), ``"expected"`` (a reason gave the direction) or
            ``"observed"`` (nothing was said before; the range guards the number that the text uses).
        predicted: the predicted number; None for the other two kinds.
        measured: the measured number; with seeds, their mean.
        low, high: the 95 % confidence interval of the mean, or None for one measurement.
        n: number of measurements.
        tolerance: how near, or where, the measurement must lie, in words.
        at_least, at_most: the same as numbers; None where there is no end.
        passed: whether it lies there.
        explained: why theory and measurement differ, where the text says so; such a record has not passed.
        unit, claim, supports, when: as in :func:`compare`.
    """

    name: str
    slug: str
    kind: str
    predicted: float | None = None
    measured: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    tolerance: str
    unit: str = ""
    passed: bool
    explained: str | None = None
    claim: str | None = None
    supports: bool = True
    when: str | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if self.claim is not None and not re.fullmatch(r"C\d\d", str(self.claim)):
            raise ValueError(f"claim must be the id of a claim, such as 'C07': got {self.claim!r}.")

    @property
    def agrees(self) -> bool:
        """Whether it is as the text says: it passed or, where a difference is explained, surely differs."""
        if not self.explained:
            return self.passed
        held = self.low is not None and self.high is not None and self.low <= (self.predicted or 0) <= self.high
        return math.isfinite(self.measured) and not self.passed and not held

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """What stands in the four :data:`COLUMNS`."""
        half = 0.0 if self.low is None or self.high is None else (self.high - self.low) / 2
        mean = 0.0 if abs(self.measured) < 1e-9 * half else self.measured  # what rounding left of an exact 0
        measured, foreseen = (self._number(value) for value in (mean, self.predicted or 0))
        if self.low is not None and self.high is not None:
            measured += f" ± {_signed(number(half, digits=2))}"
        said = {"predicted": foreseen, "expected": f"expected {self.tolerance}", "observed": "–"}
        unit, seeds = f" {self.unit}" if self.unit else "", f", {self.n} seeds" if self.n > 1 else ""
        predicted = said[self.kind] + (unit if self.kind != "observed" else "")
        return self.name, predicted, measured + unit, self._agreement() + seeds

    def _number(self, value: float) -> str:
        whole = self.tolerance == "exactly" and float(value).is_integer()  # counts that agree exactly, in full
        return _signed(f"{value:.0f}" if whole else number(value))

    def _agreement(self) -> str:
        if self.explained:
            return f"✗ not {self.tolerance}: {self.explained}"
        if self.kind == "observed":
            return f"observed{'' if self.passed else ', ✗ but not'} {self.tolerance}"
        where = "as expected" if self.kind == "expected" else self.tolerance
        return f"{'✓' if self.passed else '✗ not'} {where}"

    def __str__(self) -> str:
        name, predicted, measured, agreement = self.cells
        said = f"predicted {predicted}" if self.kind == "predicted" else predicted
        return "   ".join([name, *([] if self.kind == "observed" else [said]), f"measured {measured}", agreement])

    def _ipython_display_(self) -> None:
        """Show nothing: the table at the end of the cell does."""


def compare(
    name: str,
    predicted: Any,
    measured: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    differs: str | None = None,
    unit: str = "",
    claim: str | None = None,
    supports: bool = True,
    when: str | None = None,
) -> Evidence:
    r"""Compare a measurement with the number that a formula gave before, and fail if they disagree.

    Exactly one of two tolerances says what agreement is:

    .. math:: |m - p| \le \text{rtol}\,|p| \qquad\text{or}\qquad |m - p| \le \text{atol}

    In a notebook all records of a cell are shown as one table at its end; elsewhere each is printed.

    Args:
        name: what is compared, in a few words.
        predicted: a number.
        measured: a number, or one number per seed. With seeds, ``m`` is their mean, shown with its 95 % confidence
            interval (Student's t).
        rtol, atol: relative or absolute tolerance.
        differs: why theory and measurement disagree, in a few words, where the text explains it. Then the record fails
            if they *agree*: the mean must lie outside the tolerance, and the interval must not hold the prediction.
        unit: printed after both numbers.
        claim: the article's claim that this speaks to, ``"C07"`` say; it enters the claims ledger.
        supports: whether the record speaks for the claim or against it.
        when: the condition under which it speaks for the claim, as in "holds when …".

    Raises:
        Disagreement: the measurement lies outside (an ``AssertionError``); it is shown all the same.
        TypeError, ValueError: an argument is missing or of the wrong kind.

    Example:
        >>> evidence = compare("a fair coin", 0.5, 0.493, rtol=0.05)
        a fair coin   predicted 0.5   measured 0.493   ✓ within 5 %
        >>> evidence = compare("a loaded coin", 0.5, 0.62, rtol=0.05, differs="lead in one side")
        a loaded coin   predicted 0.5   measured 0.62   ✗ not within 5 %: lead in one side
    """
    given = {key: value for key, value in (("rtol", rtol), ("atol", atol)) if value is not None}
    if len(given) != 1:
        raise TypeError(f"Exactly one of rtol and atol must be given: got {' and '.join(given) or 'none'}.")
    ((key, value),) = given.items()
    target, bound = float(_numbers("predicted", predicted).item()), check_number(key, value, low=0)
    near = f"within {bound * 100:.3g} %" if key == "rtol" else f"within {_signed(f'{bound:.3g}')}"
    bound *= abs(target) if key == "rtol" else 1
    about: dict[str, Any] = dict(unit=unit, claim=claim, supports=supports, when=when, explained=differs)
    about |= dict(predicted=target, tolerance=near if value else "exactly")
    about |= dict(at_least=target - bound, at_most=target + bound)
    found = _measured(name, measured)
    return record(Evidence(**found, **about, kind="predicted", passed=abs(found["measured"] - target) <= bound))


def expect(
    name: str, measured: Any, *, above: float | None = None, below: float | None = None, **about: Any
) -> Evidence:
    """Assert a direction that was expected for a reason: "more", "less", or, with both ends, "no difference".

    With seeds the *whole* 95 % interval must lie there, so that "a is better than b" is never said of an accident.

    Args:
        name: as in :func:`compare`, and so are ``unit``, ``claim``, ``supports`` and ``when``.
        measured: a number, or one number per seed: a paired difference, say.
        above, below: the ends; at least one. They follow from what the text says, not from a run.

    Raises:
        Disagreement: the measurement, or a part of its interval, lies outside.

    Example:
        >>> evidence = expect("accuracy gained", [0.04, 0.06, 0.05], above=0)
        accuracy gained   expected above 0   measured 0.05 ± 0.025   ✓ as expected, 3 seeds
    """
    return _within("expected", name, measured, dict(above=above, below=below), **about)


def observe(name: str, measured: Any, *, between: tuple[float, float], **about: Any) -> Evidence:
    """Keep a measured number that the text uses, and guard it with a range; nothing was predicted.

    Args:
        name: as in :func:`compare`, and so are ``unit``, ``claim``, ``supports`` and ``when``.
        measured: a number, or one number per seed.
        between: the range ``(low, high)`` outside of which the text would be wrong. With seeds the mean must lie in it.

    Raises:
        Disagreement: the measurement lies outside.

    Example:
        >>> evidence = observe("accuracy", [0.80, 0.82, 0.81], between=(0.7, 0.9))
        accuracy   measured 0.81 ± 0.025   observed between 0.7 and 0.9, 3 seeds
    """
    try:
        low, high = between
    except (TypeError, ValueError) as error:
        raise TypeError(f"between must be a pair (low, high): got {between!r}.") from error
    return _within("observed", name, measured, dict(low=low, high=high), **about)


def _within(kind: str, name: str, measured: Any, ends: dict[str, float | None], **about: Any) -> Evidence:
    if all(end is None for end in ends.values()):
        raise TypeError(f"{' or '.join(ends)} must be given: got neither.")
    open_ends = zip(ends.items(), (-math.inf, math.inf), strict=True)
    lower, upper = (nowhere if end is None else check_number(key, end) for (key, end), nowhere in open_ends)
    if not lower < upper:
        raise ValueError(f"{' must be less than '.join(ends)}: got {lower:g} and {upper:g}.")
    a, b = (_signed(f"{end:.4g}") for end in (lower, upper))
    where = f"above {a}" if upper == math.inf else f"below {b}" if lower == -math.inf else f"between {a} and {b}"
    found = _measured(name, measured)
    whole = kind == "expected" and found["low"] is not None
    low, high = (found["low"], found["high"]) if whole else (found["measured"],) * 2
    at_least, at_most = (end if math.isfinite(end) else None for end in (lower, upper))
    about |= dict(passed=lower <= low and high <= upper, at_least=at_least, at_most=at_most)
    return record(Evidence(**found, kind=kind, tolerance=where, **about))


def record(evidence: Evidence) -> Evidence:
    """Show a record, at the end of the cell in a notebook and at once elsewhere; raise if it does not agree."""
    shell = _shell()
    if shell is None:
        print(evidence)
    else:
        if not _pending:
            shell.events.register("post_execute", _flush)
        _pending.append(evidence)
    if not evidence.agrees:
        but = ". They agree: `differs` has nothing to explain" if evidence.explained else ""
        raise Disagreement(f"{evidence}{but}")
    return evidence


_pending: list[Evidence] = []


def _shell() -> Any:
    """The IPython that runs this code; none runs it where IPython was not imported."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def _flush() -> None:
    """Show the records of the cell that has just run."""
    from IPython.display import display

    _shell().events.unregister("post_execute", _flush)
    records = tuple(_pending)
    _pending.clear()
    display(Records(records))


@dataclass(frozen=True)
class Records:
    """The records of one cell, shown as one table."""

    records: tuple[Evidence, ...]

    def __str__(self) -> str:
        rows = [COLUMNS, *(record.cells for record in self.records)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        return "\n".join(
            "   ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        head = "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
        rows = "".join(_row(record) for record in self.records)
        table = f'<table class="attntut-evidence"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        return {"text/plain": str(self), "text/html": table, MIME: [asdict(record) for record in self.records]}


def _row(record: Evidence) -> str:
    name, *rest = (html.escape(text) for text in record.cells)
    kind = "explained" if record.explained else record.kind
    data = html.escape(json.dumps(asdict(record), ensure_ascii=False), quote=True)
    cells = "".join(f'<td class="{key}">{text}</td>' for key, text in zip(COLUMNS[1:], rest, strict=True))
    return (
        f'<tr class="attntut-record is-{kind}" id="evidence-{record.slug}" data-record="{data}">'
        f'<th scope="row" class="quantity">{name}</th>{cells}</tr>'
    )


def confidence_interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float | None, float | None]:
    r"""Mean and 95 % confidence interval (Student's t), :math:`\bar x \pm t_{.975,n-1}\, s / \sqrt n`.

    Of ``(n,)``, one number per seed, it gives mean, low and high. A single sample has no interval: None.

    Example:
        >>> [round(x, 3) for x in confidence_interval([0.80, 0.82, 0.81])]
        [0.81, 0.785, 0.835]
    """
    samples = _numbers("samples", samples)
    mean = float(samples.mean())
    if samples.size == 1:
        return mean, None, None
    with extra("plots"):
        from scipy.special import stdtrit  # the quantile of Student's t
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
        raise TypeError(f"{name} must be a number, or one number per seed: got {value!r}.") from error
    array = np.atleast_1d(array)
    if array.ndim != 1 or array.size == 0 or (name == "predicted" and array.size > 1):
        expected = "one number" if name == "predicted" else "a number, or a list of one number per seed"
        raise ValueError(f"{name} must be {expected}: got shape {array.shape}.")
    if name == "predicted" and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite: got {array.tolist()}.")
    return array


def _measured(name: str, measured: Any) -> dict[str, Any]:
    """The fields of a record that its measurement fills."""
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"name must say what is measured: got {name!r}.")
    if measured is None:
        raise TypeError(f"measured must be given for {name!r}: got None.")
    samples = _numbers("measured", measured)
    mean, low, high = confidence_interval(samples)
    slug = re.sub(r"[^\w]+", "-", unicodedata.normalize("NFKD", name).lower()).strip("-")
    return dict(name=name, slug=slug, measured=mean, low=low, high=high, n=samples.size)


def _signed(text: str) -> str:
    """A number with a true minus sign."""
    return text.replace("-", "−")
