"""The playground's engine, in Node: equal to torch from the same weights and batches; its laws are the registry's."""

from __future__ import annotations

import contextlib
import doctest
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from attntut import Transformer, TransformerConfig
from attntut.data import UNSCORED
from attntut.diagnose import diagnose
from attntut.evidence import confidence_interval
from attntut.init import schemes, view
from attntut.init.laws import MatrixLaw
from attntut.measure import attention_entropy, logit_statistics, rms, token_cosine
from attntut.parts import QKNorm
from attntut.train.scoring import objective

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
pytest.importorskip("sphinx", reason="the extra `book` is not installed")

from bookext import playground, presets  # noqa: E402
from small_book import build_book  # noqa: E402

ENGINE, RUNS = (ROOT / "book" / "_static" / "playground" / name for name in ("engine.js", "runs.js"))
FIRST, LATER = 1e-5, 1e-3  # relative: logits, gradients and loss of the first step; the losses of 50 steps
STEPS, BATCH = 50, 8
SCHEMES = [name for name, scheme in schemes().items() if playground.fits(scheme)]

PROGRAM = """
const data = DATA; ENGINE WORK
const cases = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(cases.map((each) => work[each.work](each))));
"""

WORK = """
const engine = attntutEngine(), { Session } = attntutRuns(engine);
const numbers = (array) => Array.from(array, (each) => Number.isFinite(each) ? each : null);
const work = {
  train({ config, weights, batches, optimizer }) {
    const B = batches[0].y.length / (config.pooling === "mean" ? 1 : config.seq_len);
    const model = new engine.Transformer(config, B), { all } = model.parameters;
    for (const each of all) each.value.set(weights[each.name]);
    const [first] = batches, logits = numbers(model.forward(first.x, B)), losses = [], gradients = {};
    const update = new engine.Optimizer(model.parameters, optimizer);
    let seen = null;
    for (const { x, y } of batches) {
      losses.push(model.loss(x, y, B).loss);
      if (!seen) for (const each of all) gradients[each.name] = numbers(each.gradient);
      seen ??= engine.statistics(model);
      update.step();
    }
    return { names: all.map((each) => each.name), logits, losses, gradients, seen };
  },
  draw({ config, start, seed, times }) {
    const model = new engine.Transformer(config, 1), sums = {};
    for (let time = 0; time < times; time++) {
      engine.initialize(model, data, start, `${seed} ${time}`);
      for (const { name, value } of model.parameters.all) {
        const each = (sums[name] ??= { n: 0, sum: 0, square: 0, largest: 0 });
        for (const w of value) [each.n, each.sum, each.square, each.largest] =
          [each.n + 1, each.sum + w, each.square + w * w, Math.max(each.largest, Math.abs(w))];
      }
    }
    return { sums, gains: engine.gains(model, data, start.scheme) };
  },
  start({ settings }) {
    const session = new Session(data, settings), [run] = session.runs;
    const { probe } = session, { all } = run.model.parameters;
    const weights = Object.fromEntries(all.map((each) => [each.name, numbers(each.value)]));
    return { findings: run.findings, x: numbers(probe.x), y: numbers(probe.y), weights, config: run.config };
  },
  play({ settings, steps }) {
    const session = new Session(data, settings), stds = ({ seen }) => seen.layers.map((each) => each.logit_std);
    const logit_std = session.runs.map((run) => engine.rms(stds(run)));
    for (let step = 0; step < steps; step++) session.advance(false);
    for (const run of session.runs) run.evaluate(session.tests);
    return { logit_std, accuracy: session.runs.map((run) => run.accuracy) };
  },
  moves({ settings, others }) {
    let session = new Session(data, settings);
    const streams = ({ seen }) => seen.stream.map((each) => each.rms);
    const look = ({ runs }) => runs.map((run) => [run.loss, run.accuracy, streams(run)]);
    return others.map((each) => {
      const models = session.runs.map((run) => run.model);
      session = new Session(data, each, session);
      const kept = session.runs.map((run) => models.includes(run.model));
      const moved = look(session), afresh = look(new Session(data, each));
      session.advance(false);
      const again = new Session(data, each, session), isNew = again.runs.every((run) => !session.runs.includes(run));
      session = new Session(data, each);
      return { kept, moved, afresh, isNew };
    });
  },
  data({ task }) {
    const set = engine.dataOf(data.tasks[task]), all = set.take(Array.from({ length: set.n }, (_, i) => i));
    return { x: numbers(all.x), y: numbers(all.y), n_train: set.n_train };
  },
};
"""


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """A function that lets the engine, changed if wanted, work on cases."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: then `nox -s browser` alone tests the engine.")
    folder = tmp_path_factory.mktemp("playground")

    def work(*cases: dict, wrong: tuple[str, str] = ("", ""), with_data: bool = False) -> list[dict]:
        source = ENGINE.read_text(encoding="utf-8")
        assert wrong[0] in source, f"the engine has no {wrong[0]!r} to be changed"
        data = playground.script().partition(" = ")[2].rstrip().rstrip(";") if with_data else "{}"
        source = source.replace(*wrong) if wrong[0] else source
        program = folder / "program.js"
        source += RUNS.read_text(encoding="utf-8")
        text = PROGRAM.replace("WORK", WORK, 1).replace("DATA", data, 1).replace("ENGINE", source, 1)
        program.write_text(text, encoding="utf-8")
        ran = subprocess.run([node, program], input=json.dumps(cases), capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        return json.loads(ran.stdout)

    return work


# ----- equal to torch -----


def config_of(task: str = "digits", **settings) -> tuple[TransformerConfig, dict]:
    """A model of torch for a task, and the settings that the engine calls the same."""
    qk_norm, cap = settings.pop("qk_norm", False), settings.pop("soft_cap", None)
    usual = dict(d_model=16, n_heads=2, n_layers=2, activation="relu")
    config = TransformerConfig(**usual | playground.tasks()[task][1] | settings, parts=(QKNorm(),) if qk_norm else ())
    names = (
        "n_classes d_input vocab_size seq_len d_model n_heads n_layers norm residual_scale skip_scale positions "
        "pooling is_causal scale"
    ).split()
    return config, {name: getattr(config, name) for name in names} | dict(qk_norm=qk_norm, soft_cap=cap)


def model_of(config: TransformerConfig, seed: int = 0) -> Transformer:
    """One whose every parameter is random, gains and biases too, so that none can hide."""
    model = Transformer(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm.weight" in name else 0.0
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def case_of(task: str, model: Transformer, settings: dict, optimizer: dict, steps: int = STEPS) -> dict:
    """What the engine gets: weights and batches."""
    data = playground.tasks()[task][0]
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(len(data.train_inputs), (steps, BATCH), generator=generator)
    targets = data.train_targets.where(data.train_targets != UNSCORED, -1)
    batches = [dict(x=data.train_inputs[r].flatten().tolist(), y=targets[r].flatten().tolist()) for r in rows]
    weights = {name: each.detach().flatten().tolist() for name, each in model.named_parameters()}
    return dict(work="train", config=settings, weights=weights, batches=batches, optimizer=optimizer)


def by_torch(task: str, model: Transformer, optimizer: dict, soft_cap: float | None = None, steps: int = STEPS) -> dict:
    """The same numbers as the engine's."""
    data = playground.tasks()[task][0]
    rows = torch.randint(len(data.train_inputs), (steps, BATCH), generator=torch.Generator().manual_seed(1))
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer["optimizer"]]
    update, warmup = kind(model.parameters(), lr=optimizer["lr"]), optimizer.get("warmup", 0)
    found: dict = dict(losses=[])
    with capped(soft_cap):
        for step, row in enumerate(rows):
            logits = model(data.train_inputs[row])
            loss = objective(logits, data.train_targets[row], data.n_classes)
            update.zero_grad()
            loss.backward()
            if step == 0:
                found["logits"] = logits.detach()
                found["gradients"] = {name: each.grad.clone() for name, each in model.named_parameters()}
                found["trace"] = model.trace(data.train_inputs[row])
            found["losses"].append(loss.item())
            update.param_groups[0]["lr"] = optimizer["lr"] * (min(1, (step + 1) / warmup) if warmup else 1)
            update.step()
    return found


