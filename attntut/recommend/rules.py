"""The rules of the map, as ``rules.toml`` has them, and whether one applies to a model."""

from __future__ import annotations

import copy
import math
import operator
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from attntut._checks import check_choice
from attntut.adjust.handle import acting_on, given_traits
from attntut.adjust.registry import adjustments
from attntut.anatomy.parameters import names_of
from attntut.anatomy.view import ModelView
from attntut.init.registry import schemes
from attntut.init.requirements import REQUIREMENTS, has

PATH = Path(__file__).with_name("rules.toml")
RECORD = re.compile(r"\{record\}`([^`]+)`")
BOUNDS = {">=": operator.ge, "<=": operator.le}
LOGITS = {0.5: "over √d_head", 0.0: "not divided", 1.0: "over d_head"}  # by the power of d_head
STRENGTHS = {
    "run": "a stored run, inside its range",
    "near": "a stored run, outside its range",
    "record": "a chapter's record",
    "formula": "formula only, no evidence from training",
    "none": "no evidence",
}
"""How sure an advice is, the surest first."""

Facts = Mapping[str, Any]
"""What is known of a model, as :func:`facts` gives it; None for what is not."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Under which condition which starts are better or worse, and why.

    Attributes:
        take, avoid: starts: a scheme, ``"+ method"``, or ``"scheme + method"``.
        noise: those that were tried, and not told apart from the model without them.
        why: a sentence, in Markdown; ``more``: those that follow it on the map.
        formula: whether all its records are predictions, none a result of training.
        when: facts, each with the value, the values or the bound that it must have.
    """

    why: str
    more: str = ""
    take: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()
    noise: tuple[str, ...] = ()
    formula: bool = False
    when: Mapping[str, Any] = field(default_factory=dict)

    @property
    def starts(self) -> tuple[str, ...]:
        """All starts that it names."""
        return (*self.take, *self.avoid, *self.noise)

    @property
    def records(self) -> tuple[str, ...]:
        """The records that it cites, each ``"chapter: name"``."""
        return tuple(RECORD.findall(self.why + self.more))

    @property
    def sentence(self) -> str:
        """Why, as plain text."""
        plain = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", self.why).replace("`", "")
        return plain.replace("\n", " ").rstrip(" .,:") + "."

    def unknown(self, known: Facts) -> list[str]:
        """Facts that are not known, and that alone decide whether it applies."""
        missing = [name for name in self.when if known[name] is None]
        return missing if all(_holds(known[name], self.when[name]) for name in {*self.when} - {*missing}) else []

    def applies(self, known: Facts) -> bool:
        """Whether its condition is known to hold.

        Example:
            >>> rule = Rule(why="…", when={"norm": ["pre", "sub"], "depth": ">= 4"})
            >>> rule.applies({"norm": "pre", "depth": 12}), rule.applies({"norm": "pre", "depth": None})
            (True, False)
        """
        return all(_holds(known[name], wanted) for name, wanted in self.when.items())


def _holds(value: Any, wanted: Any) -> bool:
    if value is None:
        return False
    if isinstance(wanted, list):
        return value in wanted
    sign, _, number = wanted.partition(" ") if isinstance(wanted, str) else ("", "", "")
    return bool(BOUNDS[sign](value, float(number))) if sign in BOUNDS else value == wanted


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer to a question: its first words, then its rules, and the question to go on with."""

    say: str = ""
    text: str = ""
    go: str = ""
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of the map; ``yours``: one that no model answers; ``bullets``: its answers are a list."""

    id: str
    title: str
    intro: str = ""
    yours: bool = False
    numbered: bool = True
    bullets: bool = False
    answers: tuple[Answer, ...] = ()

    def answer(self, said: object) -> Answer:
        """The answer that begins with these words.

        Raises:
            ValueError: none does, or several do; the answers are named.

        Example:
            >>> (question,) = (each for each in questions() if each.id == "data")
            >>> question.answer("yes").say
            'Yes.'
        """
        found = [each for each in self.answers if str(said) and each.say.lower().startswith(str(said).lower())]
        if len(found) != 1:
            known = ", ".join(repr(each.say) for each in self.answers)
            raise ValueError(f"given[{self.id!r}] must be how one of these begins: {known}; got {said!r}.")
        return found[0]


@cache
def questions() -> tuple[Question, ...]:
    """The questions of the map, in its order.

    Example:
        >>> [question.id for question in questions()][:2]
        ['source', 'norm']
    """
    return tuple(read(_tables()["question"]))


def runs() -> dict[str, dict[str, Any]]:
    """What is said of each stored sweep that the rules read."""
    found: dict[str, dict[str, Any]] = _tables()["run"]
    return found


@cache
def _tables() -> dict[str, Any]:
    return tomllib.loads(PATH.read_text(encoding="utf-8"))


def read(tables: list[dict[str, Any]]) -> Iterator[Question]:
    """The questions of a TOML file.

    Raises:
        ValueError: a fact, scheme or method that does not exist.
        TypeError: a key that no rule has.
    """
    for table in copy.deepcopy(tables):
        outer, answers = table.pop("when", {}), []
        for answer in table.pop("answer", []):
            inner, rules = outer | answer.pop("when", {}), []
            for each in answer.pop("rule", []):
                when = inner | each.pop("when", {})
                words: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in each.items()}
                rules.append(Rule(**words, when=when))
                for name in when:
                    check_choice("when", name, FACTS)
                for start in rules[-1].starts:
                    parts(start)
            answers.append(Answer(**answer, rules=tuple(rules)))
        yield Question(**table, answers=tuple(answers))


def parts(start: str) -> tuple[str, tuple[str, ...]]:
    """A scheme, or "" for none, and the methods.

    >>> parts("xavier_normal + branch_scale"), parts("+ warmup")
    (('xavier_normal', ('branch_scale',)), ('', ('warmup',)))
    """
    scheme, *methods = (each.strip() for each in start.split("+"))
    if scheme:
        check_choice("scheme", scheme, schemes())
    return scheme, tuple(check_choice("method", each, adjustments()) for each in methods)


FACTS = {
    "norm": "norm",
    "depth": "blocks",
    "d_model": "d_model",
    "n_heads": "heads",
    "d_head": "width of a head",
    "stacks": "stacks",
    "logits": "logits",
    "logits_now": "logits as they are",  # good, large, or ill as in chapter 16; told by diagnose
    "packed": "packed query, key and value",
    "grouped": "grouped queries",
    "feed_forward": "feed-forward network",
    "gated": "gated feed-forward network",
    "qk_norm": "QK-norm",
    "tokens": "a vocabulary",
    "positions": "positions",
    "gains": "learnable gains",
    "tied": "readout tied to the embedding",
    "has": "parts",  # of REQUIREMENTS, beside norm and logits
}
"""What the rules may ask of a model, and what it is called."""


def facts(seen: ModelView) -> dict[str, Any]:
    """What is known of a model, by the names of :data:`FACTS`; None for what is not, or is not one number.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.anatomy import view
        >>> known = facts(view(Transformer(TransformerConfig(n_classes=2, d_input=4, n_layers=6))))
        >>> known["norm"], known["depth"], known["logits"], known["grouped"]
        ('pre', 6, 'over √d_head', False)
    """
    traits = {**seen.traits, **given_traits(seen.module)}
    queries, keys, tables = (seen.by_role(role) for role in ("query", "key", "embedding"))
    first, scale = [entry.weight for entry in queries], traits.get("scale")
    names = names_of(seen.module)
    inside = tuple(f"{each.name}." for each in seen.attention if each.name)  # Swin v2's bias has a network of its own
    in_blocks = [entry for entry in seen.by_role("feed_forward_in") if not entry.parameter.startswith(inside)]
    d_head = _same(weight.d_head for weight in first)
    power = 0.0 if not scale or not d_head or d_head == 1 else -math.log(abs(scale)) / math.log(d_head)
    return {
        "norm": "sandwich" if "sandwich" in acting_on(seen.module) else traits.get("norm"),
        "depth": max((weight.n_layers for weight in first), default=None),
        "d_model": _same(weight.d_model for weight in first),
        "n_heads": _same(weight.n_heads for weight in first),
        "d_head": d_head,
        "stacks": len({weight.stack for weight in first}) or None,
        "logits": None if not scale else LOGITS.get(round(power, 4), f"times {scale:.3g}"),
        "packed": any(entry.rows != "all" for entry in (*queries, *keys)),
        "grouped": any(entry.weight.fan_out < entry.weight.n_heads * entry.weight.d_head for entry in keys),
        "logits_now": None,
        "feed_forward": bool(in_blocks) or (None if seen.unknown else False),
        "gated": None if seen.unknown and not in_blocks else len(in_blocks) > len(seen.by_role("feed_forward_out")),
        "qk_norm": traits.get("qk_norm", False if "parts" in traits else None),
        "tokens": any(entry.weight.is_table and entry.weight.fan_in > 1 for entry in tables),
        "positions": "a learned table" if _learned(seen) else "others, or none",
        "gains": bool(seen.gains),
        "tied": any(len(names[seen.module.get_parameter(entry.parameter)]) > 1 for entry in tables),
        "has": tuple(
            name for name, each in REQUIREMENTS.items() if not {"norm", "scale"} & {*each.wants} and has(name, traits)
        ),
    }


def _learned(seen: ModelView) -> bool:
    """Whether a table that is learned is added to the stream; one that is added to logits is as wide as the heads."""
    tables = [entry for entry in seen.by_role("position") if entry.weight.fan_out == entry.weight.d_model]
    return any(not seen.is_computed(entry) for entry in tables)


def _same(values: Any) -> Any:
    """The value that all have; None where they differ, or there are none."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def described(known: Facts) -> str:
    """The facts in one line.

    >>> known = dict.fromkeys(FACTS) | dict(norm="pre", depth=12, d_model=768, packed=True, grouped=False)
    >>> described(known)
    'norm pre, blocks 12, d_model 768, packed query, key and value; not known: heads, width of a head, ...'
    """
    usual = {"has", "logits_now", "feed_forward"}
    told = {label: known[name] for name, label in FACTS.items() if name not in usual and known[name] is not None}
    said = [f"{label} {value}" for label, value in told.items() if not isinstance(value, bool)]
    said += [label for label, value in told.items() if value is True]
    said += [each for each in known["has"] or () if each not in said]
    said += ["no feed-forward network"] * (known["feed_forward"] is False)
    said += ["logits too large as they are"] * (known["logits_now"] in ("large", "ill"))
    unknown = [label for name, label in FACTS.items() if known[name] is None]
    return ", ".join(said) + (f"; not known: {', '.join(unknown)}" if unknown else "")
