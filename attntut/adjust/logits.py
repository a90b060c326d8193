"""Methods between the product of queries and keys and the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_int, check_number
from attntut.adjust.attention import AttentionChange
from attntut.adjust.handle import Patch
from attntut.adjust.registry import adjustment
from attntut.anatomy.view import ModelView


@adjustment(
    formula=r"s \leftarrow c \tanh(s / c)",
    cite="gemma2024improving",
    source="Gemma 2 (2024), section 2; gemma_pytorch, model.py, GemmaAttention: c = 50",
    why="Logits stay between −c and c, whatever the weights; those far below c are hardly changed.",
    treats=("logits too large", "logits too large (trained)", "logits too large (weights unknown)"),
    clashes={
        "QK-norm": "the logits are bounded already, and the cap only bends them",
        "soft cap": "the model has a cap of its own, which acts on what this one leaves",
    },
    gives=("soft cap",),
)
def soft_cap(patch: Patch, *, cap: float = 50.0) -> None:
    """Bend the logits so that none leaves (−c, c), before the mask.

    Beyond the cap the gradient is gone: a logit that has reached it is not drawn back. The fused kernels know no cap:
    attention is written out, with all its logits in memory.

    Args:
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
        patch.attend(place, Cap(cap=cap))


class Cap(AttentionChange):
    """c·tanh(s/c)."""

    cap: float

    def logits(self, logits: Tensor) -> Tensor:
        return self.cap * torch.tanh(logits / self.cap)


def _halves(view: ModelView, options: Mapping[str, Any]) -> str:
    if not view.traits.get("differential") or not isinstance(options.get("tau", ""), str):
        return ""
    return "each half of its queries and keys has a product of its own, of d_head/2 channels: give tau=…"


