"""Check an answer against the public case of an exercise, as a grader does with other cases."""

from __future__ import annotations

import ast
import base64
import functools
import hashlib
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any

import numpy as np
import torch

from attntut.exercises.wire import pack, unpack

VARIANTS = 12  # of the parameters of an exercise whose answer is a number
FEWEST_WORDS = 12  # of an explanation
WORD = re.compile(r"[\u3040-\u9fff]|[^\s\u3040-\u9fff]+")  # a Chinese or Japanese character counts as one


def numbers(answer: Any) -> list[float]:
    """One number or several, as a list of floats; a ``TypeError`` if they are none.

    Example:
        >>> numbers((1, torch.tensor(0.5)))
        [1.0, 0.5]
    """
    several = list(answer) if isinstance(answer, (list, tuple)) else [answer]
    several = [x.item() if isinstance(x, (torch.Tensor, np.generic)) and x.ndim == 0 else x for x in several]
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in several):
        raise TypeError(f"numbers are expected: got {answer!r}")
    return [float(x) for x in several]


def same(got: list[float], want: list[float], rtol: float) -> bool:
    """Whether two lists of numbers agree, each to within ``rtol`` of the wanted one."""
    return len(got) == len(want) and all(
        math.isfinite(a) and abs(a - b) <= rtol * abs(b) + 1e-12 for a, b in zip(got, want, strict=True)
    )


def judge_encoded(check: Mapping[str, Any], variant: int, got: Any) -> None:
    """Raise a question unless ``got`` is the right answer of a variant: numbers, or one letter."""
    right = check["right"][variant % len(check["right"])]
    traps = [values[variant % len(values)] for values in check["traps"]]
    if isinstance(right, str):
        got = got.strip().lower() if isinstance(got, str) else None
        is_same = functools.partial(operator.eq, got)
    else:
        try:
            got = numbers(got)
        except TypeError:
            got = []
        if len(got) != len(right):
            many = "a number" if len(right) == 1 else f"{len(right)} numbers, as a tuple"
            raise AssertionError(f"Is your answer {many}?")
        is_same = functools.partial(same, got, rtol=check["rtol"])
    if is_same(right):
        return
    for trap, question in zip(traps, check["questions"], strict=True):
        if is_same(trap):
            raise AssertionError(question)
    raise AssertionError(check["ask"])


def judge_explanation(check: Mapping[str, Any], variant: int, got: Any) -> None:
    """Raise a question unless ``got`` has a prediction, the right measured number and a reason of some words."""
    got = got if isinstance(got, dict) else {}
    if set(got) != {"prediction", "measured", "because"}:
        raise AssertionError("Has your answer its three parts: prediction, measured and because?")
    try:
        numbers(got["prediction"])
    except TypeError:
        raise AssertionError("What did you expect before you ran it? Which number?") from None
    judge_encoded(check, variant, got["measured"])
    if not isinstance(got["because"], str) or len(WORD.findall(got["because"])) < FEWEST_WORDS:
        raise AssertionError(f"Why do they agree, or differ? Can you say it in {FEWEST_WORDS} words or more?")


def judged(compare: Callable[..., None], case: Any, got: Any, want: Any) -> None:
    """Ask ``compare``, which counts on data of the right kinds; a question where ``got`` is something else."""
    try:
        compare(case, got, want)
    except AssertionError:
        raise
    except Exception:
        raise AssertionError(
            "Is what comes back what the exercise asks for: numbers and tensors, of the right kinds and shapes?"
        ) from None


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
    chapters = ", ".join(dict.fromkeys(key.split(".")[0] for key in records()))
    what = f"Chapter {chapter} has {near}." if near else f"The chapters are {chapters}."
    raise ValueError(f"number must be that of an exercise: got {number!r}. {what}")


def used_names(source: str) -> set[str]:
    """Names that a cell reads and does not define itself: variables, attributes, imports, and strings that are a name.

    Example:
        >>> sorted(used_names("from torch import softmax as f; f(x.mT)"))
        ['f', 'mT', 'softmax', 'torch', 'x']
    """
    nodes = list(ast.walk(ast.parse(source)))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and node.id not in own:
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
        raise AssertionError(f"Exercise {number} asks you to do without {', '.join(called)}. What else leads there?")


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
    if "check" in shipped:
        judge = judge_explanation if shipped["kind"] == "explain" else judge_encoded
        judge(json.loads(base64.b64decode(shipped["check"])), variant_of(student, number), answer)
        return
    tools = namespace(shipped["setup"])
    exec(shipped["probe"], tools)
    exec(shipped["judge"], tools)
    for case, want in zip(shipped["cases"], shipped["want"], strict=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            got = tools["probe"](answer, *unpack(case))
        judged(tools["judge"], unpack(case), unpack(pack(got)), unpack(want))
