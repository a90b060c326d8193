"""The residual stream: what the repeated blocks of a model hand on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from attntut.diagnose.statistics import norm, token_sums


class Block:
    """What one block hands on: sums over its calls.

    Args:
        container: name of the list of modules that it is in.
        kind: its class.
        tokens_first: whether its output is ``(n, B, d)`` rather than ``(B, n, d)``.
        follows: of a module that is in no list: whether the one before handed on what it takes.
    """

    def __init__(self, container: str, kind: type, tokens_first: bool = False, follows: bool | None = None) -> None:
        self.container, self.kind, self.tokens_first, self.follows = container, kind, tokens_first, follows
        self.square = self.size = self.cosine = self.sequences = 0.0
        self.gradient_square = self.gradient_size = 0.0

    def add(self, x: Tensor) -> None:
        """Add the output of a call."""
        if x.ndim < 2:
            return
        x = x[None] if x.ndim == 2 else x.transpose(0, 1) if self.tokens_first else x
        square, _, cosine = token_sums(x.flatten(1, -2)[:, None])  # (B, 1)
        self.square += square.sum().item()
        self.size += x.numel()
        defined = ~cosine.isnan() | square.isnan()
        self.cosine += cosine[defined].sum().item()
        self.sequences += int(defined.sum())

    def listen_to_gradient(self, is_wanted: Callable[[], bool]) -> Callable[[Tensor], None]:
        """A hook for an output."""

        def add(gradient: Tensor) -> None:
            if is_wanted() and not gradient.is_meta:
                self.gradient_square += norm(gradient) ** 2
                self.gradient_size += gradient.numel()

        return add

    def row(self) -> dict[str, Any]:
        """The statistics, as in :class:`~attntut.diagnose.Report`."""
        return {
            "rms": math.sqrt(self.square / self.size) if self.size else math.nan,
            "token_cosine": self.cosine / self.sequences if self.sequences else math.nan,
            "gradient_rms": math.sqrt(self.gradient_square / self.gradient_size) if self.gradient_size else None,
        }


def repeated(candidates: Mapping[str, Block]) -> list[str]:
    """The repeated blocks among modules that hold attention: the longest chain, and the outer of two equals.

    A chain is the elements of a list, or, where there is none around or inside, modules that follow on each other.

    Args:
        candidates: name of the element to its block, in the order of the forward pass.

    Example:
        A stack that is itself an element of a list is no block; its layers are:

        >>> outer, inner = Block("", nn.TransformerEncoder), Block("0.layers", nn.TransformerEncoderLayer)
        >>> repeated({"0.layers.0": inner, "0.layers.1": inner, "0": outer})
        ['0.layers.0', '0.layers.1']
    """
    size = Counter((block.container, block.kind) for block in candidates.values())
    torn = {(block.container, block.kind) for block in candidates.values() if block.follows is False}
    length = {name: size[block.container, block.kind] for name, block in candidates.items()}
    is_loose = {name: block.follows is not None for name, block in candidates.items()}
    candidates = {
        name: block
        for name, block in candidates.items()
        if not is_loose[name] or (length[name] > 1 and (block.container, block.kind) not in torn)
    }
    rank = {name: (is_loose[name], -length[name], len(name)) for name in candidates}
    within = {(a, b) for a in candidates for b in candidates if a.startswith(f"{b}.")}  # each is the other's rival
    beaten = {max(pair, key=rank.__getitem__) for pair in within}
    return [name for name in candidates if name not in beaten]


def has_tokens_first(block: nn.Module) -> bool:
    """Whether a block keeps the tokens in the first dimension, as torch does by default."""
    return any(isinstance(each, nn.MultiheadAttention) and not each.batch_first for each in block.modules())
