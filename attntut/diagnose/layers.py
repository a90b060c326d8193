"""Which module is running: the names of layers, the blocks of the stream, and where steps begin."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from attntut._restore import tensors_in
from attntut.anatomy import places
from attntut.anatomy.blocks import LISTS, prefixes

FUNCTION, ROOT = "(function)", "(model)"
HEADS = (*places.HEADS, "nhead", "heads")
CROSS_NAME = re.compile(r"cross|enc_?dec|encoder_attn|multihead_attn", re.IGNORECASE)
CONTEXTS = {"context", "memory", "encoder_hidden_states", "key_value_states", "cross_attention_states"}
CACHES = {"past_key_values", "past_key_value", "layer_past", "cache"}


@dataclass
class Frame:
    """One module on the way in."""

    name: str  # dotted; empty for the model itself
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    attentions: int  # how many had been seen when it was entered

    def argument(self, name: str) -> Any:
        """The argument of this name, however it was passed; None if it was not."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = _parameters(type(self.module).forward)
        return self.args[names.index(name)] if name in names[: len(self.args)] else None

    @property
    def first(self) -> Any:
        """The first tensor that it was called with, or None."""
        return first_tensor((*self.args, *self.kwargs.values()))


@dataclass
class Layers:
    """The modules of a model, and the stack of those that run."""

    model: nn.Module | None  # None for code without one
    entered: Callable[[Frame], None]  # called before a module runs
    left: Callable[[Frame, Any], None]  # called after it, with its output
    is_listening: Callable[[], bool]
    frames: list[Frame] = field(default_factory=list)
    attentions: int = 0
    containers: dict[str, str] = field(default_factory=dict)  # of each element of a list of modules: the list
    loose: set[str] = field(default_factory=set)  # those that may be blocks, but are in a module that is no list
    compiled: list[str] = field(default_factory=list)
    _hooks: ExitStack = field(default_factory=ExitStack)

    def hook(self) -> None:
        """Begin: a hook before and one after every module."""
        for name, module in self.model.named_modules() if self.model is not None else ():
            name = name.replace("_orig_mod.", "").removesuffix("_orig_mod").removesuffix(".")  # a compiled module wraps
            if is_compiled(module):
                self.compiled.append(name or ROOT)
            children = {f"{name}.{key}" if name else key: child for key, child in module.named_children()}
            if not isinstance(module, LISTS):
                many = Counter(map(type, children.values()))
                alike = {path for path, child in children.items() if many[type(child)] > 1 and any(child.children())}
                children = {path: children[path] for path in alike if self.containers.keys().isdisjoint(prefixes(path))}
                self.loose |= children.keys()
            self.containers |= dict.fromkeys(children, name)
            if not isinstance(module, torch.jit.ScriptModule):
                before, after = Hook(self._enter, name, module), Hook(self._leave, name, module)
                self._hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
                self._hooks.enter_context(module.register_forward_hook(after, with_kwargs=True, always_call=True))

    def unhook(self) -> None:
        """Take every hook away."""
        self._hooks.close()
        self.frames.clear()

    def _enter(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.is_listening() and not (name == "" and not self.frames):
            return
        if name == "":
            self.frames.clear()
        frame = Frame(name, module, args, kwargs, self.attentions)
        self.frames.append(frame)
        self.entered(frame)

    def _leave(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        while self.frames and any(frame.module is module for frame in self.frames):
            frame = self.frames.pop()
            if frame.module is module:
                self.left(frame, output)
                return

    # ---- what is asked of the innermost module

    @property
    def _innermost(self) -> Frame | None:
        small = nn.Softmax | nn.Dropout
        return next((each for each in reversed(self.frames) if not isinstance(each.module, small)), None)

    @property
    def name(self) -> str:
        """The layer that runs: the innermost module that is more than a softmax or a dropout."""
        frame = self._innermost
        return FUNCTION if frame is None else frame.name or ROOT

    def heads(self, leading: int) -> int:
        """How many heads logits ``(leading, n, m)`` have: torch folds them into the batch, code by hand has one."""
        for frame in self.frames[:-3:-1]:
            heads = next((each for name in HEADS if isinstance(each := getattr(frame.module, name, None), int)), 0)
            if heads and leading % heads == 0:
                batch = frame.first.shape[0] if isinstance(frame.first, Tensor) and frame.first.ndim > 2 else None
                return heads if isinstance(frame.module, nn.MultiheadAttention) or leading != batch else 1
        return 1

    def input_axis(self, n: int, m: int) -> int | None:
        """Which of the first two dimensions of the model's input ``n`` queries and ``m`` keys run along.

        None where that cannot be told: both are as long, or neither is, or they are tokens and features.
        """
        given = self.frames[0].first if self.frames and self.frames[0].name == "" else None
        if given is None or n != m or given.ndim < 2 + given.is_floating_point():
            return None
        fitting = [dim for dim, size in enumerate(given.shape[:2]) if size == m]
        return fitting[0] if len(fitting) == 1 else None

    def is_cross(self, n: int, m: int) -> bool:
        """Whether ``n`` queries and ``m`` keys come from different sequences."""
        frame = self._innermost
        if frame is None:
            return n != m
        if isinstance(frame.module, nn.MultiheadAttention):
            query, key, value = (frame.argument(name) for name in ("query", "key", "value"))
            if query is key:
                return False
            return key is value or query.shape != key.shape or _sounds_cross(frame)
        context = next((each for name in CONTEXTS if isinstance(each := frame.argument(name), Tensor)), None)
        if context is not None:
            return context is not frame.first
        if _sounds_cross(frame):
            return True
        return n != m and all(frame.argument(name) is None for name in CACHES)


class Uncopied:
    """A hook that a copy of the model does not take along: copied or pickled, it does nothing."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (_do_nothing,)


class Hook(Uncopied):
    """A hook on the calls of one module."""

    def __init__(self, call: Callable[..., None], name: str, module: nn.Module) -> None:
        self.call, self.name, self.module = call, name, module

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
        if not torch.compiler.is_compiling() and module is self.module:
            self.call(self.name, module, args, kwargs, *output)


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile was used on it."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor in what a module takes or gives, or None.

    >>> first_tensor((None, {"x": torch.ones(2)}))
    tensor([1., 1.])
    """
    return next(tensors_in(values), None)


def _sounds_cross(frame: Frame) -> bool:
    label = ".".join(frame.name.split(".")[-2:])
    return bool(CROSS_NAME.search(f"{label} {type(frame.module).__name__.replace('MultiheadAttention', '')}"))


@lru_cache(maxsize=256)
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[1:]


def _do_nothing(*_: Any) -> None:
    """What a hook is in a copy of the model."""
