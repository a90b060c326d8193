"""Plain data between a student's process and its judge: JSON, tensors as base64. What comes back is only data."""

from __future__ import annotations

import base64
import math
from collections import OrderedDict
from typing import Any

import torch

TYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64, torch.int64, torch.bool)}
MOST_ITEMS = 10_000  # of one list, tuple, set or dictionary
LARGEST_SIZE = 10_000_000  # of one dimension
DEEPEST = 20


class Odd:
    """Something that is no plain data. It equals nothing, not even itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


def pack(x: Any, depth: int = 0) -> Any:
    """Turn numbers, strings, tensors, and lists, tuples, sets and dictionaries of them into what JSON holds.

    Everything else becomes its type's name, and comes back as an :class:`Odd`.

    Example:
        >>> unpack(pack({"a": (1, torch.eye(2))}))
        {'a': (1, tensor([[1., 0.], [0., 1.]]))}
        >>> unpack(pack(print))
        <builtin_function_or_method>
    """
    if depth > DEEPEST:
        return {"odd": "data nested too deep"}
    kind = type(x)
    if kind in (bool, int, str, type(None)):
        return x
    if kind is float:
        return x if math.isfinite(x) else {"float": repr(x)}
    if kind in (list, tuple, set, frozenset, dict, OrderedDict) and len(x) > MOST_ITEMS:
        return {"odd": f"{kind.__name__} of more than {MOST_ITEMS} items"}
    if kind is list:
        return [pack(item, depth + 1) for item in x]
    if kind is tuple:
        return {"tuple": [pack(item, depth + 1) for item in x]}
    if kind in (set, frozenset):
        return {"set": [pack(item, depth + 1) for item in x]}
    if kind in (dict, OrderedDict):
        return {"dict": [[pack(key, depth + 1), pack(item, depth + 1)] for key, item in x.items()]}
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        name = str(x.dtype).removeprefix("torch.")
        if name not in TYPES:
            name = "float32" if x.is_floating_point() else "int64"
        flat = x.to(TYPES[name]).contiguous()
        return {"tensor": name, "shape": list(x.shape), "data": base64.b64encode(flat.numpy().tobytes()).decode()}
    if kind.__module__ == "numpy" and hasattr(x, "item") and getattr(x, "ndim", 1) == 0:
        return pack(x.item(), depth + 1)
    return {"odd": kind.__name__[:80]}


def unpack(x: Any) -> Any:
    """Turn what :func:`pack` made into data again; ``ValueError``, ``KeyError`` or ``TypeError`` for anything else."""
    if isinstance(x, list):
        return [unpack(item) for item in x]
    if not isinstance(x, dict):
        return x
    if "tensor" in x:
        shape = [int(size) for size in x["shape"]]
        if any(not 0 <= size <= LARGEST_SIZE for size in shape):  # beside a 0, any size has the right number of bytes
            raise ValueError(f"sizes must be from 0 to {LARGEST_SIZE}: got {shape}")
        flat = torch.frombuffer(bytearray(base64.b64decode(x["data"])) or bytearray(8), dtype=TYPES[x["tensor"]])
        return flat[: math.prod(shape)].reshape(shape).clone()
    if "tuple" in x:
        return tuple(unpack(item) for item in x["tuple"])
    if "set" in x:
        return {unpack(item) for item in x["set"]}
    if "dict" in x:
        pairs = [(unpack(key), unpack(item)) for key, item in x["dict"]]
        return {repr(key) if isinstance(key, Odd) else key: item for key, item in pairs}
    if "float" in x:
        return float(x["float"])
    return Odd(str(x["odd"]))
