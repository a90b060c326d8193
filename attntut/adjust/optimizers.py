"""Optimizers, and what is done to their steps.

Two remedies are arguments of torch's own: the rectified warm-up of Liu et al. (2020) is :class:`torch.optim.RAdam`,
and a second moment that forgets a spike sooner is ``torch.optim.AdamW(…, betas=(0.9, 0.95))``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attntut._checks import check_number
from attntut.adjust.groups import stored
from attntut.adjust.handle import known_view
from attntut.adjust.registry import adjustment
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.weight import BRANCH

CAUTIOUS = "has_cautious_decay"
"""An attribute of an optimizer whose decay is done by hooks; as they are, it is neither copied nor saved."""


def check_optimizer(optimizer: object) -> Optimizer:
    """Return an optimizer of torch, or say that it is none."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer: got {type(optimizer).__name__}.")
    return optimizer


@adjustment(
    formula=r"W \leftarrow W - \eta\, \frac{\phi(\lVert W \rVert)}{\lVert u \rVert}\, u, \qquad "
    r"u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda W, \qquad \phi(z) = \min(z, c)",
    cite="you2020large",
    source="You et al. (2020); tensorflow/addons, optimizers/lamb.py; timm, optim/lamb.py",
    why="Each matrix moves by the share η of its own length, however its gradients compare with those of others.",
)
def lamb(
    params: Any,
    *,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    limit: float | None = None,
) -> Optimizer:
    """LAMB: Adam's step, matrix by matrix, at the length of the weights.

    Vectors (biases, gains) get Adam's step as it is: tensorflow/addons has a list of names for that, timm takes what
    has no decay. Weights that are all 0 get it too, or they would stay so. A packed matrix has one ratio.

    Args:
        params: parameters or groups, as for any optimizer.
        lr: η.
        betas, eps: of Adam's two moments, both corrected for their start.
        weight_decay: λ.
        limit: c, a bound on the length that counts; by default there is none.

    Returns:
        The optimizer.

    Example:
        >>> weight = nn.Parameter(torch.full((2, 2), 3.0))
        >>> optimizer = lamb([weight], lr=0.1, weight_decay=0.0)
        >>> weight.grad = torch.tensor([[1.0, 1.0], [0.1, 1e3]])
        >>> optimizer.step()
        >>> weight  # by a tenth of its length
        Parameter containing:
        tensor([[2.7000, 2.7000],
                [2.7000, 2.7000]], requires_grad=True)
    """
    check_number("lr", lr, low=0), check_number("eps", eps, low=0, open_low=True)
    check_number("weight_decay", weight_decay, low=0)
    for beta in betas:
        check_number("betas", beta, low=0, high=1, open_high=True)
    most = math.inf if limit is None else check_number("limit", limit, low=0, open_low=True)
    return Lamb(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, limit=most))


