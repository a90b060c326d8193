"""Blocks, and models made of them: where the norm stands, how strongly a branch is added, how deep."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attntut._checks import check_choice, check_int, check_number
from attntut.attention import LINEARS, MultiHeadAttention, check_heads
from attntut.device import own_randomness
from attntut.parts import Part, by_slot

NORMS = ("pre", "post", "none", "sub")
PRE_NORMS = ("pre", "sub")
POSITIONS = ("learned", "sinusoidal", "none")
POOLINGS = ("mean", "none")
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a :class:`Transformer`.

    Args:
        n_classes: size of the output.
        d_input: width of real-valued tokens (patches of an image, say); or
        vocab_size: number of different integer tokens. Exactly one of the two.
        seq_len: the longest input.
        d_model: width of the residual stream.
        n_heads: heads of every attention layer; must divide ``d_model``.
        n_layers: number of blocks. Each has two branches: attention and feed-forward.
        d_ff: inner width of the feed-forward branch; ``4·d_model`` by default, 0 for no feed-forward branch.
        norm: LayerNorm ``"pre"`` each branch (and once more after the last block), ``"post"`` each addition, or
            ``"none"``; ``"sub"`` (Sub-LN) is ``"pre"`` with one more LayerNorm inside each branch, before the output
            projection and before the second matrix of the feed-forward network.
        residual: whether the input of a branch is added to its output at all.
        residual_scale: the factor of every branch, ``x + residual_scale · f(x)``.
        branch_gain: if given, every branch also has a learnable factor that starts here (ReZero, SkipInit), one number
            or, with ``branch_gain_per_channel``, one a channel (LayerScale).
        skip_scale: the factor of every skip, ``skip_scale · x + f(x)`` (DeepNorm).
        skip_weights: whether every skip also has learnable factors, one a channel, that start at 1 (Admin).
        weight_multiplier: ``"fan_in"`` divides the product with every weight matrix by the root of its fan-in (unit
            scaling: :class:`~attntut.attention.ScaledLinear`).
        readout_scale: a factor of what the readout receives.
        activation: ``"relu"`` or ``"gelu"``.
        positions: ``"learned"``, ``"sinusoidal"`` (Vaswani et al. 2017) or ``"none"``.
        pooling: ``"mean"`` over the tokens (one output per input) or ``"none"`` (one output per token).
        is_causal, packed, bias, scale: as in :class:`~attntut.MultiHeadAttention`.
        parts: what stands in place of LayerNorm, of the feed-forward network or of the sum with the stream, and what
            attention has beside the plain one's, from :mod:`attntut.parts`.

    Raises:
        TypeError: ``parts`` holds something else.
        ValueError: a size is not positive, a name unknown, both or none of ``d_input`` and ``vocab_size`` given, two
            parts of one kind, or one that leaves another argument without a use.

    Example:
        >>> TransformerConfig(n_classes=10, d_input=4, seq_len=16, d_model=32, n_heads=4).d_ff
        128
    """

    n_classes: int
    d_input: int | None = None
    vocab_size: int | None = None
    seq_len: int = 16
    d_model: int = 32
    n_heads: int = 4
    n_layers: int = 2
    d_ff: int = None  # type: ignore[assignment]  # filled in below
    norm: str = "pre"
    residual: bool = True
    residual_scale: float = 1.0
    branch_gain: float | None = None
    branch_gain_per_channel: bool = False
    skip_scale: float = 1.0
    skip_weights: bool = False
    weight_multiplier: str = "none"
    readout_scale: float = 1.0
    activation: str = "gelu"
    positions: str = "learned"
    pooling: str = "mean"
    is_causal: bool = False
    packed: bool = False
    bias: bool = True
    scale: float | None = None
    parts: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        of_slot = by_slot(self.parts)
        object.__setattr__(self, "parts", tuple(of_slot.values()))
        if (self.d_input is None) == (self.vocab_size is None):
            raise ValueError(
                "Exactly one of d_input (real-valued tokens) and vocab_size (integer tokens) must be given: "
                f"got d_input={self.d_input}, vocab_size={self.vocab_size}."
            )
        for name in ("n_classes", "seq_len", "n_layers", "vocab_size" if self.d_input is None else "d_input"):
            check_int(name, getattr(self, name))
        check_heads(self.d_model, self.n_heads)
        if self.d_ff is None:
            object.__setattr__(self, "d_ff", 4 * self.d_model)
        check_int("d_ff", self.d_ff, low=0)
        if self.norm == "sub" and "feed_forward" in of_slot:
            raise ValueError(f"norm must not be 'sub' with a feed-forward network of its own: got parts={self.parts}.")
        plain_skip = self.residual and self.skip_scale == 1 and not self.skip_weights
        if (sums := of_slot.get("residual")) and not plain_skip:
            raise ValueError(
                f"residual, skip_scale and skip_weights must be left out with a sum of its own, {sums}: got "
                f"{self.residual}, {self.skip_scale} and {self.skip_weights}."
            )
        check_choice("norm", self.norm, NORMS)
        check_choice("positions", self.positions, POSITIONS)
        check_choice("pooling", self.pooling, POOLINGS)
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("weight_multiplier", self.weight_multiplier, LINEARS)
        for name in ("residual_scale", "skip_scale", "readout_scale"):
            check_number(name, getattr(self, name))
        if self.branch_gain is not None:
            check_number("branch_gain", self.branch_gain)

    @property
    def traits(self) -> dict[str, Any]:
        """The settings by name, and what the parts add."""
        return vars(self) | {name: value for part in self.parts for name, value in part.traits.items()}


