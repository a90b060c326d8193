"""What training one model and many have in common: the settings, the order of the batches, the surroundings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from attntut._checks import check_choice, check_int, check_number
from attntut._extras import extra
from attntut.data import Data
from attntut.device import seeded

with extra("train"):
    from tqdm import tqdm

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "radam": torch.optim.RAdam, "sgd": torch.optim.SGD}
EPS = 1e-8
OptimizerFactory = Callable[[nn.Module, float], torch.optim.Optimizer | Iterable[torch.optim.Optimizer]]
OF_OPTIMIZER = ("weight_decay", "momentum", "betas", "lr_factors")
"""Settings that say how an optimizer named by a word is made."""


@dataclass(frozen=True)
class Settings:
    """How to train: what :func:`~attntut.train.train` and :func:`~attntut.train.train_many` take besides their own.

    Args:
        steps: number of updates.
        batch_size: inputs a batch; at most the size of the training set.
        optimizer: ``"adamw"``, ``"adam"``, ``"radam"`` or ``"sgd"``, as in :mod:`torch.optim`. For
            :func:`~attntut.train.train` also a function of the model and the learning rate that gives one or more
            optimizers; it may adjust the model.
        weight_decay: decoupled for AdamW, added to the gradient for the others.
        momentum: of SGD.
        betas: of all but SGD.
        warmup: updates until the learning rate is reached.
        schedule: instead of ``warmup``, the factor of the learning rate by the number of updates done.
        clip_norm: the gradient is scaled down to this norm where it is longer.
        penalty: a number made of the logits of a batch and added to its loss, as :func:`~attntut.adjust.z_loss` does.
        max_loss: a loss above it counts as a divergence, like one that is not finite.
        eval_every: evaluate before the first update and after every so many; the end is evaluated in any case.
        lr_factors: of the learning rate, by the name of the parameter; 1 for those that it does not name.
        after_step: called after each update with the parameters by name, to change them in place; those of
            :func:`~attntut.train.train_many` have one more dimension in front, that of the models.

    Example:
        >>> [Settings(steps=100, warmup=4).lr_factor(step) for step in (0, 1, 3, 99)]
        [0.25, 0.5, 1.0, 1.0]
        >>> [Settings(steps=100, schedule=lambda done: 1 - done / 100).lr_factor(step) for step in (0, 75)]
        [1.0, 0.25]
    """

    steps: int
    batch_size: int = 32
    optimizer: str | OptimizerFactory = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = 0
    schedule: Callable[[int], float] | None = None
    penalty: Callable[[Tensor], Tensor] | None = None
    clip_norm: float | None = None
    max_loss: float = math.inf
    eval_every: int | None = None
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    after_step: Callable[[Mapping[str, Tensor]], object] | None = None

    def __post_init__(self) -> None:
        check_int("steps", self.steps), check_int("batch_size", self.batch_size)
        if not callable(self.optimizer):
            check_choice("optimizer", self.optimizer, OPTIMIZERS)
        elif other := [name for name in OF_OPTIMIZER if getattr(self, name) != getattr(Settings(steps=1), name)]:
            raise ValueError(f"{other[0]} must be left out where optimizer is a function, which sets it itself.")
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("momentum", self.momentum, low=0, high=1)
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum must be 0 unless optimizer is 'sgd': got {self.momentum}, {self.optimizer!r}.")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be a pair of numbers: got {self.betas!r}.")
        for i, beta in enumerate(self.betas):
            check_number(f"betas[{i}]", beta, low=0, high=1, open_high=True)
        check_int("warmup", self.warmup, low=0)
        for name in ("schedule", "penalty", "after_step"):
            if (given := getattr(self, name)) is not None and not callable(given):
                raise TypeError(f"{name} must be a function: got {given!r}.")
        if self.warmup and self.schedule is not None:
            raise ValueError(f"warmup must be 0 where there is a schedule, which has its own: got {self.warmup}.")
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, low=0, open_low=True)
        if self.max_loss != math.inf:
            check_number("max_loss", self.max_loss, low=0, open_low=True)
        if self.eval_every is not None:
            check_int("eval_every", self.eval_every)
        for name, factor in self.lr_factors.items():
            check_number(f"lr_factors[{name!r}]", factor, low=0)

    def lr_factor(self, step: int) -> float:
        """The factor of the learning rate in step 0, 1, …: of the schedule, or linear up to ``warmup``, then 1."""
        if self.schedule is not None:
            return self.schedule(step)
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated before step 0, 1, …"""
        return self.eval_every is not None and step % self.eval_every == 0


def batch_order(seed: int, n: int, settings: Settings) -> Tensor:
    """Which training inputs each batch holds, ``(steps, batch_size)``: shuffled passes, incomplete batches left out."""
    generator, batches = seeded(seed), n // settings.batch_size  # a pass
    passes = [
        torch.randperm(n, generator=generator)[: batches * settings.batch_size].view(batches, -1)
        for _ in range(math.ceil(settings.steps / batches))
    ]
    return torch.cat(passes)[: settings.steps]


def data_for(model: nn.Module, data: Data, settings: Settings) -> Data:
    """The data on the device and in the dtype of the model."""
    if not isinstance(data, Data):
        raise TypeError(f"data must be an attntut.data.Data: got {type(data).__name__}.")
    n = len(data.train_inputs)
    if settings.batch_size > n:
        raise ValueError(f"batch_size must be at most {n}, the size of the training set: got {settings.batch_size}.")
    for name in settings.lr_factors:
        check_choice("lr_factors", name, [name for name, p in model.named_parameters() if p.requires_grad])
    weight = next(p for p in model.parameters() if p.requires_grad)
    return data.to(weight.device, weight.dtype)


def check_model(name: str, model: object) -> nn.Module:
    """Refuse what is no model, or has nothing to train."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module: got {type(model).__name__}.")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{name} must have a parameter that requires a gradient: {type(model).__name__} has none.")
    return model


def progress_bar(total: int, progress: bool | None) -> tqdm:
    """A bar of steps; without an answer in ``progress``, only a terminal gets one."""
    return tqdm(total=total, disable=None if progress is None else not progress, unit="step", leave=False)
