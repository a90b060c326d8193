"""The register of schemes: each is data about a paper plus one function from a weight to a law.

To add one, write the function in the file of its family, as those there. Tests, catalogue and explorers find it by
:func:`schemes`, and ``help`` of it shows formula and source too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from attntut._checks import check_choice
from attntut.anatomy.weight import BRANCH, Weight
from attntut.init.laws import Law, Normal
from attntut.init.register import by_family, enter
from attntut.init.scheme import Scheme

FAMILIES = ("symmetric", "plain", "fan", "structured", "data", "depth", "width", "parts")

Function = TypeVar("Function", bound=Callable[..., Law])

SCHEMES: dict[str, Scheme] = {}  # as they were registered; schemes() is the view of it


def scheme(
    *,
    architecture: Callable[[int], dict[str, Any]] | None = None,
    bias: Callable[..., Law] | None = None,
    **about: Any,
) -> Callable[[Function], Function]:
    """Register the function below as a scheme, and put formula, reason, source and requirements into its docstring.

    The arguments are the attributes of :class:`Scheme`, with some short cuts. ``family`` is by default the name of the
    function's file, and ``year`` the one in the key ``cite``. ``bias`` is the ``bias_function``. ``architecture`` is
    ``by_depth``, and need only give what depends on the depth: what a requirement itself settles (``norm="post"``,
    ``scale=1.0`` …) is filled in.

    Raises:
        TypeError: an attribute is missing, or there is none of this name.
        ValueError: an unknown family or requirement, an empty text, no year, or a name that is taken.
    """
    about |= dict(by_depth=architecture, bias_function=bias)
    return lambda function: enter(function, Scheme, SCHEMES, FAMILIES, **about)


def schemes() -> Mapping[str, Scheme]:
    """Every scheme by its name, in the order of the families.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["xavier_normal"].family
        'fan'
    """
    return by_family(SCHEMES, FAMILIES)


def find_scheme(scheme: object) -> Scheme:
    """The scheme of this name; a :class:`Scheme` is itself, registered or not.

    Raises:
        ValueError: there is none; the nearest match is named.

    Example:
        >>> from attntut.init import schemes
        >>> find_scheme("xavier").name
        Traceback (most recent call last):
        ...
        ValueError: scheme must be one of ...
    """
    return scheme if isinstance(scheme, Scheme) else schemes()[check_choice("scheme", scheme, schemes())]


def law_outside_blocks(weight: Weight) -> Law | None:
    """The usual law of what is outside the blocks; None inside them, where the scheme has its say.

    N(0, 0.02²) for tables (token embeddings, positions), as in BERT and GPT-2; N(0, 1/fan_in) for matrices (embeddings
    of real-valued tokens, readouts), which keeps the variance.

    Example:
        >>> from attntut.anatomy.weight import weights
        >>> each = weights(64, 4)
        >>> [law_outside_blocks(each[role]) for role in ("embedding", "readout", "query")]
        [Normal(sigma=0.02), Normal(sigma=0.125), None]
    """
    if weight.role in BRANCH:
        return None
    return Normal(0.02) if weight.is_table else Normal(weight.fan_in**-0.5)
