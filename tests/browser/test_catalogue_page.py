"""The catalogue of schemes, as a reader filters it."""

from __future__ import annotations

import gzip

import pytest
from built_book import BUILT
from test_site import scroll_through, violations, weight

from attntut.init import registry, schemes

pytestmark = pytest.mark.browser

PAGE = "book/catalogue.html"
PAGE_LIMIT = 120_000  # bytes, compressed: what a first visit loads
SCHEMES = schemes()


def names(family: str = "", needs: str = "") -> list[str]:
    """What the filter should leave."""
    return [
        name
        for name, scheme in SCHEMES.items()
        if family in ("", scheme.family)
        and (not needs or (needs in scheme.requires if needs != "nothing" else not scheme.requires))
    ]


@pytest.fixture
def catalogue(visit_built):
    """A function that opens the page at an address."""
    return visit_built(PAGE)


SHOWN = "[...document.querySelectorAll('.entry')].filter((e) => e.offsetParent).map((e) => e.id)"


def shown(page) -> list[str]:
    return page.evaluate(SHOWN)


def wait_for(page, expected: list[str]) -> None:
    """Like comparing :func:`shown`, but a reset takes effect a moment after its event."""
    page.wait_for_function(f"n => {SHOWN}.length === n", arg=len(expected))
    assert shown(page) == expected


def count(page) -> str:
    return page.locator(".catalogue-count").inner_text()


def test_every_scheme_is_on_the_page_with_all_that_belongs_to_it(catalogue):
    page = catalogue().page
    assert shown(page) == [*SCHEMES]
    lacking = page.evaluate(
        """() => [...document.querySelectorAll(".entry")].filter((e) => !(e.querySelector("h3 code")
            && e.querySelector(".entry-formula math") && e.querySelectorAll(".entry-numbers tbody tr").length === 11
            && e.querySelector(".entry-facts a[href*='bibliography.html#']") && e.querySelector("svg[role=img]")
        )).map((e) => e.id)"""
    )
    assert not lacking, f"these lack a formula, a number, a source or a picture: {lacking}"
    assert page.locator("main h2").all_inner_texts()[: len(registry.FAMILIES)] == [
        f"{family.capitalize()}#" for family in registry.FAMILIES
    ]


def test_the_mouse_filters_by_family_and_requirement(catalogue):
    page = catalogue().page
    assert count(page) == f"{len(SCHEMES)} schemes"
    page.get_by_text("depth (").click()
    assert shown(page) == names("depth")
    assert count(page) == f"{len(names('depth'))} of {len(SCHEMES)} schemes"
    assert page.locator("main h2:visible").count() == 2, "one family, and how to add a scheme"
    page.get_by_label("Requirement").select_option("post-LN")
    assert shown(page) == names("depth", "post-LN") != []
    assert page.url.endswith("#family=depth&needs=post-LN")
    page.get_by_text("symmetric (").click()
    assert shown(page) == []
    assert "None of" in count(page)
    page.get_by_role("button", name="Show all").click()
    wait_for(page, [*SCHEMES])
    assert page.url.endswith(PAGE), "the address is clean again"
    page.get_by_label("Requirement").select_option("nothing")
    assert shown(page) == names("", "nothing") != []


def test_the_keyboard_filters(catalogue):
    page = catalogue().page
    page.locator(".catalogue-filter input").first.focus()
    page.keyboard.press("ArrowRight")
    assert shown(page) == names(registry.FAMILIES[0])
    ring = "getComputedStyle(document.activeElement.closest('label')).outlineStyle"
    assert page.evaluate(ring) == "solid", "the focus can be seen"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "needs"
    page.keyboard.type("post")
    assert shown(page) == names(registry.FAMILIES[0], "post-LN")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    wait_for(page, [*SCHEMES])


def test_the_count_is_announced(catalogue):
    page = catalogue().page
    assert page.locator(".catalogue-count").get_attribute("role") == "status"
    assert page.get_by_role("radio", name="depth").count() == 1
    assert page.get_by_role("group", name="Family").count() == 1