@dataclass(frozen=True)
class Trace:
    """What :meth:`Transformer.trace` saw on the way.

    Attributes:
        logits: the output of the model.
        stream: the residual stream, embedding first, then after every block; each ``(B, T, d_model)``.
        attention_logits: what each block's softmax received before any mask; each ``(B, n_heads, T, T)``.
        weights: the attention weights of every block; each ``(B, n_heads, T, T)``.
    """

    logits: Tensor
    stream: list[Tensor]
    attention_logits: list[Tensor]
    weights: list[Tensor]


class TransformerBlock(nn.Module):
    r"""Attention, then a feed-forward network, each added to the stream.

    .. math:: \text{pre: } x + \alpha f(\operatorname{LN} x), \qquad \text{post: } \operatorname{LN}(x + \alpha f(x)),
              \qquad \text{none: } x + \alpha f(x)

    The names are those of Xiong et al. (2020), figure 1. The skip :math:`x` may have a factor too (``skip_scale``,
    ``skip_weights``), and :math:`\alpha` may be learnable (``branch_gain``).

    Args:
        config: sizes, and what the blocks are made of.
        layer: its number, from 1, for the parts that depend on it.

    Example:
        >>> config = TransformerConfig(n_classes=2, d_input=4, d_model=8, n_heads=2, norm="post")
        >>> TransformerBlock(config)(torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, config: TransformerConfig, layer: int = 1) -> None:
        super().__init__()
        c = config
        self.config = c
        of_slot = by_slot(c.parts)
        if "difference" in of_slot:
            of_slot = {**of_slot, "difference": replace(of_slot["difference"], layer=layer)}
        self.attention = MultiHeadAttention(
            c.d_model,
            c.n_heads,
            bias=c.bias,
            packed=c.packed,
            is_causal=c.is_causal,
            scale=c.scale,
            inner_norm=c.norm == "sub",
            weight_multiplier=c.weight_multiplier,
            parts=of_slot.values(),
        )
        self.attention_norm = _norm(c, layer)
        self._make_gains("attention")
        if "residual" in of_slot:
            self.attention_residual = of_slot["residual"].make(c.d_model, number=2 * layer)
        if c.d_ff:
            if "residual" in of_slot:
                self.feed_forward_residual = of_slot["residual"].make(c.d_model, number=2 * layer + 1)
            linear, activation = LINEARS[c.weight_multiplier], ACTIVATIONS[c.activation]()
            self.feed_forward: nn.Module
            if "feed_forward" in of_slot:
                self.feed_forward = of_slot["feed_forward"].make(c.d_model, c.d_ff, linear, bias=c.bias)
            else:
                self.feed_forward = nn.Sequential(
                    linear(c.d_model, c.d_ff, bias=c.bias),
                    nn.Sequential(activation, nn.LayerNorm(c.d_ff)) if c.norm == "sub" else activation,
                    linear(c.d_ff, c.d_model, bias=c.bias),
                )
            self.feed_forward_norm = _norm(c, layer)
            self._make_gains("feed_forward")

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """``(B, T, d_model)`` to ``(B, T, d_model)``."""
        x = self._add(x, self.attention(self.attention_input(x), mask=mask), "attention")
        return self._add_feed_forward(x)

    def trace(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output, and its attention's logits and weights ``(B, n_heads, T, T)``."""
        seen = self.attention_input(x)
        branch, weights = self.attention(seen, mask=mask, return_weights=True)
        x = self._add(x, branch, "attention")
        return self._add_feed_forward(x), self.attention.logits(seen), weights

    def attention_input(self, x: Tensor) -> Tensor:
        """What the attention layer reads: the stream, normalized first in a pre-norm block."""
        return self.attention_norm(x) if self.config.norm in PRE_NORMS else x

    def _add_feed_forward(self, x: Tensor) -> Tensor:
        if not self.config.d_ff:
            return x
        seen = self.feed_forward_norm(x) if self.config.norm in PRE_NORMS else x
        return self._add(x, self.feed_forward(seen), "feed_forward")

    def _make_gains(self, name: str) -> None:
        c = self.config
        branch_shape = (c.d_model,) if c.branch_gain_per_channel else ()
        self.register_parameter(f"{name}_gain", _gain(c.branch_gain, branch_shape))
        self.register_parameter(f"{name}_skip", _gain(1.0 if c.skip_weights else None, (c.d_model,)))

    def _add(self, x: Tensor, branch: Tensor, name: str) -> Tensor:
        c = self.config
        branch = _times(c.residual_scale, _times(getattr(self, f"{name}_gain"), branch))
        if (residual := getattr(self, f"{name}_residual", None)) is not None:
            x = residual(x, branch)
        else:
            x = _times(c.skip_scale, _times(getattr(self, f"{name}_skip"), x)) + branch if c.residual else branch
        return getattr(self, f"{name}_norm")(x) if c.norm == "post" else x


