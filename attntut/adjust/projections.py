"""Methods on queries, keys, values and heads, each an :class:`~attntut.adjust.attention.AttentionChange`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut._checks import check_choice, check_number
from attntut.adjust.attention import AttentionChange
from attntut.adjust.handle import Patch, blocks_of
from attntut.adjust.registry import adjustment
from attntut.anatomy.blocks import block_of
from attntut.anatomy.view import Attention, ModelView

NORMS = ("rms", "layer", "l2")
GATES = ("channel", "head")
NO_SCALE = "what it multiplies queries and keys with is not known, or not the same everywhere: give scale=…"
HALVES = "each half of its queries and keys has a product of its own"


@adjustment(
    formula=r"s_{ij} = \frac{g}{\sqrt{d_h}}\, \hat q_i^\top \hat k_j \quad (\text{rms, layer}), \qquad "
    r"s_{ij} = g\, \hat q_i^\top \hat k_j \quad (\text{l2})",
    cite="henry2020query",
    source="Henry et al. (2020), l2; Dehghani et al. (2023), section 2, LayerNorm; RMSNorm in Qwen 3 and Gemma 3",
    why="Logits cannot grow with the weights: they are bounded by g√d_h (by g with l2), whatever the weights.",
    treats=(
        "logits too large",
        "logits too large (trained)",
        "logits too large (weights unknown)",
        "entropy collapsed",
    ),
    clashes={
        "QK-norm": "queries and keys of length 1 have no length left to take away",
        "sigma_reparam": "the norm divides out the scale that it gives to queries and keys",
        "sphere": "queries and keys of length 1 have no length left to take away",
        "differential attention": HALVES,
    },
    gives=("QK-norm",),
)
def qk_norm(patch: Patch, *, gain: float | None = None, norm: str = "rms") -> None:
    """Normalize queries and keys, head by head, before their product.

    Between unrelated tokens the standard deviation of the logits is then g for ``"rms"`` and ``"layer"``. The factor
    of the model (1/√d_head, or 1 in T5) is replaced by the formula's: without that, it would be lost where a model puts
    it into the queries. Keys and queries are those that attention compares, turned by rotary positions; as lengths do
    not change when vectors turn, a norm before them gives the same, as long as its gain is the same in all channels.

    Args:
        gain: g at the start; learnable, one number per channel of the query's norm (``"l2"``: one number). By default
            what makes the logits' standard deviation 1: 1, or √d_head for ``"l2"``.
        norm: ``"rms"``, ``"layer"`` (with a shift) or ``"l2"``.

    Example:
        >>> from attntut.adjust import adjust
        >>> from attntut.diagnose import diagnose
        >>> model, x = nn.MultiheadAttention(64, num_heads=2, batch_first=True), 100 * torch.randn(1, 128, 64)
        >>> with adjust(model, "qk_norm", gain=2.0):
        ...     stds = [row["logit_std"] for row in diagnose(model, (x, x, x)).table()]
        >>> [round(std) for std in stds]
        [2, 2]
    """
    check_choice("norm", norm, NORMS)
    if gain is not None:
        check_number("gain", gain, low=0, open_low=True)
    for place in patch.attentions:
        d_head = patch.query(place).weight.d_head
        if norm == "l2":
            start = torch.tensor(d_head**0.5 if gain is None else float(gain))
            patch.attend(place, UnitQueriesKeys(gain=nn.Parameter(start)))
        else:
            patch.attend(place, NormedQueriesKeys(d_head, 1.0 if gain is None else gain, norm))


class UnitQueriesKeys(AttentionChange):
    """Queries and keys of length 1, and one learnable gain."""

    scale = 1.0
    gain: nn.Parameter

    def heads(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain * F.normalize(query, dim=-1), F.normalize(key, dim=-1)


class NormedQueriesKeys(AttentionChange):
    """A norm of queries and one of keys, shared by the heads."""

    def __init__(self, d_head: int, gain: float, norm: str) -> None:
        super().__init__()
        make = {"rms": nn.RMSNorm, "layer": nn.LayerNorm}[norm]
        self.scale = d_head**-0.5
        self.query_norm, self.key_norm = make(d_head, eps=1e-6), make(d_head, eps=1e-6)
        nn.init.constant_(self.query_norm.weight, gain)

    def heads(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        dtype = self.query_norm.weight.dtype  # within autocast, queries may be coarser
        return self.query_norm(query.to(dtype)).to(query.dtype), self.key_norm(key.to(dtype)).to(key.dtype)


@adjustment(
    formula=r"q \leftarrow q \min(1, t / \|q\|), \qquad k \leftarrow k \min(1, t / \|k\|), \qquad "
    r"|s_{ij}| \le t^2 / \sqrt{d_h}",
    cite="wolf2020transformers",
    source="transformers, modeling_inkling2.py, Inkling2L2Clip: t = 2√d_head; a learned scale of the query precedes it",
    year=2026,
    why="Long queries and keys are cut to a length t, which bounds the logits; the others keep theirs.",
    treats=("logits too large", "logits too large (trained)", "logits too large (weights unknown)"),
    clashes={
        "QK-norm": "the lengths are set already",
        "sphere": "queries and keys of length 1 have no length left to take away",
        "differential attention": HALVES,
    },
    unfit=lambda view, options: "" if view.traits.get("scale") or options.get("scale") is not None else NO_SCALE,
)
def qk_l2_clip(patch: Patch, *, limit: float | None = None, scale: float | None = None) -> None:
    """Shorten queries and keys that are longer than a limit, head by head, before their product.

    A query's length is that before the model's own factor: models that put 1/√d_head (or any part of it) into the
    queries first are treated as those that multiply the logits. A vector beyond the limit has no gradient along itself.
    Where keys hold a part of the factor too, queries are cut earlier and keys later, and the bound is the same.

    Args:
        limit: t; by default 2√d_head, twice the length of a vector whose entries have variance 1.
        scale: what the model multiplies the product of queries and keys with, wherever it does so; by default what its
            attention says of itself (``scale`` or ``scaling``). A model that says nothing is refused without it.

    Example:
        >>> from attntut.adjust import adjust
        >>> from attntut.diagnose import diagnose
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), 1e4 * torch.randn(1, 9, 8)
        >>> with adjust(model, "qk_l2_clip", limit=2.0):
        ...     largest = [row["logit_max"] for row in diagnose(model, (x, x, x)).table()]
        >>> all(each <= 2.001 for each in largest)  # t²/√4
        True
    """
    if limit is not None:
        check_number("limit", limit, low=0, open_low=True)
    scale = patch.view.traits["scale"] if scale is None else check_number("scale", scale, low=0, open_low=True)
    for place in patch.attentions:
        d_head = patch.query(place).weight.d_head
        own_limit = 2 * math.sqrt(d_head) if limit is None else limit
        patch.attend(place, ClippedQueriesKeys(limit=own_limit, whole=scale))


class ClippedQueriesKeys(AttentionChange):
    """Queries and keys no longer than a limit, in a model that scales their product by ``whole`` altogether."""

    limit: float
    whole: float

    def scaled_heads(self, query: Tensor, key: Tensor, factor: Tensor | float) -> tuple[Tensor, Tensor]:
        return _clipped(query, self.limit * self.whole / factor), _clipped(key, self.limit)


def _clipped(vector: Tensor, limit: Tensor | float) -> Tensor:
    """Where the length is 0, or below the limit, nothing is divided by it."""
    norm = torch.linalg.vector_norm(
        vector, dim=-1, keepdim=True, dtype=torch.promote_types(vector.dtype, torch.float32)
    )
    return vector * (limit / norm.clamp(min=limit)).to(vector.dtype)


def _no_output(view: ModelView, options: Any) -> str:
    names = [each.name or "the model" for each in view.attention if each.output is None]
    return f"what the heads of {names[0]} are given to is not known" if names else ""


@adjustment(
    formula=r"y = W_o\left(\sigma(W_g x + b_g) \odot [\text{head}_1; \ldots; \text{head}_H]\right)",
    cite="qiu2025gated",
    source="Qiu et al. (2025), the gate on what the heads found, by channel or by head",
    why="A head that has nothing to say can say nothing, and need not rest on the first token.",
    treats=("attention sink",),
    clashes={
        "output gate": "the model gates its heads itself",
        "differential attention": "the gate would come twice, before one attention is taken from the other",
    },
    gives=("output gate",),
    unfit=_no_output,
)
def output_gate(patch: Patch, *, per: str = "channel", start: float = 0.5) -> None:
    """Multiply what the heads found by a learnable gate between 0 and 1, made of the token that asks.

    At the start, all gates have one value: W_g is 0, b_g = ln(start/(1 − start)). The paper draws W_g small, which
    gives nearly ½: the branch is halved. In a model that is trained already, start near 1.

    Args:
        per: a gate for each ``"channel"`` of each head, or one for each ``"head"``.
        start: what a gate is at the start, strictly between 0 and 1.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, bias=False), torch.randn(5, 1, 8)
        >>> before = model(x, x, x)[0]
        >>> with adjust(model, "output_gate", start=0.9):
        ...     torch.allclose(model(x, x, x)[0], 0.9 * before, atol=1e-6)
        True
    """
    check_choice("per", per, GATES)
    check_number("start", start, low=0, high=1, open_low=True, open_high=True)
    for place in patch.attentions:
        query = patch.query(place).weight
        n_gates = query.n_heads if per == "head" else place.output.matrix.shape[1]  # type: ignore[union-attr]
        patch.attend(place, GatedHeads(query.d_model, n_gates, start))


class GatedHeads(AttentionChange):
    """σ(W x + b) on the heads."""

    def __init__(self, d_model: int, n_gates: int, start: float) -> None:
        super().__init__()
        self.gate = nn.utils.skip_init(nn.Linear, d_model, n_gates)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, math.log(start / (1 - start)))

    def merged(self, heads: Tensor, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.gate(x))
        return gates.repeat_interleave(heads.shape[-1] // gates.shape[-1], dim=-1) * heads


def _stacks(view: ModelView) -> dict[str, list[Attention]]:
    """The self-attentions of each stack that has several."""
    blocks = blocks_of(view)
    stacks: dict[str, list[Attention]] = {}
    for place in view.attention:
        if place.query is None or not place.query.weight.is_cross:
            stacks.setdefault(block_of(blocks, place.name).stack, []).append(place)
    return {name: places for name, places in stacks.items() if name and len(places) > 1}


def _no_second(view: ModelView, options: Any) -> str:
    if any(np.any(getattr(each, "shift_size", 0)) for each in view.module.modules()):
        return "its windows move from block to block, and the first values there are those of other tokens"
    stacks = _stacks(view)
    for name, places in stacks.items():
        if len({each.value and each.value.matrix.shape[0] for each in places} | {None}) != 2:
            return f"the values in {name} are not all known, or not all of one width"
    return "" if stacks else "no stack of blocks has a second self-attention, which could take values of the first"


@adjustment(
    formula=r"v_l \leftarrow \lambda v_1 + (1 - \lambda)\, v_l, \qquad l = 2, \ldots, L",
    cite="zhou2025value",
    source="Zhou et al. (2025); Value-Residual-Learning, modeling_llama_resformer.py: λ = ½; learned: modded-nanogpt",
    why="Later layers mix values of the tokens themselves, however alike the tokens have become in the stream.",
    clashes={"differential attention": "its values are averaged twice, by one attention and by the other"},
    unfit=_no_second,
)
def value_residual(patch: Patch, *, share: float = 0.5, learned: bool = False) -> None:
    """Let the values of each self-attention after the first of its stack be partly the first one's.

    Cross-attention is left alone: all its values are made of one sequence already. A model in which no stack has two
    self-attentions of one width is refused (that includes one whose layers share one module), and one whose windows
    move from block to block, where the same place holds another token. Blocks must run in order: when one is run again
    (recomputed activations), the first values are gone, and it says so.

    Args:
        share: λ.
        learned: start there, and learn one number for each attention.

    Example:
        >>> from attntut.adjust import adjust
        >>> layer = nn.TransformerEncoderLayer(8, nhead=2, batch_first=True)
        >>> model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        >>> with adjust(model, "value_residual", learned=True):
        ...     [name for name, _ in model.named_parameters() if "share" in name]
        ['layers.1.self_attn.adjusted.value_residual.share', 'layers.2.self_attn.adjusted.value_residual.share']
    """
    check_number("share", share, low=0, high=1)
    for places in _stacks(patch.view).values():
        first = FirstValues()
        patch.attend(places[0], first)
        for place in places[1:]:
            own = nn.Parameter(torch.tensor(float(share))) if learned else share
            patch.attend(place, LaterValues(first=(first,), share=own, is_last=place is places[-1]))


class FirstValues(AttentionChange):
    """Keeps the values until the last attention of the stack has had them."""

    seen: Tensor | None = None

    def values(self, value: Tensor) -> Tensor:
        self.seen = value
        return value

    def __getstate__(self) -> dict[str, Any]:  # what was computed is not copied
        return vars(self) | {"seen": None}


class LaterValues(AttentionChange):
    """λ v₁ + (1 − λ) v."""

    first: tuple[FirstValues]  # in a tuple: it is no part of this module
    share: Tensor | float
    is_last: bool

    def values(self, value: Tensor) -> Tensor:
        first = self.first[0].seen
        if first is None or first.shape != value.shape:
            raise RuntimeError(
                f"The values of the first attention must be there, in the shape {tuple(value.shape)}: got "
                f"{'none' if first is None else tuple(first.shape)}. Let the blocks run in order, each once (without "
                "recomputed activations), or undo the adjustment."
            )
        if self.is_last:
            self.first[0].seen = None
        return self.share * first + (1 - self.share) * value