@adjustment(
    formula=r"s \leftarrow s / \tau, \qquad \tau = \sqrt{d_h} \text{ makes of } q^\top k/\sqrt{d_h} \text{ the } "
    r"q^\top k/d_h \text{ of μP}",
    cite="yang2022tensor",
    source="Yang et al. (2022), definition 4.1, for 1/d_h; one learnable number a head: Liu et al. (2022), Swin V2",
    why="A number that flattens attention (τ > 1) or sharpens it (τ < 1) without a change to any matrix.",
    treats=("logits too large", "entropy collapsed"),
    unfit=_halves,
)
def temperature(patch: Patch, *, tau: float | str = "sqrt d_head", learned: bool = False) -> None:
    """Divide the logits by a number, before the mask.

    Args:
        tau: τ; ``"sqrt d_head"`` turns the usual 1/√d_head into 1/d_head.
        learned: start there, and learn one number per head, ln(1/τ).

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
        if learned:
            log_factor = _per_head(weight.n_heads, -math.log(value), learned=True)
            patch.attend(place, LearnedTemperature(tau=value, log_factor=log_factor))
        else:
            patch.attend(place, Temperature(tau=value))


class Temperature(AttentionChange):
    """s/τ."""

    tau: float

    def logits(self, logits: Tensor) -> Tensor:
        return logits / self.tau


class LearnedTemperature(AttentionChange):
    """s·e^θ, a θ for each head: at the start ln(1/τ)."""

    tau: float
    log_factor: nn.Parameter

    def logits(self, logits: Tensor) -> Tensor:
        return logits * self.log_factor.exp()


@adjustment(
    formula=r"s_{ij} \leftarrow s_h \ln(n_i)\, s_{ij}, \qquad n_i \text{ keys that query } i \text{ sees}; \qquad "
    r"\text{with a floor } m{:}\ \left(1 + s_h \ln(1 + \lfloor n_i / m \rfloor)\right) s_{ij}",
    cite="nakanishi2025scalable",
    source="Nakanishi (2025), Scalable-Softmax; with a floor: transformers, modeling_llama4.py, Llama4TextAttention, "
    "m = 8192, s = 0.1",
    why="Among more keys, the same logits give flatter weights; logits that grow with ln n keep the largest weight.",
)
def log_n_scale(patch: Patch, *, start: float | None = None, learned: bool = True, floor: int | None = None) -> None:
    """Multiply the logits of each query by the logarithm of the number of keys that it sees.

    Keys that a mask hides do not count: under a causal mask, the first query sees one and the last all. What a model
    adds to the logits (biases of positions) is not multiplied. The fused kernels know no such factor: attention is
    written out.

    Args:
        start: s, by default 0.43, or 0.1 with a floor: the number in Llama 4.
        learned: learn s, one number per head.
        floor: m. Below this many keys, nothing changes; from there on, the logits grow.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), torch.randn(1, 16, 8)
        >>> with adjust(model, "log_n_scale", start=1 / math.log(16)):
        ...     same = model(x, x, x)[0]
        >>> torch.allclose(model(x, x, x)[0], same, atol=1e-6)  # s ln 16 = 1
        True
    """
    if start is not None:
        check_number("start", start, low=0)
    if floor is not None:
        check_int("floor", floor)
    start = (0.43 if floor is None else 0.1) if start is None else start
    for place in patch.attentions:
        factor = _per_head(patch.query(place).weight.n_heads, start, learned=learned)
        patch.attend(place, LogLength(factor=factor, floor=floor))


class LogLength(AttentionChange):
    """s·ln n, or 1 + s·ln(1 + ⌊n/m⌋), on the logits of each query."""

    factor: Tensor | float
    floor: int | None

    def seen_logits(self, logits: Tensor, hidden: Tensor) -> Tensor:
        n = _n_seen(logits, hidden)
        growth = self.factor * n.log() if self.floor is None else 1 + self.factor * (n / self.floor).floor().log1p()
        return logits * growth.to(logits.dtype)


def _per_head(n_heads: int, start: float, *, learned: bool) -> nn.Parameter | float:
    return nn.Parameter(torch.full((n_heads, 1, 1), float(start))) if learned else start


def _n_seen(logits: Tensor, hidden: Tensor) -> Tensor:
    """How many keys each query sees, ``(…, T, 1)``; 1 for one that sees none. Half precision cannot count to 10,000."""
    return (~hidden).sum(-1, keepdim=True).clamp(min=1).to(_exact(logits))


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


@adjustment(
    formula=r"a_{ij} = \frac{e^{s_{ij}}}{e^{b_h} + \sum_{j'} e^{s_{ij'}}}",
    cite="openai2025gptoss",
    source="gpt-oss; transformers, modeling_gpt_oss.py, eager_attention_forward; b = 0: Miller (2023)",
    why="A head that looks for nothing can leave its weight to a logit without a value, and needs no first token.",
    treats=("attention sink",),
    clashes={
        "sink": "the model has such a logit itself",
        "sigmoid_attention": "each replaces the softmax",
        "softpick": "each replaces the softmax",
    },
    gives=("sink",),
)
def sink(patch: Patch, *, start: float = 0.0, learned: bool = True) -> None:
    """Put one more logit per head into the softmax, which takes weight and gives no value.

    The weights of a query then sum to less than 1; one that sees no key has weights 0. Attention is written out.

    Args:
        start: b; a very negative one leaves the softmax as it is.
        learned: learn b, one number per head.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), torch.zeros(1, 3, 8)
        >>> with adjust(model, "sink"):  # three logits 0, and one more
        ...     model(x, x, x)[1][0, 0]
        tensor([0.2500, 0.2500, 0.2500], grad_fn=<...>)
    """
    check_number("start", start)
    for place in patch.attentions:
        patch.attend(place, ExtraLogit(extra=_per_head(patch.query(place).weight.n_heads, start, learned=learned)))


class ExtraLogit(AttentionChange):
    """Softmax over the logits and one number per head, whose weight is dropped."""

    extra: Tensor | float

    def weights(self, logits: Tensor, hidden: Tensor) -> Tensor:
        extra = (logits.new_zeros(()) + self.extra).to(logits.dtype).expand(*logits.shape[:-1], 1)
        with_extra = torch.softmax(torch.cat([logits, extra], dim=-1), dim=-1, dtype=_exact(logits))
        return with_extra[..., :-1].to(logits.dtype)


@adjustment(
    formula=r"a_{ij} = \sigma(s_{ij} + b), \qquad b = -\ln n_i",
    cite="ramapuram2024theory",
    source="Ramapuram et al. (2024); apple/ml-sigmoid-attention, attention.py: one b for all queries",
    why="Keys do not compete for a sum of 1: no weight must go anywhere, and none is taken from a key by another.",
    treats=("attention sink",),
    clashes={"sink": "without a sum of 1, an extra logit takes nothing", "softpick": "each replaces the softmax"},
)
def sigmoid_attention(patch: Patch, *, bias: float | None = None) -> None:
    """Weigh each key by a sigmoid of its own logit, instead of the softmax.

    A trained model does another thing then, and must be trained on. Attention is written out.

    Args:
        bias: b. By default −ln n with the number of keys that the query sees, so that logits near 0 give weights near
            1/n, as the softmax does; in the paper n is the length of the sequence, which is the same without a mask.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(8, num_heads=2, batch_first=True), torch.zeros(1, 3, 8)
        >>> with adjust(model, "sigmoid_attention"):  # 1/(1 + 3)
        ...     model(x, x, x)[1][0, 0]
        tensor([0.2500, 0.2500, 0.2500], grad_fn=<...>)
    """
    if bias is not None:
        check_number("bias", bias)
    for place in patch.attentions:
        patch.attend(place, Sigmoid(bias=bias))


class Sigmoid(AttentionChange):
    """σ(s + b)."""

    bias: float | None

    def weights(self, logits: Tensor, hidden: Tensor) -> Tensor:
        bias = -_n_seen(logits, hidden).log() if self.bias is None else self.bias
        return torch.sigmoid(logits + bias).masked_fill(hidden, 0).to(logits.dtype)


@adjustment(
    formula=r"a_{ij} = \frac{\operatorname{relu}(e^{s_{ij}} - 1)}{\epsilon + \sum_{j'} |e^{s_{ij'}} - 1|}",
    cite="zuhri2025softpick",
    source="Zuhri et al. (2025); softpick-attention, naive_softpick_attn.py: ε = 1e-8",
    why="A key with a logit below 0 gets no weight at all, and a query that finds none above 0 takes nothing.",
    treats=("attention sink",),
    clashes={"sink": "no weight must go anywhere, so that an extra logit is not needed"},
)
def softpick(patch: Patch, *, eps: float = 1e-8) -> None:
    """Replace the softmax by one that gives weight 0 to logits below 0.

    The weights of a query sum to at most 1, and to 0 where all its logits are negative: it has no gradient then. A
    trained model does another thing, and must be trained on. Attention is written out.

    Args:
        eps: ε, in units of e to the largest logit, if that is above 0.

    Example:
        >>> from attntut.adjust import adjust
        >>> model, x = nn.MultiheadAttention(2, num_heads=1, batch_first=True), torch.eye(2)[None]
        >>> _ = model.in_proj_weight.data.copy_(torch.eye(2).repeat(3, 1))
        >>> with adjust(model, "softpick"):  # logits 1/√2 and 0
        ...     model(x, x, x)[1][0]
        tensor([[1., 0.],
                [0., 1.]], grad_fn=<...>)
    """
    check_number("eps", eps, low=0, open_low=True)
    for place in patch.attentions:
        patch.attend(place, Softpick(eps=eps))


class Softpick(AttentionChange):
    """relu(eˢ − 1)/(ε + Σ|eˢ − 1|), both divided by e to the largest logit."""

    eps: float

    def weights(self, logits: Tensor, hidden: Tensor) -> Tensor:
        exact = logits.to(_exact(logits)).masked_fill(hidden, 0)
        largest = exact.detach().amax(-1, keepdim=True).clamp(min=0)
        excess = torch.exp(exact - largest) - torch.exp(-largest)  # 0 where hidden
        return (excess.relu() / (self.eps + excess.abs().sum(-1, keepdim=True))).to(logits.dtype)
