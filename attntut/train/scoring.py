"""The loss of a batch, the evaluation on a test set, and what a training run leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from attntut.data import UNSCORED, Data

EVAL_BATCH = 128


class Evaluation(NamedTuple):
    """The model on the whole test set.

    Attributes:
        step: how many updates it had had.
        loss: mean cross-entropy of the scored targets, in nats.
        accuracy: share of the scored targets that are the most probable class.
    """

    step: int
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """What happened in one training run.

    Attributes:
        losses: ``(steps,)`` float64, the loss of the batch before each update; NaN after a divergence.
        evaluations: on the test set, the last one after the last update.
        diverged_at: the step whose loss or gradient was not finite, or whose loss was above the limit; the weights are
            those before that step. None if there was no such step.
        lr, seed: the learning rate, and the seed of the batches.

    Example:
        >>> import torch
        >>> history = History(torch.tensor([2.3, 0.4]), (Evaluation(2, 0.5, 0.9),), None, lr=0.1, seed=0)
        >>> history
        History(steps=2, test loss 0.5000, accuracy 0.900, lr=0.1, seed=0)
    """

    losses: Tensor
    evaluations: tuple[Evaluation, ...]
    diverged_at: int | None
    lr: float
    seed: int

    @property
    def diverged(self) -> bool:
        """Whether the run ended early."""
        return self.diverged_at is not None

    @property
    def final_loss(self) -> float:
        """Test loss of the final weights."""
        return self.evaluations[-1].loss

    @property
    def final_accuracy(self) -> float:
        """Test accuracy of the final weights."""
        return self.evaluations[-1].accuracy

    def __repr__(self) -> str:
        end = f", diverged at step {self.diverged_at}" if self.diverged else ""
        result = f"test loss {self.final_loss:.4f}, accuracy {self.final_accuracy:.3f}"
        return f"History(steps={len(self.losses)}, {result}, lr={self.lr:g}, seed={self.seed}{end})"


def objective(
    logits: Tensor, targets: Tensor, n_classes: int, penalty: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """What is minimized: the mean loss of the scored targets, in nats, and the penalty of the logits if any."""
    loss = _losses(logits, targets, n_classes).sum() / (targets != UNSCORED).sum()
    return loss if penalty is None else loss + penalty(logits)


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
