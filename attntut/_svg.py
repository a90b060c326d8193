"""Matplotlib's SVG made fit for a page: small, in the page's font, in the page's colours."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from xml.etree import ElementTree

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
PIXELS = 96 / 72  # CSS pixels in a point
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
REFERENCE = re.compile(r"(?:^|url\()#([\w-]+)")
INVISIBLE = {"fill": "none"}

_figures = itertools.count(1)


def inline(source: str, *, alt: str, variables: Mapping[str, str]) -> str:
    """Return the ``<svg>`` of a figure as a page holds it.

    Text stays text and takes the page's font; a colour that has a variable becomes that variable, black the colour of
    text; identifiers are unique in the process, so figures of one page do not meet.

    Args:
        source: what matplotlib writes with ``svg.fonttype: none`` and ``transparent=True``.
        alt: the name of the image for readers who do not see it.
        variables: from colours such as ``"#0072b2"`` to the names of CSS variables.

    Example:
        >>> red = '<path d="M 0.1234 1 \\nL 2 3" style="fill: #ff0000; stroke: #00ff00"/>'
        >>> source = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 36"><g id="axes_1">{red}</g></svg>'
        >>> inline(source, alt="A line", variables={"#ff0000": "--c0"})
        '<svg viewBox="0 0 72 36" width="96" height="48" role="img" aria-label="A line"><path
        d="M0.12 1L2 3" style="fill:var(--c0,#ff0000);stroke:#00ff00" /></svg>'
    """
    root = ElementTree.fromstring(source)
    box = root.get("viewBox", "0 0 0 0")
    width, height = (f"{float(side) * PIXELS:.0f}" for side in box.split()[2:])
    prefix = f"figure-{next(_figures)}-"
    colours = {"#000000": "currentColor"} | {colour: f"var({name},{colour})" for colour, name in variables.items()}
    _prune(root)
    wanted = {name for element in root.iter() for value in element.attrib.values() for name in REFERENCE.findall(value)}
    for element in root.iter():
        _shorten(element, colours)
        _rename(element, prefix, wanted)
    root.attrib = {"viewBox": box, "width": width, "height": height, "role": "img", "aria-label": alt}
    return ElementTree.tostring(root, encoding="unicode")


def _prune(parent: ElementTree.Element) -> None:
    """Drop metadata, shapes that cannot be seen and groups that say nothing; join a formula's letters."""
    kept: list[ElementTree.Element] = []
    if parent.tag not in (f"{SVG}text", f"{SVG}tspan"):
        parent.text = None
    for child in parent:
        tag = child.tag.removeprefix(SVG)
        if tag in ("metadata", "style") or (tag == "path" and _style(child) == INVISIBLE):
            continue
        _prune(child)
        if tag == "text":
            _join(child)
        child.tail = None
        redundant = tag == "g" and child.attrib.keys() <= {"id"}
        empty = tag in ("g", "defs") and not len(child)
        kept += [] if empty else list(child) if redundant else [child]
    parent[:] = kept


def _join(text: ElementTree.Element) -> None:
    """Let the letters of a formula, which are placed one by one, flow in the font that is there.

    The spaces around its signs are lost: a label such as "σ = 1" is better written without dollar signs.
    """
    flow: list[ElementTree.Element] = []
    height = 0.0
    for span in text:
        y = float(span.attrib.pop("y", "0").split()[0])
        span.attrib.pop("x", None)
        rise, height = y - height, y
        if flow and abs(rise) < 0.01 and flow[-1].get("style") == span.get("style"):
            flow[-1].text = (flow[-1].text or "") + (span.text or "")
        else:
            span.set("dy", f"{rise:.2f}")
            flow.append(span)
    if flow:
        text[:], text.text = flow, None


def _shorten(element: ElementTree.Element, colours: Mapping[str, str]) -> None:
    """Round, leave defaults away, and put the page's colours in."""
    element.tag = element.tag.removeprefix(SVG)
    style = {key: element.attrib.pop(key) for key in ("fill", "stroke") if key in element.attrib} | _style(element)
    if style:
        style.pop("font-family", None)
        parts = (f"{key}:{colours.get(value, _round(value, 2))}" for key, value in style.items())
        element.set("style", ";".join(parts))
    for key in ("d", "x", "y", "dy", "width", "height", "points", "transform"):
        if key in element.attrib:
            element.set(key, _round(element.attrib[key], 4 if key == "transform" else 2))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if "d" in element.attrib:
        element.set("d", re.sub(r"\s*([A-Za-z])\s*", r"\1", element.attrib["d"].strip()))
    address = element.attrib.pop(f"{XLINK}href", None)
    if address:
        element.set("href", re.sub(r"\s", "", address))


def _rename(element: ElementTree.Element, prefix: str, wanted: set[str]) -> None:
    """Give identifiers that are referred to the figure's prefix, and take the others away."""
    name = element.attrib.pop("id", None)
    if name in wanted:
        element.set("id", f"{prefix}{name}")
    for key, value in element.attrib.items():
        if key == "href" and value.startswith("#"):
            element.set(key, f"#{prefix}{value[1:]}")
        else:
            element.set(key, value.replace("url(#", f"url(#{prefix}"))


def _style(element: ElementTree.Element) -> dict[str, str]:
    pairs = (part.split(":", 1) for part in element.get("style", "").split(";") if part.strip())
    return {key.strip(): value.strip() for key, value in pairs if key.strip() != "stroke-dashoffset"}


def _round(text: str, digits: int) -> str:
    return NUMBER.sub(lambda match: f"{round(float(match[0]), digits):g}", text)
