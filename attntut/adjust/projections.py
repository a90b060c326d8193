"""Methods on queries, keys, values and heads, each an :class:`~attntut.adjust.attention.AttentionChange`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut._checks import check_choice, check_number
from attntut.adjust.attention import AttentionChange
from attntut.adjust.handle import Patch
from attntut.adjust.registry import adjustment

NORMS = ("rms", "layer", "l2")


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
        "soft_cap": "the logits are bounded already, and the cap only bends them",
        "sigma_reparam": "the norm divides out the scale that it gives to queries and keys",
        "qk_clip": "the norm divides out what it takes from the weights",
        "sphere": "queries and keys of length 1 have no length left to take away",
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
        patch: of the model.
        gain: g at the start; learnable, one number a channel of the query's norm (``"l2"``: one number). By default
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
            patch.attend(place, UnitQueriesKeys(d_head**0.5 if gain is None else gain))
        else:
            patch.attend(place, NormedQueriesKeys(d_head, 1.0 if gain is None else gain, norm))


class UnitQueriesKeys(AttentionChange):
    """Queries and keys of length 1, and one learnable gain."""

    scale = 1.0

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(float(gain)))

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
