"""Methods on the matrices themselves: computed (``torch.nn.utils.parametrize``), or clipped after a step."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut._checks import check_choice, check_int, check_number
from attntut.adjust.attention import AttentionChange
from attntut.adjust.handle import Patch, blocks_of
from attntut.adjust.optimizers import check_optimizer
from attntut.adjust.registry import adjustment
from attntut.anatomy.blocks import Block, block_of
from attntut.anatomy.layout import at
from attntut.anatomy.view import Entry, ModelView
from attntut.anatomy.weight import BRANCH
from attntut.init.apply import _check_generator, _draw, _plan
from attntut.init.registry import find_scheme
from attntut.init.requirements import unmet
from attntut.init.scheme import Scheme


@adjustment(
    formula=r"W \leftarrow \frac{\gamma}{\sigma(W)}\, W, \qquad \sigma(W) = u^\top W v",
    cite="zhai2023stabilizing",
    source="Zhai et al. (2023), section 3.2, and apple/ml-sigma-reparam",
    why="The largest singular value of each matrix is γ, one learnable number, so logits cannot grow fast.",
    treats=("entropy collapsed", "logits too large (trained)"),
    clashes={
        "weight multipliers": "the matrix is divided by its own size, and the model's factor is left alone",
        "sphere": "rows of length 1 are set after every step, and would be divided again",
        "qk_clip": "what it takes from a matrix is divided out",
    },
)
def sigma_reparam(patch: Patch, *, gamma: float = 1.0, on: Collection[str] = BRANCH) -> None:
    """Divide each matrix by its largest singular value, and multiply it by a learnable number.

    Each projection has a number of its own, also where the model packs several into one parameter. The singular value
    is tracked by one step of the power method a forward pass in training mode, as in torch's ``spectral_norm``. It
    starts from 16 steps of Lanczos' method, where the authors' code takes a matrix apart: exact up to 16 rows or
    columns; of 60 Gaussian matrices of width 768, it was 0.2 % too small on average and 1.5 % at most. A matrix that is
    0 is refused. After :meth:`~attntut.adjust.Handle.undo`, the stored matrices are used as they are.

    Args:
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
    for name, parts in _matrices(patch, on).items():
        norm = UnitSpectralNorm(patch.parameter(name), parts, gamma)
        if not all(norm.get_buffer(f"u{i}").any() for i in range(len(parts))):
            patch.refuse(f"{name} has a part that is 0, and no singular value to divide by")
        patch.parametrize(name, norm)


def _matrices(patch: Patch, roles: Collection[str]) -> dict[str, list[Entry]]:
    """The projections to be computed, by parameter; refuses a model in which some are, and nobody knows for what."""
    if computed := [name for name in patch.view.unknown if "parametrizations." in name]:
        patch.refuse(f"{computed[0]} is what another parameter is computed from, and its role is not known")
    return patch.view.by_parameter(*roles)


