"""One call that reads a model and answers with the starts that fit it, best first, and with what is worse here."""

from __future__ import annotations

import copy
import math
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attntut._checks import check_choice
from attntut._extras import extra
from attntut.adjust.handle import acting_on, adjust, given_traits, known_view
from attntut.adjust.registry import adjustments
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.view import ModelView
from attntut.anatomy.weight import ROLES
from attntut.device import seeded
from attntut.diagnose import Report, diagnose
from attntut.diagnose.faults import Finding
from attntut.diagnose.faults.facts import Facts as Measured
from attntut.init import initialize_, schemes
from attntut.init.requirements import unmet
from attntut.init.width import unit_logits
from attntut.recommend.rules import FACTS, STRENGTHS, Question, Rule, facts, parts, questions
from attntut.recommend.runs import Found, look_up

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult

RATES = "learning rates by role"
VERDICTS = {
    "take": "better, or not worse and made for it",
    "avoid": "worse here",
    "noise": "tried, and not told apart from the model without it",
    "other": "it fits, and no rule speaks of it",
}
"""What is advised, in the order of :attr:`Recommendation.advice`."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One start, or method, and what is known of it here.

    Attributes:
        start: a scheme, ``"+ method"`` or ``"scheme + method"``.
        verdict: one of :data:`VERDICTS`, or ``"as it is"``.
        strength: a key of :data:`STRENGTHS`.
        why: a sentence.
        records: what the book measured, each ``"chapter: name"``.
        found: what the stored sweeps tell; None if it was in none with a model like this.
        std: predicted standard deviation of the entries, by role.
        logit_std: predicted, for tokens of unit variance; None where the scale is not known.
        measured: of a copy drawn by it, at step 0: ``logit_std``; ``stream``, the variance of the stream after the last
            block over that after the first; with a loss ``gradient``, the first block's over the last one's. Empty
            where none was drawn.
        findings: warnings and errors of :func:`~attntut.diagnose.diagnose` on that copy.
        doubt: why the reason of the rule does not hold here; empty if nothing speaks against it.
        note: why none could be drawn, or what to confirm.
    """

    start: str
    verdict: str
    strength: str = "none"
    why: str = ""
    records: tuple[str, ...] = ()
    found: Found | None = None
    std: Mapping[str, float] = field(default_factory=dict)
    logit_std: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    doubt: str = ""
    note: str = ""

    @property
    def call(self) -> str:
        """The code that applies it.

        >>> Advice(start="xavier_normal + branch_scale", verdict="take").call
        'initialize_(model, "xavier_normal", inputs=inputs); adjust(model, "branch_scale")'
        """
        scheme, methods = parts(self.start)
        requires = schemes()[scheme].requires if scheme else ()
        more = ", batch=inputs" * ("batch" in requires) + f', force="{RATES}"' * (RATES in requires)
        drawn = [f'initialize_(model, "{scheme}", inputs=inputs{more})'] if scheme else []
        return "; ".join(drawn + [adjustments()[each].call for each in methods])

    @property
    def is_behind(self) -> bool:
        """Whether a stored run at its own best rate is worse than the default's, beyond the interval."""
        return self.found is not None and any(each.verdict < 0 for each in self.found.comparisons)

    @property
    def is_method(self) -> bool:
        """Whether it leaves the weights as they are, and adds methods."""
        return not parts(self.start)[0]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What :func:`recommend` answers.

    Attributes:
        model: name of its class.
        facts: what the rules know of it: :data:`~attntut.recommend.rules.FACTS`; None for what is not known.
        advice: by verdict, in the order of :data:`VERDICTS`; starts before methods, and the best first.
        as_it_is: the model with its present weights.
        asks: questions of the map that only you can answer, and have not, each with what an answer leads to.
        also: sentences of rules that apply, and name no start.
        findings: of the model as it is.
        notes: what could not be seen, or judged.
    """

    model: str
    facts: Mapping[str, Any]
    advice: tuple[Advice, ...]
    as_it_is: Advice
    asks: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, verdict: str) -> tuple[Advice, ...]:
        """The advice with this verdict."""
        return tuple(each for each in self.advice if each.verdict == verdict)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary an advice, the model as it is first."""
        found = []
        for each in (self.as_it_is, *self.advice):
            row: dict[str, Any] = {name: getattr(each, name) for name in ("start", "verdict", "strength", "why")}
            row["records"] = list(each.records)
            row["runs"] = "; ".join(map(str, each.found.comparisons)) if each.found else ""
            row |= {"doubt": each.doubt, "note": each.note, "predicted_logit_std": each.logit_std}
            row |= {f"measured_{name}": value for name, value in each.measured.items()}
            row |= {f"std_{role}": value for role, value in each.std.items()}
            found.append(row | {"findings": [finding.name for finding in each.findings]})
        return found

    def frame(self) -> pd.DataFrame:
        """The rows as a table of pandas.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        with extra("tables"):
            import pandas as pd
        return pd.DataFrame(self.rows())

    def __str__(self) -> str:
        from attntut.recommend import render

        return render.text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from attntut.recommend import render

        yield from render.pieces(self, options.max_width)

    def _repr_html_(self) -> str:
        from attntut.recommend import render

        return render.html(self)

    def __repr__(self) -> str:
        return f"Recommendation({self.model}: {', '.join(each.start for each in self.of('take')) or 'no evidence'})"


def recommend(
    model: nn.Module,
    inputs: Any,
    loss: Callable[[Any], Tensor] | None = None,
    *,
    given: Mapping[str, str] | None = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
) -> Recommendation:
    """Say which starts and methods fit a model, best first, what each predicts here, why, and how sure that is.

    The rules are those of the book's map. Behind each answer stand the chapters' records and, where a stored sweep had
    such models, the difference from its default, each at its own best learning rate. Each start is drawn on a copy,
    which is run once: what :func:`~attntut.diagnose.diagnose` warns of goes behind what it does not, unless such models
    were trained. The model stays as it is.

    Args:
        model: any model with attention.
        inputs: what it is called with: as in :func:`~attntut.init.view`.
        loss: from the output to a scalar; with it, the gradients of the first and the last block are compared, too.
        given: answers to questions of the map that no model can answer, by the question's name, each by how it begins:
            ``{"data": "Yes", "bad": "No"}``.
        roles, n_heads: for what is not found by listening: as in :func:`~attntut.init.view`.

    Returns:
        The answer; it prints, as text, in a terminal and in a notebook.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: there is no attention in it, or ``given`` has no such question or answer.
        Exception: whatever the model raises.

    Example:
        >>> import torch
        >>> from attntut import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(n_classes=10, d_input=16, seq_len=4, n_layers=8), seed=0)
        >>> answer = recommend(model, torch.randn(8, 4, 16))
        >>> [(each.start, each.strength) for each in answer.of("take")]
        [('xavier_normal + branch_scale', 'run'), ('zero_output', 'run')]
        >>> print(answer.of("take")[0].found.comparisons[0])
        8 blocks: +0.015 [+0.005, +0.024], better
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module: got {type(model).__name__}.")
    yours = {each.id: each for each in questions() if each.yours}
    answers = {check_choice("given", id, yours): yours[id].answer(said) for id, said in (given or {}).items()}
    seen = known_view(model, inputs, roles, n_heads)
    reader = _Reader(model, inputs, loss, seen, dict(roles=roles, n_heads=n_heads))
    report = diagnose(model, inputs, loss, roles=roles)
    reader.known |= {"logits_now": _logits_now(report)} | {id: answer.say for id, answer in answers.items()}
    known, notes = reader.known, [*report.notes]
    given_rules = [rule for answer in answers.values() for rule in answer.rules]
    asked = [rule for each in questions() if not each.yours for answer in each.answers for rule in answer.rules]
    asked += given_rules
    if unknown := {FACTS[each]: None for rule in asked for each in rule.unknown(known)}:
        notes.append(f"Not known of this model, so that rules that ask for it were left out: {', '.join(unknown)}.")
    asked = [rule for rule in asked if rule.applies(known)]
    objections = {start: reader.objection(start) for rule in asked for start in rule.starts}
    unfit = {start: objections[start] for rule in asked for start in rule.take if objections[start]}
    notes += [f"For a model of this kind, but not for this one: {start} ({why})." for start, why in unfit.items()]
    avoid = {start: rule for rule in reversed(asked) for start in rule.avoid if not objections[start]}
    take = {start: rule for rule in asked for start in rule.take if start not in avoid and not objections[start]}
    noise = {
        start: rule for rule in asked for start in rule.noise if not (objections[start] or start in {**take, **avoid})
    }
    best = next((start for start in take if parts(start)[0]), "")
    advice = [reader.advise(start, "take", rule) for start, rule in take.items()]
    advice += [
        reader.advise(start, "avoid", rule, than=best if parts(start)[0] else "") for start, rule in avoid.items()
    ]
    advice += [reader.advise(start, "noise", rule) for start, rule in noise.items()]
    advice += [reader.advise(name, "other") for name in schemes() if name not in {**take, **avoid}
               and not reader.objection(name)]  # fmt: skip
    drawn = [reader.drawn(each) if each.verdict == "take" or _is_first(each, advice) else each for each in advice]
    drawn = [_doubted(each, drawn) for each in drawn]
    if reader.missing:
        notes.append(f"The stored runs were not read: {reader.missing}.")
    looks = [set(each.get("looks_like") or ()) for each in report.weights if each.get("role") in ROLES[:6]]
    names = ", ".join(sorted(set.intersection(*looks))) if looks else ""
    return Recommendation(
        model=type(model).__name__,
        facts=known,
        advice=tuple(sorted(drawn, key=_order)),
        as_it_is=Advice(start="as it is", verdict="as it is", why=names, **_measured(report)),
        asks=tuple(_asked(question) for question in yours.values() if question.id not in answers),
        also=tuple(rule.sentence for rule in asked if not rule.starts and (rule.when or rule in given_rules)),
        findings=tuple(report.findings),
        notes=tuple(notes),
    )


