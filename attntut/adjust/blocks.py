"""Methods on branches and norms: hooks on the last matrix of a branch, or another module in the place of a norm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut import parts
from attntut._checks import check_choice, check_number
from attntut.adjust.attention import unfused
from attntut.adjust.handle import Patch, blocks_of, is_in_layer
from attntut.adjust.registry import adjustment
from attntut.anatomy.blocks import block_of, is_norm
from attntut.anatomy.view import Entry, ModelView
from attntut.anatomy.weight import BRANCH_OUT


def _maker(view: ModelView, entry: Entry) -> nn.Module:
    """The module whose result the last matrix of a branch makes: of torch's attention, which calls no layer, itself."""
    name = entry.parameter.rpartition(".")[0]
    around = view.module.get_submodule(name.rpartition(".")[0])
    return around if isinstance(around, nn.MultiheadAttention) else view.module.get_submodule(name)


def _no_layer(view: ModelView, options: Any) -> str:
    ends = view.by_role(*BRANCH_OUT)
    for entry in ends:
        owner = _maker(view, entry)
        if not is_in_layer(owner, entry) and not isinstance(owner, nn.MultiheadAttention):
            return f"{entry.parameter} is not in a layer of its own, whose result could be changed"
    return "" if ends else "no matrix that ends a branch is known"


@adjustment(
    formula=r"x \leftarrow x + \frac{1}{\sqrt L}\, f(x)",
    cite="noci2022signal",
    source="Noci et al. (2022): α = 1/√L on each branch",
    why="The branches together add as much as one: the stream stays bounded at any depth, and tokens stay apart.",
    treats=("stream growing", "rank collapsing", "rank collapsing (slowly)", "depth scaling absent"),
    clashes={
        "residual scale": "the model scales its branches itself",
        "no residual": "without a skip connection beside it, the branch is all there is, and only shrinks",
        "normalized residual": "the sum keeps the variance by weights of its own, for branches of variance 1",
        "sphere": "each branch is put on the sphere before it is added, which divides the factor out",
        "sandwich norms": "the norm after each branch divides the factor out",
    },
    unfit=_no_layer,
)
def branch_scale(patch: Patch, *, factor: float | None = None) -> None:
    """Multiply what each branch adds to the stream by one small number.

    Args:
        factor: of every branch; by default 1/√L with the number of blocks of its stack.

    Example:
        >>> import torch
        >>> from attntut.adjust import adjust
        >>> model = nn.TransformerEncoderLayer(16, nhead=2, norm_first=True, batch_first=True, dropout=0)
        >>> x = torch.randn(4, 8, 16)
        >>> branches = model(x) - x
        >>> with adjust(model, "branch_scale", factor=0.0):
        ...     torch.equal(model(x), x)
        True
    """
    if factor is not None:
        check_number("factor", factor)
    for owner, entry in _ends(patch):
        own_factor = entry.weight.n_layers**-0.5 if factor is None else factor
        patch.hook(owner.register_forward_hook, partial(_multiply, own_factor))


def _multiply(factor: float, module: nn.Module, args: Any, output: Any) -> Any:
    """A hook that multiplies what a module gives, or the first of several things that it gives."""
    return _on_first(lambda given: factor * given, output)


def _on_first(change: Callable[[Tensor], Tensor], output: Any) -> Any:
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _ends(patch: Patch) -> Iterator[tuple[nn.Module, Entry]]:
    """The last matrix of each branch, and the module whose result it makes."""
    yield from {_maker(patch.view, entry): entry for entry in patch.view.by_role(*BRANCH_OUT)}.items()


@adjustment(
    formula=r"x \leftarrow x + \operatorname{LN}(f(\operatorname{LN}(x)))",
    cite="ding2021cogview",
    source="CogView (Ding et al. 2021): THUDM/CogView, mpu/sparse_transformer.py; with RMSNorm: Gemma 2",
    why="What a branch adds has one size whatever its weights: values and matrices that grow cannot flood the stream.",
    treats=("stream growing", "stream jumping"),
    requires=("pre-LN",),
    clashes=dict.fromkeys(("branch_scale", "ln_scale"), "the norm divides out a factor before it"),
    unfit=_no_layer,
)
def sandwich(patch: Patch, *, norm: str = "layer", gain: float = 1.0) -> None:
    """Normalize what each branch gives, before it is added to the stream.

    Each token then gets a vector of length g·√d_model from every branch, at the start of training too; to scale it by
    depth, choose g < 1. The variant of CogView's code that divides by the largest entry first is the same function.

    Args:
        norm: ``"layer"`` or ``"rms"``.
        gain: g at the start, learnable, one number per channel.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.TransformerEncoderLayer(16, nhead=2, norm_first=True, batch_first=True, dropout=0)
        >>> x = torch.randn(4, 8, 16)
        >>> nn.init.normal_(model.linear2.weight, std=1e3)[0, 0].item() == 0
        False
        >>> with adjust(model, "sandwich", gain=0.1):
        ...     bool((model(x) - x).norm(dim=-1).max() < 2 * 0.1 * 16**0.5)
        True
    """
    make = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[check_choice("norm", norm, ("layer", "rms"))]
    check_number("gain", gain)
    for owner, entry in _ends(patch):
        new = make(entry.weight.fan_out, eps=1e-6).to(entry.view.device, entry.view.dtype)
        nn.init.constant_(new.weight, gain)
        patch.add(owner, SANDWICH, new)
        patch.hook(owner.register_forward_hook, _normalize)


