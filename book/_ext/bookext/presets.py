"""The playground's questions: a button that plays each, and its answer, which torch finds when the book is built.

The directive ``preset`` has the playground's state as its argument, as in the page's address, and in each line of its
content a quantity, the number of steps after which it is measured, and what it must show::

    ```{preset} task=previous&depth=1&a=xavier_normal~query_key:0.05&b=xavier_normal
    keys after 0: A > B
    accuracy after 100: B > A > 0.2, B > 1.5 A
    ```

The page gets means and intervals over seeds, never typed digits. What the whole interval does not show, a state that
torch cannot make, and a word that is not known each fail the build.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from torch import Tensor

from attntut import Transformer, TransformerConfig, seeded
from attntut.adjust import adjust
from attntut.evidence import confidence_interval, number
from attntut.init import initialize_, schemes, view
from attntut.measure import attention_entropy, logit_statistics, rms
from attntut.parts import QKNorm
from attntut.sweeps.logits import heard
from attntut.train import train_many
from attntut.train.scoring import Evaluation, evaluate

from .playground import GROUPS, OWN, SHARED, tasks

SEEDS = 4
LETTERS = "ABC"
QUANTITIES = {
    "accuracy": "the test accuracy is {}",
    "loss": "the test loss is {}",
    "logit_std": "the std of the logits is {}",
    "keys": "a token hears {} keys",
    "rms": "the RMS of the stream after the last block is {}",
}
LINE = re.compile(r"(\w+) after (\d+): (.+)")
TERM = re.compile(r"(\d*\.?\d*) ?([ABC]?)")
Values = dict[str, list[float]]


# ----- what is played -----


def parsed(state: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What an address chooses for all runs, and for each.

    >>> shared, runs = parsed("width=16&a=constant&b=xavier_normal~query_key:8~qk_norm:true")
    >>> shared["width"], runs[0]["scheme"], runs[1]["query_key"], runs[1]["qk_norm"]
    (16, 'constant', 8.0, True)
    >>> parsed("a=constant~querykey:8")
    Traceback (most recent call last):
    ValueError: the playground has no 'querykey'
    """
    given = dict(parse_qsl(state, strict_parsing=True))
    runs = [given.pop(letter).split("~") for letter in LETTERS.lower() if letter in given]
    own = [dict(each.split(":") for each in settings) | {"scheme": scheme} for scheme, *settings in runs]
    if not own:
        raise ValueError("a state has one run at least")
    return _read(given, SHARED), [_read(each, OWN) for each in own]


def _read(given: dict[str, str], usual: dict[str, Any]) -> dict[str, Any]:
    """The settings, of the types that the usual ones have."""
    found = dict(usual)
    for name, text in given.items():
        if name not in usual:
            raise ValueError(f"the playground has no {name!r}")
        kind = float if usual[name] is None else type(usual[name])
        found[name] = text == "true" if kind is bool else kind(text)
    return found


