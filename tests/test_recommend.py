"""What fits a model: the rules against the stored runs, on planted architectures, and on models of libraries."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from unittest import mock

import pandas as pd
import pytest
import torch
from torch import nn

from attntut import Transformer, TransformerConfig, initialize_, recommend, schemes
from attntut import parts as p
from attntut.adjust import adjust, adjustments
from attntut.anatomy import view
from attntut.data import digits
from attntut.evidence import MIME, confidence_interval, number
from attntut.recommend import advice
from attntut.recommend.render import html, text
from attntut.recommend.rules import FACTS, facts, questions, read, runs
from attntut.recommend.rules import parts as parts_of
from attntut.recommend.runs import look_up
from attntut.sweep.files import stored
from attntut.sweep.rates import best_rate
from attntut.sweeps import logits

SIZE = dict(n_classes=10, d_input=16, seq_len=4, d_model=32, n_heads=4, d_ff=64)
RULES = [rule for question in questions() for answer in question.answers for rule in answer.rules]


@cache
def answer_for(**config):
    """The answer for a model of the runs' size, or with what is given; the same for the same."""
    return ask(**config)


@cache
def said_of(**config):
    """The same without a copy drawn by each start: ranks of what was run, and nothing measured."""
    with mock.patch.object(advice._Reader, "drawn", lambda self, each: each):
        return ask(**config)


def ask(given=None, **config):
    return recommend(Transformer(TransformerConfig(**SIZE | config), seed=0), torch.randn(8, 4, 16), given=given)


def runs_at(depth, norm):
    """Of each scheme the accuracy a seed at its own best rate: not by the code that is tested."""
    frame = stored("depth").query("depth == @depth and norm == @norm")
    best = best_rate(frame, "scheme")
    return {
        name: group.set_index("seed")["accuracy"]
        for name, group in frame.merge(best[["scheme", "lr"]]).groupby("scheme")
    }


def run_name(start):
    return runs()["depth"]["names"].get(start, [start])[0]


@pytest.mark.parametrize("depth", [2, 8, 24])
@pytest.mark.parametrize("norm", ["pre", "post", "none"])
def test_the_first_is_not_worse_than_the_default_and_what_is_warned_of_is(depth, norm):
    answer, found = said_of(n_layers=depth, norm=norm), runs_at(depth, norm)
    first = run_name(answer.of("take")[0].start)
    assert answer.of("take")[0].strength == "run"
    _, _, high = confidence_interval(found[first] - found["xavier_uniform"])
    assert high >= 0 and (depth == 2 or first != "xavier_uniform")
    warned = [run_name(each.start) for each in answer.of("avoid") if run_name(each.start) in found]
    assert warned or depth == 2
    for name in warned:
        assert confidence_interval(found[name] - found[first])[2] < 0, f"{name} is not worse than {first}."
    for each in answer.of("take"):
        if (name := run_name(each.start)) in found and name != "xavier_uniform":
            mean, low, high = confidence_interval(found[name] - found["xavier_uniform"])
            (compared,) = each.found.comparisons
            assert (compared.difference, compared.low, compared.high) == pytest.approx((mean, low, high))


METHODS_OF_NORMS = {f"+ {name}": name for name in ("rms_norm", "sandwich", "ln_scale", "dyt")}
METHODS_OF_LOGITS = dict.fromkeys(("qk_norm", "qk_l2_clip", "temperature", "sigma_reparam", "sink", "output_gate"))
METHODS_OF_LOGITS |= dict.fromkeys(("softpick", "z_loss", "sigmoid_attention"))
METHODS_OF_LOGITS = {"+ soft_cap": "soft_cap, 50"} | {f"+ {name}": name for name in METHODS_OF_LOGITS}


def norms_at(depth):
    return stored("norms").query("norm == 'pre' and start == 'xavier' and warmup == 0 and depth == @depth")


def first_steps_at(norm, depth):
    """Chapter 13's: six seeds, of which ``depth`` has those without a warm-up; of the deepest, 24 further ones."""
    asked = "norm == @norm and depth == @depth and scheme == 'xavier_uniform'"
    seen = pd.concat([stored("first_steps").query(asked), stored("depth").query(asked).assign(start="none")])
    return seen.query("seed >= 100" if (norm, depth) == ("post", 24) else "seed < 6")


