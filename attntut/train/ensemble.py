"""Many models that differ in the values of their weights only, as one: the weights are a matrix, a row per model."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from attntut.data import Data
from attntut.train.scoring import Evaluation, evaluation, objective, pieces, scores
from attntut.train.settings import EPS, Settings, check_model


class Ensemble:
    """The weights of M models as one matrix ``(M, P)``, and their one program run over its rows."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.program = copy.deepcopy(models[0])
        members = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
        tensors = {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}
        trained = {n: tensors.pop(n) for n, p in models[0].named_parameters() if p.requires_grad}
        self.shapes = {name: tensor.shape[1:] for name, tensor in trained.items()}
        self.flat = torch.cat([tensor.reshape(len(models), -1) for tensor in trained.values()], dim=1).requires_grad_()
        self.untrained = tensors

    def parameters(self) -> dict[str, Tensor]:
        """The trained weights by name, each ``(M, …)``: views of the matrix."""
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {n: part.view(-1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def row(self, numbers: Mapping[str, float]) -> Tensor:
        """A number for each trained weight of a model by its parameter's name, 1 by default: ``(P,)``."""
        parts = [self.flat.new_full((shape.numel(),), numbers.get(name, 1.0)) for name, shape in self.shapes.items()]
        return torch.cat(parts)

    def losses(self, x: Tensor, y: Tensor, n_classes: int, penalty: Callable[[Tensor], Tensor] | None) -> Tensor:
        """The loss of each model on its own batch, ``(M,)``; ``x`` is ``(M, B, T, …)``."""
        self.program.train()
        return self._score(partial(objective, penalty=penalty), x, y, n_classes)

    @torch.no_grad()
    def evaluate(self, data: Data, step: int) -> list[Evaluation]:
        """Every model on the whole test set."""
        self.program.eval()
        M = len(self.flat)
        parts = [
            self._score(scores, x.expand(M, *x.shape), y.expand(M, *y.shape), data.n_classes) for x, y in pieces(data)
        ]
        return [evaluation(step, row) for row in torch.stack(parts).sum(dim=0)]  # (M, 3)

    @torch.no_grad()
    def write_back(self, models: list[nn.Module]) -> None:
        """Give each model its weights and buffers."""
        tensors = self.parameters() | self.untrained
        for i, model in enumerate(models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(tensors[name][i])

    def _score(self, score: Callable[[Tensor, Tensor, int], Tensor], x: Tensor, y: Tensor, n_classes: int) -> Tensor:
        def of_one(parameters: dict[str, Tensor], untrained: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return score(functional_call(self.program, (parameters, untrained), (x,)), y, n_classes)

        return vmap(of_one, randomness="different")(self.parameters(), self.untrained, x, y)


class EnsembleOptimizer:
    """SGD, Adam, AdamW or RAdam as in torch.optim, on the rows of a matrix, each with its own learning rate."""

    def __init__(self, flat: Tensor, settings: Settings) -> None:
        self.flat, self.settings, self.t = flat, settings, 0
        self.first = torch.zeros_like(flat, requires_grad=False)
        self.second = torch.zeros_like(flat, requires_grad=False) if settings.optimizer != "sgd" else None

    @torch.no_grad()
    def step(self, gradient: Tensor, lr: Tensor) -> None:
        """Update the rows with the learning rates ``lr``, ``(M, 1)``; a row with 0 stays as it is."""
        s, flat = self.settings, self.flat
        self.t += 1
        if s.weight_decay and s.optimizer == "adamw":
            flat.mul_(1 - lr * s.weight_decay)
        elif s.weight_decay:
            gradient = gradient.add_(flat, alpha=s.weight_decay)
        if self.second is None:
            if s.momentum:
                gradient = self.first.mul_(s.momentum).add_(gradient)
            flat.addcmul_(gradient, -lr)
            return
        beta1, beta2 = s.betas
        self.first.lerp_(gradient, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        lr = -lr / (1 - beta1**self.t)
        unbias = math.sqrt(1 - beta2**self.t)
        if s.optimizer != "radam":
            scale = self.second.sqrt().div_(unbias).add_(EPS)
        elif factor := rectification(self.t, beta2):
            scale = self.second.sqrt().add_(EPS).div_(unbias * factor)
        else:
            flat.addcmul_(self.first, lr)
            return
        flat.addcmul_(torch.div(self.first, scale, out=scale), lr)


def rectification(t: int, beta2: float) -> float:
    r"""RAdam's factor of update t = 1, 2, …, or 0 while the second moment is too uncertain to divide by.

    .. math:: r_t = \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}},
        \qquad \rho_\infty = \frac{2}{1 - \beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1 - \beta_2^t}

    Liu et al. (2020), algorithm 2; :class:`torch.optim.RAdam`, whose bound on :math:`\rho_t` is 5 where the paper's
    is 4.

    Example:
        >>> [round(rectification(t, 0.999), 3) for t in (5, 6, 100, 1000, 10000)]
        [0.0, 0.026, 0.215, 0.645, 1.0]
    """
    most = 2 / (1 - beta2) - 1
    length = most - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 5:
        return 0.0
    return math.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))


def check_alike(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Refuse models that cannot be trained at once, and say which and why."""
    if (isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)) or not isinstance(models, Iterable):
        raise TypeError(f"models must be a sequence of torch.nn.Module: got {type(models).__name__}.")
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model: got none.")
    for i, model in enumerate(models):
        check_model(f"models[{i}]", model)
        if any(model is other for other in models[:i]):
            raise ValueError(f"models must be different objects: models[{i}] came before.")
    first, *others = map(_description, models)
    for i, other in enumerate(others, 1):
        for what in first | other:
            if (one := first.get(what, "missing")) != (another := other.get(what, "missing")):
                raise ValueError(
                    f"models must differ in the values of their weights only: {what} is {one} in models[0] "
                    f"and {another} in models[{i}]."
                )
    return models


def _description(model: nn.Module) -> dict[str, object]:
    """What a model is besides the values of its tensors: ``{"'blocks.0.attention.scale'": 0.35, …}``."""
    found: dict[str, object] = {"the type": type(model).__name__}
    tensors: list[tuple[str, Tensor]] = [
        *((f"parameter {name!r}", p) for name, p in model.named_parameters()),
        *((f"buffer {name!r}", b) for name, b in model.named_buffers()),
    ]
    for name, tensor in tensors:
        frozen = ", frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""
        found[name] = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{frozen}"
    for path, module in model.named_modules():
        found[repr(path)] = type(module).__name__
        for key, value in vars(module).items():
            if key == "training" or key.startswith("_"):
                continue
            for field, item in vars(value).items() if is_dataclass(value) else (("", value),):
                if isinstance(item, tuple):
                    item = tuple(type(each).__name__ if isinstance(each, nn.Module) else each for each in item)
                if isinstance(item, bool | int | float | str | tuple | None):
                    found[repr(".".join(filter(None, (path, key, field))))] = item
    return found


def one_each(name: str, values: Any, n: int, check: Callable[..., Any]) -> list[Any]:
    """A list with one number ≥ 0 a model, checked; a single learning rate serves all."""
    if isinstance(values, numbers.Real) and name == "lrs":
        values = [values] * n
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must hold one number per model: got {values!r}.")
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(values) != n:
        raise ValueError(f"{name} must hold one number per model, {n} in all: got {len(values)}.")
    return [check(f"{name}[{i}]", value, low=0) for i, value in enumerate(values)]
