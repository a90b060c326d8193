"""The front page opens with a question, an explorer and an answer, all on the first screen."""

import gzip

import pytest
from built_book import BUILT

pytestmark = pytest.mark.browser

PLACES = """() => [...document.querySelectorAll('main h1, main p, figure.attntut-explorer')]
    .filter((e) => !e.parentElement.closest('figure'))
    .slice(0, 4).map((e) => [e.tagName, e.getBoundingClientRect().bottom])"""


@pytest.fixture
def front(visit):
    """A function that opens the front page and waits for its explorer."""

    def open_front(**options):
        seen = visit("book/preface.html", **options)
        seen.page.wait_for_selector("figure.is-live")
        return seen

    return open_front


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_the_first_screen_has_question_explorer_and_answer(front, width, height):
    places = front(width=width, height=height).page.evaluate(PLACES)
    assert [tag for tag, _ in places] == ["H1", "P", "FIGURE", "P"]
    assert places[-1][1] <= height, f"the answer ends at {places[-1][1]:.0f} of {height} pixels"


def test_the_answer_is_one_of_the_slider(front):
    page = front().page
    slider = page.get_by_label("σ of the weights")
    start = slider.get_attribute("aria-valuetext")
    slider.focus()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    assert (start, slider.get_attribute("aria-valuetext")) == ("1", "0.125"), "the text says where the slider starts"
    keys = page.locator('[data-panel="Keys heard"]')
    measured, predicted = (float(keys.locator(part).inner_text()) for part in (".ax-value", ".ax-predicted"))
    assert 9.5 < measured < 11.5 and abs(measured - predicted) < 1, "the text says: about ten"


def test_the_first_load_is_light(front):
    seen = front()
    weight = sum(len(gzip.compress(response.body())) for response in seen.responses)
    assert weight <= 120_000, f"the front page weighs {weight} bytes, compressed"
    assert not seen.complaints, seen.complaints


@pytest.mark.parametrize("page", sorted(p for p in BUILT.rglob("*.html") if "notebooks" in p.parts) or [None])
def test_no_explorer_is_much_taller_than_a_phone(visit, page):
    if page is None:
        pytest.skip("The book is not built: run `nox -s book` first.")
    opened = visit(page.relative_to(BUILT).as_posix(), width=390, height=844).page
    for figure in opened.locator("figure.attntut-explorer").all():
        figure.scroll_into_view_if_needed()
        opened.wait_for_function("(f) => f.classList.contains('is-live')", arg=figure.element_handle())
        assert figure.bounding_box()["height"] <= 1000, "give it fewer panels or shorter labels"
