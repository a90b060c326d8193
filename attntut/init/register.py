"""What schemes and methods of adjustment have in common: what is said of each, and the registers that hold them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

from attntut._checks import check_choice, check_options
from attntut.init.requirements import REQUIREMENTS


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One scheme or method.

    Attributes:
        name: its name, that of its function.
        family: one of those of its register, the file of its function.
        formula: LaTeX; parts that may stand on lines of their own are ``\\quad`` or ``\\qquad`` apart.
        cite: key in the book's bibliography; empty where there is no paper.
        source: the paper or the code, and where in it.
        year: of the work cited, unless ``source`` names another.
        why: what it is for, in a sentence.
        requires: what it asks of the architecture: of :data:`~attntut.init.requirements.REQUIREMENTS`.
        function: what it does; its keyword arguments are the options.
    """

    kind: ClassVar[str]  # what messages call it
    name: str
    family: str
    formula: str
    cite: str
    source: str
    year: int
    why: str
    requires: tuple[str, ...] = ()
    function: Callable[..., Any]

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of the options; ``inspect.Parameter.empty`` is the default of one that must be given."""
        return keywords(self.function)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse an option that it does not have, and name those that it has."""
        check_options(f"The {self.kind} {self.name!r}", options, self.options)


Each = TypeVar("Each", bound=Entry)
Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def keywords(function: Callable[..., Any] | None) -> dict[str, Any]:
    """Names and defaults of what a function takes by keyword only."""
    if function is None:
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def enter(
    function: Function,
    kind: type[Each],
    register: dict[str, Each],
    families: Collection[str],
    *,
    cite: str,
    family: str | None = None,
    year: int | None = None,
    requires: Collection[str] = (),
    more: str = "",
    **about: Any,
) -> Function:
    """Put a function, with what its decorator says, into a register, and what is said into the function's docstring.

    Args:
        function: its name is that of the entry.
        kind: what to make of it.
        register, families: where it stands.
        family: by default the name of the function's file.
        year: by default the one in the key ``cite``.
        more: of the docstring, below what all entries say.
        cite, requires, about: as in ``kind``.
    """
    name, family = function.__name__, family or function.__module__.rpartition(".")[2]
    for each in requires:
        check_choice("requires", each, REQUIREMENTS)
    if year is None:
        if (found := re.search(r"\d{4}", cite)) is None:
            raise ValueError(f"year must be given where cite has none: got cite={cite!r}.")
        year = int(found[0])
    entry = kind(name=name, family=family, cite=cite, year=year, requires=tuple(requires), function=function, **about)
    for label in ("formula", "source", "why"):
        if not (text := getattr(entry, label)).strip():
            raise ValueError(f"{label} must say something: got {text!r}.")
    check_choice("family", family, families)
    if name in register:
        raise ValueError(f"A {kind.kind} named {name!r} exists already, in the family {register[name].family!r}.")
    register[name] = entry
    summary, _, rest = inspect.cleandoc(function.__doc__ or "").partition("\n\n")
    needs = f"\n\nRequires: {', '.join(requires)}." if requires else ""
    said = f"{summary}\n\n.. math:: {entry.formula}\n\n{entry.why}\n\nSource: {entry.source}.{needs}{more}"
    function.__doc__ = f"{said}\n\n{rest}\n"
    return function


def by_family(entries: Mapping[str, Each], families: Collection[str]) -> Mapping[str, Each]:
    """The entries in the order of the families."""
    order = list(families)
    return MappingProxyType(dict(sorted(entries.items(), key=lambda item: order.index(item[1].family))))