class UnitSpectralNorm(nn.Module):
    """Parts of a parameter, each divided by its spectral norm and multiplied by a learnable number."""

    number: Tensor

    def __init__(self, parameter: nn.Parameter, parts: Collection[Entry], gamma: float) -> None:
        super().__init__()
        data = parameter.detach()
        self.places = [(part.matrix.within(parameter), part.matrix.shape) for part in parts]
        self.register_buffer("number", self._numbers(data), persistent=False)
        self.gamma = nn.Parameter(data.new_full((len(parts),), gamma))
        for i, matrix in enumerate(self._matrices(data)):
            for name, vector in zip("uv", _largest_pair(matrix), strict=True):
                self.register_buffer(f"{name}{i}", vector)

    def _numbers(self, data: Tensor) -> Tensor:
        """Of each entry, the number of its part, from 1 (0: none); of dimensions along which all are alike, one."""
        if len(self.places) == 1 and math.prod(self.places[0][1]) == data.numel():
            return data.new_ones([1] * data.ndim, dtype=torch.long)
        number = torch.zeros_like(data, dtype=torch.int16)
        for i, (place, _) in enumerate(self.places, start=1):
            at(number, place).fill_(i)
        for dim in range(data.ndim):
            first = number.narrow(dim, 0, 1)
            number = first if (number == first).all() else number
        return number.long()

    def _matrices(self, weight: Tensor) -> list[Tensor]:
        weight = weight.contiguous()
        return [at(weight, place).reshape(shape) for place, shape in self.places]

    def forward(self, weight: Tensor) -> Tensor:
        factors = [weight.new_ones(())]
        for i, matrix in enumerate(self._matrices(weight)):
            u, v = getattr(self, f"u{i}"), getattr(self, f"v{i}")
            if self.training:
                with torch.no_grad():
                    v.copy_(F.normalize(matrix.mT @ u, dim=0))
                    u.copy_(F.normalize(matrix @ v, dim=0))
                u, v = u.clone(), v.clone()  # several forward passes may come before one backward pass
            factors.append(self.gamma[i] / torch.dot(u, matrix @ v))
        return weight * torch.stack(factors)[self.number]


def _largest_pair(matrix: Tensor, n_steps: int = 16) -> tuple[Tensor, Tensor]:
    """Singular vectors (0 if all is 0) of the largest singular value, by Lanczos' method from a fixed vector."""
    wide = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    n_steps = min(n_steps, *wide.shape)
    basis, images = wide.new_zeros(n_steps, wide.shape[1]), wide.new_zeros(n_steps, wide.shape[0])
    new = wide.mT @ torch.randn(len(wide), generator=torch.Generator().manual_seed(0)).to(wide)  # what the rows span
    scale = new.abs().max().clamp(min=torch.finfo(wide.dtype).tiny)
    new = new / scale
    for i in range(n_steps):
        before = new.norm()
        for _ in range(2):  # once would leave what rounding made of large parts
            new = new - basis[:i].mT @ (basis[:i] @ new)
        if (size := new.norm()) <= torch.finfo(wide.dtype).eps ** 0.5 * before:
            break  # the vectors so far span all that is ever reached
        basis[i] = new / size
        images[i] = wide @ basis[i] / scale
        new = wide.mT @ images[i] / scale
    shares = torch.linalg.eigh(images @ images.mT).eigenvectors[:, -1]
    return F.normalize(shares @ images, dim=0).to(matrix.dtype), (shares @ basis).to(matrix.dtype)


@adjustment(
    formula=r"w_i = g_i \frac{v_i}{\lVert v_i \rVert} \quad \text{for each row } i",
    cite="salimans2016weight",
    source="Salimans & Kingma (2016); torch.nn.utils.parametrizations.weight_norm",
    why="Length and direction of the weights of an output are learned apart: a long row turns as fast as a short one.",
    clashes={
        "sigma_reparam": "both compute the matrix, and it divides by a size that the gains set",
        "qk_clip": "what it takes from a matrix is divided out",
        "weight multipliers": "the matrix is divided by its own size, and the model's factor is left alone",
        "sphere": "rows of length 1 are set after every step",
    },
)
def weight_norm(patch: Patch) -> None:
    """Compute the weights of each output of a matrix from a direction and a learnable length.

    The model computes the same at first. torch's ``weight_norm`` takes the first dimension for the outputs, which in
    GPT-2's layers it is not, and puts two new parameters in the place of the one that an undo has to bring back. A
    matrix with a row that is 0 is refused: it has no direction.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.MultiheadAttention(4, num_heads=2)
        >>> with adjust(model, "weight_norm"):
        ...     model.out_proj.parametrizations.weight.original.data *= 100  # only the direction counts
        ...     torch.allclose(model.out_proj.weight.norm(dim=1), model.out_proj.parametrizations.weight[0].gain[:, 0])
        True
    """
    sums: dict[str, tuple[int, ...]] = {}
    for name, entries in _matrices(patch, BRANCH).items():
        parameter = patch.parameter(name)
        for entry in entries:
            strides = entry.matrix.view.stride()[entry.matrix.row_dims :]
            dims = tuple(i for i, step in enumerate(parameter.stride()) if step in strides and parameter.shape[i] > 1)
            is_whole = math.prod(parameter.shape[i] for i in dims) == entry.weight.fan_in
            if not is_whole or sums.setdefault(name, dims) != dims:
                patch.refuse(f"the columns of {name} do not lie along its dimensions")
    for name, dims in sums.items():
        lengths = RowLengths(patch.parameter(name), dims)
        if not lengths.gain.all():
            patch.refuse(f"{name} has a row that is 0, and no direction")
        patch.parametrize(name, lengths)


