"""Figures carry their alternative text and draw what they were given."""

import base64
import struct

import numpy as np
import pytest
import torch

from attntut import plots


def bundle_of(capture, figure, alt="A line that rises."):
    plots.show(figure, alt=alt)
    return capture[-1]._repr_mimebundle_()


@pytest.fixture
def capture(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    return shown


def test_alt_text_travels_with_the_picture(capture):
    figure, axes = plots.subplots()
    axes.plot([1, 2])
    data, metadata = bundle_of(capture, figure)
    assert metadata == {"image/png": {"alt": "A line that rises."}}
    assert data["text/plain"] == "Figure: A line that rises."


def test_a_picture_is_small_and_the_same_each_time(capture):
    pictures = []
    for _ in range(2):
        figure, axes = plots.subplots()
        plots.heat_map(axes, np.eye(16), title="Identity")
        pictures.append(base64.b64decode(bundle_of(capture, figure)[0]["image/png"]))
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) < 40_000
    assert struct.unpack(">I", pictures[0][16:20])[0] == 750  # 5 inches at 150 dots: sharp at phone width


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
    assert [t.get_color() for t in axes.texts] == ["white", "black"]


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
        (lambda f, a: plots.runs(a, [1], [[1.0, 2]], label=""), ValueError, "x must have one entry a point, 2"),
        (lambda f, a: plots.histogram(a, [1.0], label="", bins=0), ValueError, "bins must be an integer ≥ 1"),
        (lambda f, a: plots.subplots(0), ValueError, "rows must be an integer ≥ 1"),
        (lambda f, a: plots.subplots(width=0), ValueError, "width must be a number ≥ 1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(*plots.subplots())
