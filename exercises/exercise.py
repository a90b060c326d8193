"""What an exercise is: one source for the chapter's text, the answer on the page, the notebooks and the grader.

Five kinds: a :class:`Number`, a :class:`Choice`, a :class:`Code`, a :class:`Mend` (code that mends a broken model), and an
:class:`Explain` (predict, measure, explain). Each has *cases*, made from a seed; a *probe*, which runs beside the
answer and returns plain data; and a *judge*, which compares these data with what the solution gives and raises an
``AssertionError`` whose text is a question that leads to the mistake.
"""

from __future__ import annotations

import ast
import base64
import functools
import inspect
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from attntut.exercises.public import VARIANTS, judge_encoded, judge_explanation, judged, numbers
from attntut.exercises.wire import pack

Case = Any
Parameters = dict[str, Any]


def short(x: float) -> float:
    """Four digits, which is more than an answer is checked to, so that the shipped check is small."""
    return float(f"{x:.4g}")


def call(answer: Callable[..., Any], *case: Any) -> Any:
    """What most exercises ask of an answer."""
    return answer(*case)


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What all kinds share.

    Attributes:
        number: as in the chapter, ``"2.1"``.
        title: three words that say what it is about.
        minutes, difficulty, points: for the reader and for the instructor; ``points`` are those given by the grader.
        needs: numbers of exercises, or names of sections of the chapter, that should come before.
        statement: Markdown; ``<<name>>`` stands for a parameter.
        hint: Markdown.
        starter: what stands in the answer's cell when it is handed out.
        setup: what an answer may use besides ``math`` and ``torch``: import lines, and classes and functions of this
            chapter's file, which use nothing else; their source is shown.
        forbidden: names that the answer must do without.
        seconds: how long the answer may run.
        manual: points that a person gives.
    """

    kind: ClassVar[str]
    number: str
    title: str
    minutes: int
    difficulty: Literal["easy", "medium", "hard"]
    points: int
    statement: str
    hint: str
    needs: tuple[str, ...] = ()
    name: str = "answer"
    starter: str = "answer = ..."
    setup: tuple[Any, ...] = ()
    forbidden: frozenset[str] = frozenset()
    seconds: float = 10
    manual: int = 0

    def text(self, variant: int = 0) -> str:
        """The statement with the parameters of a variant; variant 0 is the page's."""
        return self.statement

    def cases(self, seed: int) -> list[Case]:
        """The inputs of the probe; seed 0 is public."""
        raise NotImplementedError

    def want(self, seed: int) -> list[Any]:
        """What the solution gives in each case, as plain data."""
        raise NotImplementedError

    def judge(self, case: Case, got: Any, want: Any) -> None:
        """Raise an ``AssertionError`` with a question if ``got`` is wrong."""
        raise NotImplementedError

    def public(self) -> dict[str, Any]:
        """What is shipped for the check in a notebook and on the page: no solution."""
        names = "kind title minutes difficulty points manual needs name seconds".split()
        return {**{n: getattr(self, n) for n in names}, "setup": self.prelude(), "forbidden": sorted(self.forbidden)}

    def prelude(self) -> str:
        """The source of ``setup``."""
        parts = [part if isinstance(part, str) else textwrap.dedent(inspect.getsource(part)) for part in self.setup]
        return "\n\n".join(part.strip("\n") for part in parts)


def rounded(answer: Any) -> list[float]:
    """Numbers to seven digits, which is more than any answer is checked to."""
    return [float(f"{x:.7g}") for x in numbers(answer)]


def encode(check: Mapping[str, Any]) -> str:
    """Write a check so that it cannot be read at a glance; it is no secret."""
    return base64.b64encode(json.dumps(check, ensure_ascii=False).encode()).decode()


@dataclass(frozen=True, kw_only=True)
class Number(Exercise):
    """One number or several, with parameters that differ from student to student.

    Attributes:
        parameters: values of each parameter in turn; the first is the page's, variant ``k`` takes the ``k``-th, and
            begins again where a sequence ends.
        solve: the answer, from the parameters by name; a number or a tuple.
        traps: question → the wrong answer that it belongs to, from the parameters.
        ask: the question for every other wrong answer.
        rtol: how far a right answer may be rounded.
        wrong: further wrong answers, for which ``ask`` is the right question.
    """

    kind: ClassVar[str] = "number"
    parameters: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    solve: Callable[..., Any]
    traps: Mapping[str, Callable[..., Any]]
    ask: str
    rtol: float = 0.015
    wrong: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def given(self, variant: int) -> Parameters:
        """The parameters of a variant."""
        return {name: values[variant % len(values)] for name, values in self.parameters.items()}

    def text(self, variant: int = 0) -> str:
        text = self.statement
        for name, value in self.given(variant).items():
            text = text.replace(f"<<{name}>>", f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value}")
        return text

    def cases(self, seed: int) -> list[Case]:
        return [seed % VARIANTS]

    def want(self, seed: int) -> list[Any]:
        return [self.check["right"][case % len(self.check["right"])] for case in self.cases(seed)]

    @functools.cached_property
    def check(self) -> dict[str, Any]:
        """The right answers and the traps of every variant, and the questions."""
        variants = [self.given(k) for k in range(VARIANTS if self.parameters else 1)]
        right, *traps = (
            [rounded(solve(**given)) for given in variants] for solve in [self.solve, *self.traps.values()]
        )
        return {"right": right, "rtol": self.rtol, "traps": traps, "questions": list(self.traps), "ask": self.ask}

    def judge(self, case: Case, got: Any, want: Any) -> None:
        judge_encoded(self.check, case, got)

    def public(self) -> dict[str, Any]:
        given = [", ".join(f"{k} = {v}" for k, v in self.given(n).items()) for n in range(len(self.check["right"]))]
        return {**super().public(), "given": given, "check": encode(self.check)}