class Transformer(nn.Module):
    """Blocks between an embedding and a linear readout.

    Args:
        config: sizes, and what the blocks are made of.
        seed: draw the initial weights from this seed and leave torch's global generator as it was; by default they
            come from the global generator, as in any torch module.

    Example:
        Digits as 16 patches of four pixels:

        >>> config = TransformerConfig(n_classes=10, d_input=4, seq_len=16)
        >>> model = Transformer(config, seed=0)
        >>> model(torch.randn(5, 16, 4)).shape
        torch.Size([5, 10])

        A causal language model over 65 characters:

        >>> config = TransformerConfig(n_classes=65, vocab_size=65, pooling="none", is_causal=True)
        >>> Transformer(config)(torch.randint(65, (5, 16))).shape
        torch.Size([5, 16, 65])

        What happened inside:

        >>> trace = model.trace(torch.randn(5, 16, 4))
        >>> len(trace.stream), trace.weights[0].shape
        (3, torch.Size([5, 4, 16, 16]))
    """

    def __init__(self, config: TransformerConfig, *, seed: int | None = None) -> None:
        super().__init__()
        self.config = config
        with nullcontext() if seed is None else own_randomness(seed):
            self._build(config)

    def _build(self, c: TransformerConfig) -> None:
        self.embedding: nn.Module
        if c.vocab_size is not None:
            self.embedding = nn.Embedding(c.vocab_size, c.d_model)
        else:
            assert c.d_input is not None
            self.embedding = LINEARS[c.weight_multiplier](c.d_input, c.d_model, bias=c.bias)
        if c.positions == "learned":
            self.positions = nn.Parameter(torch.randn(c.seq_len, c.d_model) * 0.02)
        elif c.positions == "sinusoidal":
            self.register_buffer("positions", sinusoidal_positions(c.seq_len, c.d_model), persistent=False)
        self.blocks = nn.ModuleList(TransformerBlock(c, layer) for layer in range(1, c.n_layers + 1))
        self.final_norm = _norm(c) if c.norm in PRE_NORMS else nn.Identity()
        self.readout = LINEARS[c.weight_multiplier](c.d_model, c.n_classes, bias=c.bias)

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Logits of the classes.

        Args:
            x: ``(B, T, d_input)`` real or ``(B, T)`` integer tokens, ``T ≤ seq_len``.
            mask: as in :class:`~attntut.MultiHeadAttention`.

        Returns:
            ``(B, n_classes)`` with mean pooling, else ``(B, T, n_classes)``.
        """
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, mask=mask)
        return self.read(x)

    def trace(self, x: Tensor, *, mask: Tensor | None = None) -> Trace:
        """Run the model as :meth:`forward` does, and keep what each block saw."""
        stream: list[Tensor] = [self.embed(x)]
        logits: list[Tensor] = []
        weights: list[Tensor] = []
        for block in self.blocks:
            assert isinstance(block, TransformerBlock)
            x, block_logits, block_weights = block.trace(stream[-1], mask=mask)
            stream.append(x)
            logits.append(block_logits)
            weights.append(block_weights)
        return Trace(self.read(x), stream, logits, weights)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens to the residual stream: ``(B, T, d_model)``."""
        self._check_input(x)
        x = self.embedding(x)
        return x if self.config.positions == "none" else x + self.positions[: x.shape[1]]

    def read(self, x: Tensor) -> Tensor:
        """The residual stream to the logits of the classes."""
        x = self.final_norm(x)
        x = x.mean(dim=1) if self.config.pooling == "mean" else x
        return self.readout(_times(self.config.readout_scale, x))

    def _check_input(self, x: Tensor) -> None:
        c = self.config
        real = c.d_input is not None
        wanted = f"(batch, tokens ≤ {c.seq_len}{f', d_input={c.d_input}' if real else ''})"
        if x.is_floating_point() != real:
            kind = "floating-point" if real else "integer"
            raise TypeError(f"x must be a {kind} tensor of shape {wanted}: got {x.dtype}.")
        right_rank = x.ndim == (3 if real else 2)
        if not right_rank or x.shape[1] > c.seq_len or (real and x.shape[2] != c.d_input):
            raise ValueError(f"x must have shape {wanted}: got {tuple(x.shape)}.")


