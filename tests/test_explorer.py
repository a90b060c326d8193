"""The explorer: controls, the grid, the three ways to be shown."""

import base64
import io
import json
import re
import zlib

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image

from attntut import plots
from attntut.explorer import Explorer, assets, bars, heat_map, histogram, lines, number, page
from attntut.explorer import grid as grid_module
from attntut.explorer.controls import read
from attntut.explorer.picture import DIVERGING

ALT = "A picture."


@pytest.fixture
def mode(monkeypatch):
    """A function that chooses how explorers are shown."""

    def choose(name):
        if name:
            monkeypatch.setenv("ATTNTUT_EXPLORER", name)
        else:
            monkeypatch.delenv("ATTNTUT_EXPLORER", raising=False)

    choose("")
    return choose


def product(a=1, b=2):
    return {"Product": number(a * b), "Table": heat_map(np.outer(np.arange(a) + 1, np.arange(b)) if a * b else [[0]])}


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "control, kind, values, labels, start",
    [
        (widgets.Dropdown(options=["a", "b"], value="b"), "select", ("a", "b"), ("a", "b"), 1),
        (widgets.ToggleButtons(options=[("one", 1), ("two", 2)], value=1), "buttons", (1, 2), ("one", "two"), 0),
        (widgets.SelectionSlider(options=[4, 16], value=16), "slider", (4, 16), ("4", "16"), 1),
        (widgets.IntSlider(value=3, min=1, max=6, step=2), "slider", (1, 3, 5), ("1", "3", "5"), 1),
        (widgets.FloatSlider(value=0.2, min=0, max=0.2), "slider", (0, 0.1, 0.2), ("0.00", "0.10", "0.20"), 2),
        (widgets.FloatLogSlider(value=1, min=-1, max=1, step=1), "slider", (0.1, 1.0, 10.0), ("0.1", "1", "10"), 1),
        (widgets.Checkbox(value=True), "check", (False, True), ("off", "on"), 1),
        (widgets.ToggleButton(value=False), "check", (False, True), ("off", "on"), 0),
        ([1, 2.5], "slider", (1, 2.5), ("1", "2.5"), 0),
        (["pre", "post"], "buttons", ("pre", "post"), ("pre", "post"), 0),
        (list("abcde"), "select", tuple("abcde"), tuple("abcde"), 0),
        (True, "check", (False, True), ("off", "on"), 1),
    ],
)  # fmt: skip
def test_controls_become_options(control, kind, values, labels, start):
    found = read("x", control)
    assert (found.kind, found.labels, found.start) == (kind, labels, start)
    assert found.values == pytest.approx(values) if isinstance(values[0], float | int) else found.values == values
    json.dumps(found.encode(), allow_nan=False)
    assert found.make().value == found.values[found.start]


@pytest.mark.parametrize(
    "control", [widgets.IntRangeSlider(), widgets.Text(), widgets.FloatText(), 3, "abc", [], None, lambda: 1]
)
def test_a_control_that_a_page_cannot_have_is_named(control):
    with pytest.raises(TypeError, match=rf"The control 'sigma' can't be put on a page: got {type(control).__name__}"):
        read("sigma", control)


def test_a_slider_starts_on_one_of_its_steps():
    with pytest.raises(
        ValueError, match=r"The control 'x' must start on one of its steps: got value=0.25.*Nearest: 0.2"
    ):
        read("x", widgets.FloatSlider(value=0.25, min=0, max=1, step=0.2))


def test_a_selection_needs_a_start():
    with pytest.raises(ValueError, match="The control 'x' must have a value to start at"):
        read("x", widgets.Dropdown(options=[1, 2], value=None))


def test_a_list_starts_at_the_default_of_the_argument(mode):
    assert "b = 2 (1, 2, 3)" in repr(Explorer(product, title="T", alt=ALT, b=[1, 2, 3]))


