"""Act inside somebody's attention: on its queries, keys and values, its logits, its weights, and what the heads found.

While an attention module runs, a :class:`Listener` (a ``TorchFunctionMode``, so that autograd sees what it does) looks
for the product of queries and keys on its way to a softmax, and for ``F.scaled_dot_product_attention``. It does what
the module's changes ask for there, with the model's own scale, masks, dropout and grouped queries. The module's
``forward`` is an attribute that runs the class's own within the mode; it is copied and pickled along with the module.
"""

from __future__ import annotations

import inspect
import math
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attntut._restore import tensors_in
from attntut.attention import causal_mask, masked_softmax
from attntut.parts import AttentionPart

CHANGES = "adjusted"
"""The name under which an attention module holds its changes."""
HIDDEN = -1e4
"""What is laid upon logits and goes below this is a mask."""

PRODUCTS = ("matmul", "bmm", "baddbmm", "rmatmul", "einsum")
SCALED = ("mul", "imul", "rmul", "multiply", "div", "truediv", "itruediv", "true_divide", "divide")
MOVED = (
    "view reshape transpose permute contiguous flatten unflatten unsqueeze squeeze expand clone to type float half "
    "bfloat16 double type_as swapaxes movedim"
).split()
Step = Callable[[Tensor], Tensor]


