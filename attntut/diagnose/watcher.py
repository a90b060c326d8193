"""Recognizes attention among the operations that torch runs: by what is multiplied with what, not by names."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from attntut.diagnose.axes import (
    Axes,
    Axis,
    Laid,
    Part,
    arranged,
    counts,
    far_below,
    follow,
    laid,
    parts,
    strides,
    two_levels,
)
from attntut.diagnose.statistics import Logits

if TYPE_CHECKING:
    from attntut.diagnose.recorder import Recorder

aten = torch.ops.aten
PRODUCTS = {aten.bmm: 0, aten.baddbmm: 1, aten.mm: 0, aten.addmm: 1}  # and the position of the left factor
SOFTMAX = {aten._softmax, aten._safe_softmax, aten.softmax}  # the last with out=
ADDED = {aten.add: 1, aten.add_: 1, aten.sub: -1, aten.sub_: -1}  # and the sign of what is added
FILLED = {aten.masked_fill, aten.masked_fill_, aten.where, aten.index_put, aten.index_put_}
SCALED = {aten.div, aten.div_, aten.mul, aten.mul_}
COPIED = {aten.clone, aten._to_copy}
# After these, sizes may differ:
MOVED = {aten.copy_, aten.cat, aten.stack, aten.constant_pad_nd, aten.index_copy, aten.slice_scatter}
EMPTY = ("_like", "new_", "empty", "bernoulli")  # of the size of an argument, without its numbers
# What memory holds; the first wins. A written-out softmax has exponentials, their total, and a numerator (their product
# with the values); features are what a projection gives, "learned" is repetitions of a parameter, "made" is computed
# from nothing but parameters and buffers (a normalized, scaled or copied matrix).
KINDS = ("weights", "numerator", "exponential", "scores", "total", "features", "learned", "parameter", "made")
COMPILED = ("<eval_with_key>", "torchinductor", "/torch/_inductor/")  # names of files whose code is generated
WHAT_TO_DO = "To have it measured, write the attention out, or call F.scaled_dot_product_attention"
WHOLE = torch._C.DispatchKey.CompositeImplicitAutograd
NESTED = f"Nested tensors hide the rows of an attention: it was not measured. {WHAT_TO_DO} on padded tensors."
Finish = Callable[[Tensor | None, str], None]
Level = tuple[float, float | None]  # of an added mask: its entries up to here hide; what is added if they do not


@dataclass
class Pending:
    """Weights on the way to their values."""

    finish: Finish  # the sink's
    was: str | None  # what the attended axis is in the product of queries and keys
    is_done: bool = False  # whether they have met
    is_competition: bool = False  # whether the weights were divided by their sum along another axis since
    is_twice: bool = False  # whether they went through a second softmax

    def __call__(self, output: Tensor | None = None, axis: str = "keys") -> None:
        if not self.is_done:
            self.is_done = True
            axis = "competition" if self.is_competition and axis == "queries" else axis
            self.finish(output, "weights" if self.is_twice and axis == "keys" else axis)


@dataclass
class Mark:
    """What a piece of memory holds.

    Axes are ``"features"`` and ``"rows"``; of scores ``"queries"``, ``"keys"``, ``"heads"`` and ``"batch"``; of weights
    ``"attended"`` where the softmax runs along. None is unknown.
    """

    memory: StorageWeakRef  # keeps the address from being given to another tensor
    kind: str  # one of KINDS
    axes: Axes = ()
    rank: int = 0  # of scores: the number of dimensions of the product
    known: bool = False  # of scores: whether the axes tell heads from the batch
    is_inside: bool = False  # of scores: whether a token is compared with nothing but parts of itself
    laid: tuple[Laid, ...] = ()  # of scores: masks
    is_masked: bool = False  # of scores: whether a mask may be on them, known or not
    shift: Laid | None = None  # of scores: what was taken from every row
    blind: Laid | None = None  # of scores: rows that were made harmless, because they may see nothing
    extra: tuple[int, int] = (0, 0)  # columns of scores, rows of keys that belong to no token: before, behind
    factor: float = 1.0  # what a projection, or the product of two, was multiplied with since; NaN is unknown
    finish: Pending | None = None  # of weights: told of their product with the values


class Watcher(TorchDispatchMode):
    """Sees every operation of the thread that entered it; tells the sink of attentions. Changes nothing."""

    supports_higher_order_operators = True

    def __init__(self, sink: Recorder) -> None:
        super().__init__()
        self.sink = sink
        self.marks: dict[int, Mark] = {}
        self.rules: dict[Any, Callable[..., None] | None] = {}
        self.own = dict.fromkeys(SOFTMAX, self._softmax) | dict.fromkeys(PRODUCTS, self._product)
        self.own |= {aten.convolution: self._convolution, aten.embedding: self._embedding, aten.sum: self._total}
        self.own[aten.linalg_vector_norm] = self._total
        self.own |= dict.fromkeys((aten.exp, aten.exp_), self._exponential)
        self.own |= {aten.logsumexp: self._total, aten._log_softmax: self._log_softmax}
        self.composite: set[Any] = set()
        self.levels: dict[tuple[Any, ...], tuple[StorageWeakRef, Level | None]] = {}  # how far down added masks hide
        self.seen: Counter[str] = Counter()  # how many operations of which kind came by
        self.undivided: list[Pending] = []  # exponentials that met values, not divided by their sum so far

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code stay compiled; it is not seen."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rule = self.rules[func] if func in self.rules else self._learn(func)
        if func in self.composite and not types and not any(map(_is_nested, args)):
            with self:  # under torch.inference_mode they come whole: let torch's own kernel take them apart
                return func._op_dk(WHOLE, *args, **kwargs)
        if func is aten._local_scalar_dense.default and not isinstance(args[0], Tensor):
            return args[0]  # the 50.0 of ``50.0 * x``, saved for the backward pass, comes here as a number
        out = func(*args, **kwargs)
        if rule is not None and self.sink.is_listening():
            try:
                rule(func, args, kwargs, out)
            except Exception as error:  # a fault of ours must not end the user's run
                self.sink.note(f"An attention could not be measured: {type(error).__name__}: {error}")
        return out

    def forget(self) -> None:
        """Drop what is known of memory; at the beginning of a step."""
        self.marks.clear()
        self.levels.clear()

    def _learn(self, func: Any) -> Callable[..., None] | None:
        packet = getattr(func, "_overloadpacket", func)
        name = str(func).lower()
        rule: Callable[..., None] | None = self.own.get(packet, self._carry)
        if "backward" in name or any(each in name for each in EMPTY):
            rule = None
        elif name.startswith("aten._scaled_dot_product"):
            rule = self._fused
        elif "attention" in name or "flash_attn" in name:
            rule = self._unknown_attention
        self.rules[func] = rule
        if isinstance(func, torch._ops.OpOverload) and _has_whole(func):
            self.composite.add(func)
        return rule

    # ---- the parts of an attention that is written out

    def _product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        position = PRODUCTS[func._overloadpacket]
        left, right = args[position : position + 2]
        is_one = out.ndim == 2 or len(out) == 1  # a matrix for all sequences, or a query that is learned
        is_parameter = self._is_parameter(left, is_one), self._is_parameter(right, is_one)
        marks = self._mark(left), self._mark(right)
        both = ((marks[0], left, -1, is_parameter[1]), (marks[1], right, -2, is_parameter[0]))
        for mark, weights, dim, is_learned in both:
            if mark is None or mark.kind not in ("weights", "scores", "exponential"):
                continue
            along = {part.role for part in parts(weights, mark.axes, dim)}
            others = {part.role for at in range(weights.ndim) for part in parts(weights, mark.axes, at)} - along
            if along and along <= {"heads", None} and len(others & {"queries", "keys", "attended"}) == 2:
                self._remember(out, _mixed(mark, weights, out, dim))  # talking heads
                return
            along -= {None}
            if mark.kind == "exponential":
                self._remember(out, Mark(_memory(out), "numerator", finish=mark.finish))
                self.undivided += [mark.finish] if mark.finish else []
                return
            if mark.kind == "weights" and mark.finish:
                was = mark.finish.was
                if not along or "attended" in along:
                    mark.finish(_handed_on(mark, weights, out, dim), "features" if was == "features" else "keys")
                elif not is_learned and along != {"heads"}:  # else the weights of one query are added up over its heads
                    mark.finish(axis=was if was in ("heads", "batch") else "queries")
                return
        if any(is_parameter):
            self._remember(out, _projected(left, right, out, *is_parameter))
            return
        self.seen["products of two computed tensors"] += 1
        self._look_for_compiled()
        mark = _scores(left, right, out, *marks)
        mark.factor *= float(kwargs.get("alpha", 1))
        if func._overloadpacket is aten.baddbmm and kwargs.get("beta", 1) != 0:
            mark.laid, mark.is_masked = self._added(out, args[0], float(kwargs.get("beta", 1))), True
        self._remember(out, mark)

    def _convolution(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        source = self._mark(args[0])
        if source is not None and source.kind in ("weights", "scores") and out.shape[2:] == args[0].shape[2:]:
            self._remember(out, _moved(source, args[0], out))
            return
        roles = ["features" if dim == 1 else "rows" for dim in range(out.ndim)]
        self._remember(out, Mark(_memory(out), "features", _named(out, roles)))

    def _embedding(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        self._remember(out, Mark(_memory(out), "features", _named(out, ["rows"] * (out.ndim - 1) + ["features"])))

    def _carry(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        packet = func._overloadpacket if hasattr(func, "_overloadpacket") else None
        result = out[0] if isinstance(out, tuple | list) and out else out
        if not isinstance(result, Tensor):
            return
        listed = (each if isinstance(each, tuple | list) else (each,) for each in args)
        tensors = [each for some in listed for each in some if isinstance(each, Tensor)]
        marked = [(mark, each) for each in tensors if (mark := self._mark(each)) is not None]
        if not tensors:
            return
        if packet in (aten._to_copy, aten.repeat) and self._is_parameter(tensors[0]):  # autocast's copies
            kind = "parameter" if packet is aten._to_copy else "learned"
            self._remember(result, Mark(_memory(result), kind))
            return
        if self._is_made(tensors):
            if not self._is_parameter(result, True):  # a view is what it was
                self._remember(result, Mark(_memory(result), "made"))
            return
        marked = [each for each in marked if each[0].kind != "made"]
        if not marked:
            return
        mark, source = min(marked, key=lambda each: (KINDS.index(each[0].kind), -each[1].numel()))
        if packet is aten.stack:
            source = source.unsqueeze(args[1] if len(args) > 1 else kwargs.get("dim", 0))
        if not _goes_on(packet, mark.kind, source, result):
            return
        totals = [each.finish for each, _ in marked if each.kind == "total" and each.finish]
        if packet in SCALED and mark.finish and any(each is mark.finish for each in totals):
            if mark.kind == "numerator":  # divided after the product with the values
                mark.finish()
                return
            mark.finish.is_competition = mark.kind == "weights"
            mark = replace(mark, kind="weights")
        if mark.kind == "weights" and packet is aten.mul and result.numel() > source.numel() and mark.finish:
            mark.finish()  # averaged without a product of matrices
            return
        if packet in SCALED:
            mark = replace(mark, factor=mark.factor * _factor(packet, args, source))
        if _key(result) != _key(source):
            mark = _moved(mark, source, result)
            if packet is aten.cat:
                mark.extra = self._extra(mark, source, tensors, args[1] if len(args) > 1 else kwargs.get("dim", 0))
            self._remember(result, mark)
        elif packet in SCALED:
            self._remember(result, mark)
        if mark.kind == "scores":
            self._lay(mark, func, args, kwargs, source, result)

    def _lay(
        self, mark: Mark, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Tensor, result: Tensor
    ) -> None:
        """Keep what is laid upon scores: an added mask, a number that is filled in, what is taken from each row."""
        packet, was_masked = func._overloadpacket, mark.is_masked
        is_view = _key(result) == _key(source) and not func._schema.is_mutable
        mark.is_masked |= not (is_view or packet in SCALED or packet in COPIED)
        is_whole = result.numel() * result.element_size() == result.untyped_storage().nbytes()
        if packet in ADDED and len(args) > 1 and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            other = args[1] if args[0] is source else args[0]
            kind = each.kind if (each := self._mark(other)) is not None else ""
            if kind in ("scores", "weights", "exponential") or not is_whole or not other.ndim:
                return
            factor = ADDED[packet] * float(kwargs.get("alpha", 1))
            reduced = [dim for dim in range(-other.ndim, 0) if other.shape[dim] == 1 and result.shape[dim] > 1]
            if factor == -1 and other is args[1] and other.ndim == result.ndim and len(reduced) == 1:
                mark.shift, mark.is_masked = Laid(other.expand(result.shape), tuple(strides(result))), was_masked
                if kind == "total":  # the logarithm of the sum of exponentials: what comes are logarithms of weights
                    mark.axes = _attended(mark.axes, strides(result)[reduced[0]])
            elif other is args[1] or factor > 0:
                mark.laid += self._added(result, other, factor)
        elif packet in (aten.mul, aten.mul_) and is_whole and isinstance(args[1], Tensor):
            other = args[1] if args[0] is source else args[0]
            if self._is_given(other) and not other.is_meta and two_levels(other) == (0, 1):
                mark.laid += (Laid(other.expand(result.shape), tuple(strides(result)), below=0.5, value=0.0),)
        elif packet in FILLED and is_whole:
            where, value = _filled(func, args, source)
            if where is None or value is None or not math.isfinite(value):
                return
            covers = Laid(where.expand(result.shape), tuple(strides(result)), value=value)
            if value == 0 and where.shape[-1:] == (1,):
                mark.blind = covers  # whole rows made harmless before the softmax, to be zeroed after it
            else:
                mark.laid += (covers,)

    def _added(self, scores: Tensor, mask: Tensor, factor: float) -> tuple[Laid, ...]:
        level = self._level(mask, factor)
        if level is None:
            return ()
        below, value = level
        return (Laid(mask.expand(scores.shape), tuple(strides(scores)), below=below, factor=factor, value=value),)

    def _level(self, mask: Tensor, factor: float = 1.0) -> Level | None:
        """As :func:`far_below`, or of a mask of two levels that are not far apart; once a step for many layers."""
        if mask.is_meta:
            return None
        version = -1 if mask.is_inference() else mask._version
        place = (_key(mask), mask.storage_offset(), mask.shape, mask.stride(), factor, version)
        if place not in self.levels or self.levels[place][0].expired():
            level: Level | None = None
            if (below := far_below(mask, factor)) is not None:
                level = below, None
            elif not math.isinf(factor) and self._is_given(mask) and (two := two_levels(mask)) is not None:
                low, high = sorted(factor * each for each in two)
                level = ((low + high) / 2, low - high) if math.isfinite(low) else None
            self.levels[place] = _memory(mask), level
        return self.levels[place][1]

    def _extra(self, mark: Mark, source: Tensor, tensors: list[Tensor], dim: int) -> tuple[int, int]:
        """Columns or rows without a token, after something was put before or behind ``source``."""
        role = {part.role for part in parts(source, self.marks[_key(source)].axes, dim)}
        if not role & {"keys", "rows"} or mark.kind not in ("scores", "features"):
            return mark.extra
        before, behind, is_before = *mark.extra, True
        for each in tensors:
            if each is source:
                is_before = False
                continue
            other = self._mark(each)
            belongs = not each.numel() or (other is not None and other.kind == mark.kind)
            if mark.kind == "features" and not belongs:
                is_learned = self._is_parameter(each) or (other is not None and other.kind == "learned")
                belongs = not is_learned and (each.is_meta or bool(each.count_nonzero()))
            if not belongs:
                before, behind = before + is_before * each.shape[dim], behind + (not is_before) * each.shape[dim]
        return before, behind

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        logits, dim = args[0], args[1]
        self.seen["softmaxes"] += 1
        if logits.is_nested:
            self.sink.note(NESTED)
            return
        if logits.ndim < 2:
            return
        mark = self._mark(logits)
        if mark is not None and mark.kind == "weights" and mark.finish:
            mark.finish.is_twice = True
            self._remember(out, _moved(mark, logits, out))
            return
        if mark is None or mark.kind != "scores" or (mark.rank == 2 and logits.ndim > 2):
            if logits.ndim > 2:
                self.sink.skipped_softmax()
            return
        if _key(out) == _key(logits):
            self.sink.note(f"A softmax wrote over its logits: that attention was not measured. {WHAT_TO_DO}.")
            return
        self._attend(logits, mark, dim % logits.ndim, out)

    def _log_softmax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        mark = self._mark(args[0])
        if mark is None or mark.kind != "scores":
            return
        total = args[0].logsumexp(args[1], keepdim=True)
        moved = _moved(mark, args[0], out)
        axes = _attended(moved.axes, strides(out)[args[1]])
        self._remember(out, replace(moved, axes=axes, shift=Laid(total.expand(out.shape), tuple(strides(out)))))

    def _exponential(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        logits, mark = args[0], self._mark(args[0])
        if mark is None or mark.kind != "scores":
            self._carry(func, args, kwargs, out)
            return
        self.seen["exponentials of such a product"] += 1
        if _key(out) == _key(logits):  # in place
            logits = out.log()
        roles = [{part.role for part in parts(logits, mark.axes, dim)} for dim in range(logits.ndim)]
        sure = [dim for dim, each in enumerate(roles) if "attended" in each]
        shift = None if mark.shift is None else mark.shift.on(logits, -1)
        reduced = [] if shift is None else [dim for dim in range(logits.ndim) if shift.shape[dim] < logits.shape[dim]]
        dim = (sure or (reduced if len(reduced) == 1 else []) or [logits.ndim - 1])[0]
        self._attend(logits, mark, dim, out, "weights" if sure else "exponential", True)

    def _total(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        mark = self._mark(args[0])
        if func._overloadpacket is aten.linalg_vector_norm:  # of order 1, the sum of what is positive
            args = (args[0], *args[2:]) if args[1:2] == (1,) else args[:1]
        dims = args[1] if len(args) > 1 else None
        if mark is None or mark.kind == "made":
            self._carry(func, args, kwargs, out)
        if mark is None or not isinstance(dims, list | tuple) or len(dims) != 1:
            return
        if func._overloadpacket is aten.logsumexp and mark.kind == "scores":
            self._remember(out, Mark(_memory(out), "total"))
            return
        is_along = "attended" in {part.role for part in parts(args[0], mark.axes, dims[0])}
        if (mark.kind, is_along) in (("exponential", True), ("weights", False)):
            self._remember(out, Mark(_memory(out), "total", finish=mark.finish))

    def _attend(
        self, logits: Tensor, mark: Mark, dim: int, out: Tensor, kind: str = "weights", is_written_out: bool = False
    ) -> None:
        """Have the logits measured that are normalized along ``dim``, and remember ``out``, of the same shape."""
        was, consists = self._layout(logits, mark, dim)
        extra = mark.extra
        m = logits.shape[dim]

        def aligned(each: Laid | None) -> Tensor | None:
            given = None if each is None else each.on(logits, dim)
            if given is None or each is None:
                return None
            if given.shape[dim] not in (1, m):  # columns were added since
                filling = 0.0 if each.below is None else math.copysign(math.inf, each.factor)
                added = [0, 0] * (given.ndim - 1 - dim) + [extra[0], m - given.shape[dim] - extra[0]]
                given = torch.nn.functional.pad(given, added, value=filling)
            return arranged(given.expand(logits.shape), consists)

        sizes = Counter({"queries": 1, "keys": 1, "heads": 1})
        for part in (part for each in range(logits.ndim) for part in parts(logits, mark.axes, each)):
            sizes[str(part.role)] *= part.size
        covers = [(mask, each) for each in mark.laid if (mask := aligned(each)) is not None]
        seen = Logits.of_tensor(
            arranged(logits, consists),
            consists,
            covers=covers,
            is_masked=mark.is_masked,
            blind=aligned(mark.blind),
            shift=aligned(mark.shift) if is_written_out else None,
            extra=extra,
            product=(sizes["heads"], sizes["queries"], sizes["keys"]),
            scale=mark.factor,
        )
        was = "features" if mark.is_inside else was
        pending = Pending(self.sink.attention(seen, certain=kind == "weights"), was)
        axes = laid(*zip(consists, strides(out), strict=True))
        self._remember(out, Mark(_memory(out), kind, axes, finish=pending))

    def _layout(self, logits: Tensor, mark: Mark, dim: int) -> tuple[str | None, list[list[Part]]]:
        """What was normalized; and of each dimension what it consists of.

        The roles are ``"attended"``, ``"queries"``, ``"heads"`` and ``"batch"``.
        """
        whole = [Part(size, stride, None) for size, stride in zip(logits.shape, strides(logits), strict=True)]
        consists = [parts(logits, mark.axes, each) or [whole[each]] for each in range(logits.ndim)]
        was = consists[dim][0].role
        consists[dim] = [whole[dim]._replace(role="attended")]
        asking = "keys" if was == "queries" else "queries"
        for each in set(range(logits.ndim)) - {dim}:
            roles = {part.role for part in consists[each]}
            if "heads" in roles:
                names = {asking: "queries", "heads": "heads"}
                consists[each] = [part._replace(role=names.get(str(part.role), "batch")) for part in consists[each]]
            else:
                role = "queries" if asking in roles else None if None in roles else "batch"
                consists[each] = [whole[each]._replace(role=role)]
        others = [each for each in range(logits.ndim) if each != dim]
        unknown = [each for each in others if consists[each][0].role is None]
        placed = [(part, each, i) for each in others for i, part in enumerate(consists[each])]
        asked = sorted((part.stride, each, i) for part, each, i in placed if part.role == "queries")
        for _, each, i in asked[1:]:  # windows, say
            consists[each][i] = consists[each][i]._replace(role="batch")
        if not asked and unknown:
            last = unknown.pop()
            consists[last] = [whole[last]._replace(role="queries")]
        roles = {part.role for each in consists for part in each}
        leading = [each for each in others if consists[each][0].role in (None, "batch")]
        if "heads" not in roles and not mark.known and any(logits.shape[each] > 1 for each in unknown):
            if len(leading) == 1:
                size, stride, _ = whole[leading[0]]
                H = self.sink.layers.heads(size)
                consists[leading[0]] = [Part(H, stride, "heads"), Part(size // H, stride * H, "batch")]
            elif len(leading) == 2:  # as F.scaled_dot_product_attention has it: (batch, heads, …)
                consists[leading[1]] = [whole[leading[1]]._replace(role="heads")]
            else:
                self.sink.note(
                    f"Which axis of logits {tuple(logits.shape)} holds the heads cannot be known: taken for one head."
                )
        return was, [[part._replace(role=part.role or "batch") for part in each] for each in consists]

    # ---- kernels that do it all

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key = given["query"], given["key"]
        mask = given.get("attn_mask", given.get("attn_bias"))
        scale = given.get("scale")
        self.seen["fused kernels"] += 1
        if query.is_nested:
            self.sink.note(NESTED)
            return
        if not query.numel():  # newer versions of torch run no kernel then
            return
        self._look_for_compiled()
        heads = out[0] if isinstance(out, tuple | list) else out
        mark = self._mark(key)
        extra = mark.extra if mark is not None and mark.kind == "features" else (0, 0)
        n, m = query.shape[-2], key.shape[-2]
        if query.ndim != 4:
            query, key = (x.reshape(-1, *x.shape[-3:]) for x in (query, key))
        inside = all((each := self._mark(x)) is not None and _is_inside(x, each.axes) for x in (query, key))
        layout = None if inside else self._heads_first(query, key)
        if layout is not None and key.shape[:2] == query.shape[:2]:
            if mask is not None:
                mask = _four(mask.expand(*query.shape[:2], n, m), layout)
            query, key, heads = (_four(x, layout) for x in (query, key, heads))
        factor = _factors(self._mark(given["query"]), mark)
        logits = Logits.of_projections(
            query,
            key,
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            factor=factor,
            mask=mask,
            is_causal=bool(given.get("is_causal", False)),
            level=None if mask is None or mask.dtype == torch.bool else self._level(mask),
            extra=extra,
        )
        axis = "features" if inside else "keys"
        self.sink.attention(logits)(heads.reshape(*query.shape[:2], *heads.shape[-2:]), axis)

    def _unknown_attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.seen["kernels that keep their logits"] += 1
        more = " flex_attention itself gives each query's largest logit: return_aux=AuxRequest(max_scores=True)."
        self.sink.note(
            f"{func} keeps its logits to itself: such an attention is not in the table. {WHAT_TO_DO} "
            '(in transformers: attn_implementation="sdpa" or "eager").' + more * str(func).startswith("flex")
        )

    def _heads_first(self, query: Tensor, key: Tensor) -> list[list[Part]] | None:
        """What the first two dimensions consist of, where that is known and is not the batch and the heads."""
        for x in (query, key):
            mark = self._mark(x)
            if mark is None or mark.kind != "features" or x.shape[:2] != query.shape[:2]:
                continue
            consists = [parts(x, mark.axes, dim) or [Part(1, 0, "rows")] for dim in (0, 1)]
            roles = {part.role for each in consists for part in each}
            along = {part.role for part in parts(x, mark.axes, -1)}
            if None in roles or "features" not in along:
                continue
            if x.shape[1] == 1 or [{part.role for part in each} for each in consists] == [{"rows"}, {"features"}]:
                return None
            names = {"features": "heads", "rows": "batch"}
            return [[part._replace(role=names[str(part.role)]) for part in each] for each in consists]
        return None

    # ---- memory

    def _mark(self, tensor: Any) -> Mark | None:
        if not self.marks or not isinstance(tensor, Tensor):
            return None
        return self.marks.get(_key(tensor))

    def _remember(self, tensor: Tensor, mark: Mark) -> None:
        if len(self.marks) > 128:
            self.marks = {key: each for key, each in self.marks.items() if not each.memory.expired()}
        self.marks[_key(tensor)] = mark

    def _is_parameter(self, tensor: Tensor, or_made: bool = False) -> bool:
        """Whether a tensor is a parameter or a copy, or made of such; a buffer may be, but caches hold keys."""
        mark, key = self._mark(tensor), _key(tensor)
        if key in self.sink.parameters:
            return True
        if mark is None:
            return or_made and key in self.sink.buffers
        return mark.kind == "parameter" or (or_made and mark.kind == "made")

    def _is_given(self, tensor: Tensor) -> bool:
        """Whether nothing that the model computes from its input is in a tensor."""
        mark = self._mark(tensor)
        return mark is None or mark.kind == "made"

    def _is_made(self, tensors: list[Tensor]) -> bool:
        """Whether nothing but numbers and a matrix, or several, went in: not its repetitions, which have rows."""
        large = [each for each in tensors if each.numel() > 1]
        return bool(large) and all(self._is_parameter(each, True) and 0 not in each.stride() for each in large)

    def _look_for_compiled(self) -> None:
        """Say so if what runs is compiled code."""
        if "torch._dynamo" not in sys.modules:
            return
        frame: FrameType | None = sys._getframe(3)
        while frame is not None:
            if any(each in frame.f_code.co_filename for each in COMPILED):
                self.sink.note(
                    "Compiled code ran: attention in there is seen in part or not at all, and layers share a row. "
                    "diagnose runs it uncompiled, and sees all; so does listen under "
                    'torch.compiler.set_stance("force_eager").'
                )
                return
            frame = frame.f_back


def _has_whole(func: torch._ops.OpOverload) -> bool:
    """Whether a kernel takes an operation apart. What jagged tensors ask for (``aten::sym_size``) is not registered."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), WHOLE)
    except RuntimeError:
        return False


