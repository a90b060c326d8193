"""Which schemes train a deep model, with the norm before, after, or nowhere, each at its own best learning rate."""

from __future__ import annotations

from typing import Any

from attntut.init import schemes
from attntut.sweep import Sweep, grid
from attntut.sweeps import SIZE, drawn, on_digits
from attntut.transformer import TransformerConfig

NORMS = ("pre", "post", "none")
SCHEMES = (
    *("xavier_uniform", "zero_output", "depth_scaled"),  # with any norm; the others with the one they were made for
    *("gpt2", "layer_scale", "ds_init", "deepnorm", "t_fixup", "fixup", "rezero"),
)


def shape(config: dict[str, Any]) -> TransformerConfig:
    """The model of a run: the scheme's own architecture, and the norm."""
    asked = schemes()[config["scheme"]].architecture(config["depth"], SIZE["d_model"] // SIZE["n_heads"])
    return TransformerConfig(n_layers=config["depth"], **SIZE | {"norm": config["norm"]} | asked)


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape on digits, 2 × 2 patches of 4 × 4 pixels, by AdamW without a warm-up.

    Args:
        configs: each with ``scheme``, ``norm``, ``depth``, ``lr``, ``seed`` (of the weights and of the batches).
        options: of :func:`~attntut.train.train_many`, other than 300 steps of 32 images.

    Returns:
        For each: ``accuracy`` and ``loss`` of the test set after the last step; ``train_loss``, the mean of the last
        epoch (NaN if it diverged); ``diverged_at``, the step (NaN if it did not).

    Example:
        >>> config = {"scheme": "gpt2", "norm": "pre", "depth": 2, "lr": 1e-3, "seed": 0}
        >>> (numbers,) = run([config], steps=2)
        >>> list(numbers), numbers["diverged_at"]
        (['accuracy', 'loss', 'train_loss', 'diverged_at'], nan)
    """
    models = [drawn(shape(config), config["scheme"], config["seed"]) for config in configs]
    return [
        numbers | dict(diverged_at=float("nan") if history.diverged_at is None else history.diverged_at)
        for history, numbers in on_digits(models, configs, **options)
    ]


def fits(config: dict[str, Any]) -> bool:
    """Whether a scheme has nothing against the norm."""
    return bool(shape(config).norm == config["norm"])


RATES = {2: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], 8: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], 24: [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]}
SWEEP = Sweep(
    "depth",
    run,
    [
        config
        for depth, lrs in RATES.items()
        for config in grid(depth=depth, norm=NORMS, scheme=SCHEMES, lr=lrs, seed=range(8))
        if fits(config)
    ],
    shape=shape,
    at_once=24,
    cost=lambda config: config["depth"] + 1.0,
)
