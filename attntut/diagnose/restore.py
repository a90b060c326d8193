"""Leave no trace: random states, gradients, buffers, modes and weights as they were."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from attntut._modes import restored_mode
from attntut.diagnose.layers import tensors_in


class RandomState:
    """The state of every global generator: torch's, on every device in use, Python's and NumPy's."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        self.python, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002

    def restore(self) -> None:
        """Set all of them."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


@contextmanager
def untouched(model: nn.Module | None, inputs: Any) -> Iterator[None]:
    """Afterwards the random states, and the gradients, buffers and modes of a model are what they were.

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
    buffers = [] if model is None else [each for each in model.buffers() if each.dtype != torch.bool]
    contents = [buffer.detach().clone() for buffer in buffers]
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
        with torch.no_grad():
            for buffer, content in zip(buffers, contents, strict=True):
                if not torch.equal(buffer, content):
                    buffer.copy_(content)
        state.restore()


@contextmanager
def stepped(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Take one step of an optimizer, and take it back afterwards: weights, state, and options.

    Args:
        optimizer: one whose ``step()`` needs no closure.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    weights = [each.detach().clone() for each in parameters]
    tensors = [(each, each.clone()) for state in optimizer.state.values() for each in tensors_in(state)]
    states = {each: copy.copy(state) for each, state in optimizer.state.items()}
    options = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    plain = {key: value for key, value in vars(optimizer).items() if isinstance(value, bool | int | float | str)}
    try:
        optimizer.step()
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
            for tensor, content in tensors:
                tensor.copy_(content)
        optimizer.state.clear()
        optimizer.state.update(states)
        for group, kept in zip(optimizer.param_groups, options, strict=True):
            for key in set(group) - set(kept) - {"params"}:
                del group[key]
            group.update(kept)
        vars(optimizer).update(plain)
