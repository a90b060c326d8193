"""Gradient norms by role, from hooks on the parameters: ``.grad`` is neither needed nor touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from attntut.anatomy.layout import at
from attntut.anatomy.view import Entry, ModelView
from attntut.anatomy.weight import ATTENTION
from attntut.diagnose.layers import ROOT, Uncopied
from attntut.diagnose.statistics import norm


class Gradients:
    """Listens to the gradients of a model's attention projections, as long as ``is_listening()``."""

    def __init__(self, seen: ModelView, is_listening: Callable[[], bool]) -> None:
        self.is_listening = is_listening
        self.norms: dict[tuple[str, str], list[float]] = {}  # (layer, role): a norm a backward pass
        self.layers = [group.name or ROOT for group in seen.attention]
        self._hooks = ExitStack()
        entries: dict[str, list[tuple[str, str, Entry]]] = {}
        for layer, group in zip(self.layers, seen.attention, strict=True):
            for role in ATTENTION:
                if (entry := getattr(group, role)) is not None:
                    entries.setdefault(entry.parameter, []).append((layer, role, entry))
        for name, parts in entries.items():
            parameter = seen.module.get_parameter(name)
            if parameter.requires_grad:
                self._hooks.enter_context(parameter.register_hook(_Norms(self, parameter, parts)))
        self.close = self._hooks.close

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a layer, as in :class:`~attntut.diagnose.Report`; the mean over the backward passes."""
        rows = []
        for layer in self.layers if self.norms else ():
            found = {role: self.norms.get((layer, role)) for role in ATTENTION}
            norms = {role: sum(each) / len(each) if each else None for role, each in found.items()}
            ratios = {f"ratio_{role}": _ratio(norms[role], norms["value"]) for role in ("query", "key")}
            rows.append({"layer": layer, **norms, **ratios})
        return rows


class _Norms(Uncopied):
    """A hook on one parameter, which may hold several projections."""

    def __init__(self, owner: Gradients, parameter: Tensor, parts: list[tuple[str, str, Entry]]) -> None:
        self.owner = owner
        self.parts = [(key, part.matrix.within(parameter)) for *key, part in parts]
        self.stride = parameter.stride()

    def __call__(self, gradient: Tensor) -> None:
        if not self.owner.is_listening() or gradient.is_meta:
            return
        with torch.no_grad():
            if gradient.stride() != self.stride:
                gradient = gradient.new_empty_strided(gradient.shape, self.stride).copy_(gradient)
            for (layer, role), place in self.parts:
                self.owner.norms.setdefault((layer, role), []).append(norm(at(gradient, place)))


def _ratio(norm: float | None, value: float | None) -> float | None:
    if norm is None or value is None:
        return None
    return norm / value if value else math.nan
