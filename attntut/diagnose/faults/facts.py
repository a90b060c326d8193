"""A report sorted for judging it: attention layers, each with its weights and its block, and stacks of blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch

Record = dict[str, Any]
_NUMBERS = ("logit_std", "logit_max", "entropy", "max_weight", "saturated", "self")
UNKNOWN: Record = dict.fromkeys(_NUMBERS, math.nan) | dict.fromkeys(("non_finite", "masked_rows"), 0)


@runtime_checkable
class Measured(Protocol):
    """What is judged: the plain data of a :class:`~attntut.diagnose.Report`."""

    rows: list[Record]
    stream: list[Record]
    gradients: list[Record]
    weights: list[Record]
    model: Record


@dataclass(frozen=True)
class Layer:
    """One attention layer.

    Attributes:
        name: of the module.
        kind: ``"self"`` or ``"cross"``.
        order: its number in the forward pass.
        rows: one a head.
        weights: the record of each role, where they could be read.
        gradients: the record of the gradients, or None.
        block: name of the block of the stream that it is in; empty if there is none.
        cosine: mean cosine of the tokens that come in, as far as the stream tells; NaN otherwise.
    """

    name: str
    kind: str
    order: int
    rows: list[Record]
    weights: dict[str, Record]
    gradients: Record | None
    block: str
    cosine: float

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that a finding is about."""
        return (self.name,)

    @property
    def n_key(self) -> int:
        return int(self.rows[0]["n_key"])

    @cached_property
    def is_drawn(self) -> bool | None:
        """Whether the query and key matrices are as drawn, not learned; None where they could not be read."""
        known = [self.weights[role].get("drawn") for role in ("query", "key") if role in self.weights]
        return None if len(known) < 2 or None in known else all(known)

    def mean(self, statistic: str) -> float:
        """Average over the heads that have the number."""
        numbers = [row[statistic] for row in self.rows if math.isfinite(row.get(statistic, math.nan))]
        return math.fsum(numbers) / len(numbers) if numbers else math.nan

    def total(self, statistic: str) -> int:
        """Sum over the heads."""
        return sum(row.get(statistic, 0) for row in self.rows)

    def std(self, role: str) -> float:
        """Standard deviation of a weight; NaN where it could not be read."""
        return float(self.weights.get(role, {}).get("std", math.nan))

    def fan_in(self, role: str) -> float:
        """Fan-in of a weight; NaN where it could not be read."""
        return float(self.weights.get(role, {}).get("fan_in", math.nan))

    def gain(self, role: str) -> float:
        """σ·√fan_in: the factor by which a random matrix multiplies the scale of a vector; NaN instead of 0."""
        return self.std(role) * math.sqrt(self.fan_in(role)) or math.nan

    def is_zero(self, role: str) -> bool:
        """Whether a weight is known, and zero."""
        record = self.weights.get(role)
        return record is not None and record["std"] == 0 and record["mean"] == 0

    def heads(self, rows: list[Record]) -> tuple[int, ...]:
        """The heads of some of the rows, or none if it is all of them."""
        return () if len(rows) == len(self.rows) else tuple(row["head"] for row in rows)


