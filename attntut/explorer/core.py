"""``Explorer``: a function, its controls, and the three ways to show them."""

from __future__ import annotations

import base64
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

from .._checks import check_choice
from . import controls as _controls
from . import grid, page, picture
from .panels import check_text

ENVIRONMENT = "ATTNTUT_EXPLORER"
MODES = ("live", "static", "picture")


class Explorer:
    """Let the reader turn the knobs of a function.

    A list of numbers becomes a slider, a list of words becomes buttons, ``True`` or ``False`` a check box; they start
    at the default of the function's argument, or at the first option. For more choice, give ipywidgets; here a slider
    of a logarithmic scale, and a panel for each thing to see::

        def attention(scale=1.0, causal=False):
            weights = ...                                     # (n, n), an array, a tensor or lists
            return {
                "Attention": heat_map(weights, xlabel="key", ylabel="query", low=0, high=1),
                "Entropy": number(entropy(weights), predicted=math.log(n) - scale**2 / 2, unit="nats"),
            }

        Explorer(attention, title="Attention", alt="Every row of the map has one bright cell.",
                 scale=widgets.FloatLogSlider(value=1, min=-2, max=1), causal=False)

    How it is shown depends on the environment variable ``ATTNTUT_EXPLORER``:

    * not set: a live widget. Moving a control calls the function, for any value.
    * ``static``: a figure for a page without a kernel. The function is called *now* on the grid of all values of all
      controls, and its values travel with the page.
    * ``picture``: only the picture of the default state, which is also what code hosts and paper show.

    Args:
        function: takes the controls as keyword arguments; returns a dict of panels (:func:`heat_map`, :func:`lines`,
            :func:`bars`, :func:`histogram`, :func:`number`), the same ones for every state. Their sizes may change.
        title: what is explored.
        alt: what the picture of the default state shows, for readers who can't see it.
        caption: what to look at; optional.
        **controls: ipywidgets (sliders, choices, buttons, check boxes), a list of options, or a bool.

    Raises:
        TypeError: a control that a page can't have, or a function that returns something else than panels.
        ValueError: a grid too large for a page (it says which control has how many points), panels that change their
            names or kinds from state to state; on a page also a first state in which a panel is blank.

    Example:
        The simplest explorer has one control and shows one number:

        >>> from attntut.explorer import Explorer, number
        >>> Explorer(lambda radius: {"Area": number(3.14159 * radius**2, unit="m²")},
        ...          title="A disc", alt="Area: 3.14 m²", radius=[1, 2])
        Explorer: A disc
          controls: radius = 1 (1, 2)
          panels:   Area (number)
    """

    def __init__(
        self, function: Callable[..., Any], /, *, title: str, alt: str, caption: str = "", **controls: Any
    ) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable: got {function!r} ({type(function).__name__}).")
        self.function = function
        self.title, self.alt, self.caption = _text("title", title), _text("alt", alt), check_text("caption", caption)
        self.mode = check_choice(ENVIRONMENT, os.environ.get(ENVIRONMENT) or "live", MODES)
        defaults = _match(function, controls)
        self.controls = [_controls.read(name, control, defaults.get(name)) for name, control in controls.items()]
        self._picture: bytes | None = None
        self._live: Any = None
        self._html = ""
        if self.mode != "live":  # so that an author hears of it before the book is built
            grid.check_size(self.controls)
        # Everything that can fail is done here: IPython swallows what fails while an object is shown.
        self.panels = grid.call(function, {c.name: c.values[c.start] for c in self.controls})
        if self.mode != "live":
            grid.check_first(self.panels)
        if self.mode == "static":
            self._html = self.html()

    def html(self) -> str:
        """The explorer as a figure for a page, with the function's values on the grid of the controls."""
        grid.check_size(self.controls)
        states = grid.evaluate(self.function, self.controls)
        data, parts = grid.pack(states, self.controls)
        text = page.figure(title=self.title, alt=self.alt, caption=self.caption, png=self.png(), data=data)
        grid.check_weight(self.controls, page.weight(text), parts | {"picture": len(picture.webp(self.png())[1])})
        return text

    def png(self) -> bytes:
        """A picture of the default state."""
        if self._picture is None:
            state = "  ·  ".join(f"{c.label} = {c.labels[c.start]}" for c in self.controls)
            self._picture = picture.draw(self.panels, state)
        return self._picture

    def __repr__(self) -> str:
        lines = [f"Explorer: {self.title}"]
        for k, c in enumerate(self.controls):
            lines.append(f"{'  controls: ' if k == 0 else ' ' * 12}{c.name} = {c.labels[c.start]} ({_span(c.labels)})")
        panels = ", ".join(f"{name} ({panel.kind.replace('_', ' ')})" for name, panel in self.panels.items())
        return "\n".join([*lines, f"  panels:   {panels}"])

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if self._html:
            return {"text/html": self._html, "text/plain": repr(self)}, {}
        data: dict[str, Any] = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": repr(self)}
        metadata: dict[str, Any] = {"image/png": {"alt": self.alt}}
        if self.mode == "live":
            view, more = self.live().mimebundle()
            data, metadata = view | data, more | metadata
        return data, metadata

    def live(self) -> Any:
        """The live widget; made once, so that two views of it move together."""
        if self._live is None:
            from .widget import Live

            self._live = Live(self.function, self.controls, self.panels, self.title, self.caption)
        return self._live


def _text(name: str, value: object) -> str:
    if not check_text(name, value).strip():
        raise ValueError(f"{name} must say something: got {value!r}.")
    return str(value)


def _match(function: Callable[..., Any], controls: dict[str, Any]) -> dict[str, Any]:
    """Check that the controls are the function's arguments; return the arguments' defaults."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # some built-in functions have none
        return {}
    name = getattr(function, "__name__", "function")
    try:
        signature.bind(**dict.fromkeys(controls))
    except TypeError as error:
        raise TypeError(
            f"The controls must be the arguments of {name}{signature}: got {', '.join(controls) or 'none'} ({error})."
        ) from error
    return {key: p.default for key, p in signature.parameters.items() if p.default is not p.empty}


def _span(labels: Sequence[str]) -> str:
    return ", ".join(labels) if len(labels) <= 6 else f"{labels[0]} … {labels[-1]}, {len(labels)} values"
