"""Methods between the product of queries and keys and the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attntut._checks import check_number
from attntut.adjust.attention import AttentionChange
from attntut.adjust.handle import Patch
from attntut.adjust.registry import adjustment


@adjustment(
    formula=r"s \leftarrow c \tanh(s / c)",
    cite="gemma2024improving",
    source="Gemma 2 (2024), section 2; gemma_pytorch, model.py, GemmaAttention: c = 50",
    why="Logits stay between −c and c, whatever the weights; those far below c are hardly changed.",
    treats=("logits too large", "logits too large (trained)", "logits too large (weights unknown)"),
    clashes={"QK-norm": "the logits are bounded already, and the cap only bends them"},
)
def soft_cap(patch: Patch, *, cap: float = 50.0) -> None:
    """Bend the logits so that none leaves (−c, c), before the mask.

    Beyond the cap the gradient is gone: a logit that has reached it is not drawn back. The fused kernels know no cap:
    attention is written out, with all its logits in memory.

    Args:
        patch: of the model.
        cap: c.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), 1e4 * torch.randn(1, 5, 8)
        >>> with adjust(model, "soft_cap", cap=1.0):
        ...     _, weights = model(x, x, x)
        >>> bool(weights.min() > math.exp(-2) / 5)  # no logit is further than 2 from another
        True
    """
    check_number("cap", cap, low=0, open_low=True)
    for place in patch.attentions:
        patch.attend(place, Cap(cap))


class Cap(AttentionChange):
    """c·tanh(s/c)."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def logits(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap)


@adjustment(
    formula=r"s \leftarrow s / \tau, \qquad \tau = \sqrt{d_h} \text{ makes of } q^\top k/\sqrt{d_h} \text{ the } "
    r"q^\top k/d_h \text{ of μP}",
    cite="yang2022tensor",
    source="Yang et al. (2022), definition 4.1, for 1/d_h; one learnable number a head: Liu et al. (2022), Swin V2",
    why="A number that flattens attention (τ > 1) or sharpens it (τ < 1) without a change to any matrix.",
    treats=("logits too large", "entropy collapsed"),
)
def temperature(patch: Patch, *, tau: float | str = "sqrt d_head", learned: bool = False) -> None:
    """Divide the logits by a number, before the mask.

    Args:
        patch: of the model.
        tau: τ; ``"sqrt d_head"`` turns the usual 1/√d_head into 1/d_head.
        learned: start there, and learn one number a head, ln(1/τ).

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), torch.randn(1, 5, 8)
        >>> with adjust(model, "temperature", tau=1e6):
        ...     model(x, x, x)[1][0, 0]
        tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000], grad_fn=<...>)
    """
    if tau != "sqrt d_head":
        check_number("tau", tau, low=0, open_low=True)
    for place in patch.attentions:
        weight = patch.query(place).weight
        value = math.sqrt(weight.d_head) if isinstance(tau, str) else tau
        patch.attend(place, LearnedTemperature(weight.n_heads, value) if learned else Temperature(value))


class Temperature(AttentionChange):
    """s/τ."""

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau

    def logits(self, logits: Tensor) -> Tensor:
        return logits / self.tau


class LearnedTemperature(AttentionChange):
    """s·e^θ, a θ for each head."""

    def __init__(self, n_heads: int, tau: float) -> None:
        super().__init__()
        self.log_factor = nn.Parameter(torch.full((n_heads, 1, 1), -math.log(tau)))

    def logits(self, logits: Tensor) -> Tensor:
        return logits * self.log_factor.exp()