MEASURED = {  # the model, what was run with it, the column, its default, what is judged, the names of the starts there
    "pre-LN, 2 blocks": (
        lambda: said_of(n_layers=2), lambda: norms_at(2), "method", "", "accuracy",
        METHODS_OF_NORMS | {"+ scale_norm": "scale_norm", "+ branch_scale": "branch_scale"},
    ),
    "pre-LN, 24 blocks": (
        lambda: said_of(n_layers=24), lambda: norms_at(24), "method", "", "accuracy", METHODS_OF_NORMS,
    ),
    **{
        f"first steps, {norm}-LN, {depth} blocks": (
            lambda norm=norm, depth=depth: said_of(n_layers=depth, norm=norm),
            lambda norm=norm, depth=depth: first_steps_at(norm, depth), "start", "none", "accuracy",
            {"+ warmup": "warm-up 100" if depth == 24 else "warm-up 30"}
            | ({"+ cosine": "cosine 30"} if (norm, depth) == ("post", 8) else {}),
        )
        for norm in ("pre", "post") for depth in (2, 8, 24)
    },
    "logits, a good start": (
        lambda: said_of_logits("good"), lambda: stored("logits").query("start == 'good'"), "method", "none", "loss",
        METHODS_OF_LOGITS,
    ),
    "logits, an ill start": (
        lambda: said_of_logits("ill"), lambda: stored("logits").query("start == 'ill'"), "method", "none", "loss",
        {each: name for each, name in METHODS_OF_LOGITS.items() if name != "sigmoid_attention"}
        | {"+ entropy_penalty": "entropy_penalty", "+ qk_weight_decay": "qk_weight_decay"},
    ),
    "a bad batch": (
        lambda: told("bad", "Yes"), lambda: stored("gradients").query("start == 'plain' and spike == 'both'"),
        "method", "adam", "accuracy", {"+ clip_norm": "adam clip", "+ muon": "muon"},
    ),
    "no bad batch": (
        lambda: told("bad", "No"), lambda: stored("gradients").query("start == 'plain' and spike == 'none'"),
        "method", "adam", "accuracy", {"+ clip_norm": "adam clip"},
    ),
    "100 images": (
        lambda: told("data", "Yes"), lambda: stored("regularization").query("images == 100 and method != 'decay'"),
        "method", "plain", "accuracy", {"+ cautious_decay": "cautious", "+ qk_weight_decay": "query-key"},
    ),
}  # fmt: skip


def said_of_logits(start):
    with mock.patch.object(advice._Reader, "drawn", lambda self, each: each):
        return recommend(logits.start("none", start, seed=0), digits().test_inputs[:16])


def told(question, said):
    with mock.patch.object(advice._Reader, "drawn", lambda self, each: each):
        return ask(n_layers=2, given={question: said})


@pytest.mark.parametrize("place", MEASURED)
def test_a_method_is_taken_where_it_was_better_warned_of_where_worse_and_else_noise(place):
    make, rows, column, default, score, names = MEASURED[place]
    answer, frame, sign = make(), rows(), -1 if score == "loss" else 1

    def own_best(name):
        group = frame[frame[column] == name]
        best = (sign * group.groupby("lr")[score].mean()).idxmax()
        return group[group["lr"] == best].set_index("seed")[score]

    seen = {each.start: each for each in answer.advice if each.is_method and each.start in names}
    assert set(seen) == set(names), "Every method that was run here is judged."
    for start, name in names.items():
        mean, low, high = confidence_interval((own_best(name) - own_best(default)).dropna())
        better = sign * ((low > 0) - (high < 0))
        (compared,) = seen[start].found.comparisons
        assert seen[start].strength == "run" and seen[start].records, start
        assert (compared.difference, compared.low, compared.high) == pytest.approx((mean, low, high)), start
        assert seen[start].verdict == {1: "take", 0: "noise", -1: "avoid"}[better], f"{start}: {compared}"
    assert place in str(answer) or all(each.removeprefix("+ ") in str(answer) for each in names)


def test_the_further_seeds_are_those_that_judge_a_warm_up():
    """Six seeds had shown a gain in 24 post-LN blocks, which 24 others did not confirm."""
    (found,) = [each for each in said_of(n_layers=24, norm="post").of("noise") if each.start == "+ warmup"]
    assert found.found.comparisons[0].n == 24 and found.found.comparisons[0].verdict == 0