class RowLengths(nn.Module):
    """g·v/‖v‖, over some of the dimensions."""

    def __init__(self, parameter: nn.Parameter, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims, self.gain = dims, nn.Parameter(parameter.detach().norm(dim=dims, keepdim=True))

    def forward(self, weight: Tensor) -> Tensor:
        return self.gain * weight / weight.norm(dim=self.dims, keepdim=True)


def _no_rows(view: ModelView, options: Any) -> str:
    for place in view.attention:
        query, key = place.query, place.key
        if query is None or key is None or query.matrix.shape[0] != query.weight.n_heads * query.weight.d_head:
            return f"the queries and keys of {place.name or 'the model'} have no rows for each head"
    return ""


@adjustment(
    formula=r"W_q, W_k \leftarrow \sqrt\eta\, W_q, \sqrt\eta\, W_k, \qquad \eta_h = \min(1, \tau / \max_{ij} s_{ij})",
    cite="kimi2025k2",
    source="Kimi K2 (2025), section 2.1, QK-Clip; Megatron-LM, attention.py",
    why="After a step, heads whose largest logit went beyond τ are scaled back to it; the others are left alone.",
    treats=("logits too large (trained)", "entropy collapsed"),
    clashes={
        "QK-norm": "the norm divides out what is taken from the weights",
        "soft cap": "it would see logits that the cap has bent, however large they were",
    },
    unfit=_no_rows,
)
def qk_clip(patch: Patch, *, optimizer: torch.optim.Optimizer, limit: float = 100.0) -> None:
    """Scale the query and key weights of a head down, after a step in whose forward passes its logits went too far.

    The largest logit counts that a query may see (a mask hides the others); a forward pass in which that is infinite or
    no number does not count for the head. Biases are scaled as their matrices are. Where several heads share a key
    head, the key takes the root of the smallest factor among them, and each query what is left of its own. A model with
    no matrix for a head alone (latent attention) is refused. Attention is written out meanwhile: the fused kernels do
    not tell their logits.

    Args:
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
    check_optimizer(optimizer)
    clips = []
    for place in patch.attentions:
        query, key = patch.query(place), place.key
        assert key is not None
        for each in (query, key):
            patch.parameter(each.parameter)  # what is stored would be scaled, and not what is computed from it
        largest = LargestLogits()
        patch.attend(place, largest)
        clips.append((patch.current(query), patch.current(key), largest))

    def clip(*_: Any) -> None:
        for query, key, largest in clips:
            _clip(query(), key(), largest, limit)

    patch.hook(optimizer.register_step_post_hook, clip)


class LargestLogits(AttentionChange):
    """Remembers the largest logit of each head since it was asked."""

    largest: Tensor | None = None

    def masked(self, logits: Tensor) -> Tensor:
        largest = logits.detach().amax((0, 2, 3))
        largest = largest.where(largest.isfinite(), -math.inf)  # no factor brings one that is infinite to a limit
        self.largest = largest if self.largest is None else torch.maximum(self.largest, largest)
        return logits


@torch.no_grad()
def _clip(query: Entry, key: Entry, seen: LargestLogits, limit: float) -> None:
    largest, seen.largest = seen.largest, None
    if largest is None or not (largest > limit).any():
        return
    eta = (limit / largest).clamp(max=1).where(largest > 0, 1.0)  # (n_heads,)
    shared = eta.unflatten(0, (key.matrix.shape[0] // query.weight.d_head, -1))  # (key heads, in a group)
    root = shared.amin(1, keepdim=True).sqrt()
    for entry, factors in ((query, (shared / root).flatten()), (key, root[:, 0])):
        rows = factors.repeat_interleave(entry.weight.d_head)
        entry.matrix.write_(entry.view * rows[:, None])
        if entry.bias is not None:
            entry.bias.mul_(rows)


def _last(view: ModelView) -> tuple[dict[str, Block], Block]:
    """The blocks, and that of the last attention."""
    blocks = blocks_of(view)
    return blocks, block_of(blocks, view.attention[-1].name)


@adjustment(
    formula=r"W^{(l)} \sim \mathcal{D}, \quad g^{(l)} = 1, \quad b^{(l)} = 0 \qquad \text{for } l > L - k",
    cite="zhang2021revisiting",
    source="Zhang et al. (2021); asappresearch/revisit-bert-finetuning, run_glue.py, reinit_layers: N(0, 0.02²)",
    why="The last blocks hold what the model was trained for before; a new task starts better from new ones.",
    clashes={
        "sigma_reparam": "it knows the singular vectors of the old weights",
        "weight_norm": "its lengths are those of the old weights",
    },
    unfit=lambda view, options: "" if _last(view)[1].name else "its blocks are not known",
)
def reinit_top_layers(
    patch: Patch,
    *,
    n_layers: int = 1,
    readout: bool = False,
    scheme: str | Scheme = "normal",
    generator: torch.Generator | None = None,
) -> None:
    """Draw the last blocks of a trained model again: matrices by a scheme, norms the identity.

    It is the stack of the last attention whose blocks these are: the decoder, where there are two. A scheme that
    measures or corrects what it drew (``finish``) is refused, as is one whose requirements the model does not meet.
    The optimizer's state is not touched: make it afterwards.

    Args:
        n_layers: k.
        readout: whether the matrices after the blocks (BERT's pooler, as in the paper) are drawn again too.
        scheme: of :func:`attntut.init.schemes`, with its own options' defaults.
        generator: where the random numbers come from; torch's global generator by default.

    Example:
        >>> from attntut.adjust import adjust
        >>> layer = nn.TransformerEncoderLayer(16, nhead=2, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        >>> before = [each.linear1.weight.clone() for each in model.layers]
        >>> with adjust(model, "reinit_top_layers"):
        ...     [torch.equal(each.linear1.weight, old) for each, old in zip(model.layers, before)]
        [True, True, False]
    """
    check_int("n_layers", n_layers)
    _check_generator(generator)
    found, view = find_scheme(scheme), patch.view
    blocks, last = _last(view)
    check_int("n_layers", n_layers, high=last.n_layers)
    weight = patch.query(patch.attentions[-1]).weight
    if found.finish or (
        lacking := unmet(found.requires, view.traits, found.architecture(weight.n_layers, weight.d_head), {})
    ):
        why = "measures or corrects what it drew" if found.finish else f"needs {', '.join(lacking)}"
        patch.refuse(f"the scheme {found.name!r} {why}")

    def is_top(name: str) -> bool:
        block = block_of(blocks, name)
        return block.stack == last.stack and block.layer > last.n_layers - n_layers

    top = replace(
        view,
        entries=tuple(each for each in view.entries if is_top(each.parameter) or (readout and each.role == "readout")),
        norms={name: each for name, each in view.norms.items() if is_top(name)},
        biases={name: each for name, each in view.biases.items() if is_top(name)},
    )
    with torch.no_grad():
        for target, law in [*_plan(found, top, {})]:
            patch.keep(target if isinstance(target, Tensor) else target.matrix.view)
            _draw(target, law, generator)
