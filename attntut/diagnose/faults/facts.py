"""A report sorted for judging it: attention layers, each with its weights and its block, and stacks of blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import torch

from attntut.anatomy.depth import SIDE

Record = dict[str, Any]
_NUMBERS = ("logit_std", "logit_max", "entropy", "max_weight", "saturated", "first", "self")
UNKNOWN: Record = dict.fromkeys(_NUMBERS, math.nan) | dict.fromkeys(
    ("non_finite", "masked_rows", "output_non_finite"), 0
)


@runtime_checkable
class Measured(Protocol):
    """What is judged: the plain data of a :class:`~attntut.diagnose.Report`."""

    rows: list[Record]
    stream: list[Record]
    gradients: list[Record]
    weights: list[Record]
    model: Record


def relative_error(record: Record) -> float:
    """Standard error of a measured standard deviation over it, for Gaussian entries: 1/√(2N).

    >>> round(relative_error(dict(fan_in=64, fan_out=128)), 4), round(relative_error(dict(fan_in=512, fan_out=4096)), 4)
    (0.0078, 0.0028)
    """
    sides = (math.ceil(n / math.ceil(n / SIDE)) for n in (record["fan_in"], record["fan_out"]))
    return (2 * math.prod(sides)) ** -0.5


@dataclass(frozen=True, eq=False)
class Layer:
    """One attention layer.

    Attributes:
        name: of the module.
        kind: ``"self"`` or ``"cross"``.
        order: its number in the forward pass.
        rows: one a head; what was not measured is NaN, 0 for a count, or missing.
        weights: the record of each role, where they could be read.
        gradients: the record of the gradients, or None.
        block: name of the block of the stream that it is in; empty if there is none.
        is_first: whether that is the first of its stack.
        cosine: mean cosine of the tokens that come in, as far as the stream tells; NaN otherwise.
    """

    name: str
    kind: str
    order: int
    rows: list[Record]
    weights: dict[str, Record]
    gradients: Record | None
    block: str
    is_first: bool
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
        """Whether the query and key matrices are as drawn, not learned; None where they could not be read.

        Use ``is True`` and ``is False``: what is not known is neither.
        """
        known = [self.weights[role].get("drawn") for role in ("query", "key") if role in self.weights]
        return None if len(known) < 2 or None in known else all(known)

    @property
    def is_fully_masked(self) -> bool:
        """Whether no query may see a key, and not because of NaN."""
        seen = self.total("non_finite") > 0 or any(math.isfinite(row["entropy"]) for row in self.rows)
        return self.total("masked_rows") > 0 and not seen

    @property
    def is_partly_masked(self) -> bool:
        """Whether some queries may see no key, and others may."""
        return self.total("masked_rows") > 0 and not self.is_fully_masked

    def mean(self, statistic: str) -> float:
        """Average over the heads that have the number."""
        numbers = [row[statistic] for row in self.rows if math.isfinite(row.get(statistic, math.nan))]
        return fmean(numbers) if numbers else math.nan

    def total(self, statistic: str) -> int:
        """Sum over the heads."""
        return sum(row.get(statistic, 0) for row in self.rows)

    def of(self, role: str, number: str) -> float:
        """A number of a weight's record; NaN where the weight could not be read."""
        return float(self.weights.get(role, {}).get(number, math.nan))

    def std(self, role: str) -> float:
        """Standard deviation of a weight."""
        return self.of(role, "std")

    @property
    def d_head(self) -> float:
        """Width of a query."""
        return self.of("query", "fan_out") / len(self.rows)

    def gain(self, role: str) -> float:
        """σ·√fan_in: the factor by which a random matrix multiplies the scale of a vector; NaN instead of 0."""
        return self.std(role) * math.sqrt(self.of(role, "fan_in")) or math.nan

    def is_zero(self, role: str) -> bool:
        """Whether a weight is known, and zero."""
        record = self.weights.get(role)
        return record is not None and record["std"] == 0 and record["mean"] == 0

    def heads(self, rows: list[Record]) -> tuple[int, ...]:
        """The heads of some of the rows, or none if it is all of them."""
        return () if len(rows) == len(self.rows) else tuple(row["head"] for row in rows)


@dataclass(frozen=True)
class Stack:
    """Blocks in a row: the stream that each hands on, the attention layers inside, and the records of the weights.

    Attributes:
        blocks: the entries of the stream.
        layers: the attention layers, in the order of the forward pass.
        weights: the records of each block.
    """

    blocks: list[Record]
    layers: list[Layer]
    weights: list[list[Record]]

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

    @cached_property
    def apart(self) -> list[float]:
        """1 − token cosine of what each block hands on."""
        return [1 - block["token_cosine"] for block in self.blocks]

    @cached_property
    def variance(self) -> list[float]:
        """Of what each block hands on; its mean square."""
        return [block["rms"] ** 2 for block in self.blocks]

    @property
    def is_drawn(self) -> bool:
        """Whether all its attention layers are known to be as drawn, and the stream is finite and not zero."""
        return all(0 < each < math.inf for each in self.variance) and all(layer.is_drawn for layer in self.layers)


