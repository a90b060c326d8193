"""Methods on the matrices themselves: computed (``torch.nn.utils.parametrize``), or clipped after a step."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_choice, check_number
from attntut.adjust.attention import AttentionChange
from attntut.adjust.handle import Patch
from attntut.adjust.registry import adjustment
from attntut.anatomy.view import Attention, Entry
from attntut.anatomy.weight import BRANCH


@adjustment(
    formula=r"W \leftarrow \frac{\gamma}{\sigma(W)}\, W, \qquad \sigma(W) = u^\top W v",
    cite="zhai2023stabilizing",
    source="Zhai et al. (2023), section 3.2, and apple/ml-sigma-reparam",
    why="The largest singular value of each matrix is γ, one learnable number, so logits cannot grow fast.",
    treats=("entropy collapsed", "logits too large (trained)"),
    clashes={
        "weight multipliers": "the matrix is divided by its own size, and the model's factor is left alone",
        "sphere": "rows of length 1 are set after every step, and would be divided again",
    },
)
def sigma_reparam(patch: Patch, *, gamma: float = 1.0, on: Collection[str] = BRANCH) -> None:
    """Divide each matrix by its largest singular value, and multiply it by a learnable number.

    Each projection has a number of its own, also where the model packs several into one parameter. The singular value
    is tracked by one step of the power method a forward pass in training mode, as in torch's ``spectral_norm``. It
    starts from 16 steps of Lanczos' method, where the authors' code takes a matrix apart: exact up to 16 rows or
    columns, and of Gaussian matrices at width 768 less than 0.5 % too small, so that the norm is γ or a little more; a
    matrix of 0 has none, and is refused. After :meth:`~attntut.adjust.Handle.undo`, the stored matrices are used as they are.

    Args:
        patch: of the model.
        gamma: γ at the start.
        on: roles of the matrices.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.MultiheadAttention(16, num_heads=2)
        >>> with adjust(model, "sigma_reparam"):
        ...     [round(torch.linalg.matrix_norm(each, 2).item(), 3) for each in model.in_proj_weight.chunk(3)]
        [1.0, 1.0, 1.0]
    """
    check_number("gamma", gamma, low=0, open_low=True)
    for role in on:
        check_choice("on", role, BRANCH)
    entries: dict[str, list[Entry]] = {}
    for entry in patch.view.by_role(*on):
        entries.setdefault(entry.parameter, []).append(entry)
    for name, parts in entries.items():
        norm = UnitSpectralNorm(patch.model.get_parameter(name), parts, gamma)
        if not all(norm.get_buffer(f"u{i}").any() for i in range(len(parts))):
            patch.refuse(f"{name} has a part that is 0, and no singular value to divide by")
        patch.parametrize(name, norm)


class UnitSpectralNorm(nn.Module):
    """Parts of a parameter, each divided by its spectral norm and multiplied by a learnable number."""

    number: Tensor

    def __init__(self, parameter: nn.Parameter, parts: Collection[Entry], gamma: float) -> None:
        super().__init__()
        data, offset = parameter.detach(), parameter.storage_offset()
        self.places = []
        for part in parts:
            view = part.matrix.view
            self.places.append(((view.shape, view.stride(), view.storage_offset() - offset), part.matrix.shape))
        self.register_buffer("number", self._numbers(data), persistent=False)
        self.gamma = nn.Parameter(data.new_full((len(parts),), gamma))
        for i, matrix in enumerate(self._matrices(data)):
            for name, vector in zip("uv", _largest_pair(matrix), strict=True):
                self.register_buffer(f"{name}{i}", vector)

    def _numbers(self, data: Tensor) -> Tensor:
        """Of each entry, the number of its part, from 1; 0 for what belongs to none. Where all are alike, one stands."""
        if len(self.places) == 1 and math.prod(self.places[0][1]) == data.numel():
            return data.new_ones([1] * data.ndim, dtype=torch.long)
        number = torch.zeros_like(data, dtype=torch.int16)
        for i, (place, _) in enumerate(self.places, start=1):
            number.as_strided(*place).fill_(i)
        for dim in range(data.ndim):
            first = number.narrow(dim, 0, 1)
            number = first if (number == first).all() else number
        return number.long()

    def _matrices(self, weight: Tensor) -> list[Tensor]:
        weight = weight.contiguous()
        return [weight.as_strided(*place).reshape(shape) for place, shape in self.places]

    def forward(self, weight: Tensor) -> Tensor:
        factors = [weight.new_ones(())]
        for i, matrix in enumerate(self._matrices(weight)):
            u, v = getattr(self, f"u{i}"), getattr(self, f"v{i}")
            if self.training:
                with torch.no_grad():
                    v.copy_(nn.functional.normalize(matrix.mT @ u, dim=0))
                    u.copy_(nn.functional.normalize(matrix @ v, dim=0))
                u, v = u.clone(), v.clone()  # several forward passes may come before one backward pass
            factors.append(self.gamma[i] / torch.dot(u, matrix @ v))
        return weight * torch.stack(factors)[self.number]


def _largest_pair(matrix: Tensor, n_steps: int = 16) -> list[Tensor]:
    """Singular vectors (left: 0 if all is 0) of the largest singular value, by Lanczos' method from a fixed vector."""
    wide = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    v = torch.randn(wide.shape[1], generator=torch.Generator().manual_seed(0)).to(wide)
    basis, images = wide.new_zeros(len(v), 0), []
    for _ in range(min(n_steps, *wide.shape)):
        new = torch.linalg.qr(torch.column_stack([basis, v])).Q[:, -1]  # at right angles, also where nothing is left
        basis = torch.column_stack([basis, new])
        images.append(wide @ new)
        v = wide.mT @ images[-1]
    left, sizes, right = torch.linalg.svd(torch.column_stack(images), full_matrices=False)
    return [(left[:, 0] * sizes[0].sign()).to(matrix.dtype), (basis @ right[0]).to(matrix.dtype)]