def sinusoidal_positions(seq_len: int, d_model: int) -> Tensor:
    r"""One vector a position, made of sines and cosines of geometrically spaced wavelengths.

    .. math:: P_{t,2i} = \sin\!\left(t / 10000^{2i/d}\right), \qquad P_{t,2i+1} = \cos\!\left(t / 10000^{2i/d}\right)

    Vaswani et al. (2017), section 3.5. The result is ``(seq_len, d_model)``; every entry lies in [−1, 1].

    Example:
        >>> sinusoidal_positions(2, 4)
        tensor([[0.0000, 1.0000, 0.0000, 1.0000],
                [0.8415, 0.5403, 0.0100, 0.9999]])
    """
    check_int("seq_len", seq_len), check_int("d_model", d_model)
    rate = torch.exp(torch.arange(0, d_model, 2) * (-math.log(10000) / d_model))  # (ceil(d_model / 2),)
    angle = torch.arange(seq_len)[:, None] * rate  # (seq_len, ceil(d_model / 2))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :d_model]


def _norm(config: TransformerConfig, layer: int = 1) -> nn.Module:
    if config.norm == "none":
        return nn.Identity()
    part = by_slot(config.parts).get("norm")
    return nn.LayerNorm(config.d_model) if part is None else part.make(config.d_model, layer)


def _gain(start: float | None, shape: tuple[int, ...]) -> nn.Parameter | None:
    return None if start is None else nn.Parameter(torch.full(shape, float(start)))


def _times(factor: Tensor | float | None, x: Tensor) -> Tensor:
    if factor is None or (not isinstance(factor, Tensor) and factor == 1):
        return x
    return factor * x