@dataclass(frozen=True)
class Stack:
    """Blocks in a row: the stream that each hands on, and the attention layers inside."""

    name: str
    blocks: list[Record]
    layers: list[Layer]

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that a finding is about."""
        return tuple(layer.name for layer in self.layers)

    @property
    def order(self) -> int:
        """That of its last layer."""
        return self.layers[-1].order

    @property
    def is_drawn(self) -> bool:
        """Whether all its attention layers are as drawn, and the stream is finite and not zero."""
        finite = all(math.isfinite(block["rms"]) and block["rms"] > 0 for block in self.blocks)
        return finite and bool(self.layers) and all(layer.is_drawn for layer in self.layers)

    @property
    def growth(self) -> float:
        """Variance of the stream after the last block over that after the first."""
        return float((self.blocks[-1]["rms"] / self.blocks[0]["rms"]) ** 2)


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    layers: list[Layer]
    stacks: list[Stack]
    stream: list[Record]
    epsilon: float
    """Rounding of the model's numbers: the distance from 1 to the next."""
    traits: Record
    """What is known of the architecture, by the names of :class:`~attntut.TransformerConfig`."""

    @classmethod
    def of(cls, report: Measured) -> Facts:
        """Sort a report.

        Example:
            >>> from attntut.diagnose import Report
            >>> rows = [dict(layer=f"blocks.{i}.attention", kind="self", head=0, n_key=8) for i in range(2)]
            >>> stream = [dict(layer=f"blocks.{i}", rms=1.0, token_cosine=0.5) for i in range(2)]
            >>> facts = Facts.of(Report(rows=rows, stream=stream))
            >>> [(stack.name, len(stack), stack.names) for stack in facts.stacks]
            [('blocks', 2, ('blocks.0.attention', 'blocks.1.attention'))]
        """
        if not isinstance(report, Measured):
            raise TypeError(f"report must be a Report: got {type(report).__name__}.")
        groups: dict[tuple[str, str], list[Record]] = {}
        for row in report.rows:
            groups.setdefault((row["layer"], row.get("kind", "self")), []).append(UNKNOWN | row)
        weights: dict[str, dict[str, Record]] = {}
        for record in report.weights:
            weights.setdefault(record["layer"], {}).setdefault(record["role"], record)
        gradients = {record["layer"]: record for record in report.gradients}
        layers = []
        for order, ((name, kind), rows) in enumerate(groups.items()):
            block, cosine = _block(name, report.stream)
            layers.append(Layer(name, kind, order, rows, weights.get(name, {}), gradients.get(name), block, cosine))
        dtype = getattr(torch, str(report.model.get("dtype", "float32")).rpartition(".")[2], torch.float32)
        epsilon = torch.finfo(dtype).eps if isinstance(dtype, torch.dtype) and dtype.is_floating_point else 0.0
        stacks = list(_stacks(layers, report.stream))
        return cls(layers, stacks, report.stream, epsilon, report.model.get("traits", {}))

    @cached_property
    def first_not_finite(self) -> Layer | None:
        """The first layer whose logits, weights or block hold NaN or infinity."""
        return next((layer for layer in self.layers if any(self.not_finite(layer))), None)

    def not_finite(self, layer: Layer) -> tuple[int, list[str], bool]:
        """NaN or infinity: how many of a layer's logits, in the weights of which roles, and in its block's output."""
        roles = [role for role, record in layer.weights.items() if not math.isfinite(record["std"])]
        block = next((entry for entry in self.stream if entry["layer"] == layer.block), None)
        is_last = all(other.block != layer.block for other in self.layers[layer.order + 1 :])
        return layer.total("non_finite"), roles, bool(block and is_last and not math.isfinite(block["rms"]))


def _stacks(layers: list[Layer], stream: list[Record]) -> Iterable[Stack]:
    blocks: dict[str, list[Record]] = {}
    for entry in stream:
        if numbered := re.fullmatch(r"(?:(.*)\.)?\d+", entry["layer"]):
            blocks.setdefault(numbered[1] or "", []).append(entry)
    for name, entries in blocks.items():
        inside = [layer for layer in layers if any(_is_inside(layer.name, entry["layer"]) for entry in entries)]
        yield Stack(name, entries, inside)


def _block(layer: str, stream: list[Record]) -> tuple[str, float]:
    """The block around a layer, and the token cosine before it; a first block's own, which is no smaller as a rule."""
    for i, entry in enumerate(stream):
        if _is_inside(layer, entry["layer"]):
            stack = entry["layer"].rpartition(".")[0]
            before = i > 0 and stream[i - 1]["layer"].rpartition(".")[0] == stack
            return entry["layer"], float(stream[i - 1 if before else i]["token_cosine"])
    return "", math.nan


def _is_inside(layer: str, block: str) -> bool:
    return layer == block or layer.startswith(block + ".")
