"""Scaled dot-product attention, and the multi-head layer built on it, with every knob that the chapters turn."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attntut._checks import check_choice, check_int, check_number, check_tensor
from attntut.parts import IN_ATTENTION, Part, by_slot


def attention_logits(query: Tensor, key: Tensor, *, scale: float | None = None) -> Tensor:
    r"""Score every query against every key.

    .. math:: s_{ij} = \text{scale} \cdot q_i^\top k_j, \qquad \text{scale} = 1/\sqrt{d_k} \text{ by default}

    Vaswani et al. (2017), section 3.2.1.

    Args:
        query: ``(..., n, d_k)``.
        key: ``(..., m, d_k)``; the leading dimensions broadcast against those of ``query``.
        scale: the factor before the softmax; ``1`` gives plain dot products.

    Returns:
        The logits, ``(..., n, m)``.

    Raises:
        TypeError: an argument is no floating-point tensor, or the dtypes differ.
        ValueError: the widths differ, or the leading dimensions do not broadcast.

    Example:
        >>> attention_logits(torch.tensor([[2.0, 0.0]]), torch.eye(2), scale=1)
        tensor([[2., 0.]])
    """
    check_tensor("query", query, min_ndim=2)
    check_tensor("key", key, min_ndim=2)
    _check_same_dtype("key", key, query)
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query and key must have the same width d_k: got query {tuple(query.shape)} and key {tuple(key.shape)}."
        )
    _check_leading("key", key, query)
    return query @ key.mT * _scale(scale, query.shape[-1])


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Average the values, each query with its own weights.

    .. math:: A = \operatorname{softmax}\!\left(\text{scale} \cdot Q K^\top + M\right), \qquad \text{output} = A V

    Vaswani et al. (2017), eq. 1. Equal to :func:`torch.nn.functional.scaled_dot_product_attention`, but it also
    returns the weights, and takes ``mask`` and ``is_causal`` together.

    Args:
        query: ``(..., n, d_k)``.
        key: ``(..., m, d_k)``.
        value: ``(..., m, d_v)``.
        mask: broadcasts to ``(..., n, m)``. Boolean: True where a query *may* attend. Floating: added to the logits.
        is_causal: query ``i`` sees the keys ``0 … i`` only.
        scale: the factor before the softmax; :math:`1/\sqrt{d_k}` by default.

    Returns:
        The output ``(..., n, d_v)`` and the weights ``(..., n, m)``. A row of weights sums to 1. A query that may
        attend to nothing has weights and output 0, not NaN.

    Raises:
        TypeError: a dtype is wrong (an integer mask, say).
        ValueError: shapes do not fit.

    Example:
        One query that agrees with the first of two keys takes most of the first value:

        >>> query, key = torch.tensor([[3.0, 0.0]]), torch.eye(2)
        >>> output, weights = scaled_dot_product_attention(query, key, torch.tensor([[10.0], [20.0]]))
        >>> weights
        tensor([[0.8930, 0.1070]])
        >>> output
        tensor([[11.0704]])

        Hide that key, and the other takes all:

        >>> scaled_dot_product_attention(query, key, key, mask=torch.tensor([[False, True]]))[1]
        tensor([[0., 1.]])
    """
    logits = attention_logits(query, key, scale=scale)  # (..., n, m)
    check_tensor("value", value, min_ndim=2)
    _check_same_dtype("value", value, query)
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(
            f"value must have as many rows as key: got value {tuple(value.shape)} and key {tuple(key.shape)}."
        )
    _check_leading("value", value, logits)
    if is_causal:
        logits = logits.masked_fill(~causal_mask(*logits.shape[-2:], device=logits.device), -math.inf)
    if mask is None:
        weights = torch.softmax(logits, dim=-1)
    else:
        _check_mask(mask, logits.shape)
        logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        weights = masked_softmax(logits)
    return weights @ value, weights


