"""Every exercise of a chapter has a solution that passes its check, and wrong answers that do not."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "exercises"))
CHAPTERS = sorted(path.stem for path in (ROOT / "exercises").glob("chapter_*.py"))
EXERCISES = {e.number: e for chapter in CHAPTERS for e in importlib.import_module(chapter).EXERCISES}
WRONG = [(number, name) for number, exercise in EXERCISES.items() for name in exercise.wrong]


@pytest.mark.parametrize("number", EXERCISES)
def test_the_solution_passes(number):
    EXERCISES[number].check(EXERCISES[number].solution)


@pytest.mark.parametrize("number, name", WRONG)
def test_a_wrong_answer_is_led_to_its_mistake(number, name):
    with pytest.raises(AssertionError) as failure:
        EXERCISES[number].check(EXERCISES[number].wrong[name])
    assert "?" in str(failure.value), "The message of a check must be a question that leads to the mistake."


@pytest.mark.parametrize("number", EXERCISES)
def test_an_exercise_has_wrong_answers(number):
    assert len(EXERCISES[number].wrong) >= 2


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_chapter_asks_what_is_solved(path):
    chapter = int(path.stem[:2])
    text = "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text("utf-8"))["cells"])
    asked = re.findall(r"^\*\*Exercise (\d+\.\d+)\*\* \(\d+ minutes?, (?:easy|medium|hard)\)", text, flags=re.M)
    solved = [number for number in EXERCISES if number.split(".")[0] == str(chapter)]
    assert asked == solved, "The chapter's exercises and exercises/chapter_NN.py differ."
    assert 4 <= len(asked) <= 6