@adjustment(
    formula=r"W_q, W_k \leftarrow \sqrt\eta\, W_q, \sqrt\eta\, W_k, \qquad \eta_h = \min(1, \tau / \max_{ij} s_{ij})",
    cite="kimi2025k2",
    source="Kimi K2 (2025), section 2.1, QK-Clip; Megatron-LM, attention.py",
    why="After a step, heads whose largest logit went beyond τ are scaled back to it; the others are left alone.",
    treats=("logits too large (trained)", "entropy collapsed"),
    clashes={"QK-norm": "the norm divides out what is taken from the weights"},
)
def qk_clip(patch: Patch, *, optimizer: torch.optim.Optimizer, limit: float = 100.0) -> None:
    """Scale the query and key weights of a head down, after a step in whose forward passes its logits went too far.

    The largest logit counts that a query may see (a mask hides the others). Biases are scaled as their matrices are.
    Where several heads share a key head, the key takes the root of the smallest factor among them, and each query what
    is left of its own. A model with no matrix for a head alone (latent attention) is refused. Attention is written out
    meanwhile: the fused kernels do not tell their logits.

    Args:
        patch: of the model.
        optimizer: after each of whose steps this is done.
        limit: τ.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), 100 * torch.randn(1, 5, 8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with adjust(model, "qk_clip", optimizer=optimizer, limit=1.0):
        ...     model(x, x, x)[0].sum().backward()
        ...     optimizer.step()
        >>> query, key, _ = (x @ model.in_proj_weight.mT).chunk(3, dim=-1)
        >>> [round((q @ k.mT / 2).max().item(), 3) for q, k in zip(query.split(4, -1), key.split(4, -1))]
        [1.0, 1.0]
    """
    check_number("limit", limit, low=0, open_low=True)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer: got {type(optimizer).__name__}.")
    clips = []
    for place in patch.attentions:
        query, key = place.query, place.key
        if query is None or key is None or query.matrix.shape[0] != query.weight.n_heads * query.weight.d_head:
            patch.refuse(f"the queries and keys of {place.name or 'the model'} have no rows for each head")
        largest = LargestLogits()
        patch.attend(place, largest)
        clips.append((place, largest))

    def clip(*_: Any) -> None:
        for place, largest in clips:
            _clip(place, largest, limit)

    patch.hook(optimizer.register_step_post_hook, clip)


class LargestLogits(AttentionChange):
    """Remembers the largest logit of each head since it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: Tensor | None = None

    def masked(self, logits: Tensor) -> Tensor:
        largest = logits.detach().amax((0, 2, 3))
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        return logits


@torch.no_grad()
def _clip(place: Attention, seen: LargestLogits, limit: float) -> None:
    largest, seen.largest = seen.largest, None
    if largest is None or place.query is None or place.key is None or not (largest > limit).any():
        return
    eta = (limit / largest).clamp(max=1).where(largest > 0, 1.0)  # (n_heads,)
    shared = eta.unflatten(0, (place.key.matrix.shape[0] // place.query.weight.d_head, -1))  # (key heads, in a group)
    root = shared.amin(1, keepdim=True).sqrt()
    for entry, factors in ((place.query, (shared / root).flatten()), (place.key, root[:, 0])):
        rows = factors.repeat_interleave(entry.weight.d_head)
        entry.matrix.write_(entry.view * rows[:, None])
        if entry.bias is not None:
            entry.bias.mul_(rows)
