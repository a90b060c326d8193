"""The weights of many models as one matrix, and the optimizer of its rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from attntut.data import Data
from attntut.train.history import Evaluation
from attntut.train.scoring import cross_entropy, evaluation, pieces, scores
from attntut.train.settings import EPS, Settings


class Ensemble:
    """The weights of M models as one matrix ``(M, P)``, and their one program run over its rows."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.program = copy.deepcopy(models[0])
        members = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
        tensors = {name: torch.stack([member[name].detach() for member in members]) for name in members[0]}
        trained = {n: tensors.pop(n) for n, p in models[0].named_parameters() if p.requires_grad}
        self.shapes = {name: tensor.shape[1:] for name, tensor in trained.items()}
        self.flat = torch.cat([tensor.flatten(1) for tensor in trained.values()], dim=1).requires_grad_()
        self.untrained = tensors

    def parameters(self) -> dict[str, Tensor]:
        """The trained weights by name, each ``(M, …)``: views of the matrix."""
        parts = self.flat.split([shape.numel() for shape in self.shapes.values()], dim=1)
        return {n: part.view(-1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def losses(self, x: Tensor, y: Tensor, n_classes: int) -> Tensor:
        """The loss of each model on its own batch, ``(M,)``; ``x`` is ``(M, B, T, …)``."""
        self.program.train()
        return self._score(cross_entropy, x, y, n_classes)

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
    """SGD, Adam or AdamW as in torch.optim, on the rows of a matrix, each with its own learning rate."""

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
        scale = (self.second.sqrt()).div_(math.sqrt(1 - beta2**self.t)).add_(EPS)
        flat.addcmul_(torch.div(self.first, scale, out=scale), -lr / (1 - beta1**self.t))
