"""What a fault is: a decorated function that holds its rule, words, thresholds, remedies and consequences."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, get_type_hints

from attntut.diagnose.faults.facts import Facts
from attntut.evidence import number

LOGITS = ("logits too large", "entropy collapsed", "gradients vanishing", "attention sink", "soft-cap reached")
DEPTH = ("stream growing", "stream jumping", "rank collapsing", "depth scaling absent", "depth scaling misplaced")
ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
STEPS = "notebooks/02-attention-step-by-step.html"
RANDOM = "notebooks/05-why-at-random.html"
SIGMA = "notebooks/06-the-gaussian.html"
VARIANCE = "notebooks/07-keeping-the-variance.html"
DEPTHS = "notebooks/09-depth.html"
SIGNAL = "notebooks/12-signal-propagation.html"
REGULARIZATION = "notebooks/17-regularization-and-overfitting.html"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a model's attention.

    Attributes:
        name: a few words, always the same for the same fault.
        severity: ``"error"`` (cannot work), ``"warning"`` (will train badly) or ``"note"`` (good to know).
        layer: where it is worst; for what spreads, where it begins.
        layers: everywhere it was found, in the order of the forward pass.
        heads: which heads of ``layer``; empty for all, or where heads play no part.
        quantity: what was measured, in words.
        value: the measured number.
        expected: what theory, or a healthy model, gives.
        threshold: beyond which, on the side of ``value``, this is a finding.
        source: where expectation and threshold come from.
        text: what it means, and what to try.
        adjustments: the methods of :func:`attntut.adjust.adjustments` that treat it and fit the model.
        chapter: page of the book that treats it, relative to the book's root.
        order: number of the attention layer in the forward pass.
        fault: key of :func:`faults`: the name, with the variety in brackets.
    """

    name: str
    severity: str
    layer: str
    quantity: str
    value: float
    expected: float
    threshold: float
    source: str
    text: str
    chapter: str
    heads: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    adjustments: tuple[str, ...] = ()
    order: int = field(default=0, repr=False, compare=False)
    fault: str = field(default="", repr=False, compare=False)

    @property
    def place(self) -> str:
        """Layer, heads, and how many more layers."""
        heads = ", ".join(map(str, self.heads))
        where = self.layer + (f", head{'s' if len(self.heads) > 1 else ''} {heads}" if heads else "")
        return where + (f" and {len(self.layers) - 1} more" if len(self.layers) > 1 else "")

    @property
    def measurement(self) -> str:
        """The number beside its expectation and threshold."""
        side = "below" if self.value < self.threshold or self.value < self.expected else "above"
        bound = "" if self.threshold == self.expected else f", {side} {number(self.threshold)}"
        expected = "" if math.isnan(self.expected) else f" (expected {number(self.expected)}{bound})"
        return f"{self.quantity}: {number(self.value)}{expected}"

    @property
    def advice(self) -> str:
        """The methods in one line: the code that applies the first, and the names of others; empty without any."""
        if not self.adjustments:
            return ""
        from attntut.adjust import adjustments

        first, *others = self.adjustments
        return adjustments()[first].call + (f"; also {', '.join(others)}" if others else "")

    def __str__(self) -> str:
        return f"{self.severity}: {self.name} in {self.place}. {self.measurement}."


class Remedy(NamedTuple):
    """What to try, and whether it does anything in the model at hand."""

    text: str
    fits: Callable[[Facts, Any], bool] = lambda facts, place: True


class Threshold(NamedTuple):
    """A number that a rule compares with, and where it comes from."""

    value: float
    source: str


Hit = dict[str, Any]
Rule = Callable[..., Iterator[Hit]]


