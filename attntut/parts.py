"""What a Transformer may have beside or instead of the plain one's pieces: parts, put together in a config.

    TransformerConfig(n_classes=10, d_input=4, parts=(RMSNorm(), Rotary(), QKNorm(), SwiGLU()))

Each is a record of its options that makes one module. Two parts of the same ``slot`` stand in each other's way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut._checks import check_int, check_number

SLOTS = ("norm", "feed_forward", "residual", "heads", "rotary", "qk_norm", "sink", "gate", "difference")
IN_ATTENTION = SLOTS[3:]  # in the order in which attention uses them


@dataclass(frozen=True)
class Part:
    """One piece of an architecture: a record of options, equal to another one with the same options.

    Attributes:
        slot: the place that it takes; one of :data:`SLOTS`.
        gives: the :attr:`traits` that no option changes; by default the name of the part, by its slot.
    """

    slot: ClassVar[str]
    gives: ClassVar[Mapping[str, Any]] = {}

    @property
    def traits(self) -> dict[str, Any]:
        """What a model with this part has, as requirements of schemes ask for it."""
        return dict(self.gives) or {self.slot: type(self).__name__}


def by_slot(parts: Iterable[Part]) -> Mapping[str, Any]:
    """The parts by their slots.

    Raises:
        TypeError: one is no part.
        ValueError: two have the same slot.

    Example:
        >>> by_slot([RMSNorm(), Rotary()])["rotary"].base
        10000.0
    """
    found: dict[str, Part] = {}
    for part in parts:
        if not isinstance(part, Part):
            hint = f" Write {part.__name__}()." if isinstance(part, type) and issubclass(part, Part) else ""
            raise TypeError(f"parts must hold parts, such as attntut.parts.RMSNorm(): got {part!r}.{hint}")
        if part.slot in found:
            raise ValueError(f"parts must hold one of a kind: got {found[part.slot]} and {part}.")
        found[part.slot] = part
    return found


# ----- in place of LayerNorm: make(d_model, layer) -----


@dataclass(frozen=True)
class RMSNorm(Part):
    r"""Divide a token by its root mean square, without taking the mean away first.

    .. math:: y = g \odot \frac{x}{\sqrt{\operatorname{mean}(x^2)}}, \qquad \text{zero-centred: } g = 1 + w

    Zhang & Sennrich (2019). With ``is_zero_centred``, what is stored is :math:`w`, 0 at the start, so that weight
    decay pulls the gain to 1 (Gemma).

    Example:
        >>> RMSNorm().make(2, layer=1)(torch.tensor([3.0, 4.0]))
        tensor([0.8485, 1.1314], grad_fn=<...>)
    """

    slot = "norm"
    is_zero_centred: bool = False

    @property
    def traits(self) -> dict[str, Any]:
        return {"norm_layer": "RMSNorm", "zero_centred": self.is_zero_centred}

    def make(self, d_model: int, layer: int) -> nn.Module:
        return ZeroCentredRMSNorm(d_model) if self.is_zero_centred else nn.RMSNorm(d_model, eps=1e-6)


class ZeroCentredRMSNorm(nn.RMSNorm):
    """RMSNorm whose gain is one more than its weight."""

    zero_centred = True

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model, eps=1e-6)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, 1 + self.weight, self.eps)


@dataclass(frozen=True)
class DepthDividedNorm(Part):
    r"""LayerNorm, divided by the root of the number of the block: later branches read less.

    .. math:: y = \frac{1}{\sqrt l} \operatorname{LN}(x), \qquad l = 1, \ldots, L

    LayerNorm-Scaling (Sun et al. 2025). The norm after the last block is not divided.

    Example:
        >>> DepthDividedNorm().make(2, layer=4)(torch.tensor([1.0, -1.0]))
        tensor([ 0.5000, -0.5000], grad_fn=<...>)
    """

    slot = "norm"
    gives = {"norm_layer": "LayerNorm / √l"}

    def make(self, d_model: int, layer: int) -> nn.Module:
        return DividedLayerNorm(d_model, layer**-0.5)


class DividedLayerNorm(nn.LayerNorm):
    """LayerNorm times a number."""

    def __init__(self, d_model: int, factor: float) -> None:
        super().__init__(d_model)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.factor


@dataclass(frozen=True)
class DyT(Part):
    r"""A squashing function in place of a norm: it bounds what a branch reads, entry by entry.

    .. math:: y = \gamma \odot \tanh(\alpha x) + \beta

    Zhu et al. (2025). It does not divide by the scale of a token: entries far below :math:`1/\alpha` stay small.

    Example:
        >>> DyT(alpha=1.0).make(2, layer=1)(torch.tensor([0.1, 100.0]))
        tensor([0.0997, 1.0000], grad_fn=<...>)
    """

    slot = "norm"
    gives = {"norm_layer": "DyT"}
    alpha: float = 0.5

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, low=0, open_low=True)

    def make(self, d_model: int, layer: int) -> nn.Module:
        return DynamicTanh(d_model, self.alpha)


class DynamicTanh(nn.Module):
    """γ tanh(αx) + β."""

    def __init__(self, d_model: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.weight, self.bias = nn.Parameter(torch.ones(d_model)), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.tanh(self.alpha * x) + self.bias


# ----- in place of the feed-forward network: make(d_model, d_ff, linear) -----


@dataclass(frozen=True)
class SwiGLU(Part):
    r"""A gated feed-forward network: two matrices read the stream, one writes to it.

    .. math:: y = W_2\,(\operatorname{silu}(W_1 x) \odot W_3 x)

    Shazeer (2020). Only :math:`W_2` is the last matrix of the branch, which depth scaling is meant for.

    Example:
        >>> [name for name, _ in SwiGLU().make(8, 16, nn.Linear, bias=False).named_parameters()]
        ['gate.weight', 'up.weight', 'down.weight']
    """

    slot = "feed_forward"

    def make(self, d_model: int, d_ff: int, linear: type[nn.Linear], *, bias: bool) -> nn.Module:
        return GatedFeedForward(d_model, d_ff, linear, bias=bias)


class GatedFeedForward(nn.Module):
    """``down(silu(gate(x)) · up(x))``: W₁ is the gate, W₃ the other reader, W₂ the writer."""

    def __init__(self, d_model: int, d_ff: int, linear: type[nn.Linear], *, bias: bool) -> None:
        super().__init__()
        self.gate, self.up = linear(d_model, d_ff, bias=bias), linear(d_model, d_ff, bias=bias)
        self.down = linear(d_ff, d_model, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


# ----- in place of the sum of stream and branch: make(d_model, number of the branch) -----


@dataclass(frozen=True)
class NormalizedResidual(Part):
    r"""A sum that keeps the variance: branch number :math:`k` is one of :math:`k` equal shares.

    .. math:: x \leftarrow \sqrt{\frac{k-1}{k}}\,x + \frac{1}{\sqrt k} f(x), \qquad k = 2, \ldots, 2L + 1

    The embedding is the first share. As in Hugging Face's ``modeling_beam.py``, ``depth_scaled_residual_add``.

    Example:
        >>> NormalizedResidual().make(4, number=2)(torch.ones(4), torch.ones(4))
        tensor([1.4142, 1.4142, 1.4142, 1.4142])
    """

    slot = "residual"

    def make(self, d_model: int, number: int) -> nn.Module:
        return WeightedSum(math.sqrt((number - 1) / number), number**-0.5)


class WeightedSum(nn.Module):
    """Two numbers, for the stream and for the branch."""

    def __init__(self, skip: float, branch: float) -> None:
        super().__init__()
        self.skip, self.branch = skip, branch

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.skip * x + self.branch * branch


@dataclass(frozen=True)
class Hypersphere(Part):
    r"""Tokens stay on a sphere, and a branch turns them a little towards what it says.

    .. math:: x \leftarrow \operatorname{rms}\text{-norm}\left(\hat x + \alpha \odot (\hat f - \hat x)\right)

    nGPT (Loshchilov et al. 2024), where the radius of the sphere is 1 and factors :math:`\sqrt d` follow; here it is
    :math:`\sqrt d`, so that entries have size 1 and the factors are not needed.

    Args:
        alpha: how far a branch turns a token at the start, one learnable number a channel.

    Example:
        >>> Hypersphere(alpha=0.5).make(2, number=2)(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.1]))
        tensor([1., 1.], grad_fn=<...>)
    """

    slot = "residual"
    alpha: float = 0.05

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, low=0, high=1)

    def make(self, d_model: int, number: int) -> nn.Module:
        return TurnOnSphere(d_model, self.alpha)


class TurnOnSphere(nn.Module):
    """Interpolation of two tokens, both first put on the sphere, and the result put there again."""

    def __init__(self, d_model: int, alpha: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((d_model,), alpha))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        size = x.shape[-1:]
        x, branch = F.rms_norm(x, size), F.rms_norm(branch, size)
        return F.rms_norm(x + self.alpha.abs() * (branch - x), size)


# ----- in attention: make(d_model, n_heads) -----


@dataclass(frozen=True)
class GroupedQueries(Part):
    """Several query heads share a key and a value head (Ainslie et al. 2023); one for all is multi-query attention.

    Args:
        n_kv_heads: number of key heads; must divide ``n_heads``.
    """

    slot = "heads"
    n_kv_heads: int

    def __post_init__(self) -> None:
        check_int("n_kv_heads", self.n_kv_heads)

    @property
    def traits(self) -> dict[str, Any]:
        return {"n_kv_heads": self.n_kv_heads}


class AttentionPart(nn.Module):
    """What a part does inside attention; each method leaves what it gets as it is, unless it is overridden."""

    def heads(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries ``(B, H, T, d_head)`` and keys ``(B, H, S, d_head)`` before their product."""
        return query, key

    def merged(self, heads: Tensor, x: Tensor) -> Tensor:
        """All heads side by side before the output projection, and what queries are made of: ``(B, T, d_model)``."""
        return heads


