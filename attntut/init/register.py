"""What the registers of schemes and of methods of adjustment have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from attntut._checks import check_choice, year_in
from attntut.init.requirements import REQUIREMENTS


class OfFamily(Protocol):
    """What is listed by family."""

    @property
    def family(self) -> str: ...


Each = TypeVar("Each", bound=OfFamily)


def check_entry(cite: str, year: int | None, requires: Collection[str], **texts: str) -> int:
    """Refuse an unknown requirement and an empty text; return the year, by default the one in the key ``cite``.

    Raises:
        ValueError: one of these, or no year.
    """
    for name in requires:
        check_choice("requires", name, REQUIREMENTS)
    for label, text in texts.items():
        if not text.strip():
            raise ValueError(f"{label} must say something: got {text!r}.")
    return year_in(cite) if year is None else year


def explain(
    function: Callable[..., Any], *, formula: str, why: str, source: str, requires: Sequence[str], more: str = ""
) -> str:
    """The docstring of a function, with what its decorator says below the first line."""
    summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
    needs = f"\n\nRequires: {', '.join(requires)}." if requires else ""
    return f"{summary}\n\n.. math:: {formula}\n\n{why}\n\nSource: {source}.{needs}{more}\n\n{rest}\n"


def by_family(entries: Mapping[str, Each], families: Collection[str]) -> Mapping[str, Each]:
    """The entries in the order of the families."""
    order = list(families)
    return MappingProxyType(dict(sorted(entries.items(), key=lambda item: order.index(item[1].family))))
