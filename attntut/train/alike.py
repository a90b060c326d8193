"""Checks that models differ in nothing but the values of their weights."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn

from attntut.train.settings import check_model


def check_alike(models: Iterable[nn.Module]) -> list[nn.Module]:
    """Refuse models that cannot be trained at once, and say which and why."""
    if (isinstance(models, nn.Module) and not isinstance(models, nn.ModuleList)) or not isinstance(models, Iterable):
        raise TypeError(f"models must be a sequence of torch.nn.Module: got {type(models).__name__}.")
    models = list(models)
    if not models:
        raise ValueError("models must hold at least one model: got none.")
    for i, model in enumerate(models):
        check_model(f"models[{i}]", model)
        if any(model is other for other in models[:i]):
            raise ValueError(f"models must be different objects: models[{i}] came before.")
    first, *others = map(_description, models)
    for i, other in enumerate(others, 1):
        for what in first | other:
            if (one := first.get(what, "missing")) != (another := other.get(what, "missing")):
                raise ValueError(
                    f"models must differ in the values of their weights only: {what} is {one} in models[0] "
                    f"and {another} in models[{i}]."
                )
    return models


def _description(model: nn.Module) -> dict[str, object]:
    """What a model is besides the values of its tensors: ``{"'blocks.0.attention.scale'": 0.35, …}``."""
    found: dict[str, object] = {"the type": type(model).__name__}
    tensors: list[tuple[str, Tensor]] = [
        *((f"parameter {name!r}", p) for name, p in model.named_parameters()),
        *((f"buffer {name!r}", b) for name, b in model.named_buffers()),
    ]
    for name, tensor in tensors:
        frozen = ", frozen" if isinstance(tensor, nn.Parameter) and not tensor.requires_grad else ""
        found[name] = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}{frozen}"
    for path, module in model.named_modules():
        found[repr(path)] = type(module).__name__
        for key, value in vars(module).items():
            if key == "training" or key.startswith("_"):
                continue
            for field, item in vars(value).items() if is_dataclass(value) else (("", value),):
                if isinstance(item, bool | int | float | str | tuple | None):
                    found[repr(".".join(filter(None, (path, key, field))))] = item
    return found


def one_each(name: str, values: Any, n: int, check: Callable[..., Any]) -> list[Any]:
    """A list with one number ≥ 0 a model, checked; a single learning rate serves all."""
    if isinstance(values, numbers.Real) and name == "lrs":
        values = [values] * n
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must hold one number a model: got {values!r}.")
    values = values.tolist() if isinstance(values, Tensor) else list(values)
    if len(values) != n:
        raise ValueError(f"{name} must hold one number a model, {n} in all: got {len(values)}.")
    return [check(f"{name}[{i}]", value, low=0) for i, value in enumerate(values)]