def masked_softmax(logits: Tensor) -> Tensor:
    """Softmax along the last of ``(..., n, m)``, where a row of −∞ gives weights 0, and gradients 0, not NaN.

    Example:
        >>> masked_softmax(torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]]))
        tensor([[1., 0.],
                [0., 0.]])
    """
    # The softmax of a row of −inf is 0/0, and so is its gradient: give such a row finite logits, then weight 0.
    blind = (logits == -math.inf).all(dim=-1, keepdim=True)
    return torch.softmax(logits.masked_fill(blind, 0), dim=-1).masked_fill(blind, 0)


def causal_mask(n: int, m: int | None = None, *, device: torch.device | str | None = None) -> Tensor:
    """True where query ``i`` of n may see key ``j`` of m (n by default), that is, where ``j ≤ i``: ``(n, m)``.

    Example:
        >>> causal_mask(3).int()
        tensor([[1, 0, 0],
                [1, 1, 0],
                [1, 1, 1]], dtype=torch.int32)
    """
    m = n if m is None else m
    check_int("n", n, low=0), check_int("m", m, low=0)
    return torch.ones(n, m, dtype=torch.bool, device=device).tril()


class ScaledLinear(nn.Linear):
    r"""A linear layer that keeps the factor :math:`1/\sqrt{\text{fan\_in}}` out of its weights.

    .. math:: y = \frac{1}{\sqrt{\text{fan\_in}}} W x + b

    Blake et al. (2023), unit scaling: weights of variance 1 map a signal of variance 1 to one of variance 1.

    Shapes, arguments and parameters are those of :class:`torch.nn.Linear`.

    Example:
        >>> layer = ScaledLinear(4, 2, bias=False)
        >>> _ = torch.nn.init.ones_(layer.weight)
        >>> layer(torch.ones(1, 4))
        tensor([[2., 2.]], grad_fn=<MmBackward0>)
    """

    @property
    def multiplier(self) -> float:
        """The factor of the weights."""
        return self.in_features**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.multiplier)


LINEARS: dict[str, type[nn.Linear]] = {"none": nn.Linear, "fan_in": ScaledLinear}