def drawn(shared: dict[str, Any], own: dict[str, Any], seed: int) -> Transformer:
    """The model that the playground would train, with torch's random numbers."""
    scheme = schemes()[own["scheme"]]
    sizes = dict(d_model=shared["width"], n_heads=shared["heads"], n_layers=shared["depth"])
    wants = scheme.architecture(sizes["n_layers"], sizes["d_model"] // sizes["n_heads"])
    chosen = dict(norm=own["norm"], positions=own["positions"]) | (dict(parts=(QKNorm(),)) if own["qk_norm"] else {})
    config = dict(activation="relu") | tasks()[shared["task"]][1] | sizes | wants | chosen
    model, generator = Transformer(TransformerConfig(**config)), seeded(seed)
    initialize_(model, scheme, generator=generator, force=True)  # the page says what a scheme needs, and goes on
    with torch.no_grad():
        for group, roles in GROUPS.items():
            for entry in view(model).by_role(*roles) if own[group] is not None else ():
                fan_in = 1 if entry.weight.is_table else entry.weight.fan_in
                entry.view.normal_(0, own[group] / math.sqrt(fan_in), generator=generator)
        if own["position_scale"] is not None:
            if own["positions"] != "learned":
                raise ValueError(f"torch's {own['positions']} positions have no size")
            model.positions.normal_(0, own["position_scale"], generator=generator)
    if own["soft_cap"] is not None:
        adjust(model, "soft_cap", cap=own["soft_cap"])
    return model


@cache
def trained(state: str, steps: int) -> dict[str, tuple[list[Transformer], list[Evaluation]]]:
    """The models of each run after so many steps, a seed each, and what they do on the test set."""
    shared, runs = parsed(state)
    data, found = tasks()[shared["task"]][0], {}
    for letter, own in zip(LETTERS, runs, strict=False):
        models = [drawn(shared, own, seed) for seed in range(SEEDS)]
        if steps:
            how = dict(optimizer=own["optimizer"], warmup=own["warmup"], progress=False)
            histories = train_many(models, data, steps=steps, lrs=own["lr"], **how)
            if ill := [each.diverged_at for each in histories if each.diverged]:
                raise ValueError(f"run {letter} diverges at steps {ill}")
            found[letter] = models, [each.evaluations[-1] for each in histories]
        else:
            found[letter] = models, [evaluate(model, data, 0) for model in models]
    return found


def measured(quantity: str, state: str, steps: int) -> Values:
    """Run to its values after so many steps, a seed each."""
    ends = trained(state, steps).items()
    if quantity in ("accuracy", "loss"):
        return {letter: [getattr(each, quantity) for each in seen] for letter, (_, seen) in ends}
    x = tasks()[parsed(state)[0]["task"]][0].test_inputs[:64]
    return {letter: [statistics(model, x)[quantity] for model in models] for letter, (models, _) in ends}


@torch.no_grad()
def statistics(model: Transformer, x: Tensor) -> dict[str, float]:
    """Over all blocks and heads, what the softmax gets and gives; after the last block, the stream."""
    logits, trace = heard(model, model.eval().trace, x)
    std, entropy = logit_statistics(logits).std.square().mean().sqrt(), attention_entropy(logits.softmax(-1)).mean()
    return dict(logit_std=std.item(), keys=entropy.exp().item(), rms=rms(trace.stream[-1]).item())


# ----- what it shows -----


@dataclass(frozen=True)
class Answer:
    """A line of the directive: a quantity, after how many steps, and what must hold."""

    quantity: str
    steps: int
    expected: str

    @classmethod
    def read(cls, line: str) -> Answer:
        """From its line.

        >>> Answer.read("accuracy after 100: B > A > 0.2")
        Answer(quantity='accuracy', steps=100, expected='B > A > 0.2')
        """
        found = LINE.fullmatch(line.strip())
        if not found or found[1] not in QUANTITIES:
            raise ValueError(f"a line must be like 'accuracy after 100: A > B', of {[*QUANTITIES]}: got {line!r}")
        return cls(found[1], int(found[2]), found[3])

    def check(self, values: Values) -> None:
        """Refuse what the interval does not show.

        >>> values = dict(A=[1.0, 1.1, 0.9], B=[2.0, 2.1, 2.0])
        >>> Answer("rms", 0, "B > 1.5 A > 0.5").check(values)
        >>> Answer("rms", 0, "B > 2 A").check(values)
        Traceback (most recent call last):
        ValueError: 'B > 2 A' is not shown: B − 2 A of rms after 0 steps is 0.03 ± 0.4
        """
        for more, less in self._pairs():
            a, b = (_samples(term, values) for term in (more, less))
            mean, half = _interval([x - y for x, y in zip(a, b, strict=True)])
            if not mean - half > 0:
                raise ValueError(
                    f"'{more} > {less}' is not shown: {more} − {less} of {self.quantity} after {self.steps} steps is "
                    f"{number(mean, digits=1)} ± {number(half, digits=1)}"
                )

    def _pairs(self) -> Iterator[tuple[str, str]]:
        for chain in self.expected.split(","):
            terms = [term.strip() for term in chain.split(">")]
            if len(terms) < 2:
                raise ValueError(f"what must hold must be like 'B > A > 0.2': got {chain.strip()!r}")
            yield from pairwise(terms)

    def sentence(self, values: Values) -> str:
        """What the page says.

        >>> Answer("accuracy", 100, "A > 0").sentence(dict(A=[0.9, 0.92]))
        'After 100 steps the test accuracy is A 91 ± 13 %.'
        """
        percent = self.quantity == "accuracy"
        shown = ", ".join(f"{letter} {_shown(each, percent=percent)}" for letter, each in values.items())
        when = f"After {self.steps} step{'s' * (self.steps > 1)}" if self.steps else "At the start"
        return f"{when} {QUANTITIES[self.quantity].format(shown)}."


def _samples(term: str, values: Values) -> list[float]:
    """Of a number, a run, or their product, a seed each."""
    found = TERM.fullmatch(term)
    if not term or not found or (found[2] and found[2] not in values):
        raise ValueError(f"what is compared must be a run of {[*values]}, a number, or like '2 A': got {term!r}")
    factor = float(found[1]) if found[1] else 1.0
    n = len(next(iter(values.values())))
    return [factor * each for each in (values[found[2]] if found[2] else [1.0] * n)]


def _interval(samples: list[float]) -> tuple[float, float]:
    mean, low, _ = confidence_interval(samples)
    assert low is not None, "an interval takes two seeds"
    return mean, mean - low


def _shown(samples: list[float], *, percent: bool) -> str:
    mean, half = _interval(samples)
    if percent:
        return f"{100 * mean:.0f} ± {100 * half:.0f} %"
    places = max(0, 1 - math.floor(math.log10(abs(mean)))) if mean else 0  # two digits of the mean
    return f"{mean:.{places}f} ± {half:.{places}f}"


# ----- on the page -----


class Preset(SphinxDirective):
    """A button and an answer."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        state = self.arguments[0]
        try:
            answers = [Answer.read(line) for line in self.content if line.strip()]
            said = []
            for answer in answers:
                values = measured(answer.quantity, state, answer.steps)
                answer.check(values)
                said.append(answer.sentence(values))
        except (ValueError, KeyError, TypeError) as error:
            *_, title = self.state.document.findall(nodes.title)
            raise self.error(f"Question {title.astext()}: {error}.") from error
        button = f'<button type="button" class="pg-preset" hidden data-state="{html.escape(state)}">Play it</button>'
        answer = nodes.paragraph("", " ".join(said), classes=["pg-answer"])
        return [nodes.raw("", button, format="html"), answer]


def setup(app: Sphinx) -> None:
    """Add the directive."""
    app.add_directive("preset", Preset)
