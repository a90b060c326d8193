"""What a training run leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


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
        lr: the learning rate.
        seed: the seed of the batches.

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
