"""What it costs to scale the wrong matrix of a SwiGLU with the depth: each placement at its own best learning rate."""

from __future__ import annotations

from typing import Any

import torch

from attntut._checks import check_choice
from attntut.device import seeded
from attntut.init import initialize_
from attntut.parts import SwiGLU
from attntut.sweep import Sweep, grid
from attntut.sweeps import SIZE, on_digits
from attntut.transformer import Transformer, TransformerConfig

PLACES = {"down": ("down",), "up": ("up",), "both": ("down", "up"), "never": ()}


def shape(config: dict[str, Any]) -> TransformerConfig:
    """The model of a run: pre-LN blocks of width 32 with a SwiGLU of inner width 64."""
    return TransformerConfig(n_layers=config["depth"], parts=(SwiGLU(),), **SIZE)


def place_(model: Transformer, place: str) -> Transformer:
    r"""Multiply the output projections and matrices of each SwiGLU by :math:`1/\sqrt{2L}`, in place.

    Args:
        model: with :class:`~attntut.parts.SwiGLU`.
        place: ``"down"`` (W₂, which writes to the stream), ``"up"`` (W₃, which reads it), ``"both"``, or ``"never"``,
            which leaves the output projections alone as well.

    Example:
        >>> model = Transformer(shape({"depth": 8}), seed=0)
        >>> before = model.blocks[0].feed_forward.down.weight.std().item()
        >>> place_(model, "down").blocks[0].feed_forward.down.weight.std().item() / before
        0.25
    """
    check_choice("place", place, PLACES)
    factor = (2 * len(model.blocks)) ** -0.5
    with torch.no_grad():
        for block in model.blocks:
            names = [f"feed_forward.{name}" for name in PLACES[place]]
            for name in ["attention.output", *names] if names else []:
                block.get_submodule(name).weight *= factor
    return model


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape on digits, 2 × 2 patches of 4 × 4 pixels, by AdamW without a warm-up.

    Matrices are drawn with variance 1/fan_in; those of one seed are the same in every placement, up to the factor.

    Args:
        configs: each with ``place``, ``depth``, ``lr``, ``seed`` (of the weights and of the batches).
        options: of :func:`~attntut.train.train_many`, other than 300 steps of 32 images.

    Returns:
        For each: ``accuracy`` and ``loss`` of the test set after the last step, and ``train_loss``, the mean of the
        last epoch (NaN if it diverged).

    Example:
        >>> (numbers,) = run([{"place": "up", "depth": 2, "lr": 1e-3, "seed": 0}], steps=2)
        >>> list(numbers)
        ['accuracy', 'loss', 'train_loss']
    """
    models = []
    for config in configs:
        model = initialize_(Transformer(shape(config), seed=0), "lecun_normal", generator=seeded(config["seed"]))
        models.append(place_(model, config["place"]))
    return [numbers for _, numbers in on_digits(models, configs, **options)]


RATES = {2: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], 6: [3e-4, 1e-3, 3e-3, 1e-2], 24: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}
SWEEP = Sweep(
    "swiglu",
    run,
    [config for depth, lrs in RATES.items() for config in grid(depth=depth, place=list(PLACES), lr=lrs, seed=range(6))],
    shape=shape,
    at_once=24,
    cost=lambda config: config["depth"] + 1.0,
)
