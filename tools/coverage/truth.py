"""What a model's attention is, found out without attntut: from Python's calls, and from the maps that it returns."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-4  # nats: entropies of single-precision weights
HIDDEN = -1e8  # a row whose largest logit is less may see nothing
PRODUCTS = (
    *((torch, name) for name in ("matmul", "bmm", "einsum", "baddbmm")),
    *((Tensor, name) for name in ("matmul", "bmm", "__matmul__")),
)


@dataclass(eq=False)
class Call:
    """One softmax: the innermost module it ran in, its result, which rows see something, whether it was multiplied."""

    layer: str
    weights: Tensor
    live: Tensor
    is_used: bool = False


class Calls:
    """Wraps Python's softmaxes and scaled_dot_product_attention while it is entered.

    >>> layer = nn.MultiheadAttention(8, 2).eval()
    >>> with Calls(layer) as calls:
    ...     _ = layer(*[torch.randn(3, 1, 8)] * 3)
    >>> [(call.layer, tuple(call.weights.shape), call.is_used) for call in calls.used()]
    [('', (2, 3, 3), True)]
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.heard = model, list[Call]()
        self._inside, self._modules, self._stack = False, list[str](), ExitStack()

    def used(self) -> list[Call]:
        """Calls whose result went into a product: not those of routers."""
        return [call for call in self.heard if call.is_used]

    def __enter__(self) -> Calls:
        wrap = self._stack.enter_context
        self._stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)  # which would call no softmax
        softmaxes: tuple[Any, ...] = (F, torch, Tensor)
        for place in softmaxes:
            wrap(mock.patch.object(place, "softmax", self._outermost(place.softmax, self._softmax)))
        attention = F.scaled_dot_product_attention
        wrap(mock.patch.object(F, "scaled_dot_product_attention", self._outermost(attention, self._attention)))
        for place, name in PRODUCTS:
            wrap(mock.patch.object(place, name, self._outermost(getattr(place, name), self._product)))
        for name, module in self.model.named_modules():
            if not isinstance(module, nn.Softmax | nn.Dropout | torch.jit.ScriptModule):
                before = module.register_forward_pre_hook(lambda *_, name=name: self._modules.append(name))
                after = module.register_forward_hook(lambda *_: (self._modules.pop(), None)[1], always_call=True)
                self._stack.callback(before.remove)
                self._stack.callback(after.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _outermost(self, call: Callable[..., Any], listen: Callable[..., None]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            if self._inside:
                return call(*args, **options)
            self._inside = True
            try:
                result = call(*args, **options)
                with torch.no_grad():
                    listen(result, *args, **options)
            finally:
                self._inside = False
            return result

        return wrapped

    def _softmax(self, result: Tensor, logits: Tensor, *args: Any, dim: int | None = None, **_: Any) -> None:
        axis = args[0] if args else dim
        if axis is not None and axis % result.ndim == result.ndim - 1 and result.ndim > 1:
            self._add(result, logits.amax(-1) > HIDDEN)

    def _attention(
        self, _: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> None:  # fmt: skip
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        logits = query.double() @ key.double().mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        self._add(logits.softmax(-1), logits.amax(-1) > HIDDEN, is_used=True)

    def _add(self, weights: Tensor, live: Tensor, is_used: bool = False) -> None:
        self.heard.append(Call(self._modules[-1] if self._modules else "(function)", weights, live, is_used))

    def _product(self, _: Tensor, *args: Any, **options: Any) -> None:
        operands = {t.untyped_storage().data_ptr() for t in (*args, *options.values()) if isinstance(t, Tensor)}
        for call in self.heard:
            call.is_used |= call.weights.untyped_storage().data_ptr() in operands


def entropies(calls: Sequence[tuple[Tensor, Tensor]], n_heads: int) -> Iterator[list[float]]:
    """Entropy of each head (nats, over the rows that see something), for each axis that may be that of the heads.

    Args:
        calls: weights ``(…, n, m)`` and live rows ``(…, n)`` of each call; three dimensions are batch · heads first.
        n_heads: that many heads.

    >>> [round(x, 3) for x in next(entropies([(torch.full((2, 3, 4), 0.25), torch.ones(2, 3) > 0)], n_heads=2))]
    [1.386, 1.386]
    """
    shape = list(calls[0][0].shape)
    shapes = {axis: shape for axis in range(len(shape) - 1) if shape[axis] == n_heads}
    if len(shape) == 3 and shape[0] % n_heads == 0:
        shapes[1] = [-1, n_heads, *shape[1:]]
    if n_heads == 1:
        shapes[0] = [1, *shape]
    for axis, view in shapes.items():
        total = rows = torch.zeros(n_heads, dtype=torch.float64)
        for weights, live in calls:
            like = [weights.shape[0] // view[1], *view[1:]] if -1 in view else view
            p = weights.double().nan_to_num(0)
            each = torch.special.entr(p).sum(-1) * live
            others = [i for i in range(len(like) - 1) if i != axis]
            total, rows = (
                have + new.reshape(like[:-1]).sum(others) for have, new in ((total, each), (rows, live.double()))
            )
        yield (total / rows).tolist()


def maps_of(output: Any, inside: bool = False) -> Iterator[Tensor]:
    """The attention maps ``(batch, heads, n, m)`` in what a model returns."""
    if isinstance(output, Tensor):
        if inside and output.ndim == 4:
            yield output.detach()
    elif hasattr(output, "items"):
        for key, value in output.items():
            yield from maps_of(value, inside or "attention" in str(key))
    elif isinstance(output, list | tuple):
        for value in output:
            yield from maps_of(value, inside)


class Traces:
    """What a visitor may leave behind in a model and in the process."""

    def __init__(self, model: nn.Module) -> None:
        parameters, buffers = list(model.parameters()), dict(model.named_buffers())
        hooks = [sum(len(v) for k, v in vars(m).items() if k.endswith("_hooks") and v) for m in model.modules()]
        hooks += [len(p._backward_hooks or ()) + len(p._post_accumulate_grad_hooks or ()) for p in parameters]
        self.parts: dict[str, Any] = {
            "hooks": hooks,
            "mode": [m.training for m in model.modules()],
            "attributes": [sorted(vars(m)) for m in model.modules()],
            "requires_grad": [p.requires_grad for p in parameters],
            "grads": [(id(p.grad), _bytes(p.grad)) for p in parameters],
            "weights": [_bytes(p) for p in parameters],
            "buffers": [(name, id(buffer), _bytes(buffer)) for name, buffer in buffers.items()],
            "RNG": (_bytes(torch.get_rng_state()), random.getstate(), pickle.dumps(np.random.get_state())),  # noqa: NPY002
            "switches": (torch.is_grad_enabled(), torch.backends.mha.get_fastpath_enabled()),
        }

    def left(self, model: nn.Module) -> list[str]:
        """Which of these are another now."""
        now = Traces(model).parts
        return [part for part, before in self.parts.items() if now[part] != before]


def _bytes(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
