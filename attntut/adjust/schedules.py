"""Learning-rate schedules: each gives an ordinary scheduler of ``torch.optim.lr_scheduler``."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LinearLR, LRScheduler

from attntut._checks import check_int
from attntut.adjust.registry import adjustment


@adjustment(
    formula=r"\eta_t = \eta\, \min(1, t / w), \qquad t = 1, 2, \ldots",
    cite="goyal2017accurate",
    source="Goyal et al. (2017), section 2.2",
    why="Adam's first steps are as large as the learning rate, whatever the gradient: it starts small.",
)
def warmup(optimizer: Optimizer, *, steps: int) -> LRScheduler:
    """Raise the learning rate in a straight line to its value, over the first steps.

    Args:
        optimizer: whose learning rates are those at the end of the warm-up.
        steps: w; the step number w is the first with the whole learning rate.

    Returns:
        The scheduler; call its ``step()`` after the optimizer's.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler, rates = warmup(optimizer, steps=4), []
        >>> for _ in range(6):
        ...     rates.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    check_int("steps", steps)
    return LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)
