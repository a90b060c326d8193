"""The weights of many models as one matrix, and the optimizer of its rows."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from attntut.data import Data
from attntut.train.history import Evaluation
from attntut.train.scoring import cross_entropy, evaluation, pieces, scores
from attntut.train.settings import EPS, Settings


class Stack:
    """The weights of M models as one matrix ``(M, P)``, and their one program run over its rows."""

    def __init__(self, models: list[nn.Module]) -> None:
        self.program = copy.deepcopy(models[0])
        self.shapes = {name: p.shape for name, p in models[0].named_parameters() if p.requires_grad}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        rows = [[p.detach().flatten() for p in m.parameters() if p.requires_grad] for m in models]
        self.flat = torch.stack([torch.cat(row) for row in rows]).requires_grad_()
        others = [_untrained(model) for model in models]
        self.others = {name: torch.stack([other[name].detach() for other in others]) for name in others[0]}

    def parameters(self) -> dict[str, Tensor]:
        parts = self.flat.split(self.sizes, dim=1)
        return {n: part.view(-1, *shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def losses(self, x: Tensor, y: Tensor, n_classes: int) -> Tensor:
        """The loss of each model on its own batch, ``(M,)``; ``x`` is ``(M, B, T, …)``."""

        def loss(parameters: dict[str, Tensor], others: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(functional_call(self.program, (parameters, others), (x,)), y, n_classes)

        self.program.train()
        return vmap(loss, randomness="different")(self.parameters(), self.others, x, y)

    @torch.no_grad()
    def evaluate(self, data: Data, step: int) -> list[Evaluation]:
        def part(parameters: dict[str, Tensor], others: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return scores(functional_call(self.program, (parameters, others), (x,)), y, data.n_classes)

        self.program.eval()
        run = vmap(part, randomness="different")
        M = len(self.flat)
        parts = [(x.expand(M, *x.shape), y.expand(M, *y.shape)) for x, y in pieces(data)]
        total = torch.stack([run(self.parameters(), self.others, x, y) for x, y in parts]).sum(dim=0)  # (M, 3)
        return [evaluation(step, row) for row in total]

    @torch.no_grad()
    def write_back(self, models: list[nn.Module]) -> None:
        stacked = {**self.parameters(), **self.others}
        for i, model in enumerate(models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                tensor.copy_(stacked[name][i])


class StackedOptimizer:
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


def _untrained(model: nn.Module) -> dict[str, Tensor]:
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return {**frozen, **dict(model.named_buffers())}