SANDWICH = "sandwich"


def _normalize(module: nn.Module, args: Any, output: Any) -> Any:
    """A hook that runs a norm of the module on what it gives, or on the first of several things."""
    return _on_first(module.get_submodule(SANDWICH), output)


# ---- the norms of the stream


def _norms(view: ModelView) -> Iterator[tuple[str, nn.Module, int]]:
    """The norms over the stream's channels, outside attention: name, module, width."""
    widths = {place.query.weight.d_model for place in view.attention if place.query is not None}
    inside = tuple(f"{place.name}." for place in view.attention if place.name)
    for name, module in view.module.named_modules():
        is_ours = name.rpartition(".")[2] == SANDWICH
        if not is_norm(module) or [*module.children()] or is_ours or f"{name}.".startswith(inside):
            continue
        shape = getattr(module, "normalized_shape", None) or (max((p.numel() for p in module.parameters()), default=0),)
        over_channels = not isinstance(module, nn.GroupNorm | nn.modules.batchnorm._NormBase)
        if over_channels and shape[-1] in widths:
            yield name, module, shape[-1]


def _others(view: ModelView) -> Iterator[tuple[str, nn.Module, int]]:
    """Those that are no RMSNorm."""
    for name, module, width in _norms(view):
        if not isinstance(module, nn.RMSNorm) and "rmsnorm" not in type(module).__name__.lower():
            yield name, module, width


def _later(view: ModelView) -> Iterator[tuple[nn.Module, int]]:
    """Those in the blocks after the first, each with the number of its block."""
    blocks = blocks_of(view)
    for name, module, _ in _norms(view):
        if (layer := block_of(blocks, name).layer) > 1:
            yield module, layer


def _without(norms: Callable[[ModelView], Iterator[Any]], what: str) -> Callable[[ModelView, Any], str]:
    """Why a method that acts on these norms finds nothing."""
    return lambda view, options: "" if any(norms(view)) else f"it has no norm of the stream {what}".rstrip()


def _swap(patch: Patch, name: str, old: nn.Module, new: nn.Module, *, shared: tuple[str, ...] = ()) -> None:
    """Put one norm in the place of another; these parameters stay the same ones, but for a gain that is 1 + w."""
    like = next((each for each in old.parameters()), patch.view.entries[0].view)
    new.to(like.device, like.dtype).train(old.training)
    for own in shared:
        if isinstance(parameter := getattr(old, own, None), nn.Parameter):
            is_gain = f"{name}.{own}" not in patch.view.zero_centred
            new.register_parameter(own, parameter if is_gain else nn.Parameter(1 + parameter.detach()))
    vars(new).setdefault("eps", None)  # torch's encoder layers ask for it,
    new.register_forward_pre_hook(unfused)  # and would know better than to call the norm
    patch.replace(name, new)


@adjustment(
    formula=r"y = g \odot \frac{x}{\sqrt{\operatorname{mean}(x^2)}}",
    cite="zhang2019root",
    source="Zhang & Sennrich (2019); torch.nn.RMSNorm, with ε = 1e-6 as in Llama",
    why="A LayerNorm without the mean and the shift: what training needs is the scale, and it costs less.",
    unfit=_without(_others, "that is not an RMSNorm already"),
)
def rms_norm(patch: Patch) -> None:
    """Put an RMSNorm in the place of each LayerNorm of the stream.

    The gains stay the same parameters, but for those to which the model adds 1 (Gemma's): a new one starts at their
    sum. Shifts are left out until it is undone. Norms inside attention (of queries and
    keys, say) and those of other widths stay, and so do RMSNorms.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.TransformerEncoderLayer(4, nhead=2, batch_first=True)
        >>> with adjust(model, "rms_norm"):
        ...     model.norm1(torch.tensor([3.0, 3.0, 4.0, 4.0]))
        tensor([0.8485, 0.8485, 1.1314, 1.1314], grad_fn=<...>)
    """
    for name, old, width in [*_others(patch.view)]:
        _swap(patch, name, old, parts.RMSNorm().make(width, layer=1), shared=("weight",))


