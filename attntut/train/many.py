"""Training of many models at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from tqdm import tqdm

from attntut._checks import check_int, check_number
from attntut.data import Data
from attntut.train.alike import check_alike, one_each
from attntut.train.history import Evaluation, History
from attntut.train.settings import BETAS, Settings, batch_order, fitting, own_randomness, progress_bar
from attntut.train.stack import Stack, StackedOptimizer
from attntut.train.vmapped import fast_vmap

CHUNK = 32


def train_many(
    models: Sequence[nn.Module],
    data: Data,
    *,
    steps: int,
    lrs: float | Sequence[float],
    seeds: Sequence[int] | None = None,
    batch_size: int = 32,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    betas: tuple[float, float] = BETAS,
    warmup: int = 0,
    clip_norm: float | None = None,
    max_loss: float = math.inf,
    eval_every: int | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
) -> list[History]:
    """Train many models of one shape in place and at once: what :func:`train` does to each, in a fraction of the time.

    The weights of all models are stacked; :func:`torch.func.vmap` runs the model over the stack, so that the many small
    products of matrices become a few large ones, and one vectorized update serves all. A member that diverges keeps the
    weights from before its bad step, and the others do not notice.

    Args:
        models: may differ in the values of their weights, and in nothing else. Dropout works, but draws other numbers
            than :func:`train` would.
        data: as in :func:`train`.
        steps: number of updates.
        lrs: one learning rate for all, or one a model.
        seeds: of the order of the batches, one a model; 0, 1, 2 … by default. Equal seeds see equal batches.
        batch_size, optimizer, weight_decay, momentum, betas: as in :func:`train`.
        warmup, clip_norm, max_loss, eval_every: as in :func:`train`.
        chunk: how many models are trained at a time, which bounds the memory; at most 32 by default.
        progress: as in :func:`train`.

    Returns:
        One history a model, in their order.

    Raises:
        TypeError: an argument is of the wrong kind.
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
    lrs = one_each("lrs", lrs, len(models))
    for i, lr in enumerate(lrs):
        check_number(f"lrs[{i}]", lr, low=0)
    seeds = one_each("seeds", range(len(models)) if seeds is None else seeds, len(models))
    for i, seed in enumerate(seeds):
        check_int(f"seeds[{i}]", seed, low=0)
    chunk = min(len(models), CHUNK) if chunk is None else check_int("chunk", chunk)
    settings = Settings(
        steps, batch_size, optimizer, weight_decay, momentum, betas, warmup, clip_norm, max_loss, eval_every
    )
    data = fitting(data, models[0], settings)
    histories: list[History] = []
    starts = range(0, len(models), chunk)
    with progress_bar(steps * len(starts), progress) as bar:
        for start in starts:
            part = slice(start, start + chunk)
            histories += _train_stack(models[part], data, lrs[part], seeds[part], settings, bar)
    return histories


def _train_stack(
    models: list[nn.Module], data: Data, lrs: list[float], seeds: list[int], settings: Settings, bar: tqdm
) -> list[History]:
    stack = Stack(models)
    device = stack.flat.device
    batches = torch.stack(
        [batch_order(seed, len(data.train_inputs), settings) for seed in seeds], dim=1
    )  # (steps, M, B)
    lr = torch.tensor(lrs, dtype=stack.flat.dtype, device=device)[:, None]  # (M, 1)
    update = StackedOptimizer(stack.flat, settings)
    losses = torch.full((settings.steps, len(models)), math.nan, dtype=torch.float64, device=device)
    alive = torch.ones(len(models), dtype=torch.bool, device=device)
    diverged_at = torch.full((len(models),), -1, device=device)
    evaluations: list[list[Evaluation]] = []

    with own_randomness(seeds[0], device), fast_vmap(device):
        for step, batch in enumerate(batches):
            if settings.evaluates(step):
                evaluations.append(stack.evaluate(data, step))
            if not alive.any():
                continue
            loss = stack.losses(data.train_inputs[batch], data.train_targets[batch], data.n_classes)  # (M,)
            (gradient,) = torch.autograd.grad(loss.sum(), stack.flat)  # (M, P)
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
            update.step(gradient, lr * settings.warmth(step) * alive[:, None])
            bar.update()
        evaluations.append(stack.evaluate(data, settings.steps))
    stack.write_back(models)
    ends = [at if at >= 0 else None for at in diverged_at.tolist()]
    own = zip(losses.T.cpu().contiguous(), zip(*evaluations, strict=True), ends, map(float, lrs), seeds, strict=True)
    return [History(*member) for member in own]
