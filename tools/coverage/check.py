"""One model under test: what attntut says of it, beside what is true."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import attntut
from attntut._restore import tensors_in
from attntut.anatomy.view import listen, look
from attntut.device import seeded
from tools.coverage import tiny, xavier
from tools.coverage.truth import TOLERANCE, Call, Calls, Traces, entropies, maps_of

Row = dict[str, Any]
Rows = list[Row]
SHARPER = 4.0
ROLES = {"query", "key", "value", "output"}


def check(kind: str, implementation: str) -> Row:
    """One row of the table: see :data:`tools.coverage.__main__.COLUMNS`."""
    start = time.monotonic()
    row: Row = {"status": "not built"}
    try:
        for model, inputs in tiny.models(kind, implementation):
            try:
                row |= measured(model, inputs)
                break
            except _NotRun as error:
                row.setdefault("reason", reason(error.__cause__))
    except Exception as error:
        row.setdefault("reason", reason(error))
    return row | {"seconds": round(time.monotonic() - start, 1)}


class _NotRun(Exception):
    """The model did not take its inputs."""


def reason(error: BaseException | None) -> str:
    """The beginning of an error, in a line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:90]


def measured(model: nn.Module, inputs: Row) -> Row:
    """What attntut says of a model, against the ground truths."""
    try:
        with torch.no_grad(), Calls(model) as calls:
            model(**inputs)
    except Exception as error:
        raise _NotRun from error
    layers = {call.layer for call in calls.used()}
    try:
        return entropies_of(sharpened(model, layers), inputs) | told(model, inputs) | initialized(model, inputs, layers)
    except Exception as error:
        return {"status": "crashed", "reason": reason(error)}


def sharpened(model: nn.Module, layers: set[str]) -> nn.Module:
    """A copy whose attention tells tokens apart: fresh weights make it so even that each head is like any other."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and name.startswith(tuple(f"{layer}." for layer in layers)):
                parameter.mul_(SHARPER)
    return model


def entropies_of(model: nn.Module, inputs: Row) -> Row:
    """Whether the entropies of a report are the true ones."""
    with torch.no_grad():
        torch.manual_seed(0)  # some models draw numbers in evaluation mode
        with Calls(model) as calls:
            model(**inputs)
        torch.manual_seed(0)
        try:
            maps = list(maps_of(model(**inputs, output_attentions=True)))
        except Exception:
            maps = []  # it takes no such argument
    torch.manual_seed(0)
    groups: list[Rows] = []
    for each in attntut.diagnose(model, inputs).rows:  # the heads of a layer stand together
        groups.extend([[]] if each["head"] == 0 else [])
        groups[-1].append(each)
    return compare(groups, calls, maps)


def told(model: nn.Module, inputs: Row) -> Row:
    """What a report tells of a fresh model, and what it leaves behind."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    before, why = Traces(model), ""
    try:
        report = attntut.diagnose(model, inputs, loss=loss)
    except Exception as error:  # some train in training mode only
        report, why = attntut.diagnose(model, inputs), f"with a loss: {reason(error)}"
    roles: dict[str, set[str]] = {}
    for weight in report.weights:
        roles.setdefault(weight["layer"], set()).add(weight["role"])
    layers = list(dict.fromkeys(row["layer"] for row in report.rows))
    gradients = {each["layer"] for each in report.gradients if all(each[role] is not None for role in ROLES)}
    left = "; ".join(f"diagnose: {part}" for part in before.left(model))
    for parameter in model.parameters():
        parameter.grad = None
    return {
        "status": "ran",
        "reason": why,
        "layers": len(layers),
        "roles": sum(roles.get(layer, set()) >= ROLES for layer in layers),
        "gradients": sum(layer in gradients for layer in layers),
        "named_otherwise": " ".join(named_otherwise(model, inputs)),
        "findings": "; ".join(finding.name for finding in report.findings),
        "left": left,
    }


def named_otherwise(model: nn.Module, inputs: Row) -> list[str]:
    """Parameters of which both names and listening tell roles, and not the same ones."""
    try:
        views = look(model), look(model, heard=listen(model, inputs))
    except ValueError:  # refused
        return []
    by_name, by_ear = (
        {name: {entry.role for entry in entries} for name, entries in seen.by_parameter().items()} for seen in views
    )
    return [name for name in by_name if by_ear.get(name, by_name[name]) != by_name[name]]