@dataclass(frozen=True, kw_only=True)
class Choice(Exercise):
    """One of several options.

    Attributes:
        options: text → the question that a reader who chose it is asked; the right one has an empty question.
    """

    kind: ClassVar[str] = "choice"
    starter: str = 'answer = "?"  # one letter'
    options: Mapping[str, str]

    def letters(self) -> dict[str, tuple[str, str]]:
        """Letter → (text, question)."""
        return dict(zip("abcdefgh", self.options.items(), strict=False))

    @property
    def check(self) -> dict[str, Any]:
        """The right letter, and the others with their questions."""
        right = [letter for letter, (_, question) in self.letters().items() if not question]
        wrong = {letter: question for letter, (_, question) in self.letters().items() if question}
        ask = f"Which letter do you choose, of {', '.join(self.letters())}?"
        return {"right": right, "traps": [[w] for w in wrong], "questions": list(wrong.values()), "ask": ask}

    def cases(self, seed: int) -> list[Case]:
        return [0]

    def want(self, seed: int) -> list[Any]:
        return self.check["right"]

    def judge(self, case: Case, got: Any, want: Any) -> None:
        judge_encoded(self.check, case, got)

    def public(self) -> dict[str, Any]:
        return {**super().public(), "given": [""], "check": encode(self.check)}


@dataclass(frozen=True, kw_only=True)
class Explain(Number):
    """Predict, measure, explain: the measured number is checked, and the explanation is read by a person.

    The answer is ``dict(prediction=…, measured=…, because="…")``. ``manual`` points are the reader's.
    """

    kind: ClassVar[str] = "explain"
    starter: str = 'answer = dict(\n    prediction=...,  # before you run it\n    measured=...,\n    because="...",\n)'
    manual: int = 4
    rubric: str = ""

    def judge(self, case: Case, got: Any, want: Any) -> None:
        judge_explanation(self.check, case, got)


@dataclass(frozen=True, kw_only=True)
class Code(Exercise):
    """A function.

    Attributes:
        make: seed → the cases, each a tuple of arguments of ``ask``; plain data and tensors, in shapes whose sizes all differ.
        ask: ``ask(answer, *case)`` calls the answer (:func:`call` does no more), and returns plain data and tensors. Its source is shipped, so it uses
            nothing but ``torch``, ``math``, what ``setup`` imports, and what it defines.
        compare: ``compare(case, got, want)`` raises a question. Its source is shipped too, under the same rule.
        solution: a function that stands alone, as a student would write it.
        wrong: what the mistake is → (a wrong function, a part of the question that it must be asked).
        equivalent: pieces of code that the mutation test may put into the solution, because they change no result.
    """

    kind: ClassVar[str] = "code"
    make: Callable[[int], list[tuple[Any, ...]]]
    ask: Callable[..., Any] = call
    compare: Callable[[Case, Any, Any], None]
    solution: Callable[..., Any]
    wrong: Mapping[str, tuple[Callable[..., Any], str]]
    equivalent: tuple[str, ...] = ()

    def cases(self, seed: int) -> list[Case]:
        return self.make(seed)

    def probe(self, answer: Callable[..., Any], seed: int) -> list[Any]:
        """Run ``ask`` on every case, as the grader's worker does but in this process."""
        outcomes = []
        for case in self.cases(seed):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                outcomes.append(self.ask(answer, *case))
        return outcomes

    def want(self, seed: int) -> list[Any]:
        return self.probe(self.solution, seed)

    def judge(self, case: Case, got: Any, want: Any) -> None:
        judged(self.compare, case, got, want)

    def source(self, function: Callable[..., Any] | None = None) -> str:
        """A function's source under the name that the exercise asks for."""
        function = function or self.solution
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        definition = tree.body[0]
        assert isinstance(definition, ast.FunctionDef)
        definition.name = self.name
        return ast.unparse(tree)

    def public(self) -> dict[str, Any]:
        sources = {"probe": plain_source(self.ask, "probe"), "judge": plain_source(self.compare, "judge")}
        cases, want = ([pack(case) for case in several] for several in (self.cases(0), self.want(0)))
        return {**super().public(), **sources, "cases": cases, "want": want}


@dataclass(frozen=True, kw_only=True)
class Mend(Code):
    """Code that mends a broken model: the fault is found with ``attntut.diagnose``."""

    kind: ClassVar[str] = "mend"


def plain_source(function: Callable[..., Any], name: str) -> str:
    """The source of a probe or a judge under the name by which it is called, without annotations and docstring."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef), f"{function} is not a function that was written with def."
    definition.name, definition.returns = name, None
    arguments = definition.args
    for argument in [*arguments.args, *arguments.kwonlyargs, *filter(None, [arguments.vararg, arguments.kwarg])]:
        argument.annotation = None
    if ast.get_docstring(definition) is not None:
        definition.body = definition.body[1:]
    return ast.unparse(tree)
