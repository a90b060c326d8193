"""The register of methods: each is one decorated function, in the file of its family, with its paper as data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

from attntut._checks import check_choice
from attntut.anatomy.view import ModelView
from attntut.init.register import Entry, by_family, enter
from attntut.init.requirements import REQUIREMENTS, Traits, has, unmet

FAMILIES: Mapping[str, str] = {  # a file each: where a method acts, in the order of the forward pass, then of training
    "projections": "on queries, keys, values and heads",
    "logits": "between the product of queries and keys and the weights",
    "blocks": "on branches and norms",
    "weights": "on the matrices themselves",
    "gradients": "between the backward pass and the step",
    "groups": "parameter groups for an optimizer",
    "schedules": "learning-rate schedules",
    "optimizers": "optimizers",
    "loss": "terms of the loss",
}
ON_MODEL = tuple(FAMILIES)[:5]
"""Families that change a model and can be undone; the functions of the others give ordinary torch objects."""

Function = TypeVar("Function", bound=Callable[..., Any])
Unfit = Callable[[ModelView, Mapping[str, Any]], str]


@dataclass(frozen=True, kw_only=True)
class Adjustment(Entry):
    """One method of the catalogue of methods.

    Attributes:
        treats: names of the faults of :mod:`attntut.diagnose` that it is a remedy for.
        clashes: what it must not meet, each with why not: other methods, or what a model may have itself, of
            :data:`~attntut.init.requirements.REQUIREMENTS`.
        gives: what a model has that it acts on: of :data:`~attntut.init.requirements.REQUIREMENTS`.
        unfit: why it cannot be applied to a model that this view is of, with these options; empty if it can.
    """

    kind = "method"
    treats: tuple[str, ...] = ()
    clashes: Mapping[str, str] = field(default_factory=dict)
    gives: tuple[str, ...] = ()
    unfit: Unfit = lambda view, options: ""

    @property
    def is_undoable(self) -> bool:
        """Whether :func:`~attntut.adjust.adjust` applies it to a model; else its function is called as it is."""
        return self.family in ON_MODEL

    @property
    def call(self) -> str:
        """The code that applies it, with what must be given.

        >>> adjustments()["qk_clip"].call, adjustments()["warmup"].call
        ('adjust(model, "qk_clip", optimizer=…)', 'warmup(optimizer, steps=…)')
        """
        parameters = inspect.signature(self.function).parameters.values()
        needed = [f"{name}=…" for name, default in self.options.items() if default is inspect.Parameter.empty]
        if self.is_undoable:
            return ", ".join([f'adjust(model, "{self.name}"', *needed]) + ")"
        first = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY and each.default is each.empty]
        return f"{self.name}({', '.join([*first, *needed])})"

    @property
    def conflicts(self) -> dict[str, str]:
        """What it must not meet, each with why not, whichever of two methods says so: of it, or of what it gives."""
        found = dict[str, str]()
        for name, each in adjustments().items():
            theirs = [each.clashes[what] for what in (self.name, *self.gives) if what in each.clashes]
            own = [self.clashes[what] for what in (name, *each.gives) if what in self.clashes]
            if each is not self and (whys := own or theirs):
                found[name] = whys[0]
        return found | dict(self.clashes)

    def objection(self, there: Collection[str], traits: Traits) -> str:
        """Why it should not be applied to a model, a sentence; empty if nothing is known against it.

        Args:
            there: methods that act on the model.
            traits: what is known of it; ``"d_head"`` too, where a requirement depends on it.

        Example:
            >>> adjustments()["soft_cap"].objection([], {"qk_norm": True})
            "'soft_cap' clashes with the model's own QK-norm, because the logits are bounded ..."
            >>> adjustments()["soft_cap"].objection([], {})
            ''
        """
        given = {what for name in there for what in adjustments()[name].gives}
        conflicts = self.conflicts
        clashes = {name: why for name, why in conflicts.items() if name in there}
        clashes |= {f"the model's own {name}": why for name, why in conflicts.items()
                    if name in REQUIREMENTS and name not in given and has(name, traits)}  # fmt: skip
        if clashes:
            return f"{self.name!r} clashes with {'; '.join(f'{name}, because {why}' for name, why in clashes.items())}."
        traits = {**traits, **brought(there)}
        wants = {key: value for name in self.requires for key, value in REQUIREMENTS[name].wants.items()}
        wants |= {key: value(d_head) if (d_head := traits.get("d_head")) else None for key, value in wants.items()
                  if callable(value)}  # fmt: skip
        if lacking := unmet(self.requires, traits, wants, {}):
            said = (f"{name}, because {REQUIREMENTS[name].reason} (found: {has})" for name, has in lacking.items())
            return f"{self.name!r} needs {'; '.join(said)}."
        return ""

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse an option that the method does not have, and the lack of one that it needs.

        Raises:
            TypeError: one that must be given is not.
            ValueError: an unknown one; the known ones are named.
        """
        super().check_options(options)
        missing = [name for name, default in self.options.items() if default is inspect.Parameter.empty]
        if missing := [name for name in missing if name not in options]:
            raise TypeError(f"The method {self.name!r} needs {', '.join(f'{name}=…' for name in missing)}.")


def brought(there: Collection[str]) -> dict[str, Any]:
    """What a model has by the methods that act on it, by the names of :class:`~attntut.TransformerConfig`.

    >>> brought(["qk_norm", "temperature"])
    {'qk_norm': True}
    """
    given = [name for method in there for name in adjustments()[method].gives]
    return {trait: value for name in given for trait, value in REQUIREMENTS[name].wants.items() if value is not ...}


_ADJUSTMENTS: dict[str, Adjustment] = {}


def adjustment(
    *, clashes: Mapping[str, str] | None = None, gives: tuple[str, ...] = (), **about: Any
) -> Callable[[Function], Function]:
    """Register the function below as a method, and put formula, reason, source and limits into its docstring.

    The arguments are the attributes of :class:`Adjustment`; ``year`` is by default the one in the key ``cite``, and the
    family is the name of the file.

    Raises:
        TypeError: an attribute is missing, or there is none of this name.
        ValueError: an unknown family or requirement, an empty text, no year, or a name that is taken.
    """
    for each in gives:
        check_choice("gives", each, REQUIREMENTS)
    limits = "; ".join(f"{name} ({reason})" for name, reason in (clashes or {}).items())
    about |= dict(clashes=MappingProxyType(dict(clashes or {})), gives=tuple(gives))
    about |= dict(more=f"\n\nClashes with: {limits}." if limits else "")
    return lambda function: enter(function, Adjustment, _ADJUSTMENTS, FAMILIES, **about)


def adjustments() -> Mapping[str, Adjustment]:
    """Every method by its name, in the order of the families.

    Example:
        >>> from attntut.adjust import adjustments
        >>> adjustments()["soft_cap"].family
        'logits'
    """
    return by_family(_ADJUSTMENTS, FAMILIES)