def _order(each: Advice) -> tuple[Any, ...]:
    """The key of sorting: unwarned (or run), the surer, not behind in a run, logits nearer to 1 come first."""
    far = abs(math.log(each.logit_std)) if each.verdict == "other" and each.logit_std else math.inf
    return (
        [*VERDICTS].index(each.verdict),
        each.is_method,
        each.verdict == "take" and each.strength != "run" and bool(each.findings or each.doubt),
        [*STRENGTHS].index(each.strength),
        each.is_behind,
        far,
    )


def _logits_now(report: Report) -> str | None:
    """How the logits are: good or ill, as in chapter 16, or large, which it had not; None where they are not seen."""
    stds = [each["logit_std"] for each in report.layers() if not math.isnan(each["logit_std"])]
    if not any(
        each.fault.startswith("logits too large") or each.fault == "entropy collapsed" for each in report.findings
    ):
        return "good" if stds else None
    return "ill" if stds and max(stds) >= 10 else "large"


def _asked(question: Question) -> str:
    """A question, and what to take or to avoid by each answer."""
    words = dict(take="take", avoid="worse", noise="within the noise")
    said = list[str]()
    for answer in question.answers:
        named = {word: [start.removeprefix("+ ") for rule in answer.rules for start in getattr(rule, each)]
                 for each, word in words.items()}  # fmt: skip
        if found := [f"{word} {', '.join(starts)}" for word, starts in named.items() if starts]:
            said.append(f"{answer.say.rstrip('.')}: {'; '.join(found)}.")
    return " ".join([f"{question.title} [{question.id}]", *said])


