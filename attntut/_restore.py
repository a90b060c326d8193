"""Run somebody's model without leaving a trace: random states, gradients, buffers, modes, weights, torch's switches."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_fast_path_lock = threading.Lock()
_fast_path_users: list[bool] = []  # whether it was on when each user came


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors in what a module takes or gives: a tensor, a tuple, a mapping, or any of these inside another."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping | tuple | list):
        for each in values.values() if isinstance(values, Mapping) else values:
            yield from tensors_in(each)


@contextmanager
def restored_mode(module: nn.Module) -> Iterator[None]:
    """Afterwards every part trains or evaluates as it did before."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, mode in modes:
            each.training = mode


@contextmanager
def held_plainly(parameters: Mapping[nn.Module, Mapping[str, nn.Parameter]]) -> Iterator[None]:
    """Meanwhile, modules whose weights are computed (:mod:`torch.nn.utils.parametrize`) hold these, by their names."""
    before = [(each, type(each), {**each._modules}, {**each._parameters}) for each in parameters]
    try:
        for each, own in parameters.items():
            each.__class__ = type(each).__bases__[0]
            del each._modules["parametrizations"]
            each._parameters.update(own)
        yield
    finally:
        for each, kind, modules, kept in before:
            each.__class__, each._modules = kind, modules
            each._parameters.clear()
            each._parameters.update(kept)


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Switch torch's fused inference path off: it calls no submodules, and shows no attention.

    The switch is one for the process: the last of several threads to leave sets it back.
    """
    with _fast_path_lock:
        _fast_path_users.append(torch.backends.mha.get_fastpath_enabled())
        was_on = _fast_path_users[0]
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _fast_path_lock:
            _fast_path_users.pop()
            if not _fast_path_users:
                torch.backends.mha.set_fastpath_enabled(was_on)


class RandomState:
    """The state of every global generator: torch's, on every device in use, Python's and NumPy's."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        self.mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        self.python, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002

    def has_moved(self) -> bool:
        """Whether a generator of torch or Python has drawn since."""
        now = RandomState()
        cuda = any(not torch.equal(was, is_) for was, is_ in zip(self.cuda, now.cuda, strict=False))
        mps = self.mps is not None and now.mps is not None and not torch.equal(self.mps, now.mps)
        return not torch.equal(self.cpu, now.cpu) or cuda or mps or self.python != now.python

    def restore(self) -> None:
        """Set all of them."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


class _Held:
    """The tensors that a module keeps beside its parameters: buffers, and plain attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.names = set(vars(module))
        self.buffers = dict(module._buffers)
        self.plain = {name: value for name, value in vars(module).items() if value is None or isinstance(value, Tensor)}
        kept = [each for each in (*self.buffers.values(), *self.plain.values()) if isinstance(each, Tensor)]
        self.contents = [(each, each.detach().clone()) for each in kept]
        self.is_free = [each for each in kept if not each.requires_grad]

    def restore(self) -> None:
        """The same objects, with the same content."""
        self.module._buffers.clear()
        self.module._buffers.update(self.buffers)
        held = vars(self.module)
        for name in [name for name, value in held.items() if name not in self.names and isinstance(value, Tensor)]:
            del held[name]
        held |= {name: value for name, value in self.plain.items() if Tensor in (type(value), type(held.get(name)))}
        for tensor in self.is_free:
            if tensor.requires_grad:
                tensor.detach_()  # written to in place: it would keep the graph
        for tensor, content in self.contents:
            with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                if tensor.shape != content.shape:
                    tensor.data = content
                elif not tensor.is_meta and not torch.equal(tensor, content):
                    tensor.copy_(content)


@contextmanager
def untouched(model: nn.Module | None, inputs: Any) -> Iterator[None]:
    """Afterwards the random states, and the gradients, buffers, tensors and modes of a model are what they were.

    Args:
        model: a module, or None for code without one.
        inputs: whatever it is called with; gradients of tensors in there are restored too.
    """
    state = RandomState()
    parameters = [] if model is None else list(model.parameters())
    leaves = [*parameters, *(each for each in tensors_in(inputs) if each.requires_grad and each.is_leaf)]
    gradients = [leaf.grad for leaf in leaves]
    # Hooks that step an optimizer during the backward pass must not.
    after: list[dict[int, Any]] = [hooks for each in leaves if (hooks := each._post_accumulate_grad_hooks)]
    kept_after = [dict(hooks) for hooks in after]
    modules = [] if model is None else list(model.modules())
    odd = (nn.modules.lazy.LazyModuleMixin, torch.jit.ScriptModule)
    held = [_Held(module) for module in modules if not isinstance(module, odd)]
    try:
        for leaf in leaves:
            leaf.grad = None
        for hooks in after:
            hooks.clear()
        with nullcontext() if model is None else restored_mode(model):
            yield
    finally:
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        for hooks, kept in zip(after, kept_after, strict=True):
            hooks.update(kept)
        for each in held:
            each.restore()
        state.restore()


@contextmanager
def stepped(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Take one step of an optimizer, and take it back afterwards: weights, state, and options.

    The step is taken on copies of the state, and the originals are put back.

    Args:
        optimizer: one whose ``step()`` needs no closure.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    weights = [each.detach().clone() for each in parameters]
    states, groups = dict(optimizer.state), [dict(group) for group in optimizer.param_groups]
    plain = {key: value for key, value in vars(optimizer).items() if isinstance(value, bool | int | float | str)}
    try:
        optimizer.state.update({each: copy.deepcopy(state) for each, state in states.items()})
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            group.update({key: copy.deepcopy(value) for key, value in kept.items() if key != "params"})
        optimizer.step()
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
        optimizer.state.clear()
        optimizer.state.update(states)
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            group.clear()
            group.update(kept)
        vars(optimizer).update(plain)
