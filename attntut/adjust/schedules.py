"""Learning-rate schedules: each gives an ordinary scheduler of ``torch.optim.lr_scheduler``.

Call its ``step()`` after the optimizer's. It multiplies the rates that the optimizer has when it is made. Updates are
counted t = 1, 2, …, so that the first has a rate above 0; libraries that count from 0 are one update behind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler

from attntut._checks import check_choice, check_int, check_number
from attntut.adjust.optimizers import check_optimizer
from attntut.adjust.registry import adjustment

SHAPES = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}
"""From 1 at x = 0 to 0 at x = 1."""


@dataclass
class InverseSqrt:
    """The factor peak·min(t/w, √(w/t)); a scheduler's state has the numbers of such an object."""

    warmup: int
    peak: float = 1.0

    def __call__(self, done: int) -> float:
        t = done + 1
        return self.peak * min(t / self.warmup, math.sqrt(self.warmup / t))


@dataclass
class Fall:
    """The factor min(1, t/w) until update ``start``; from there by a shape to ``floor`` at ``end``, where it stays."""

    warmup: int
    start: int
    end: int
    floor: float
    shape: str

    def __call__(self, done: int) -> float:
        t = done + 1
        if t <= self.start:
            return min(1.0, t / self.warmup)
        x = min(1.0, (t - self.start) / (self.end - self.start))
        return self.floor + (1 - self.floor) * SHAPES[self.shape](x)


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
    check_optimizer(optimizer), check_int("steps", steps)
    return LinearLR(optimizer, start_factor=1 / steps, total_iters=steps - 1)


@adjustment(
    formula=r"\eta_t = \eta\, d^{-1/2} \min(t^{-1/2}, t\, w^{-3/2})",
    cite="vaswani2017attention",
    source="Vaswani et al. (2017), equation 3; tensor2tensor, utils/learning_rate.py",
    why="Warm-up for post-LN, then a slow fall; the peak, at t = w, is 1/√(d·w), and falls with the width.",
)
def noam(optimizer: Optimizer, *, d_model: int, steps: int = 4000) -> LRScheduler:
    """The schedule of the first Transformer: a straight line up, then the inverse root of the update's number.

    The formula has the rate itself: give the optimizer ``lr=1.0``, or a number to multiply it with.

    Args:
        optimizer: whose learning rates are η.
        d_model: d.
        steps: w, of warm-up.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=1.0, betas=(0.9, 0.98), eps=1e-9)
        >>> scheduler = noam(optimizer, d_model=512)
        >>> f"{optimizer.param_groups[0]['lr']:.3e}"
        '1.747e-07'
    """
    check_optimizer(optimizer), check_int("d_model", d_model), check_int("steps", steps)
    return LambdaLR(optimizer, InverseSqrt(steps, 1 / math.sqrt(d_model * steps)))


@adjustment(
    formula=r"\eta_t = \eta\, \min\left(t / w, \sqrt{w / t}\right)",
    cite="ott2019fairseq",
    source="fairseq, optim/lr_scheduler/inverse_square_root_schedule.py",
    why="Noam's shape with the peak as a number of its own; no end need be known.",
)
def inverse_sqrt(optimizer: Optimizer, *, warmup: int) -> LRScheduler:
    """Raise the learning rate in a straight line, then let it fall with the root of the update's number.

    Args:
        optimizer: whose learning rates are those at the peak.
        warmup: w; the update number w has the whole learning rate.

    Example:
        >>> [round(InverseSqrt(warmup=4)(done), 3) for done in (0, 3, 15, 63)]
        [0.25, 1.0, 0.5, 0.25]
    """
    check_optimizer(optimizer), check_int("warmup", warmup)
    return LambdaLR(optimizer, InverseSqrt(warmup))


@adjustment(
    formula=r"\eta_t = \eta\left(f + \frac{1 - f}{2}\left(1 + \cos \pi \frac{t - w}{T - w}\right)\right), t \ge w",
    cite="loshchilov2017sgdr",
    source="Loshchilov & Hutter (2017), one cycle; with the warm-up, transformers, get_cosine_schedule_with_warmup",
    why="The rate is high as long as much can be gained and falls when noise hides what is left.",
)
def cosine(optimizer: Optimizer, *, steps: int, warmup: int = 1, floor: float = 0.0) -> LRScheduler:
    """Raise the learning rate in a straight line, then let it fall along half a cosine.

    Args:
        optimizer: whose learning rates are those at the peak.
        steps: T; this update, and any later one, has the rate ``floor``·η. The shape depends on it: a run that is
            stopped earlier is not the same as a shorter run.
        warmup: w, as in :func:`warmup`; 1 is none.
        floor: f.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> scheduler, rates = cosine(optimizer, steps=6, warmup=2), []
        >>> for _ in range(6):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 3))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    return _fall(optimizer, steps, warmup, warmup, floor, "cosine")


@adjustment(
    formula=r"\eta_t = \eta \cdot \begin{cases} t / w & t \le w \\ 1 & w < t \le T - D \\ "
    r"f + (1 - f)\left(1 - \sqrt{(t - T + D) / D}\right) & t > T - D \end{cases}",
    cite="hu2024minicpm",
    source="Hu et al. (2024), MiniCPM; the shape of the fall: Hägele et al. (2024), 1 − √x",
    why="The end need not be known before the fall begins: from one stable stretch, runs of every length branch off.",
)
def wsd(
    optimizer: Optimizer, *, steps: int, decay: int, warmup: int = 1, floor: float = 0.0, shape: str = "1-sqrt"
) -> LRScheduler:
    """Warm up, stay stable, decay.

    Args:
        optimizer: whose learning rates are those of the stable stretch.
        steps: T; this update, and any later one, has the rate ``floor``·η.
        decay: D, how many updates the fall takes: often a tenth or a fifth of ``steps``.
        warmup: w, as in :func:`warmup`; 1 is none.
        floor: f.
        shape: of the fall: one of ``"1-sqrt"``, ``"linear"``, ``"cosine"``.

    Example:
        >>> [round(Fall(warmup=2, start=4, end=8, floor=0.0, shape="linear")(done), 2) for done in range(8)]
        [0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    check_choice("shape", shape, SHAPES)
    start = check_int("steps", steps) - check_int("decay", decay)
    return _fall(optimizer, steps, warmup, start, floor, shape)


def _fall(optimizer: Optimizer, steps: int, warmup: int, start: int, floor: float, shape: str) -> LRScheduler:
    check_optimizer(optimizer), check_number("floor", floor, low=0, high=1)
    check_int("warmup", warmup), check_int("steps", steps)
    if not warmup <= start < steps:
        raise ValueError(f"steps must leave room for the warm-up and the fall: got steps={steps}, warmup={warmup}, and "
                         f"a fall that begins at update {start}.")  # fmt: skip
    return LambdaLR(optimizer, Fall(warmup, start, steps, floor, shape))