def compare(groups: list[Rows], calls: Calls, maps: list[Tensor]) -> Row:
    """The entropies of a report, against those of Python's softmaxes and of returned maps.

    A layer is wrong if Python's calls, or else the maps, tell otherwise; unseen if only Python's calls know it. A map
    is wrong if no layer has its entropies though it is the result of a softmax, and of another kind if it is not.
    """
    returned = [Call("", weights, weights.sum(-1) > 0.5) for weights in maps]
    free, right, exact, wrong = list(calls.heard), list[Call](), 0, list[str]()
    for rows in groups:
        layer, n = rows[0]["layer"], rows[0]["calls"]
        like = [call for call in returned if call.weights.shape[1] == len(rows)]
        mine = [few for each in {1, n} for few in _choices(like, each) if _agree(rows, few)]
        right += [call for few in mine for call in few]
        named = [call for call in free if call.layer == layer]
        found = next((few for few in (*_choices(named, n), *_choices(free, n)) if _agree(rows, few)), [])
        is_exact = bool(found) or bool(mine and not named)
        exact += is_exact
        wrong += [] if is_exact else [layer]
        free = [call for call in free if call not in (found or named)]
    rest = [call.weights for call in returned if call not in right]
    bad = sum(any(_equal(weights, call.weights) for call in calls.heard) for weights in rest)
    unseen = dict.fromkeys(call.layer or "(model)" for call in free if call.is_used)
    return {
        "exact": exact,
        "wrong": " ".join(wrong),
        "unseen": " ".join(unseen),
        "maps_exact": len(maps) - len(rest),
        "maps_wrong": bad,
        "maps_other": len(rest) - bad,
    }


def _choices(calls: list[Call], n: int) -> Iterator[list[Call]]:
    """What may be the n calls of a layer: in a row, or at equal distances."""
    for step in range(1, len(calls) // n + 1):
        for start in range(len(calls) - (n - 1) * step):
            yield calls[start : start + n * step : step]


def _agree(rows: Rows, calls: list[Call]) -> bool:
    """Whether the heads of a layer have the entropies of these calls."""
    want = torch.tensor([row["entropy"] for row in rows])
    if len({call.weights.ndim for call in calls}) != 1:
        return False
    options = entropies([(call.weights, call.live) for call in calls], len(rows))
    return any(torch.allclose(torch.tensor(each), want, rtol=0, atol=TOLERANCE, equal_nan=True) for each in options)


def _equal(returned: Tensor, called: Tensor) -> bool:
    same = returned.numel() == called.numel() and returned.shape[-2:] == called.shape[-2:]
    return same and torch.allclose(returned.double().reshape(called.shape), called.double(), atol=1e-6, equal_nan=True)


def initialized(model: nn.Module, inputs: Row, layers: set[str]) -> Row:
    """What ``initialize_`` does to a copy: drawn, with the right deviations; or refused, and left as it was."""
    model = copy.deepcopy(model)
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    reached = tiny.with_towers(model, inputs)
    before = Traces(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            left = attntut.anatomy.view(model, inputs=reached).left
            attntut.initialize_(model, "xavier_normal", inputs=reached, generator=torch.Generator().manual_seed(0))
    except Exception as error:
        said: Row = {"initialize": "refused" if isinstance(error, ValueError) else "crashed", "refused": reason(error)}
        allowed = set[str]()
    else:
        verdicts = xavier.verdicts(model, layers, values)
        said = {
            "initialize": "done",
            "drawn_right": sum(verdicts.values()),
            "drawn_wrong": " ".join(name for name, right in verdicts.items() if not right and name not in left),
            "drawn_left": sum(
                name in left and torch.equal(values[name], model.get_parameter(name)) for name in verdicts
            ),
        }
        allowed = {"weights"}
    return said | {"left_drawing": " ".join(part for part in before.left(model) if part not in allowed)}


def loss(output: Any) -> Tensor:
    """A number that depends on every element of what a model returns, each in its own way."""
    tensors = [each for each in tensors_in(output) if each.requires_grad]
    return torch.stack([(each * torch.randn(each.shape, generator=seeded(0))).mean() for each in tensors]).sum()
