"""Methods that tame the logits, from a good start and from one 8 times too large, each at its best learning rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attntut.adjust.attention import AttentionChange, insert, remove
from attntut.adjust.groups import qk_weight_decay
from attntut.adjust.handle import adjust
from attntut.adjust.loss import entropy_penalty, z_loss
from attntut.data import digits
from attntut.device import default_device
from attntut.measure import attention_entropy, logit_statistics
from attntut.sweep import Sweep, grid
from attntut.sweeps import drawn, trained
from attntut.transformer import Transformer, TransformerConfig

SHAPE = TransformerConfig(n_classes=10, d_input=4, d_model=32, n_layers=2, n_heads=4, d_ff=0)
FACTORS = {"good": 1.0, "ill": 8.0}
ON_MODEL: Mapping[str, dict[str, Any]] = {
    "none": {},
    "qk_norm": {},
    "qk_l2_clip": {},
    "soft_cap, 50": dict(cap=50.0),
    "soft_cap, 5": dict(cap=5.0),
    "temperature": dict(tau=1.0, learned=True),
    "sigma_reparam": {},
    "sink": {},
    "output_gate": {},
    "sigmoid_attention": {},
    "softpick": {},
    "z_loss": {},  # the only one that is no method on a model
}
ALONE: Mapping[str, dict[str, Any]] = {
    "qk_clip": dict(limit=100.0),
    "qk_weight_decay": dict(weight_decay=2.1),  # undoes a factor of 64 in 100 steps of 0.01
    "entropy_penalty": {},
}
"""Methods that act in an optimizer, at its step, or by what a forward pass tells: one model at a time."""


def start(method: str, kind: str, seed: int) -> Transformer:
    """Two pre-LN blocks of attention by Xavier's rule; in the ill start, query and key matrices are 8 times as large.

    Example:
        >>> good, ill = (start("qk_norm", kind, 0).blocks[0].attention.query.weight for kind in FACTORS)
        >>> torch.equal(8 * good, ill)
        True
    """
    model = drawn(SHAPE, "xavier_normal", seed)
    with torch.no_grad():
        for block in model.blocks:
            for each in (block.attention.query, block.attention.key):  # type: ignore[union-attr]
                each.weight *= FACTORS[kind]  # type: ignore[operator, union-attr]
    if method not in ("none", "z_loss") and method in ON_MODEL:
        adjust(model, method.split(",")[0], **ON_MODEL[method])
    return model


class Kept(AttentionChange):
    """Keeps what the softmax gets."""

    def masked(self, logits: Tensor) -> Tensor:
        self.seen = logits
        return logits


def heard(model: Transformer, run: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, Any]:
    """What the softmax gets while ``run(x)`` runs the model, ``(L, B, H, T, T)``, −∞ where masked, and the result."""
    kept = [Kept() for _ in model.blocks]
    for block, each in zip(model.blocks, kept, strict=True):
        insert(block.attention, model.config.n_heads, "kept", each)  # type: ignore[arg-type]
    result = run(x)
    for block in model.blocks:
        remove(block.attention, "kept")  # type: ignore[arg-type]
    return torch.stack([each.seen for each in kept]), result


@torch.no_grad()
def at_softmax(model: Transformer, x: Tensor) -> dict[str, float]:
    """What the softmax gets, over all blocks and heads, after whatever acts on the logits.

    Returns:
        ``logit_std``, within a row; ``logit_max``, the largest absolute value; ``entropy`` of the softmax, in parts of
        ln n.
    """
    logits, _ = heard(model, model.eval(), x)
    return dict(
        logit_std=logit_statistics(logits).std.square().mean().sqrt().item(),
        logit_max=logits.abs().max().item(),
        entropy=attention_entropy(logits.softmax(-1), normalized=True).mean().item(),
    )


def by_itself(method: str, model: nn.Module) -> dict[str, Any]:
    """The options of :func:`~attntut.train.train` with a method of :data:`ALONE`."""
    given = ALONE[method]
    if method == "entropy_penalty":
        penalty = entropy_penalty(model, **given)
        return dict(penalty=lambda logits: penalty())

    def optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
        if method != "qk_clip":
            return torch.optim.AdamW(qk_weight_decay(model, **given), lr=lr)
        made = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        adjust(model, "qk_clip", optimizer=made, **given)
        return made

    return dict(optimizer=optimizer)


def run(configs: list[dict[str, Any]], *, steps: int = 100) -> list[dict[str, float]]:
    """Train on digits, 16 patches of 2 × 2 pixels, by AdamW without a warm-up, batches of 32.

    Args:
        configs: of one ``method``, each with ``start`` (``"good"`` or ``"ill"``), ``lr``, ``seed`` (of the weights and
            of the batches).
        steps: fewer than the 100 of the sweep for its beginning alone.

    Returns:
        For each the ``loss`` of the test set after the last step, and what :func:`at_softmax` says of 128 of its
        images.

    Example:
        >>> (numbers,) = run([{"method": "qk_norm", "start": "ill", "lr": 1e-2, "seed": 0}], steps=2)
        >>> list(numbers), numbers["logit_std"] < 1.5
        (['loss', 'logit_std', 'logit_max', 'entropy'], True)
    """
    data, method = digits(), configs[0]["method"]
    models = [start(method, config["start"], config["seed"]).to(default_device()) for config in configs]
    options: dict[str, Any] = dict(alone=partial(by_itself, method)) if method in ALONE else {}
    options |= dict(penalty=z_loss) if method == "z_loss" else {}
    histories = trained(models, data, configs, steps=steps, **options)
    x = data.test_inputs[:128].to(default_device())
    return [
        {name: float(f"{value:.4g}") for name, value in dict(loss=each.final_loss, **at_softmax(model, x)).items()}
        for model, each in zip(models, histories, strict=True)
    ]


LRS = [1e-3, 3e-3, 1e-2, 3e-2, 0.1]
SWEEP = Sweep(
    "logits",
    run,
    grid(method=list(ON_MODEL), start=list(FACTORS), lr=LRS, seed=range(6))
    + grid(method=list(ALONE), start="ill", lr=LRS, seed=range(6)),
    shape=lambda config: config["method"],
    at_once=24,
)