# --- the function and what it returns ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function, error, words",
    [
        (lambda a: 3, TypeError, r"<lambda>\(a=1\) must return a dict of panels .*: got int"),
        (lambda a: {}, ValueError, "must return at least one panel"),
        (lambda a: {"A": 3}, TypeError, "must return panels made by .*: got int for 'A'"),
        (lambda a: {1: number(3)}, TypeError, "must name its panels with strings: got 1"),
        (lambda b: {"A": number(3)}, TypeError, r"The controls must be the arguments of <lambda>\(b\): got a"),
    ],
)
@pytest.mark.parametrize("how", ["", "static", "picture"])
def test_a_function_that_returns_something_else(mode, how, function, error, words):
    mode(how)
    with pytest.raises(error, match=words):
        Explorer(function, title="T", alt=ALT, a=[1, 2])


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda a: {"A" * a: number(1)}, r"the same panels in every state: got \['AA'\] at a=2, but \['A'\]"),
        (
            lambda a: {"A": number(1) if a == 1 else bars([1])},
            "'A' must stay what it is .*: got bars at a=2, but number",
        ),
        (lambda a: {"A": lines([1], {"c" * a: [1]})}, r"got lines of \['cc'\] at a=2, but lines of \['c'\]"),
    ],
)
def test_panels_that_change(mode, function, words):
    mode("static")
    with pytest.raises(ValueError, match=words):
        Explorer(function, title="T", alt=ALT, a=[1, 2])


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ({"title": ""}, ValueError, "title must say something"),
        ({"alt": " "}, ValueError, "alt must say something"),
        ({"title": 3}, TypeError, "title must be a string: got 3"),
        ({"caption": None}, TypeError, "caption must be a string: got None"),
    ],
)
def test_bad_texts(mode, arguments, error, words):
    with pytest.raises(error, match=words):
        Explorer(product, **{"title": "T", "alt": ALT, **arguments})


def test_what_is_not_a_function(mode):
    with pytest.raises(TypeError, match="function must be callable: got 3"):
        Explorer(3, title="T", alt=ALT)


def test_an_unknown_mode_is_named(mode):
    mode("statc")
    with pytest.raises(ValueError, match=r"ATTNTUT_EXPLORER must be one of .*Did you mean 'static'"):
        Explorer(product, title="T", alt=ALT)


def test_an_error_of_the_function_reaches_the_cell(mode):
    with pytest.raises(ZeroDivisionError):
        Explorer(lambda a: {"A": number(1 / a)}, title="T", alt=ALT, a=[0, 1])


# --- the first state --------------------------------------------------------------------------------------------------

FLAT = np.full((4, 4), 0.25)


@pytest.mark.parametrize(
    "panel, words",
    [
        (heat_map(FLAT), "all cells lie between 0.25 and 0.25 of a scale from 0 to 0.5"),
        (heat_map(FLAT + np.eye(4) / 100, low=0, high=1), "between 0.25 and 0.26 of a scale from 0 to 1"),
        (heat_map(FLAT + 5 * np.eye(4), low=-1, high=0), "between 0 and 0 of a scale from -1 to 0"),
        (heat_map([[np.nan, np.inf]]), "every cell is a gap"),
        (lines([1, 2], {"a": [np.nan, np.nan]}), "no value is a number within its axis"),
        (lines([1, 2], [5, 6], high=4), "no value is a number within its axis"),
        (bars([0, 0]), "every bar has the height 0"),
        (bars([np.nan]), "no value is a number within its axis"),
        (histogram([5.0, 6.0], low=0, high=1), "no sample lies between low and high"),
    ],
)
def test_a_blank_first_state_is_named(mode, panel, words):
    mode("static")
    with pytest.raises(ValueError, match=f"Panel 'P' must show something in the first state: .*{re.escape(words)}"):
        Explorer(lambda a: {"N": number(1), "P": panel}, title="T", alt=ALT, a=[1, 2])