@pytest.mark.parametrize("family, needs", [("depth", "no norm"), ("width", ""), ("", "batch"), ("", "nothing")])
def test_an_address_with_a_filter_shows_it(catalogue, family, needs):
    state = "&".join(f"{key}={value}" for key, value in (("family", family), ("needs", needs)) if value)
    page = catalogue("#" + state.replace(" ", "+")).page
    assert shown(page) == names(family, needs) != []
    assert page.evaluate("document.querySelector('.catalogue-filter').elements.family.value") == family
    assert page.get_by_label("Requirement").input_value() == needs


def test_an_address_with_nonsense_shows_all(catalogue):
    assert shown(catalogue("#family=nonsense&needs=nonsense").page) == [*SCHEMES]


def test_a_link_to_a_scheme_shows_it_whatever_is_filtered(catalogue):
    page = catalogue("#family=fan").page
    assert page.locator("#deepnorm").is_hidden()
    page.evaluate("location.hash = '#deepnorm'")
    page.wait_for_function("document.querySelector('#deepnorm').offsetParent")
    assert page.locator("#deepnorm h3").is_visible()
    assert page.evaluate("document.querySelector('#deepnorm').getBoundingClientRect().top") < 450
    assert shown(page) == [*SCHEMES]


def test_without_scripts_everything_is_there_and_no_form(catalogue):
    page = catalogue(scripts=False).page
    assert page.locator(".entry:visible").count() == len(SCHEMES)
    assert not page.locator(".catalogue-filter").is_visible()
    assert count(page) == f"{len(SCHEMES)} schemes"


def test_the_page_is_light_and_asks_no_one_else(catalogue, site):
    seen = catalogue()
    scroll_through(seen.page)
    assert not [url for url in seen.requests if not url.startswith((site, "data:", "blob:"))]
    assert not seen.complaints
    weights = {r.url.removeprefix(site): weight(r) for r in seen.responses if r.url.startswith("http") and r.ok}
    assert sum(weights.values()) <= PAGE_LIMIT, f"{sum(weights.values())} bytes: {weights}"


def test_the_filter_is_loaded_by_the_catalogues_only():
    others = [path for path in BUILT.rglob("*.html") if "catalogue.js" in path.read_text(encoding="utf-8")]
    assert sorted(path.relative_to(BUILT).as_posix() for path in others) == ["book/adjustments.html", PAGE]
    assert len(gzip.compress((BUILT / "_static" / "catalogue.js").read_bytes())) < 2500


@pytest.mark.parametrize("scripts", [True, False])
def test_a_phone_stacks_the_entries_and_scrolls_down_only(catalogue, scripts):
    page = catalogue(width=390, height=844, scripts=scripts).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest("pre, .math-box"))
            .map((e) => e.outerHTML.slice(0, 160))"""
    )
    assert not wide, wide[:3]
    left = page.evaluate("[...document.querySelectorAll('#deepnorm > *')].map((e) => e.getBoundingClientRect().left)")
    assert len({*left}) == 1, "words and numbers stand one below the other"


@pytest.mark.parametrize("width", [390, 720, 930, 1280])
def test_formulas_and_tables_fit_their_entries(catalogue, width):
    page = catalogue(width=width).page
    scrolling = page.evaluate(
        """() => [...document.querySelectorAll(".entry :is(.math-box, .table-box)")]
            .filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.closest(".entry").id)"""
    )
    assert not scrolling, f"formulas or tables of these are wider than their boxes: {scrolling}"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(catalogue, width, scheme):
    page = catalogue("#family=depth", width=width, scheme=scheme).page
    found = violations(page)
    assert not found, "\n".join(found)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_can_be_seen(catalogue, scheme):
    """Its strokes have the colour of text, on the page's own ground."""
    page = catalogue(scheme=scheme).page

    def luminance(selector: str, name: str) -> float:
        colour = page.evaluate("([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name])
        channels = [float(each) / 255 for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    ground = luminance("body", "backgroundColor")
    for selector, name in ((".entropy", "color"), (".entropy .dot", "fill"), (".entropy g circle", "stroke")):
        light, dark = sorted([ground, luminance(selector, name)], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, f"{selector} is too pale on a {scheme} page"
