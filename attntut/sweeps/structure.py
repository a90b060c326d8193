"""Whether structured matrices train better than others of their size, on 300 digits: early, and later."""

from __future__ import annotations

from typing import Any

import torch

from attntut.data import digits
from attntut.device import default_device, seeded
from attntut.init import initialize_, view
from attntut.sweep import Sweep, grid
from attntut.sweeps import trained
from attntut.transformer import Transformer, TransformerConfig

SHAPE = TransformerConfig(n_classes=10, d_input=4, d_model=16, n_layers=2, n_heads=2, d_ff=0, positions="sinusoidal")
STARTS = ("xavier_normal", "orthogonal", "mimetic", "mimetic, shuffled", "negative_identity", "vit")
EARLY, STEPS = 120, 400


@torch.no_grad()
def start(name: str, seed: int) -> Transformer:
    """Xavier's model, with the attention of another scheme.

    Args:
        name: of the scheme; with ``", shuffled"`` behind it, the entries of each matrix are put in a random order.
        seed: of everything; embedding and readout of a seed are the same in every start.

    Example:
        >>> fitted, mixed = (start(name, 0).blocks[0].attention.query.weight for name in STARTS[2:4])
        >>> torch.equal(fitted, mixed), torch.equal(*(each.flatten().sort().values for each in (fitted, mixed)))
        (False, True)
    """
    scheme, *shuffled = name.split(", ")
    model, other = (
        initialize_(Transformer(SHAPE, seed=seed), each, generator=seeded(1000 * i + seed))
        for i, each in enumerate(("xavier_normal", scheme), start=1)
    )
    order = seeded(3000 + seed)
    roles = ("query", "key", "value", "output")
    for mine, theirs in zip(view(model).by_role(*roles), view(other).by_role(*roles), strict=True):
        entries = theirs.view.flatten()
        if shuffled:
            entries = entries[torch.randperm(len(entries), generator=order)]
        mine.view.copy_(entries.view_as(mine.view))
    return model


def run(configs: list[dict[str, Any]], *, steps: int = STEPS) -> list[dict[str, float]]:
    """Train on 300 digits, 16 patches of 2 × 2 pixels, by AdamW, batches of 20.

    Args:
        configs: each with ``start`` (one of :data:`STARTS`), ``lr``, ``seed`` (of the weights and of the batches).
        steps: fewer than the 400 of the sweep for its beginning alone.

    Returns:
        For each the accuracy on the test set: ``early``, after 120 steps, and ``late``, after the last.

    Example:
        >>> (numbers,) = run([{"start": "mimetic", "lr": 1e-2, "seed": 0}], steps=2)
        >>> list(numbers)
        ['early', 'late']
    """
    data = digits(n_train=300)
    models = [start(config["start"], config["seed"]).to(default_device()) for config in configs]
    histories = trained(models, data, configs, steps=steps, batch_size=20, eval_every=EARLY)
    return [dict(early=each.evaluations[1].accuracy, late=each.final_accuracy) for each in histories]


SWEEP = Sweep(
    "structure",
    run,
    grid(start=STARTS, lr=[0.0025, 0.005, 0.01, 0.02, 0.04], seed=range(12)),
    shape=lambda config: SHAPE,
    at_once=24,
)
