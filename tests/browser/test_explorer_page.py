"""An explorer on a static page: no kernel, no server but for the files."""

import itertools
import math
import os
import re

import ipywidgets as widgets
import numpy as np
import pytest

from attntut.explorer import Explorer, assets, bars, heat_map, histogram, lines, number
from attntut.explorer.grid import call

pytestmark = pytest.mark.browser

ADDRESS = "http://explorer.test/"
WORDS = ["The", "animal", "did", "not", "cross", "the", "street"]
HEAD = """<!DOCTYPE html><html lang="en" data-theme="{theme}"><head><meta charset="utf-8"><title>Explorers</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
  html[data-theme="dark"] {{
    --paper: #14181d; --text: #dde2e8; --muted: #a3adb9; --panel: #1c2229; --line: #333c46; --accent: #84c5ee;
    background: #14181d; color: #dde2e8;
  }}
  body {{ margin: 0 auto; max-width: 46rem; }}
  p.filler {{ height: 3000px; }}
</style>
<link rel="stylesheet" href="explorer.css"><script type="module" src="explorer.js"></script>
</head><body><main><h1>Page</h1>
"""


def everything(n=4, sigma=1.0, scheme="xavier", causal=False):
    rng = np.random.default_rng(n)
    logits = rng.normal(size=(n, n)) * sigma
    if causal:
        logits = np.where(np.tri(n, dtype=bool), logits, math.nan)
    x = np.arange(1, n + 3)
    return {
        "Logits": heat_map(logits, xlabel="key", ylabel="query", rows=WORDS[:n], columns=WORDS[:n], diverging=True),
        "Loss": lines(x, {"measured": sigma / x, "formula": 1 / x}, xlabel="step", points=["measured"], yscale="log"),
        "Norms": bars({"query": sigma, "key": 2 * sigma, "value": -1}, ylabel="norm", unit="a. u."),
        "Weights": histogram(
            rng.normal(size=400) * sigma, bins=16, curve={"normal": lambda t: np.exp(-t * t)}, xlabel="w"
        ),
        "Variance": number(np.nanvar(logits), unit="nats²"),
        "Tiny": number(sigma * 1e-9 * len(scheme)),
        "Parameters": number(12345 * n),
    }


CONTROLS = {
    "n": widgets.IntSlider(value=4, min=2, max=7),
    "sigma": widgets.FloatLogSlider(value=1, min=-1, max=1, step=1),
    "scheme": widgets.ToggleButtons(options=["xavier", "he"]),
    "causal": widgets.Checkbox(value=False),
}


def at(**state):
    """The panels of the function itself at one state."""
    return call(everything, {"n": 4, "sigma": 1.0, "scheme": "xavier", "causal": False} | state)


@pytest.fixture(scope="module")
def figure():
    before = os.environ.get("ATTNTUT_EXPLORER")
    os.environ["ATTNTUT_EXPLORER"] = "static"
    try:
        explorer = Explorer(everything, title="Everything", alt="Seven panels.", caption="Look here.", **CONTROLS)
        return explorer._repr_mimebundle_()[0]["text/html"]
    finally:
        os.environ.pop("ATTNTUT_EXPLORER")
        if before is not None:
            os.environ["ATTNTUT_EXPLORER"] = before