@dataclass(frozen=True)
class Facts:
    """What the rules look at."""

    layers: list[Layer]
    stacks: list[Stack]
    stream: list[Record]
    weights: list[Record]
    epsilon: float
    """Rounding of the model's numbers: the distance from 1 to the next."""
    traits: Record
    """What is known of the architecture, by the names of :class:`~attntut.TransformerConfig`."""
    adjustable_by: tuple[str, ...]
    """The methods of :mod:`attntut.adjust` that fit the model."""
    is_random: bool = False
    """Whether the model is in evaluation mode, and drew random numbers."""
    gain_std: float = math.nan
    """Std of the entries of a norm's gains: 0 where all are as they began. NaN is unknown."""

    @classmethod
    def of(cls, report: Measured) -> Facts:
        """Sort a report.

        Example:
            >>> from attntut.diagnose import Report
            >>> rows = [dict(layer=f"blocks.{i}.attention", kind="self", head=0, n_key=8) for i in range(2)]
            >>> stream = [dict(layer=f"blocks.{i}", rms=1.0, token_cosine=0.5) for i in range(2)]
            >>> facts = Facts.of(Report(rows=rows, stream=stream))
            >>> [(len(stack), stack.names) for stack in facts.stacks]
            [(2, ('blocks.0.attention', 'blocks.1.attention'))]
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
            roles = weights.get(name, {})
            layers.append(Layer(name, kind, order, rows, roles, gradients.get(name), *_block(name, report.stream)))
        dtype = getattr(torch, str(report.model.get("dtype", "float32")).rpartition(".")[2], torch.float32)
        epsilon = torch.finfo(dtype).eps if isinstance(dtype, torch.dtype) and dtype.is_floating_point else 0.0
        stacks = _stacks(layers, report.stream, report.weights)
        traits, adjustable_by = report.model.get("traits", {}), tuple(report.model.get("adjustable_by", ()))
        is_random = bool(report.model.get("random")) and report.model.get("training") is False
        gain_std = float(report.model.get("gain_std", math.nan))
        return cls(layers, stacks, report.stream, report.weights, epsilon, traits, adjustable_by, is_random, gain_std)

    names = ("(model)",)
    order = 0

    @property
    def model(self) -> list[Facts]:
        """Itself: what the rules are asked about that look at all layers at once."""
        return [self]

    def explained(self, records: list[Record]) -> set[str]:
        """The schemes that account for all these weights."""
        return set.intersection(*(set(each.get("looks_like") or ()) for each in records))

    def layer_of(self, record: Record) -> tuple[str, int]:
        """The attention layer that a weight is in or beside (in one block), else its own module; and the order."""
        own = record["layer"]
        block = next((entry["layer"] for entry in self.stream if _is_inside(own, entry["layer"])), None)
        for layer in self.layers:
            if _is_inside(own, layer.name) or (block and layer.block == block):
                return layer.name, layer.order
        return own, len(self.layers)

    @cached_property
    def first_not_finite(self) -> Layer | None:
        """The first layer whose logits, weights or block hold NaN or infinity."""
        return next((layer for layer in self.layers if any(self.not_finite(layer))), None)

    def block(self, layer: Layer) -> Record | None:
        """The entry of the stream for the block that a layer is in."""
        return next((entry for entry in self.stream if entry["layer"] == layer.block), None)

    def not_finite(self, layer: Layer) -> tuple[int, list[str], bool]:
        """NaN or infinity: how many of a layer's logits, in the weights of which roles, and in what is handed on."""
        roles = [role for role, record in layer.weights.items() if not math.isfinite(record["std"])]
        block = self.block(layer)
        is_last = all(other.block != layer.block for other in self.layers[layer.order + 1 :])
        in_block = bool(block and is_last and not math.isfinite(block["rms"]))
        in_heads = block is None and layer.total("output_non_finite") > 0
        return layer.total("non_finite"), roles, in_block or in_heads


def _stacks(layers: list[Layer], stream: list[Record], weights: list[Record]) -> list[Stack]:
    containers: dict[str, list[Record]] = {}
    for entry in stream:
        containers.setdefault(entry["layer"].rpartition(".")[0], []).append(entry)
    stacks = []
    for blocks in containers.values():
        names = [entry["layer"] for entry in blocks]
        inside = [layer for layer in layers if any(_is_inside(layer.name, name) for name in names)]
        records = [[record for record in weights if _is_inside(record["layer"], name)] for name in names]
        if inside:
            stacks.append(Stack(blocks, inside, records))
    return stacks


def _block(layer: str, stream: list[Record]) -> tuple[str, bool, float]:
    """The block around a layer, whether it is its stack's first, and the token cosine before it; a first block's own,
    which is no smaller as a rule."""
    for i, entry in enumerate(stream):
        if _is_inside(layer, entry["layer"]):
            stack = entry["layer"].rpartition(".")[0]
            is_first = i == 0 or stream[i - 1]["layer"].rpartition(".")[0] != stack
            return entry["layer"], is_first, float(stream[i if is_first else i - 1]["token_cosine"])
    return "", False, math.nan


def _is_inside(layer: str, block: str) -> bool:
    return layer == block or layer.startswith(block + ".")
