"""A comparison that cannot fail would be worth nothing."""

import json
import math
import re

import numpy as np
import pytest
import torch

from attntut import compare
from attntut.evidence import MIME, Disagreement, confidence_interval


def test_agreement_is_shown_and_recorded(capsys):
    evidence = compare(
        "variance of the logits, σ = 0.02", 0.041943, torch.tensor(0.0415), rtol=0.05, claim="C14", when="σ fits d"
    )
    assert capsys.readouterr().out == (
        "variance of the logits, σ = 0.02   predicted 0.0419   measured 0.0415   ✓ within 5 %\n"
    )
    bundle = evidence._repr_mimebundle_()
    record = bundle[MIME]
    assert record["passed"] and record["claim"] == "C14" and record["slug"] == "variance-of-the-logits-σ-0-02"
    assert json.loads(json.dumps(record)) == record
    assert bundle["text/html"].startswith('<div class="attntut-evidence" id="evidence-variance-of-the-logits-σ-0-02"')


@pytest.mark.parametrize(
    "measured, tolerance",
    [
        (0.94, dict(rtol=0.05)),
        (1.06, dict(rtol=0.05)),
        (1.2, dict(atol=0.1)),
        (2.0, dict(between=(0, 1.9))),
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
    evidence = compare("x", 0.81, [0.80, 0.82, 0.81], rtol=0.01)
    assert "measured 0.81 ± 0.025   ✓ within 1 %, 3 seeds" in capsys.readouterr().out
    # t(.975, 2) = 4.3027; s = .01; 4.3027 · .01 / √3 = .02484
    assert evidence.high - evidence.measured == pytest.approx(0.02484, abs=1e-5)


def test_a_range_must_hold_the_whole_interval():
    scattered = [0.0, 1.0, 0.2, 0.9]  # mean .525 ± .79
    with pytest.raises(Disagreement):
        compare("better by luck", measured=scattered, between=(0, math.inf))
    assert compare("better", measured=[0.5, 0.52, 0.51], between=(0, math.inf)).passed


def test_the_interval_covers_the_truth_19_times_in_20():
    rng = np.random.default_rng(0)
    hits = [low <= 0 <= high for _, low, high in (confidence_interval(rng.normal(size=5)) for _ in range(2000))]
    assert abs(np.mean(hits) - 0.95) < 5 * math.sqrt(0.95 * 0.05 / 2000)


def test_html_is_escaped():
    bundle = compare('<b>"x"&', 1, 1, rtol=0.1)._repr_mimebundle_()
    assert "<b>" not in bundle["text/html"]
    attribute = re.search(r'data-record="([^"]*)"', bundle["text/html"]).group(1)
    assert "&lt;b&gt;" in attribute


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (("", 1, 1, dict(rtol=1)), TypeError, "name must say what is compared"),
        (("x", 1, None, dict(rtol=1)), TypeError, "measured must be given for 'x'"),
        (("x", 1, 1, {}), TypeError, "Exactly one of rtol, atol and between.*got none"),
        (("x", 1, 1, dict(rtol=1, atol=1)), TypeError, "got rtol and atol"),
        (("x", None, 1, dict(rtol=1)), TypeError, "predicted must be a number with rtol"),
        (("x", [1, 2], 1, dict(rtol=1)), ValueError, "predicted must be one number"),
        (("x", math.nan, 1, dict(rtol=1)), ValueError, "predicted must be finite"),
        (("x", 1, "much", dict(rtol=1)), TypeError, "measured must be a number"),
        (("x", 1, torch.ones(2, 2), dict(rtol=1)), ValueError, r"measured must be .* got shape \(2, 2\)"),
        (("x", 1, [], dict(rtol=1)), ValueError, "measured must be"),
        (("x", 1, 1, dict(rtol=-1)), ValueError, "rtol must be a number ≥ 0: got -1"),
        (("x", 1, 1, dict(between=(2, 1))), ValueError, "low < high"),
        (("x", 1, 1, dict(between=3)), TypeError, "between must be a pair"),
        (("x", 1, 1, dict(rtol=1, claim="7")), ValueError, "claim must be the id of a claim, such as 'C07'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    name, predicted, measured, options = arguments
    with pytest.raises(error, match=message):
        compare(name, predicted, measured, **options)