def test_methods_stand_behind_starts_and_leave_the_weights():
    answer = said_of_logits("ill")
    kinds = [each.is_method for each in answer.of("take")]
    assert kinds == sorted(kinds) and {True, False} == set(kinds)
    assert answer.facts["logits_now"] == "ill" and "logits too large as they are" in str(answer)
    answer = recommend(logits.start("none", "ill", seed=0), digits().test_inputs[:16])
    own = {each.start: each for each in answer.of("take")}
    assert own["+ qk_norm"].measured["logit_std"] < 3 < answer.as_it_is.measured["logit_std"]
    assert own["+ qk_norm"].std == {} and own["+ qk_weight_decay"].measured == {}, "It acts in the optimizer."


def test_what_only_you_know_can_be_told():
    assert "+ clip_norm" not in {each.start for each in said_of(n_layers=2).advice}
    asks = said_of(n_layers=2).asks
    assert any("[bad] Yes: take clip_norm; worse muon. No: within the noise clip_norm." in each for each in asks)
    answer = told("source", "From nowhere")
    assert len(answer.asks) == len(asks) - 1 and not any("[source]" in each for each in answer.asks)
    assert any("Rates by width change nothing" in each for each in told("width", "no").also)
    wrong = {"dta=Yes": "Did you mean 'data'", "data=Maybe": r"'Yes\.', 'No\.'; got 'Maybe'", "source=From": "begins"}
    for given, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            ask(n_layers=2, given=dict([given.split("=")]))


@pytest.mark.parametrize("scheme", ["deepnorm", "rezero", "depth_scaled", "layer_scale"])
def test_the_architecture_that_a_scheme_asks_for_is_seen(scheme):
    norm = schemes()[scheme].architecture(8).get("norm", "pre")
    answer = said_of(n_layers=8, **{"norm": norm} | schemes()[scheme].architecture(8, 8))
    (own,) = [each for each in answer.advice if each.start == scheme]
    assert own.strength == "run"
    better = runs_at(8, norm)[scheme] - runs_at(8, norm)["xavier_uniform"]
    assert own.verdict == ("avoid" if confidence_interval(better)[2] < 0 else "take")
    if scheme == "depth_scaled":
        assert not [each for each in answer.advice if "branch_scale" in each.start], "Its branches are scaled already."


def test_the_methods_beside_a_plain_law_make_the_scheme_that_the_runs_had():
    torch.manual_seed(0)
    x, same = torch.randn(8, 4, 16), {start: run_name(start) for start in runs()["depth"]["names"]}
    scaled = Transformer(TransformerConfig(**SIZE, n_layers=8, **schemes()["depth_scaled"].architecture(8)), seed=0)
    initialize_(scaled, "depth_scaled", generator=torch.Generator().manual_seed(1))
    assert {*same.values()} == {"depth_scaled"}
    for start in same:
        scheme, methods = parts_of(start)
        plain = initialize_(Transformer(TransformerConfig(**SIZE, n_layers=8), seed=0), scheme,
                            generator=torch.Generator().manual_seed(1))  # fmt: skip
        assert not torch.allclose(plain(x), scaled(x))
        for method in methods:
            adjust(plain, method)
        assert torch.allclose(plain(x), scaled(x), atol=1e-5)


@pytest.mark.parametrize(
    "config, first, strength",
    [
        (dict(norm="sub", n_layers=8), "sub_ln", "formula"),
        (dict(n_layers=8, d_model=512, d_ff=1024), "xavier_normal + branch_scale", "near"),
        (dict(n_layers=8, parts=(p.QKNorm(),)), "xavier_normal + branch_scale", "near"),
        (dict(n_layers=8, parts=(p.GroupedQueries(2),)), "xavier_normal + branch_scale", "near"),
        (dict(n_layers=8, parts=(p.SwiGLU(),)), "xavier_normal + branch_scale", "near"),
        (dict(n_layers=2, scale=1.0), "t5", "formula"),
        (dict(n_layers=48), "xavier_normal + branch_scale", "near"),
    ],
    ids=["sub-LN", "wide", "QK-norm", "grouped", "gated", "logits not divided", "deeper than any run"],
)
def test_outside_of_the_runs_it_is_said_what_they_had_not(config, first, strength):
    answer = answer_for(**config) if first == "t5" else said_of(**config)
    best = answer.of("take")[0]
    assert (best.start, best.strength) == (first, strength)
    assert bool(best.found and best.found.outside) == (strength == "near")
    assert "no evidence" in str(answer), "Of what no rule and no run speaks."


def test_what_was_not_run_is_no_evidence():
    for each in said_of(n_layers=8).of("other"):
        assert each.strength in ("none", "near", "run") and (each.strength == "none") == (each.found is None)
    answer = said_of(n_layers=8, parts=(p.Hypersphere(),), norm="none")
    assert all(each.strength != "run" or each.start == "ngpt" for each in answer.advice)