@contextlib.contextmanager
def capped(cap: float | None):
    """Attention of torch whose logits are cap · tanh(s / cap)."""
    usual = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, is_causal=False, scale=None):
        logits = query @ key.mT * scale
        logits = cap * torch.tanh(logits / cap)
        if is_causal:
            logits = logits.masked_fill(~torch.ones_like(logits, dtype=torch.bool).tril(), -math.inf)
        return torch.softmax(logits, dim=-1) @ value

    F.scaled_dot_product_attention = attention if cap else usual
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def apart(ours: list, theirs: torch.Tensor, least: float = 0.0) -> float:
    """The distance of two arrays over the length of theirs, or ``least`` if that is more."""
    ours, theirs = torch.tensor(ours, dtype=torch.float64), theirs.flatten().double()
    return ((ours - theirs).norm() / max(theirs.norm().item(), least)).item()


def differences(ours: dict, theirs: dict) -> dict[str, float]:
    """Each relative to what is allowed: 1 is the most."""
    gradients = theirs["gradients"]
    whole = torch.cat([each.flatten() for each in gradients.values()]).norm().item()
    found = {"logits": apart(ours["logits"], theirs["logits"]) / FIRST}
    # What is zero in theory, as the gradient of a key's bias, is rounding in both: a hundredth of all measures it.
    found |= {f"∇{name}": apart(ours["gradients"][name], each, whole / 100) / FIRST for name, each in gradients.items()}
    losses = [abs(a / b - 1) for a, b in zip(ours["losses"], theirs["losses"], strict=True)]
    return found | {"first loss": losses[0] / FIRST, "losses": max(losses) / LATER}


