"""What a method of adjustment costs: its application, and each step after it."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from torch import nn

from attntut import Transformer
from attntut.adjust import adjust, adjustments
from bench.diagnosis import runs, small
from bench.table import Row, seconds

NAMED = {"qk_norm": "≤ 1.1×", "soft_cap": ""}  # a row each; the others share one
TURNS = 3


def adjusting() -> list[Row]:
    """Median times of a forward and backward pass with each method over that without, and of ``adjust`` and undo."""
    model = small()
    step = runs(model, 256)[0]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    ratios: dict[str, float] = {}
    applied: dict[str, float] = {}
    for name, method in adjustments().items():
        if not method.is_undoable:
            continue
        options: dict[str, Any] = {"optimizer": optimizer} if "optimizer" in method.options else {}
        (applied[name],) = seconds(partial(_both, model, name, options), repeats=TURNS)

        def adjusted(name: str = name, options: dict[str, Any] = options) -> float:
            with adjust(model, name, **options):
                step()
                return seconds(step, repeats=1, warm_up=False)[0]

        pairs = [(seconds(step, repeats=1, warm_up=False)[0], adjusted()) for _ in range(TURNS)]
        ratios[name] = statistics.median(after / before for before, after in pairs)
    rows = [
        Row(
            f"a forward and backward pass with `{name}` over one without, GPT-2 small's shape",
            f"{ratios[name]:.2f}×",
            goal,
        )
        for name, goal in NAMED.items()
    ]
    others = sorted(ratios.keys() - NAMED.keys(), key=lambda name: -ratios[name])
    slow = {name: taken for name, taken in applied.items() if taken > 0.05}
    most = max(taken for name, taken in applied.items() if name not in slow)
    above = "".join(f", `{name}` {1000 * taken:.0f} ms" for name, taken in slow.items())
    (theirs,) = seconds(partial(_theirs, model), repeats=TURNS)
    return [
        *rows,
        Row("… with the others", ", ".join(f"`{name}` {ratios[name]:.2f}×" for name in others)),
        Row("`adjust` and undo on the same", f"{1000 * most:.0f} ms at most{above}", "≤ 50 ms"),
        Row("… torch's own `spectral_norm` on the same matrices", f"{1000 * theirs:.0f} ms"),
    ]


def _both(model: Transformer, name: str, options: dict[str, Any]) -> None:
    adjust(model, name, **options).undo()


def _theirs(model: Transformer) -> None:
    layers = [each for each in model.blocks.modules() if isinstance(each, nn.Linear)]
    for each in layers:
        nn.utils.parametrizations.spectral_norm(each)
    for each in layers:
        nn.utils.parametrize.remove_parametrizations(each, "weight", leave_parametrized=False)
