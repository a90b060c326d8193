"""What training one model and many have in common: the settings, the order of the batches, the surroundings."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from attntut._checks import check_choice, check_int, check_number
from attntut.data import Data
from attntut.device import seeded

OPTIMIZERS = ("adamw", "adam", "sgd")
BETAS = (0.9, 0.999)
EPS = 1e-8


@dataclass(frozen=True)
class Settings:
    """The arguments that the two functions share, checked."""

    steps: int
    batch_size: int
    optimizer: str
    weight_decay: float
    momentum: float
    betas: tuple[float, float]
    warmup: int
    clip_norm: float | None
    max_loss: float
    eval_every: int | None

    def __post_init__(self) -> None:
        check_int("steps", self.steps), check_int("batch_size", self.batch_size)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_number("weight_decay", self.weight_decay, low=0)
        check_number("momentum", self.momentum, low=0, high=1)
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum must be 0 unless optimizer is 'sgd': got {self.momentum}, {self.optimizer!r}.")
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be a pair of numbers: got {self.betas!r}.")
        for i, beta in enumerate(self.betas):
            if check_number(f"betas[{i}]", beta, low=0) >= 1:
                raise ValueError(f"betas[{i}] must be less than 1: got {beta}.")
        check_int("warmup", self.warmup, low=0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, low=0, open_low=True)
        if isinstance(self.max_loss, bool) or not isinstance(self.max_loss, numbers.Real):
            raise TypeError(f"max_loss must be a number > 0, or infinite: got {self.max_loss!r}.")
        if not self.max_loss > 0:
            raise ValueError(f"max_loss must be a number > 0, or infinite: got {self.max_loss!r}.")
        if self.eval_every is not None:
            check_int("eval_every", self.eval_every)

    def warmth(self, step: int) -> float:
        """The factor of the learning rate in step 0, 1, …"""
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0

    def evaluates(self, step: int) -> bool:
        return self.eval_every is not None and step % self.eval_every == 0


def batch_order(seed: int, n: int, settings: Settings) -> Tensor:
    """Which training inputs each batch holds, ``(steps, batch_size)``: shuffled passes, incomplete batches left out."""
    generator, a_pass = seeded(seed), n // settings.batch_size
    passes = [
        torch.randperm(n, generator=generator)[: a_pass * settings.batch_size].view(a_pass, -1)
        for _ in range(math.ceil(settings.steps / a_pass))
    ]
    return torch.cat(passes)[: settings.steps]


def fitting(data: Data, model: nn.Module, settings: Settings) -> Data:
    """The data on the device and in the dtype of the model."""
    if not isinstance(data, Data):
        raise TypeError(f"data must be an attntut.data.Data: got {type(data).__name__}.")
    n = len(data.train_inputs)
    if settings.batch_size > n:
        raise ValueError(f"batch_size must be at most {n}, the size of the training set: got {settings.batch_size}.")
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
    disable = None if progress is None else not progress
    return tqdm(total=total, disable=disable, unit="step", leave=False)


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """What dropout draws follows from ``seed``, and the global generators are left as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
