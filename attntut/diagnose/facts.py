"""A report sorted for judging it: attention layers, each with its weights and its block, and stacks of blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from attntut.diagnose.report import COUNTS, STATISTICS, Report

Record = dict[str, Any]
UNKNOWN: Record = dict.fromkeys(STATISTICS, math.nan) | dict.fromkeys(COUNTS, 0)


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


@dataclass(frozen=True)
class Stack:
    """Blocks in a row: the stream that each hands on, and the attention layers inside."""

    name: str
    blocks: list[Record]
    layers: list[Layer]

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def is_drawn(self) -> bool:
        """Whether all its attention layers are as drawn."""
        return bool(self.layers) and all(layer.is_drawn for layer in self.layers)


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


def facts(report: Report) -> Facts:
    """Sort a report.

    Example:
        >>> rows = [dict(layer=f"blocks.{i}.attention", kind="self", head=0, n_key=8) for i in range(2)]
        >>> stream = [dict(layer=f"blocks.{i}", rms=1.0, token_cosine=0.5) for i in range(2)]
        >>> sorted_ = facts(Report(rows=rows, stream=stream))
        >>> [(stack.name, len(stack), [layer.name for layer in stack.layers]) for stack in sorted_.stacks]
        [('blocks', 2, ['blocks.0.attention', 'blocks.1.attention'])]
    """
    if not isinstance(report, Report):
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
    return Facts(layers, list(_stacks(layers, report.stream)), report.stream, epsilon, report.model.get("traits", {}))


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