def test_a_norm_of_its_own_is_not_taken_for_that_of_the_runs():
    answer = said_of(n_layers=8, parts=(p.DyT(),))
    assert all(each.strength != "run" for each in answer.advice)
    assert any("DyT" in why for each in answer.of("take") for why in each.found.outside)


TINY = dict(vocab_size=50, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64)
SPECIAL = dict(pad_token_id=0, bos_token_id=0, eos_token_id=0)
IDS = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(0))
BRANCHES = ("xavier_normal + branch_scale",)
EITHER = (*BRANCHES, "zero_output")  # by how the stream grows in one draw: at σ = 0.02 of the tokens, much from both
OF_LIBRARIES = {  # configuration, inputs, where the norm stands, what comes first, how sure
    "pre-LN, packed and tied": (
        "GPT2LMHeadModel", dict(n_embd=32, n_layer=4, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2),
        IDS, "pre", EITHER, "near",
    ),
    "ViT": (
        "ViTForImageClassification",
        TINY | dict(image_size=16, patch_size=4), torch.randn(2, 3, 16, 16), "pre", BRANCHES, "run",
    ),
    "encoder and decoder, T5's scale": (
        "T5ForConditionalGeneration",
        dict(vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=4, num_heads=4, decoder_start_token_id=0),
        dict(input_ids=IDS, decoder_input_ids=IDS), "pre", ("t5",), "formula",
    ),
    "post-LN": ("BertModel", TINY, IDS, "post", BRANCHES, "near"),
    "grouped and gated": ("LlamaForCausalLM", TINY | SPECIAL | dict(num_key_value_heads=2), IDS, "pre", EITHER, "near"),
    "sandwich": (
        "Gemma2ForCausalLM", TINY | SPECIAL | dict(num_key_value_heads=2, head_dim=8), IDS, "sandwich", None, None,
    ),
    "res-post": ("Olmo2ForCausalLM", TINY | SPECIAL | dict(num_key_value_heads=4), IDS, "res-post", None, None),
    "res-post, images": (
        "Swinv2Model",
        dict(image_size=32, patch_size=2, embed_dim=32, depths=[2], num_heads=[4], window_size=4),
        torch.randn(2, 3, 32, 32), "res-post", None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_LIBRARIES)
def test_architectures_of_libraries(kind):
    transformers = pytest.importorskip("transformers", reason="Hugging Face models are not installed")
    name, config, x, norm, first, strength = OF_LIBRARIES[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)
    answer = recommend(model(model.config_class(**config)), x, loss=lambda output: output[0].square().mean())
    assert answer.facts["norm"] == norm and answer.facts["n_heads"] == 4
    best = next(iter(answer.of("take")), None)
    assert (best.start in first and best.strength == strength) if first else best is None
    for each in answer.of("take"):
        if each.is_method:
            continue
        assert {"logit_std", "stream", "gradient"} <= set(each.measured) and each.logit_std > 0, (
            "What it predicts here."
        )
        assert {"query", "key", "value", "output"} <= set(each.std)
        assert each.std["query"] > 0 and f"σ: query {number(each.std['query'], digits=2)}" in str(answer)
        assert not each.is_behind
    for each in answer.of("avoid"):
        verdicts = {one.verdict for one in each.found.comparisons} if each.found else set()
        assert verdicts <= {0, -1} and (not verdicts or -1 in verdicts), each.start
    for each in answer.of("noise"):
        assert not each.found or 0 in {one.verdict for one in each.found.comparisons}, each.start
    if first is None:
        assert "No evidence: no rule of the book names a start" in str(answer)
        assert any("the norm behind a branch divides out" in each.lower() for each in answer.also), "What is known."


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_two_stacks_are_none_of_the_runs():
    model = nn.Transformer(32, 4, 4, 4, 64, dropout=0.0, norm_first=True, batch_first=True)
    answer = recommend(model, (torch.randn(2, 6, 32), torch.randn(2, 5, 32)))
    best = answer.of("take")[0]
    assert (
        answer.facts["stacks"] == 2
        and best.strength == "near"
        and any("stacks: 2" in why for why in best.found.outside)
    )


def test_learnable_gains_are_none_of_the_runs_but_of_a_scheme_that_sets_them():
    answer = said_of(n_layers=8, norm="none", branch_gain=0.0)
    outside = {each.start: each.found.outside for each in answer.of("take") if each.found}
    assert outside["rezero"] == () and any("learnable gains" in why for why in outside["zero_output"])


def test_a_tied_readout_and_a_vocabulary_are_seen():
    transformers = pytest.importorskip("transformers", reason="Hugging Face models are not installed")
    config = transformers.GPT2Config(n_embd=32, n_layer=8, n_head=4, vocab_size=50, bos_token_id=1, eos_token_id=2)
    answer = recommend(transformers.GPT2LMHeadModel(config), torch.randint(50, (2, 8)))
    known = answer.facts
    assert known["tied"] and known["tokens"] and known["packed"] and known["positions"] == "a learned table"
    assert {"gpt2", "xavier_packed"} <= {each.start for each in answer.of("avoid")}
    assert answer.as_it_is.why.split(", ").count("gpt2") == 1 and any(
        "as large as the embedding" in each for each in answer.also
    )


def test_the_model_stays_as_it_is():
    model, x = Transformer(TransformerConfig(**SIZE, n_layers=4), seed=0), torch.randn(8, 4, 16)
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    recommend(model, x, loss=lambda output: output.square().mean())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(each.grad is None for each in model.parameters()) and model.training


def test_predictions_are_those_of_the_laws_and_are_met_by_the_copies():
    answer = recommend(Transformer(TransformerConfig(**SIZE, n_layers=8), seed=0), torch.randn(64, 4, 16),
                       loss=lambda output: output.square().mean())  # fmt: skip
    (plain,) = [each for each in answer.of("avoid") if each.start == "xavier_uniform"]
    for each in answer.of("take"):
        scheme = schemes()[parts_of(each.start)[0]]
        told = scheme.predict(32, 4, n_layers=8, d_ff=64)
        assert each.std["query"] == pytest.approx(told.std["query"]) and each.logit_std == pytest.approx(told.logit_std)
        assert each.measured["logit_std"] == pytest.approx(each.logit_std, rel=0.4), "Tokens have something in common."
        assert each.measured["stream"] < 3 < plain.measured["stream"]
        assert each.measured["gradient"] > 0


def test_what_diagnose_warns_of_goes_behind():
    best, *rest = answer_for(n_layers=8, scale=1.0).of("take")
    assert best.start == "t5" and not best.findings
    assert any(each.findings and each.strength == "near" for each in rest), "A surer start, whose logits are too large."


def test_a_rule_whose_reason_does_not_hold_goes_behind():
    model = Transformer(TransformerConfig(n_classes=2, vocab_size=50, seq_len=8, n_layers=8), seed=0)
    answer = recommend(model, torch.randint(50, (4, 8)))
    first, second = answer.of("take")
    (plain,) = [each for each in answer.of("avoid") if each.start == "xavier_uniform"]
    assert first.start == "zero_output" and not first.doubt, "Its blocks pass even a small table on."
    assert "xavier_uniform" in second.doubt and second.measured["stream"] >= plain.measured["stream"]
    assert second.doubt in str(answer) and any("even where the branches are divided" in each for each in answer.also)


def test_every_rule_can_be_met_and_names_what_exists():
    for rule in RULES:
        assert set(rule.when) <= set(FACTS) and rule.sentence.count(".") >= 1
        for start in rule.starts:
            scheme, methods = parts_of(start)
            assert scheme in ("", *schemes()) and set(methods) <= set(adjustments())
        known = {name: _met(wanted) for name, wanted in rule.when.items()}
        assert rule.applies(known)
        for name in known:
            assert not rule.applies(known | {name: None}) and rule.unknown(known | {name: None}) == [name]


def _met(wanted):
    bounds = {">=": 1, "<=": -1}
    sign, _, number = wanted.partition(" ") if isinstance(wanted, str) else ("", "", "")
    return float(number) + bounds[sign] if sign in bounds else wanted[0] if isinstance(wanted, list) else wanted


def test_every_record_is_there_and_its_kind_is_what_the_rule_says(repository):
    kinds = {}
    for path in (repository / "notebooks").glob("*.ipynb"):
        outputs = [o for cell in json.loads(path.read_bytes())["cells"] for o in cell.get("outputs", [])]
        kinds |= {
            f"{int(path.name[:2])}: {each['name']}": each["kind"]
            for o in outputs
            for each in o.get("data", {}).get(MIME, [])
        }
    for rule in RULES:
        assert set(rule.records) <= set(kinds), rule.why
        trained = any(kinds[each] != "predicted" for each in rule.records)
        assert trained != rule.formula, f"formula={rule.formula}, and its records are {rule.records}."


@pytest.mark.parametrize(
    "rule, error, message",
    [
        (dict(take=["xavier"], why="."), ValueError, "Did you mean 'xavier"),
        (dict(take=["+ warm"], why="."), ValueError, "Did you mean 'warmup'"),
        (dict(when={"depht": 3}, why="."), ValueError, "Did you mean 'depth'"),
        (dict(tkae=["t5"], why="."), TypeError, "tkae"),
    ],
)
def test_a_rule_that_names_nothing_is_refused(rule, error, message):
    with pytest.raises(error, match=message):
        list(read([dict(id="a", title="A", answer=[dict(rule=[rule])])]))


def test_a_line_adds_a_method(monkeypatch):
    rule = dict(when={"norm": "post"}, take=["+ warmup", "+ soft_cap"], why="Because.", more="{record}`13: a`")
    (question,) = read([dict(id="a", title="A", answer=[dict(rule=[rule])])])
    monkeypatch.setattr(advice, "questions", lambda: (question,))
    first, second = (each for each in ask(n_layers=2, norm="post").of("take") if each.start[0] == "+")
    assert {first.start, second.start} == {"+ warmup", "+ soft_cap"} and first.records == ("13: a",)
    assert first.strength == "run" and first.call == "warmup(optimizer, steps=…)"
    assert "+ warmup" not in str(ask(n_layers=2, norm="pre"))


def test_unknown_is_not_false(monkeypatch):
    seen = view(Transformer(TransformerConfig(**SIZE, n_layers=8), seed=0))
    assert facts(replace(seen, traits={}))["norm"] is None
    monkeypatch.setattr(advice, "facts", lambda seen: facts(seen) | {"norm": None})
    answer = said_of.__wrapped__(n_layers=8)
    assert not answer.of("take") and any("norm" in note for note in answer.notes)
    assert "No evidence: no rule of the book names a start" in text(answer, 60)


def test_without_pandas_the_rules_are_left_and_it_says_so(monkeypatch):
    def missing(*args, **options):
        raise ModuleNotFoundError("pandas is not installed, and this needs it: pip install 'attntut[tables]'")

    monkeypatch.setattr(advice, "look_up", missing)
    answer = said_of.__wrapped__(n_layers=8)
    assert answer.of("take")[0].strength == "record" and any("attntut[tables]" in note for note in answer.notes)


def test_it_prints_within_the_width_and_as_html(capsys):
    answer = answer_for(n_layers=8)
    assert max(map(len, text(answer, 60).splitlines())) <= 60
    assert "1. xavier_normal + branch_scale: a stored run, inside its range" in text(answer, 100)
    page = html(replace(answer, model="<b>"))
    assert "<b>:" not in page and "&lt;b&gt;" in page and page.count("<tr>") > 3 and "http" not in page
    frame = answer.frame()
    assert set(frame["verdict"]) == {"as it is", *advice.VERDICTS} and frame["std_query"].notna().sum() > 10
    assert repr(answer).startswith("Recommendation(Transformer: xavier_normal + branch_scale")


def test_a_default_has_no_comparison_with_itself():
    known = facts(view(Transformer(TransformerConfig(**SIZE, n_layers=8), seed=0))) | {"tokens": False}
    assert look_up("xavier_uniform", known).comparisons == ()
    assert look_up("xavier_uniform", known, than="zero_output").comparisons[0].verdict == -1
    assert [each.at for each in look_up("zero_output", known | {"depth": 12}).comparisons] == ["8 blocks", "24 blocks"]
    assert look_up("mimetic", known) is None and look_up("zero_output", known | {"norm": "sub"}) is None


def test_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module: got str"):
        recommend("gpt2", None)
    with pytest.raises(ValueError, match="attention"):
        recommend(nn.Linear(2, 2), torch.randn(1, 2))


def test_the_command_line(capsys):
    pytest.importorskip("transformers", reason="Hugging Face models are not installed")
    from attntut.recommend.__main__ import main

    tiny = "--hidden-size 32 --num-hidden-layers 4 --num-attention-heads 4 --intermediate-size 64 --vocab-size 50"
    assert main(["bert", "--seq-len", "8", "--batch", "2", *tiny.split()]) == 0
    shown = capsys.readouterr().out
    assert "norm post" in shown and "1. xavier_normal + branch_scale" in shown and "ds_init" in shown
    with pytest.raises(SystemExit):
        main(["bertt"])
    assert "Did you mean 'bert" in capsys.readouterr().err
