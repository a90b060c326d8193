"""A record that cannot fail would be worth nothing."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import IPython.display
import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell

from attntut import compare, evidence, expect, observe
from attntut.evidence import MIME, Disagreement, Records, confidence_interval


def test_agreement_is_shown_and_recorded(capsys):
    record = compare(
        "variance of the logits, σ = 0.02", 0.041943, torch.tensor(0.0415), rtol=0.05, claim="C14", when="σ fits d"
    )
    assert capsys.readouterr().out == (
        "variance of the logits, σ = 0.02   predicted 0.0419   measured 0.0415   ✓ within 5 %\n"
    )
    assert record.passed and record.kind == "predicted" and record.claim == "C14"
    assert record.slug == "variance-of-the-logits-σ-0-02"


@pytest.mark.parametrize(
    "measured, tolerance",
    [
        (0.94, dict(rtol=0.05)),
        (1.06, dict(rtol=0.05)),
        (1.2, dict(atol=0.1)),
        (math.nan, dict(rtol=9)),
        (math.inf, dict(atol=1)),
        (1.0000001, dict(atol=0)),
    ],
)
def test_disagreement_fails_and_is_still_shown(measured, tolerance, capsys):
    with pytest.raises(Disagreement, match="✗ not"):
        compare("x", 1.0, measured, **tolerance)
    assert "✗ not" in capsys.readouterr().out


def test_with_seeds_the_mean_and_its_interval_are_stated(capsys):
    record = compare("x", 0.81, [0.80, 0.82, 0.81], rtol=0.01)
    assert "measured 0.81 ± 0.025   ✓ within 1 %, 3 seeds" in capsys.readouterr().out
    # t(.975, 2) = 4.3027; s = .01; 4.3027 · .01 / √3 = .02484
    assert record.high - record.measured == pytest.approx(0.02484, abs=1e-5)


# --- the three kinds ----------------------------------------------------------------------------------------------


def test_what_rounding_leaves_of_an_exact_0_is_0():
    record = expect("gained", [0.1, 0.2, -0.3], above=-1, below=1)
    assert record.measured != 0 and record.cells[2].startswith("0 ± ")


def test_a_direction_must_hold_for_the_whole_interval():
    scattered = [0.0, 1.0, 0.2, 0.9]  # mean .525 ± .79
    with pytest.raises(Disagreement, match="expected above 0"):
        expect("better by luck", scattered, above=0)
    assert expect("better", [0.5, 0.52, 0.51], above=0).kind == "expected"


def test_no_difference_is_a_margin_on_both_sides():
    assert expect("no difference", [0.01, -0.01, 0.0], above=-0.05, below=0.05).passed
    with pytest.raises(Disagreement, match=r"between −0\.05 and 0\.05"):
        expect("a difference hidden by noise", [0.2, -0.2, 0.0], above=-0.05, below=0.05)


def test_an_observation_is_guarded_and_never_called_a_prediction(capsys):
    scattered = [0.0, 1.0, 0.2, 0.9]
    record = observe("accuracy", scattered, between=(0.4, 0.6))  # the mean alone must lie there
    shown = capsys.readouterr().out
    assert record.passed and "predicted" not in shown and "✓" not in shown
    with pytest.raises(Disagreement, match="observed, ✗ but not between"):
        observe("accuracy", scattered, between=(0.6, 0.7))


def test_an_explained_difference_is_shown_as_one_and_fails_when_it_is_gone():
    record = compare("entropy", 2.55, [2.51, 2.512, 2.508], atol=0.01, differs="positions count too")
    assert not record.passed and record.explained == "positions count too"
    assert "✗ not within 0.01: positions count too" in str(record)
    with pytest.raises(Disagreement, match="nothing to explain"):
        compare("entropy", 2.55, [2.551, 2.549, 2.55], atol=0.01, differs="positions count too")


def test_noise_is_no_difference_to_explain():
    with pytest.raises(Disagreement, match="nothing to explain"):
        compare("x", 0, [1.0, -0.5, 0.2], atol=0.01, differs="chance")


@pytest.mark.parametrize("value", [math.nan, [math.nan, 1.0]])
def test_what_is_not_a_number_agrees_with_nothing(value):
    for call in (
        lambda: compare("x", 0, value, atol=1, differs="why"),
        lambda: expect("x", value, above=-9),
        lambda: observe("x", value, between=(-9, 9)),
    ):
        with pytest.raises(Disagreement):
            call()


def test_the_interval_covers_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    hits = [low <= 0 <= high for _, low, high in (confidence_interval(rng.normal(size=5)) for _ in range(2000))]
    assert abs(np.mean(hits) - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_record_carries_its_bounds_as_numbers():
    within = [compare("x", -2, -2.05, rtol=0.1), compare("x", 3, 3, atol=0), expect("x", [1, 2], above=-99, below=99)]
    assert [(r.at_least, r.at_most) for r in within] == [pytest.approx((-2.2, -1.8)), (3, 3), (-99, 99)]
    assert [(r.at_least, r.at_most) for r in (expect("x", 1, above=0), expect("x", -1, below=0))] == [
        (0, None),
        (None, 0),
    ]
    assert observe("x", 1, between=(0, 5)).at_most == 5


def test_outside_a_notebook_nothing_of_jupyter_or_scipy_is_imported():
    code = "import sys; from attntut.evidence import compare; compare('x', 1, 1, atol=0);"
    code += "print(sorted({'IPython', 'scipy.special', 'matplotlib'} & set(sys.modules)))"
    blocked = "import sys; sys.modules |= dict.fromkeys(['attntut'], type(sys)('attntut'));"
    blocked += f"sys.modules['attntut'].__path__ = [{str(Path(evidence.__file__).parent)!r}];"
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


def test_without_scipy_an_interval_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ModuleNotFoundError, match=r"scipy is not installed.*pip install 'attntut\[plots\]'"):
        compare("x", 1, [1, 2], rtol=1)


# --- how they are shown -------------------------------------------------------------------------------------------


@pytest.fixture
def shell(monkeypatch):
    """An IPython session, and what it displays."""
    shell, shown = InteractiveShell(), []
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    monkeypatch.setattr(IPython.display, "display", shown.append)
    shell.user_ns.update(compare=compare, expect=expect)
    return shell, shown


def test_the_records_of_a_cell_are_one_table_at_its_end(shell):
    shell, shown = shell
    shell.run_cell("for i in range(3): compare(f'round {i}', i, i, atol=0)\nexpect('more', 1, above=0)")
    assert [[record.name for record in table.records] for table in shown] == [["round 0", "round 1", "round 2", "more"]]
    shell.run_cell("x = 1")
    assert len(shown) == 1, "A cell without records shows none."


def test_a_cell_that_fails_still_shows_its_records(shell, capsys):
    shell, shown = shell
    shell.run_cell("compare('fine', 1, 1, atol=0)\ncompare('wrong', 1, 2, atol=0)\ncompare('never', 1, 1, atol=0)")
    assert "Disagreement" in capsys.readouterr().out
    assert [record.passed for record in shown[0].records] == [True, False]
    shell.run_cell("compare('after', 1, 1, atol=0)")
    assert [record.name for record in shown[1].records] == ["after"]


def test_a_table_aligns_its_columns_and_keeps_its_records():
    records = Records((compare("a", 1, 1, atol=0), observe("a longer name", 0.5, between=(0, 1), unit="nats")))
    first, *rest = str(records).splitlines()
    assert first.split() == ["quantity", "predicted", "measured", "agreement"]
    assert {row.index(cell) for row, cell in zip(rest, ("1", "–"), strict=True)} == {first.index("predicted")}
    kept = records._repr_mimebundle_()[MIME]
    assert json.loads(json.dumps(kept)) == kept and [record["kind"] for record in kept] == ["predicted", "observed"]


def test_a_count_that_agrees_exactly_is_shown_in_full():
    assert compare("parameters", 16640, 16640, atol=0).cells[1:3] == ("16640", "16640")
    assert compare("parameters", 16640, 16640, rtol=0.1).cells[1] == "16600"


def test_html_is_escaped():
    shown = Records((compare('<b>"x"&', 1, 1, rtol=0.1),))._repr_mimebundle_()["text/html"]
    assert "<b>" not in shown
    assert "&lt;b&gt;" in re.search(r'data-record="([^"]*)"', shown).group(1)


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: compare("", 1, 1, rtol=1), TypeError, "name must say what is measured"),
        (lambda: compare("x", 1, None, rtol=1), TypeError, "measured must be given for 'x'"),
        (lambda: compare("x", 1, 1), TypeError, "Exactly one of rtol and atol.*got none"),
        (lambda: compare("x", 1, 1, rtol=1, atol=1), TypeError, "got rtol and atol"),
        (lambda: compare("x", [1, 2], 1, rtol=1), ValueError, "predicted must be one number"),
        (lambda: compare("x", math.nan, 1, rtol=1), ValueError, "predicted must be finite"),
        (lambda: compare("x", 1, "much", rtol=1), TypeError, "measured must be a number"),
        (lambda: compare("x", 1, torch.ones(2, 2), rtol=1), ValueError, r"measured must be .* got shape \(2, 2\)"),
        (lambda: compare("x", 1, [], rtol=1), ValueError, "measured must be"),
        (lambda: compare("x", 1, 1, rtol=-1), ValueError, "rtol must be a number ≥ 0: got -1"),
        (lambda: compare("x", 1, 1, rtol=1, claim="7"), ValueError, "claim must be the id of a claim, such as 'C07'"),
        (lambda: expect("x", 1), TypeError, "above or below must be given: got neither"),
        (lambda: expect("x", 1, above=2, below=1), ValueError, "above must be less than below: got 2 and 1"),
        (lambda: expect("x", 1, above="0"), TypeError, "above must be a finite number: got '0'"),
        (lambda: expect("x", 1, above=math.nan), ValueError, "above must be a finite number: got nan"),
        (lambda: expect("x", 1, above=0, support=False), TypeError, "unexpected keyword argument 'support'"),
        (lambda: observe("x", 1, between=(0, 2), claim="7"), ValueError, "claim must be the id of a claim"),
        (lambda: observe("x", 1, between=3), TypeError, "between must be a pair"),
        (lambda: observe("x", 1, between=(2, 1)), ValueError, "low must be less than high: got 2 and 1"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
