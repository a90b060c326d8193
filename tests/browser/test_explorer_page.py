"""An explorer on a static page: no kernel, no server but for the files."""

import itertools
import math
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
        "Spread": number(np.nanstd(logits), predicted=None if causal else sigma, unit="nats"),
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


LETTERS = list("To be or not to be, Waltz".replace(" ", "␣"))[:24]


def typical(sigma=1.0, d_model=64, n=24):
    """What most chapters show: a map, a plot, three numbers with their predictions, three sliders."""
    weights = np.random.default_rng(n).dirichlet(np.full(n, 1 / sigma), size=n)
    return {
        "Attention": heat_map(
            weights, xlabel="key", ylabel="query", rows=LETTERS[:n], columns=LETTERS[:n], low=0, high=1
        ),
        "Rank": lines(
            range(n),
            {"measured": np.sort(weights).mean(0), "formula": np.linspace(0, 1, n)},
            points=["measured"],
            xlabel="rank of the key",
            ylabel="weight",
        ),
        "Variance of the logits": number(sigma * 0.98, predicted=sigma),
        "Entropy": number(2.4, predicted=2.3, unit="nats"),
        "Keys": number(n / 2, predicted=n / 2),
    }


SLIDERS = {"sigma": [0.5, 1.0, 2.0], "d_model": [16, 64, 256], "n": [4, 12, 24]}
EXPLORERS = {
    "page": (everything, {"title": "Everything", "alt": "Eight panels.", "caption": "Look here.", **CONTROLS}),
    "single": (
        lambda a: {"N": number(a, predicted=1), "M": heat_map([[a, 0]])},
        {"title": "S", "alt": "M", "a": [1, 2]},
    ),
    "typical": (typical, {"title": "A typical explorer", "alt": "Five panels.", **SLIDERS}),
}


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNTUT_EXPLORER", "static")
        return {
            name: Explorer(function, **more)._repr_mimebundle_()[0]["text/html"]
            for name, (function, more) in EXPLORERS.items()
        }


@pytest.fixture
def open_page(browser, figures):
    """A function that opens a page with the figure; the page must ask for nothing else and complain of nothing."""
    contexts, complaints = [], []

    def serve(route):
        name = route.request.url.removeprefix(ADDRESS)
        if name.split("-")[0] in figures:
            theme = "dark" if "dark" in name else "light"
            figure = figures[name.split("-")[0]]
            filler = '<p class="filler">Text.</p>' if "far" in name else ""
            route.fulfill(content_type="text/html", body=HEAD.format(theme=theme) + filler + figure + "</main>")
        elif name in ("explorer.js", "explorer.css"):
            kind = name.rsplit(".", 1)[1]
            route.fulfill(content_type={"js": "text/javascript", "css": "text/css"}[kind], path=str(assets()[kind]))
        else:
            complaints.append(f"asked for {route.request.url}")
            route.abort()

    def visit(name="page", *, width=1000, height=900, live=True, script="", **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.add_init_script(script)
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
        assert page.evaluate("document.querySelector('figure').explorer.choice") == [n, sigma, scheme, causal]
        panels = at(**state)
        for name in ("Variance", "Tiny", "Parameters", "Spread"):
            assert shown(page, name) == panels[name].value, f"{name} at {state}"
        predicted = page.locator('[data-panel="Spread"] .ax-predicted')
        assert predicted.is_visible() == (not causal)
        assert causal or predicted.inner_text() == panels["Spread"].predicted


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
                assert text == f"query {WORDS[i]}, key {WORDS[j]}: {panels[name].values.text(i, j)}"
                page.keyboard.press("Home" if j == 2 else "ArrowRight")
                if j == 2:
                    page.keyboard.press("ArrowDown")
            else:
                if name == "Loss":
                    values = [panels[name].y.text(s, k) for s in range(2)]
                    assert text == f"step {k + 1}: measured {values[0]}, formula {values[1]}"
                else:
                    assert text == f"{panels[name].names[k]}: {panels[name].values.text(k)} a. u."
                page.keyboard.press(key)


def test_a_histogram_reads_its_bar_and_its_curve(open_page):
    page = open_page()
    panel = at()["Weights"]
    plot(page, "Weights").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    middle = (panel.curves.values.shape[1] - 1) // 32 * 31
    edges = f"{panel.edges.text(15)} to {panel.edges.text(16)}"
    wanted = f"w {edges}: density {panel.density.text(15)}, normal {panel.curves.text(0, middle)}"
    assert readout(page, "Weights") == wanted


def test_the_text_of_numbers_is_pythons(open_page):
    from attntut.explorer.rounding import show, significant

    cases = [[round(q * 10.0**-d, d), d, None] for q in (0, 1, -7, 12, 123, -4567, 999999) for d in range(-9, 14)]
    cases += [
        [significant([q * 10.0**e], n).values.item(), None, n]
        for q in (0, 1, -7.5, 9.9996, 1.2345678)
        for e in range(-9, 12)
        for n in (1, 3, 6)
    ]
    page = open_page()
    texts = page.evaluate(
        "async (cases) => { const m = await import('./explorer.js'); return cases.map((c) => m.show(...c)); }",
        cases,
    )
    assert texts == [show(*case) for case in cases]


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
    assert shown(page, "Variance") == at(sigma=10.0)["Variance"].value
    page.get_by_label("causal").focus()
    page.keyboard.press("Space")
    page.get_by_role("button", name="he", exact=True).focus()
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="he", exact=True).get_attribute("aria-pressed") == "true"
    assert page.get_by_role("button", name="xavier").get_attribute("aria-pressed") == "false"
    assert page.evaluate("document.querySelector('figure').explorer.choice") == [2, 2, 1, 1]
    page.get_by_role("button", name="Reset").press("Enter")
    assert shown(page, "Variance") == at()["Variance"].value
    assert slider.input_value() == "1" and not page.get_by_label("causal").is_checked()


