"""A finding names methods of adjustment that fit the model, and the first of them mends what was planted."""

import re

import pytest
import torch
from test_diagnose_findings import FAULTY, TOKENS, findings, loss, names, scaled_query, stack
from torch import nn

from attntut import parts
from attntut.adjust import adjust, adjustments
from attntut.diagnose import Report, diagnose
from attntut.diagnose.faults import faults
from attntut.diagnose.render import html, text
from attntut.init import initialize_

TREATED = {fault.name for fault in faults().values() if fault.adjustments}
NOT_MENDED: dict[str, str] = {}
"""Planted faults whose first method cannot mend them, each with why not."""


@pytest.mark.parametrize("planted", [each for each, (name, _) in FAULTY.items() if name in TREATED])
def test_the_first_method_named_mends_the_fault(planted):
    name, plant = FAULTY[planted]
    model, inputs = plant()
    (found,) = diagnose(model, inputs, loss=loss).findings
    if not found.adjustments:
        assert all(
            adjustments()[each].objection((), traits_of(model, inputs)) for each in faults()[found.fault].adjustments
        )
        return
    first = found.adjustments[0]
    assert adjustments()[first].is_undoable and found.advice.startswith(f'adjust(model, "{first}")')
    with adjust(model, first):
        left = names(findings(model, inputs))
    assert (left == []) != (planted in NOT_MENDED), f"{planted}: {first} leaves {left}"
    assert names(findings(model, inputs)) == [name], "undone, the fault is there again"


def traits_of(model, inputs):
    return diagnose(model, inputs).model["traits"]


@pytest.mark.parametrize("planted", [each for each, (name, _) in FAULTY.items() if name in TREATED])
def test_a_scheme_that_a_finding_names_mends_the_fault(planted):
    model, inputs = FAULTY[planted][1]()
    (found,) = findings(model, inputs)
    for scheme, std in re.findall(r'initialize_\(model, "(\w+)"(?:, std=([\d.]+))?\)', found.text):
        options = dict(std=float(std)) if std else {}
        initialize_(model, scheme, generator=torch.Generator().manual_seed(0), **options)
        assert found.name not in names(findings(model, inputs)), scheme


def test_what_the_model_s_own_norm_refuses_is_not_named():
    """Queries and keys are normalized, and the gain of the norm is too large."""
    report = diagnose(scaled_query(stack(parts=(parts.QKNorm(gain=10.0),))), TOKENS, loss)
    (found,) = report.findings
    assert found.name == "logits too large" and "Divide W_q" not in found.text
    assert not {"qk_norm", "soft_cap", "qk_clip"} & {*found.adjustments} and "temperature" in found.adjustments


def test_what_acts_already_is_part_of_the_model():
    model = stack()
    with adjust(model, "qk_norm", gain=10.0):
        (found,) = findings(model)
    assert found.name == "logits too large" and "Divide W_q" not in found.text
    assert not {"qk_norm", "soft_cap"} & {*found.adjustments}
    with adjust(model, "temperature", tau=0.1):
        (found,) = findings(scaled_query(model))
    assert "qk_norm" in found.adjustments and "temperature" not in found.adjustments


def test_a_method_that_computes_matrices_hides_no_role():
    model = stack()
    plain = diagnose(model, TOKENS, loss)
    with adjust(model, "sigma_reparam"):
        report = diagnose(model, TOKENS, loss)
        assert any("attention.query.parametrizations" in name for name, _ in model.named_parameters())
    assert [each["role"] for each in report.weights] == [each["role"] for each in plain.weights]
    assert [each["layer"] for each in report.gradients] == [each["layer"] for each in plain.gradients] != []
    assert any("are read as they are stored" in note for note in report.notes) and len(report.notes) == 1


def test_of_what_is_no_model_no_method_is_named():
    x = torch.randn(2, 32, 64)
    (found,) = diagnose(lambda q: nn.functional.scaled_dot_product_attention(100 * q, 100 * q, q), x).findings
    assert found.fault == "logits too large (weights unknown)" and found.adjustments == () and found.advice == ""


def test_the_report_says_it_in_one_line():
    report = diagnose(scaled_query(stack()), TOKENS, loss)
    (found,) = report.findings
    line = f"Try: {found.advice}"
    assert found.advice.startswith('adjust(model, "qk_norm"); also qk_l2_clip, soft_cap, ')
    assert f"\n  {line}\n" in text(report, 200)
    assert f"{line.replace(chr(34), '&#34;')}<br>" in html(report, figure=False)
    again = Report.from_json(report.to_json())
    assert again.findings[0].adjustments == found.adjustments
    assert "Try:" not in text(diagnose(FAULTY["cloned layers"][1]()[0], TOKENS))