@pytest.fixture
def open_page(browser, figure):
    """A function that opens a page with the figure; the page must ask for nothing else and complain of nothing."""
    contexts, complaints = [], []

    def serve(route):
        name = route.request.url.removeprefix(ADDRESS)
        if name.startswith("page"):
            theme = "dark" if "dark" in name else "light"
            filler = '<p class="filler">Text.</p>' if "far" in name else ""
            route.fulfill(content_type="text/html", body=HEAD.format(theme=theme) + filler + figure + "</main>")
        elif name in ("explorer.js", "explorer.css"):
            kind = name.rsplit(".", 1)[1]
            route.fulfill(content_type={"js": "text/javascript", "css": "text/css"}[kind], path=str(assets()[kind]))
        else:
            complaints.append(f"asked for {route.request.url}")
            route.abort()

    def visit(name="page", *, width=1000, live=True, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.route("**/*", serve)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(ADDRESS + name)
        if live:
            page.wait_for_selector("figure.is-live")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not complaints, complaints


def shown(page, name):
    return page.locator(f'[data-panel="{name}"] .ax-value').inner_text()


def readout(page, name):
    return page.locator(f'[data-panel="{name}"] .ax-readout').inner_text()


def choose(page, **options):
    """Move controls by their options' places, as their own events do."""
    page.evaluate(
        "(options) => { const e = document.querySelector('figure').explorer;"
        " for (const [name, index] of Object.entries(options)) e.set(name, index); }",
        options,
    )


def plot(page, name):
    return page.locator(f'[data-panel="{name}"] .ax-plot')


# --- values -----------------------------------------------------------------------------------------------------------


def test_every_number_of_every_state_is_the_functions(open_page):
    page = open_page()
    grid = itertools.product(range(6), range(3), range(2), range(2))
    for n, sigma, scheme, causal in grid:
        choose(page, n=n, sigma=sigma, scheme=scheme, causal=causal)
        state = {
            "n": n + 2,
            "sigma": [0.1, 1.0, 10.0][sigma],
            "scheme": ["xavier", "he"][scheme],
            "causal": bool(causal),
        }
        assert page.evaluate("document.querySelector('figure').explorer.state") == state
        panels = at(**state)
        for name in ("Variance", "Tiny", "Parameters"):
            assert shown(page, name) == panels[name].value.show(0), f"{name} at {state}"


def test_every_cell_and_point_is_the_functions(open_page):
    page = open_page()
    choose(page, n=1, sigma=2)
    panels = at(n=3, sigma=10.0)
    for name, key, count in (("Logits", None, 9), ("Loss", "ArrowRight", 5), ("Norms", "ArrowRight", 3)):
        plot(page, name).focus()
        page.keyboard.press("ArrowRight" if name != "Logits" else "Home")
        page.keyboard.press("Home")
        for k in range(count):
            text = readout(page, name)
            if name == "Logits":
                i, j = divmod(k, 3)
                assert text == f"query {WORDS[i]}, key {WORDS[j]}: {panels[name].values.show(i, j)}"
                page.keyboard.press("Home" if j == 2 else "ArrowRight")
                if j == 2:
                    page.keyboard.press("ArrowDown")
            else:
                if name == "Loss":
                    values = [panels[name].y.show(s, k) for s in range(2)]
                    assert text == f"step {k + 1}: measured {values[0]}, formula {values[1]}"
                else:
                    assert text == f"{panels[name].names[k]}: {panels[name].values.show(k)} a. u."
                page.keyboard.press(key)


def test_a_histogram_reads_its_bar_and_its_curve(open_page):
    page = open_page()
    panel = at()["Weights"]
    plot(page, "Weights").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    middle = (panel.curves.integers.shape[1] - 1) // 32 * 31
    edges = f"{panel.edges.show(15)} to {panel.edges.show(16)}"
    wanted = f"w {edges}: density {panel.density.show(15)}, normal {panel.curves.show(0, middle)}"
    assert readout(page, "Weights") == wanted


def test_the_text_of_numbers_is_pythons(open_page):
    from attntut.explorer.quantize import show

    cases = [(q, d) for q in (0, 1, -7, 12, 123, -4567, 999999) for d in range(-9, 14)]
    page = open_page()
    texts = page.evaluate(
        "async (cases) => { const m = await import('./explorer.js'); return cases.map(([q, d]) => m.show(q, d)); }",
        cases,
    )
    assert texts == [show(q, d) for q, d in cases]


def test_nan_is_a_gap(open_page):
    page = open_page()
    choose(page, causal=1)
    alpha = page.evaluate(
        "[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 4, 4).data]"
        ".filter((_, k) => k % 4 === 3)"
    )
    assert alpha == [255 * (j <= i) for i in range(4) for j in range(4)]
    plot(page, "Logits").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    assert readout(page, "Logits") == "query The, key not: NaN"


# --- input ------------------------------------------------------------------------------------------------------------


def test_controls_by_keyboard(open_page):
    page = open_page()
    slider = page.get_by_label("sigma")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "10"
    assert page.locator('[data-control="sigma"] output').inner_text() == "10"
    assert shown(page, "Variance") == at(sigma=10.0)["Variance"].value.show(0)
    page.get_by_label("causal").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="he", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="he", exact=True).get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="xavier").get_attribute("aria-pressed") == "false"
    state = {"n": 4, "sigma": 10, "scheme": "he", "causal": True}
    assert page.evaluate("document.querySelector('figure').explorer.state") == state
    page.get_by_role("button", name="Reset").press("Enter")
    assert shown(page, "Variance") == at()["Variance"].value.show(0)
    assert slider.input_value() == "1" and not page.get_by_label("causal").is_checked()


def test_mouse_reads_a_cell_and_leaves(open_page):
    page = open_page()
    hint = readout(page, "Logits")
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    assert readout(page, "Logits") == f"query animal, key did: {at()['Logits'].values.show(1, 2)}"
    page.mouse.move(1, 1)
    assert readout(page, "Logits") == hint