def _is_nested(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_nested


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _memory(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _named(tensor: Tensor, roles: Sequence[str | None]) -> Axes:
    """Axes of new memory, a role a dimension."""
    sizes = zip(tensor.shape, strides(tensor), roles, strict=True)
    return laid(*(([Part(size, stride, role)] if size > 1 else [], stride) for size, stride, role in sizes))


def _attended(axes: Axes, stride: int) -> Axes:
    return tuple(Axis(each.stride, "attended" if each.stride == stride else each.role) for each in axes)


def _factor(packet: Any, args: tuple[Any, ...], source: Tensor) -> float:
    """What ``source`` is multiplied with; NaN if it is no single number."""
    other = args[1] if args[0] is source else args[0]
    if isinstance(other, Tensor):
        if other.numel() != 1 or other.is_meta:
            return math.nan
        other = other.item()
    if packet in (aten.mul, aten.mul_):
        return float(other)
    return 1 / float(other) if args[0] is source and other else math.nan


def _factors(*marks: Mark | None) -> float:
    """What projections were multiplied with before they meet; NaN if one of the two is none."""
    return math.prod(math.nan if each is None or each.kind != "features" else each.factor for each in marks)


def _goes_on(packet: Any, kind: str, source: Tensor, result: Tensor) -> bool:
    """Whether what a piece of memory holds is, after this operation, in its result."""
    if not (result.is_floating_point() or result.is_complex()) or result.ndim < source.ndim or packet is None:
        return False
    if kind == "features":
        return result.ndim == source.ndim
    pairs = zip(reversed(source.shape), reversed(result.shape), strict=False)
    return packet in MOVED or all(old in (new, 1) for old, new in pairs)


def _moved(mark: Mark, source: Tensor, result: Tensor) -> Mark:
    axes, gone = follow(result, source, mark.axes)
    shift, blind = (None if each is None else each.moved(gone) for each in (mark.shift, mark.blind))
    kept = tuple(each.moved(gone) for each in mark.laid)
    return replace(mark, memory=_memory(result), axes=axes, laid=kept, shift=shift, blind=blind)


def _projected(left: Tensor, right: Tensor, out: Tensor, left_is_learned: bool, right_is_learned: bool) -> Mark:
    roles: list[str | None] = ["features", "rows"] if left_is_learned else ["rows", "features"]
    if out.ndim == 3:
        matrix = left if left_is_learned else right
        roles.insert(0, "features" if matrix.stride(0) else "rows")  # a matrix per head
    return Mark(_memory(out), "features", _named(out, roles))


def _scores(left: Tensor, right: Tensor, out: Tensor, of_left: Mark | None, of_right: Mark | None) -> Mark:
    """The mark of a product of queries and keys, from what is known of the two."""
    factors = [(left, () if of_left is None else of_left.axes), (right, () if of_right is None else of_right.axes)]

    def consists(which: int, dim: int, plain: str, heads: str) -> list[Part]:
        tensor, axes = factors[which]
        found = parts(tensor, axes, dim) or [Part(1, 0, "rows")]
        split = len({part.role for part in found}) > 1 or dim == 0
        names = {"features": heads if split else plain, "heads": heads, None: plain if dim else None}
        return [part._replace(role=names.get(part.role, plain)) for part in found]

    leading = []
    if out.ndim == 3:
        both = [consists(which, 0, "batch", "heads") for which in (0, 1)]
        roles = [{part.role for part in each} for each in both]
        best = max((0, 1), key=lambda which: (("heads" in roles[which]), None not in roles[which]))
        leading = both[best]
    rows, columns = consists(0, -2, "queries", "heads"), consists(1, -1, "keys", "heads")
    along = [part.role for part in (*parts(*factors[0], -1), *parts(*factors[1], -2))]
    known = "features" in along and all(part.role for part in leading)
    at = strides(out)
    axes = laid((columns, at[-1]), (rows, at[-2]), *([(leading, at[0])] if leading else []))
    extra = (0, 0) if of_right is None else of_right.extra
    factor = _factors(of_left, of_right)
    inside = _is_inside(left, factors[0][1]) and _is_inside(right.mT, factors[1][1])
    return Mark(_memory(out), "scores", axes, rank=out.ndim, known=known, is_inside=inside, extra=extra, factor=factor)


def _is_inside(tensor: Tensor, axes: Axes) -> bool:
    """Whether each row of a matrix is a part of one token, and the rows of a matrix are those of the same token."""
    return all({part.role for part in parts(tensor, axes, dim)} == {"features"} for dim in (-2, -1))


def _mixed(mark: Mark, source: Tensor, out: Tensor, dim: int) -> Mark:
    """The mark of a product of scores or weights with a matrix that mixes their heads."""
    new, pieces, gone = strides(out), [], {}
    kept, at = ((-2, -2), -1) if dim == -1 else ((-1, -1), -2)  # the other dimension of the source, and the new one
    for old_dim, new_dim in (kept, *([(0, 0)] if out.ndim == 3 else [])):
        consists, stride = parts(source, mark.axes, old_dim), new[new_dim]
        pieces.append((consists, stride))
        for part in consists:
            gone[part.stride] = stride
            stride *= part.size
    pieces.append(([Part(out.shape[at], new[at], "heads")], new[at]))
    return replace(
        mark,
        memory=_memory(out),
        axes=laid(*pieces),
        rank=3,
        laid=tuple(each.moved(gone) for each in mark.laid),
        shift=None,
        blind=None,
        known=True,
    )


def _handed_on(mark: Mark, weights: Tensor, out: Tensor, dim: int) -> Tensor | None:
    """What the heads hand on, ``(B, H, n, d)``; None where that is nothing."""
    if not out.numel():
        return None
    heads, row_dim = (out, -2) if dim == -1 else (out.mT, -1)
    rows = parts(weights, mark.axes, row_dim) or [Part(1, 0, "queries")]
    if "heads" not in {part.role for part in rows}:
        rows = [Part(weights.shape[row_dim], 0, "queries")]
    leading = parts(weights, mark.axes, 0) if weights.ndim == 3 else []
    if weights.ndim == 3 and not leading:
        heads = heads[0]
    layout = [leading] * (weights.ndim == 3 and bool(leading)) + [rows]
    names = {"heads": "heads", "queries": "queries"}
    layout = [[part._replace(role=names.get(str(part.role), "batch")) for part in each] for each in layout]
    return _four(heads, layout)


def _four(tensor: Tensor, layout: list[list[Part]]) -> Tensor:
    """A tensor whose leading dimensions consist of this as ``(B, H, n, d)``."""
    rest = [[Part(size, 0, "queries")] for size in tensor.shape[len(layout) : -1]]
    whole = [*layout, *rest, [Part(tensor.shape[-1], 0, "attended")]]
    n_batch, n_heads = counts(whole)
    return arranged(tensor, whole).flatten(n_batch + n_heads, -2).flatten(n_batch, -3).flatten(0, n_batch - 1)


def _filled(func: Any, args: tuple[Any, ...], source: Tensor) -> tuple[Tensor | None, float | None]:
    """Where a number is filled into scores, and which; None if it is not one number."""
    packet = func._overloadpacket
    if packet is aten.where:
        if len(args) < 3:
            return None, None
        where, filling = (~args[0], args[2]) if args[1] is source else (args[0], args[1])
    elif packet in (aten.masked_fill, aten.masked_fill_):
        where, filling = args[1], args[2]
    else:
        ((before, where), *others), filling = [(i, each) for i, each in enumerate(args[1]) if each is not None], args[2]
        if others or where.dtype != torch.bool:
            return None, None
        where = where[(None,) * before + (...,) + (None,) * (source.ndim - before - where.ndim)]
    if where.is_meta or not where.numel():
        return None, None
    if not isinstance(filling, Tensor):
        return where, float(filling)
    low, high = (each.item() for each in torch.aminmax(filling.detach()))
    return where, low if low == high else None


if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):  # as in torch 2.6

    def _pass_on(operator: Any) -> Callable[..., Any]:
        return lambda mode, *args, **kwargs: mode.__torch_dispatch__(operator, (), args, kwargs)

    for operator in torch._ops._higher_order_ops.values():  # flex_attention and its like: they ask a mode for a rule
        operator.py_impl(Watcher)(_pass_on(operator))
