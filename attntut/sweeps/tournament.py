"""Who wins where: each start on three tasks, at its own best learning rate, which another seed has chosen."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from attntut.data import Data, associative_recall, characters, digits
from attntut.device import default_device
from attntut.init import schemes
from attntut.sweep import Sweep, grid, stored
from attntut.sweeps import PATCH, drawn, trained
from attntut.train import History
from attntut.transformer import TransformerConfig

if TYPE_CHECKING:
    import pandas as pd

HEADS, CHOOSER = 4, 100  # CHOOSER: the seed that chooses the rate, and judges nothing
STEPS = {"digits": 100, "recall": 200, "hamlet": 100}
BATCH = {"digits": 32, "recall": 32, "hamlet": 8}
SIZES = [(2, 16), (2, 32), (2, 64), (12, 32), (24, 32)]  # depth, width
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
EVERYWHERE = (
    *("normal", "torch_default", "xavier_normal", "xavier_uniform", "kaiming_normal", "orthogonal", "fan_in"),
    *("zero_output", "depth_scaled"),
)
AT_HOME = {
    "pre": ("gpt2", "mimetic", "nanochat"),
    "post": ("ds_init", "deepnorm"),
    "none": ("fixup", "t_fixup", "rezero"),
}


@cache
def data_of(task: str) -> Data:
    """The data of a task: 4 patches of a digit; 2 pairs and a question; 16 characters of Hamlet.

    Example:
        >>> data_of("recall")
        Data('associative recall': train 1000, test 500, inputs (5,) int64, n_classes=12)
    """
    if task == "digits":
        return digits(patch=PATCH)
    if task == "recall":
        return associative_recall(n_pairs=2, n_keys=6, n_values=6, n_train=1000, n_test=500)
    return characters(seq_len=16)


def shape(config: dict[str, Any]) -> TransformerConfig:
    """The model of a run: what the task asks, the norm, the depth, the width, and the scheme's own architecture."""
    data, width, depth = data_of(config["task"]), config["width"], config["depth"]
    size: dict[str, Any] = dict(n_layers=depth, d_model=width, n_heads=HEADS, d_ff=2 * width, norm=config["norm"])
    if config["task"] == "digits":
        size |= dict(d_input=PATCH**2)
    else:
        size |= dict(vocab_size=data.n_classes, pooling="none", is_causal=config["task"] == "hamlet")
    asked = schemes()[config["scheme"]].architecture(depth, width // HEADS)
    return TransformerConfig(n_classes=data.n_classes, seq_len=data.train_inputs.shape[1], **size | asked)


def rates_of(config: dict[str, Any]) -> tuple[float, ...]:
    """The grid of rates: five, lower ones for deep models; seven where no norm bounds a deep one.

    Example:
        >>> rates_of({"norm": "pre", "depth": 2})
        (0.0003, 0.001, 0.003, 0.01, 0.03)
    """
    if config["depth"] == 2:
        return RATES[3:]
    return RATES[:-1] if config["norm"] == "none" else RATES[2:-1]


def train_all(configs: list[dict[str, Any]], **options: Any) -> list[History]:
    """Train models of one shape, each from its ``scheme`` and ``seed`` at its ``lr``, by AdamW without a warm-up."""
    task = configs[0]["task"]
    models = [drawn(shape(config), config["scheme"], config["seed"]).to(default_device()) for config in configs]
    return trained(models, data_of(task), configs, **dict(steps=STEPS[task], batch_size=BATCH[task]) | options)


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Choose the learning rate of each scheme by one seed, and judge it there by others.

    The rate is the one of the grid with the least loss on the test set after a run with seed 100. That seed judges
    nothing, so that a rate's luck there is no luck later.

    Args:
        configs: each with ``task`` (``"digits"``, ``"recall"``, ``"hamlet"``), ``norm``, ``depth``, ``width`` (one for
            all), ``scheme``, ``seed`` (of the weights and of the batches).
        options: of :func:`~attntut.train.train_many`, other than 100 steps (recall: 200) of 32 inputs (Hamlet: 8).

    Returns:
        For each: ``accuracy`` and ``loss`` of the test set after the last step, or before the first bad one;
        ``diverged``, 1 if there was a bad one; ``lr``, the rate that was chosen. Four digits.

    Example:
        >>> cell = {"task": "recall", "norm": "pre", "depth": 1, "width": 16}
        >>> (numbers,) = run([cell | {"scheme": "gpt2", "seed": 0}], steps=2)
        >>> list(numbers), numbers["lr"] in RATES
        (['accuracy', 'loss', 'diverged', 'lr'], True)
    """
    rates = rates_of(configs[0])
    entries = list(dict.fromkeys(config["scheme"] for config in configs))
    tried = [configs[0] | dict(scheme=name, seed=CHOOSER, lr=lr) for name in entries for lr in rates]
    losses = [math.inf if one.diverged else one.final_loss for one in train_all(tried, **options)]
    chosen = {}
    for i, name in enumerate(entries):
        own = losses[i * len(rates) : (i + 1) * len(rates)]
        chosen[name] = rates[own.index(min(own))]
    configs = [config | {"lr": chosen[config["scheme"]]} for config in configs]
    return [
        dict(
            accuracy=round(one.final_accuracy, 4), loss=round(one.final_loss, 4), diverged=int(one.diverged), lr=one.lr
        )
        for one in train_all(configs, **options)
    ]


def guess(task: str) -> float:
    """The loss of a model that guesses: ln of the number of classes.

    Example:
        >>> round(guess("digits"), 2)
        2.3
    """
    return math.log(data_of(task).n_classes)


def judged() -> pd.DataFrame:
    """The stored runs, where a loss above that of guessing is that of guessing: what explodes decides no mean."""
    runs = stored("tournament")
    runs["loss"] = runs["loss"].fillna(math.inf).clip(upper=runs["task"].map({task: guess(task) for task in STEPS}))
    return runs


SWEEP = Sweep(
    "tournament",
    run,
    [
        config
        for norm in AT_HOME
        for depth, width in SIZES
        for config in grid(
            task=list(STEPS), norm=norm, depth=depth, width=width, scheme=EVERYWHERE + AT_HOME[norm], seed=range(8)
        )
    ],
    shape=lambda config: (config["task"], shape(config)),
    at_once=24,
    cost=lambda config: (config["depth"] + 1.0) * (1 + config["width"] / 64) * STEPS[config["task"]],
)
