"""Figures carry their alternative text and draw what they were given."""

import base64
import gzip
import re
import struct
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from attntut import plots


@pytest.fixture
def shown(monkeypatch):
    """A function that shows a figure and returns the data and metadata that a notebook gets of it."""
    seen = []
    monkeypatch.setattr("IPython.display.display", seen.append)
    monkeypatch.delenv("ATTNTUT_EXPLORER", raising=False)

    def show(figure, alt="A line that rises."):
        plots.show(figure, alt=alt)
        return seen[-1]._repr_mimebundle_()

    return show


@pytest.fixture
def inline(shown, monkeypatch):
    """A function that shows a figure as the book is built, and returns its HTML."""
    monkeypatch.setenv("ATTNTUT_EXPLORER", "static")

    def show(figure, alt="A line that rises."):
        data, metadata = shown(figure, alt)
        assert data.keys() == {"text/html", "text/plain"} and metadata == {}
        return data["text/html"]

    return show


def drawn():
    """A figure with a bit of everything."""
    figure, (left, right) = plots.subplots(1, 2)
    plots.runs(left, range(4), np.arange(20.0).reshape(5, 4), label="measured & more")
    plots.theory(left, range(4), range(4))
    left.bar([1], [2], yerr=[1], color=plots.COLORS[1], hatch="/")
    left.set(title="A title", xlabel=r"$\sigma_q$", yscale="log")
    left.legend()
    plots.heat_map(right, np.eye(4), bar="weight")
    return figure


# --- in a notebook ----------------------------------------------------------------------------------------------------


def test_alt_text_and_size_travel_with_the_picture(shown):
    data, metadata = shown(plots.subplots(height=2.5)[0])
    assert metadata == {"image/png": {"alt": "A line that rises.", "width": 480, "height": 240}}
    assert data["text/plain"] == "Figure: A line that rises."


def test_a_picture_is_small_and_the_same_each_time(shown):
    pictures = []
    for _ in range(2):
        figure, axes = plots.subplots()
        plots.heat_map(axes, np.eye(16), title="Identity")
        pictures.append(base64.b64decode(shown(figure)[0]["image/png"]))
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) < 40_000
    assert struct.unpack(">I", pictures[0][16:20])[0] == 750  # 5 inches at 150 dots: sharp at phone width


def test_all_figures_have_one_width():
    assert {plots.subplots(1, n)[0].get_size_inches()[0] for n in (1, 2, 3)} == {plots.WIDTH}
    with pytest.raises(TypeError, match="unexpected keyword argument 'width'"):
        plots.subplots(width=6)


# --- in the book ------------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """Collects the tags of a piece of HTML, with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    handle_startendtag = handle_starttag


def test_the_book_gets_a_drawing_with_a_name(inline):
    text = inline(drawn(), alt='Points < the "line".')
    (_, figure), (tag, svg) = Tags(text).found[:2]
    assert figure["class"] == "attntut-figure" and tag == "svg"
    assert svg["role"] == "img" and svg["aria-label"] == 'Points < the "line".'
    assert (svg["width"], svg["height"]) == ("480", "307")
    assert "xmlns" not in text and "<!--" not in text and "metadata" not in text


def test_text_is_text_and_has_the_pages_font(inline):
    text = inline(drawn())
    words = re.findall(r"<(?:text|tspan)[^>]*>([^<]+)</", text)
    assert {"A title", "measured &amp; more", "weight", "query", "1.00", "σ", "q", "10"} <= set(words)
    assert "font-family" not in text


def test_colours_are_the_pages(inline):
    text = inline(drawn())
    for name in ("--text", "--muted", "--line", "--c0", "--c1"):
        assert f"var({name}," in text, f"nothing is drawn in {name}"
    fixed = set(re.findall(r"(?:fill|stroke):(?!var|none|currentColor|url)([^;\"]*)", text))
    assert fixed == {plots.ON_DARK, plots.ON_LIGHT}, "only what stands on a heat map is the same by day and night"


