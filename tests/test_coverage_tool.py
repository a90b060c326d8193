"""The sweep over transformers' architectures: it measures, survives, goes on, and notices what is wrong."""

from __future__ import annotations

import copy
import csv
import math
import os
import signal
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

pytest.importorskip("transformers")

from tools.coverage import __main__ as coverage
from tools.coverage import check, truth, xavier


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def test_a_healthy_type_has_two_rows_and_a_table(tmp_path, capsys):
    out = tmp_path / "coverage.csv"
    coverage.main(["bert", "--out", str(out)])
    eager, sdpa = rows_of(out)
    assert (eager["implementation"], sdpa["implementation"]) == ("eager", "sdpa")
    for row, maps in ((eager, "2"), (sdpa, "0")):
        assert row["status"] == "ran"
        assert (row["layers"], row["exact"], row["roles"], row["gradients"], row["maps_exact"]) == (*"2222", maps)
        assert (row["initialize"], row["drawn_right"]) == ("done", "8")  # query, key, value, output of two layers
        assert not any(row[key] for key in ("wrong", "unseen", "drawn_wrong", "findings", "left", "left_drawing"))
    assert "| per-head entropy exact / wrong / layers unseen | 1 / 0 / 0 | 1 / 0 / 0 |" in capsys.readouterr().out


def dies(kind, implementation):
    if (kind, implementation) == ("gpt2", "sdpa"):
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "t5":
        time.sleep(60)
    return {"status": "ran", "reason": f"{kind}, “quoted”"}


def test_a_process_that_dies_or_hangs_costs_its_own_rows(monkeypatch):
    monkeypatch.setattr(check, "check", dies)
    todo = [(kind, ["eager", "sdpa"]) for kind in ("gpt2", "t5", "bert")]
    rows = {(row["type"], row["implementation"]): row["status"] for row in coverage.measure(todo, workers=2, limit=3)}
    assert rows == {
        ("gpt2", "eager"): "ran",
        ("gpt2", "sdpa"): "died",
        ("t5", "eager"): "timeout",
        ("t5", "sdpa"): "timeout",
        ("bert", "eager"): "ran",
        ("bert", "sdpa"): "ran",
    }


def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch):
    calls = tmp_path / "calls"

    def counted(kind, implementation):
        with calls.open("a") as file:
            file.write(f"{kind} {implementation}\n")
        return {"status": "ran"}

    monkeypatch.setattr(check, "check", counted)
    out = tmp_path / "coverage.csv"
    coverage.main(["bert", "gpt2", "--out", str(out)])
    whole = out.read_text()
    out.write_text(whole[:-10])  # cut off in the last row
    calls.unlink()
    coverage.main(["bert", "gpt2", "--out", str(out)])
    assert calls.read_text() == "gpt2 sdpa\n"
    assert out.read_text() == whole


def test_a_file_of_other_versions_is_not_continued(tmp_path):
    out = tmp_path / "coverage.csv"
    out.write_text("# torch 1.0, transformers 5, attntut 0\ntype\n")
    with pytest.raises(SystemExit, match=r"was begun with torch 1\.0.*Delete it"):
        coverage.main(["bert", "--out", str(out)])
    with pytest.raises(SystemExit):
        coverage.main(["bort", "--out", str(out)])


def test_what_cannot_be_built_says_why():
    row = check.check("bark", "eager")
    assert row["status"] == "not built"
    assert "forward" in row["reason"]


# --- the judge itself -------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two attentions by hand and a router, which is none."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.MultiheadAttention(16, 4, batch_first=True) for _ in range(2))
        self.router = nn.Linear(16, 5)

    def forward(self, x):
        for layer in (self.first, self.second):
            x = x + layer(4 * x, 4 * x, x, need_weights=False)[0]
        return x * self.router(x).softmax(-1).amax(-1, keepdim=True)


@pytest.fixture
def heard():
    model, x = Two().eval(), torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))
    with truth.Calls(model) as calls, torch.no_grad():
        model(x)
    return calls


def groups(calls):
    """What a report that tells the truth would hold."""
    return [
        [
            {"layer": call.layer, "head": head, "calls": 1, "entropy": entropy}
            for head, entropy in enumerate(next(truth.entropies([(call.weights, call.live)], 4)))
        ]
        for call in calls.used()
    ]


def test_the_router_is_no_attention_and_the_truth_is_exact(heard):
    assert [call.layer for call in heard.used()] == ["first", "second"]
    assert len(heard.heard) == 3
    said = check.compare(groups(heard), heard, [call.weights for call in heard.used()])
    assert said == dict(exact=2, wrong="", unseen="", maps_exact=2, maps_wrong=0, maps_other=0)


def test_wrong_reports_are_noticed(heard):
    maps = [call.weights for call in heard.used()]
    first, second = groups(heard)
    assert check.compare([first], heard, maps) | dict(unseen="second", maps_wrong=1) == check.compare(
        [first], heard, maps
    )
    swapped = [row | {"entropy": other["entropy"]} for row, other in zip(first, first[::-1], strict=True)]
    assert check.compare([swapped, second], heard, maps)["wrong"] == "first"
    off = [row | {"entropy": row["entropy"] + 2e-4} for row in first]
    assert check.compare([off, second], heard, maps)["wrong"] == "first"
    fewer = [first[0] | {"entropy": (first[0]["entropy"] + first[1]["entropy"]) / 2}, first[2]]
    assert check.compare([fewer, second], heard, maps)["wrong"] == "first"