def _doubted(each: Advice, advice: Sequence[Advice]) -> Advice:
    """The same with a doubt, if the stream grows no less than from what its rule warns of."""
    rivals = [one for one in advice if one.verdict == "avoid" and one.why == each.why and "stream" in one.measured]
    grows = each.measured.get("stream", 0)
    if each.verdict != "take" or each.strength == "run" or grows < 2:  # post-LN: 1 from any start
        return each
    worse = [one.start for one in rivals if one.measured["stream"] <= grows]
    return replace(each, doubt=f"Here the stream grows no less than from {worse[0]}.") if worse else each


def _is_first(each: Advice, advice: Sequence[Advice]) -> bool:
    """Whether it stands for all that one rule warns of, by more than a formula."""
    alike = [one for one in advice if (one.verdict, one.why) == ("avoid", each.why) and one.strength != "formula"]
    return alike[:1] == [each]


class _Reader:
    """What is known of one model, and what each start would make of it."""

    def __init__(self, model: nn.Module, inputs: Any, loss: Any, seen: ModelView, options: dict[str, Any]) -> None:
        self.model, self.inputs, self.loss, self.seen, self.options = model, inputs, loss, seen, options
        self.known = facts(seen)
        self.traits = {**seen.traits, **given_traits(model)}
        self.first = next(entry.weight for entry in seen.entries if entry.attention is not None)
        self.missing = ""

    def objection(self, start: str) -> str:
        """Why the model is none that a start was made for; empty if it is."""
        name, methods = parts(start)
        there = acting_on(self.model)
        said = [adjustments()[each].objection(there, self.traits) or adjustments()[each].unfit(self.seen, {})
                for each in methods if each not in there]  # fmt: skip
        said += [f"{each!r} acts on it already" for each in methods if each in there]
        if name:
            wanted = schemes()[name].architecture(self.first.n_layers, self.first.d_head)
            lacking = unmet(schemes()[name].requires, self.traits, wanted, {"batch": self.inputs})
            said += [f"{need}: {has}" for need, has in lacking.items() if need != RATES]
        return "; ".join(filter(None, said))

    def advise(self, start: str, verdict: str, rule: Rule | None = None, than: str = "") -> Advice:
        """What is known of a start before it is drawn."""
        name, _ = parts(start)
        requires = schemes()[name].requires if name else ()
        found = None
        try:
            found = look_up(start, self.known, requires, than)
        except ModuleNotFoundError as error:
            self.missing = str(error)
        level = "none" if rule is None else "record" if rule.records and not rule.formula else "formula"
        if found:
            level = "near" if found.outside else "run"
        why = rule.sentence if rule else ""
        if rule is None and found and level == "run" and len({each.verdict for each in found.comparisons}) == 1:
            verdict = {1: "take", 0: "other", -1: "avoid"}[found.comparisons[0].verdict]
            why = f"In the stored runs it is {'ahead of' if verdict == 'take' else 'behind'} the default." * (
                verdict != "other"
            )
        std, logits = self.predict(name) if name else ({}, None)
        return Advice(
            start=start, verdict=verdict, strength=level, why=why, records=rule.records if rule else (), found=found,
            std=std, logit_std=logits, note=f"Confirm: {RATES}." if RATES in requires else "",
        )  # fmt: skip

    def predict(self, name: str) -> tuple[dict[str, float], float | None]:
        """Standard deviation of the entries by role, and of the logits: root mean squares over the model."""
        scheme, found = schemes()[name], dict[str, list[float]]()
        for entry in self.seen.entries:
            if entry.role in ROLES and not self.seen.is_computed(entry):
                found.setdefault(entry.role, []).append(scheme.std(entry.weight))
        scale: Any = self.traits.get("scale")
        law = unit_logits if self.known["qk_norm"] and scheme.predicts_logits is None else scheme.logit_std
        pairs = [(each.query.weight, each.key.weight) for each in self.seen.attention if each.query and each.key]
        logits = [law(*pair, scale) for pair in pairs] if scale else []
        return {role: _rms(found[role]) for role in ROLES if role in found}, _rms(logits) if logits else None

    def drawn(self, each: Advice) -> Advice:
        """The same with what a copy does that is drawn by it; as it is, where nothing acts on a copy as it stands."""
        name, methods = parts(each.start)
        on_model = [each for each in methods if adjustments()[each].is_undoable and "…" not in adjustments()[each].call]
        if not name and not on_model:
            return each
        try:
            other = copy.deepcopy(self.model)
            options = {"batch": self.inputs} if name and "batch" in schemes()[name].requires else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # what is left as it is: said of the model itself
                if name:
                    device = self.seen.entries[0].view.device
                    initialize_(other, name, inputs=self.inputs, generator=seeded(0, device), force=True,
                                **self.options, **options)  # fmt: skip
                for method in on_model:
                    adjust(other, method, inputs=self.inputs, **self.options)
            report = diagnose(other, self.inputs, self.loss, roles=self.options["roles"])
        except (ValueError, TypeError, RuntimeError) as error:
            return replace(each, note=f"{each.note} It could not be drawn on a copy: {error}".strip())
        return replace(each, **_measured(report))


def _measured(report: Report) -> dict[str, Any]:
    """What a report says of logits, stream and gradients, and what it warns of."""
    logits = [each["logit_std"] for each in report.layers() if not math.isnan(each["logit_std"])]
    stacks = [stack for stack in Measured.of(report).stacks if len(stack.blocks) > 1]
    growth = [stack.variance[-1] / stack.variance[0] for stack in stacks if stack.variance[0] > 0]
    ends = [(stack.blocks[0]["gradient_rms"], stack.blocks[-1]["gradient_rms"]) for stack in stacks]
    gradient = [first / last for first, last in ends if first and last]
    found = {"logit_std": logits, "stream": growth, "gradient": gradient}
    numbers = {
        name: statistics.median(each) if name == "logit_std" else max(each) for name, each in found.items() if each
    }
    return dict(measured=numbers, findings=tuple(each for each in report.findings if each.severity != "note"))


def _rms(numbers: Sequence[float]) -> float:
    return math.sqrt(math.fsum(x * x for x in numbers) / len(numbers))
