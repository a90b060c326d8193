"""Diagrams: each file by the rules of ``bookext.diagrams``, and what a page makes of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from small_book import build_book

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

from bookext.diagrams import SVG, inline  # noqa: E402

FOLDER = ROOT / "book" / "diagrams"
EXAMPLE = (FOLDER / "example.svg").read_text(encoding="utf-8")
RULES = (ROOT / "book" / "_static" / "diagrams.css").read_text(encoding="utf-8")
STYLE = (FOLDER / "style.css").read_text(encoding="utf-8") + RULES
TAGS = {"svg", "style", "defs", "marker", "clipPath", "g", "rect", "circle", "ellipse", "path", "line", "polyline"}
TAGS |= {"polygon", "text", "tspan", "use"}
WIDEST = 480  # units, which are CSS pixels: a phone still shows the smallest type 9 pixels high

each = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.svg")), ids=lambda path: path.stem)


# --- the files --------------------------------------------------------------------------------------------------------


@each
def test_a_file_follows_the_rules(path):
    root = ElementTree.parse(path).getroot()
    elements = list(root.iter())
    tags = {element.tag.removeprefix(SVG) for element in elements}
    assert tags <= TAGS, f"{tags - TAGS}: a diagram holds shapes and text, nothing that a page must not load"
    assert root.get("class") == "attntut-diagram"
    left, top, width, height = map(float, root.get("viewBox").split())
    assert (left, top) == (0, 0) and width <= WIDEST
    assert (float(root.get("width")), float(root.get("height"))) == (width, height), "JupyterLab stretches it."
    assert root.find(f"{SVG}style").text.strip() == STYLE.strip(), "style.css, then diagrams.css"
    assert [e.get("class") for e in elements].count("d-card") == 1, "a ground to lie on where there is no page"
    styled = {"fill", "stroke", "color", "style", "font-family", "font-size"}
    found = [element.tag for element in elements if styled & element.attrib.keys()]
    assert not found, f"classes give colour and type, not attributes: {found}"


@each
def test_every_class_has_a_style(path):
    used = set(" ".join(re.findall(r'class="([^"]*)"', path.read_text(encoding="utf-8"))).split())
    assert used - {"attntut-diagram"} <= {name[1:] for name in re.findall(r"\.d-\w+", STYLE)}


# --- on a page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def build(tmp_path):
    """A function that builds a page of Markdown beside a folder with the example."""

    def run(markdown: str, source: str = EXAMPLE):
        return build_book(tmp_path, {"index.md": f"# Book\n\n{markdown}\n", "diagrams/example.svg": source})

    return run


def test_a_drawing_becomes_part_of_the_page(build):
    built = build('![Queries < "keys"](diagrams/example.svg)')
    page = built.page("index")
    assert not built.warnings
    (svg,) = re.findall(r'<figure class="attntut-figure"><svg.*?</svg></figure>', page, re.DOTALL)
    assert 'role="img" aria-label="Queries &lt; &quot;keys&quot;"' in svg
    assert ">queries</text>" in svg, "text is text"
    assert "<style" not in svg and "d-card" not in svg and "xmlns" not in svg
    assert "<img" not in page and not (built.out / "_images").exists()
    assert "<p><figure" not in page
    assert "diagrams.css" in page, "the page has the rules of the files"


def test_a_page_without_a_drawing_loads_no_rules_for_one(build):
    assert "diagrams.css" not in build("No drawing.").page("index")


def test_drawings_on_a_page_share_no_identifiers(build):
    page = build("![One drawing](diagrams/example.svg)\n\n![The other](diagrams/example.svg)").page("index")
    heads = re.findall(r'id="(diagram-\d-head)"', page)
    assert heads == ["diagram-1-head", "diagram-2-head"]
    assert all(f"url(#{head})" in page for head in heads)


def test_spaces_between_words_of_a_line_stay():
    source = EXAMPLE.replace("queries", "<tspan>n</tspan> <tspan>tokens</tspan>")
    assert "<tspan>n</tspan> <tspan>tokens</tspan>" in inline(source, alt="", prefix="")


@pytest.mark.parametrize(
    "markdown, source, warning",
    [
        ("![A drawing](diagrams/nowhere.svg)", EXAMPLE, "image file not readable: diagrams/nowhere.svg"),
        ("![](diagrams/example.svg)", EXAMPLE, "without alternative text"),
        ("![A drawing](diagrams/example.svg)", "<svg", "is no drawing with a viewBox"),
        ("![A drawing](diagrams/example.svg)", "<svg/>", "is no drawing with a viewBox"),
    ],
    ids=["missing", "no name", "no XML", "no size"],
)
def test_what_is_wrong_is_a_warning(build, markdown, source, warning):
    assert warning in build(markdown, source).warnings