def hit(
    value: float,
    *,
    expected: float = math.nan,
    threshold: float | None = None,
    heads: tuple[int, ...] = (),
    severity: str = "",
    at: str = "",
    layers: tuple[str, ...] = (),
    order: int | None = None,
    **words: Any,
) -> Hit:
    """What a rule yields where it holds: fields of a :class:`Finding`.

    Args:
        value, expected, threshold, heads: as there; the threshold is by default what is expected.
        severity: instead of the fault's.
        at: a module, instead of the layer; with ``layers`` and ``order``, if these differ too.
        words: for the ``{}`` of the fault's quantity, source, text and remedies.
    """
    threshold = expected if threshold is None else threshold
    found = dict(value=value, expected=expected, threshold=threshold, heads=heads, severity=severity, order=order)
    return found | dict(layer=at, layers=layers or ((at,) if at else ()), words=words)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that can be wrong with a model's attention.

    Attributes:
        key: its name, with the variety in brackets where there are several.
        severity, quantity, source, text, chapter: as in :class:`Finding`; the severity unless the rule says otherwise.
        rule: ``rule(layer or stack, facts)`` yields what :func:`hit` gives; its docstring is the rule in words, and
            its keywords are the thresholds.
        remedies: what to try; those that fit follow the text.
        explains: keys (or names, for all varieties) of the faults that it accounts for in the same layers; if it
            spreads, also in later ones.
        spreads: whether what comes after the layer has it too.
        over: what its rule is asked about: the ``"layers"`` or the ``"stacks"`` of :class:`~.facts.Facts`, or the
            whole ``"model"``.
    """

    key: str
    severity: str
    quantity: str
    source: str
    text: str
    chapter: str
    rule: Rule
    remedies: tuple[str | Remedy, ...] = ()
    explains: tuple[str, ...] = ()
    spreads: bool = False
    over: str = "layers"

    @property
    def name(self) -> str:
        """The key without the variety."""
        return self.key.partition(" (")[0]

    @property
    def adjustments(self) -> tuple[str, ...]:
        """The methods of :mod:`attntut.adjust` that name it as what they treat."""
        from attntut.adjust import adjustments

        return tuple(name for name, each in adjustments().items() if self.key in each.treats)

    @property
    def thresholds(self) -> dict[str, Threshold]:
        """The rule's keywords: what each is called, its value, and where that comes from."""
        hints = get_type_hints(self.rule, include_extras=True)
        parameters = inspect.signature(self.rule).parameters.values()
        keywords = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
        return {each.name: Threshold(each.default, hints[each.name].__metadata__[0]) for each in keywords}

    def judge(self, facts: Facts) -> Iterator[Finding]:
        """Where it is found, a finding per layer or stack."""
        for place in getattr(facts, self.over):
            for found in self.rule(place, facts):
                words = found.pop("words")
                fitting = (Remedy(each) if isinstance(each, str) else each for each in self.remedies)
                texts = [self.text, *(each.text for each in fitting if each.fits(facts, place))]
                usual = dict(layer=place.names[-1], layers=place.names, order=place.order, severity=self.severity)
                yield Finding(
                    name=self.name,
                    quantity=self.quantity.format(**words),
                    source=self.source.format(**words),
                    text=" ".join(texts).format(**words),
                    chapter=self.chapter,
                    adjustments=tuple(name for name in self.adjustments if name in facts.adjustable_by),
                    fault=self.key,
                    **usual
                    | {key: value for key, value in found.items() if key not in usual or value not in ("", (), None)},
                )


_FAULTS: dict[str, Fault] = {}


def fault(key: str, severity: str, **words: Any) -> Callable[[Rule], Rule]:
    """Register the rule below as a fault; the arguments are the attributes of :class:`Fault`."""

    def register(rule: Rule) -> Rule:
        _FAULTS[key] = Fault(key=key, severity=severity, rule=rule, **words)
        return rule

    return register


def faults() -> Mapping[str, Fault]:
    """All faults by key."""
    return MappingProxyType(_FAULTS)


def table() -> list[dict[str, str]]:
    """The faults as rows of a table: text in Markdown, formulas between dollars.

    Example:
        >>> row = next(row for row in table() if row["finding"] == "entropy collapsed")
        >>> row["severity"], row["thresholds"]
        ('warning', 'share_of_rows = 0.5 (most of them: a round margin)')
    """
    return [
        {
            "finding": each.key,
            "id": re.sub(r"\W+", "-", each.key).strip("-"),
            "severity": each.severity,
            "rule": _plain(inspect.getdoc(each.rule) or ""),
            "thresholds": "; ".join(f"{k} = {number(t.value)} ({t.source})" for k, t in each.thresholds.items()),
            "source": _plain(each.source),
            "remedies": _plain(" ".join(r if isinstance(r, str) else r.text for r in each.remedies)),
            "explains": ", ".join(each.explains),
            "chapter": each.chapter,
        }
        for each in _FAULTS.values()
    ]


def _plain(text: str) -> str:
    """One line, formulas between dollars, and what is filled in by its name."""
    text = re.sub(r":math:`([^`]*)`", lambda m: f"${m[1]}$", " ".join(text.split()))
    return text if "$" in text else re.sub(r"\{(\w+)[^}]*\}", r"\1", text)