def test_a_later_state_and_a_live_explorer_may_be_blank(mode):
    def flat(a):
        return {"P": heat_map(FLAT + a * np.eye(4), low=0, high=1)}

    Explorer(flat, title="T", alt=ALT, a=[0, 1])
    mode("picture")
    Explorer(flat, title="T", alt=ALT, a=[1, 0])


def test_a_map_of_one_cell_may_be_of_one_colour(mode):
    mode("static")
    Explorer(lambda: {"P": heat_map([[3.0]])}, title="T", alt=ALT)


# --- the grid ---------------------------------------------------------------------------------------------------------


def unpack(data: bytes) -> list[dict[str, dict]]:
    """The panels of every state, as the page finds them."""
    panels = json.loads(zlib.decompress(data))["panels"]
    points = range(len(panels[0]["of"]))
    return [{p["states"][p["of"][k]]["name"]: p["states"][p["of"][k]] for p in panels} for k in points]


def many(n=3, sigma=1.0, causal=False):
    rng = np.random.default_rng(n)
    matrix = rng.normal(size=(n, n)) * sigma
    if causal:
        matrix = np.where(np.tri(n, dtype=bool), matrix, np.nan)
    x = np.logspace(0, 3, 10 + n)
    return {
        "Map": heat_map(matrix, diverging=True, unit="nats"),
        "Curves": lines(x, {"a": sigma / x, "b": x**2}, xscale="log", yscale="log"),
        "Bars": bars({"query": sigma, "key": -2.0}),
        "Histogram": histogram(matrix[np.isfinite(matrix)], bins=8, curve={"flat": lambda t: 0 * t + 1}),
        "Big": number(10**9 * n),
        "Small": number(sigma * 1e-9),
        "Undefined": number(np.nan if causal else 0.0),
        "Predicted": number(sigma * 1.01, predicted=None if causal else sigma, unit="nats"),
    }


def test_a_packed_grid_is_what_the_function_returned():
    controls = [read("n", [1, 3, 8]), read("sigma", [0.5, 1.0, 100.0]), read("causal", False)]
    states = grid_module.evaluate(many, controls)
    data, _ = grid_module.pack(states, controls)
    for packed, panels in zip(unpack(data), states, strict=True):
        assert list(packed) == list(panels)
        cells = np.array(packed["Map"]["values"]["values"], dtype=float)  # it reads "NaN" too
        np.testing.assert_array_equal(cells, panels["Map"].values.values.ravel())
        assert packed["Curves"]["y"]["values"] == panels["Curves"].y.values.ravel().tolist()
        assert packed["Histogram"]["curves"]["values"] == panels["Histogram"].curves.values.ravel().tolist()
        for name in ("Big", "Small", "Undefined", "Predicted"):
            assert packed[name]["value"] == panels[name].value


def test_the_last_control_varies_fastest():
    seen = []

    def record(a, b):
        seen.append((a, b))
        return {"A": number(1)}

    grid_module.evaluate(record, [read("a", [1, 2]), read("b", ["x", "y"])])
    assert seen == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_a_grid_with_no_controls_has_one_point(mode):
    mode("static")
    assert "attntut-explorer" in Explorer(lambda: {"A": number(1)}, title="T", alt=ALT).html()


def test_what_several_states_share_is_stored_once():
    controls = [read("a", list(range(50)))]
    fixed_map = np.random.default_rng(0).normal(size=(20, 20))
    states = grid_module.evaluate(lambda a: {"A": heat_map(fixed_map), "N": number(a)}, controls)
    once, _ = grid_module.pack(states[:1], [read("a", [0])])
    assert len(grid_module.pack(states, controls)[0]) < len(once) + 600


@pytest.mark.parametrize("how", ["static", "picture"])
def test_too_many_points_says_whose(mode, how):
    mode(how)
    words = r"at most 4000 points: got a: 100 × b: 50 = 5000\. Give 'a' fewer options"
    with pytest.raises(ValueError, match=words):
        Explorer(product, title="T", alt=ALT, a=list(range(100)), b=list(range(50)))


