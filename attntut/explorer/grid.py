"""The function of an explorer on the grid of its controls: JSON, compressed to a few kilobytes."""

from __future__ import annotations

import itertools
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .controls import Control
from .panels import Panel

MAX_POINTS = 4000
MAX_BYTES = 60_000

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
        if panel.blank:
            raise ValueError(
                f"Panel {name!r} must show something in the first state: {panel.blank}. "
                "Start the controls at other values, or choose low and high so that differences can be seen."
            )


def _describe(panel: Panel) -> str:
    series = getattr(panel, "series", ())
    return panel.kind.replace("_", " ") + (f" of {list(series)}" if any(series) else "")


def check_size(controls: Sequence[Control]) -> None:
    """Check that the grid has not too many points, and say which control has how many."""
    points = math.prod(len(c.values) for c in controls)
    if points > MAX_POINTS:
        raise ValueError(
            f"The grid of the controls must have at most {MAX_POINTS} points: got {_product(controls)} = {points}. "
            f"{_advice(controls)}"
        )


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


def encode(panels: Panels) -> list[dict[str, Any]]:
    """The panels of one state as JSON: what the ES module draws."""
    return [{"name": name, **panel.encode()} for name, panel in panels.items()]


def pack(states: Sequence[Panels], controls: Sequence[Control]) -> tuple[bytes, dict[str, int]]:
    """Return the grid as compressed JSON, and what each panel weighs in it.

    For each panel: its different states, and ``of``, which of them stands at each point of the grid.
    """
    panels, weights = [], {}
    for name, shown in zip(states[0], zip(*map(encode, states), strict=True), strict=True):
        texts = [_json(panel) for panel in shown]
        different = dict(zip(texts, shown, strict=True))
        places = {text: place for place, text in enumerate(different)}
        panels.append({"states": list(different.values()), "of": [places[text] for text in texts]})
        weights[name] = len(zlib.compress("".join(different).encode(), 9))
    grid = {"controls": [c.encode() for c in controls], "panels": panels}
    return zlib.compress(_json(grid).encode(), 9), weights


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
