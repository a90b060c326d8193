"""What a scheme gets to know of a weight: its role and its place in the model, never how it is stored."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from attntut._checks import check_choice, check_int
from attntut.attention import check_heads

ROLES = (
    "query",
    "key",
    "value",
    "output",
    "feed_forward_in",
    "feed_forward_out",
    "embedding",
    "position",
    "readout",
)
OPERANDS = ROLES[:3]  # what an attention takes
ATTENTION = ROLES[:4]
FEED_FORWARD = ROLES[4:6]
BRANCH = ROLES[:6]  # the matrices inside the blocks, one set per layer
BRANCH_OUT = ("output", "feed_forward_out")  # the last matrix of each branch
STACKS = ("encoder", "decoder")
# What stands in a branch beside these six: each is drawn like the matrix that a branch begins with.
PARTS = ("gate", "latent", "adapter_in", "adapter_out")


@dataclass(frozen=True)
class Weight:
    """One projection of a model: a matrix of shape ``(fan_out, fan_in)``, whatever tensor holds it.

    Three projections packed into one ``(3·d_model, d_model)`` tensor are three weights with ``fan_out = d_model``.

    Args:
        role: one of :data:`ROLES`. A gated feed-forward network has two ``"feed_forward_in"``. ``"embedding"`` makes
            tokens, ``"position"`` is added to them (or to the logits), ``"readout"`` is every matrix after the blocks.
        fan_in: width of what it reads. For a table (an embedding, the positions): the number of its rows.
        fan_out: width of what it writes. With grouped queries, a key writes ``n_kv_heads · d_head``.
        d_model: width of the residual stream.
        n_heads: number of query heads.
        d_head: width of a head; ``d_model / n_heads`` by default.
        layer: which block of its stack, from 1; 1 outside the blocks.
        n_layers: the number of blocks of its stack.
        stack: ``"encoder"`` or ``"decoder"``. A model with one stack is an encoder if it is not causal.
        n_encoder, n_decoder: the numbers of blocks, both > 0 in a model with two stacks only.
        is_cross: whether it belongs to attention from one stack to the other.
        is_table: whether one row is looked up (or added) instead of a sum over ``fan_in``.

    Raises:
        ValueError: an unknown role or stack, a size that is not positive, or ``layer > n_layers``.

    Example:
        >>> weight = Weight("query", fan_in=64, fan_out=64, d_model=64, n_heads=4)
        >>> weight.d_head, weight.layer, weight.n_layers
        (16, 1, 1)
        >>> weight.replace(layer=2, n_layers=6).layer
        2
    """

    role: str
    fan_in: int
    fan_out: int
    d_model: int
    n_heads: int
    d_head: int = 0
    layer: int = 1
    n_layers: int = 1
    stack: str = "encoder"
    n_encoder: int = 0
    n_decoder: int = 0
    is_cross: bool = False
    is_table: bool = False

    def __post_init__(self) -> None:
        check_choice("role", self.role, ROLES)
        check_choice("stack", self.stack, STACKS)
        for name in ("fan_in", "fan_out", "d_model", "n_heads", "n_layers"):
            check_int(name, getattr(self, name))
        if self.d_head == 0:
            check_heads(self.d_model, self.n_heads)
            object.__setattr__(self, "d_head", self.d_model // self.n_heads)
        check_int("d_head", self.d_head)
        check_int("layer", self.layer, high=self.n_layers)
        check_int("n_encoder", self.n_encoder, low=0), check_int("n_decoder", self.n_decoder, low=0)

    @property
    def shape(self) -> tuple[int, int]:
        """``(fan_out, fan_in)``, as a law wants it."""
        return self.fan_out, self.fan_in

    def replace(self, **changes: object) -> Weight:
        """The same weight elsewhere: ``weight.replace(layer=3)``."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def weights(
    d_model: int,
    n_heads: int,
    *,
    n_layers: int = 1,
    layer: int = 1,
    d_ff: int | None = None,
    vocab_size: int = 1000,
    seq_len: int = 128,
    n_classes: int = 10,
) -> dict[str, Weight]:
    """The weight of every role in an ordinary model of this shape.

    Args:
        d_model: width of the residual stream.
        n_heads: number of heads; must divide ``d_model``.
        n_layers: number of blocks.
        layer: the block that is meant, from 1.
        d_ff: inner width of the feed-forward branch; ``4·d_model`` by default.
        vocab_size, seq_len, n_classes: sizes of the embedding, the positions and the readout.

    Returns:
        Role to weight, in the order of :data:`ROLES`.

    Example:
        >>> weights(64, 4)["feed_forward_in"].shape
        (256, 64)
    """
    d_ff = 4 * d_model if d_ff is None else check_int("d_ff", d_ff)
    shapes = dict.fromkeys(ATTENTION, (d_model, d_model)) | {
        "feed_forward_in": (d_ff, d_model),
        "feed_forward_out": (d_model, d_ff),
        "embedding": (d_model, vocab_size),
        "position": (d_model, seq_len),
        "readout": (n_classes, d_model),
    }
    return {
        role: Weight(
            role,
            fan_in=fan_in,
            fan_out=fan_out,
            d_model=d_model,
            n_heads=n_heads,
            layer=layer if role in BRANCH else 1,
            n_layers=n_layers,
            is_table=role in ("embedding", "position"),
        )
        for role, (fan_out, fan_in) in shapes.items()
    }
