"""What the stored sweeps tell of a start, at a model's depth or width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from attntut._extras import extra
from attntut.evidence import confidence_interval, number
from attntut.init.requirements import REQUIREMENTS
from attntut.recommend.rules import FACTS, Facts, runs

SETTINGS = {"logits": ("scale",), "gains": ("branch_gain", "skip_weights", "residual")}  # a fact's, where it has others


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A start against the default of a stored sweep, each at its own best learning rate, paired by seed.

    Attributes:
        run: name of the sweep: ``runs/NAME.csv``.
        at: where on its grid: ``"24 blocks"``; empty where it has one place only.
        says: what was measured.
        than: the start that it is compared with.
        difference, low, high: mean and 95 % confidence interval.
        n: number of seeds.
        sign: 1 where more is better, −1 where less is.
    """

    run: str
    at: str
    says: str
    than: str
    difference: float
    low: float
    high: float
    n: int
    sign: int

    @property
    def verdict(self) -> int:
        """1: better, beyond the interval; −1: worse; 0: not told apart."""
        return self.sign * ((self.low > 0) - (self.high < 0))

    def __str__(self) -> str:
        numbers = [f"{x:+.3f}".replace("-", "−") for x in (self.difference, self.low, self.high)]
        word = {1: "better", -1: "worse", 0: "not told apart"}[self.verdict]
        return f"{f'{self.at}: ' if self.at else ''}{numbers[0]} [{numbers[1]}, {numbers[2]}], {word}"


@dataclass(frozen=True)
class Found:
    """What one sweep tells of one start: the comparisons next to a model, and why the model is none of the sweep's."""

    comparisons: tuple[Comparison, ...]
    outside: tuple[str, ...]


def look_up(start: str, known: Facts, allowed: tuple[str, ...] = (), than: str = "") -> Found | None:
    """What the stored sweeps tell of a start, in the nearest places of their grids; None if it was not run there.

    Args:
        start: as in :attr:`~attntut.recommend.rules.Rule.take`.
        known: of the model.
        allowed: parts that the start itself asks for.
        than: the start to compare with; the default of the sweep by default, whose own comparison is empty.

    Raises:
        ModuleNotFoundError: pandas or SciPy is not installed.
    """
    found = [each for name, about in runs().items() if (each := _of(name, about, start, known, allowed, than))]
    return min(found, key=lambda each: len(each.outside), default=None)


def _of(
    name: str, about: Mapping[str, Any], start: str, known: Facts, allowed: tuple[str, ...], than: str
) -> Found | None:
    own, other = _names(about, start), _names(about, than) or [about["default"]]
    match = {wanted: known[each] for each, wanted in about.get("match", {}).items()}
    if not own or any(known.get(question) != answer for question, answer in about.get("only", {}).items()):
        return None
    best = _best(name)
    rows = best[(best[list(match)] == list(match.values())).all(axis=1)] if match else best
    ours, theirs = (rows[rows[about["name"]].isin(each)].set_index("seed") for each in (own, other))
    fact, column = about.get("axis", ("", ""))
    if ours.empty or (fact and known[fact] is None):
        return None
    outside, places = list[str](), [(ours, theirs, "")]
    if fact:
        value, unit = known[fact], "blocks" if fact == "depth" else fact
        grid = sorted(set(ours[column]) & set(theirs[column]))
        if not grid:
            return None
        below, above = [x for x in grid if x <= value], [x for x in grid if x >= value]
        outside += [
            f"{FACTS[fact]}: {value}, in the runs {' to '.join(map(number, dict.fromkeys((grid[0], grid[-1]))))}"
        ] * (not (below and above))
        places = [
            (
                *(each[each[column] == x] for each in (ours, theirs)),
                f"{number(x)} {unit}" if unit == "blocks" else f"{unit} {number(x)}",
            )
            for x in dict.fromkeys([*below[-1:], *above[:1]])
        ]
    own_settings = {setting for each in allowed for setting in REQUIREMENTS[each].wants}
    for each, wanted in about["inside"].items():
        if known[each] != wanted and own_settings.isdisjoint(SETTINGS.get(each, (each,))):
            outside.append(f"{FACTS[each]}: {_said(known[each])}, in the runs {_said(wanted)}")
    outside += [f"it has {part}, the runs' models have not" for part in known["has"] if part not in allowed]
    compared = []
    words = dict(run=about.get("file", name), says=about["says"], sign=-1 if about.get("lower_is_better") else 1)
    for one, two, at in () if own == other else places:
        differences = (one[about["score"]] - two[about["score"]]).dropna()
        mean, low, high = confidence_interval(differences)
        if low is not None and high is not None:
            label = (
                "the same without it" if about.get("methods") and other == [about["default"]] else " or ".join(other)
            )
            compared.append(
                Comparison(**words, at=at, than=label, difference=mean, low=low, high=high, n=len(differences))
            )
    return Found(tuple(compared), tuple(outside))


def _names(about: Mapping[str, Any], start: str) -> list[str]:
    """What a start is called in a sweep; empty if it is not meant there."""
    is_method, given = start.startswith("+ "), about.get("names", {}).get(start)
    plain = [start.removeprefix("+ ")] if start and is_method == bool(about.get("methods")) else []
    return plain if given is None else given


def _said(value: Any) -> str:
    return "not known" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)


@cache
def _best(name: str) -> Any:
    """The runs of a sweep at each group's own best learning rate."""
    with extra("tables"):
        import pandas as pd

        from attntut.sweep.files import stored
        from attntut.sweep.rates import best_rate

    about = runs()[name]
    frame = stored(about.get("file", name))
    for other, columns in about.get("more", {}).items():
        frame = pd.concat([frame, stored(other).assign(**columns)], ignore_index=True)
    if keep := about.get("keep"):
        frame = frame.query(" ".join(keep.split()), engine="python")
    by = [*about.get("axis", ())[1:], *about.get("match", {}).values(), about["name"]]
    best = best_rate(frame, by, score=about["score"], largest=not about.get("lower_is_better"))
    return frame.merge(best[[*by, "lr"]])