class AttentionChange(AttentionPart):
    """What a method does inside attention; each function leaves what it gets as it is, unless it is overridden.

    Shapes are the same in every model: queries ``(B, H, T, d_head)``, keys and values ``(B, H, S, d_head)`` or, with
    grouped queries, fewer heads; logits and weights ``(B, H, T, S)``.

    Args:
        settings: what it needs, numbers or parameters; each becomes the attribute of its name.

    Attributes:
        scale: if it is a number, it replaces the factors that the model multiplies the logits with: for changes of
            queries and keys that would take a factor of theirs away.
    """

    scale: float | None = None

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)

    def scaled_heads(self, query: Tensor, key: Tensor, factor: Tensor | float) -> tuple[Tensor, Tensor]:
        """Queries and keys as ``heads`` gets them, for what asks how long they are.

        ``factor`` is what the model multiplies their product with; what it put into the queries before is not in it.
        """
        return self.heads(query, key)

    def values(self, value: Tensor) -> Tensor:
        """Values before they are averaged."""
        return value

    def logits(self, logits: Tensor) -> Tensor:
        """Logits, scaled, before anything (a mask, a bias of positions) is added to them."""
        return logits

    def seen_logits(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """As ``logits``, for what asks which keys a query sees; ``hidden`` is True where a mask lies."""
        return logits

    def masked(self, logits: Tensor) -> Tensor:
        """Logits as the softmax gets them."""
        return logits

    def weights(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """Weights instead of the softmax's; ``hidden`` is True where a mask lies."""
        raise NotImplementedError


def _overrides(change: AttentionPart, name: str) -> bool:
    own = getattr(type(change), name, None)
    return own is not None and own not in (getattr(AttentionChange, name), getattr(AttentionPart, name, None))


@dataclass
class Scores:
    """A product of queries and keys on its way to a softmax.

    Attributes:
        query, key: what was multiplied, ``(…, T, d)`` and ``(…, S, d)``.
        product: multiplies them again.
        logits: the product, scaled, before anything was laid upon it.
        moves: what was done to the product so far, scaling or layout, each with whether it scales.
        laid: what was done after that: a cap, masks, biases.
        before: as it was before the last of the moves.
    """

    query: Tensor
    key: Tensor
    product: Callable[[Tensor, Tensor], Tensor]
    logits: Tensor
    moves: list[tuple[Step, bool]] = field(default_factory=list)
    laid: list[Step] = field(default_factory=list)
    before: Scores | None = None


class Weights:
    """What marks a softmax's result."""


class Listener(TorchFunctionMode):
    """Changes one call of an attention module.

    Args:
        module: the attention.
        changes: what to do, in this order.
        n_heads: of its queries.

    Attributes:
        x: the tokens that ask.
        seen: how many times a softmax of a product, or torch's function, was seen.
        mixed: how many times weights met values.
    """

    def __init__(self, module: nn.Module, changes: Iterable[AttentionPart], n_heads: int) -> None:
        super().__init__()
        self.module, self.changes, self.n_heads = module, list(changes), n_heads
        self.x: Tensor | None = None
        self.marks: list[tuple[Tensor, Scores | Weights]] = []
        self.seen = self.mixed = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:  # opaque to a mode; its copy is not
            with self:
                return _multi_head_attention_forward(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        plain = getattr(func, "__name__", "")
        name = plain.strip("_")
        if name in PRODUCTS:
            return self._product(name, func, args, kwargs)
        marked, mark = self._marked(args, kwargs)
        if marked is None or mark is None:
            return func(*args, **kwargs)
        if isinstance(mark, Scores) and name in ("softmax", "_safe_softmax"):
            return self._softmax(mark, marked, func, args, kwargs)
        return self._follow(mark, marked, name, plain, func, args, kwargs)

    # ---- an attention that is written out

    def _marked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, Scores | Weights | None]:
        if self.marks:
            for each in tensors_in((args, kwargs)):
                for tensor, mark in self.marks:
                    if tensor is each:
                        return tensor, mark
        return None, None

    def _mark(self, tensor: Tensor, mark: Scores | Weights) -> None:
        self.marks = [each for each in self.marks if each[0] is not tensor] + [(tensor, mark)]

    def _product(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        factors = _factors(name, args, kwargs)
        if factors is None or factors[0].ndim < 3 or any(isinstance(each, nn.Parameter) for each in factors):
            return func(*args, **kwargs)
        left, right = factors
        _, mark = self._marked((left,), {})
        if isinstance(mark, Weights):
            return self._mix(right, func, args, kwargs)
        if name == "einsum":
            key, product = right, lambda query, key: func(args[0], query, key)
        else:
            key, product = right.mT, lambda query, key: query @ key.mT
        scores = Scores(left, key, product, left)
        if name != "baddbmm":
            out = scores.logits = func(*args, **kwargs)
        else:
            alpha, beta = kwargs.get("alpha", 1), kwargs.get("beta", 1)
            scores.moves = [(lambda new: new * alpha, True)]
            out = scores.logits = torch.bmm(left, right) * alpha
            if beta != 0:
                scores.laid = [lambda new: new + beta * args[0]]
                out = scores.laid[0](out)
        self._mark(out, scores)
        return out

    def _follow(
        self,
        mark: Scores | Weights,
        marked: Tensor,
        name: str,
        plain: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a function, and know its result as what it was made of."""
        in_place = (plain.endswith("_") and not plain.startswith("_")) or plain.startswith("__i")
        if in_place and isinstance(mark, Scores) and mark.logits is marked:
            mark.logits = mark.logits.clone()
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or out.numel() != marked.numel() or not out.is_floating_point():
            return out
        if isinstance(mark, Weights):
            self._mark(out, mark)
            return out

        def step(new: Tensor) -> Tensor:
            return _called_with(new.clone() if in_place else new, marked, func, args, kwargs)

        others = [each for each in tensors_in((args, kwargs)) if each is not marked]
        scales = name in SCALED and all(each.numel() == 1 or each.shape[-2:] == (1, 1) for each in others)  # by head
        if name == "tanh" and mark.before is not None and mark.moves[-1][1]:  # it was divided by a cap, not scaled
            mark = replace(mark.before, laid=[mark.moves[-1][0]])
        if mark.laid or not (scales or name in MOVED):
            mark = replace(mark, laid=[*mark.laid, step], before=None)
        else:
            mark = replace(mark, logits=out, moves=[*mark.moves, (step, scales)], before=mark)
        self._mark(out, mark)
        return out

    def _softmax(self, scores: Scores, marked: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if dim not in (-1, marked.ndim - 1):
            return func(*args, **kwargs)
        self.seen += 1
        logits = scores.logits

        def lay(logits: Tensor) -> Tensor:
            for step in scores.laid:
                logits = step(logits)
            return logits

        if self.asks("heads", "scaled_heads"):
            factor = scores.query.new_ones((1,) * scores.query.ndim)
            for step, scales in scores.moves:
                factor = step(factor) if scales else factor
            factor = factor.reshape(()) if factor.numel() == 1 else self._by_head(factor)
            query, key, scale = self._heads(scores.query, scores.key, factor)
            logits = scores.product(query, key)
            logits = logits if scale is None else logits * scale
            for step, scales in scores.moves:
                logits = logits if scales and scale is not None else step(logits)
        logits, weights = self._changed(logits, lay, scores.logits)
        if weights is None:
            weights = _called_with(logits, marked, func, args, kwargs)
        self._mark(weights, Weights())
        return weights

    def _mix(self, value: Tensor, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The weights meet the values."""
        self.mixed += 1
        return self._merged(_called_with(self._each("values", value), value, func, args, kwargs))

    # ---- torch's function

    def _fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        self.seen, self.mixed = self.seen + 1, self.mixed + 1
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if self.asks("heads", "scaled_heads"):
            query, key, own = self._heads(query, key, scale)
            scale = scale if own is None else own
        value = self._each("values", value)
        if not self.asks("logits", "seen_logits", "masked", "weights"):
            options = dict(enable_gqa=True) if enable_gqa else {}
            heads = F.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **options
            )
            return self._merged(heads)
        if enable_gqa:
            key, value = (each.repeat_interleave(query.shape[-3] // each.shape[-3], -3) for each in (key, value))
        logits = query @ key.mT * scale

        def lay(logits: Tensor) -> Tensor:
            if is_causal:
                logits = logits.masked_fill(~causal_mask(*logits.shape[-2:], device=logits.device), -math.inf)
            if attn_mask is None:
                return logits
            is_bool = attn_mask.dtype == torch.bool
            return logits.masked_fill(~attn_mask, -math.inf) if is_bool else logits + attn_mask

        logits, weights = self._changed(logits, lay, logits)
        weights = masked_softmax(logits) if weights is None else weights
        return self._merged(F.dropout(weights, dropout_p) @ value)

    # ---- the changes, on tensors of one shape

    def asks(self, *names: str) -> bool:
        """Whether a change acts at one of these places."""
        return any(_overrides(change, name) for change in self.changes for name in names)

    def _each(self, name: str, tensor: Tensor) -> Tensor:
        for change in self.changes:
            if _overrides(change, name):
                tensor = self._back(getattr(change, name)(self._by_head(tensor)), tensor)
        return tensor

    def _changed(self, logits: Tensor, lay: Step, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits as the softmax gets them, and the weights if a change gives them.

        ``lay`` puts masks and biases on logits of the shape of ``like``.
        """

        def hidden() -> Tensor:
            return self._by_head(lay(torch.zeros_like(like)) <= HIDDEN)

        for change in self.changes:
            own: Any = change
            if _overrides(change, "seen_logits"):
                logits = self._back(own.seen_logits(self._by_head(logits), hidden()), logits)
            elif _overrides(change, "logits"):
                logits = self._back(own.logits(self._by_head(logits)), logits)
        logits = self._each("masked", lay(logits))
        for change in self.changes:
            own = change
            if _overrides(change, "weights"):
                return logits, self._back(own.weights(self._by_head(logits), hidden()), logits)
        return logits, None

    def _heads(self, query: Tensor, key: Tensor, factor: Tensor | float) -> tuple[Tensor, Tensor, float | None]:
        scale = None
        for change in self.changes:
            own: Any = change
            if _overrides(change, "heads") or _overrides(change, "scaled_heads"):
                heads = self._by_head(query), self._by_head(key)
                new = own.scaled_heads(*heads, factor) if isinstance(change, AttentionChange) else own.heads(*heads)
                query, key = self._back(new[0], query), self._back(new[1], key)
                scale = scale if getattr(change, "scale", None) is None else own.scale
        return query, key, scale

    def _merged(self, heads: Tensor) -> Tensor:
        for change in self.changes:
            if _overrides(change, "merged"):
                by_head = self._by_head(heads).transpose(1, 2)  # (B, T, H, d_head)
                merged = change.merged(by_head.flatten(2), self.x)  # type: ignore[arg-type]
                heads = self._back(merged.view(by_head.shape).transpose(1, 2), heads)
        return heads

    def _by_head(self, tensor: Tensor) -> Tensor:
        """``(B, H, …, …)``, also where heads are folded into the batch, or split into groups."""
        if tensor.ndim == 5:
            return tensor.flatten(1, 2)
        if tensor.ndim == 3 and tensor.shape[0] % self.n_heads == 0:
            return tensor.unflatten(0, (-1, self.n_heads))
        if tensor.ndim != 4:
            raise RuntimeError(
                f"The heads of {type(self.module).__name__} must be found in what it computes: {self.n_heads} heads in "
                f"shape {tuple(tensor.shape)} are not. Undo the adjustment."
            )
        return tensor

    def _back(self, tensor: Tensor, like: Tensor) -> Tensor:
        return tensor if tensor.ndim == like.ndim else tensor.reshape(*like.shape[:-1], tensor.shape[-1])


# F.multi_head_attention_forward hands itself to a mode as a whole. Its copy does not ask whether there is one.
_multi_head_attention_forward = types.FunctionType(
    F.multi_head_attention_forward.__code__,
    vars(F) | {"has_torch_function": lambda tensors: False},
    argdefs=F.multi_head_attention_forward.__defaults__,
)


def _called_with(new: Any, old: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a function, with one argument in the place of another."""
    swapped = {key: new if each is old else each for key, each in kwargs.items()}
    return func(*(new if each is old else each for each in args), **swapped)


def _factors(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """The two tensors whose last and second last, or two last, dimensions are multiplied; None if that is not it."""
    if name == "rmatmul":
        args = args[::-1]
    if name == "einsum":
        if len(args) == 2 and isinstance(args[1], list | tuple):
            args = (args[0], *args[1])
        if not (len(args) == 3 and isinstance(args[0], str)):
            return None
        inputs, _, output = args[0].replace(" ", "").partition("->")
        left, _, right = inputs.partition(",")
        is_scores = left[-1:] == right[-1:] != output[-1:] and output[-2:] == left[-2:-1] + right[-2:-1]
        is_mix = left[-1:] == right[-2:-1] and output[-2:] == left[-2:-1] + right[-1:]
        return (args[1], args[2]) if is_scores or is_mix else None
    tensors = [
        *args[1 if name == "baddbmm" else 0 :],
        *(kwargs[k] for k in ("batch1", "batch2", "mat2") if k in kwargs),
    ]
    return (tensors[0], tensors[1]) if len(tensors) >= 2 and all(isinstance(t, Tensor) for t in tensors[:2]) else None


class AdjustedForward:
    """The ``forward`` of an attention module with changes.

    Args:
        module: the attention.
        n_heads: of its queries.
        asks: the layer in it that reads the tokens that ask; if it is not known (``""``), what ``forward`` names first
            is taken for them.
    """

    def __init__(self, module: nn.Module, n_heads: int, asks: str) -> None:
        self.module, self.n_heads, self.asks = module, n_heads, asks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A compiler that is not there need not be told; to load it takes a second.
        return (self._uncompiled if "torch._dynamo" in sys.modules else self._run)(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        module = self.module
        with (
            Listener(module, module._modules[CHANGES].values(), self.n_heads) as listener,  # type: ignore[operator, union-attr]
            self._asking(listener, args, kwargs) if listener.asks("merged") else nullcontext(),
        ):
            output = type(module).forward(module, *args, **kwargs)
        if not listener.seen:
            raise RuntimeError(
                f"{type(module).__name__} must compute attention by a softmax of a product of queries and keys, or by "
                "F.scaled_dot_product_attention, for a method to act on it: neither was seen. Undo the adjustment, or "
                "choose such an implementation (attn_implementation='eager' or 'sdpa' in Hugging Face models)."
            )
        if not listener.mixed and listener.asks("values", "merged"):
            raise RuntimeError(
                f"{type(module).__name__} must multiply its weights with values, the weights first, for a method to "
                "act on values or on what the heads found: no such product was seen. Undo the adjustment."
            )
        return output

    @contextmanager
    def _asking(self, listener: Listener, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        """Meanwhile the listener is told of the tokens that ask."""
        given = inspect.signature(type(self.module).forward).bind(self.module, *args, **kwargs).arguments
        x = next(tensors_in(given), None)
        if isinstance(self.module, nn.MultiheadAttention) and not self.module.batch_first and x is not None:
            x = x.transpose(0, 1) if x.ndim == 3 else x
        listener.x = x
        if not self.asks:
            yield
            return

        def hear(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = next(tensors_in((args, kwargs)), None)
            listener.x = listener.x if read is None or read.ndim != 3 else read  # some read one flat list
            once.remove()  # the same layer may read the keys' tokens next

        with self.module.get_submodule(self.asks).register_forward_pre_hook(hear, with_kwargs=True) as once:
            yield

    _uncompiled = torch._disable_dynamo(_run)  # type: ignore[attr-defined]


def tau(module: nn.Module) -> float:
    """The number that the changes of an attention divide its logits by; 1 if there are none."""
    changes: Any = module._modules.get(CHANGES) or nn.ModuleDict()
    return math.prod(getattr(change, "tau", 1.0) for change in changes.values())


def unfused(module: nn.Module, args: tuple[Any, ...]) -> None:
    """A hook that does nothing: torch's fused encoder layers go step by step where a part has one."""


def insert(module: nn.Module, n_heads: int, name: str, change: AttentionPart, *, asks: str = "") -> None:
    """Let an attention module run with one more change; ``asks`` as in :class:`AdjustedForward`.

    Raises:
        ValueError: it has a change of this name, its ``forward`` is already an attribute, or it has one of our name.
    """
    changes: Any = module._modules.get(CHANGES)
    if changes is not None:
        if name in changes:
            raise ValueError(f"name must be new to {type(module).__name__}: {name!r} changes it already.")
        changes.add_module(name, change)
        return
    taken = "forward" if "forward" in vars(module) else CHANGES if hasattr(module, CHANGES) else None
    if taken:
        raise ValueError(f"{type(module).__name__} must not have an attribute {taken!r} of its own: it has one.")
    module.add_module(CHANGES, nn.ModuleDict({name: change}))
    vars(module)["forward"] = AdjustedForward(module, n_heads, asks)
    module.register_forward_pre_hook(unfused)


def remove(module: nn.Module, name: str) -> None:
    """Take a change away; with the last one, all traces."""
    changes: Any = module._modules[CHANGES]
    del changes[name]
    if not len(changes):
        del module._modules[CHANGES], vars(module)["forward"]
        for key in [key for key, hook in module._forward_pre_hooks.items() if hook is unfused]:
            del module._forward_pre_hooks[key]
