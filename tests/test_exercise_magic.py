"""The magics of the exercises, in an IPython shell: what a student sees."""

import pytest
from IPython.core.interactiveshell import InteractiveShell

from attntut.exercises.magic import Exercises
from attntut.exercises.public import variant_of
from exercises import exercises
from exercises.exercise import Explain, Number

ANY = exercises()
NUMBER = next(n for n, e in ANY.items() if isinstance(e, Number) and e.parameters and not isinstance(e, Explain))
EXPLAIN = next(n for n, e in ANY.items() if isinstance(e, Explain))


@pytest.fixture
def cell(capsys):
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "attntut.exercises")
    Exercises._student = ""

    def run(text: str) -> str:
        shell.run_cell(text)
        return capsys.readouterr().out

    yield run
    Exercises._student = ""
    InteractiveShell.clear_instance()


def test_an_id_is_kept_when_the_extension_is_loaded_again(cell):
    assert "of ada." in cell("%student ada  # my id")
    cell("%reload_ext attntut.exercises")
    variant = ANY[NUMBER].given(variant_of("ada", NUMBER))
    name, value = next(iter(variant.items()))
    assert f"{name} = {value}" in cell(f"%%exercise {NUMBER}\nanswer = 0")


@pytest.mark.parametrize("wrong", ["<your id>", "ada lovelace", "'ada'"])
def test_what_is_no_id_is_not_taken(cell, wrong):
    assert "An id has no" in cell(f"%student {wrong}")
    assert Exercises._student == ""


def test_an_explanation_is_said_to_be_read_by_a_person(cell):
    exercise = ANY[EXPLAIN]
    measured = exercise.solve(**exercise.given(0))
    said = cell(
        f"%%exercise {EXPLAIN}\nanswer = dict(prediction=1, measured={measured!r}, because={'so it is ' * 9!r})"
    )
    assert "measured is right" in said and "for a person to read" in said


def test_an_error_in_the_cell_is_reported_once(cell):
    said = cell(f"%%exercise {NUMBER}\nanswer = (")
    assert said.count("SyntaxError") <= 1 and "right" not in said


def test_a_number_that_there_is_not_is_answered_with_those_of_the_chapter(cell):
    assert "Chapter 2 has 2.1" in cell("%%exercise 2.99\n1")
