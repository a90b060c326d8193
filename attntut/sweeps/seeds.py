"""What of the noise of a run comes from its weights and what from its batches: each of nine with each of nine."""

from __future__ import annotations

from typing import Any

from attntut.sweep import Sweep, grid
from attntut.sweeps import SIZE, drawn, on_digits
from attntut.transformer import TransformerConfig

SHAPE = TransformerConfig(n_layers=2, **SIZE)
STEPS = 100


def run(configs: list[dict[str, Any]], *, steps: int = STEPS) -> list[dict[str, float]]:
    """Train on digits, 2 × 2 patches of 4 × 4 pixels, by AdamW without a warm-up.

    Args:
        configs: each with ``scheme``, ``lr``, ``weights`` (the seed of the weights) and ``seed`` (of the batches).
        steps: fewer than the 100 of the sweep for its beginning alone.

    Returns:
        For each: ``accuracy`` and ``loss`` of the test set after the last step, and ``mean_loss``, the mean over the
        steps of the loss of the batch. Five digits.

    Example:
        >>> config = {"scheme": "xavier_uniform", "lr": 3e-3, "weights": 0, "seed": 1}
        >>> (numbers,) = run([config], steps=2)
        >>> list(numbers)
        ['accuracy', 'loss', 'mean_loss']
    """
    models = [drawn(SHAPE, config["scheme"], config["weights"]) for config in configs]
    return [
        dict(
            accuracy=round(numbers["accuracy"], 5),
            loss=round(numbers["loss"], 5),
            mean_loss=round(history.losses.mean().item(), 5),
        )
        for history, numbers in on_digits(models, configs, steps=steps)
    ]


SWEEP = Sweep(
    "seeds",
    run,
    grid(
        scheme=["xavier_uniform", "kaiming_uniform", "lecun_normal"],
        lr=[1.5e-3, 3e-3, 6e-3, 1.2e-2],
        weights=range(9),
        seed=range(9),
    ),
    shape=lambda config: SHAPE,
    at_once=27,
)
