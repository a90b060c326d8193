"""Run somebody's model without leaving a trace in its modes or in torch's switches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_fast_path_lock = threading.Lock()
_fast_path_users: list[bool] = []  # whether it was on when each user came


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
