"""Warm-ups, schedules and optimizers for the first steps, each at its own best rate; ``depth`` has the plain starts."""

from __future__ import annotations

from typing import Any

from attntut.adjust.schedules import Fall
from attntut.sweep import Sweep, grid
from attntut.sweeps import STEPS, depth
from attntut.transformer import TransformerConfig

FROZEN = 30


def frozen(done: int) -> float:
    """The factor of a start that moves nothing for 30 updates, while Adam's averages fill.

    Example:
        >>> [frozen(done) for done in (0, 29, 30)]
        [0.0, 0.0, 1.0]
    """
    return float(done >= FROZEN)


SHORT: dict[str, Any] = dict(betas=(0.9, 0.98))
SGD: dict[str, Any] = dict(optimizer="sgd", momentum=0.9)
STARTS: dict[str, dict[str, Any]] = {
    "none": {},
    "warm-up 30": dict(warmup=30),
    "warm-up 100": dict(warmup=100),
    "frozen 30": dict(steps=FROZEN + STEPS, schedule=frozen),
    "β₂ .98": SHORT,
    "β₂ .98, warm-up 111": SHORT | dict(warmup=111),
    "β₂ .98, RAdam": SHORT | dict(optimizer="radam"),
    "cosine 30": dict(schedule=Fall(30, 30, STEPS, 0.0, "cosine")),
    "SGD": SGD,
    "SGD, warm-up 30": SGD | dict(warmup=30),
}
"""Options of :func:`~attntut.train.train_many`."""


def shape(config: dict[str, Any]) -> tuple[str, TransformerConfig]:
    """The start, and the model of a run."""
    return config["start"], depth.shape(config)


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape from one start, as :func:`attntut.sweeps.depth.run` does.

    Args:
        configs: as there, each with a ``start`` too, one of :data:`STARTS`; the same for all.
        options: of :func:`~attntut.train.train_many`, other than those of the start.

    Returns:
        What is returned there.

    Example:
        >>> config = {"start": "warm-up 30", "scheme": "gpt2", "norm": "post", "depth": 2, "lr": 1e-3, "seed": 0}
        >>> (numbers,) = run([config], steps=2)
        >>> list(numbers)
        ['accuracy', 'loss', 'train_loss', 'diverged_at']
    """
    return depth.run(configs, **STARTS[configs[0]["start"]] | options)


X = "xavier_uniform"
LOW, MIDDLE = [1e-4, 3e-4, 1e-3, 3e-3], [3e-4, 1e-3, 3e-3, 1e-2]
RATES: dict[tuple[int, str, str, str], list[float]] = {
    (24, "post", X, "warm-up 100"): LOW,
    (24, "post", X, "frozen 30"): [1e-3],
    (24, "post", X, "warm-up 30"): [1e-3],
    (8, "post", X, "warm-up 30"): MIDDLE,
    (24, "post", X, "β₂ .98, RAdam"): [1e-3],
    (24, "post", X, "β₂ .98, warm-up 111"): [1e-3],
    (24, "post", X, "β₂ .98"): [1e-3],
    (8, "pre", X, "warm-up 30"): MIDDLE,
    (2, "pre", X, "warm-up 30"): MIDDLE,
    (2, "post", X, "warm-up 30"): MIDDLE,
    (8, "post", X, "SGD"): [1e-3, 3e-3, 1e-2],
    (8, "post", X, "SGD, warm-up 30"): [1e-3, 3e-3, 1e-2],
    (24, "pre", X, "warm-up 100"): [3e-4, 1e-3, 3e-3],
    (8, "post", X, "cosine 30"): MIDDLE,
}
MORE: dict[str, list[float]] = {
    "none": [3e-4, 1e-3],
    "warm-up 100": [3e-4, 1e-3],
    **{start: [1e-3] for start in ("warm-up 30", "frozen 30", "β₂ .98", "β₂ .98, warm-up 111", "β₂ .98, RAdam")},
}
"""Starts of 24 post-LN blocks that were tried again with the seeds 100 to 123, after the others had been seen."""
SWEEP = Sweep(
    "first_steps",
    run,
    [
        config
        for (blocks, norm, scheme, start), lrs in RATES.items()
        for config in grid(depth=blocks, norm=norm, scheme=scheme, start=start, lr=lrs, seed=range(6))
    ]
    + [
        config
        for start, lrs in MORE.items()
        for config in grid(depth=24, norm="post", scheme=X, start=start, lr=lrs, seed=range(100, 124))
    ],
    shape=shape,
    at_once=24,
    cost=lambda config: config["depth"] + 1.0,
)
