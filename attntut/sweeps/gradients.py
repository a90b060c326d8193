"""What one bad batch costs, and which uneven starts an even step mends: each method at its own best learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_choice
from attntut.adjust import adjust, lamb, muon
from attntut.adjust.gradients import times
from attntut.data import Data, digits, reverse
from attntut.device import default_device, seeded
from attntut.init import initialize_
from attntut.sweep import Sweep, grid
from attntut.sweeps import PATCH, SIZE, trained
from attntut.transformer import Transformer, TransformerConfig

BAD = 60
"""The number of the bad batch, from 0."""


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


def inner(model: nn.Module) -> nn.Module:
    """The model in :class:`BadBatches`."""
    assert isinstance(model, BadBatches)
    return model.model


def adaptive(model: nn.Module, lr: float, skip: tuple[str, ...] = ("readout",)) -> torch.optim.Optimizer:
    """SGD behind adaptive clipping, by default without the readout, as in the paper."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    adjust(inner(model), "adaptive_clip", optimizer=optimizer, limit=0.16, skip=skip)
    return optimizer


SGD: dict[str, Any] = dict(optimizer="sgd")
MUON: dict[str, Any] = dict(optimizer=lambda model, lr: muon(inner(model), lr=lr, weight_decay=0.0, betas=(0.9, 0.999)))
METHODS: dict[str, dict[str, Any]] = {
    "sgd": SGD,
    "sgd clip": SGD | dict(clip_norm=1.0),
    "agc": dict(optimizer=adaptive),
    "agc all": dict(optimizer=lambda model, lr: adaptive(model, lr, skip=())),
    "momentum": SGD | dict(momentum=0.9),
    "momentum clip": SGD | dict(momentum=0.9, clip_norm=1.0),
    "adam": {},
    "adam 0.95": dict(betas=(0.9, 0.95)),
    "adam clip": dict(clip_norm=1.0),
    "adam clip 0.1": dict(clip_norm=0.1),
    "lamb": dict(optimizer=lambda model, lr: lamb(model.parameters(), lr=lr, weight_decay=0.0)),
    "muon": MUON,
    "muon clip": MUON | dict(clip_norm=1.0),
}
"""What :func:`~attntut.train.train` is told."""

STARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("xavier_uniform", dict(n_layers=2)),
    "post-LN": ("xavier_uniform", dict(n_layers=6, norm="post")),
    "post-LN, divided": ("depth_scaled", dict(n_layers=6, norm="post")),
    "He, no norm": ("kaiming_normal", dict(n_layers=6, norm="none")),
    "no norm, divided": ("depth_scaled", dict(n_layers=6, norm="none")),
    "small logits": ("xavier_uniform", dict(n_layers=2)),
    "unit logits": ("xavier_uniform", dict(n_layers=2)),
}
"""Scheme and shape. The last two reverse eight symbols; in the first of these, W_q and W_k are divided by 100."""
REVERSING = ("small logits", "unit logits")
STEPS = dict.fromkeys(STARTS, 120) | dict(plain=160)


def shape(config: dict[str, Any]) -> Any:
    """What the runs of one call have in common."""
    return config["start"], config["method"], config["spike"]


def model_of(start: str, seed: int) -> Transformer:
    """A fresh model of :data:`STARTS`.

    Example:
        >>> for start in REVERSING:
        ...     print(start, round(model_of(start, 0).blocks[0].attention.query.weight.std().item(), 5))
        small logits 0.0018
        unit logits 0.18049
    """
    scheme, given = STARTS[check_choice("start", start, STARTS)]
    size = SIZE | given
    if start in REVERSING:
        size |= dict(n_classes=10, d_input=None, vocab_size=10, seq_len=8, pooling="none")
    model = Transformer(TransformerConfig(**size), seed=seed)
    initialize_(model, scheme, generator=seeded(seed), force=True)
    if start == "small logits":
        with torch.no_grad():
            for name, parameter in model.blocks.named_parameters():
                if name.endswith(("query.weight", "key.weight")):
                    parameter.div_(100)
    return model


def data_of(start: str) -> Data:
    """Digits as four patches, or symbols to be reversed."""
    return reverse() if start in REVERSING else digits(patch=PATCH)