def test_a_map_has_one_pixel_a_cell(inline):
    (image, *_) = [about for tag, about in Tags(inline(drawn())).found if tag == "image"]
    assert (image["width"], image["height"]) == ("4", "4") and "pixelated" in image["style"]


def test_two_drawings_on_a_page_do_not_meet(inline):
    pages = [Tags(inline(drawn())).found for _ in range(2)]
    ids = [[about["id"] for _, about in page if "id" in about] for page in pages]
    assert len(ids[0]) == len(set(ids[0])) > 2 and not set(ids[0]) & set(ids[1])
    for page, own in zip(pages, ids, strict=True):
        values = " ".join(value for _, about in page for value in about.values())
        assert set(re.findall(r"#([\w-]+-[mph]\w+)", values)) == set(own), "every reference arrives, none is idle"


def test_a_drawing_is_small(inline):
    figure, axes = plots.subplots()
    for seed in range(4):
        plots.runs(axes, np.arange(120), np.random.default_rng(seed).normal(size=(5, 120)), label=f"run {seed}")
    assert len(gzip.compress(inline(figure).encode())) < 20_000
    assert len(gzip.compress(inline(drawn()).encode())) < 5_000


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_heat_map_has_readable_labels_and_cells():
    figure, axes = plots.subplots()
    plots.heat_map(
        axes, torch.tensor([[1.0, 0], [0.25, 0.75]]), x=["the", "cat"], y=["the", "cat"], title="Who looks at whom"
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == ["the", "cat"]
    assert [t.get_text() for t in axes.texts] == ["1.00", ".00", ".25", ".75"]
    assert axes.get_xlabel() == "key" and axes.get_ylabel() == "query"


def test_text_in_a_cell_contrasts_with_it():
    figure, axes = plots.subplots()
    plots.heat_map(axes, [[0.0, 1.0]])
    assert [t.get_color() for t in axes.texts] == [plots.ON_DARK, plots.ON_LIGHT]


def test_runs_draw_the_mean_and_its_interval():
    figure, axes = plots.subplots()
    plots.runs(axes, [0, 1], [[0.0, 1], [2, 1], [1, 1]], label="seeds")
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 1])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(1 + 4.3027 / np.sqrt(3), abs=1e-3)


def test_a_single_run_has_no_band():
    figure, axes = plots.subplots()
    plots.runs(axes, [0, 1], [0.0, 1], label="one")
    assert not axes.collections


def test_histogram_is_a_density():
    figure, axes = plots.subplots()
    plots.histogram(axes, torch.arange(10.0), label="x", bins=5)
    assert sum(bar.get_height() * bar.get_width() for bar in axes.patches) == pytest.approx(1)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda f, a: plots.show(f, alt=""), ValueError, "alt must say in words"),
        (lambda f, a: plots.show(f, alt="plot"), ValueError, "alt must say in words"),
        (lambda f, a: plots.show("f", alt="a b c"), TypeError, "figure must be a matplotlib Figure: got str"),
        (lambda f, a: plots.heat_map(a, torch.ones(2, 2, 2)), ValueError, r"values must be a matrix.*\(2, 2, 2\)"),
        (lambda f, a: plots.heat_map(a, torch.ones(2, 2), x=["a"]), ValueError, "got 1 labels for 2"),
        (lambda f, a: plots.runs(a, [1], [[1.0, 2]], label=""), ValueError, "x must have one entry per point, 2"),
        (lambda f, a: plots.histogram(a, [1.0], label="", bins=0), ValueError, "bins must be an integer ≥ 1"),
        (lambda f, a: plots.subplots(0), ValueError, "rows must be an integer ≥ 1"),
        (lambda f, a: plots.subplots(height=0), ValueError, "height must be a number ≥ 1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(*plots.subplots())
