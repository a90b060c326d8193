"""What a hundred steps say of six hundred: two starts that read Hamlet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from attntut.data import Data, characters
from attntut.sweep import Sweep, grid
from attntut.sweeps import drawn, trained
from attntut.transformer import TransformerConfig

SHAPE = TransformerConfig(
    n_classes=65, vocab_size=65, seq_len=16, d_model=32, d_ff=64, n_layers=2, pooling="none", is_causal=True
)
BATCH, EVERY, STEPS = 8, 100, 600


def play() -> Data:
    """Hamlet, 16 characters a window; of the test set the first 100 windows.

    Example:
        >>> play()
        Data('characters': train 9782, test 100, inputs (16,) int64, n_classes=65)
    """
    data = characters(seq_len=16)
    return replace(data, test_inputs=data.test_inputs[:100], test_targets=data.test_targets[:100])


def run(configs: list[dict[str, Any]], *, steps: int = STEPS) -> list[dict[str, float]]:
    """Train on Hamlet by AdamW without a warm-up.

    Args:
        configs: each with ``start`` (a scheme), ``lr``, ``seed`` (of the weights and of the batches).
        steps: fewer than the 600 of the sweep for its beginning alone.

    Returns:
        For each the test loss after 100, 200 … steps: ``loss_100``, ``loss_200`` …. Four digits.

    Example:
        >>> config = {"start": "gpt2", "lr": 3e-3, "seed": 0}
        >>> (numbers,) = run([config], steps=100)
        >>> list(numbers)
        ['loss_100']
    """
    models = [drawn(SHAPE, config["start"], config["seed"]) for config in configs]
    histories = trained(models, play(), configs, steps=steps, batch_size=BATCH, eval_every=EVERY)
    return [{f"loss_{each.step}": round(each.loss, 4) for each in history.evaluations[1:]} for history in histories]


SWEEP = Sweep(
    "horizon",
    run,
    grid(start=["gpt2", "xavier_uniform"], lr=[1e-3, 3e-3, 1e-2, 3e-2], seed=range(8)),
    shape=lambda config: SHAPE,
    at_once=16,
)