def test_a_live_explorer_may_have_any_number_of_points(mode):
    Explorer(product, title="T", alt=ALT, a=list(range(100)), b=list(range(50)))


def test_too_heavy_says_which_panel(mode):
    mode("static")
    noise = np.random.default_rng(0).normal(size=(40, 50, 50))
    words = r"at most 60 kB compressed: got \d+ kB for a: 40 points \(kB: Noise \d+, picture \d+.*\).*'a' fewer options"
    with pytest.raises(ValueError, match=words):
        Explorer(lambda a: {"Noise": heat_map(noise[a])}, title="T", alt=ALT, a=list(range(40)))


def attention(d_k, temperature):
    rng = np.random.default_rng(0)
    query, key = rng.normal(size=(2, 16, d_k))
    logits = query @ key.T / np.sqrt(d_k) / temperature
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    entropy = -(weights * np.log(weights + 1e-30)).sum(-1)
    return {
        "Attention": heat_map(weights, xlabel="key", ylabel="query", low=0, high=1),
        "Entropy": lines(range(16), entropy, xlabel="query", ylabel="entropy", low=0, high=3, unit="nats"),
        "Mean": number(entropy.mean(), unit="nats"),
    }


def test_the_weight_of_a_usual_explorer(mode):
    mode("static")
    explorer = Explorer(
        attention, title="T", alt=ALT, d_k=[2**k for k in range(10)], temperature=[0.1 * 1.5**k for k in range(12)]
    )
    weight = page.weight(explorer.html())
    assert weight < grid_module.MAX_BYTES, f"120 points of a 16 × 16 map, a line and a number weigh {weight} bytes"


# --- the three ways ---------------------------------------------------------------------------------------------------

TEXT = """\
Explorer: A product
  controls: a = 1 (1, 2, 3)
            b = 2 (0 … 9, 10 values)
  panels:   Product (number), Table (heat map)"""


def explorer(**more):
    return Explorer(product, title="A product", alt="1 × 2", a=[1, 2, 3], b=list(range(10)), **more)


@pytest.mark.parametrize(
    "how, types",
    [
        ("", {"application/vnd.jupyter.widget-view+json", "image/png", "text/plain"}),
        ("static", {"text/html", "text/plain"}),
        ("picture", {"image/png", "text/plain"}),
    ],
)
def test_what_is_shown(mode, how, types):
    mode(how)
    data, metadata = explorer()._repr_mimebundle_()
    assert set(data) == types
    assert data["text/plain"] == TEXT == str(explorer())
    if "image/png" in types:
        assert metadata["image/png"]["alt"] == "1 × 2"
        assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_no_widget_is_made_where_none_is_shown(mode, monkeypatch):
    made = []
    monkeypatch.setattr(widgets.Widget, "_call_widget_constructed", staticmethod(made.append))
    for how in ("static", "picture"):
        mode(how)
        explorer()._repr_mimebundle_()
    assert not made, f"these were made: {made}"


def test_the_figure_is_safe_and_stands_alone(mode):
    mode("static")
    text = Explorer(lambda: {"<b>": number(1)}, title="<script>&", alt='"quoted" <x>', caption="a < b").html()
    assert "&lt;script&gt;&amp;" in text and "a &lt; b" in text and "&quot;quoted&quot; &lt;x&gt;" in text
    assert not re.search(r"https?:|\son\w+=", re.sub(r"base64,[^\"]*", "", text)), "an address, or an inline handler"
    assert not re.search(r"\n\s*\n", text), "a blank line ends an HTML block in Markdown"


