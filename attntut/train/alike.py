"""Checks that models differ in nothing but the values of their weights."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from attntut.train.settings import check_model


def check_alike(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Refuse models that cannot be stacked, and say which and why."""
    if (isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)) or not isinstance(models, Iterable):
        raise TypeError(f"models must be a sequence of torch.nn.Module: got {type(models).__name__}.")
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model: got none.")
    for i, model in enumerate(models):
        check_model(f"models[{i}]", model)
        if any(model is other for other in models[:i]):
            raise ValueError(f"models must be different objects: models[{i}] came before.")
        _check_like_first(i, model, models[0])
    return models


def _check_like_first(i: int, model: nn.Module, first: nn.Module) -> None:
    """Raise unless the model is the first one with other weights."""

    def differs(what: str, theirs: object, ours: object) -> ValueError:
        return ValueError(
            f"models must differ in the values of their weights only: {what} is {theirs} in models[0] "
            f"and {ours} in models[{i}]."
        )

    if type(model) is not type(first):
        raise differs("the type", type(first).__name__, type(model).__name__)
    for kind in ("parameters", "buffers"):
        theirs, ours = (dict(getattr(m, f"named_{kind}")()) for m in (first, model))
        for name in [*theirs, *(name for name in ours if name not in theirs)]:
            a, b = (_description(tensors.get(name)) for tensors in (theirs, ours))
            if a != b:
                raise differs(f"{kind[:-1]} {name!r}", a, b)
    theirs, ours = _plain_attributes(first), _plain_attributes(model)
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if theirs.get(name, "missing") != ours.get(name, "missing"):
            raise differs(repr(name), theirs.get(name, "missing"), ours.get(name, "missing"))


def _plain_attributes(model: nn.Module) -> dict[str, object]:
    """What a model is besides its tensors: ``{"blocks.0.attention.scale": 0.35, …}``."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        found[path or "the model"] = type(module).__name__
        for key, value in vars(module).items():
            if key == "training" or key.startswith("_"):
                continue
            for field, item in vars(value).items() if is_dataclass(value) else (("", value),):
                if isinstance(item, bool | int | float | str | tuple | None):
                    found[".".join(filter(None, (path, key, field)))] = item
    return found


def _description(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    frozen = "" if tensor.requires_grad or not isinstance(tensor, nn.Parameter) else ", frozen"
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{frozen}"


def one_each(name: str, values: Any, n: int) -> list[Any]:
    """A list with one number a model; a single learning rate serves all."""
    if isinstance(values, numbers.Real) and name == "lrs":
        return [values] * n
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must hold one number a model: got {values!r}.")
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(values) != n:
        raise ValueError(f"{name} must hold one number a model, {n} in all: got {len(values)}.")
    return values