@dataclass(frozen=True)
class Rotary(Part):
    r"""Turn queries and keys by an angle in proportion to their position: logits see distances.

    .. math:: (q_i, q_{i+d_h/2}) \mapsto \text{rotation by } t\,\theta_i, \qquad \theta_i = \text{base}^{-2i/d_h}

    Su et al. (2021), in the layout of two halves (GPT-NeoX, Llama). It turns vectors and keeps their lengths.

    Args:
        base: the longest wavelength over 2π.
    """

    slot = "rotary"
    base: float = 10000.0

    def make(self, d_model: int, n_heads: int) -> AttentionPart:
        return Rotation(self.base)


class Rotation(AttentionPart):
    """A rotation of each pair of channels, by the position."""

    def __init__(self, base: float) -> None:
        super().__init__()
        self.base = base

    def heads(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self._turn(query), self._turn(key)

    def _turn(self, x: Tensor) -> Tensor:
        T, d_head = x.shape[-2:]
        half = torch.arange(d_head // 2, device=x.device, dtype=x.dtype)
        angle = torch.arange(T, device=x.device, dtype=x.dtype)[:, None] * self.base ** (-2 * half / d_head)
        cos, sin = angle.cos(), angle.sin()  # (T, d_head / 2)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


@dataclass(frozen=True)
class QKNorm(Part):
    r"""RMSNorm of queries and keys, head by head: logits cannot grow with the weights.

    .. math:: s_{ij} = \frac{1}{\sqrt{d_h}}\,(g \odot \hat q_i)^\top \hat k_j, \qquad
              |s_{ij}| \le g \sqrt{d_h}

    Henry et al. (2020); Dehghani et al. (2023). Between unrelated tokens the logits' standard deviation is g.

    The gain g is in the weight of the query's norm.

    Example:
        >>> part = QKNorm(gain=2.0).make(d_model=8, n_heads=2)
        >>> query, key = part.heads(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))
        >>> query.square().mean(-1).sqrt()[0, 0], key.square().mean(-1).sqrt()[0, 0]
        (tensor([2., 2., 2.], grad_fn=<...>), tensor([1., 1., 1.], grad_fn=<...>))
    """

    slot = "qk_norm"
    gives = {"qk_norm": True}
    gain: float = 1.0

    def make(self, d_model: int, n_heads: int) -> AttentionPart:
        return QueryKeyNorms(d_model // n_heads, self.gain)


class QueryKeyNorms(AttentionPart):
    """One norm for the queries of all heads, one for the keys."""

    def __init__(self, d_head: int, gain: float) -> None:
        super().__init__()
        self.query_norm, self.key_norm = nn.RMSNorm(d_head, eps=1e-6), nn.RMSNorm(d_head, eps=1e-6)
        nn.init.constant_(self.query_norm.weight, gain)

    def heads(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(query), self.key_norm(key)


@dataclass(frozen=True)
class Sink(Part):
    r"""One more logit a head, which takes weight from all keys and gives no value.

    .. math:: a_{ij} = \frac{e^{s_{ij}}}{e^{b_h} + \sum_{j'} e^{s_{ij'}}}

    gpt-oss; Miller (2023) with :math:`b = 0`. A head may then attend to nothing: its weights sum to less than 1.
    """

    slot = "sink"
    gives = {"sink": True}
    start: float = 0.0

    def make(self, d_model: int, n_heads: int) -> AttentionPart:
        return SinkLogit(n_heads, self.start)


class SinkLogit(AttentionPart):
    """A learnable logit a head, as one more key of zeros, whose logit 0 a mask raises to b."""

    def __init__(self, n_heads: int, start: float) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.full((n_heads,), start))

    def extend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Key and value with one row of zeros more, and the mask to add to the logits, ``(…, H, T, S + 1)``."""
        H, T, S = query.shape[1], query.shape[2], key.shape[2]
        if mask is None:
            mask = query.new_zeros(T, S)
        elif mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -math.inf)
        shape = torch.broadcast_shapes(mask.shape, (1, H, T, S))
        column = self.sink[:, None, None].expand(*shape[:-1], 1)
        mask = torch.cat([mask.expand(shape), column], dim=-1)
        return F.pad(key, (0, 0, 0, 1)), F.pad(value, (0, 0, 0, 1)), mask


@dataclass(frozen=True)
class OutputGate(Part):
    r"""A gate between 0 and 1 on what the heads found, made of the token that asks.

    .. math:: y = W_o\left(\sigma(W_g x + b_g) \odot [\text{head}_1; \ldots; \text{head}_H]\right)

    Qiu et al. (2025). With :math:`b_g = 0` the gate starts near ½ and halves the branch.
    """

    slot = "gate"
    gives = {"output_gate": True}

    def make(self, d_model: int, n_heads: int) -> AttentionPart:
        return Gate(d_model)


class Gate(AttentionPart):
    """σ(W x + b) on the heads, channel by channel."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_model)

    def merged(self, heads: Tensor, x: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(x)) * heads


@dataclass(frozen=True)
class Differential(Part):
    r"""Two attentions per head, and one is taken from the other: what both attend to cancels.

    .. math:: A = \operatorname{softmax}(s_1) - \lambda \operatorname{softmax}(s_2), \quad
              \lambda = e^{\lambda_{q1}^\top \lambda_{k1}} - e^{\lambda_{q2}^\top \lambda_{k2}} + \lambda_0, \quad
              \lambda_0 = 0.8 - 0.6\,e^{-0.3 (l - 1)}

    Ye et al. (2024). The two halves of a head's query and key make :math:`s_1` and :math:`s_2`, with the scale
    :math:`1/\sqrt{d_h/2}`; a norm of each head, times :math:`1 - \lambda_0`, follows.

    Args:
        layer: l, from 1; a :class:`~attntut.TransformerBlock` puts its own number there.
    """

    slot = "difference"
    gives = {"differential": True}
    layer: int = 1

    def __post_init__(self) -> None:
        check_int("layer", self.layer)

    def make(self, d_model: int, n_heads: int) -> AttentionPart:
        return Difference(d_model // n_heads, 0.8 - 0.6 * math.exp(-0.3 * (self.layer - 1)))


class Difference(AttentionPart):
    """λ, and the norm of what is left."""

    def __init__(self, d_head: int, start: float) -> None:
        super().__init__()
        self.start = start
        drawn = (nn.Parameter(torch.randn(d_head // 2) * 0.1) for _ in range(4))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = drawn
        self.norm = nn.RMSNorm(d_head, eps=1e-5)

    @property
    def factor(self) -> Tensor:
        """λ."""
        first, second = self.lambda_q1 @ self.lambda_k1, self.lambda_q2 @ self.lambda_k2
        return first.exp() - second.exp() + self.start

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        """What the two attentions of each head, ``(B, H, T, d_head)``, leave of the values."""
        return (1 - self.start) * self.norm(first - self.factor * second)
