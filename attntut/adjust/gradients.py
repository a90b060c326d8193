"""Methods between the backward pass and the step: hooks on gradients, and before a step.

They act on the optimizer that they are given, at each ``step()``: a copy of the model has another optimizer. With
``torch.amp.GradScaler``, call ``scaler.unscale_(optimizer)`` before the step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_choice, check_number
from attntut.adjust.groups import stored
from attntut.adjust.handle import Patch, is_in_layer
from attntut.adjust.optimizers import check_optimizer
from attntut.adjust.registry import adjustment
from attntut.anatomy.layout import at
from attntut.anatomy.view import Entry, ModelView, owner_of
from attntut.anatomy.weight import PARTS, ROLES


def _before_step(patch: Patch, optimizer: torch.optim.Optimizer, change: Callable[[], object]) -> None:
    """Change the gradients before each step; refuse a step whose gradients are not there yet, or still scaled."""

    def hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(each is not None for each in (*args[1:], kwargs.get("closure"))):  # args[0] is the optimizer
            raise ValueError(f"{patch.name!r} needs gradients before the step: call step() without a closure.")
        if getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError(f"{patch.name!r} needs unscaled gradients: call scaler.unscale_(optimizer) first.")
        change()

    check_optimizer(optimizer)
    patch.hook(optimizer.register_step_pre_hook, hook)


@adjustment(
    formula=r"g \leftarrow g\, \min\left(1, \frac{c}{\lVert g \rVert}\right)",
    cite="pascanu2013difficulty",
    source="Pascanu et al. (2013), section 3.2, algorithm 1; torch.nn.utils.clip_grad_norm_",
    why="One batch with a huge gradient takes a step no longer than others; the direction is kept.",
)
def clip_norm(patch: Patch, *, optimizer: torch.optim.Optimizer, max_norm: float = 1.0) -> None:
    """Shorten the gradient of the whole model before each step, where it is longer than a bound.

    Adam divides by the gradient's size: to scale all gradients alike changes nothing there, but one that is huge no
    longer fills the second moment for a thousand steps. A gradient that is not finite stays so.

    Args:
        optimizer: before each of whose steps this is done.
        max_norm: c.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.MultiheadAttention(8, num_heads=2)
        >>> x, optimizer = torch.randn(5, 3, 8), torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with adjust(model, "clip_norm", optimizer=optimizer, max_norm=0.5):
        ...     (1e3 * model(x, x, x)[0].square().sum()).backward()
        ...     optimizer.step()
        >>> round(nn.utils.get_total_norm([each.grad for each in model.parameters()]).item(), 3)
        0.5
    """
    check_number("max_norm", max_norm, low=0, open_low=True)
    _before_step(patch, optimizer, lambda: nn.utils.clip_grad_norm_(patch.model.parameters(), max_norm))


@adjustment(
    formula=r"G_i \leftarrow G_i\, \min\left(1, \lambda\, \frac{\max(\lVert W_i \rVert, \epsilon)}{\lVert G_i \rVert}"
    r"\right)",
    cite="brock2021high",
    source="Brock et al. (2021), adaptive gradient clipping; deepmind-research, nfnets/optim.py, SGD_AGC",
    why="The bound on a gradient is a share of the weights that it changes: no row can be overwritten by one batch.",
)
def adaptive_clip(
    patch: Patch,
    *,
    optimizer: torch.optim.Optimizer,
    limit: float = 0.01,
    eps: float = 1e-3,
    skip: Collection[str] = ("readout",),
) -> None:
    """Shorten gradients before each step, unit by unit, where they are long beside the weights.

    A unit is a row of a projection, of ``(fan_out, fan_in)`` however the model stores it; a token's vector in a table;
    and as a whole what is no projection (biases, norms, gains).

    Args:
        optimizer: before each of whose steps this is done.
        limit: λ. The paper has 0.01 to 0.16: the larger the batch, the smaller.
        eps: weights shorter than this count as this long, so that zeros can grow.
        skip: roles whose matrices, with their biases, are left alone: in the paper, the last layer.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.MultiheadAttention(8, num_heads=2)
        >>> x, optimizer = torch.randn(5, 3, 8), torch.optim.SGD(model.parameters(), lr=0.1)
        >>> largest = 0.01 * model.out_proj.weight.detach().norm(dim=1)
        >>> with adjust(model, "adaptive_clip", optimizer=optimizer):
        ...     (1e3 * model(x, x, x)[0].square().sum()).backward()
        ...     optimizer.step()
        >>> bool((model.out_proj.weight.grad.norm(dim=1) <= 1.001 * largest).all())
        True
    """
    check_number("limit", limit, low=0, open_low=True), check_number("eps", eps, low=0, open_low=True)
    for role in skip:
        check_choice("skip", role, (*ROLES, *PARTS))
    parts = {name: [patch.current(each) for each in entries] for name, entries in patch.view.by_parameter().items()}
    skipped = patch.view.by_parameter(*skip) if skip else ()
    left = {*skipped, *(f"{name.rpartition('.')[0]}.bias" for name in skipped)}
    clipped = [(each, parts.get(name, [])) for name, each in stored(patch.model).items() if name not in left]
    if not clipped:
        patch.refuse(f"skip={skip!r} leaves nothing")

    def clip() -> None:
        for parameter, entries in clipped:
            _clip_units(parameter, [entry() for entry in entries], limit, eps)

    _before_step(patch, optimizer, clip)


@torch.no_grad()
def _clip_units(parameter: nn.Parameter, entries: list[Entry], limit: float, eps: float) -> None:
    if parameter.grad is None:
        return
    grad = torch.empty_like(parameter).copy_(parameter.grad)  # in memory as the parameter is
    units: list[tuple[Tensor, Tensor, list[int]]] = []
    for entry in entries:
        weight, rows = entry.matrix.view, entry.matrix.row_dims
        dims = [*range(rows)] if entry.weight.is_table else [*range(rows, weight.ndim)]
        units.append((weight, at(grad, entry.matrix.within(parameter)), dims))
    for weight, part, dims in units or [(parameter, grad, [*range(grad.ndim)])]:
        most = limit * torch.linalg.vector_norm(weight, dim=dims, keepdim=True).clamp(min=eps)
        norm = torch.linalg.vector_norm(part, dim=dims, keepdim=True)
        part.mul_(torch.where(norm > most, most / norm, 1.0))
    parameter.grad.copy_(grad)


def _embeddings(view: ModelView) -> Iterator[nn.Module]:
    """The layers that embed."""
    for entry in view.by_role("embedding"):
        owner = owner_of(view.module, entry)
        if is_in_layer(owner, entry):
            yield owner


@adjustment(
    formula=r"E \leftarrow \alpha E + (1 - \alpha) \operatorname{detach}(E)",
    cite="zeng2023glm",
    source="Zeng et al. (2023), section 3, embedding layer gradient shrink, α = 0.1; first in CogView",
    why="In GLM-130B, jumps of the gradient's norm came a few steps before a collapse, and from the embedding.",
    unfit=lambda view, options: "" if any(_embeddings(view)) else "no layer is known that embeds",
)
def embedding_rescale(patch: Patch, *, alpha: float = 0.1) -> None:
    """Shrink the gradient of the embedding; what it gives is the same to the bit.

    The gradient shrinks where the embedding is looked up, not where a readout shares its matrix. Layers that embed
    patches or vectors shrink what they hand back to their inputs too. Adam would divide a constant factor out again:
    there it counts beside a bound on the norm (:func:`clip_norm`), and for numbers of 16 bits. Embeddings that are no
    layer of their own (a class token) are left alone; positions too.

    Args:
        alpha: α; 0 freezes the embedding.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.adjust import adjust
        >>> model, x = Transformer(TransformerConfig(n_classes=2, d_input=4)), torch.randn(3, 5, 4)
        >>> model(x).square().sum().backward()
        >>> before, model.embedding.weight.grad = model.embedding.weight.grad, None
        >>> with adjust(model, "embedding_rescale", alpha=0.5):
        ...     model(x).square().sum().backward()
        >>> torch.equal(model.embedding.weight.grad, 0.5 * before)
        True
    """
    check_number("alpha", alpha, low=0, high=1)
    for owner in _embeddings(patch.view):
        patch.hook(owner.register_forward_hook, partial(_shrink, alpha))


def _shrink(alpha: float, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A hook that multiplies the gradient of what a module gives."""
    return times(alpha, output)


def times(factor: float, y: Tensor) -> Tensor:
    """The same numbers, whose gradient is ``factor`` times as large.

    Example:
        >>> y = torch.ones(2, requires_grad=True)
        >>> times(3.0, 2 * y).sum().backward()
        >>> y.grad
        tensor([6., 6.])
    """
    return y.detach() + factor * (y - y.detach())  # the difference is 0, and its gradient 1
