"""The live side: ordinary ipywidgets as controls, and one anywidget that draws what the function returns."""

from __future__ import annotations

import html
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from .controls import Control
from .grid import Panels, call, check_same, encode
from .page import SCRIPT, STYLE


class Drawing(anywidget.AnyWidget):
    """The panels of one state, drawn by the same ES module as on the page."""

    _esm = SCRIPT
    _css = STYLE
    state = traitlets.Dict().tag(sync=True)  # {"panels": [...], "error": "" or a traceback}

    def __repr__(self) -> str:
        return "Drawing()"


class Live:
    """The widget of one explorer: moving a control calls the function, whatever the value."""

    def __init__(
        self, function: Callable[..., Any], controls: Sequence[Control], first: Panels, title: str, caption: str
    ) -> None:
        self.function = function
        self.first = first
        self.controls = {c.name: c.make() for c in controls}
        self.start = {name: control.value for name, control in self.controls.items()}
        self.drawing = Drawing(state={"panels": encode(first), "error": ""})
        for name, control in self.controls.items():
            control.description = control.description or name
            control.style.description_width = "initial"
            control.observe(self.update, names="value")
        reset = widgets.Button(description="Reset", tooltip="Back to the values of the book", icon="undo")
        reset.on_click(lambda _: self.reset())
        row = widgets.Layout(display="flex", flex_flow="row wrap", align_items="center", grid_gap="0.25em 1em")
        self.box = widgets.VBox(
            [
                widgets.HTML(f"<b>{html.escape(title)}</b>"),
                widgets.Box([*self.controls.values(), *([reset] if self.controls else [])], layout=row),
                self.drawing,
                *([widgets.HTML(html.escape(caption))] if caption else []),
            ]
        )

    def update(self, _change: object = None) -> None:
        """Call the function with the values of the controls; an error is shown where the panels are."""
        values = {name: control.value for name, control in self.controls.items()}
        try:
            panels = call(self.function, values)
            check_same(self.first, panels, ", ".join(f"{k}={v!r}" for k, v in values.items()))
            self.drawing.state = {"panels": encode(panels), "error": ""}
        except Exception as error:
            headline = f"{type(error).__name__}: {error}"
            self.drawing.state = {"panels": [], "error": headline, "traceback": traceback.format_exc()}

    def reset(self) -> None:
        """Put every control back."""
        with self.drawing.hold_sync():
            for name, value in self.start.items():
                self.controls[name].value = value

    def mimebundle(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The view of the widget, with what a host (Colab, say) needs to find the widget's code."""
        data = self.box._repr_mimebundle_()
        own = self.drawing._repr_mimebundle_()
        return data, (own[1] if own else {})
