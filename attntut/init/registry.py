"""The register of schemes: each is data about a paper plus one function from a weight to a law.

To add one, write the function in the file of its family::

    @scheme(
        family="fan",
        formula=r"\\sigma^2 = 1 / \\text{fan\\_in}",
        cite="lecun1998efficient",
        source="LeCun et al. (1998), section 4.6",
        year=1998,
        why="A linear map keeps the variance of its input.",
    )
    def lecun_normal(weight: Weight, *, gain: float = 1.0) -> Law:
        '''…'''
        return outside(weight) or Normal(gain * weight.fan_in**-0.5)

Tests, catalogue and explorers find it by :func:`schemes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from attntut._checks import check_choice
from attntut.init import requirements
from attntut.init.laws import Law, Normal
from attntut.init.scheme import Scheme
from attntut.init.weight import BRANCH, Weight

FAMILIES = ("symmetric", "plain", "fan", "structured", "data", "depth", "width")

Function = TypeVar("Function", bound=Callable[..., Law])

_SCHEMES: dict[str, Scheme] = {}


def scheme(
    *,
    family: str,
    formula: str,
    cite: str,
    source: str,
    year: int,
    why: str,
    requires: tuple[str, ...] = (),
    architecture: Callable[[int], dict[str, Any]] | None = None,
    bias: Callable[..., Law] | None = None,
    finish: Callable[..., None] | None = None,
    predicts: Callable[..., float] | None = None,
    predicts_logits: Callable[..., float] | None = None,
) -> Callable[[Function], Function]:
    """Register the function below as a scheme; the arguments are the attributes of :class:`Scheme`.

    ``architecture`` need only give what depends on the depth: what a requirement itself settles (``norm="post"``,
    ``scale=1.0`` …) is filled in.

    Raises:
        ValueError: an unknown family or requirement, an empty text, or a name that is taken.
    """
    check_choice("family", family, FAMILIES)
    for name in requires:
        check_choice("requires", name, requirements.REQUIREMENTS)
    for label, text in (("formula", formula), ("source", source), ("why", why)):
        if not text.strip():
            raise ValueError(f"{label} must say something: got {text!r}.")

    def register(function: Function) -> Function:
        name = function.__name__
        if name in _SCHEMES:
            raise ValueError(f"A scheme named {name!r} exists already, in the family {_SCHEMES[name].family!r}.")
        _SCHEMES[name] = Scheme(
            name=name,
            family=family,
            formula=formula,
            cite=cite,
            source=source,
            year=year,
            why=why,
            requires=tuple(requires),
            function=function,
            bias_function=bias,
            finish=finish,
            predicts=predicts,
            predicts_logits=predicts_logits,
            by_depth=architecture,
        )
        return function

    return register


def schemes() -> Mapping[str, Scheme]:
    """Every scheme by its name, in the order of the families.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["xavier_normal"].family
        'fan'
    """
    return MappingProxyType(dict(sorted(_SCHEMES.items(), key=lambda item: FAMILIES.index(item[1].family))))


def find_scheme(name: object) -> Scheme:
    """The scheme of this name.

    Raises:
        ValueError: there is none; the nearest match is named.

    Example:
        >>> from attntut.init import schemes
        >>> find_scheme("xavier").name
        Traceback (most recent call last):
        ...
        ValueError: scheme must be one of ...
    """
    return schemes()[check_choice("scheme", name.name if isinstance(name, Scheme) else name, schemes())]


def outside(weight: Weight) -> Law | None:
    """The usual law of what is outside the blocks; None inside them, where the scheme has its say.

    N(0, 0.02²) for tables (token embeddings, positions), as in BERT and GPT-2; N(0, 1/fan_in) for matrices (embeddings
    of real-valued tokens, readouts), which keeps the variance.

    Example:
        >>> from attntut.init.weight import weights
        >>> each = weights(64, 4)
        >>> outside(each["embedding"]), outside(each["readout"]), outside(each["query"])
        (Normal(sigma=0.02), Normal(sigma=0.125), None)
    """
    if weight.role in BRANCH:
        return None
    return Normal(0.02) if weight.is_table else Normal(weight.fan_in**-0.5)