class MultiHeadAttention(nn.Module):
    r"""Several attentions side by side, each in its own subspace of width ``d_head = d_model / n_heads``.

    .. math:: \text{head}_h = \operatorname{softmax}\!\left(\text{scale} \cdot X W_{q,h}^\top (C W_{k,h}^\top)^\top
              \right) C W_{v,h}^\top, \qquad \text{output} = [\text{head}_1; \ldots; \text{head}_H]\, W_o^\top

    Vaswani et al. (2017), section 3.2.2. :math:`C` is the input itself in self-attention. Equal to
    :class:`torch.nn.MultiheadAttention` with ``batch_first=True`` and the same weights.

    Args:
        d_model: width of the tokens.
        n_heads: number of heads; must divide ``d_model``.
        bias: whether the four projections add a bias.
        packed: keep query, key and value in one matrix ``in_proj`` of shape ``(3·d_model, d_model)``, as torch does,
            instead of three layers ``query``, ``key`` and ``value``. The computation is the same; what an
            initialization makes of the shape is not.
        is_causal: token ``i`` sees the tokens ``0 … i`` only.
        scale: the factor before the softmax; :math:`1/\sqrt{d_\text{head}}` by default.
        inner_norm: LayerNorm before the output projection, as Sub-LN has it (Wang et al. 2022, Magneto).
        weight_multiplier: ``"fan_in"`` makes every projection a :class:`ScaledLinear`.
        parts: what it has beside these, from :mod:`attntut.parts`: rotary positions, QK-norm, grouped queries …

    Raises:
        ValueError: ``n_heads`` does not divide ``d_model``, a size is not positive, a name is unknown, or parts clash.

    Example:
        >>> attention = MultiHeadAttention(d_model=8, n_heads=2)
        >>> x = torch.randn(5, 3, 8)
        >>> attention(x).shape
        torch.Size([5, 3, 8])
        >>> output, weights = attention(x, return_weights=True)
        >>> weights.shape
        torch.Size([5, 2, 3, 3])
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        bias: bool = True,
        packed: bool = False,
        is_causal: bool = False,
        scale: float | None = None,
        inner_norm: bool = False,
        weight_multiplier: str = "none",
        parts: Iterable[Part] = (),
    ) -> None:
        super().__init__()
        check_heads(d_model, n_heads)
        of_slot = by_slot(parts)
        self.d_model, self.n_heads, self.d_head = d_model, n_heads, d_model // n_heads
        self.packed, self.is_causal, self.scale = packed, is_causal, _scale(scale, self.d_head)
        linear = LINEARS[check_choice("weight_multiplier", weight_multiplier, LINEARS)]
        self.n_kv_heads = of_slot["heads"].n_kv_heads if "heads" in of_slot else n_heads
        if n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads must divide n_heads={n_heads}: got n_kv_heads={self.n_kv_heads}.")
        width = self.n_kv_heads * self.d_head
        if packed:
            self.in_proj = linear(d_model, d_model + 2 * width, bias=bias)
        else:
            self.query = linear(d_model, d_model, bias=bias)
            self.key = linear(d_model, width, bias=bias)
            self.value = linear(d_model, width, bias=bias)
        self._widths = (d_model, width, width)
        self.output = linear(d_model, d_model, bias=bias)
        self.inner_norm = nn.LayerNorm(d_model) if inner_norm else nn.Identity()
        inside = [slot for slot in IN_ATTENTION if slot in of_slot and slot != "heads"]
        self.parts: Any = nn.ModuleDict({slot: of_slot[slot].make(d_model, n_heads) for slot in inside})

    def project(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of every head, each ``(B, n_heads, T, d_head)``.

        Args:
            x: ``(B, T, d_model)``, the tokens that ask.
            context: ``(B, S, d_model)``, the tokens that answer; ``x`` by default.
        """
        context = x if context is None else context
        parts: Iterable[Tensor]
        if not self.packed:
            parts = self.query(x), self.key(context), self.value(context)
        elif context is x:
            parts = self.in_proj(x).split(self._widths, dim=-1)
        else:
            biases = (None,) * 3 if self.in_proj.bias is None else self.in_proj.bias.split(self._widths)
            if isinstance(self.in_proj, ScaledLinear):
                x, context = x * self.in_proj.multiplier, context * self.in_proj.multiplier
            parts = map(F.linear, (x, context, context), self.in_proj.weight.split(self._widths), biases)
        query, key, value = (self._split(part) for part in parts)
        for part in self.parts.values():
            query, key = part.heads(query, key)
        return query, key, value

    def logits(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """What the softmax receives before any mask: ``(B, n_heads, T, S)``; of differential attention both, one after
        the other, ``(B, 2·n_heads, T, S)``."""
        query, key, _ = self.project(x, context)
        if "difference" not in self.parts:
            return attention_logits(query, key, scale=self.scale)
        halves = (torch.cat(each.chunk(2, dim=-1), dim=1) for each in (query, key))
        return attention_logits(*halves, scale=self.scale * math.sqrt(2))

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        return_weights: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attend from ``x`` to ``context``.

        Args:
            x: ``(B, T, d_model)``.
            context: ``(B, S, d_model)``; ``x`` by default (self-attention).
            mask: as in :func:`scaled_dot_product_attention`; broadcasts to ``(B, n_heads, T, S)``.
            return_weights: also return the weights. Without it, torch's fused kernel is used and none exist.

        Returns:
            ``(B, T, d_model)``, and with ``return_weights`` the weights ``(B, n_heads, T, S)``.
        """
        for name, tokens in (("x", x), ("context", x if context is None else context)):
            check_tensor(name, tokens, ndim=3)
            if tokens.shape[-1] != self.d_model:
                raise ValueError(
                    f"{name} must have shape (batch, tokens, d_model={self.d_model}): got {tuple(tokens.shape)}."
                )
        query, key, value = self.project(x, context)
        if "difference" in self.parts:
            (q1, q2), (k1, k2) = query.chunk(2, dim=-1), key.chunk(2, dim=-1)
            (first, a1), (second, a2) = (
                self._attend(q, k, value, mask, self.scale * math.sqrt(2), return_weights)
                for q, k in ((q1, k1), (q2, k2))
            )
            difference = self.parts["difference"]
            heads = difference.combine(first, second)
            weights = None if a1 is None or a2 is None else a1 - difference.factor * a2
        else:
            heads, weights = self._attend(query, key, value, mask, self.scale, return_weights)
        merged = heads.transpose(1, 2).flatten(2)  # (B, T, d_model)
        for part in self.parts.values():
            merged = part.merged(merged, x)
        output = self.output(self.inner_norm(merged))
        return output if weights is None else (output, weights)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, return_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The heads' results, and the weights if they are wanted."""
        is_causal, S = self.is_causal, key.shape[2]
        has_sink = "sink" in self.parts
        if mask is not None:
            _check_mask(mask, torch.Size([*query.shape[:3], S]))
        if is_causal and (has_sink or (mask is not None and not return_weights)):  # the fused kernel takes one of them
            visible = causal_mask(query.shape[2], S, device=query.device)
            if mask is None:
                mask = visible
            else:
                mask = mask & visible if mask.dtype == torch.bool else mask.masked_fill(~visible, -math.inf)
            is_causal = False
        if has_sink:
            key, value, mask = self.parts["sink"].extend(query, key, value, mask)
        if return_weights:
            heads, weights = scaled_dot_product_attention(
                query, key, value, mask=mask, is_causal=is_causal, scale=scale
            )
            return heads, weights[..., :S]
        heads = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=is_causal and mask is None, scale=scale
        )
        return heads, None

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, n_heads={self.n_heads}, packed={self.packed}, is_causal={self.is_causal}"

    def _split(self, part: Tensor) -> Tensor:
        B, T, _ = part.shape  # batch, tokens, d_model (keys and values of grouped queries: less)
        heads = part.view(B, T, part.shape[-1] // self.d_head, self.d_head).transpose(1, 2)  # (B, H, T, d_head)
        return heads if heads.shape[1] == self.n_heads else heads.repeat_interleave(self.n_heads // heads.shape[1], 1)


def check_heads(d_model: int, n_heads: int) -> None:
    """Raise unless ``n_heads`` divides ``d_model``, and name the nearest numbers that do.

    >>> check_heads(256, 6)
    Traceback (most recent call last):
    ...
    ValueError: n_heads must divide d_model: got d_model=256, n_heads=6 (256 / 6 = 42.67). Nearest: 4 or 8.
    """
    check_int("d_model", d_model), check_int("n_heads", n_heads)
    if d_model % n_heads:
        divisors = [h for h in range(1, d_model + 1) if d_model % h == 0]
        near = [max(h for h in divisors if h < n_heads), *[h for h in divisors if h > n_heads][:1]]
        raise ValueError(
            f"n_heads must divide d_model: got d_model={d_model}, n_heads={n_heads} "
            f"({d_model} / {n_heads} = {d_model / n_heads:.2f}). Nearest: {' or '.join(map(str, near))}."
        )


def _scale(scale: float | None, d_k: int) -> float:
    return 1 / math.sqrt(d_k) if scale is None else check_number("scale", scale)


def _check_same_dtype(name: str, tensor: Tensor, query: Tensor) -> None:
    if tensor.dtype != query.dtype:
        raise TypeError(f"{name} must have the dtype of query, {query.dtype}: got {tensor.dtype}.")


def _check_leading(name: str, tensor: Tensor, other: Tensor) -> None:
    try:
        torch.broadcast_shapes(tensor.shape[:-2], other.shape[:-2])
    except RuntimeError as error:
        raise ValueError(
            f"The leading dimensions of {name} must broadcast with those of query: "
            f"got {tuple(tensor.shape[:-2])} and {tuple(other.shape[:-2])}."
        ) from error


def _check_mask(mask: Tensor, shape: torch.Size) -> None:
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.dtype.is_floating_point):
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a boolean tensor (True = may attend) or a floating one (added): got {got}.")
    trailing = zip(mask.shape[::-1], shape[::-1], strict=False)
    if mask.ndim > len(shape) or any(size not in (1, wanted) for size, wanted in trailing):
        raise ValueError(f"mask must broadcast to the logits' shape {tuple(shape)}: got {tuple(mask.shape)}.")
