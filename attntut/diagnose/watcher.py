"""Recognizes attention among the operations that torch runs: by what is multiplied with what, not by names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from attntut.diagnose.statistics import Logits

aten = torch.ops.aten
PRODUCTS = {aten.bmm: 0, aten.baddbmm: 1, aten.mm: 0}  # and the position of the left factor
SOFTMAX = {aten._softmax, aten._safe_softmax}
# What may stand between a product of queries and keys and its softmax, or between that and the product with the values.
# (Views need no entry: they share memory with what they show. So do operations in place.)
CARRIES = {
    *(aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.neg, aten.tanh, aten.clamp, aten.clamp_min),
    *(aten.minimum, aten.maximum, aten.where, aten.masked_fill, aten.nan_to_num, aten.cat, aten.constant_pad_nd),
    *(aten._to_copy, aten.clone, aten.native_dropout, aten.copy_, aten.index_copy, aten.lift_fresh_copy),
}
Finish = Callable[[Tensor], None]


class Sink(Protocol):
    """Who is told of what was recognized."""

    def is_listening(self) -> bool: ...
    def is_parameter(self, storage: int) -> bool: ...
    def attention(self, logits: Logits, *, certain: bool) -> Finish: ...
    def heads(self, leading: int) -> int: ...
    def note(self, text: str) -> None: ...
    def skipped_softmax(self) -> None: ...


@dataclass
class Mark:
    """What a piece of memory holds.

    Attributes:
        memory: keeps the address from being given to another tensor.
        kind: ``"scores"`` (product of queries and keys), ``"weights"`` (their softmax), or ``"parameter"``.
        rank: of scores: the number of dimensions of the product.
        batch: of weights: sequences and heads.
        blind: rows of scores that were made harmless, because they may see nothing.
        sinks: how many columns without a key were put behind the scores.
        finish: of weights: told of their product with the values.
    """

    memory: StorageWeakRef
    kind: str
    rank: int = 0
    batch: tuple[int, int] = (1, 1)
    blind: Tensor | None = None
    sinks: int = 0
    finish: Finish | None = None


class Watcher(TorchDispatchMode):
    """Sees every operation of the thread that entered it; tells the sink of attentions. Changes nothing.

    Args:
        sink: who is told.
    """

    supports_higher_order_operators = True

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self.sink = sink
        self.marks: dict[int, Mark] = {}
        self.rules: dict[Any, Callable[..., None] | None] = {}

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code stay compiled; it is not seen."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        rule = self.rules[func] if func in self.rules else self._learn(func)
        if rule is not None and self.sink.is_listening():
            try:
                rule(func, args, kwargs, out)
            except Exception as error:  # a fault of ours must not end the user's run
                self.sink.note(f"An attention could not be measured: {type(error).__name__}: {error}")
        return out

    def forget(self) -> None:
        """Drop what is known of memory; at the beginning of a step."""
        self.marks.clear()

    def _learn(self, func: Any) -> Callable[..., None] | None:
        packet = getattr(func, "_overloadpacket", func)
        name = str(func).lower()
        rule: Callable[..., None] | None = None
        if packet in SOFTMAX:
            rule = self._softmax
        elif packet in PRODUCTS:
            rule = self._product
        elif packet in CARRIES:
            rule = self._carry
        elif "backward" not in name and name.startswith("aten._scaled_dot_product"):
            rule = self._fused
        elif "backward" not in name and ("attention" in name or "flash_attn" in name):
            rule = self._unknown_attention
        self.rules[func] = rule
        return rule

    # ---- the parts of an attention that is written out

    def _product(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        position = PRODUCTS[func._overloadpacket]
        left, right = args[position : position + 2]
        for weights, values in ((left, right), (right, left)):
            mark = self._mark(weights)
            if mark is not None and mark.kind == "weights" and mark.finish and not self._is_parameter(values):
                heads = out if weights is left else out.mT  # (B·H, n, d)
                mark.finish(heads.reshape(*mark.batch, *heads.shape[-2:]))
                mark.finish = None
                return
        if not self._is_parameter(left) and not self._is_parameter(right):
            self._remember(out, Mark(_memory(out), "scores", rank=out.ndim))

    def _carry(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if not self.marks and func._overloadpacket is not aten._to_copy:
            return
        result = out[0] if isinstance(out, tuple) else out
        flat = args[0] if func._overloadpacket is aten.cat else args
        tensors = [each for each in flat if isinstance(each, Tensor)]
        mark = next((mark for mark in map(self._mark, tensors) if mark is not None), None)
        if mark is None or mark.kind == "parameter":
            if func._overloadpacket is aten._to_copy and self._is_parameter(tensors[0]):  # autocast's copies
                self._remember(result, Mark(_memory(result), "parameter"))
            return
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return
        carried = replace(mark, memory=_memory(result))
        if func._overloadpacket is aten.cat and mark.kind == "scores":
            source = next(each for each in tensors if self._mark(each) is mark)
            carried.sinks += max(0, result.shape[-1] - source.shape[-1])
        if func is aten.masked_fill.Scalar and args[2] == 0 and args[1].shape[-1:] == (1,) and mark.kind == "scores":
            carried.blind = args[1]  # whole rows made harmless before the softmax, to be zeroed after it
        self._remember(result, carried)

    def _softmax(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        logits, dim = args[0], args[1]
        if logits.ndim < 2 or dim % logits.ndim != logits.ndim - 1:
            return
        mark = self._mark(logits)
        if mark is None or mark.kind != "scores" or (mark.rank == 2 and logits.ndim > 2):
            if logits.ndim > 2:
                self.sink.skipped_softmax()
            return
        n, m = logits.shape[-2:]
        B, H = self._leading(logits.shape)
        blind = mark.blind.expand(*logits.shape[:-1], 1).reshape(B, H, n, 1) if mark.blind is not None else None
        seen = Logits.of_tensor(logits.reshape(B, H, n, m), blind=blind, sinks=mark.sinks)
        finish = self.sink.attention(seen, certain=logits.ndim > 2)
        self._remember(out, Mark(_memory(out), "weights", batch=(B, H), finish=finish))

    def _leading(self, shape: torch.Size) -> tuple[int, int]:
        """Sequences and heads of logits ``(…, n, m)``."""
        if len(shape) == 3:
            H = self.sink.heads(shape[0])
            return shape[0] // H, H
        return math.prod(shape[:-3]), shape[-3] if len(shape) > 3 else 1

    # ---- kernels that do it all

    def _fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key = given["query"], given["key"]
        mask = given.get("attn_mask", given.get("attn_bias"))
        scale = given.get("scale")
        if query.is_nested:
            self.sink.note("Nested tensors hide the rows of an attention: it was not measured.")
            return
        if not query.numel():
            return  # newer releases of torch run no kernel for nothing
        if query.ndim != 4:
            query, key = (x.reshape(-1, *x.shape[-3:]) for x in (query, key))
        logits = Logits.of_projections(
            query,
            key,
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            mask=mask,
            is_causal=bool(given.get("is_causal", False)),
        )
        heads = out[0] if isinstance(out, tuple | list) else out
        self.sink.attention(logits, certain=True)(heads.reshape(*query.shape[:2], *heads.shape[-2:]))

    def _unknown_attention(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.sink.note(f"{func} keeps its logits to itself: such an attention is not in the table.")

    # ---- memory

    def _mark(self, tensor: Any) -> Mark | None:
        if not self.marks or not isinstance(tensor, Tensor):
            return None
        return self.marks.get(tensor.untyped_storage()._cdata)

    def _remember(self, tensor: Tensor, mark: Mark) -> None:
        if len(self.marks) > 512:
            self.marks = {key: each for key, each in self.marks.items() if not each.memory.expired()}
        self.marks[tensor.untyped_storage()._cdata] = mark

    def _is_parameter(self, tensor: Tensor) -> bool:
        mark = self._mark(tensor)
        known = mark is not None and mark.kind == "parameter"
        return known or self.sink.is_parameter(tensor.untyped_storage()._cdata)


def _memory(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _rule(operator: Any) -> Callable[..., Any]:
    return lambda mode, *args, **kwargs: mode.__torch_dispatch__(operator, (), args, kwargs)


if not hasattr(TorchDispatchMode, "supports_higher_order_operators"):  # as in torch 2.6
    for operator in torch._ops._higher_order_ops.values():  # flex_attention and its like: they ask a mode for a rule
        operator.py_impl(Watcher)(_rule(operator))
