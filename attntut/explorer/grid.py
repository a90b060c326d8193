"""The function of an explorer on the grid of its controls, packed into a few kilobytes.

The format, which ``explorer.js`` reads: the whole is zlib-compressed; inside are four bytes (little-endian) with the
length of a JSON header, the header, and the arrays of integers that it describes, one after the other. An array that
several states share is stored once. The arrays of one name are filtered (differences to the array before, or to the
number before, whichever compresses better), made non-negative (zigzag) and split into planes of bytes, lowest first.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .controls import Control
from .panels import Panel
from .quantize import Ints

MAX_POINTS = 4000
MAX_BYTES = 60_000
KINDS = {"heat_map": "heat map", "lines": "lines", "bars": "bars", "histogram": "histogram", "number": "number"}

Panels = dict[str, Panel]


def call(function: Callable[..., Any], values: Mapping[str, Any]) -> Panels:
    """Call the function and check that it returned panels by name."""
    panels = function(**values)
    name = getattr(function, "__name__", "the function")
    state = ", ".join(f"{k}={v!r}" for k, v in values.items())
    makers = "heat_map, lines, bars, histogram or number"
    if not isinstance(panels, Mapping):
        raise TypeError(
            f"{name}({state}) must return a dict of panels made by {makers}: got {type(panels).__name__}. "
            'Return {"a name": heat_map(…)}.'
        )
    if not panels:
        raise ValueError(f"{name}({state}) must return at least one panel: got an empty dict.")
    for key, panel in panels.items():
        if not isinstance(key, str):
            raise TypeError(f"{name}({state}) must name its panels with strings: got {key!r}.")
        if not isinstance(panel, Panel):
            raise TypeError(
                f"{name}({state}) must return panels made by {makers}: got {type(panel).__name__} for {key!r}."
            )
    return dict(panels)


def check_same(first: Panels, other: Panels, state: str) -> None:
    """Check that a state shows the same panels as the first, though their sizes may differ."""
    if list(first) != list(other):
        raise ValueError(
            f"The function must return the same panels in every state: got {list(other)} at {state}, "
            f"but {list(first)} at the start."
        )
    for name, panel in first.items():
        if panel.signature() != other[name].signature():
            raise ValueError(
                f"Panel {name!r} must stay what it is in every state: got {_describe(other[name])} at {state}, "
                f"but {_describe(panel)} at the start."
            )


def check_first(panels: Panels) -> None:
    """Check that every panel of the first state shows something: a reader judges an explorer by it."""
    for name, panel in panels.items():
        if why := panel.blank():
            raise ValueError(
                f"Panel {name!r} must show something in the first state: {why}. Start the controls at other values, or "
                "choose low and high so that differences can be seen."
            )


def _describe(panel: Panel) -> str:
    series = getattr(panel, "series", ())
    return KINDS[panel.kind] + (f" of {list(series)}" if any(series) else "")


def check_size(controls: Sequence[Control], max_points: int = MAX_POINTS) -> int:
    """Return the number of points of the grid, or say which control has how many of too many."""
    points = math.prod(len(c.values) for c in controls)
    if points > max_points:
        raise ValueError(
            f"The grid of the controls must have at most {max_points} points: got {_product(controls)} = {points}. "
            f"{_advice(controls)}"
        )
    return points


def check_weight(controls: Sequence[Control], weight: int, parts: Mapping[str, int]) -> None:
    """Check that the page's share of one explorer is small enough."""
    if weight > MAX_BYTES:
        shares = ", ".join(f"{name} {size / 1000:.0f}" for name, size in sorted(parts.items(), key=lambda p: -p[1]))
        raise ValueError(
            f"An explorer must weigh at most {MAX_BYTES // 1000} kB compressed: got {weight / 1000:.0f} kB for "
            f"{_product(controls)} points (kB: {shares}). {_advice(controls)} Or keep fewer digits (digits=2), "
            "or make the panels smaller."
        )


