"""The loss of a batch, and the evaluation on a test set."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from attntut.data import UNSCORED, Data
from attntut.train.history import Evaluation

EVAL_BATCH = 128


def cross_entropy(logits: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """The mean loss of the scored targets, in nats."""
    return _losses(logits, targets, n_classes).sum() / (targets != UNSCORED).sum()


def scores(logits: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """Sum of the losses, number of right answers, number of scored targets: ``(3,)``."""
    loss = _losses(logits, targets, n_classes).sum()
    right = (logits.argmax(dim=-1) == targets).sum()
    return torch.stack([loss.double(), right.double(), (targets != UNSCORED).sum().double()])


def _losses(logits: Tensor, targets: Tensor, n_classes: int) -> Tensor:
    """As :func:`torch.nn.functional.cross_entropy` without its reduction, which vmap would run in Python."""
    if not isinstance(logits, Tensor) or logits.shape[:-1] != targets.shape or logits.shape[-1] < n_classes:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model must return logits of shape {(*targets.shape, n_classes)} for targets of shape "
            f"{tuple(targets.shape)}: got {got}."
        )
    log_p = torch.log_softmax(logits, dim=-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return torch.where(targets != UNSCORED, -log_p, 0.0)


def pieces(data: Data) -> Iterator[tuple[Tensor, Tensor]]:
    """The test set, a part at a time."""
    yield from zip(data.test_inputs.split(EVAL_BATCH), data.test_targets.split(EVAL_BATCH), strict=True)


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, step: int) -> Evaluation:
    """The model on the whole test set."""
    model.eval()
    parts = [scores(model(x), y, data.n_classes) for x, y in pieces(data)]
    return evaluation(step, torch.stack(parts).sum(dim=0))


def evaluation(step: int, total: Tensor) -> Evaluation:
    """What the summed :func:`scores` of the test set say."""
    loss, right, scored = total.tolist()
    return Evaluation(step, loss / scored, right / scored)
