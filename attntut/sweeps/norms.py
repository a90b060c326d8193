"""Which norm, and which place for it, trains a deep model, and which method mends an ill one; each at its own rate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from attntut._checks import check_choice
from attntut.adjust import adjust
from attntut.data import Data, digits
from attntut.device import default_device
from attntut.sweep import Sweep, grid
from attntut.sweeps import PATCH, depth, drawn, on_digits
from attntut.transformer import Transformer, TransformerConfig

STEPS, WARMUP, JUMP = 100, 30, 30.0
STARTS = ("xavier", "he", "jump")


def shape(config: dict[str, Any]) -> TransformerConfig:
    """The model of a run, before its method: where the norm stands, and what DeepNorm asks of the skip."""
    return depth.shape(config | {"scheme": scheme(config)})


def scheme(config: dict[str, Any]) -> str:
    """The scheme that draws it."""
    check_choice("start", config["start"], STARTS)
    drawn = "kaiming_uniform" if config["start"] == "he" else "xavier_uniform"
    return "deepnorm" if config["method"] == "deepnorm" else drawn


def model_of(config: dict[str, Any]) -> Transformer:
    """The model of a run: drawn from its seed, made ill where it should be, then adjusted.

    Example:
        >>> config = {"norm": "pre", "method": "", "start": "jump", "depth": 4, "seed": 0}
        >>> model = model_of(config)
        >>> usual = model.blocks[0].feed_forward[-1].weight.std()
        >>> round((model.blocks[2].feed_forward[-1].weight.std() / usual).item())
        30
    """
    model = drawn(shape(config), scheme(config), config["seed"])
    if config["start"] == "jump":
        with torch.no_grad():
            model.blocks[config["depth"] // 2].feed_forward[-1].weight *= JUMP
    if config["method"] not in ("", "deepnorm"):
        adjust(model, config["method"])
    return model


@torch.no_grad()
def accuracy(model: Transformer, data: Data, first: int = 0, last: int | None = None) -> float:
    """On the test set, with some of the blocks only: those from ``first`` to before ``last``."""
    all_blocks, model.blocks = model.blocks, nn.ModuleList([*model.blocks][first:last])
    try:
        found = model(data.test_inputs).argmax(-1) == data.test_targets
    finally:
        model.blocks = all_blocks
    return found.float().mean().item()


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape on digits, 2 × 2 patches of 4 × 4 pixels, by AdamW.

    Args:
        configs: each with ``norm`` (where it stands), ``method`` (of :func:`~attntut.adjust.adjust`, ``"deepnorm"``, or
            empty), ``start`` (``"xavier"``; ``"he"``: drawn with twice the variance; ``"jump"``: the last matrix of the
            middle block 30 times as large), ``depth``, ``warmup`` (one for all), ``lr``, ``seed`` (of the weights and
            of the batches).
        options: of :func:`~attntut.train.train_many`, other than 100 steps of 32 images.

    Returns:
        For each: ``accuracy`` of the test set after the last step; ``train_loss``, the mean of the last epoch (NaN if
        it diverged); ``without_last`` and ``without_upper``, the accuracy without the last block, and without the upper
        half of them. Four digits.

    Example:
        >>> config = {"norm": "pre", "method": "rms_norm", "start": "xavier", "depth": 2, "warmup": 0, "lr": 1e-3}
        >>> (numbers,) = run([config | {"seed": 0}], steps=2)
        >>> list(numbers)
        ['accuracy', 'train_loss', 'without_last', 'without_upper']
    """
    models = [model_of(config) for config in configs]
    options = dict(steps=STEPS, warmup=configs[0]["warmup"]) | options
    results = on_digits(models, configs, **options)
    data, half = digits(patch=PATCH).to(default_device(), torch.float32), configs[0]["depth"] // 2
    rows = []
    for model, (_, numbers) in zip(models, results, strict=True):
        found = {name: numbers[name] for name in ("accuracy", "train_loss")}
        found |= dict(without_last=accuracy(model, data, 0, -1), without_upper=accuracy(model, data, 0, half))
        rows.append({name: round(value, 4) for name, value in found.items()})
    return rows


SMALL, MIDDLE, LARGE = [1e-4, 3e-4, 1e-3, 3e-3], [3e-4, 1e-3, 3e-3, 1e-2], [1e-3, 3e-3, 1e-2, 3e-2]
TINY = [1e-5, 3e-5, 1e-4, 3e-4]
METHODS = ("rms_norm", "scale_norm", "dyt", "sandwich", "ln_scale", "branch_scale")
PLACES = [("none", ""), ("post", ""), ("post", "deepnorm"), ("pre", ""), *(("pre", method) for method in METHODS)]
PLAIN = {
    2: dict.fromkeys(PLACES, LARGE),
    12: {("none", ""): TINY, ("post", ""): SMALL}
    | {("pre", method): MIDDLE for method in ("", "sandwich", "ln_scale")},
    24: {place: MIDDLE for place in PLACES if place != ("pre", "scale_norm")}
    | {("none", ""): TINY, ("post", ""): SMALL},
}
RATES: dict[tuple[str, str, str, int, int], list[float]] = {  # by norm, method, start, depth, warm-up
    (*place, "xavier", n_layers, 0): lrs for n_layers, places in PLAIN.items() for place, lrs in places.items()
}
RATES |= {("post", "", "xavier", 24, WARMUP): SMALL, ("pre", "", "xavier", 24, WARMUP): MIDDLE}
RATES |= {("none", "", "he", 12, 0): TINY, ("none", "branch_scale", "he", 12, 0): MIDDLE}
RATES |= {("pre", method, "jump", 12, 0): MIDDLE for method in ("", "sandwich")}
RATES |= {("pre", method, "he", 12, 0): MIDDLE for method in ("", "branch_scale", "ln_scale")}
SWEEP = Sweep(
    "norms",
    run,
    [
        config
        for (norm, method, start, n_layers, warmup), lrs in RATES.items()
        for config in grid(norm=norm, method=method, start=start, depth=n_layers, warmup=warmup, lr=lrs, seed=range(6))
    ],
    shape=lambda config: (config["method"], config["warmup"], shape(config)),
    at_once=24,
    cost=lambda config: config["depth"] + 1.0,
)
