"""What a page needs to know of an ipywidget: its name, its options, which one it starts at."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
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
        kind: ``slider``, ``select``, ``buttons`` or ``check``: how the page draws it.
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

    def encode(self) -> dict[str, Any]:
        """What the ES module needs, as JSON."""
        return {key: getattr(self, key) for key in ("name", "label", "kind", "labels", "start")}


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

    def made(kind: str, values: Iterable[Any], labels: Iterable[str], start: int, make: Callable[[], Any]) -> Control:
        return Control(name, getattr(control, "description", name) or name, kind, (*values,), (*labels,), start, make)

    if isinstance(control, bool):
        return made("check", (False, True), ("off", "on"), int(control), lambda: widgets.Checkbox(value=control))
    if isinstance(control, list | tuple | range) and len(control):
        labels = [f"{o:g}" if isinstance(o, float) else str(o) for o in control]
        numeric = all(isinstance(o, int | float) and not isinstance(o, bool) for o in control)
        kind = "slider" if numeric else "buttons" if len(control) <= BUTTONS_AT_MOST else "select"
        start = control.index(default) if default in control else 0
        widget = {"slider": widgets.SelectionSlider, "buttons": widgets.ToggleButtons, "select": widgets.Dropdown}[kind]
        options = list(zip(labels, control, strict=True))
        return made(kind, control, labels, start, lambda: widget(options=options, value=control[start]))
    if isinstance(control, widgets.Checkbox | widgets.ToggleButton):
        return made("check", (False, True), ("off", "on"), int(control.value), lambda: control)
    if isinstance(control, widgets.widget_selection._Selection):
        if control.index is None:
            raise ValueError(f"The control {name!r} must have a value to start at: got None.")
        kinds = {"slider": widgets.SelectionSlider, "buttons": widgets.ToggleButtons}
        kind = next((kind for kind, widget in kinds.items() if isinstance(control, widget)), "select")
        return made(kind, control._options_values, control._options_labels, int(control.index), lambda: control)
    if isinstance(control, widgets.IntSlider | widgets.FloatSlider | widgets.FloatLogSlider):
        values, start = _steps(name, control)
        return made("slider", values, [_format(v, control.readout_format) for v in values], start, lambda: control)
    raise TypeError(
        f"The control {name!r} can't be put on a page: got {type(control).__name__}. Use SelectionSlider, Dropdown, "
        "ToggleButtons, IntSlider, FloatSlider, FloatLogSlider, Checkbox, ToggleButton, a list of options, or a bool."
    )


def _steps(name: str, control: Any) -> tuple[list[Any], int]:
    """The values of a slider, and the place of the one at which it starts."""
    if not control.step or control.step <= 0:
        raise ValueError(f"The control {name!r} must have a step > 0: got {control.step!r}.")
    steps = math.floor((control.max - control.min) / control.step + 1e-9)
    places: list[Any] = [control.min + k * control.step for k in range(steps + 1)]
    values, position = places, control.value
    if isinstance(control, widgets.FloatLogSlider):
        values, position = [control.base**exponent for exponent in places], math.log(control.value, control.base)
    if not isinstance(control, widgets.IntSlider):
        values = [float(f"{value:.12g}") for value in values]  # 0.30000000000000004 → 0.3, the same on every machine
    start = min(range(len(places)), key=lambda k: abs(places[k] - position))
    if abs(places[start] - position) > 1e-6 * max(1.0, abs(control.step)):
        raise ValueError(
            f"The control {name!r} must start on one of its steps: got value={control.value!r} with "
            f"min={control.min!r}, max={control.max!r}, step={control.step!r}. Nearest: {values[start]!r}."
        )
    return values, start


def _format(value: float, form: str) -> str:
    try:
        return format(value, form).replace("-", "−")
    except ValueError:  # a format of d3 that Python does not know
        return f"{value:g}".replace("-", "−")
