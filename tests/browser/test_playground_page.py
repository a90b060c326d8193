"""The playground, as a reader plays with it."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest
from built_book import BUILT
from test_site import weight

sys.path.append(str(Path(__file__).parents[1]))
from test_playground import ADAM, SGD, WORK, by_torch, case_of, config_of, differences, model_of

pytestmark = pytest.mark.browser

PAGE = "book/playground.html"
PAGE_LIMIT, DATA_LIMIT = 200_000, 60_000  # bytes, compressed: a first visit, and the data in it
QUICK = "#task=previous&depth=1&width=16&heads=2&a=xavier_normal~query_key:8&b=xavier_normal~norm:none~lr:0.01"

STEPS = "Number(document.querySelector('.pg-step').textContent.match(/step (\\d+)/)?.[1] ?? -1)"
READY = f"{STEPS} >= 0 && !document.querySelector('.playground.is-waiting')"


@pytest.fixture
def play(visit_built):
    """A function that opens the page at an address, if it was built, and waits until its worker answers."""
    visit = visit_built(PAGE)

    def opened(address: str = QUICK, **options):
        seen = visit(address, **options)
        seen.page.set_default_timeout(30_000)
        seen.page.wait_for_function(READY)
        return seen

    return opened


def words(page, run: int = 0) -> str:
    return page.locator(".pg-words").nth(run).inner_text()


def test_it_trains_pauses_steps_and_goes_back(play):
    seen = play()
    page = seen.page
    page.evaluate(
        """() => { window.longest = 0; new PerformanceObserver((list) => { for (const each of list.getEntries())
            window.longest = Math.max(window.longest, each.duration); }).observe({ type: "longtask" }); }"""
    )
    first = page.locator(".pg-numbers").first.inner_text()
    page.click(".pg-play")
    page.wait_for_function(f"{STEPS} > 3")
    assert page.locator(".pg-play").inner_text().endswith("Pause")
    page.click(".pg-play")
    page.wait_for_function("!document.querySelector('.pg-step').textContent.includes('steps/s')")  # the worker stopped
    at = page.evaluate(STEPS)
    page.get_by_role("button", name="Step", exact=True).click()
    page.wait_for_function(f"{STEPS} === {at + 1}")
    assert page.locator(".pg-numbers").first.inner_text() != first
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function(f"{STEPS} === 0")
    assert page.locator(".pg-numbers").first.inner_text() == first, "the same seed, the same start"
    assert page.evaluate("window.longest") < 200, "the page is never blocked for long"  # 50 on a machine of one's own
    assert not seen.complaints


def test_what_is_wrong_is_said_in_the_words_of_diagnose(play):
    page = play().page
    assert words(page).startswith("At the start: warning: logits too large in block 1.")
    href = page.locator(".pg-words a").first.get_attribute("href")
    assert (BUILT / PAGE).parent.joinpath(href.split("#")[0]).resolve().is_relative_to(BUILT)
    assert words(page, 1) == "At the start: nothing is wrong."


def test_a_control_changes_the_run_and_the_address(play):
    page = play().page
    page.locator(".pg-run").nth(0).locator("[data-name=query_key]").press("ArrowLeft")
    page.wait_for_function(f"location.hash.includes('query_key:6.73') && {READY}")
    page.locator(".pg-run").nth(0).locator("[data-name=scheme]").select_option("gpt2")
    page.wait_for_function("location.hash.includes('a=gpt2')")
    page.locator("[data-name=task]").select_option("digits")
    page.wait_for_function(f"!location.hash.includes('task') && {READY}")
    page.get_by_role("button", name="Remove run B").click()
    page.wait_for_function("document.querySelectorAll('.pg-run').length === 1")
    assert "b=" not in page.evaluate("location.hash")
    said = page.evaluate("document.querySelector('.pg-live').textContent")
    assert said.startswith("Step 0. A: loss")


def test_it_can_be_played_with_the_keyboard_alone(play):
    page = play().page
    page.locator("[data-name=preset]").focus()
    page.keyboard.press("s")  # a list's own key: it looks for an entry
    assert page.evaluate(STEPS) == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("pg-play")
    page.keyboard.press("Space")
    page.wait_for_function(f"{STEPS} > 1")
    page.keyboard.press("Space")
    page.wait_for_function("!document.querySelector('.pg-step').textContent.includes('steps/s')")
    page.locator("[data-name=query_key]").first.focus()
    at = page.evaluate(STEPS)
    page.keyboard.press("s")
    page.wait_for_function(f"{STEPS} === {at + 1}")
    page.keyboard.press("r")
    page.wait_for_function(f"{STEPS} === 0")
    page.keyboard.press("n")
    page.wait_for_function("document.querySelector('.pg-step').textContent.includes('seed 2')")


def test_an_address_names_a_question_and_nonsense_is_overlooked(play):
    page = play("#he-without-norms").page
    assert page.locator(".pg-run").count() == 3 and "stream growing in blocks 1, 2, 3, 4" in words(page)
    page = play("#a=no_such_scheme&depth=9").page
    assert page.locator(".pg-run").count() == 3


def test_every_question_can_be_opened(play):
    page = play().page
    for button in page.locator(".pg-preset").all():
        state = button.get_attribute("data-state")
        page.evaluate("state => { location.hash = state; }", state)
        page.wait_for_function(READY)
        runs = [part for part in state.split("&") if part[:2] in ("a=", "b=", "c=")]
        assert page.locator(".pg-run").count() == len(runs), f"{state} is not understood"


def test_a_run_that_diverges_says_so_and_the_others_go_on(play):
    page = play("#task=previous&depth=1&width=16&a=kaiming_normal~norm:none~optimizer:sgd~lr:1000&b=xavier_normal").page
    page.click(".pg-play")
    page.wait_for_function("document.querySelector('.pg-numbers').textContent.startsWith('diverged at step')")
    page.wait_for_function(f"{STEPS} > 10")
    assert page.locator(".pg-numbers").nth(1).inner_text().startswith("loss")


def test_the_page_is_light(play, site):
    seen = play()
    sizes = {r.url.removeprefix(site): weight(r) for r in seen.responses if r.url.startswith("http") and r.ok}
    assert sum(sizes.values()) <= PAGE_LIMIT, sizes
    data = (BUILT / "_static" / "playground-data.js").read_bytes()
    assert len(gzip.compress(data, 9)) <= DATA_LIMIT


def test_without_scripts_there_is_a_picture_and_a_sentence(visit_built):
    page = visit_built(PAGE)(scripts=False).page
    assert page.locator(".playground img").is_visible() and page.locator(".playground figcaption").is_visible()
    assert not page.locator(".pg-preset").first.is_visible()


@pytest.mark.parametrize("task, norm, optimizer", [("digits", "pre", SGD), ("previous", "post", ADAM)])
def test_the_engine_of_the_browser_is_equal_to_torch(play, task, norm, optimizer):
    page = play().page
    config, names = config_of(task, norm=norm)
    model = model_of(config)
    case = case_of(task, model, names, optimizer, steps=20)
    ours = page.evaluate(f"(one) => {{ const data = attntutData; {WORK} return work.train(one); }}", case)
    found = differences(ours, by_torch(task, model, optimizer, steps=20))
    assert max(found.values()) <= 1, found