def _product(controls: Sequence[Control]) -> str:
    return " × ".join(f"{c.name}: {len(c.values)}" for c in controls) or "1"


def _advice(controls: Sequence[Control]) -> str:
    if not controls:
        return ""
    most = max(controls, key=lambda c: len(c.values))
    return f"Give {most.name!r} fewer options (a larger step), or drop a control."


def evaluate(function: Callable[..., Any], controls: Sequence[Control]) -> list[Panels]:
    """The panels of every state; the last control varies fastest."""
    states: list[Panels] = []
    for indices in itertools.product(*(range(len(c.values)) for c in controls)):
        values = {c.name: c.values[i] for c, i in zip(controls, indices, strict=True)}
        panels = call(function, values)
        if states:
            check_same(states[0], panels, ", ".join(f"{k}={v!r}" for k, v in values.items()))
        states.append(panels)
    return states


# -- packing ----------------------------------------------------------------------------------------------------------


def pack(states: Sequence[Panels], controls: Sequence[Control]) -> tuple[bytes, dict[str, int]]:
    """Return the compressed grid, and what each panel weighs in it."""
    header: dict[str, Any] = {"controls": [c.describe() for c in controls], "panels": []}
    body, parts = [], {}
    for name in states[0]:
        encoded = [state[name].encode() for state in states]
        metas, meta_of = _distinct([json.dumps(meta, ensure_ascii=False, sort_keys=True) for meta, _ in encoded])
        fields: dict[str, Any] = {}
        weight = 0
        for field in dict.fromkeys(key for _, data in encoded for key in data):
            arrays, array_of = _distinct([tuple(data.get(field, ())) for _, data in encoded])
            description, stream = _encode([np.array(a, dtype=np.int64) for a in arrays])
            if not stream:
                continue
            fields[field] = {"of": array_of, **description}
            body.append(stream)
            weight += len(zlib.compress(stream, 9))
        parts[name] = weight
        header["panels"].append(
            {
                "name": name,
                "kind": states[0][name].kind,
                "metas": [json.loads(meta) for meta in metas],
                "meta_of": meta_of,
                "fields": fields,
            }
        )
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return zlib.compress(struct.pack("<I", len(text)) + text + b"".join(body), 9), parts


def _distinct(items: list[Any]) -> tuple[list[Any], list[int] | None]:
    """The different ones among the items, and which of them each item is (None: each its own)."""
    places = {item: k for k, item in enumerate(dict.fromkeys(items))}
    order = [places[item] for item in items]
    return list(places), None if order == list(range(len(items))) else order


def _encode(arrays: list[Ints]) -> tuple[dict[str, Any], bytes]:
    lengths: list[int] | int = [len(a) for a in arrays]
    if len(set(map(len, arrays))) == 1:
        lengths = len(arrays[0])
    candidates = []
    for across, along in ((0, 0), (0, 1), (1, 0), (1, 1)):
        planes, stream = _planes(_filter(arrays, bool(across), bool(along)))
        candidates.append((len(zlib.compress(stream, 6)), across, along, planes, stream))
    _, across, along, planes, stream = min(candidates)
    return {"count": len(arrays), "lengths": lengths, "across": across, "along": along, "planes": planes}, stream


def _filter(arrays: list[Ints], across: bool, along: bool) -> Ints:
    """Differences to the array before (where it has the same length), then to the number before."""
    out = []
    for k, array in enumerate(arrays):
        if across and k and len(arrays[k - 1]) == len(array):
            array = array - arrays[k - 1]
        out.append(np.diff(array, prepend=0) if along else array)
    return np.concatenate(out)


def _planes(numbers: Ints) -> tuple[int, bytes]:
    zigzag = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
    planes = max(1, math.ceil(int(zigzag.max(initial=0)).bit_length() / 8))
    return planes, b"".join(((zigzag >> 8 * p) & 255).astype(np.uint8).tobytes() for p in range(planes))
