"""What an exercise is: a question in a chapter, a solution, and wrong answers that its check must reject."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exercise:
    """One exercise of a chapter.

    Attributes:
        number: as in the chapter, ``"2.1"``.
        solution: the answer: a value, or a function.
        check: takes an answer and raises an ``AssertionError`` whose text is a question that leads to the mistake.
        wrong: plausible wrong answers by the mistake they make; the check must reject each.
    """

    number: str
    solution: Any
    check: Callable[[Any], None]
    wrong: Mapping[str, Any]
