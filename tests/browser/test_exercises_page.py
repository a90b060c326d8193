"""Exercises on the page: answered with the keyboard, checked without a kernel, each mistake asked its own question."""

import base64
import html
import json
import re
from pathlib import Path

import pytest
from built_book import BUILT

from attntut.exercises.public import records

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[2]
ANSWERED = {n: r for n, r in records().items() if r["kind"] in ("number", "choice")}
CHAPTERS = {int(path.name[:2]): f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("*.ipynb")}
LARGEST = 2048  # bytes of script for all this


def check(number):
    """The right answer of the page, and each trap with its question."""
    found = json.loads(base64.b64decode(ANSWERED[number]["check"]))
    traps = zip([values[0] for values in found["traps"]], found["questions"], strict=True)
    return found["right"][0], list(traps)


def fill(form, answer):
    if isinstance(answer, str):
        form.locator(f'input[value="{answer}"]').check()
    else:
        form.locator("input").fill(", ".join(map(repr, answer)))


@pytest.mark.parametrize("chapter", sorted({int(number.split(".")[0]) for number in ANSWERED}))
def test_every_answer_is_checked_on_the_page(visit, chapter):
    page = visit(CHAPTERS[chapter]).page
    own = [number for number in ANSWERED if number.startswith(f"{chapter}.")]
    assert page.locator("form.answer").count() == len(own)
    for number in own:
        form = page.locator(f"#exercise-{number.replace('.', '-')} ~ form.answer").first
        right, traps = check(number)
        said = form.locator("output")
        for trap, question in traps:
            fill(form, trap)
            form.get_by_role("button", name="Check").click()
            assert said.inner_text() == question, (number, trap)
        fill(form, right)
        form.get_by_role("button", name="Check").press("Enter")
        assert said.inner_text() == "Right.", number
        if not isinstance(right, str):
            form.locator("input").fill("much")
            form.locator("input").press("Enter")
            assert said.inner_text().startswith("Give ")


def test_a_fraction_and_a_true_minus_are_numbers(visit):
    number = next(n for n, r in ANSWERED.items() if r["kind"] == "number" and len(check(n)[0]) == 1)
    page = visit(CHAPTERS[int(number.split(".")[0])]).page
    form = page.locator(f"#exercise-{number.replace('.', '-')} ~ form.answer").first
    form.locator("input").fill(f"{check(number)[0][0] * -8}/\u22128")
    form.locator("input").press("Enter")
    assert form.locator("output").inner_text() == "Right."


@pytest.mark.skipif(not BUILT.exists(), reason="The book is not built: run `nox -s book` first.")
def test_the_answer_cannot_be_read_at_a_glance():
    for number in ANSWERED:
        page = html.unescape((BUILT / CHAPTERS[int(number.split(".")[0])]).read_text("utf-8"))
        assert page.count("Exercise ") > 6
        for _, question in check(number)[1]:
            assert question not in page, number


def test_the_script_is_small():
    script = (ROOT / "book" / "_static" / "book.js").read_text("utf-8")
    part = re.search(r"// Answers to exercises.*?(?=\n  // )", script, flags=re.DOTALL)
    assert part
    assert len(part.group().encode()) <= LARGEST


def test_without_scripts_the_options_are_read_and_no_button_is_shown(visit):
    number = next(n for n, r in ANSWERED.items() if r["kind"] == "choice")
    page = visit(CHAPTERS[int(number.split(".")[0])], scripts=False).page
    assert page.locator("form.answer button:visible").count() == 0
    assert page.locator("form.answer li:visible").count() >= 6
