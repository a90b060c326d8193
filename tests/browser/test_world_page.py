"""A table that a reader sorts and filters, as the page of the world's models has it."""

from __future__ import annotations

import gzip

import pytest
from built_book import BUILT, ROOT
from test_site import scroll_through, violations, weight

pytestmark = pytest.mark.browser

PAGE = "book/world.html"
PAGE_LIMIT = 200_000  # bytes, compressed: what a first visit loads
SHOWN = "[...document.querySelectorAll('.sortable tbody tr')].filter((r) => !r.hidden)"


@pytest.fixture
def world(visit_built):
    """A function that opens the page at an address."""
    return visit_built(PAGE)


def shown(page) -> list[str]:
    return page.evaluate(f"{SHOWN}.map((r) => r.cells[0].textContent)")


def column(page, key: str) -> list[str]:
    return page.evaluate(
        f"k => {{ const i = [...document.querySelectorAll('.sortable thead th')].findIndex((h) => h.dataset.key === k);"
        f" return {SHOWN}.map((r) => r.cells[i].textContent); }}",
        key,
    )


def stored() -> list[str]:
    lines = (ROOT / "runs" / "world.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split(",") for line in lines if not line.startswith("#")][1:]
    return [row[0] for row in rows if row[1] != "not"]


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("−", "-")) for text in texts if text != "–"]


def test_every_architecture_is_there_and_the_text_finds_one(world):
    page = world().page
    assert shown(page) == stored() and len(stored()) > 300
    page.get_by_label("Find", exact=True).fill("BERT-gen")
    assert shown(page) == ["bert-generation"]
    assert page.locator(".sortable-count").inner_text() == f"1 of {len(stored())} architectures"
    assert page.locator(".sortable-count").get_attribute("role") == "status"
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function(f"n => {SHOWN}.length === n", arg=len(stored()))
    assert page.url.endswith(PAGE), "the address is clean again"


def test_a_column_sorts_up_down_and_back_with_the_missing_last(world):
    page = world().page
    head = page.locator(".sortable th[data-key=logit]")
    head.get_by_role("button").click()
    texts = column(page, "logit")
    assert numbers(texts) == sorted(numbers(texts)) and head.get_attribute("aria-sort") == "ascending"
    assert "–" not in texts[: len(numbers(texts))]
    head.get_by_role("button").focus()
    page.keyboard.press("Enter")
    texts = column(page, "logit")
    assert numbers(texts) == sorted(numbers(texts), reverse=True) and head.get_attribute("aria-sort") == "descending"
    assert "–" not in texts[: len(numbers(texts))]
    head.get_by_role("button").click()
    assert shown(page) == stored() and head.get_attribute("aria-sort") == "none"


def test_a_choice_and_the_address_show_a_part(world):
    page = world().page
    page.locator("select[name=norm]").select_option("post")
    assert {*column(page, "norm")} == {"post"} and "norm=post" in page.url
    again = world("#norm=post&sort=-logit").page
    assert sorted(shown(again)) == sorted(shown(page))
    assert numbers(column(again, "logit")) == sorted(numbers(column(again, "logit")), reverse=True)
    assert shown(world("#norm=nonsense&sort=nonsense").page) == stored()


def test_without_scripts_all_rows_are_there_and_no_form(world):
    page = world(scripts=False).page
    assert page.locator(".sortable tbody tr:visible").count() == len(stored())
    assert not page.locator(".sortable-filter").is_visible()


@pytest.mark.parametrize("scripts", [True, False])
def test_a_phone_scrolls_the_table_in_its_box_and_keeps_the_names(world, scripts):
    page = world(width=390, height=844, scripts=scripts).page
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    if scripts:
        page.evaluate("document.querySelector('.sortable .table-box').scrollLeft = 400")
        left = page.evaluate(
            """() => ["tbody th", ".table-box"].map((s) =>
                document.querySelector(`.sortable ${s}`).getBoundingClientRect().left)"""
        )
        assert abs(left[0] - left[1]) <= 1, "the first column stays"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_serious(world, width, scheme):
    found = violations(world("#norm=post", width=width, scheme=scheme).page)
    assert not found, "\n".join(found)


def test_the_page_is_light_and_asks_no_one_else(world, site):
    seen = world()
    scroll_through(seen.page)
    assert not [url for url in seen.requests if not url.startswith((site, "data:", "blob:"))]
    assert not seen.complaints
    weights = {r.url.removeprefix(site): weight(r) for r in seen.responses if r.url.startswith("http") and r.ok}
    assert sum(weights.values()) <= PAGE_LIMIT, f"{sum(weights.values())} bytes: {weights}"
    assert len(gzip.compress((BUILT / "_static" / "sortable.js").read_bytes())) < 2500
