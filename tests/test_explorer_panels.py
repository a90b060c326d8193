"""Panels: what the function of an explorer returns, rounded where it is made."""

import json
import math

import numpy as np
import pytest
import torch

from attntut.explorer import bars, heat_map, histogram, lines, number
from attntut.explorer.rounding import fixed, significant

RNG = np.random.default_rng(0)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1.0, 20.0, 5e6])
def test_fixed_numbers_are_rounded_and_not_more(scale):
    values = RNG.normal(size=500) * scale
    rounded = fixed(values, 3)
    assert rounded.decimals == 3 - math.ceil(math.log10(np.abs(values).max()))
    assert np.abs(rounded.values - values).max() <= 0.5001 * 10.0**-rounded.decimals


def test_significant_numbers_keep_their_digits():
    values = RNG.normal(size=500) * 10.0 ** RNG.integers(-12, 12, size=500)
    shown = significant(values, 3).values
    assert np.allclose(shown, [float(f"{v:.2e}") for v in values], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "value, text",
    [(9.999, "10.0"), (0.0, "0"), (-0.02346, "−0.0235"), (1234.5, "1230"), (1e9, "1.00×10⁹"), (1.5e-7, "1.50×10⁻⁷")],
)
def test_text_of_a_number(value, text):
    assert significant([value], 3).text(0) == text


@pytest.mark.parametrize("value", [0.0004, 0.12345, 1.0, 17.125, 99999.5])
def test_positional_text_is_pythons_own(value):
    rounded = fixed([value], 4)
    assert rounded.text(0) == f"{value:.{max(0, rounded.decimals)}f}"


def test_what_is_not_finite_has_a_text():
    rounded = fixed([math.nan, math.inf, -math.inf, 1.0], 3)
    assert [rounded.text(k) for k in range(4)] == ["NaN", "∞", "−∞", "1.000"]
    assert rounded.encode() == {"values": ["NaN", "Infinity", "-Infinity", 1], "decimals": 3, "digits": None}


def test_integers_keep_all_their_digits():
    assert number(-12345678).value == "−12345678"
    assert number(10**15).value == "1.00000×10¹⁵"


@pytest.mark.parametrize("value, text", [(0.0005, "0.001"), (0.0015, "0.002"), (0.5, "0.500"), (-0.0001, "0.000")])
def test_halves_and_zeros_are_rounded_as_python_prints_them(value, text):
    """0.0005 is stored as a little more than a half, 0.0015 too; no zero has a sign."""
    rounded = fixed([value], 3, 1.0)
    assert rounded.text(0) == text
    assert json.dumps(rounded.encode()["values"]) == f"[{float(text):g}]"


# --- what may be given ------------------------------------------------------------------------------------------------

MATRIX = [[0.25, 0.75], [1.0, 0.0]]
KINDS_OF_ARRAYS = [MATRIX, np.array(MATRIX), torch.tensor(MATRIX, requires_grad=True), torch.tensor(MATRIX).bfloat16()]


@pytest.mark.parametrize("values", KINDS_OF_ARRAYS, ids=["list", "numpy", "torch", "bfloat16"])
def test_lists_arrays_and_tensors_are_alike(values):
    assert heat_map(values).values.values.tolist() == MATRIX


def test_a_number_may_be_a_tensor():
    assert number(torch.tensor(2.5, requires_grad=True), unit="nats").value == "2.50"
    assert number(np.int64(7)).value == "7"


@pytest.mark.parametrize(
    "measured, predicted, texts",
    [
        (2.398, 2.27, ("2.40", "2.27")),
        (torch.tensor(2.398), np.float32(2.27), ("2.40", "2.27")),
        (0.9963, 1, ("0.996", "1")),
        (2.398, None, ("2.40", None)),
    ],
)
def test_a_number_stands_beside_its_prediction(measured, predicted, texts):
    panel = number(measured, predicted=predicted, unit="nats")
    assert (panel.value, panel.predicted) == texts


def test_a_panel_is_encoded_with_all_that_is_drawn():
    assert number(2.5).encode() == {"kind": "number", "unit": "", "value": "2.50", "predicted": None}
    found = bars({"a": 1, "b": -0.5}, unit="s", digits=2).encode()
    assert found.pop("values") == {"values": [1, -0.5], "decimals": 2, "digits": None}
    rest = {"kind": "bars", "unit": "s", "names": ("a", "b"), "low": None, "high": None}
    assert found == {**rest, "xlabel": "", "ylabel": "", "yscale": "linear"}


def test_colours_follow_the_bounds_or_the_values():
    assert (heat_map(MATRIX, low=0, high=2).low, heat_map(MATRIX, low=0, high=2).high) == (0, 2)
    assert (heat_map([[-1, 3]]).low, heat_map([[-1, 3]]).high) == (-1, 3)
    assert (heat_map([[-1, 3]], diverging=True).low, heat_map([[-1, 3]], diverging=True).high) == (-3, 3)


