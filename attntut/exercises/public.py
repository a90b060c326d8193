"""Check an answer against the public case of an exercise: what a notebook does at once, and a grader with other cases."""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any

import torch

from attntut.exercises.wire import pack, unpack

VARIANTS = 12  # of the parameters of an exercise whose answer is a number
FEWEST_WORDS = 12  # of an explanation


def numbers(answer: Any) -> list[float]:
    """One number or several, as a list of floats; a ``TypeError`` if they are none."""
    several = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in several):
        raise TypeError(f"numbers are expected: got {answer!r}")
    return [float(x) for x in several]


def same(got: list[float], want: list[float], rtol: float) -> bool:
    """Whether two lists of numbers agree, each to within ``rtol`` of the wanted one."""
    return len(got) == len(want) and all(
        math.isfinite(a) and abs(a - b) <= rtol * abs(b) + 1e-12 for a, b in zip(got, want, strict=True)
    )


def judge_encoded(check: Mapping[str, Any], got: Any) -> None:
    """Raise a question unless ``got`` is the check's right answer: numbers, or one letter."""
    right = check["right"]
    if isinstance(right, str):
        letter = got.strip().lower() if isinstance(got, str) else None
        if letter == right:
            return
        raise AssertionError({trap: question for trap, question in check["traps"]}.get(letter, check["ask"]))
    try:
        got = numbers(got)
    except TypeError:
        raise AssertionError(f"Is your answer {_how_many(right)}?") from None
    if len(got) != len(right):
        raise AssertionError(f"Is your answer {_how_many(right)}?")
    if same(got, right, check["rtol"]):
        return
    for trap, question in check["traps"]:
        if same(got, trap, check["rtol"]):
            raise AssertionError(question)
    raise AssertionError(check["ask"])


def _how_many(right: list[float]) -> str:
    return "a number" if len(right) == 1 else f"{len(right)} numbers, as a tuple"


def judge_explanation(check: Mapping[str, Any], got: Any) -> None:
    """Raise a question unless ``got`` has a prediction, the right measured number and a reason of some words."""
    got = got if isinstance(got, dict) else {}
    if set(got) != {"prediction", "measured", "because"}:
        raise AssertionError("Has your answer its three parts: prediction, measured and because?")
    try:
        numbers(got["prediction"])
    except TypeError:
        raise AssertionError("What did you expect before you ran it? Which number?") from None
    judge_encoded(check, got["measured"])
    if not isinstance(got["because"], str) or len(got["because"].split()) < FEWEST_WORDS:
        raise AssertionError("Why do prediction and measurement agree, or differ? Can you say it in a sentence or two?")


def variant_of(student: str, number: str) -> int:
    """Which parameters a student gets; without a name, those of the page (0).

    Example:
        >>> variant_of("", "2.2"), variant_of("ada", "2.2") in range(1, VARIANTS)
        (0, True)
    """
    if not student:
        return 0
    digest = hashlib.sha256(f"{student.strip().lower()} {number}".encode()).digest()
    return 1 + int.from_bytes(digest[:4], "big") % (VARIANTS - 1)


@functools.cache
def records() -> dict[str, dict[str, Any]]:
    """Number of an exercise → what is shipped of it."""
    return json.loads(resources.files(__package__).joinpath("public.json").read_text(encoding="utf-8"))


def record(number: str) -> dict[str, Any]:
    """The shipped part of one exercise; a ``ValueError`` that lists the chapter's if there is none.

    Example:
        >>> record("2.9")
        Traceback (most recent call last):
        ValueError: number must be that of an exercise: got '2.9'. Chapter 2 has 2.1, ...
    """
    if number in records():
        return records()[number]
    chapter = number.split(".")[0]
    near = ", ".join(key for key in records() if key.split(".")[0] == chapter)
    what = f"Chapter {chapter} has {near}." if near else f"Chapters are {', '.join(dict.fromkeys(k.split('.')[0] for k in records()))}."
    raise ValueError(f"number must be that of an exercise: got {number!r}. {what}")


def used_names(source: str) -> set[str]:
    """Names that a cell reads: variables, attributes, imports and what they are renamed from.

    Example:
        >>> sorted(used_names("from torch import softmax as f; f(x.mT)"))
        ['f', 'mT', 'softmax', 'torch', 'x']
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            module = getattr(node, "module", None) or ""
            names.update(part for name in [module, *(a.name for a in node.names)] for part in name.split(".") if part)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"\w+", node.value):
            names.add(node.value)  # getattr(torch, "softmax")
    return names


def refuse_forbidden(number: str, source: str, forbidden: list[str]) -> None:
    """Raise a question if a cell calls what the exercise asks to do without."""
    called = sorted(used_names(source) & set(forbidden))
    if called:
        raise AssertionError(f"Exercise {number} asks you to do without {', '.join(called)}. Which steps is it made of?")


def namespace(setup: str = "") -> dict[str, Any]:
    """What an answer's cell may use: ``math``, ``torch``, and what the exercise sets up."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import math\nimport torch\n" + setup, space)
    return space


def check(number: str, source: str, student: str = "") -> None:
    """Check the text of an answer's cell against the public case; raise an ``AssertionError`` with a question.

    The cell is run alone, as a grader runs it: with ``math``, ``torch`` and what the exercise sets up, nothing else.

    Args:
        number: of the exercise, ``"2.4"``.
        source: Python code that defines the answer under the name that the exercise asks for.
        student: whose parameters an exercise with a number takes; those of the page without one.
    """
    shipped = record(number)
    refuse_forbidden(number, source, shipped["forbidden"])
    space = namespace(shipped["setup"])
    exec(compile(source, f"exercise {number}", "exec"), space)
    if shipped["name"] not in space:
        raise AssertionError(f"Your cell defines no {shipped['name']!r}. Under which name is the answer looked for?")
    answer = space[shipped["name"]]
    if "checks" in shipped:
        variant = variant_of(student, number) % len(shipped["checks"])
        judge = judge_explanation if shipped["kind"] == "explain" else judge_encoded
        judge(json.loads(base64.b64decode(shipped["checks"][variant])), answer)
        return
    tools = namespace(shipped["setup"])
    exec(shipped["probe"], tools)
    exec(shipped["judge"], tools)
    for case, want in zip(shipped["cases"], shipped["want"], strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            got = tools["probe"](answer, *unpack(case))
        tools["judge"](unpack(case), unpack(pack(got)), unpack(want))