class Lamb(Optimizer):
    """What :func:`lamb` gives."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step.

        Args:
            closure: computes the loss and the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for each in group["params"]:
                if each.grad is not None:
                    each.sub_(group["lr"] * self._update(each, each.grad, self.state[each], group))
        return loss

    @staticmethod
    def _update(weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean = state["exp_avg"].lerp_(grad, 1 - beta1) / (1 - beta1 ** state["step"])
        square = state["exp_avg_sq"].lerp_(grad.square(), 1 - beta2) / (1 - beta2 ** state["step"])
        update: Tensor = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * weight
        if weight.ndim > 1:
            length, size = torch.linalg.vector_norm(weight), torch.linalg.vector_norm(update)
            ratio = length.clamp(max=group["limit"]) / size
            update *= torch.where((length > 0) & (size > 0), ratio, 1.0)
        return update


@adjustment(
    formula=r"W \leftarrow W - \eta\,(u + \lambda\, \mathbb{1}[u \odot W \ge 0] \odot W)",
    cite="chen2025cautious",
    source="Chen et al. (2025); karpathy/nanochat, nanochat/optim.py",
    why="A weight decays only where the step makes it smaller anyway: decay never works against the loss.",
)
def cautious_decay(optimizer: Optimizer) -> Optimizer:
    """Let the weight decay of an optimizer act only where its step has the decay's sign.

    λ is the ``weight_decay`` of each group, as it is at the step. The optimizer itself sees 0 meanwhile, and the decay
    is done here, apart from the gradient: also where the optimizer's own would have been added to the gradient (SGD,
    Adam). The sign is that of the difference of the weights, which are kept twice while the step runs; one that
    rounding swallows counts as none. Hooks do this, which torch does not copy or save: call this again on a copy.

    Args:
        optimizer: any whose groups have a ``weight_decay``.

    Returns:
        The same optimizer.

    Raises:
        ValueError: there is no weight decay in it, or it is cautious already: the second would see the first's 0.

    Example:
        >>> weight = nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = cautious_decay(torch.optim.SGD([weight], lr=0.1, weight_decay=0.5))
        >>> weight.grad = torch.tensor([1.0, 1.0])  # makes the first smaller and the second larger
        >>> optimizer.step()
        >>> weight
        Parameter containing:
        tensor([ 0.8500, -1.1000], requires_grad=True)
    """
    check_optimizer(optimizer)
    if not any(group.get("weight_decay") for group in optimizer.param_groups):
        raise ValueError(f"optimizer must have a weight_decay > 0: {type(optimizer).__name__} has none.")
    if hasattr(optimizer, CAUTIOUS):
        raise ValueError(f"optimizer must not be cautious already: this {type(optimizer).__name__} is.")
    held: list[tuple[dict[str, Any], float]] = []
    before: list[tuple[dict[str, Any], Tensor, Tensor]] = []

    def take(*_: Any) -> None:
        give()  # what a step that failed has kept
        held.extend((group, group["weight_decay"]) for group in optimizer.param_groups)
        before.clear()
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
            before.extend((group, each, each.detach().clone()) for each in group["params"])

    def give(*_: Any) -> None:
        for group, number in held:
            group["weight_decay"] = number
        held.clear()

    @torch.no_grad()
    def decay(*_: Any) -> None:
        give()
        for group, weight, old in before:
            if weight.grad is not None:
                weight.sub_(group["lr"] * group["weight_decay"] * old * ((old - weight) * old >= 0))
        before.clear()

    optimizer.register_step_pre_hook(take)
    optimizer.register_step_post_hook(decay)
    setattr(optimizer, CAUTIOUS, True)
    return optimizer


@adjustment(
    formula=r"W \leftarrow W - \eta\,(0.2 \sqrt{\max(\text{fan\_out}, \text{fan\_in})}\; U V^\top + \lambda W), \qquad "
    r"U \Sigma V^\top = \text{momentum of } G",
    cite="liu2025muon",
    source="Liu et al. (2025); MoonshotAI/Moonlight, examples/toy_train.py; after Jordan et al. (2024), Muon",
    why="All directions of a matrix move alike, not only the few that the gradient is full of.",
)
def muon(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    betas: tuple[float, float] = (0.9, 0.95),
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
) -> tuple[Optimizer, ...]:
    """Muon for the matrices inside the blocks, AdamW for everything else: two optimizers, to be stepped both.

    Which is which is decided by role: embeddings, positions and readouts go to AdamW, and so do matrices tied to them,
    norms, biases, gains, and experts that lie in one tensor of three dimensions. Matrices that a model packs into one
    parameter are orthogonalized together: they share its directions. The factor 0.2·√max gives an entry the step that
    it has in AdamW: one learning rate, found for AdamW, serves both.

    Args:
        model: any model with attention.
        lr: η, of both.
        weight_decay: λ, of both.
        momentum: of Muon, in Nesterov's form.
        betas: of AdamW.
        inputs, roles, n_heads: as in :func:`attntut.init.view`.

    Returns:
        ``torch.optim.Muon`` and ``torch.optim.AdamW``; the first alone if nothing is left for the second.

    Raises:
        RuntimeError: this torch is older than 2.9, and has no ``torch.optim.Muon``.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4))
        >>> if hasattr(torch.optim, "Muon"):
        ...     optimizers = muon(model, lr=1e-3)
        ...     schedulers = [torch.optim.lr_scheduler.ExponentialLR(each, 0.99) for each in optimizers]
        ...     for each in (*optimizers, *schedulers):
        ...         each.step()
    """
    check_number("lr", lr, low=0), check_number("weight_decay", weight_decay, low=0)
    check_number("momentum", momentum, low=0, high=1, open_high=True)
    if not hasattr(torch.optim, "Muon"):
        raise RuntimeError(f"muon needs torch.optim.Muon, of torch 2.9 or later: this is {torch.__version__}.")
    entries = known_view(model, inputs, roles, n_heads).entries
    tables = {entry.parameter for entry in entries if entry.weight.is_table}
    names = {entry.parameter for entry in entries if entry.weight.role in BRANCH} - tables
    matrices = [each for name, each in stored(model).items() if name in names and each.ndim == 2]
    rest = [each for each in model.parameters() if all(each is not matrix for matrix in matrices)]
    first = torch.optim.Muon(
        matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
    )
    return (first, torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=weight_decay)) if rest else (first,)