def test_entropies_by_hand_leave_out_rows_that_see_nothing():
    weights = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.5, 0.5]]])  # two heads
    live = torch.tensor([[True, True], [True, False]])
    expected = [math.log(2) / 2, -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    assert next(truth.entropies([(weights, live)], 2)) == pytest.approx(expected)


def packed(n_heads, n_kv, *, fan_out=None):
    """A grouped query-key-value matrix, drawn by role; or with one fan for all rows, as if it were one matrix."""
    model, d_head = nn.Module(), 32
    model.config = type("Config", (), dict(num_attention_heads=n_heads, num_key_value_heads=n_kv, head_dim=d_head))()
    model.attn = nn.Module()
    model.attn.qkv_proj = nn.Linear(128, (n_heads + 2 * n_kv) * d_head, bias=False)
    rows = [n_heads * d_head, n_kv * d_head, n_kv * d_head]
    for i, part in enumerate(model.attn.qkv_proj.weight.data.split(rows)):
        draw = torch.Generator().manual_seed(i)
        part.normal_(0, math.sqrt(2 / (128 + (fan_out or part.shape[0]))), generator=draw)
    return model


@pytest.mark.parametrize("n_kv", [8, 2, 1])
def test_packed_matrices_are_judged_by_their_own_rows(n_kv):
    before = {"attn.qkv_proj.weight": torch.zeros(0)}
    assert xavier.verdicts(packed(8, n_kv), ["attn"], before) == {"attn.qkv_proj.weight": True}
    whole = (8 + 2 * n_kv) * 32
    for wrong in (whole, whole // 3) if n_kv < 8 else (whole,):  # fan of all rows; three equal thirds
        assert xavier.verdicts(packed(8, n_kv, fan_out=wrong), ["attn"], before) == {"attn.qkv_proj.weight": False}
    model = packed(8, n_kv)
    same = {"attn.qkv_proj.weight": model.attn.qkv_proj.weight.clone()}
    assert xavier.verdicts(model, ["attn"], same) == {"attn.qkv_proj.weight": False}, "It was not drawn anew."


def test_names_that_tell_another_role_are_listed(monkeypatch):
    class Swapped(nn.MultiheadAttention):
        def forward(self, x):
            key, value, query = F.linear(x, self.in_proj_weight).unflatten(-1, (12, 4)).transpose(1, 2).chunk(3, 1)
            return F.linear((query @ key.mT).softmax(-1).matmul(value).transpose(1, 2).flatten(2), self.out_proj.weight)

    swapped, x = Swapped(16, 4), torch.randn(2, 5, 16)
    assert check.named_otherwise(swapped, x) == []  # the same three roles, in another order: rows are not compared
    monkeypatch.setattr(swapped, "forward", lambda x: Swapped.forward(swapped, x @ swapped.out_proj.weight))
    assert check.named_otherwise(swapped, x) == ["out_proj.weight"]


@pytest.mark.parametrize("wrong", [None, "gate_up_proj", "down_proj", "gate_up_proj_bias", "one expert"])
def test_stacked_experts_are_judged_one_by_one(wrong):
    shapes = {"gate_up_proj": (3, 64, 512), "gate_up_proj_bias": (3, 512), "down_proj": (3, 256, 64)}
    model = nn.Module()
    model.experts = nn.ParameterDict({name: torch.zeros(*shape) for name, shape in shapes.items()})
    before = {name: each.clone() for name, each in model.named_parameters()}
    for name, each in model.experts.items():
        fans = sum(shapes[name][1:]) if wrong == name == "gate_up_proj" else 3 * 64 if wrong == name else 64 + 256
        if each.ndim == 3 or wrong == name:
            each.data.normal_(0, math.sqrt(2 / fans), generator=torch.Generator().manual_seed(0))
    if wrong == "one expert":
        model.experts.down_proj.data[1] = 0
    said = xavier.verdicts(model, [], before)
    bad = {None: set(), "one expert": {"experts.down_proj"}}.get(wrong, {f"experts.{wrong}"})
    assert said == {name: name not in bad for name in before}


@pytest.mark.parametrize(
    "part, touch",
    [
        ("hooks", lambda model: model.register_forward_hook(lambda *_: None)),
        ("mode", lambda model: model[0].train(False)),
        ("requires_grad", lambda model: model[0].weight.requires_grad_(False)),
        ("grads", lambda model: setattr(model[0].weight, "grad", torch.ones(4, 4))),
        ("weights", lambda model: model[0].weight.data.add_(1)),
        ("buffers", lambda model: setattr(model[1], "running_mean", torch.zeros(4))),
        ("RNG", lambda model: torch.rand(1)),
        ("attributes", lambda model: setattr(model, "seen", True)),
    ],
)
def test_what_is_left_behind_is_named(part, touch):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = truth.Traces(model)
    assert before.left(model) == []
    copy.deepcopy(model)
    assert before.left(model) == []
    touch(model)
    assert before.left(model) == [part]
