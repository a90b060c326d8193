"""What a page needs to know of an ipywidget: its name, its options, which one it starts at."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets

BUTTONS_AT_MOST = 4  # more choices become a drop-down list


@dataclass(frozen=True)
class Control:
    """The options of one control.

    Attributes:
        name: of the function's argument.
        label: shown beside it.
        kind: ``slider``, ``select``, ``buttons``, ``check`` or ``toggle``: how the page draws it.
        values: what the function is given.
        labels: what the reader sees.
        start: index of the default option.
        make: returns the ipywidget (made on demand, when the control was given as a plain list or a bool).
    """

    name: str
    label: str
    kind: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]
    start: int
    make: Callable[[], Any]

    def describe(self) -> dict[str, Any]:
        """What the ES module needs."""
        plain = [v if _is_plain(v) else text for v, text in zip(self.values, self.labels, strict=True)]
        return {
            "name": self.name,
            "label": self.label,
            "kind": self.kind,
            "values": plain,
            "labels": list(self.labels),
            "start": self.start,
        }


def read(name: str, control: Any, default: Any = None) -> Control:
    """Return what there is to know of ``control``: an ipywidget, a bool, or a list of options.

    Args:
        name: of the function's argument.
        control: ``SelectionSlider``, ``Dropdown``, ``ToggleButtons``, ``RadioButtons``, ``Select``, ``IntSlider``,
            ``FloatSlider``, ``FloatLogSlider``, ``Checkbox``, ``ToggleButton``; or a bool (a check box), or a list.
        default: the option of a list to start at; the first one when it is not in the list.

    Example:
        >>> read("d_k", widgets.SelectionSlider(options=[4, 16, 64], value=16)).labels
        ('4', '16', '64')
        >>> read("sigma", widgets.FloatLogSlider(value=1, base=10, min=-1, max=1, step=0.5)).labels
        ('0.1', '0.316', '1', '3.16', '10')
    """
    if isinstance(control, bool):
        return _switch(name, name, "check", control, lambda: _labelled(widgets.Checkbox(value=control), name))
    if isinstance(control, list | tuple | range) and len(control):
        return _listed(name, list(control), default)
    if isinstance(control, widgets.Checkbox | widgets.ToggleButton):
        kind = "check" if isinstance(control, widgets.Checkbox) else "toggle"
        return _switch(name, control.description or name, kind, control.value, lambda: _labelled(control, name))
    if isinstance(control, widgets.widget_selection._Selection):
        return _selection(name, control)
    if isinstance(control, widgets.IntSlider | widgets.FloatSlider | widgets.FloatLogSlider):
        return _slider(name, control)
    raise TypeError(
        f"The control {name!r} can't be put on a page: got {type(control).__name__}. Use SelectionSlider, Dropdown, "
        "ToggleButtons, IntSlider, FloatSlider, FloatLogSlider, Checkbox, ToggleButton, a list of options, or a bool."
    )


def _switch(name: str, label: str, kind: str, value: bool, make: Callable[[], Any]) -> Control:
    return Control(name, label, kind, (False, True), ("off", "on"), int(value), make)


def _listed(name: str, options: list[Any], default: Any) -> Control:
    labels = tuple(f"{o:g}" if isinstance(o, float) else str(o) for o in options)
    numeric = all(isinstance(o, int | float) and not isinstance(o, bool) for o in options)
    kind = "slider" if numeric else "buttons" if len(options) <= BUTTONS_AT_MOST else "select"
    start = options.index(default) if default in options else 0
    widget = {"slider": widgets.SelectionSlider, "buttons": widgets.ToggleButtons, "select": widgets.Dropdown}[kind]

    def make() -> Any:
        pairs = list(zip(labels, options, strict=True))
        return _labelled(widget(options=pairs, value=options[start]), name)

    return Control(name, name, kind, tuple(options), labels, start, make)


def _selection(name: str, control: Any) -> Control:
    if control.index is None:
        raise ValueError(f"The control {name!r} must have a value to start at: got None.")
    labels = tuple(map(str, control._options_labels))
    values = tuple(control._options_values)
    if isinstance(control, widgets.SelectionSlider):
        kind = "slider"
    else:
        kind = "buttons" if isinstance(control, widgets.ToggleButtons) else "select"
    return Control(
        name, control.description or name, kind, values, labels, int(control.index), lambda: _labelled(control, name)
    )


def _slider(name: str, control: Any) -> Control:
    if not control.step or control.step <= 0:
        raise ValueError(f"The control {name!r} must have a step > 0: got {control.step!r}.")
    steps = math.floor((control.max - control.min) / control.step + 1e-9)
    position: Any = control.value
    places: Sequence[Any]
    if isinstance(control, widgets.IntSlider):
        places = values = [control.min + k * control.step for k in range(steps + 1)]
    else:
        places = values = [_clean(control.min + k * control.step) for k in range(steps + 1)]
        if isinstance(control, widgets.FloatLogSlider):
            values = [_clean(control.base**exponent) for exponent in places]
            position = math.log(control.value, control.base)
    start = min(range(len(places)), key=lambda k: abs(places[k] - position))
    if abs(places[start] - position) > 1e-6 * max(1.0, abs(control.step)):
        raise ValueError(
            f"The control {name!r} must start on one of its steps: got value={control.value!r} with "
            f"min={control.min!r}, max={control.max!r}, step={control.step!r}. Nearest: {values[start]!r}."
        )
    labels = tuple(_format(value, control.readout_format) for value in values)
    return Control(
        name, control.description or name, "slider", tuple(values), labels, start, lambda: _labelled(control, name)
    )


def _labelled(control: Any, name: str) -> Any:
    if not control.description:
        control.description = name
    return control


def _clean(value: float) -> float:
    """0.30000000000000004 → 0.3, the same on every machine."""
    return float(f"{value:.12g}")


def _format(value: float, form: str) -> str:
    try:
        return format(value, form).replace("-", "−")
    except ValueError:  # a format of d3 that Python does not know
        return f"{value:g}".replace("-", "−")


def _is_plain(value: Any) -> bool:
    if not isinstance(value, bool | int | float | str | None):
        return False
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True
