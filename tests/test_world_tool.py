"""How architectures start: widths of the default, laws from tiny models, and what a scale depends on."""

from __future__ import annotations

import csv
import math

import pytest
import torch

pytest.importorskip("transformers")

from transformers import BertConfig, BertModel

from tools import world
from tools.coverage import __main__ as coverage


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Rows of the table, made by the command."""
    out = tmp_path_factory.mktemp("world") / "world.csv"
    kinds = ["bert", "gpt2", "clip", "blip_2_qformer"]
    world.main([*kinds, "--out", str(out)])
    whole = out.read_text(encoding="utf-8")
    world.main([*kinds, "--out", str(out)])
    assert out.read_text(encoding="utf-8") == whole, "what is there is not made again"
    return {row["type"]: row for row in csv.DictReader(line for line in whole.splitlines() if line[0] != "#")}


def test_a_model_has_the_widths_of_its_default(rows):
    bert = rows["bert"]
    assert (bert["how"], bert["d"], bert["heads"], bert["d_ff"], bert["layers"]) == ("whole", "768", "12", "3072", "12")
    for role in world.SHORT:
        assert float(bert[role]) == pytest.approx(0.02, rel=0.02)
    assert (bert["law"], bert["init"], bert["norm"], bert["unread"]) == ("normal", "0.02", "post", "")
    assert float(bert["by_width"]) == pytest.approx(0, abs=0.03)
    spread = 768 * 0.02**2 * math.sqrt(float(bert["apart"]) * float(bert["seen"]))  # of 12 keys, a row's own mean off
    assert float(bert["logit"]) == pytest.approx(spread, rel=0.05)


def test_depth_is_seen_in_the_matrices_that_it_scales(rows):
    gpt2, clip = rows["gpt2"], rows["clip"]
    assert [float(gpt2[key]) for key in ("deep_q", "deep_o", "deep_down")] == pytest.approx([0, 0.5, 0.5], abs=0.03)
    assert [float(clip[key]) for key in ("deep_q", "deep_o", "deep_down")] == pytest.approx([0.5, 0, 0.5], abs=0.03)
    assert float(clip["by_width"]) == pytest.approx(0.5, abs=0.03)
    assert gpt2["looks"] == "gpt2"


def test_what_does_not_build_is_said(rows):
    assert rows["blip_2_qformer"]["how"] == "not" and "Error" in rows["blip_2_qformer"]["reason"]


def test_what_is_too_large_is_computed_from_a_tiny_models_law():
    coverage.warm()
    llama = world.check("llama", largest=1e6)
    assert (llama["how"], llama["d"], llama["heads"], llama["by_width"]) == ("law", 4096, 32, 0)
    assert llama["q"] == pytest.approx(0.02, rel=0.05) and llama["logit"] is None


def hangs(kind, largest=1.0):
    while largest:
        pass
    return {"how": "law"}


def test_what_takes_too_long_is_computed_too(monkeypatch):
    monkeypatch.setattr(world, "check", hangs)
    monkeypatch.setattr(world, "LIMIT", 1)
    assert [*world.rows_of([("bert", ["eager"])])] == [{"type": "bert", "implementation": "eager", "how": "law"}]


def test_an_entry_that_changes_nothing_is_found():
    class Some(world.Small):
        def __init__(self):
            self.kind, self.entries = "bert", {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4}
            self.entries |= {"vocab_size": 97, "intermediate_size": 64, "initializer_range": 0.02, "init_std": 0.02}
            torch.manual_seed(0)
            self.model = BertModel(BertConfig(**self.entries)).eval()

    assert Some().by_entries() == {"unread": "init_std"}


def test_entries_are_found_doubled_and_deepened_inside_too():
    entries = {"a": {"init_std": 0.5, "n_layers": 2, "kinds": ["x", "y"]}, "init_std": None, "width": 2}
    assert world.first(entries, "init_std") == 0.5
    assert world.doubled(entries, "init_std")["a"]["init_std"] == 1.0
    assert world.deeper(entries)["a"] == {"init_std": 0.5, "n_layers": 8, "kinds": ["x", "y"] * 4}
    assert world.number(0.019987) == 0.02 and world.number(float("nan")) is None


def test_a_layers_logits_are_foreseen_in_a_fresh_model_and_not_in_one_with_aligned_matrices():
    torch.manual_seed(0)
    model = BertModel(BertConfig(num_hidden_layers=2, hidden_size=128, num_attention_heads=4, intermediate_size=128))
    inputs = {"input_ids": torch.randint(0, 30_000, (4, 32))}
    for row in world.layers(model, inputs, "fresh"):
        assert row["logit"] == pytest.approx(row["foreseen"], rel=0.1) and row["drawn"] == 1
    attention = model.encoder.layer[0].attention.self
    with torch.no_grad():
        attention.key.weight.copy_(attention.query.weight)
    first = world.layers(model, inputs, "aligned")[0]
    assert first["logit"] > 1.2 * first["foreseen"]


def test_how_alike_tokens_are_is_not_measured_across_the_batch():
    class Reads(torch.nn.Module):
        def __init__(self, tokens_first):
            super().__init__()
            self.query, self.key = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.tokens_first = tokens_first

        def forward(self, x):
            x = x.transpose(0, 1) if self.tokens_first else x
            return self.query(x), self.key(x)

    alike = torch.randn(2, 1, 8).expand(2, 12, 8) + 0.1 * torch.randn(2, 12, 8)  # within each text, not across texts
    query, key = ({"parameter": f"{role}.weight", "fan_in": 8} for role in ("query", "key"))
    usual, turned = (world.reads(Reads(first), {"x": alike}, query, key) for first in (False, True))
    assert usual == turned and usual["apart"] < 0.1