ADAM, SGD = dict(optimizer="adam", lr=1e-3, warmup=5), dict(optimizer="sgd", lr=1e-2)
CASES = {
    **{f"{norm}, {task}, {o['optimizer']}": (task, dict(norm=norm), o)
       for norm in ("pre", "post", "none") for task in playground.tasks() for o in (ADAM, SGD)},
    "QK-norm": ("recall", dict(qk_norm=True), ADAM),
    "soft-cap": ("digits", dict(soft_cap=1.5), ADAM),
    "soft-cap, mask and QK-norm": ("previous", dict(soft_cap=1.0, qk_norm=True, norm="post"), SGD),
    "factors": ("digits", dict(scale=1.0, skip_scale=1.3, residual_scale=0.7, norm="post"), ADAM),
    "sinusoidal positions": ("previous", dict(positions="sinusoidal"), ADAM),
    "no positions, one head, depth 4": ("recall", dict(positions="none", n_heads=1, n_layers=4), ADAM),
    "width 32, 4 heads, depth 1": ("digits", dict(d_model=32, n_heads=4, n_layers=1), SGD),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_engine_is_equal_to_torch(engine, name):
    task, settings, optimizer = CASES[name]
    config, names = config_of(task, **settings)
    model = model_of(config)
    (ours,) = engine(case_of(task, model, names, optimizer))
    assert sorted(ours["names"]) == sorted(dict(model.named_parameters())), "the parameters have the names of torch's"
    theirs = by_torch(task, model, optimizer, names["soft_cap"])
    found = differences(ours, theirs)
    assert max(found.values()) <= 1, {key: value for key, value in found.items() if value > 1}


WRONG = {
    "no √d": ("config.scale ?? (d / H) ** -0.5", "1"),
    "√d_model instead of √d_head": ("config.scale ?? (d / H) ** -0.5", "d ** -0.5"),
    "mask forgotten": ("this.causal ? t + 1 : T", "T"),
    "bias correction left out": ("lr / (1 - beta1 ** this.t)", "lr"),
    "second bias correction left out": ("Math.sqrt(1 - beta2 ** this.t)", "1"),
    "warm-up from 0": ("Math.min(1, this.t / this.warmup)", "Math.min(1, (this.t - 1) / this.warmup)"),
    "softmax without its mean": ("(dWeights[j] - along)", "dWeights[j]"),
    "norm without its mean's gradient": ("* gain[i] - mean -", "* gain[i] -"),
    "eps of another norm": ("center ? 1e-5 : 1e-6", "center ? 1e-3 : 1e-6"),
    "unscored targets scored": ("/ scored;\n      }", "/ targets.length;\n      }"),
    "positions without gradient": ("this.positions.gradient[i % (T * d)] +=", "void"),
    "values mixed by the transpose": ("multiply(weights, this.head(v", "multiply(transposed(weights), this.head(v"),
}


@pytest.fixture(scope="module")
def right():
    """A case, and torch's numbers for it."""
    config, names = config_of("previous")
    case = case_of("previous", model_of(config), names, ADAM)
    return case, by_torch("previous", model_of(config), ADAM)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_engine_is_noticed(engine, right, name):
    case, theirs = right
    (ours,) = engine(case, wrong=WRONG[name])
    assert max(differences(ours, theirs).values()) > 3


def test_the_gradient_is_that_of_the_loss(engine):
    """Finite differences along random directions, by the engine alone."""
    config, names = config_of("recall", norm="post", qk_norm=True)
    model = model_of(config)
    case = case_of("recall", model, names, SGD, steps=1)
    (middle,) = engine(case)
    generator, step = torch.Generator().manual_seed(2), 1e-2
    for _ in range(3):
        ways = {n: torch.randn(p.numel(), generator=generator) for n, p in model.named_parameters()}
        length = math.sqrt(sum(way.square().sum().item() for way in ways.values()))
        moved = [
            case
            | dict(
                weights={
                    n: (torch.tensor(w) + sign * step / length * ways[n]).tolist() for n, w in case["weights"].items()
                }
            )
            for sign in (1, -1)
        ]
        above, below = (each["losses"][0] for each in engine(*moved))
        slope = sum(torch.tensor(middle["gradients"][n]) @ ways[n] for n in ways).item() / length
        assert (above - below) / (2 * step) == pytest.approx(slope, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("task", playground.tasks())
def test_the_statistics_are_those_of_the_package(engine, task):
    config, names = config_of(task, n_heads=4, n_layers=3)
    model = model_of(config)
    (ours,) = engine(case_of(task, model, names, SGD, steps=1))
    theirs = by_torch(task, model, SGD, steps=1)
    trace, is_causal = theirs["trace"], names["is_causal"]
    for seen, x in zip(ours["seen"]["stream"], trace.stream, strict=True):
        assert seen["rms"] == pytest.approx(rms(x).item(), rel=1e-5)
        assert seen["token_cosine"] == pytest.approx(token_cosine(x).mean().item(), abs=1e-5)
    mask = torch.ones(16, 16, dtype=torch.bool).tril() if is_causal else torch.ones(1, 1, dtype=torch.bool)
    for layer, (seen, logits, weights) in enumerate(
        zip(ours["seen"]["layers"], trace.attention_logits, trace.weights, strict=True)
    ):
        statistics = logit_statistics(logits.masked_fill(~mask, -math.inf))
        share = attention_entropy(weights, normalized=True, mask=mask)
        for head, numbers in enumerate(seen["heads"]):
            assert numbers["logit_std"] == pytest.approx(
                statistics.std[:, head].square().mean().sqrt().item(), rel=1e-5
            )
            assert numbers["logit_max"] == pytest.approx(statistics.max[:, head].max().item(), rel=1e-5)
            assert numbers["entropy"] == pytest.approx(attention_entropy(weights)[:, head].mean().item(), rel=1e-5)
            assert numbers["entropy_share"] == pytest.approx(share[:, head].nanmean().item(), rel=1e-5)
        query, value = (theirs["gradients"][f"blocks.{layer}.attention.{role}.weight"] for role in ("query", "value"))
        assert seen["ratio_query"] == pytest.approx((query.norm() / value.norm()).item(), rel=1e-4)


# ----- data and laws: those of the package -----


def test_the_examples_run():
    assert not doctest.testmod(playground).failed


@pytest.mark.parametrize("task", playground.tasks())
def test_the_data_are_those_of_the_package(engine, task):
    data, place = playground.tasks()[task][0], playground.order(playground.tasks()[task][0])
    (ours,) = engine(dict(work="data", task=task), with_data=True)
    inputs = torch.cat([data.train_inputs, data.test_inputs])[place]
    targets = torch.cat([data.train_targets, data.test_targets])[place]
    assert ours["n_train"] == len(data.train_inputs)
    assert torch.equal(torch.tensor(ours["x"], dtype=torch.float64).to(inputs.dtype), inputs.flatten())
    assert ours["y"] == targets.where(targets != UNSCORED, -1).flatten().tolist()


def test_the_page_has_every_scheme_that_it_can_have():
    left_out = {*schemes()} - {*playground.catalogue()}
    for name in left_out:
        scheme = schemes()[name]
        assert scheme.finish or scheme.requires, f"{name} asks for nothing: why is it not on the page?"


DRAWN = config_of("recall", n_layers=3, n_heads=4, d_model=32)


@pytest.fixture(scope="module")
def drawn(engine):
    """Sums over a few draws from every scheme."""
    config = DRAWN[1] | dict(task="recall")
    cases = [dict(work="draw", config=config, start=dict(scheme=name), seed=0, times=4) for name in SCHEMES]
    return dict(zip(SCHEMES, engine(*cases, with_data=True), strict=True))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_of_the_page_is_that_of_the_registry(drawn, name):
    """The std of every parameter, within its sampling error; what is constant, exactly."""
    scheme, sums = schemes()[name], drawn[name]["sums"]
    for entry in view(Transformer(DRAWN[0])).entries:
        laws = {entry.parameter: (scheme.law(entry.weight), scheme.std(entry.weight))}
        if entry.bias is not None:
            bias = scheme.bias(entry.weight)
            laws[entry.parameter.replace("weight", "bias")] = (bias, bias.std(entry.weight.fan_out, 1))
        for parameter, (law, predicted) in laws.items():
            seen, n = sums[parameter], sums[parameter]["n"]
            mean, spread = seen["sum"] / n, math.sqrt(max(0.0, seen["square"] / n - law.mean**2))
            assert spread == pytest.approx(predicted, rel=4.5 / math.sqrt(2 * n), abs=1e-7), parameter
            if not isinstance(law, MatrixLaw):
                assert mean == pytest.approx(law.mean, abs=4.5 * predicted / math.sqrt(n) + 1e-7), parameter
            if law.support is not None and scheme.finish is None:
                assert seen["largest"] <= law.support * (1 + 1e-6)


def test_the_pairs_of_mimetic_are_noisy_identities(engine):
    """Their products: −0.4 and 0.7 on the diagonal, the latter as far as a head's rank goes; noise beside it."""
    settings = dict(task="digits", d_model=32, n_heads=1, n_layers=1, seed=1)
    run = dict(OWN, start=dict(scheme="mimetic"))
    (found,) = engine(dict(work="start", settings=settings | dict(runs=[run])), with_data=True)
    query, key, value, output = (
        torch.tensor(found["weights"][f"blocks.0.attention.{role}.weight"]).view(32, 32)
        for role in ("query", "key", "value", "output")
    )
    for product, size in ((output @ value, -0.4), (query.mT @ key, 0.7)):
        assert product.diagonal().mean() == pytest.approx(size, abs=4 * abs(size) / 32)
        assert product.std() == pytest.approx(abs(size) * math.sqrt(2 / 32), rel=0.15)


def test_the_gain_of_the_queries_norm_is_set(engine):
    settings = dict(SHARED, runs=[dict(OWN, start=dict(scheme="qk_gain"))])
    (found,) = engine(dict(work="start", settings=settings), with_data=True)
    part = "blocks.2.attention.parts.qk_norm"
    assert found["weights"][f"{part}.query_norm.weight"] == pytest.approx([1.44] * 8)
    assert found["weights"][f"{part}.key_norm.weight"] == [1] * 8


# ----- words: what diagnose says at the start -----

SHARED = dict(task="digits", d_model=32, n_heads=4, n_layers=3, seed=1)
OWN = dict(start=dict(scheme="xavier_normal"), norm="pre", qk_norm=False, soft_cap=None, positions="learned",
           position_scale=None, optimizer="adam", lr=1e-3, warmup=0)  # fmt: skip
STARTS = {
    "healthy": {},
    "small": dict(start=dict(scheme="xavier_normal", query_key=0.05)),
    "large": dict(start=dict(scheme="xavier_normal", query_key=4.0)),
    "very large": dict(start=dict(scheme="xavier_normal", query_key=10.0)),
    "constant": dict(start=dict(scheme="constant")),
    "zeros": dict(start=dict(scheme="zeros")),
    "zero query": dict(start=dict(scheme="zero_query")),
    "zero output": dict(start=dict(scheme="zero_output")),
    "He without norms": dict(start=dict(scheme="kaiming_normal"), norm="none"),
    "post-LN": dict(norm="post"),
    "packed": dict(start=dict(scheme="xavier_packed")),
    "gpt2": dict(start=dict(scheme="gpt2")),
    "positions 1": dict(position_scale=1.0),
    "QK-norm": dict(start=dict(scheme="xavier_normal", query_key=10.0), qk_norm=True),
}


@pytest.fixture(scope="module")
def starts(engine):
    cases = [dict(work="start", settings=SHARED | dict(runs=[OWN | own])) for own in STARTS.values()]
    return dict(zip(STARTS, engine(*cases, with_data=True), strict=True))


@pytest.mark.parametrize("name", STARTS)
def test_the_words_are_those_of_diagnose(starts, name):
    """On the engine's weights, `diagnose` finds the same faults, the same one first."""
    found, own = starts[name], OWN | STARTS[name]
    config, _ = config_of(n_layers=3, n_heads=4, d_model=32, norm=own["norm"], qk_norm=own["qk_norm"])
    model, data = Transformer(config), playground.tasks()["digits"][0]
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(found["weights"][parameter_name]).view_as(parameter))
    x, y = torch.tensor(found["x"]).view(32, 16, 4), torch.tensor(found["y"])
    report = diagnose(model, x, lambda logits: objective(logits, y, data.n_classes))
    theirs = [each for each in report.findings if each.fault in playground.JUDGED]
    assert [each["name"] for each in found["findings"]] == [each.name for each in theirs]
    if theirs:
        ours, worst = found["findings"][0], theirs[0]
        assert (ours["severity"], ours["fault"]) == (worst.severity, worst.fault)
        assert ours["value"] == pytest.approx(worst.value, rel=1e-3, abs=1e-6)
        assert ours["threshold"] == pytest.approx(worst.threshold, rel=1e-3)


def test_a_moved_slider_starts_one_run_anew_and_a_run_that_was_trained_never_stays(engine):
    def settings(gain, seed=1):
        return session_of(f"task=previous&depth=1&width=16&a=xavier_normal~query_key:{gain}&b=gpt2", seed)

    others = [settings(2), settings(3), settings(3, seed=2)]
    found = engine(dict(work="moves", settings=settings(1), others=others), with_data=True)[0]
    assert [each["kept"] for each in found] == [[False, True], [False, True], [False, False]]
    assert all(each["moved"] == each["afresh"] and each["isNew"] for each in found)


# ----- the answers below the questions: torch's, and the engine's -----

QUESTION = (
    "task=previous&depth=1&width=16&a=xavier_normal&b=xavier_normal~norm:post~query_key:8&c=gpt2~lr:0.01~warmup:20"
)


def session_of(state: str, seed: int) -> dict:
    """The settings that the page would hand its worker."""
    shared, runs = presets.parsed(state)
    sizes = dict(task=shared["task"], n_layers=shared["depth"], d_model=shared["width"], n_heads=shared["heads"])
    sliders = ("scheme", *playground.GROUPS)
    own = [{**run, "start": {name: run[name] for name in sliders}} for run in runs]
    return sizes | dict(seed=seed, runs=own)


def test_the_answers_are_those_of_the_engine(engine):
    """Other random numbers, the same laws: the intervals of the two means overlap."""
    steps = 40
    cases = [dict(work="play", settings=session_of(QUESTION, seed), steps=steps) for seed in range(presets.SEEDS)]
    ours = engine(*cases, with_data=True)
    for quantity in ("accuracy", "logit_std"):
        theirs = presets.measured(quantity, QUESTION, steps if quantity == "accuracy" else 0)
        for i, values in enumerate(theirs.values()):
            mean, low, high = confidence_interval(values)
            other, lowest, highest = confidence_interval([each[quantity][i] for each in ours])
            assert lowest <= high and low <= highest, (quantity, i, mean, other)


def test_the_answers_of_another_start_are_noticed(engine):
    """The intervals are narrow enough to tell the runs apart."""
    (ours,) = engine(dict(work="play", settings=session_of(QUESTION, 0), steps=0), with_data=True)
    _, low, high = confidence_interval(presets.measured("logit_std", QUESTION, 0)["A"])
    assert low < ours["logit_std"][0] * 1.3 and not low < ours["logit_std"][1] < high


def test_every_setting_of_a_state_reaches_torch():
    def drawn(settings):
        shared, (own,) = presets.parsed(f"task=previous&depth=1&width=16&heads=2&a=xavier_normal{settings}")
        return presets.drawn(shared, own, seed=0)

    def std(model, name):
        return dict(model.named_parameters())[name].std().item()

    plain = drawn("")
    assert (plain.config.d_model, plain.config.n_heads, plain.config.n_layers) == (16, 2, 1)
    assert std(drawn("~query_key:8"), "blocks.0.attention.key.weight") == pytest.approx(8 / 4, rel=0.2)
    assert std(drawn("~value_output:8"), "blocks.0.attention.output.weight") == pytest.approx(8 / 4, rel=0.2)
    assert std(drawn("~feed_forward:8"), "blocks.0.feed_forward.2.weight") == pytest.approx(8 / 8, rel=0.2)
    assert std(drawn("~embedding:8"), "embedding.weight") == pytest.approx(8, rel=0.2)
    assert std(drawn("~position_scale:3"), "positions") == pytest.approx(3, rel=0.2)
    assert drawn("~norm:post").config.norm == "post" and drawn("~positions:none").config.positions == "none"
    assert drawn("~qk_norm:true").config.parts
    x = playground.tasks()["previous"][0].test_inputs[:8]
    capped, free = (presets.statistics(drawn(f"~query_key:8{end}"), x)["logit_std"] for end in ("~soft_cap:2", ""))
    assert capped < 2 < free


@pytest.mark.parametrize(
    "directive, said",
    [
        ("a=xavier_normal&b=constant\nkeys after 0: A > B", "'A > B' is not shown"),
        ("a=xavier_normal~positions:sinusoidal~position_scale:1\nkeys after 0: A > 1", "positions have no size"),
        ("a=xavier_normal~norm:past\nkeys after 0: A > 1", "norm must be"),
        ("a=no_scheme\nkeys after 0: A > 1", "no_scheme"),
        ("a=xavier_normal\nkeys after 0: A", "must be like"),
        ("a=xavier_normal\nkeys after 0: B > 1", "must be a run of"),
        ("a=xavier_normal\nluck after 0: A > 1", "a line must be like"),
        ("a=xavier_normal~norm:none~optimizer:sgd~lr:1e9\nloss after 9: A > 1", "run A diverges"),
    ],
)
def test_a_wrong_question_fails_the_build_with_its_name(tmp_path, directive, said):
    page = f"# Play\n\n## What is it?\n\n```{{preset}} width=16&depth=1&{directive}\n```\n"
    warnings = build_book(tmp_path, {"index.md": page}).warnings
    assert "Question What is it?" in warnings and said in warnings


def test_a_question_gets_its_button_and_its_answer(tmp_path):
    question = "width=16&depth=1&a=constant&b=zeros\nkeys after 0: A > 15, B > 15"
    page = f"# Play\n\n## What is it?\n\n```{{preset}} {question}\n```\n"
    built = build_book(tmp_path, {"index.md": page})
    assert 'data-state="width=16&amp;depth=1&amp;a=constant&amp;b=zeros"' in built.page("index")
    assert "At the start a token hears A 16 ± 0, B 16 ± 0 keys." in built.page("index")
    assert "Question" not in built.warnings
