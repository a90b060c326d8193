"""The playground: what its page needs of ``attntut``, written into one script when the book is built.

The page trains a small Transformer (``book/_static/playground``). Its data, the law of every role in every scheme that
the page can have, and the thresholds of ``diagnose`` come from here, so that nothing is typed twice.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from sphinx.application import Sphinx
from torch import Tensor

from attntut import Transformer, TransformerConfig
from attntut.anatomy.weight import ATTENTION, BRANCH, Weight
from attntut.data import Data, associative_recall, characters, digits
from attntut.diagnose.faults import faults
from attntut.init import Scheme, schemes, view
from attntut.init.laws import Law
from attntut.init.requirements import REQUIREMENTS
from attntut.parts import QKNorm

NAME = "playground-data.js"
SCRIPTS = (NAME, *(f"playground/{name}.js" for name in ("engine", "runs", "playground")))
WIDTHS, HEADS, DEPTHS = (16, 32), (1, 2, 4), (1, 2, 3, 4)
SETTINGS = {
    "norm",
    "scale",
    "residual_scale",
    "skip_scale",
}  # what the page's model can have of a scheme's architecture
NORMS = {"pre", "post", "none"}
FINISHED = ("mimetic", "negative_identity", "qk_gain")  # whose last touch the page's engine has, too
SHARED = dict(task="digits", depth=2, width=32, heads=4, seed=1)
OWN = dict(
    scheme="xavier_normal", query_key=None, value_output=None, feed_forward=None, embedding=None, positions="learned",
    position_scale=None, norm="pre", qk_norm=False, soft_cap=None, optimizer="adam", lr=0.002, warmup=0,
)  # fmt: skip
"""What an address that says nothing else chooses for all runs, and for each."""
GROUPS = {
    "query_key": ("query", "key"),
    "value_output": ("value", "output"),
    "feed_forward": ("feed_forward_in", "feed_forward_out"),
    "embedding": ("embedding",),
}
"""The roles whose size a slider sets."""
FIRST = 36  # the letter that stands for 0; the one before it, "#", is a target that is not scored

JUDGED = (
    "not finite", "attention uniform (zero weights)", "attention uniform (tokens alike)", "heads identical",
    "logits too large", "logits too large (trained)", "entropy collapsed", "soft-cap reached",
    "no gradient (zero weights)", "gradients vanishing", "stream growing", "stream jumping",
    "rank collapsing", "rank collapsing (slowly)",
)  # fmt: skip
"""The faults that the page can see."""


def previous_character() -> Data:
    """Say at every position which character stood before it: one head that looks one step back, by position alone."""
    text = characters(seq_len=16)
    inputs = torch.cat([text.train_inputs[:320], text.test_inputs[:80]])
    targets = inputs.roll(1, dims=1)
    targets[:, 0] = -100
    parts = inputs[:320], targets[:320], inputs[320:], targets[320:]
    return Data("previous character", *parts, n_classes=text.n_classes, alphabet=text.alphabet)


def recall() -> Data:
    """Two pairs of a key (a letter) and a value (a number), then a key: which value went with it?"""
    data = associative_recall(n_pairs=2, n_keys=6, n_values=6, n_train=1000, n_test=200)
    return dataclasses.replace(data, alphabet="abcdef123456")


@cache
def tasks() -> dict[str, tuple[Data, dict[str, Any]]]:
    """Name to data and the settings of :class:`~attntut.TransformerConfig` that they ask for."""
    found = {
        "digits": (digits(), dict(d_input=4)),
        "recall": (recall(), dict(vocab_size=12, pooling="none")),
        "previous": (previous_character(), dict(vocab_size=65, pooling="none", is_causal=True)),
    }
    return {
        name: (data, dict(n_classes=data.n_classes, seq_len=data.train_inputs.shape[1]) | settings)
        for name, (data, settings) in found.items()
    }


def letters(rows: Tensor) -> str:
    """Small numbers as text, a letter each; column by column, which compresses best.

    >>> letters(torch.tensor([[0, 1], [2, -100]]))
    '$&%#'
    """
    return "".join(chr(FIRST + max(number, -1)) for number in rows.flatten(1).mT.flatten().tolist())


def order(data: Data) -> Tensor:
    """In which order the page has the inputs, those to train with first: images by their class, for the same reason."""
    if data.name != "digits":
        return torch.arange(len(data.train_inputs) + len(data.test_inputs))
    train, test = data.train_targets, data.test_targets
    return torch.cat([train.argsort(stable=True), len(train) + test.argsort(stable=True)])


def pixels(inputs: Tensor, n_train: int) -> tuple[Tensor, float, float]:
    """The integers that standardized pixels were, and the mean and the standard deviation of those to train with.

    >>> inputs = digits().train_inputs
    >>> found, mean, std = pixels(inputs, len(inputs))
    >>> torch.equal((found - mean) / std, inputs)
    True
    """
    values = inputs.double().unique()
    numbers = ((inputs - values[0]) / values.diff().median()).round()
    return numbers.long(), numbers[:n_train].mean().item(), numbers[:n_train].float().std().item()


def task(name: str) -> dict[str, Any]:
    """A task as the page reads it."""
    data, settings = tasks()[name]
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    targets = torch.cat([data.train_targets, data.test_targets])
    about = dict(d_input=None, vocab_size=None, pooling="mean", is_causal=False) | settings
    about |= dict(alphabet=data.alphabet, n_train=len(data.train_inputs))
    if inputs.is_floating_point():
        inputs, about["mean"], about["std"] = pixels(inputs, about["n_train"])
    place = order(data)
    return about | dict(inputs=letters(inputs[place]), targets=letters(targets[place][:, None]))


def fits(scheme: Scheme) -> bool:
    """Whether the page can have all that a scheme asks for: no batch, no part of the architecture that it lacks."""
    if (scheme.finish and scheme.name not in FINISHED) or {"batch", "learning rates by role"} & {*scheme.requires}:
        return False
    wants = scheme.architecture(n_layers=2, d_head=8)
    parts = wants.pop("parts", ())
    return {*wants} <= SETTINGS and wants.get("norm", "pre") in NORMS and all(isinstance(p, QKNorm) for p in parts)


AXES = ("task", "d_model", "n_heads", "n_layers", "layer")


@cache
def _weights() -> list[tuple[tuple[Any, ...], Weight, bool]]:
    """Every weight of every model that the page can have: its place on the axes, and whether it has a bias."""
    found = []
    for name, d in itertools.product(tasks(), WIDTHS):
        small = view(Transformer(TransformerConfig(d_model=d, n_heads=1, n_layers=1, **tasks()[name][1])))
        for entry, H, L in itertools.product(small.entries, HEADS, DEPTHS):
            for layer in range(1, L + 1) if entry.role in BRANCH else (1,):
                weight = entry.weight.replace(n_heads=H, d_head=d // H, n_layers=L, layer=layer)
                found.append(((name, d, H, L, layer), weight, entry.bias is not None))
    return found


def laws(scheme: Scheme) -> dict[str, dict[str, Any]]:
    """Role (or ``role.bias``) to its law, a nested table over what it depends on.

    >>> laws(schemes()["lecun_normal"])["query"]["axes"]
    ['d_model']
    """
    found: dict[str, dict[tuple[Any, ...], list[Any]]] = {}
    for place, weight, has_bias in _weights():
        found.setdefault(weight.role, {})[place] = _drawn(scheme, weight)
        if has_bias and scheme.bias_function is not None:
            found.setdefault(f"{weight.role}.bias", {})[place] = _plain(scheme.bias(weight))
    return {role: _table(by_place) for role, by_place in found.items()}


def _drawn(scheme: Scheme, weight: Weight) -> list[Any]:
    """The law of a weight, and what `finish` makes of it."""
    options = scheme.options
    if scheme.name == "mimetic" and weight.role in ATTENTION:
        scores = weight.role in ("query", "key")
        how = (options["query_key"], 1, weight.n_heads) if scores else (options["value_output"], -1, 1)
        return ["fitted", scheme.std(weight), *how, weight.role]
    if scheme.name == "negative_identity" and weight.role in ("value", "output"):
        return [*_plain(scheme.law(weight)), options["noise"]]
    return _plain(scheme.law(weight))


def _plain(law: Law) -> list[Any]:
    return [type(law).__name__.lower(), *vars(law).values()]


def _table(by_place: Mapping[tuple[Any, ...], list[Any]]) -> dict[str, Any]:
    """The laws by the fewest axes that tell them apart."""
    kept = list(range(len(AXES)))
    for axis in range(len(AXES)):
        fewer = [each for each in kept if each != axis]
        pairs = {(tuple(place[i] for i in fewer), tuple(law)) for place, law in by_place.items()}
        if len({place for place, _ in pairs}) == len(pairs):
            kept = fewer
    table: Any = {}
    for place, law in by_place.items():
        node, keys = table, [str(place[axis]) for axis in kept]
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        if keys:
            node[keys[-1]] = law
        else:
            table = law
    return dict(axes=[AXES[axis] for axis in kept], table=table)


def catalogue() -> dict[str, Any]:
    """The schemes that fit, with their laws, and what each asks of the architecture at every depth."""
    return {
        name: dict(
            family=scheme.family,
            why=scheme.why,
            needs={need: REQUIREMENTS[need].reason for need in scheme.requires},
            architecture=[
                {k: v for k, v in scheme.architecture(L, 8).items() if k != "parts"}
                | ({"qk_norm": True} if "QK-norm" in scheme.requires else {})
                for L in DEPTHS
            ],
            laws=laws(scheme),
            query_gain=scheme.options["gain"] if name == "qk_gain" else 1,
        )
        for name, scheme in schemes().items()
        if fits(scheme)
    }


def judged() -> dict[str, Any]:
    """The faults that the page can see: words, thresholds, and what each explains."""
    return {
        key: dict(
            severity=each.severity,
            quantity=each.quantity.format(what="numbers", matrix="W_q"),
            chapter=each.chapter,
            explains=each.explains,
            spreads=each.spreads,
            thresholds={name: threshold.value for name, threshold in each.thresholds.items()},
        )
        for key, each in faults().items()
        if key in JUDGED
    }


def data() -> dict[str, Any]:
    """All that the page needs of the package."""
    sizes = dict(d_model=WIDTHS, n_heads=HEADS, n_layers=DEPTHS)
    about = dict(sizes=sizes, defaults=dict(shared=SHARED, own=OWN), groups=GROUPS)
    return dict(tasks={name: task(name) for name in tasks()}, schemes=catalogue(), faults=judged(), **about)


@cache
def script() -> str:
    """The data as a script, which also works where a page is opened from a disk."""
    return f"const attntutData = {json.dumps(data(), separators=(',', ':'), ensure_ascii=False)};\n"


def write(app: Sphinx, exception: Exception | None) -> None:
    """Put the data beside the page's other scripts, if the book has the page."""
    if not exception and app.builder.format == "html" and "book/playground" in app.env.found_docs:
        Path(app.outdir, "_static", NAME).write_text(script(), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Write the data at the end."""
    app.connect("build-finished", write)