def test_the_picture_is_small_and_legible(mode):
    mode("picture")
    png = Explorer(attention, title="T", alt=ALT, d_k=[16], temperature=[1.0]).png()
    image = Image.open(io.BytesIO(png))
    assert len(png) < 20_000, f"the picture weighs {len(png)} bytes"
    assert image.width <= 620, "letters of 10 points, 16 pixels high, are 9 pixels high at 360"


def test_the_picture_has_the_prediction_beside_the_number(mode):
    mode("picture")

    def png(predicted):
        return Explorer(lambda: {"Entropy": number(2.4, predicted=predicted)}, title="T", alt=ALT).png()

    assert len({png(None), png(2.27), png(2.28)}) == 3, "the picture is the same whatever was predicted"


@pytest.mark.parametrize("how, kind", [("picture", "image/png"), ("static", "text/html")])
def test_every_kind_of_panel_is_drawn(mode, how, kind):
    mode(how)
    data, _ = Explorer(many, title="T", alt=ALT, n=[3, 4], sigma=[1.0], causal=True)._repr_mimebundle_()
    assert len(data[kind]) > 1000


def test_the_same_input_gives_the_same_page(mode):
    mode("static")
    assert explorer().html() == explorer().html()


# --- live -------------------------------------------------------------------------------------------------------------


def test_moving_a_control_calls_the_function_for_any_value(mode):
    live = Explorer(lambda x: {"X": number(x, digits=6)}, title="T", alt=ALT, x=widgets.FloatSlider(value=1.0)).live()
    live.controls["x"].value = 1.23456
    (panel,) = live.drawing.state["panels"]
    assert panel["value"] == "1.23456" and live.drawing.state["error"] == ""


def test_a_live_number_has_its_prediction_where_there_is_one(mode):
    def half(a):
        return {"A": number(a, predicted=a / 2 if a < 3 else None)}

    live = Explorer(half, title="T", alt=ALT, a=[1, 2, 3]).live()
    live.controls["a"].value = 2
    assert live.drawing.state["panels"][0]["predicted"] == "1.00"
    live.controls["a"].value = 3
    assert live.drawing.state["panels"][0]["predicted"] is None


def test_an_error_is_shown_and_the_next_move_recovers(mode):
    live = Explorer(lambda a: {"A": number(1 / a)}, title="T", alt=ALT, a=widgets.IntSlider(value=1, min=0)).live()
    live.controls["a"].value = 0
    assert live.drawing.state["error"] == "ZeroDivisionError: division by zero"
    assert "Traceback" in live.drawing.state["traceback"]
    live.controls["a"].value = 2
    assert live.drawing.state["error"] == "" and live.drawing.state["panels"]


def test_reset_goes_back(mode):
    live = explorer().live()
    live.controls["a"].value = 3
    live.reset()
    assert live.controls["a"].value == 1
    assert live.drawing.state["panels"][0]["value"] == "2"


# --- the module and its colours ---------------------------------------------------------------------------------------


def test_the_assets_are_there_and_light():
    import gzip

    js, css = (assets()[name].read_bytes() for name in ("js", "css"))
    assert b"export default" in js and b".attntut-explorer" in css
    weight = len(gzip.compress(js + css, 9))
    assert weight < 15_500, f"explorer.js and explorer.css weigh {weight} bytes compressed"
    assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)", js + css), "an address of a third party"


def test_the_picture_and_the_page_have_the_same_colours():
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    js, css = (assets()[name].read_text(encoding="utf-8") for name in ("js", "css"))
    stops = {name: re.search(rf'const {name} = "([^"]*)"', js)[1].split() for name in ("VIRIDIS", "DIVERGING")}
    count = len(stops["VIRIDIS"]) - 1
    assert [f"#{c}" for c in stops["VIRIDIS"]] == [to_hex(colormaps["viridis"](k / count)) for k in range(count + 1)]
    assert tuple(f"#{c}" for c in stops["DIVERGING"]) == DIVERGING
    assert tuple(re.search(rf"--ax-{k}: (#\w+)", css)[1] for k in range(6)) == plots.COLORS