@adjustment(
    formula=r"y = g \frac{x}{\lVert x \rVert}, \qquad g = \sqrt d \text{ at the start}",
    cite="nguyen2019transformers",
    source="Nguyen & Salazar (2019); tnq177/transformers_without_tears, layers.py, ScaleNorm, with ε = 1e-5",
    why="One learnable number a norm: every token has the same length, and no channel a gain of its own.",
    clashes={"rms_norm": "two norms cannot stand in one place"},
    unfit=_without(_norms, ""),
)
def scale_norm(patch: Patch) -> None:
    """Put a ScaleNorm in the place of each norm of the stream.

    The gains and shifts of the channels are left out until it is undone.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.TransformerEncoderLayer(4, nhead=2, batch_first=True)
        >>> with adjust(model, "scale_norm"):
        ...     model.norm1(torch.tensor([3.0, 0.0, 4.0, 0.0]))
        tensor([1.2000, 0.0000, 1.6000, 0.0000], grad_fn=<...>)
    """
    for name, old, width in [*_norms(patch.view)]:
        _swap(patch, name, old, ScaleNorm(width))


class ScaleNorm(nn.Module):
    """g·x/‖x‖."""

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.tensor(d_model**0.5)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.normalize(x, dim=-1, eps=self.eps)


@adjustment(
    formula=r"y = \gamma \odot \tanh(\alpha x) + \beta",
    cite="zhu2025transformers",
    source="Zhu et al. (2025): α = 0.5 at the start",
    why="What a branch reads is bounded entry by entry, without any statistics of a token.",
    clashes=dict.fromkeys(("rms_norm", "scale_norm"), "two norms cannot stand in one place"),
    gives=("DyT",),
    unfit=_without(_norms, ""),
)
def dyt(patch: Patch, *, alpha: float = 0.5) -> None:
    """Put a dynamic tanh in the place of each norm of the stream.

    γ and β are the norm's gain and shift, the same parameters; where it has none, they start at 1 and 0, and where it
    adds 1 to what it stores (Gemma's), γ is a new one that starts at the sum. Nothing divides by the scale of a token:
    a stream whose entries are far below 1/α stays small.

    Args:
        alpha: α at the start, learnable, one number per norm.

    Example:
        >>> from attntut.adjust import adjust
        >>> model = nn.TransformerEncoderLayer(4, nhead=2, batch_first=True)
        >>> with adjust(model, "dyt", alpha=1.0):
        ...     model.norm1(torch.tensor([0.1, -0.1, 100.0, -1e9]))
        tensor([ 0.0997, -0.0997,  1.0000, -1.0000], grad_fn=<...>)
    """
    part = parts.DyT(alpha)
    for name, old, width in [*_norms(patch.view)]:
        _swap(patch, name, old, part.make(width, layer=1), shared=("weight", "bias"))


@adjustment(
    formula=r"y = \frac{1}{\sqrt l} \operatorname{LN}(x), \qquad l = 1, \ldots, L",
    cite="sun2025curse",
    source="Sun et al. (2025); lmsdss/LayerNorm-Scaling, modeling_llama.py, LNS: both norms of block l",
    why="Later branches read less, so that the stream grows slowly: its variance like ln L, not like L.",
    treats=("stream growing", "depth scaling absent"),
    requires=("pre-LN",),
    clashes={
        "LN/√l": "the norms are divided already",
        "depth-scaled weights": "branches would shrink with depth twice",
        "branch_scale": "both make branches small by depth, and together too small",
        **dict.fromkeys(("rms_norm", "scale_norm", "dyt"), "it acts on the norms that would be replaced"),
    },
    gives=("LN/√l",),
    unfit=_without(_later, "in a block after the first"),
)
def ln_scale(patch: Patch) -> None:
    """Divide the norms of block l by √l; the one after the last block stays.

    It takes the place of depth-scaled output matrices, which are refused where they are recognized: as drawn, in four
    or more blocks. The authors' aim is that late blocks change the stream more than under pre-LN. At the start they
    change it less: what block l writes shrinks like 1/√l, while the stream hardly grows.

    Example:
        >>> from attntut.adjust import adjust
        >>> layer = nn.TransformerEncoderLayer(4, nhead=2, norm_first=True, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, num_layers=4, enable_nested_tensor=False)
        >>> x = torch.tensor([1.0, 1.0, -1.0, -1.0])
        >>> with adjust(model, "ln_scale"):
        ...     [round(each.norm2(x).norm().item(), 2) for each in model.layers]
        [2.0, 1.41, 1.15, 1.0]
    """
    for norm, layer in _later(patch.view):
        patch.hook(norm.register_forward_hook, partial(_multiply, layer**-0.5))
