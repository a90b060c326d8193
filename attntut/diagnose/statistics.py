"""Sums over attention's rows, taken a few rows at a time: nothing of the size of a map is kept or made."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from attntut.diagnose.axes import FAR, Laid, Part, Piece, counts, piece_of

#: Logits handled at once. Larger is no faster (the passes over a chunk then leave the cache), and costs memory.
CHUNK = 2**18
#: How many times that on another device, where starting an operation costs more than running it.
GPU_CHUNKS = 64
#: A row whose largest weight exceeds this is saturated.
SATURATED = 0.99
# Which keys a mask hides is known where it is seen to be laid on (:class:`~attntut.diagnose.axes.Laid`). Where it is
# not, a logit counts as hidden when it is below −9e3 *and* below −20 times the row's largest: its weight is exactly 0
# then, and a model with huge logits keeps its own.
HIDDEN, TIMES, BLIND = 9e3, 20.0, -5e8
_LOWEST = 1e30  # stands for ∞ where 0 · ∞ must be 0
#: How many queries that see nothing are named.
NAMED = 8

#: Each statistic of a head is a mean over so many of these.
STATISTICS = {
    "logit_mean": "visible",
    "logit_std": "visible",  # the root of a mean square, as the output's RMS
    "logit_max": "rows",  # no mean: the largest
    "entropy": "rows",
    "entropy_share": "rows_with_choice",
    "max_weight": "rows",
    "saturated": "rows_with_choice",
    "first": "rows",
    "self": "rows",
    "sink": "rows",
    "rank_residual": "sequences",
    "token_cosine": "pairs",
    "output_rms": "entries",
}


@dataclass
class Logits:
    """Where logits ``(B, H, n_query, n_key)`` come from, and in which pieces."""

    shape: tuple[int, int, int, int]
    device: torch.device
    piece: Piece  # of two slices and of the first so many keys
    is_causal: bool = False  # query i sees the keys 0 … i only, and no piece need be wider
    diagonal: int | None = None  # the key that query 0 is itself (query i is key i + diagonal)
    blind: Piece | None = None  # True for queries that may see nothing although their logits are finite
    extra: tuple[int, int] = (0, 0)  # how many of the first and of the last columns belong to no token
    covers: Sequence[tuple[Piece, Laid]] = ()  # masks that were laid on, boolean or added
    is_masked: bool = True  # whether a mask may hide whole rows; else −∞ is an overflow (but where is_causal hides)
    product: tuple[int, int, int] | None = None  # heads, queries, keys; whatever the softmax takes them for
    scale: float = math.nan  # what the products of queries and keys are multiplied with, where that is known

    @classmethod
    def of_tensor(
        cls,
        logits: Tensor,
        layout: Sequence[Sequence[Part]] = (),
        *,
        covers: Sequence[tuple[Tensor, Laid]] = (),
        blind: Tensor | None = None,
        shift: Tensor | None = None,
        **options: Any,
    ) -> Logits:
        """The logits that a softmax receives, masks added.

        Args:
            logits: ``(batch …, heads …, n_query, n_key)``, as :func:`~attntut.diagnose.axes.arranged` gives them.
            layout: what tells how many dimensions there are of batch and heads; one each without.
            covers: masks, in the same shape.
            blind: True in the rows of queries that may see nothing, in the same shape.
            shift: what was taken from each row, in the same shape.
            options: the other attributes.
        """
        n_batch, n_heads = counts(layout)
        n, m = logits.shape[-2:]
        B, H = math.prod(logits.shape[:n_batch]), math.prod(logits.shape[n_batch:-2])
        given = piece_of(logits, n_batch, n_heads)
        taken = None if shift is None else piece_of(shift, n_batch, n_heads)

        def piece(sequences: slice, rows: slice, keys: int) -> Tensor:
            part = given(sequences, rows, keys)
            return part if taken is None else part + taken(sequences, rows, keys)

        return cls(
            (B, H, n, m),
            logits.device,
            piece,
            blind=None if blind is None else piece_of(blind, n_batch, n_heads),
            covers=[(piece_of(mask, n_batch, n_heads), each) for mask, each in covers],
            **options,
        )

    @classmethod
    def of_projections(
        cls,
        query: Tensor,
        key: Tensor,
        *,
        scale: float,
        mask: Tensor | None = None,
        is_causal: bool = False,
        level: tuple[float, float | None] | None = None,
        factor: float = 1.0,
        **options: Any,
    ) -> Logits:
        """What a fused kernel computes inside: ``scale · query keyᵀ``, plus the mask.

        Args:
            query: ``(B, H, n_query, d)``.
            key: ``(B, H', n_key, d)``; ``H`` is a multiple of ``H'`` (grouped queries).
            scale: the factor before the softmax.
            mask: boolean (True = may attend) or added; broadcasts to ``(B, H, n_query, n_key)``.
            factor: what queries and keys were multiplied with before.
            level: up to which value an added mask hides, and what it adds if that hides nothing.
            options: the other attributes.
        """
        B, H, n, d = query.shape
        groups, m = key.shape[1], key.shape[2]
        full = None if mask is None else mask.expand(B, H, n, m)  # a view

        def piece(sequences: slice, rows: slice, keys: int) -> Tensor:
            q = _precise(query[sequences, :, rows]) * scale  # (b, H, r, d)
            k = _precise(key[sequences, :, :keys])  # (b, H', keys, d)
            b, _, r, _ = q.shape
            # The queries of a group stand below each other, so that no key is copied.
            logits = (q.reshape(b, groups, H // groups * r, d) @ k.mT).view(b, H, r, keys)
            if is_causal:
                logits.add_(torch.full_like(logits[0, 0], -math.inf).triu_(rows.start + 1))
            if full is None:
                return logits
            part = full[sequences, :, rows, :keys]
            return logits.masked_fill_(~part, -math.inf) if part.dtype == torch.bool else logits.add_(part)

        covers = []
        if full is not None and level is not None:
            covers = [(piece_of(full, 1, 1), Laid(full, (), below=level[0], value=level[1]))]
        options |= {"is_causal": is_causal, "is_masked": mask is not None, "scale": scale * factor}
        return cls((B, H, n, m), query.device, piece, covers=covers, **options)

    def pieces(self) -> Iterator[tuple[Tensor, slice, slice]]:
        """Chunks of logits ``(b, H, r, keys)`` with the sequences and rows that they belong to."""
        B, H, n, m = self.shape
        if not B * H * n * m:
            return
        size = CHUNK * (1 if self.device.type == "cpu" else GPU_CHUNKS)
        several = max(1, size // (H * n * m))  # whole sequences, if one fits
        some = max(1, min(n, size // (H * m)))  # else rows of one
        for start in range(0, B, several):
            for row in range(0, n, some):
                end = min(n, row + some)
                sequences, rows = slice(start, min(B, start + several)), slice(row, end)
                yield self.piece(sequences, rows, min(m, end) if self.is_causal else m), sequences, rows


@dataclass
class Tally:
    """Sums over rows and sequences, a column per head; tallies of the same heads add up.

    Example:
        >>> tally = Tally(n_heads=1)
        >>> tally.add_weights(Logits.of_tensor(torch.tensor([[[[0.0, 0.0], [0.0, -math.inf]]]])))
        >>> [(row["entropy"], row["max_weight"]) for row in tally.heads()]
        [(0.346..., 0.75)]
    """

    n_heads: int
    calls: int = 0
    n_query: int = 0
    n_key: int = 0
    axis: str = "keys"
    input_axis: int | None = None
    scale: float = math.nan

    def __post_init__(self) -> None:
        zeros = partial(torch.zeros, self.n_heads, dtype=torch.float64)
        self.sums: dict[str, Tensor] = defaultdict(zeros)  # (n_heads,) each, on the CPU
        self.fills: dict[float, Tensor] = defaultdict(zeros)  # a number: rows it was filled into, and hides nothing in
        self.largest = zeros() - math.inf  # (n_heads,)
        self.masked_at: list[list[list[int]]] = [[] for _ in range(self.n_heads)]  # [sequence, query], the first few

    def add(self, other: Tally) -> None:
        """Add the sums of another tally of the same heads."""
        self.calls += other.calls
        self.n_query, self.n_key = max(self.n_query, other.n_query), max(self.n_key, other.n_key)
        _add(self.sums, other.sums)
        _add(self.fills, other.fills)
        self.largest = torch.maximum(self.largest, other.largest)
        self.axis = other.axis if other.axis != "keys" else self.axis
        self.input_axis = other.input_axis if self.calls == other.calls or self.input_axis == other.input_axis else None
        self.scale = other.scale if self.calls == other.calls or self.scale == other.scale else math.nan
        for mine, theirs in zip(self.masked_at, other.masked_at, strict=True):
            mine += theirs[: NAMED - len(mine)]

    def add_weights(self, logits: Logits) -> None:
        """Add the rows of one attention."""
        _, _, n, m = logits.shape
        self.calls += 1
        self.n_query, self.n_key = max(self.n_query, n), max(self.n_key, m)
        for chunk, sequences, rows in logits.pieces():
            keys = chunk.shape[-1]
            part = _precise(chunk)
            blind = None if logits.blind is None else logits.blind(sequences, rows, keys)[..., 0]
            if logits.covers:
                laid = [(mask(sequences, rows, keys), each) for mask, each in logits.covers]
                part, nothing, fills = _hide(part, laid)
                blind = nothing if blind is None else blind | nothing
                _add(self.fills, fills)
            diagonal = None if logits.diagonal is None else logits.diagonal + rows.start
            sums, largest, masked = _row_sums(part, logits, blind=blind, diagonal=diagonal)
            _add(self.sums, sums)
            self.largest = torch.maximum(self.largest, largest)
            if bool(sums["masked_rows"].any()):
                for sequence, head, row in masked.nonzero().tolist():
                    if len(self.masked_at[head]) < NAMED:
                        self.masked_at[head].append([sequences.start + sequence, rows.start + row])

    def add_output(self, output: Tensor) -> None:
        """Add what the heads hand on, ``(B, H, n, d)``."""
        square, total, cosine = token_sums(output)
        residual = rank_residual(output, square, total)
        finite, size = square.isfinite(), output.shape[-2] * output.shape[-1]
        _add(self.sums, {"output_non_finite": (~finite).sum(0).cpu().double()})
        measured = ("rank_residual", residual, 1), ("token_cosine", cosine, 1), ("output_rms", square, size)
        for name, value, times in measured:
            kept = finite & value.isfinite()
            sums = {name: value.where(kept, 0).sum(0), STATISTICS[name]: kept.sum(0) * times}
            _add(self.sums, {each: total.cpu().double() for each, total in sums.items()})

    def heads(self) -> list[dict[str, Any]]:
        """The statistics of each head, as in :class:`~attntut.diagnose.Report`; NaN where nothing was counted."""
        columns = {name: self.sums[name] / self.sums[number] for name, number in STATISTICS.items()}
        columns |= {name: columns[name].sqrt() for name in ("logit_std", "output_rms")}
        columns["logit_max"] = self.largest.where(self.sums["rows"] > 0, math.nan)
        columns |= {name: self.sums[name].long() for name in ("non_finite", "masked_rows", "output_non_finite")}
        listed: dict[str, list[Any]] = {name: column.tolist() for name, column in columns.items()}
        listed["masked_at"] = self.masked_at
        listed["visible_fill"] = [
            next((value for value, rows in self.fills.items() if 2 * rows[1, head] > rows[0, head]), None)
            for head in range(self.n_heads)
        ]
        shared = {"axis": self.axis, "input_axis": self.input_axis, "scale": self.scale}
        listed |= {name: [value] * self.n_heads for name, value in shared.items()}
        return [{name: column[head] for name, column in listed.items()} for head in range(self.n_heads)]


def token_sums(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of squares of each sequence, sum of its tokens, and mean cosine of two different tokens, in chunks.

    Equal to :func:`attntut.measure.token_cosine`; NaN where there is no such number.

    Args:
        x: ``(B, H, n, d)``.

    Returns:
        ``(B, H)``, ``(B, H, d)`` and ``(B, H)``, in float64 where the device has it.

    Example:
        >>> token_sums(torch.tensor([[[[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]]]))[2]
        tensor([[0.3333]], dtype=torch.float64)
    """
    B, H, n, d = x.shape
    exact = _exact(x)
    total, direction = x.new_zeros((2, B, H, d), dtype=exact)
    square, same = x.new_zeros((2, B, H), dtype=exact)
    for part in _few_tokens(x):
        norm = torch.linalg.vector_norm(part, dim=-1)  # (B, H, r)
        inverse = 1 / norm.clamp(min=1e-12)
        total += part.sum(-2)
        direction += (inverse[..., None, :] @ part)[..., 0, :]
        square += norm.square().sum(-1, dtype=exact)
        same += (norm * inverse).square().sum(-1, dtype=exact)
    return square, total, (direction.square().sum(-1) - same) / (n * (n - 1) or math.nan)


def rank_residual(x: Tensor, square: Tensor, total: Tensor) -> Tensor:
    """:func:`attntut.measure.rank_residual` (relative, Frobenius) in chunks, from :func:`token_sums`: ``(B, H)``."""
    residual = torch.zeros_like(square)
    for part in _few_tokens(x):
        mean = (total / x.shape[-2])[..., None, :].to(part.dtype)
        residual += torch.linalg.vector_norm(part - mean, dim=(-2, -1)).square()
    return (residual / square).sqrt()


def _few_tokens(x: Tensor) -> Iterator[Tensor]:
    """Chunks of tokens ``(B, H, n, d)``."""
    B, H, n, d = x.shape
    return map(_precise, x.split(max(1, CHUNK // max(1, B * H * d)), dim=-2) if n else ())


def norm(x: Tensor) -> float:
    """The Frobenius norm, in single precision at least.

    >>> norm(torch.tensor([3.0, 4.0], dtype=torch.float16))
    5.0
    """
    return torch.linalg.vector_norm(x.detach(), dtype=torch.promote_types(x.dtype, torch.float32)).item()


def attention_rows(logits: Logits, sequence: int, rows: Tensor) -> Tensor:
    """The weights of a few rows of one sequence, for pictures: ``(H, len(rows), n_key)`` on the CPU."""
    _, _, _, m = logits.shape
    kept = []
    for row in rows.tolist():
        part = _precise(logits.piece(slice(sequence, sequence + 1), slice(row, row + 1), m))[0, :, 0]  # (H, m)
        kept.append(part.softmax(-1).nan_to_num(0).cpu())
    return torch.stack(kept, dim=1)


def _hide(logits: Tensor, covers: Sequence[tuple[Tensor, Laid]]) -> tuple[Tensor, Tensor, dict[float, Tensor]]:
    """Minus infinity where masks hide ``(b, H, r, m)`` logits.

    Returns:
        The logits; ``(b, H, r)``, True for queries that see nothing; and of each number that was filled in ``(2, H)``:
        how many rows hold it, and in how many of them it hides nothing.
    """
    laid = [(mask if each.below is None else mask * each.factor <= each.below, each.value) for mask, each in covers]
    covered = reduce(torch.logical_or, (mask for mask, _ in laid))
    top = logits.masked_fill(covered, -math.inf).amax(-1)  # (b, H, r), of what no mask covers
    alone = (top == -math.inf) & covered.any(-1)
    nothing = alone & (logits.amax(-1) < -FAR)
    hidden = covered & (logits < (top - FAR)[..., None])
    fills = {}
    for mask, value in laid:
        if value is not None:
            known = ~alone & ~top.isnan()
            holds, shows = mask.any(-1) & known, (mask & ~hidden).any(-1) & known
            fills[value] = torch.stack([holds.sum((0, 2)), shows.sum((0, 2))]).cpu()
    return logits.masked_fill(hidden, -math.inf), nothing, fills


def _row_sums(
    logits: Tensor, of: Logits, *, blind: Tensor | None, diagonal: int | None
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """The sums over the rows of ``(b, H, r, m)`` logits, ``(H,)`` each; the largest |logit| of each head; and which
    rows see nothing, ``(b, H, r)``."""
    m, extra, n_key = logits.shape[-1], of.extra, of.shape[-1]
    low, top = logits.amin(-1), logits.amax(-1)  # (b, H, r); NaN if the row holds one
    cut = -(top.abs() * TIMES).clamp(min=HIDDEN)
    broken = ~(top < math.inf)
    if not of.is_masked:
        broken |= (top if of.is_causal else low) == -math.inf
    masked = (top <= BLIND) & of.is_masked
    if blind is not None:
        masked = masked | blind
    valid = ~(broken | masked)
    weights = logits.softmax(-1)  # in one operation, faster than its exponential alone; 0 where hidden
    deviation = logits - top[..., None]  # ≤ 0 where it counts
    seen, count = None, torch.full_like(top, m)
    if bool((~valid | (low < cut)).any()):
        # Zeros and ones of the logits' dtype: products with them are many times faster than boolean masks.
        seen = torch.ge(logits, cut[..., None], out=torch.empty_like(logits))
        count = seen.sum(-1)
        deviation.nan_to_num_(0, 0, -_LOWEST).mul_(seen)
        low = deviation.amin(-1) + top
    choice = valid & (count > 1)
    largest_weight = weights.amax(-1)
    entropy = -largest_weight.log() - (weights * deviation).sum(-1)  # ln Σ exp(s − top) − Σ p (s − top)
    mean = deviation.sum(-1) / count
    deviation.sub_(mean[..., None])
    if seen is not None:
        deviation.mul_(seen)
    itself = sink = torch.full_like(top, math.nan)
    if diagonal is not None:
        found = weights.diagonal(diagonal, dim1=-2, dim2=-1)  # (b, H, ≤ r)
        itself = torch.nn.functional.pad(found, (0, top.shape[-1] - found.shape[-1]))
    if any(extra):
        sink = weights[..., : extra[0]].sum(-1) + weights[..., n_key - extra[1] :].sum(-1)
    over_rows = {
        "rows": torch.ones_like(top),
        "visible": count,
        "logit_mean": (mean + top) * count,
        "logit_std": torch.linalg.vector_norm(deviation, dim=-1).square(),
        "entropy": entropy,
        "entropy_share": (entropy / count.log()).where(choice, 0),
        "rows_with_choice": choice.to(top),
        "max_weight": largest_weight,
        "saturated": ((largest_weight > SATURATED) & choice).to(top),
        "first": weights[..., min(extra[0], m - 1)],
        "self": itself,
        "sink": sink,
    }
    counts = {"non_finite": broken, "masked_rows": masked}
    if bool(broken.any()):
        counts["non_finite"] = (~((logits if of.is_masked or of.is_causal else logits.abs()) < math.inf)).sum(-1)
    columns = [each.where(valid, 0) for each in over_rows.values()] + [each.to(top) for each in counts.values()]
    sums = torch.stack(columns).sum((1, 3), dtype=_exact(top)).cpu().double()
    largest = torch.maximum(top.abs(), low.abs()).masked_fill(~valid, -math.inf).amax((0, 2)).cpu().double()
    return dict(zip((*over_rows, *counts), sums, strict=True)), largest, masked


def _add(sums: dict[Any, Tensor], others: Mapping[Any, Tensor]) -> None:
    for name, each in others.items():
        sums[name] = sums[name] + each


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _exact(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64  # the one device without float64
