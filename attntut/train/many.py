"""Training of many models at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from attntut._checks import check_int, check_number
from attntut.data import Data
from attntut.device import own_randomness
from attntut.train.ensemble import Ensemble, EnsembleOptimizer, check_alike, one_each
from attntut.train.scoring import Evaluation, History
from attntut.train.settings import Settings, batch_order, data_for, progress_bar
from attntut.train.vmapped import fast_vmap

CHUNK = 32


def train_many(
    models: Sequence[nn.Module],
    data: Data,
    *,
    lrs: float | Sequence[float],
    seeds: Sequence[int] | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> list[History]:
    """Train many models of one shape in place and at once: what :func:`train` does to each, in a fraction of the time.

    The weights of all models become one matrix; :func:`torch.func.vmap` runs the model over its rows, so that the many
    small products of matrices become a few large ones, and one vectorized update serves all. A member that diverges
    keeps the weights from before its bad step, and the others do not notice.

    Args:
        models: may differ in the values of their weights, and in nothing else. Dropout works, but draws other numbers
            than :func:`train` would.
        data, progress, options: as in :func:`train`.
        lrs: one learning rate for all, or one a model.
        seeds: of the order of the batches, one a model; 0, 1, 2 … by default. Equal seeds see equal batches.
        chunk: how many models are trained at a time, which bounds the memory; at most 32 by default.

    Returns:
        One history a model, in their order.

    Raises:
        TypeError: an argument is unknown or of the wrong kind.
        ValueError: an argument is out of range, or the models are not of one shape.

    Example:
        Three learning rates, two initial weights each:

        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.data import digits
        >>> config = TransformerConfig(n_classes=10, d_input=4, n_layers=1, d_ff=32)
        >>> models = [Transformer(config, seed=seed) for _ in range(3) for seed in range(2)]
        >>> histories = train_many(models, digits(), steps=10, lrs=[1e-4, 1e-4, 1e-3, 1e-3, 1e-2, 1e-2])
        >>> [history.lr for history in histories]
        [0.0001, 0.0001, 0.001, 0.001, 0.01, 0.01]
    """
    models = check_alike(models)
    lrs = one_each("lrs", lrs, len(models), check_number)
    seeds = one_each("seeds", range(len(models)) if seeds is None else seeds, len(models), check_int)
    chunk = min(len(models), CHUNK) if chunk is None else check_int("chunk", chunk)
    settings = Settings(**options)
    if callable(settings.optimizer):
        raise TypeError(
            "optimizer must be a name in train_many, which has one update for all models; train takes a function."
        )
    data = data_for(models[0], data, settings)
    histories: list[History] = []
    starts = range(0, len(models), chunk)
    with progress_bar(settings.steps * len(starts), progress) as bar:
        for start in starts:
            part = slice(start, start + chunk)
            histories += _train_at_once(models[part], data, lrs[part], seeds[part], settings, bar.update)
    return histories


def _train_at_once(
    models: list[nn.Module],
    data: Data,
    lrs: list[float],
    seeds: list[int],
    settings: Settings,
    tick: Callable[[], object],
) -> list[History]:
    ensemble = Ensemble(models)
    device = ensemble.flat.device
    batches = torch.stack(
        [batch_order(seed, len(data.train_inputs), settings) for seed in seeds], dim=1
    )  # (steps, M, B)
    lr = torch.tensor(lrs, dtype=ensemble.flat.dtype, device=device)[:, None]  # (M, 1)
    if settings.lr_factors:
        lr = lr * ensemble.row(settings.lr_factors)  # (M, P)
    optimizer = EnsembleOptimizer(ensemble.flat, settings)
    losses = torch.full((settings.steps, len(models)), math.nan, dtype=torch.float64, device=device)
    alive = torch.ones(len(models), dtype=torch.bool, device=device)
    diverged_at = torch.full((len(models),), -1, device=device)
    evaluations: list[list[Evaluation]] = []

    with own_randomness(seeds[0], device), fast_vmap(device):
        for step, batch in enumerate(batches):
            if settings.evaluates(step):
                evaluations.append(ensemble.evaluate(data, step))
            if not alive.any():
                continue
            inputs, targets = data.train_inputs[batch], data.train_targets[batch]
            loss = ensemble.losses(inputs, targets, data.n_classes, settings.penalty)  # (M,)
            (gradient,) = torch.autograd.grad(loss.sum(), ensemble.flat)  # (M, P)
            norm = torch.linalg.vector_norm(gradient, dim=1)
            loss = loss.detach()
            losses[step] = loss.where(alive, math.nan)
            good = loss.isfinite() & (loss <= settings.max_loss) & norm.isfinite()
            diverged_at[alive & ~good] = step
            alive &= good
            if settings.clip_norm is not None:
                gradient *= (settings.clip_norm / (norm + 1e-6)).clamp(max=1)[:, None]  # as torch's clip_grad_norm_
            if not alive.all():
                gradient[~alive] = 0
            optimizer.step(gradient, lr * settings.lr_factor(step) * alive[:, None])
            if settings.after_step is not None:
                with torch.no_grad():
                    settings.after_step(ensemble.parameters())
            tick()
        evaluations.append(ensemble.evaluate(data, settings.steps))
    ensemble.write_back(models)
    ends = [at if at >= 0 else None for at in diverged_at.tolist()]
    members = zip(losses.T.cpu().contiguous(), zip(*evaluations, strict=True), ends, lrs, seeds, strict=True)
    return [History(*member) for member in members]
