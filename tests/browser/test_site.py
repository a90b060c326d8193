"""Every page of the built book, as a reader's browser sees it."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from built_book import BUILT, built_pages

from tools import axe

pytestmark = pytest.mark.browser

PAGES = built_pages() or ["the book is not built"]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
PAGE_LIMIT = 500_000  # bytes, compressed: everything a browser loads for one page
PACKED = (".png", ".jpg", ".jpeg", ".woff2", ".gif", ".webp")  # compressed already

every_page = pytest.mark.parametrize("name", PAGES)
every_chapter = pytest.mark.parametrize("name", CHAPTERS or ["the book is not built"])


def scroll_through(page) -> None:
    """Scroll to the end, so that what loads late is loaded."""
    page.evaluate(
        """async () => {
            for (let y = 0; y < document.body.scrollHeight; y += innerHeight) {
                scrollTo(0, y); await new Promise((done) => requestAnimationFrame(done));
            }
            await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
            scrollTo(0, 0);
        }"""
    )
    page.wait_for_load_state("networkidle")


def weight(response) -> int:
    """Bytes of a response as a server that compresses sends it."""
    body = response.body()
    return len(body) if urlsplit(response.url).path.endswith(PACKED) else len(gzip.compress(body, 6))


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_a_page_asks_no_one_else_complains_of_nothing_and_is_light(desktop, site):
    seen, name = desktop, desktop.name
    scroll_through(seen.page)
    foreign = [url for url in seen.requests if not url.startswith((site, "data:", "blob:"))]
    assert not foreign, f"{name} asks other hosts: {foreign}"
    missing = [response.url for response in seen.responses if response.status >= 400]
    assert not missing, f"{name} asks for what is not there: {missing}"
    assert not seen.complaints, f"the console of {name}: {seen.complaints}"
    weights = {r.url.removeprefix(site): weight(r) for r in seen.responses if r.url.startswith("http") and r.ok}
    heavy = sorted(weights.items(), key=lambda item: -item[1])[:5]
    assert sum(weights.values()) <= PAGE_LIMIT, f"{name} weighs {sum(weights.values())} bytes; the heaviest: {heavy}"


@every_page
def test_a_page_holds_no_machinery_of_widgets(site, name):
    html = (BUILT / name).read_text(encoding="utf-8")
    found = re.findall(
        r"jupyter\.widget-\w+\+json|require(?:\.min)?\.js|mathjax[\w.@-]*\.js|thebe[\w-]*\.js", html, re.IGNORECASE
    )
    assert not found, f"{name} contains {set(found)}"


# --- accessibility ----------------------------------------------------------------------------------------------------


def violations(page, **options) -> list[str]:
    """Return what axe finds that is serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe(axe.script()).run(page, options={"resultTypes": ["violations"], **options}).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {rule['help']}: {node['html'][:160]} {node['failureSummary'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"][:3]
    ]


def test_axe_finds_nothing_serious(desktop):
    found = violations(desktop.page)
    assert not found, f"{desktop.name}:\n" + "\n".join(found)


def test_axe_finds_enough_contrast_in_the_dark(desktop):
    root = "document.documentElement.dataset.theme"
    desktop.page.evaluate(f"{root} = 'dark'")
    try:
        found = violations(desktop.page, runOnly=["color-contrast", "link-in-text-block"])
    finally:
        desktop.page.evaluate(f"{root} = 'light'")
    assert not found, f"{desktop.name} in the dark:\n" + "\n".join(found)


def test_axe_finds_nothing_serious_on_a_phone(phone):
    found = violations(phone.page, rules={"color-contrast": {"enabled": False}})
    assert not found, f"{phone.name} on a phone:\n" + "\n".join(found)


def test_every_image_has_an_alternative_text(desktop):
    without = desktop.page.evaluate(
        "[...document.images].filter((i) => !i.alt.trim()).map((i) => i.outerHTML.slice(0, 200))"
    )
    assert not without, f"{desktop.name} has images without alt: {without}"
    unnamed = desktop.page.evaluate(
        """() => [...document.querySelectorAll("main .attntut-figure svg")]
            .filter((s) => s.getAttribute("role") !== "img" || !s.getAttribute("aria-label"))
            .map((s) => s.outerHTML.slice(0, 200))"""
    )
    assert not unnamed, f"{desktop.name} has drawings without a name: {unnamed}"


@every_page
def test_the_skip_link_leads_to_the_text(visit, name):
    page = visit(name).page
    page.keyboard.press("Tab")
    focused = page.evaluate("document.activeElement.className")
    assert focused == "skip-link", f"the first stop of the Tab key on {name} is {focused!r}"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main-content"


# --- a phone ----------------------------------------------------------------------------------------------------------


def test_nothing_scrolls_sideways_on_a_phone(phone):
    page, name = phone.page, phone.name
    width = page.evaluate("document.documentElement.scrollWidth")
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main *")]
            .filter((e) => e.getBoundingClientRect().right > innerWidth + 1
                && !e.closest("pre, .math-box, .table-box, .cell_output .text_html, .attntut-explorer"))
            .map((e) => e.outerHTML.slice(0, 160))"""
    )
    assert width <= 390, f"{name} is {width} pixels wide at 390: {wide[:3]}"
    assert not wide, f"{name} has something wider than the phone: {wide[:3]}"


def test_formulas_within_a_line_fit_a_phone(phone):
    page, name = phone.page, phone.name
    wide = page.evaluate(
        """() => [...document.querySelectorAll("main math:not([display=block])")]
            .filter((e) => !e.closest(".table-box, .math-box")
                && e.getBoundingClientRect().right > e.closest("main").getBoundingClientRect().right + 1)
            .map((e) => e.textContent)"""
    )
    assert not wide, f"{name}: display these formulas, or split them: {wide}"


def test_records_are_whole_on_a_phone(phone):
    cut = phone.page.evaluate(
        """() => [...document.querySelectorAll(".attntut-evidence :is(th, td)")]
            .filter((e) => e.getBoundingClientRect().right > e.closest("main").getBoundingClientRect().right + 1)
            .map((e) => e.textContent)"""
    )
    assert not cut, f"{phone.name}: {cut[:3]}"


def test_type_in_drawings_is_legible_on_a_phone(phone):
    small = phone.page.evaluate(
        """() => [...document.querySelectorAll(".attntut-figure svg text")].filter((t) => !t.children.length)
            .map((t) => [t.textContent, t.getScreenCTM(), parseFloat(getComputedStyle(t).fontSize)])
            .map(([text, matrix, size]) => [text, Math.hypot(matrix.a, matrix.b) * size])
            .filter(([, size]) => size < 8.5)"""
    )
    assert not small, f"{phone.name}: this is less than 8.5 pixels high: {small[:5]}"


def test_the_edge_behind_which_a_box_goes_on_fades(phone):
    page, name = phone.page, phone.name
    boxes = page.locator(":is(pre, .math-box, .table-box).is-wide:visible")
    if boxes.count():
        box = boxes.first.element_handle()
        mask = "(box) => getComputedStyle(box).maskImage"
        assert "gradient" in box.evaluate(mask), f"{name}: nothing says that this scrolls"
        box.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
        page.wait_for_function("(box) => box.classList.contains('at-end')", arg=box)
        assert box.evaluate(mask) == "none", f"{name}: the end of the line is faded"
        box.evaluate("(box) => { box.scrollLeft = 0; }")


def test_the_contents_open_and_close_on_a_phone(phone):
    page = phone.page
    nav, menu = page.locator("#site-nav"), page.locator(".menu")
    assert not nav.is_visible()
    menu.click()
    assert nav.is_visible()
    assert menu.get_attribute("aria-expanded") == "true"
    page.keyboard.press("Escape")
    assert not nav.is_visible()
    assert page.evaluate("document.activeElement.className").endswith("menu"), "the focus should return to the button"


# --- light and dark ---------------------------------------------------------------------------------------------------


def luminance(page, selector: str) -> float:
    """Return how light the background of an element is, 0 to 255."""
    colour = page.evaluate("(s) => getComputedStyle(document.querySelector(s)).backgroundColor", selector)
    return sum(map(float, re.findall(r"[\d.]+", colour)[:3])) / 3


def test_dark_mode_follows_the_system_and_the_reader(visit):
    page = visit(PAGES[0], scheme="dark").page
    button = page.locator(".theme-switch")
    assert luminance(page, "body") < 60, "the system asks for dark"
    button.click()
    assert luminance(page, "body") > 200, "the first click always changes something"
    page.reload()
    assert luminance(page, "body") > 200, "the choice is kept"
    button.click()
    assert luminance(page, "body") < 60
    button.click()
    assert "as the system" in button.get_attribute("aria-label")


def pages_with(text: str) -> list[str]:
    """The chapters whose HTML contains a text."""
    return [page for page in CHAPTERS if text in (BUILT / page).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", pages_with("<img"))
def test_pictures_lie_on_white_paper_in_the_dark(visit, name):
    page = visit(name, scheme="dark").page
    assert luminance(page, ".cell_output img, figure img") > 250


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", pages_with("attntut-figure"))
def test_figures_have_the_colours_of_the_page(visit, name, scheme):
    """All text can be read, except what stands on a map, whose colours are data."""
    page = visit(name, scheme=scheme).page
    pale = page.evaluate(
        """() => {
            const light = (colour) => {
                const [r, g, b] = colour.match(/[\\d.]+/g).map((c) => c / 255)
                    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const paper = light(getComputedStyle(document.body).backgroundColor);
            return [...document.querySelectorAll(".attntut-figure svg :is(text, tspan)")].map((text) => {
                const ink = getComputedStyle(text).fill;
                const [low, high] = [light(ink), paper].sort((a, b) => a - b);
                return [text.textContent, ink, (high + 0.05) / (low + 0.05)];
            }).filter(([, ink, contrast]) => contrast < 4.5 && !/rgb\\((253, ){2}253|rgb\\((16, ){2}16/.test(ink));
        }"""
    )
    assert not pale, f"{name}: this is too pale on a {scheme} page: {pale[:5]}"
    grounds = page.evaluate(
        """[...document.querySelectorAll(".attntut-figure, .attntut-figure svg")]
            .map((e) => getComputedStyle(e).backgroundColor)"""
    )
    assert {*grounds} == {"rgba(0, 0, 0, 0)"}, "a drawing lies on the page, not on a card"


# --- without scripts --------------------------------------------------------------------------------------------------


@every_page
def test_a_page_can_be_read_without_scripts(visit, name):
    page = visit(name, width=390, height=844, scripts=False, scheme="dark").page
    assert page.locator("main h1").first.is_visible()
    assert luminance(page, "body") < 60, "dark mode needs no script"
    page.locator(".menu").click()
    assert page.locator("#site-nav").is_visible(), "the contents open without a script"
    page.locator("#site-nav .close").click()
    assert not page.locator("#site-nav").is_visible()


# --- finding one's way ------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """Collects the links and the anchors of a page, and which page is next."""

    def __init__(self, name: str, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: list[str] = []
        self.next = ""
        self.name = name
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in ("a", "link") and values.get("href"):
            self.links.append(values["href"])
            if tag == "a" and values.get("rel") == "next":
                self.next = urlsplit(urljoin("http://book/" + self.name, values["href"])).path.lstrip("/")
        if values.get("id"):
            self.anchors.append(values["id"])


@pytest.fixture(scope="module")
def linked(site) -> dict[str, Links]:
    return {name: Links(name, (BUILT / name).read_text(encoding="utf-8")) for name in PAGES}


@every_page
def test_every_link_within_the_book_arrives(linked, name):
    broken = []
    for link in linked[name].links:
        target = urlsplit(urljoin("http://book/" + name, link))
        if target.netloc != "book":
            continue
        path = unquote(target.path).lstrip("/")
        anchors = linked[path].anchors if path in linked else [unquote(target.fragment)]
        if not (BUILT / path).is_file() or (target.fragment and unquote(target.fragment) not in anchors):
            broken.append(link)
    assert not broken, f"{name} has links that lead nowhere: {sorted(set(broken))}"


@every_page
def test_anchors_are_unique(linked, name):
    anchors = linked[name].anchors
    twice = {anchor for anchor in anchors if anchors.count(anchor) > 1}
    assert not twice, f"{name} has these anchors more than once: {twice}"


def test_next_leads_through_the_whole_book(visit, linked):
    page = visit("index.html").page
    page.wait_for_url("**/book/preface.html")
    page.locator("a.next").click()
    page.wait_for_url("**/book/playground.html**")
    met, name = [], "book/preface.html"
    while name not in met:
        met.append(name)
        name = linked[name].next or name
    assert sorted(met) == sorted(set(PAGES) - {"search.html"}), "following Next should show every page once"


def test_the_contents_lead_to_every_page_and_mark_the_present_one(visit, site):
    page = visit(CHAPTERS[0]).page
    addresses = page.evaluate("[...document.querySelectorAll('#site-nav li a')].map((a) => a.href.split('#')[0])")
    assert {a.removeprefix(site + "/") for a in addresses} == set(PAGES) - {"search.html"}
    assert page.evaluate("document.querySelector('#site-nav [aria-current]').href.split('#')[0]") == page.url


def test_the_search_finds_a_word_and_leads_to_it(visit):
    page = visit(CHAPTERS[0]).page
    page.keyboard.press("Control+k")
    page.keyboard.type("initialization")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")
    link = page.locator("#search-results li a").first
    link.click()
    page.wait_for_selector("main h1")
    assert "nitializ" in page.locator("main").inner_text()


# --- notebooks --------------------------------------------------------------------------------------------------------


@every_chapter
def test_the_notebook_can_be_downloaded(visit, name):
    page = visit(name).page
    button = page.locator("a[download]")
    assert button.count() == 1, f"{name} has no download button"
    response = page.request.get(page.evaluate("document.querySelector('a[download]').href"))
    assert response.ok, f"{response.url}: {response.status}"
    assert json.loads(response.body())["cells"], "the download is not a notebook"


@every_chapter
def test_drawings_are_small(site, name):
    html = (BUILT / name).read_text(encoding="utf-8")
    figures = re.findall(r'<figure class="attntut-figure">.*?</figure>', html, re.DOTALL)
    weights = [len(gzip.compress(figure.encode(), 6)) for figure in figures]
    assert max(weights, default=0) <= 20_000, f"bytes of the drawings of {name}, compressed: {weights}"


@every_chapter
def test_code_can_be_copied(visit, name):
    page = visit(name).page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    box = page.locator(".cell_input .highlight:visible").first
    box.hover()
    box.locator(".copy").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.split() == box.locator("pre").inner_text().split()


def test_folded_boxes_open_by_keyboard(desktop):
    page, name = desktop.page, desktop.name
    boxes = page.locator("main details:not([open]) > summary:visible")
    if boxes.count():
        box = boxes.first.element_handle()
        box.focus()
        page.keyboard.press("Enter")
        assert box.evaluate("(summary) => summary.parentElement.open"), f"{name}: Enter does not open a folded box"
        page.keyboard.press("Enter")


def test_boxes_that_scroll_can_be_reached_with_the_keyboard(phone):
    page, name = phone.page, phone.name
    stuck = page.evaluate(
        """() => [...document.querySelectorAll("main pre, main .math-box, main .table-box")]
            .filter((e) => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0).map((e) => e.outerHTML.slice(0, 120))"""
    )
    assert not stuck, f"{name}: {stuck}"


# --- the claims, the formulas, the addresses --------------------------------------------------------------------------


def test_the_ledger_shows_every_claim_and_is_never_empty(visit):
    page = visit("book/claims.html").page
    claims = page.evaluate("[...document.querySelectorAll('.claim')].map((c) => c.id)")
    assert claims == [f"c{number:02d}" for number in range(1, 15)]
    empty = page.evaluate("[...document.querySelectorAll('.claim:not(:has(li))')].map((c) => c.id)")
    assert not empty, f"these claims show neither evidence nor where it will come: {empty}"


def test_what_to_remember_prints_on_two_pages_of_a4(visit):
    page = visit("book/sheet.html").page
    boxes = re.findall(rb"/MediaBox \[0 0 (\d+)\S* (\d+)", page.pdf(prefer_css_page_size=True))
    assert 1 <= len(boxes) <= 2, f"it takes {len(boxes)} pages: shorten a list, or see book/_static/sheet.css"
    assert {*boxes} <= {(b"594", b"841"), (b"595", b"841"), (b"595", b"842")}, f"these are points of no A4: {boxes}"
    chapters = page.eval_on_selector_all("h2 a:first-child", "links => links.map((a) => a.href.split('/').pop())")
    assert [f"notebooks/{name}" for name in chapters] == CHAPTERS


def test_formulas_are_set_in_the_books_font(desktop):
    page, name = desktop.page, desktop.name
    if page.locator("main math").count():
        page.evaluate("document.fonts.ready")
        loaded = page.evaluate("[...document.fonts].filter((f) => f.status === 'loaded').map((f) => f.family)")
        assert any("STIX Two Math" in family for family in loaded), f"{name} loads only {loaded}"
    raw = re.findall(r"\\(?:frac|sqrt|operatorname|text|sigma)\b.{0,40}", page.locator("main").inner_text())
    assert not raw, f"{name} shows LaTeX: {raw}"


def test_a_root_stands_on_the_line_and_meets_its_bar(visit):
    """√n in running text is drawn in one piece, hardly below the line, and its bar does not touch the n."""
    np, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    label = pytest.importorskip("scipy.ndimage").label
    page = visit("book/notation.html").page
    page.evaluate(
        """() => {
            document.body.innerHTML = '<div style="padding: 40px; font-size: 18px; color: #000; background: #fff">'
                + '<math id="probe"><msqrt><mi>n</mi></msqrt></math></div>';
            return document.fonts.load("18px 'STIX Two Math'").then(() => document.fonts.ready);
        }"""
    )
    box = page.locator("#probe").bounding_box()
    clip = {"x": box["x"] - 4, "y": box["y"] - 10, "width": box["width"] + 8, "height": box["height"] + 20}
    pixels = np.asarray(image.open(io.BytesIO(page.screenshot(clip=clip))).convert("L"))
    pieces, count = label(pixels < 160, structure=np.ones((3, 3)))
    assert count == 2, f"the sign with its bar is one piece and n the other: {count} pieces"
    (root, letter) = sorted((np.argwhere(pieces == k) for k in (1, 2)), key=lambda piece: piece[:, 1].min())
    below = root[:, 0].max() - letter[:, 0].max()
    assert below <= 4, f"the sign comes out {below} pixels below the line"


def test_buttons_point_to_the_repository_only_when_its_address_is_known(desktop):
    page, name = desktop.page, desktop.name
    links = page.evaluate("[...document.querySelectorAll('.top a, .colophon a')].map((a) => a.href)")
    outside = [link for link in links if not link.startswith(page.url.split("/site/")[0])]
    known = os.environ.get("GITHUB_REPOSITORY")
    if known:
        assert name == "search.html" or any(known in link for link in outside), f"{name} does not point to {known}"
    else:
        assert not outside, f"{name} points outside: {outside}"


def test_the_favicon_and_the_title_card_are_there(site):
    icon = (BUILT / "_static" / "favicon.svg").read_text(encoding="utf-8")
    card = (BUILT / "_static" / "title-card.png").read_bytes()
    assert "<svg" in icon
    assert card[:4] == b"\x89PNG" and (int.from_bytes(card[16:20]), int.from_bytes(card[20:24])) == (1200, 630)