@pytest.mark.parametrize(
    "value, bounds, ends",
    [
        (0.5, {}, (0, 1)),
        (-3, {}, (-6, 0)),
        (0, {}, (-1, 1)),
        (0, {"diverging": True}, (-1, 1)),
        (1, {"low": 5}, (5, 10)),
        (1, {"high": -2}, (-4, -2)),
        (1, {"low": 0}, (0, 1)),
    ],
)
def test_a_constant_has_a_scale_around_it(value, bounds, ends):
    panel = heat_map([[value, value]], **bounds)
    assert (panel.low, panel.high) == ends


def test_a_heat_map_may_be_all_gaps():
    panel = heat_map([[math.nan, math.nan]])
    assert panel.values.text(0, 0) == "NaN"
    assert panel.encode()["values"]["values"] == ["NaN", "NaN"]


def test_one_name_or_several_choose_the_style():
    curves = {"measured": [1.0], "formula": [1.0], "m": [1.0]}
    assert lines([1], curves, points="measured", dashed=["formula"]).styles == ("points", "dashed", "line")


def test_the_bars_of_a_histogram_have_the_area_of_their_share():
    samples = RNG.normal(size=1000)
    panel = histogram(samples, bins=20, low=-1, high=1, digits=6)
    share = np.mean((samples >= -1) & (samples <= 1))
    assert np.isclose(panel.density.values.sum() * 0.1, share, atol=1e-4)


@pytest.mark.parametrize("bins", [5, 32, 100])
def test_a_curve_is_known_at_the_middle_of_every_bar(bins):
    panel = histogram([0.0, 1.0], bins=bins, low=0, high=1, curve=lambda x: x, digits=6)
    points = panel.curves.values.shape[1]
    middles = panel.curves.values[0, (np.arange(bins) * 2 + 1) * (points - 1) // (2 * bins)]
    assert np.allclose(middles, (np.arange(bins) + 0.5) / bins, atol=1e-6)


# --- what may not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: heat_map([1, 2]), ValueError, r"values must have 2 dimensions: got shape \(2,\)"),
        (lambda: heat_map([[1, 2], [3]]), TypeError, "values must be an array of numbers"),
        (lambda: heat_map([["a"]]), TypeError, "values must be an array of real numbers: got list"),
        (lambda: heat_map(torch.ones(2, 2) * 1j), TypeError, "values must be an array of"),
        (lambda: heat_map(np.zeros((0, 3))), ValueError, r"values must not be empty: got shape \(0, 3\)"),
        (lambda: heat_map(MATRIX, low=1, high=0), ValueError, r"high must be a number > low \(1\): got 0"),
        (lambda: heat_map(MATRIX, low="0"), TypeError, "low must be a finite number: got '0'"),
        (lambda: heat_map(MATRIX, digits=0), ValueError, "digits must be an integer between 1 and 6: got 0"),
        (lambda: heat_map(MATRIX, rows=["a"]), ValueError, "rows must hold 2 names, one for each: got 1"),
        (lambda: heat_map(MATRIX, columns="ab"), TypeError, "columns must be a list of names: got the string 'ab'"),
        (lambda: heat_map(MATRIX, unit=3), TypeError, "unit must be a string: got 3"),
        (lambda: lines([1, 2], {}), ValueError, "y must hold at least one curve"),
        (lambda: lines([1, 2], [1, 2, 3]), ValueError, r"y must have as many values as x \(2\): got 3"),
        (lambda: lines([1, 2], {"a": [1]}), ValueError, r"y\['a'\] must have as many values"),
        (lambda: lines([1, math.nan], [1, 2]), ValueError, "x must be finite"),
        (lambda: lines([0, 1], [1, 2], xscale="log"), ValueError, "x must be > 0 on a logarithmic axis: got 0"),
        (lambda: lines([1, 2], [1, 2], yscale="lin"), ValueError, "yscale must be one of.*Did you mean 'linear'"),
        (lambda: lines([1, 2], [1, 2], yscale="log", low=0), ValueError, "low must be > 0 on a logarithmic axis"),
        (lambda: lines([1], {"measured": [1]}, points=["mesured"]), ValueError, "points must be one of.*'measured'"),
        (lambda: lines([1], {1: [1]}), TypeError, "the name of a curve must be a string: got 1"),
        (lambda: bars({"a": 1}, names=["a"]), ValueError, "names must be left out"),
        (lambda: bars([1, 2], names=["a"]), ValueError, "names must hold 2 names"),
        (lambda: bars([]), ValueError, "values must not be empty"),
        (lambda: histogram([1], bins=0), ValueError, "bins must be an integer between 1 and 400: got 0"),
        (lambda: histogram([1], curve=3), TypeError, "curve must be a function of an array: got int"),
        (lambda: histogram([1], curve=lambda x: 1.0), ValueError, "curve 'predicted' must return as many values"),
        (lambda: number([1, 2]), ValueError, r"value must be one number: got shape \(2,\)"),
        (lambda: number(1, predicted=[1, 2]), ValueError, r"predicted must be one number: got shape \(2,\)"),
        (lambda: number(1, predicted="two"), TypeError, "predicted must be an array of real numbers"),
        (lambda: number("7"), TypeError, "value must be an array of real numbers"),
    ],
)
def test_bad_arguments_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
