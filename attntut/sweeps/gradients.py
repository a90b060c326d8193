"""What one bad batch costs, and which uneven starts an even step mends: each method at its own best learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_choice
from attntut.adjust import adjust, lamb, muon
from attntut.data import Data, digits, reverse
from attntut.device import default_device, seeded
from attntut.init import initialize_
from attntut.sweep import Sweep, grid
from attntut.sweeps import PATCH, SIZE
from attntut.train import train, train_many
from attntut.transformer import Transformer, TransformerConfig

STEPS, BAD = 240, 100
"""Batches, and the number of the bad one, from 0."""


def times(factor: float, y: Tensor) -> Tensor:
    """The same numbers, whose gradient is ``factor`` times as large.

    Example:
        >>> y = torch.ones(2, requires_grad=True)
        >>> times(3.0, 2 * y).sum().backward()
        >>> y.grad
        tensor([6., 6.])
    """
    return y.detach() + factor * (y - y.detach())


def wrong(logits: Tensor) -> Tensor:
    """Logits moved on by one class, so that the loss is that of wrong labels.

    >>> wrong(torch.tensor([1.0, 2.0, 3.0]))
    tensor([3., 1., 2.])
    """
    return torch.cat([logits[..., -1:], logits[..., :-1]], dim=-1)


SPIKES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "none": lambda model, x: model(x),
    "labels": lambda model, x: wrong(model(x)),
    "inputs": lambda model, x: model(30 * x),
    "loss": lambda model, x: times(1000.0, model(x)),
    "both": lambda model, x: times(1000.0, wrong(model(x))),
}
"""What happens in the bad batch: nothing, wrong labels, large inputs, a loss a thousand times too large, or two."""


class BadBatches(nn.Module):
    """A model one of whose training batches is bad.

    Args:
        model: any.
        spike: of :data:`SPIKES`.
        at: the number of the bad batch, from 0; batches are counted in training mode.

    Example:
        >>> model = BadBatches(nn.Linear(2, 3), "labels", at=1)
        >>> x = torch.ones(1, 2)
        >>> a, b, c = model(x), model(x), model(x)
        >>> torch.equal(b, wrong(a)), torch.equal(c, a)
        (True, True)
    """

    def __init__(self, model: nn.Module, spike: str, at: int = BAD) -> None:
        super().__init__()
        self.model, self.spike, self.at, self.seen = model, check_choice("spike", spike, SPIKES), at, 0

    def forward(self, x: Tensor) -> Tensor:
        """What the model gives, bad where it is its turn."""
        if not self.training:
            return self.model(x)
        self.seen += 1
        return SPIKES[self.spike if self.seen == self.at + 1 else "none"](self.model, x)


SGD: dict[str, Any] = dict(optimizer="sgd")


def _adaptive(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    adjust(inner(model), "adaptive_clip", optimizer=optimizer, limit=0.16)
    return optimizer


def _lamb(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return lamb(model.parameters(), lr=lr, weight_decay=0.0)


def _muon(model: nn.Module, lr: float) -> tuple[torch.optim.Optimizer, ...]:
    return muon(inner(model), lr=lr, weight_decay=0.0, betas=(0.9, 0.999))


def inner(model: nn.Module) -> nn.Module:
    """The model in :class:`BadBatches`."""
    assert isinstance(model, BadBatches)
    return model.model


METHODS: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "sgd, clip 1": SGD | dict(clip_norm=1.0),
    "sgd, adaptive clip": dict(optimizer=_adaptive),
    "momentum": SGD | dict(momentum=0.9),
    "momentum, clip 1": SGD | dict(momentum=0.9, clip_norm=1.0),
    "adam": {},
    "adam, β₂ = 0.95": dict(betas=(0.9, 0.95)),
    "adam, clip 1": dict(clip_norm=1.0),
    "adam, clip 0.1": dict(clip_norm=0.1),
    "lamb": dict(optimizer=_lamb),
    "muon": dict(optimizer=_muon),
    "muon, clip 1": dict(optimizer=_muon, clip_norm=1.0),
}
"""What :func:`~attntut.train.train` is told."""

STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("xavier_uniform", dict(n_layers=2)),
    "post-LN": ("xavier_uniform", dict(n_layers=8, norm="post")),
    "post-LN, divided": ("depth_scaled", dict(n_layers=8, norm="post")),
    "He, no norm": ("kaiming_normal", dict(n_layers=8, norm="none")),
    "no norm, divided": ("depth_scaled", dict(n_layers=8, norm="none")),
    "small logits": ("xavier_uniform", dict(n_layers=2)),
    "unit logits": ("xavier_uniform", dict(n_layers=2)),
}
"""Scheme and shape. The last two read and reverse eight symbols; in the first of them W_q and W_k are divided by 100."""
REVERSING = ("small logits", "unit logits")


def shape(config: dict[str, Any]) -> Any:
    """What the runs of one call have in common."""
    return config["start"], config["method"], config["spike"]


def model_of(start: str, seed: int) -> Transformer:
    """A fresh model of :data:`STARTS`.

    Example:
        >>> for start in REVERSING:
        ...     print(start, round(model_of(start, 0).blocks[0].attention.query.weight.std().item(), 5))
        small logits 0.00178
        unit logits 0.17773
    """
    scheme, given = STARTS[check_choice("start", start, STARTS)]
    size = SIZE | given
    if start in REVERSING:
        size |= dict(n_classes=10, d_input=None, vocab_size=10, seq_len=8, pooling="none")
    model = Transformer(TransformerConfig(**size), seed=seed)
    initialize_(model, scheme, generator=seeded(seed), force=True)
    if start == "small logits":
        with torch.no_grad():
            for block in model.blocks:
                block.attention.query.weight /= 100
                block.attention.key.weight /= 100
    return model


def data_of(start: str) -> Data:
    """Digits as four patches, or symbols to be reversed."""
    return reverse() if start in REVERSING else digits(patch=PATCH)


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape, without a warm-up.

    Args:
        configs: each with ``start`` (of :data:`STARTS`), ``method`` (of :data:`METHODS`), ``spike`` (of
            :data:`SPIKES`), ``lr``, ``seed`` (of the weights and of the batches).
        options: of :func:`~attntut.train.train`, other than 240 steps of 32.

    Returns:
        For each: ``accuracy`` of the test set after the last step; ``after``, the mean loss of the 20 batches after the
        bad one, and ``train_loss``, that of the last 42 batches (NaN if it diverged).

    Example:
        >>> config = {"start": "plain", "method": "sgd", "spike": "labels", "lr": 0.1, "seed": 0}
        >>> (numbers,) = run([config], steps=2)
        >>> list(numbers)
        ['accuracy', 'after', 'train_loss']
    """
    start, method, spike = shape(configs[0])
    settings = dict(steps=STEPS, progress=False) | METHODS[method] | options
    data = data_of(start)
    models = [BadBatches(model_of(start, each["seed"]), spike).to(default_device()) for each in configs]
    lrs, seeds = ([config[name] for config in configs] for name in ("lr", "seed"))
    if callable(settings.get("optimizer")):
        histories = [train(*each, data, lr=lr, seed=seed, **settings) for *each, lr, seed in zip(models, lrs, seeds)]
    else:
        histories = train_many(models, data, lrs=lrs, seeds=seeds, **settings)
    return [
        dict(
            accuracy=history.final_accuracy,
            after=history.losses[BAD + 1 : BAD + 21].mean().item(),
            train_loss=history.losses[-42:].mean().item(),
        )
        for history in histories
    ]


SWEEP = Sweep(
    "gradients",
    run,
    grid(start="plain", method=list(METHODS), spike=["none", "loss", "both"], lr=[0.01], seed=range(6)),
    shape=shape,
    at_once=24,
)