def test_mouse_reads_a_cell_and_leaves(open_page):
    page = open_page()
    hint = readout(page, "Logits")
    box = page.locator("canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    assert readout(page, "Logits") == f"query animal, key did: {at()['Logits'].values.text(1, 2)}"
    page.mouse.move(1, 1)
    assert readout(page, "Logits") == hint


def test_a_clicked_cell_stays_and_follows_the_state(open_page):
    page = open_page()
    box = page.locator("canvas").bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    page.mouse.move(1, 1)
    choose(page, sigma=2)
    assert readout(page, "Logits") == f"query animal, key did: {at(sigma=10.0)['Logits'].values.text(1, 2)}"
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
    assert readout(page, "Logits") == f"query not, key The: {at()['Logits'].values.text(3, 0)}"


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


NAMES = """() => [...document.querySelectorAll('[data-panel=Attention] svg > g text')]
    .filter((t) => t.textContent.length === 1 && t.getAttribute('text-anchor') !== 'start')
    .map((t) => {
        const { left, right, top, bottom } = t.getBoundingClientRect();
        const size = parseFloat(getComputedStyle(t).fontSize);
        const across = t.getAttribute('text-anchor') === 'middle';
        return { text: t.textContent, across, size, left, right, middle: (top + bottom) / 2 };
    })"""


@pytest.mark.parametrize("width", [320, 390, 1000])
def test_every_letter_of_a_map_is_named_and_none_covers_another(open_page, width):
    page = open_page("typical", width=width)
    for k, n in enumerate(SLIDERS["n"]):
        choose(page, n=k)
        labels = page.evaluate(NAMES)
        for across in (True, False):
            names = [label for label in labels if label["across"] == across]
            assert [label["text"] for label in names] == LETTERS[:n], f"{n} letters at {width} px"
            assert min(label["size"] for label in names) >= 9
            for a, b in itertools.combinations(names, 2):
                beside = a["right"] <= b["left"] + 0.5 or b["right"] <= a["left"] + 0.5
                below = abs(a["middle"] - b["middle"]) >= 0.9 * min(a["size"], b["size"])
                assert beside or below, f"{a} covers {b}: {n} letters at {width} px"


# --- on a phone -------------------------------------------------------------------------------------------------------


def box(page, selector):
    """Top and bottom of the first such element on the screen."""
    return page.evaluate(
        "(s) => { const b = document.querySelector(s).getBoundingClientRect(); return [b.top, b.bottom]; }", selector
    )


def test_a_phone_shows_all_of_a_typical_explorer(open_page):
    page = open_page("typical", width=390, height=844)
    top, bottom = box(page, "figure")
    assert bottom - top <= 844


@pytest.mark.parametrize("name", ["page", "typical"])
def test_the_controls_stay_beside_what_they_change(open_page, name):
    page = open_page(name, width=390, height=844)
    page.evaluate("document.querySelector('figure').scrollIntoView()")
    top, bottom = box(page, ".ax-controls")
    assert 844 / 2 < top < bottom <= 844.5, "the controls are at the bottom of the screen"
    assert box(page, ".ax-numbers")[0] >= 0 and box(page, ".ax-panel svg")[1] <= top, "the first plot is in sight"
    for plot in page.locator(".ax-plot").all():
        plot.evaluate("e => e.scrollIntoView({ block: 'end' })")
        top, bottom = box(page, ".ax-controls")
        assert bottom <= 844.5, "the controls are in sight"
        assert plot.bounding_box()["y"] + plot.bounding_box()["height"] <= top, "and cover no plot that has the focus"
    page.evaluate("document.querySelector('figure').scrollIntoView({ block: 'end' })")
    assert box(page, ".ax-controls")[1] <= box(page, "figure")[1], "they end where the explorer ends"


def test_a_phone_on_its_side_has_the_controls_beside_the_plot(open_page):
    page = open_page("typical", width=844, height=390)
    for name in ("Attention", "Rank"):
        page.evaluate("(name) => document.querySelector(`[data-panel=${name}]`).scrollIntoView()", name)
        controls = page.locator(".ax-controls").bounding_box()
        assert controls["y"] >= 0 and controls["y"] + controls["height"] <= 390
        panel = page.locator(f'[data-panel="{name}"]').bounding_box()
        assert panel["x"] + panel["width"] <= controls["x"]


def test_a_single_plot_has_its_controls_and_numbers_beside_it(open_page):
    page = open_page("single")
    panel = page.locator(".ax-panel").bounding_box()
    for selector in (".ax-controls", ".ax-numbers"):
        found = page.locator(selector).bounding_box()
        assert found["x"] >= panel["x"] + panel["width"], f"{selector} is not beside the plot"
        assert found["y"] + found["height"] <= panel["y"] + panel["height"], f"{selector} is longer than the plot"


def test_one_control_needs_no_reset(open_page):
    assert open_page("single").get_by_role("button", name="Reset").count() == 0


def test_what_a_finger_moves_is_large_enough(open_page):
    page = open_page(width=390, height=844)
    sizes = page.evaluate(
        """() => [...document.querySelectorAll('figure :is(button, select, input[type=range], label:has(input))')]
            .map((e) => e.getBoundingClientRect()).map((b) => [b.width, b.height])"""
    )
    assert len(sizes) == 6 and all(min(size) >= 24 for size in sizes), sizes


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
    assert best <= 16, f"the median step of eight panels, laid out, takes {best:.1f} ms (rounds: {medians})"


# --- without the script -----------------------------------------------------------------------------------------------


def test_without_javascript_there_is_a_picture(open_page):
    page = open_page(live=False, java_script_enabled=False)
    picture = page.get_by_role("img", name="Eight panels.")
    assert picture.is_visible() and picture.bounding_box()["width"] > 300
    assert page.locator(".ax-live").count() == 0


def test_a_browser_that_cannot_inflate_keeps_the_picture_and_says_what_to_do(open_page):
    page = open_page(live=False, script="delete window.DecompressionStream")
    page.get_by_text("need a browser of 2023 or later").wait_for()
    assert page.get_by_role("img", name="Eight panels.").is_visible()
    assert page.locator(".ax-live").count() == 0


def test_in_print_there_is_a_picture(open_page):
    page = open_page()
    picture = page.get_by_role("img", name="Eight panels.")
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
    assert tile.inner_text().split() == ["Variance", at(n=2)["Variance"].value, "nats²"]
    spread = at(n=2)["Spread"]
    words = ["Spread", spread.value, "nats", "measured", spread.predicted, "predicted"]
    assert page.locator('[data-panel="Spread"]').inner_text().split() == words
