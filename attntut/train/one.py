"""Training of one model."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from attntut._checks import check_int, check_number
from attntut._restore import restored_mode
from attntut.data import Data
from attntut.device import own_randomness
from attntut.train.scoring import Evaluation, History, evaluate, objective
from attntut.train.settings import EPS, OPTIMIZERS, Settings, batch_order, check_model, data_for, progress_bar


def train(
    model: nn.Module, data: Data, *, lr: float, seed: int = 0, progress: bool | None = None, **options: Any
) -> History:
    r"""Train a model in place by cross-entropy, with an optimizer of torch.

    Batches come from shuffled passes over the training set; what is left at the end of a pass and fills no batch is
    skipped. The learning rate of update :math:`t = 1, 2, \dots` is :math:`\text{lr} \cdot \min(1, t / \text{warmup})`.

    Args:
        model: maps a batch of inputs to logits, ``(B, n_classes)`` or ``(B, T, n_classes)`` as the targets demand.
            Parameters with ``requires_grad=False`` stay as they are.
        data: moved to the device and the dtype of the model.
        lr: learning rate.
        seed: of the order of the batches, and of dropout if there is any.
        progress: whether to show a bar; by default only where stderr is a terminal.
        options: ``steps``, and whatever else of :class:`~attntut.train.Settings` is not as there.

    Returns:
        The history. After a divergence the model has the weights from before the bad step.

    Raises:
        TypeError: an argument is unknown or of the wrong kind.
        ValueError: an argument is out of range, or the model's output does not fit the targets.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.data import digits
        >>> model = Transformer(TransformerConfig(n_classes=10, d_input=4, n_layers=1, d_ff=32), seed=0)
        >>> train(model, digits(), steps=100, lr=1e-2).final_accuracy > 0.6
        True

        With an optimizer of its own, here one that also bounds the attention's logits after each step:

        >>> from attntut.adjust import adjust
        >>> def clipped(model, lr):
        ...     optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
        ...     adjust(model, "qk_clip", optimizer=optimizer, limit=20.0)
        ...     return optimizer
        >>> train(model, digits(), steps=10, lr=1e-2, optimizer=clipped)
        History(steps=10, ...)
    """
    check_model("model", model)
    check_number("lr", lr, low=0), check_int("seed", seed, low=0)
    settings = Settings(**options)
    data = data_for(model, data, settings)
    optimizers = _optimizers(model, lr, settings)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(named.values())
    batches = batch_order(seed, len(data.train_inputs), settings)  # (steps, batch)
    losses = torch.full((settings.steps,), math.nan, dtype=torch.float64)
    evaluations: list[Evaluation] = []
    diverged_at = None

    randomness = own_randomness(seed, parameters[0].device)
    with restored_mode(model), randomness, progress_bar(settings.steps, progress) as bar:
        for step, batch in enumerate(batches):
            if settings.evaluates(step):
                evaluations.append(evaluate(model, data, step))
            if diverged_at is not None:
                continue
            model.train()
            logits = model(data.train_inputs[batch])
            loss = objective(logits, data.train_targets[batch], data.n_classes, settings.penalty)
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
            norm = get_total_norm(gradients)
            losses[step] = value = loss.item()
            if not (math.isfinite(value) and value <= settings.max_loss and math.isfinite(norm)):
                diverged_at = step
                continue
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            if settings.clip_norm is not None:
                clip_grads_with_norm_(parameters, settings.clip_norm, norm)
            for group, whole in groups:
                group["lr"] = whole * settings.lr_factor(step)
            for optimizer in optimizers:
                optimizer.step()
            if settings.after_step is not None:
                with torch.no_grad():
                    settings.after_step(named)
            bar.update()
        for parameter in parameters:
            parameter.grad = None
        evaluations.append(evaluate(model, data, settings.steps))
    return History(losses, tuple(evaluations), diverged_at, float(lr), seed)


def _optimizers(model: nn.Module, lr: float, s: Settings) -> tuple[torch.optim.Optimizer, ...]:
    """What the settings ask for, with the parameters grouped by the factor of their learning rate."""
    if callable(s.optimizer):
        made = s.optimizer(model, lr)
        return (made,) if isinstance(made, torch.optim.Optimizer) else tuple(made)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    by_factor: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named.items():
        by_factor.setdefault(s.lr_factors.get(name, 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = [{"params": some, "lr": lr * factor} for factor, some in by_factor.items()]
    options: dict[str, Any] = dict(lr=lr, weight_decay=s.weight_decay)
    options |= dict(momentum=s.momentum) if s.optimizer == "sgd" else dict(betas=s.betas, eps=EPS)
    if s.optimizer != "radam":  # which torch has not fused
        options["fused"] = next(iter(named.values())).device.type in ("cpu", "cuda")
    return (OPTIMIZERS[s.optimizer](groups, **options),)