def run(configs: list[dict[str, Any]], **options: Any) -> list[dict[str, float]]:
    """Train models of one shape, without a warm-up.

    Args:
        configs: each with ``start`` (of :data:`STARTS`), ``method`` (of :data:`METHODS`), ``spike`` (of
            :data:`SPIKES`), ``lr``, ``seed`` (of the weights and of the batches).
        options: of :func:`~attntut.train.train`, other than :data:`STEPS` of 32.

    Returns:
        For each: ``accuracy`` of the test set after the last step, and ``train_loss``, the mean loss of the last 42
        batches (NaN if it diverged).

    Example:
        >>> config = {"start": "plain", "method": "sgd", "spike": "labels", "lr": 0.1, "seed": 0}
        >>> (numbers,) = run([config], steps=2)
        >>> list(numbers)
        ['accuracy', 'train_loss']
    """
    start, method, spike = shape(configs[0])
    settings = dict(steps=STEPS[start]) | METHODS[method] | options
    data = data_of(start)
    models = [BadBatches(model_of(start, each["seed"]), spike).to(default_device()) for each in configs]
    one_by_one = dict[str, Any](alone=lambda model: {}) if callable(settings.get("optimizer")) else {}
    histories = trained(models, data, configs, **one_by_one, **settings)
    return [
        dict(accuracy=history.final_accuracy, train_loss=history.losses[-42:].mean().item()) for history in histories
    ]


ADAM = [3e-4, 1e-3, 3e-3, 1e-2]
RATES: dict[tuple[str, str, str], list[float]] = {
    ("plain", "sgd", "none"): [3e-2, 0.1, 0.3, 1.0],
    ("plain", "sgd", "loss"): [3e-3, 1e-2, 3e-2, 0.1],
    ("plain", "sgd", "both"): [3e-3, 1e-2, 3e-2],
    **{("plain", "sgd clip", spike): [3e-2, 0.1, 0.3, 1.0] for spike in ("none", "loss", "both")},
    ("plain", "agc", "none"): [0.1, 0.3, 1.0, 3.0],
    ("plain", "agc", "loss"): [1e-2, 3e-2, 0.1, 0.3],
    ("plain", "agc", "both"): [1e-2, 3e-2, 0.1, 0.3],
    ("plain", "agc all", "none"): [0.1, 0.3, 1.0, 3.0],
    ("plain", "agc all", "both"): [3e-2, 0.1, 0.3, 1.0],
    ("plain", "momentum", "none"): [1e-2, 3e-2, 0.1],
    ("plain", "momentum", "both"): [1e-3, 3e-3, 1e-2, 3e-2],
    **{("plain", "momentum clip", spike): [1e-2, 3e-2, 0.1] for spike in ("none", "both")},
    **{
        ("plain", name, spike): ADAM
        for name in ("adam", "adam 0.95", "adam clip")
        for spike in ("none", "loss", "both")
    },
    **{("plain", "adam clip 0.1", spike): ADAM for spike in ("none", "both")},
    ("plain", "lamb", "none"): [1e-3, 3e-3, 1e-2],
    ("plain", "lamb", "both"): [3e-3, 1e-2, 3e-2],
    ("plain", "muon", "none"): [1e-3, 3e-3, 1e-2],
    ("plain", "muon", "both"): [3e-4, 1e-3, 3e-3, 1e-2],
    ("plain", "muon clip", "both"): [1e-3, 3e-3, 1e-2],
    ("post-LN", "momentum", "none"): [3e-3, 1e-2, 3e-2, 0.1],
    ("post-LN", "adam", "none"): [3e-4, 1e-3, 3e-3],
    ("post-LN", "lamb", "none"): [1e-3, 3e-3, 1e-2],
    ("post-LN", "muon", "none"): [1e-3, 3e-3, 1e-2],
    ("post-LN, divided", "adam", "none"): [3e-4, 1e-3, 3e-3],
    ("He, no norm", "momentum", "none"): [1e-6, 1e-5, 1e-4],
    ("He, no norm", "adam", "none"): [3e-4, 1e-3, 3e-3, 1e-2],
    ("He, no norm", "lamb", "none"): [3e-4, 1e-3, 3e-3],
    ("He, no norm", "muon", "none"): [3e-4, 1e-3, 3e-3, 1e-2],
    ("no norm, divided", "adam", "none"): [3e-4, 1e-3, 3e-3, 1e-2],
    ("small logits", "momentum", "none"): [3e-3, 1e-2, 3e-2, 0.1],
    ("small logits", "adam", "none"): [1e-3, 3e-3, 1e-2, 3e-2],
    ("small logits", "lamb", "none"): [1e-2, 3e-2, 0.1],
    ("small logits", "muon", "none"): [3e-3, 1e-2, 3e-2, 0.1],
    ("unit logits", "momentum", "none"): [3e-3, 1e-2, 3e-2, 0.1],
    ("unit logits", "adam", "none"): [1e-3, 3e-3, 1e-2, 3e-2],
    ("unit logits", "lamb", "none"): [3e-3, 1e-2, 3e-2, 0.1],
}
SWEEP = Sweep(
    "gradients",
    run,
    [
        config
        for (start, method, spike), lrs in RATES.items()
        for config in grid(start=start, method=method, spike=spike, lr=lrs, seed=range(6))
    ],
    shape=shape,
    at_once=30,
    cost=lambda config: 3.0 if callable(METHODS[config["method"]].get("optimizer")) else 1.0,
)
