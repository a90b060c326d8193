"""What a scheme may ask of the architecture, why, and how to see whether a model has it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from attntut import parts
from attntut._checks import check_choice

Traits = Mapping[str, Any]
"""What is known of a model, by the names of :class:`~attntut.TransformerConfig`; None for what is not known."""


@dataclass(frozen=True)
class Requirement:
    """Something that a scheme's derivation takes for granted.

    Args:
        reason: why a model without it is not what the scheme was made for; completes "it needs …, because".
        wants: the settings of :class:`~attntut.TransformerConfig` that satisfy it; a function takes the width of a
            head, and ``...`` is what the scheme itself says.
        holds: ``(value that a model has, value that the scheme wants) -> bool``; by default, equality.
        part: the part of the architecture that satisfies it.
    """

    reason: str
    wants: Mapping[str, Any] = field(default_factory=dict)
    holds: Callable[[Any, Any], bool] = lambda value, wanted: _equal(value, wanted)
    part: parts.Part | None = None


def _part(reason: str, part: parts.Part, wants: Mapping[str, Any] | None = None) -> Requirement:
    return Requirement(reason, part.traits if wants is None else wants, part=part)


REQUIREMENTS: Mapping[str, Requirement] = {
    "post-LN": Requirement(
        "its scale makes up for the gradients that a norm after each addition shrinks", {"norm": "post"}
    ),
    "pre-LN": Requirement(
        "it counts on a norm before each branch, so that a branch sees unit variance however far the stream has grown",
        {"norm": "pre"},
        lambda value, wanted: value in ("pre", "sub"),
    ),
    "no norm": Requirement(
        "it does by scale alone what a norm would do; with one, the scale is divided out again", {"norm": "none"}
    ),
    "sub-LN": Requirement("its gain is undone and made harmless by a second norm inside each branch", {"norm": "sub"}),
    "sandwich norms": Requirement("it counts on a norm after each branch, in front of the sum", {"norm": "sandwich"}),
    "depth-scaled weights": Requirement(
        "it counts on branches that are drawn smaller with depth", {"depth_scaled": True}
    ),
    "no residual": Requirement(
        "it replaces the skip connections; beside them, the signal is counted twice", {"residual": False}
    ),
    "residual scale": Requirement(
        "its gain is derived together with a factor on the skip or the branch, and is too small or too large without",
        {"residual_scale": ..., "skip_scale": ...},
    ),
    "branch gain": Requirement(
        "it sets a learnable gain on each branch, and leaves the weights as they are",
        {"branch_gain": ...},
        lambda value, wanted: value is not None,
    ),
    "skip weights": Requirement(
        "it sets a learnable weight on each skip connection, from the variances of the branches before it",
        {"skip_weights": ...},
    ),
    "batch": Requirement("it measures activations: give it a batch of inputs, batch=…"),
    "unscaled logits": Requirement(
        "its query weights contain the 1/√d_head that other models multiply the logits with", {"scale": 1.0}
    ),
    "1/d_head logits": Requirement(
        "trained queries and keys align, so that their product grows with d_head and not with its root",
        {"scale": lambda d_head: 1 / d_head},
    ),
    "weight multipliers": Requirement(
        "its weights have variance 1; the forward pass must divide by √fan_in", {"weight_multiplier": "fan_in"}
    ),
    "learning rates by role": Requirement(
        "its scale goes with learning rates that fall with the fan-in of each matrix; no model can tell whether "
        "yours will, so confirm it"
    ),
    "QK-norm": _part("it sets the gain of the norms that queries and keys pass", parts.QKNorm()),
    "soft cap": Requirement(
        "it counts on logits that cannot leave a range", {"soft_cap": ...}, lambda value, wanted: value is not None
    ),
    "sink": _part("it draws the logit that each head has beside those of the keys", parts.Sink()),
    "output gate": _part("it draws a gate on what the heads found", parts.OutputGate()),
    "differential attention": _part("it draws the share of the second attention", parts.Differential()),
    "zero-centred gains": _part(
        "it stores the gains of norms as their distance from 1",
        parts.RMSNorm(is_zero_centred=True),
        {"zero_centred": True},
    ),
    "DyT": _part("it sets the slope of the squashing function that stands in place of a norm", parts.DyT()),
    "LN/√l": _part("it leaves the weights as they are, and lets later blocks read less", parts.DepthDividedNorm()),
    "normalized residual": _part(
        "it counts on a sum that keeps the variance; in a plain one, branches of this size make the stream grow",
        parts.NormalizedResidual(),
    ),
    "sphere": _part(
        "its matrices have rows of length 1, and nothing but the sphere keeps the stream's scale", parts.Hypersphere()
    ),
}


def architecture(requires: Collection[str], d_head: int) -> dict[str, Any]:
    """The settings of :class:`~attntut.TransformerConfig` that satisfy the requirements.

    >>> architecture(["post-LN", "unscaled logits", "QK-norm"], d_head=16)
    {'norm': 'post', 'scale': 1.0, 'parts': (QKNorm(gain=1.0),)}
    """
    needed = [REQUIREMENTS[each] for each in requires]
    wants = {name: value for each in needed if each.part is None for name, value in each.wants.items()}
    settings = {name: value(d_head) if callable(value) else value for name, value in wants.items() if value is not ...}
    found = tuple(each.part for each in needed if each.part is not None)
    return settings | ({"parts": found} if found else {})


def unmet(
    requires: Collection[str], traits: Traits, wanted: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, str]:
    """The requirements that a model does not meet, each with what the model has instead.

    Args:
        requires: names of :data:`REQUIREMENTS`.
        traits: what the model has.
        wanted: the settings of :class:`~attntut.TransformerConfig` that would satisfy them, at the model's sizes: of a
            scheme, :meth:`~attntut.init.Scheme.architecture`.
        options: what the scheme is given, such as a batch.

    Example:
        >>> unmet(["post-LN", "unscaled logits"], {"norm": "pre", "scale": 1.0}, {"norm": "post", "scale": 1.0}, {})
        {'post-LN': "norm='pre' instead of 'post'"}
    """
    lacking = {}
    for name in requires:
        requirement = REQUIREMENTS[name]
        if name == "batch":
            if options.get("batch") is None:
                lacking[name] = "no batch was given"
        elif not requirement.wants:
            lacking[name] = "nothing that would tell"
        else:
            wants = wanted if requirement.part is None else requirement.wants
            settings = [name for name in requirement.wants if name in wants] or list(requirement.wants)
            pairs = {setting: (traits.get(setting), wants.get(setting)) for setting in settings}
            if not all(requirement.holds(*pair) for pair in pairs.values()):
                lacking[name] = ", ".join(_describe(setting, *pair) for setting, pair in pairs.items())
    return lacking


def has(name: str, traits: Traits) -> bool:
    """Whether a model is known to have what a requirement names: where that is any value, not a plain model's.

    >>> has("QK-norm", {"qk_norm": True}), has("residual scale", {"residual_scale": 0.5, "skip_scale": 1.0})
    (True, True)
    >>> has("QK-norm", {}), has("residual scale", {"residual_scale": 1.0, "skip_scale": 1.0})
    (False, False)
    """
    wants = REQUIREMENTS[name].wants
    found = [REQUIREMENTS[name].holds(traits.get(each), wanted) for each, wanted in wants.items()]
    return any(found) if ... in wants.values() else bool(wants) and all(found)


def check_requirements(
    scheme: str,
    requires: Collection[str],
    traits: Traits,
    wanted: Mapping[str, Any],
    options: Mapping[str, Any],
    *,
    force: bool | str | Collection[str] = False,
) -> None:
    """Refuse a model that lacks what a scheme was derived for.

    Args:
        scheme: its name, for the message.
        requires, traits, wanted, options: as in :func:`unmet`.
        force: True to apply the scheme anyway, or the requirement (or requirements) to overlook.

    Raises:
        TypeError: ``force`` is of another kind.
        ValueError: a requirement is not met; all that are not are listed. Or ``force`` names none of ``requires``.
    """
    if force is True:
        return
    if not isinstance(force, str | Collection | bool):
        raise TypeError(f"force must be True, False, or names of requirements: got {force!r} ({type(force).__name__}).")
    overlooked = {force} if isinstance(force, str) else set() if isinstance(force, bool) else set(force)
    for name in overlooked:
        check_choice("force", name, requires)
    lacking = {name: has for name, has in unmet(requires, traits, wanted, options).items() if name not in overlooked}
    if lacking:
        lines = [f"{name}, because {REQUIREMENTS[name].reason} (found: {has})" for name, has in lacking.items()]
        raise ValueError(
            f"The scheme {scheme!r} needs {'; and '.join(lines)}. "
            f"To apply it anyway: force=True, or force={next(iter(lacking))!r} to overlook that only."
        )


def _equal(value: Any, wanted: Any) -> bool:
    if wanted is ...:
        return not (value is None or value is False or value == 1)
    if isinstance(value, float) and isinstance(wanted, (int, float)):
        return math.isclose(value, wanted, rel_tol=1e-6)
    return bool(value == wanted)


def _describe(name: str, value: Any, wanted: Any) -> str:
    if value is None:
        return f"{name} unknown, or none"
    return f"{name}={value!r}" + ("" if wanted is None else f" instead of {wanted!r}")
