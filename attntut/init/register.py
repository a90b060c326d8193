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
        """Refuse an option that it does not have.

        Raises:
            ValueError: names the options that it has.
        """
        check_options(f"The {self.kind} {self.name!r}", options, self.options)


Each = TypeVar("Each", bound=Entry)


@functools.cache
def keywords(function: Callable[..., Any] | None) -> dict[str, Any]:
    """Names and defaults of what a function takes by keyword only."""
    if function is None:
        return {}
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


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
    if year is None:
        if (found := re.search(r"\d{4}", cite)) is None:
            raise ValueError(f"year must be given where cite has none: got cite={cite!r}.")
        year = int(found[0])
    return year


def enter(entry: Each, register: dict[str, Each], more: str = "") -> None:
    """Put an entry into a register, and what its decorator says, and more, below the first line of its docstring.

    Raises:
        ValueError: the name is taken.
    """
    if entry.name in register:
        family = register[entry.name].family
        raise ValueError(f"A {entry.kind} named {entry.name!r} exists already, in the family {family!r}.")
    register[entry.name] = entry
    summary, _, rest = inspect.cleandoc(entry.function.__doc__ or "").partition("\n\n")
    needs = f"\n\nRequires: {', '.join(entry.requires)}." if entry.requires else ""
    said = f"{summary}\n\n.. math:: {entry.formula}\n\n{entry.why}\n\nSource: {entry.source}.{needs}{more}"
    entry.function.__doc__ = f"{said}\n\n{rest}\n"


def by_family(entries: Mapping[str, Each], families: Collection[str]) -> Mapping[str, Each]:
    """The entries in the order of the families."""
    order = list(families)
    return MappingProxyType(dict(sorted(entries.items(), key=lambda item: order.index(item[1].family))))