def test_a_clicked_cell_stays_and_follows_the_state(open_page):
    page = open_page()
    box = page.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    page.mouse.move(1, 1)
    choose(page, sigma=2)
    assert readout(page, "Logits") == f"query animal, key did: {at(sigma=10.0)['Logits'].values.show(1, 2)}"
    choose(page, n=0)  # the map is 2 × 2 now
    assert readout(page, "Logits").startswith("query animal, key animal: ")
    page.keyboard.press("Escape")
    assert readout(page, "Logits").startswith("Point at")


def test_touch_reads_a_cell(open_page):
    page = open_page(width=390, has_touch=True)
    canvas = page.locator("canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.9)
    assert readout(page, "Logits") == f"query not, key The: {at()['Logits'].values.show(3, 0)}"


# --- how it looks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_nothing_scrolls_sideways_or_is_cut_off(open_page, width):
    page = open_page(width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for n in (0, 5):
        choose(page, n=n)
        cut = page.evaluate(
            """() => [...document.querySelectorAll('.ax-plot')].flatMap((plot) => {
                const box = plot.getBoundingClientRect();
                return [...plot.querySelectorAll('text')].filter((t) => {
                    const b = t.getBoundingClientRect();
                    const across = b.left < box.left - 2 || b.right > box.right + 2;
                    return across || b.bottom > box.bottom + 2 || b.top < box.top - 2;
                }).map((t) => t.textContent); })"""
        )
        assert not cut, f"these labels leave their plot: {cut}"


def test_type_is_legible_on_a_phone(open_page):
    page = open_page(width=390)
    sizes = page.evaluate(
        "[...document.querySelectorAll('.ax-live *')].map((t) => parseFloat(getComputedStyle(t).fontSize))"
    )
    assert min(sizes) >= 12


def test_dark_mode_changes_the_lines(open_page):
    page = open_page("page-dark")
    color = "getComputedStyle(document.querySelector('[data-panel=Norms] rect.ax-s0')).fill"
    dark = page.evaluate(color)
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert page.evaluate(color) != dark


@pytest.mark.parametrize("name", ["page", "page-dark"])
def test_axe_finds_nothing(open_page, name):
    from axe_playwright_python.sync_playwright import Axe

    page = open_page(name)
    plot(page, "Logits").focus()
    violations = Axe().run(page).response["violations"]
    assert not violations, [(v["id"], v["help"], [n["html"][:150] for n in v["nodes"]]) for v in violations]


def test_a_step_is_drawn_within_a_frame(open_page):
    page = open_page()
    medians = page.evaluate(
        """async () => {
            const explorer = document.querySelector('figure').explorer, medians = [];
            for (let round = 0; round < 8; round++) {
                const times = [];
                for (let k = 0; k < 21; k++) {
                    const start = performance.now();
                    explorer.set(k % 2 ? 'n' : 'sigma', k % 3);
                    document.body.getBoundingClientRect();
                    times.push(performance.now() - start);
                }
                medians.push(times.sort((a, b) => a - b)[10]);
                await new Promise((done) => setTimeout(done, 100));
            }
            return medians;
        }"""
    )
    best = min(medians)  # of several rounds: what else the machine does is not the explorer's fault
    assert best <= 16, f"the median step of seven panels, laid out, takes {best:.1f} ms (rounds: {medians})"


# --- without the script -----------------------------------------------------------------------------------------------


def test_without_javascript_there_is_a_picture(open_page):
    page = open_page(live=False, java_script_enabled=False)
    picture = page.get_by_role("img", name="Seven panels.")
    assert picture.is_visible() and picture.bounding_box()["width"] > 300
    assert page.locator(".ax-live").count() == 0


def test_in_print_there_is_a_picture(open_page):
    page = open_page()
    picture = page.get_by_role("img", name="Seven panels.")
    assert not picture.is_visible()
    page.emulate_media(media="print")
    assert picture.is_visible() and not page.locator(".ax-live").is_visible()


def test_a_far_explorer_wakes_when_it_comes_near(open_page):
    page = open_page("page-far", live=False)
    page.wait_for_timeout(300)
    assert page.locator("figure.is-live").count() == 0
    page.mouse.wheel(0, 2900)
    page.wait_for_selector("figure.is-live")


def test_labels_and_live_regions(open_page):
    page = open_page()
    assert re.match(r"Logits: 4 × 4, query down, key across", plot(page, "Logits").get_attribute("aria-label"))
    choose(page, n=0)
    assert plot(page, "Logits").get_attribute("aria-label").startswith("Logits: 2 × 2")
    assert page.locator(".ax-readout").evaluate_all("all => all.every((p) => p.ariaLive === 'polite')")
    tile = page.locator('[data-panel="Variance"]')
    assert tile.get_attribute("role") == "status"
    assert tile.inner_text().split() == ["Variance", at(n=2)["Variance"].value.show(0), "nats²"]
