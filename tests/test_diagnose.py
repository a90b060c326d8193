"""The listener: numbers by hand, every way to write attention, everything as it was afterwards, and hostile use."""

from __future__ import annotations

import copy
import math
import pickle
import random
import threading
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from attntut import MultiHeadAttention, Transformer, TransformerConfig, measure
from attntut.diagnose import Report, diagnose, listen, statistics, watcher, weights
from attntut.diagnose.report import STATISTICS


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    """What the weights look like has tests of its own, and takes longer than all of this."""
    monkeypatch.setattr(weights, "fill", lambda report, model: report)


LOG2 = math.log(2)
B, H, N, D = 2, 4, 6, 8


def projections(seed=0, n=N, m=None, heads=H, dtype=torch.float32):
    torch.manual_seed(seed)
    m = n if m is None else m
    return [torch.randn(B, heads, size, D, dtype=dtype) * 2 for size in (n, m, m)]


def lm(seed=0, **options):
    torch.manual_seed(seed)
    shape = dict(n_classes=10, vocab_size=10, seq_len=N, d_model=16, n_heads=H, is_causal=True, pooling="none")
    return Transformer(TransformerConfig(**(shape | options)))


def ids():
    return torch.randint(10, (B, N))


def energy(output):
    return output.square().sum()


def same(one, other, tolerance=1e-6):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for name in set(STATISTICS) & set(a):
            assert a[name] == pytest.approx(b[name], rel=tolerance, abs=tolerance, nan_ok=True), name


# ---- numbers by hand


def test_statistics_by_hand():
    logits = torch.tensor([[0.0, 0, -math.inf], [0, math.log(2), math.log(3)], [100, 0, 0]])
    report = diagnose(
        lambda x: F.softmax(x @ torch.eye(3).expand(1, 3, 3), -1) @ torch.eye(3).expand(1, 3, 3),
        logits.nan_to_num(neginf=-1e9)[None],
    )
    (row,) = report.rows
    second = LOG2 * 2 / 6 * -1 - math.log(3) / 2 + math.log(6)  # −Σ p ln p of (1/6, 2/6, 3/6)
    assert row["entropy"] == pytest.approx((LOG2 + second + 0) / 3)
    assert row["entropy_share"] == pytest.approx((1 + second / math.log(3) + 0) / 3)
    assert row["max_weight"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert row["saturated"] == pytest.approx(1 / 3)
    assert row["first"] == pytest.approx((0.5 + 1 / 6 + 1) / 3)
    assert row["self"] == pytest.approx((0.5 + 2 / 6 + 0) / 3)
    assert row["logit_max"] == 100
    assert row["logit_mean"] == pytest.approx((math.log(6) + 100) / 8)
    deviations = torch.tensor([0, math.log(2), math.log(3)]).var(correction=0) * 3 + (200 / 3) ** 2 + 2 * (100 / 3) ** 2
    assert row["logit_std"] == pytest.approx(math.sqrt(deviations / 8))
    assert (row["masked_rows"], row["non_finite"]) == (0, 0)


def test_what_a_head_hands_on_is_measured_like_any_tokens():
    q, k, v = projections()
    report = diagnose(F.scaled_dot_product_attention, (q, k, v))
    heads = F.scaled_dot_product_attention(q, k, v)
    cosine, residual = measure.token_cosine(heads).mean(0), measure.rank_residual(heads, relative=True).mean(0)
    for row, expected_cosine, expected_residual in zip(report.rows, cosine, residual, strict=True):
        assert row["token_cosine"] == pytest.approx(expected_cosine.item(), abs=1e-6)
        assert row["rank_residual"] == pytest.approx(expected_residual.item(), abs=1e-6)


def test_logits_are_measured_as_elsewhere_in_the_package():
    attention, x = MultiHeadAttention(16, H), torch.randn(1, N, 16)
    expected = measure.logit_statistics(attention.logits(x)[0])
    for head, row in enumerate(diagnose(attention, x).rows):
        assert row["layer"] == "(model)"
        for name in ("mean", "std", "max"):
            assert row[f"logit_{name}"] == pytest.approx(getattr(expected, name)[head].item(), abs=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 60, 2**20])
@pytest.mark.parametrize("causal", [False, True])
def test_pieces_change_nothing(chunk, causal, monkeypatch):
    q, k, v = projections(dtype=torch.float64)
    whole = diagnose(lambda *x: F.scaled_dot_product_attention(*x, is_causal=causal), (q, k, v))
    monkeypatch.setattr(statistics, "CHUNK", chunk)
    same(diagnose(lambda *x: F.scaled_dot_product_attention(*x, is_causal=causal), (q, k, v)).rows, whole.rows, 1e-12)


def test_no_piece_is_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr(statistics, "CHUNK", 64)
    pieces = statistics.Logits.of_projections(*projections(n=8, m=8)[:2], scale=1.0).pieces()
    assert max(piece.numel() for piece, *_ in pieces) <= 64


# ---- every way to write attention


def by_hand(q, k, v, mask=None, is_causal=False):
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    if is_causal:
        logits = logits.masked_fill(torch.ones(q.shape[-2], k.shape[-2]).triu(1).bool(), -math.inf)
    return torch.softmax(logits if mask is None else logits + mask, -1) @ v


def by_einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q * q.shape[-1] ** -0.5, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bqhd", weights, v)


def with_dropout(q, k, v):
    torch.manual_seed(0)
    return F.dropout(torch.softmax(q @ k.mT / math.sqrt(D), -1), 0.5) @ v


def capped_in_float32(q, k, v):
    logits = (q @ k.mT / math.sqrt(D)).float()
    return torch.softmax(logits.div(1e6).tanh().mul(1e6), -1).to(v.dtype) @ v


def with_a_huge_number(q, k, v):
    return by_hand(q, k, v, mask=torch.ones(N, N).triu(1) * -1e9)


@pytest.mark.parametrize("call", [by_hand, by_einsum, with_dropout, capped_in_float32])
def test_attention_written_out_is_seen(call):
    q, k, v = projections()
    expected = diagnose(F.scaled_dot_product_attention, (q, k, v)).rows
    found = diagnose(call, (q, k, v)).rows
    if call is with_dropout:  # the weights are those before it; the output is what it left
        assert not math.isnan(found[0]["token_cosine"])
        expected = [row | dict.fromkeys(("rank_residual", "token_cosine", "output_rms"), 0.0) for row in expected]
        found = [row | dict.fromkeys(("rank_residual", "token_cosine", "output_rms"), 0.0) for row in found]
    same(found, expected, 1e-5)


@pytest.mark.parametrize("call", [lambda *x: by_hand(*x, is_causal=True), with_a_huge_number])
def test_a_causal_mask_hides_what_comes_later(call):
    q, k, v = projections()
    fused = diagnose(lambda *x: F.scaled_dot_product_attention(*x, is_causal=True), (q, k, v)).rows
    same(diagnose(call, (q, k, v)).rows, fused, 1e-5)
    weights = torch.softmax((q @ k.mT / math.sqrt(D)).masked_fill(torch.ones(N, N).triu(1).bool(), -math.inf), -1)
    assert fused[0]["entropy"] == pytest.approx(measure.attention_entropy(weights[:, 0]).mean().item(), abs=1e-5)


@pytest.mark.parametrize("kind", ["boolean", "added"])
def test_masks_of_the_fused_kernel(kind):
    q, k, v = projections()
    mask = torch.rand(B, 1, N, N) > 0.4
    mask[..., 0] = True
    added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    given = mask if kind == "boolean" else added
    fused = diagnose(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=given), (q, k, v))
    same(fused.rows, diagnose(lambda *x: by_hand(*x, mask=added), (q, k, v)).rows, 1e-5)


def test_grouped_queries_share_their_keys():
    q, k, v = projections()
    k, v = k[:, :2], v[:, :2]
    report = diagnose(lambda *x: F.scaled_dot_product_attention(*x, enable_gqa=True), (q, k, v))
    repeated = [x.repeat_interleave(2, dim=1) for x in (k, v)]
    same(report.rows, diagnose(by_hand, (q, *repeated)).rows, 1e-5)


def test_queries_without_heads_or_batch():
    q, k, v = projections()
    flat = diagnose(by_hand, (q[0, 0], k[0, 0], v[0, 0]))
    same(flat.rows, diagnose(by_hand, (q[:1, :1], k[:1, :1], v[:1, :1])).rows)
    three = diagnose(by_hand, (q[:, 0], k[:, 0], v[:, 0]))
    assert [row["head"] for row in three.rows] == [0]


@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_attention_with_and_without_weights(batch_first):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, H, batch_first=batch_first)
    x = torch.randn(B, N, 16) if batch_first else torch.randn(N, B, 16)
    with_weights, without = (diagnose(attention, dict(query=x, key=x, value=x, need_weights=w)) for w in (True, False))
    assert len(with_weights.rows) == H
    same(with_weights.rows, without.rows, 1e-5)
    _, weights = attention(x, x, x, average_attn_weights=False)
    entropy = measure.attention_entropy(weights).mean((0, 2))
    assert [row["entropy"] for row in without.rows] == pytest.approx(entropy.tolist(), abs=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_torch_encoder_in_every_mode(mode):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, H, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).train(mode == "train")
    padding = torch.zeros(B, N, dtype=torch.bool)
    padding[0, 4:] = True
    with listen(model) as report, torch.set_grad_enabled(mode != "no_grad"):
        model(torch.randn(B, N, 16), src_key_padding_mask=padding)
    assert [layer["layer"] for layer in report.layers()] == ["layers.0.self_attn", "layers.1.self_attn"]
    first = report.layers()[0]
    assert first["n_key"] == N, "No nested tensors, no fused path."
    assert [block["layer"] for block in report.stream] == ["layers.0", "layers.1"]


@pytest.mark.parametrize("batch_first", [True, False])
def test_torch_decoder_crosses(batch_first):
    torch.manual_seed(0)
    model = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, H, batch_first=batch_first, dropout=0.0), 2)
    x, memory = torch.randn(B, N, 16), torch.randn(B, N, 16)
    inputs = (x, memory) if batch_first else (x.transpose(0, 1), memory.transpose(0, 1))
    report = diagnose(model, inputs)
    assert [(layer["layer"], layer["kind"]) for layer in report.layers()] == [
        ("layers.0.self_attn", "self"),
        ("layers.0.multihead_attn", "cross"),
        ("layers.1.self_attn", "self"),
        ("layers.1.multihead_attn", "cross"),
    ]
    assert all(math.isnan(layer["self"]) == (layer["kind"] == "cross") for layer in report.layers())
    output = model.layers[0](*inputs)
    output = output if batch_first else output.transpose(0, 1)
    cosine = measure.token_cosine(output).mean().item()
    assert report.stream[0]["token_cosine"] == pytest.approx(cosine, abs=1e-5), "Tokens, not sequences."


def test_our_layer_with_and_without_weights_and_a_context():
    attention, x, context = MultiHeadAttention(16, H), torch.randn(B, N, 16), torch.randn(B, N, 16)
    mask = torch.rand(N, N) > 0.3
    mask[2] = False  # one query may see nothing
    fused, written = (
        diagnose(attention, dict(x=x, context=context, mask=mask, return_weights=weights)) for weights in (False, True)
    )
    same(fused.rows, written.rows, 1e-5)
    for report in (fused, written):
        assert {(row["kind"], row["masked_rows"]) for row in report.rows} == {("cross", B)}


def test_sinks_are_no_keys():
    q, k, v = projections()
    sink = torch.full((B, H, N, 1), 3.0)

    def call(q, k, v):
        logits = torch.cat([q @ k.mT, sink], dim=-1)
        return logits.softmax(-1)[..., :-1] @ v

    weights = torch.cat([q @ k.mT, sink], dim=-1).softmax(-1)
    row = diagnose(call, (q, k, v)).rows[0]
    assert row["self"] == pytest.approx(weights[:, 0].diagonal(dim1=-2, dim2=-1).mean().item(), abs=1e-6)
    assert row["kind"] == "self" and row["n_key"] == N + 1 and not math.isnan(row["token_cosine"])


def test_attention_after_a_model_and_outside_any():
    model, (q, k, v) = lm(), projections()
    with listen(model) as report:
        model(ids())
        by_hand(q, k, v)
    assert [layer["layer"] for layer in report.layers()] == ["blocks.0.attention", "blocks.1.attention", "(function)"]
    with listen() as nameless:
        model(ids())
    assert [(layer["layer"], layer["calls"]) for layer in nameless.layers()] == [("(function)", 2)]


def test_a_method_that_is_not_forward_is_heard():
    model = lm()
    with listen(model) as report:
        model.trace(ids())
    assert [layer["layer"] for layer in report.layers()] == ["blocks.0.attention", "blocks.1.attention"]


class Router(nn.Module):
    """Attention between a mixture of experts and a classifier with softmax."""

    def __init__(self):
        super().__init__()
        self.gate, self.experts = nn.Linear(16, 3), nn.Parameter(torch.randn(3, 16, 16))
        self.attention, self.classify = MultiHeadAttention(16, H), nn.Linear(16, 5)

    def forward(self, x):
        gates = self.gate(x).softmax(-1)  # (B, n, 3)
        each = torch.einsum("bnd,edf->bnef", x, self.experts)
        x = self.attention((gates[..., None, :] @ each)[..., 0, :])
        scores = torch.bmm(x, self.experts[:1, :, :5].expand(len(x), -1, -1)).softmax(-1)
        return self.classify(x).softmax(-1), scores


@pytest.mark.parametrize("autocast", [False, True])
def test_other_softmaxes_are_no_attention(autocast):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        report = diagnose(
            Router(),
            torch.randn(B, N, 16),
            lambda out: F.cross_entropy(out[0].flatten(0, 1), torch.zeros(B * N).long()),
        )
    assert [layer["layer"] for layer in report.layers()] == ["attention"]
    assert any("3 softmaxes" in note and "router" in note for note in report.notes), report.notes


# ---- gradients, the stream, updates


def test_gradients_by_role_and_depth():
    model, x = lm(is_causal=False), ids()
    report = diagnose(model, x, energy)
    energy(model(x)).backward()
    for line, block in zip(report.gradients, model.blocks, strict=True):
        for role in ("query", "key", "value", "output"):
            assert line[role] == pytest.approx(getattr(block.attention, role).weight.grad.norm().item(), rel=1e-5)
        assert line["ratio_query"] == pytest.approx(line["query"] / line["value"])

    stream = model.trace(x).stream
    gradients = torch.autograd.grad(energy(model.read(stream[2])), stream[2])
    assert report.stream[1]["gradient_rms"] == pytest.approx(measure.rms(gradients[0]).item(), rel=1e-5)
    assert [block["rms"] for block in report.stream] == pytest.approx(
        [measure.rms(each).item() for each in stream[1:]], rel=1e-5
    )


def test_packed_matrices_are_told_apart():
    torch.manual_seed(0)
    attention, x = nn.MultiheadAttention(16, H, batch_first=True), torch.randn(B, N, 16)
    report = diagnose(attention, (x, x, x), lambda output: energy(output[0]))
    energy(attention(x, x, x)[0]).backward()
    norms = [part.norm().item() for part in attention.in_proj_weight.grad.chunk(3)]
    assert [report.gradients[0][role] for role in ("query", "key", "value")] == pytest.approx(norms, rel=1e-5)


def test_a_step_of_the_users_own_is_heard():
    model = lm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with listen(model) as report:
        energy(model(ids())).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert report.gradients[0]["query"] > 0 and report.stream[0]["gradient_rms"] > 0
    assert report.model["steps"] == 1 and report.steps == []


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_update_size_and_every_weight_back(kind):
    model, x = lm(), ids()
    optimizer = kind(model.parameters(), lr=0.01)
    energy(model(x)).backward()  # a history: gradients and moments
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    report = diagnose(model, x, energy, optimizer=optimizer)
    after = (model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()])
    torch.testing.assert_close(after, before, rtol=0, atol=0)

    output = model(x)
    optimizer.zero_grad()
    energy(output).backward()
    optimizer.step()
    assert report.update == pytest.approx(measure.update_size(output.detach(), model(x).detach()).item(), rel=1e-5)


def test_a_fresh_optimizer_stays_fresh():
    model = lm()
    optimizer = torch.optim.Adam(model.parameters())
    assert diagnose(model, ids(), energy, optimizer=optimizer).update > 0
    assert not optimizer.state


# ---- long listening


def test_every_few_steps():
    model, calls = lm(), []
    with listen(model, every=3) as report:
        for _ in range(7):
            calls.append(model(ids()))
    assert report.model["steps"] == 3 and [layer["calls"] for layer in report.layers()] == [3, 3]
    assert [step["step"] for step in report.steps] == [0, 0, 3, 3, 6, 6]
    mean = sum(step["entropy"] for step in report.steps[::2]) / 3
    assert report.layers()[0]["entropy"] == pytest.approx(mean)


def test_progress(monkeypatch):
    seen = []

    class Bar:
        def __init__(self, total, **_):
            seen.append(total)

        def update(self):
            seen.append("step")

        def close(self):
            seen.append("closed")

    monkeypatch.setattr("tqdm.tqdm", Bar)
    model = lm()
    with listen(model, steps=3):
        for _ in range(2):
            model(ids())
    assert seen == [3, "step", "step", "closed"]


def test_scalars_of_each_head_by_step():
    model, sent = lm(), []
    with listen(model, every=2, to=lambda tag, value, step: sent.append((tag, value, step))) as report:
        for _ in range(3):
            model(ids())
            assert not sent or sent[-1][2] == 0, "A step is sent when it is over."
    assert sent == list(report.scalars()) and len(sent) == 2 * 2 * H * 3  # steps, layers, heads, numbers
    assert {step for *_, step in sent} == {0, 2}
    with listen(model) as single:
        model(ids())
    found = {tag: value for tag, value, _ in single.scalars()}
    for row in single.rows:
        for name in ("logit_max", "logit_std", "entropy"):
            assert found[f"{name}/{row['layer']}/self/{row['head']}"] == row[name]
    assert list(Report.from_json(report.to_json()).scalars()) == sent


def test_scalars_go_to_tensorboard(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = lm()
    with tensorboard.SummaryWriter(tmp_path) as writer, listen(model, to=writer.add_scalar) as report:
        for _ in range(2):
            model(ids())
    events = EventAccumulator(str(tmp_path)).Reload()
    written = events.Scalars("entropy/blocks.1.attention/self/2")
    assert [event.step for event in written] == [0, 1]
    assert written[0].value == pytest.approx(report.steps[1]["heads"]["entropy"][2], rel=1e-6)


def test_steps_between_cost_no_measuring(monkeypatch):
    model, x, seen = lm(), ids(), []
    rule = watcher.Watcher.__torch_dispatch__
    monkeypatch.setattr(
        watcher.Watcher, "__torch_dispatch__", lambda self, *args, **kw: seen.append(1) or rule(self, *args, **kw)
    )
    with listen(model, every=3):
        for _ in range(4):
            seen.append(0)
            energy(model(x)).backward()
    watched = "".join(map(str, seen)).split("0")[1:]
    assert [bool(each) for each in watched] == [True, False, False, True]
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_maps_are_kept_only_when_asked_for():
    model, x = lm(), ids()
    assert diagnose(model, x).maps == []
    kept = diagnose(model, x, maps=3).maps
    assert [(each["layer"], each["head"]) for each in kept[:2]] == [
        ("blocks.0.attention", 0),
        ("blocks.0.attention", 1),
    ]
    true = model.trace(x).weights[0][0, 1]
    assert kept[1]["queries"] == [0, 2, 5]
    torch.testing.assert_close(torch.tensor(kept[1]["weights"]), true[[0, 2, 5]], atol=1e-5, rtol=0)


# ---- everything as it was


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    of_modules = sum(len(getattr(module, name)) for module in model.modules() for name in names)
    return of_modules + sum(len(parameter._backward_hooks or ()) for parameter in model.parameters())


def test_nothing_is_left_behind():
    model, x = lm(), ids()
    model.register_buffer("count", torch.zeros(()))
    model.register_forward_hook(lambda module, args, output: module.count.add_(1) and None)
    user_hooks = hooks(model)
    parameter = next(model.parameters())
    parameter.grad = gradient = torch.ones_like(parameter)
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    version = parameter._version
    diagnose(model, x, energy)
    assert hooks(model) == user_hooks
    assert parameter.grad is gradient and bool((gradient == 1).all())
    assert all(p.grad is None for p in list(model.parameters())[1:])
    assert [module.training for module in model.modules()] == modes
    assert parameter._version == version and model.count == 0
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_the_next_random_numbers_are_the_same():
    model = nn.TransformerEncoderLayer(16, H, batch_first=True, dropout=0.5)
    x = torch.randn(B, N, 16)
    draws = []
    for watched in (False, True):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
        if watched:
            diagnose(model, x, energy)
        draws.append((model(x), random.random(), np.random.rand()))  # noqa: NPY002
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=0)
    torch.manual_seed(1)
    with listen(model):
        heard = model(x)
    torch.testing.assert_close(heard, draws[0][0], rtol=0, atol=0)


def test_hooks_that_step_an_optimizer_in_the_backward_pass_rest():
    model, calls = lm(), []
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(calls.append)
    diagnose(model, ids(), energy)
    assert not calls, "diagnose must not train."
    energy(model(ids())).backward()
    assert calls


class Forgetful(nn.Module):
    """Replaces buffers and tensors that it keeps, changes others in place, and makes new ones."""

    def __init__(self):
        super().__init__()
        self.attention = MultiHeadAttention(16, H)
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("none", None)
        self.register_buffer("flag", torch.zeros(2, dtype=torch.bool))
        self.cached, self.counted, self.other = None, torch.zeros(2), "kept"

    def forward(self, x):
        self.replaced, self.none = self.replaced + 1, torch.ones(1)
        self.flag.logical_not_()
        self.cached, self.fresh = x.detach(), x.detach()
        self.counted += 1
        return self.attention(x)


def test_buffers_and_tensors_that_the_model_replaces_are_put_back():
    model = Forgetful()
    before = model.replaced, model.counted, model.flag
    names = set(vars(model))
    with torch.inference_mode():
        model.register_buffer("inference", torch.zeros(2))
    diagnose(model, torch.randn(B, N, 16), energy)
    assert (model.replaced is before[0], model.counted is before[1], model.flag is before[2]) == (True, True, True)
    assert model.none is None and model.cached is None and set(vars(model)) == names
    assert not any(bool(each.any()) for each in before)
    assert set(dict(model.named_buffers())) == {"replaced", "flag", "inference"}


def test_an_optimizer_keeps_its_own_state():
    model, x = lm(), ids()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    energy(model(x)).backward()
    optimizer.step()
    parameter = next(model.parameters())
    moment, options = optimizer.state[parameter]["exp_avg"], dict(optimizer.param_groups[0])
    content = moment.clone()
    diagnose(model, x, energy, optimizer=optimizer)
    assert optimizer.state[parameter]["exp_avg"] is moment and torch.equal(moment, content)
    assert optimizer.param_groups[0] == options


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([MultiHeadAttention(16, H), MultiHeadAttention(16, H)])

    def forward(self, x):
        x = self.blocks[0](x)
        raise RuntimeError("in the middle")


def test_an_exception_passes_and_leaves_nothing():
    model, x = Failing(), torch.randn(B, N, 16)
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="in the middle"):
        diagnose(model, x, energy)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(RuntimeError, match="in the middle"), listen(model) as report:
        model(x)
    assert [layer["layer"] for layer in report.layers()] == ["blocks.0"], "What was heard before it, is told."
    assert hooks(model) == 0 and torch.backends.mha.get_fastpath_enabled()
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_an_exception_that_the_model_catches_confuses_no_name():
    class Catching(nn.Module):
        def __init__(self):
            super().__init__()
            self.failing, self.attention = Failing(), MultiHeadAttention(16, H)

        def forward(self, x):
            try:
                return self.failing(x)
            except RuntimeError:
                return self.attention(x)

    layers = diagnose(Catching(), torch.randn(B, N, 16)).layers()
    assert [layer["layer"] for layer in layers] == ["failing.blocks.0", "attention"]


# ---- hostile use


def test_nested_listeners_hear_the_same():
    model, x = lm(), ids()
    with listen(model) as outer:
        with listen(model) as inner:
            model(x)
        model(x)
    assert [layer["calls"] for layer in outer.layers()] == [2, 2]
    same(outer.rows, inner.rows)
    with listen(model) as around:
        within = diagnose(model, x, energy)
    same(around.rows, within.rows)
    assert torch.backends.mha.get_fastpath_enabled() and hooks(model) == 0


def test_threads_hear_their_own_model():
    models = [lm(seed, n_layers=1 + seed) for seed in range(2)]
    x = ids()
    alone = [diagnose(model, x, energy) for model in models]
    reports: list = [None, None]
    barrier = threading.Barrier(2)

    def work(index):
        with listen(models[index]) as reports[index]:
            barrier.wait()
            for _ in range(5):
                energy(models[index](x)).backward()
            barrier.wait()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for report, expected in zip(reports, alone, strict=True):
        assert {layer["calls"] for layer in report.layers()} == {5}
        same(report.rows, expected.rows)
    assert torch.backends.mha.get_fastpath_enabled()


def test_copies_made_meanwhile_are_free():
    model, x = lm(), ids()
    with listen(model) as report:
        copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        model(x)
        copied(x)
    assert [(layer["layer"], layer["calls"]) for layer in report.layers()][:2] == [
        ("blocks.0.attention", 1),
        ("blocks.1.attention", 1),
    ]
    assert report.layers()[2]["layer"] == "(function)", "A copy is another model."
    for other in (copied, pickled, copy.deepcopy(model)):
        torch.testing.assert_close(other(x), model(x))
        with listen(other) as again:
            energy(other(x)).backward()
        same(again.rows, report.rows[: len(again.rows)])


def test_no_attention_is_said():
    report = diagnose(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(3, 4), energy)
    assert report.rows == [] and any("No attention was seen" in note for note in report.notes)


def test_models_without_values():
    with torch.device("meta"):
        model = lm()
        report = diagnose(model, ids(), energy)
    assert any("meta" in note for note in report.notes), report.notes


def test_lazy_modules():
    model = nn.Sequential(nn.LazyLinear(16), nn.TransformerEncoderLayer(16, H, batch_first=True))
    assert len(diagnose(model, torch.randn(B, N, 3), energy).rows) == H


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_many_models_at_once():
    models = [MultiHeadAttention(16, H) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)

    def call(parameters, buffers):
        return torch.func.functional_call(models[0], (parameters, buffers), (torch.ones(B, N, 16),))

    report = diagnose(torch.vmap(call), (parameters, buffers))
    assert {row["n_key"] for row in report.rows} == {N}, report.notes


def test_an_empty_batch_and_a_single_token():
    q, k, v = projections()
    empty = diagnose(by_hand, (q[:0], k[:0], v[:0]))
    assert len(empty.rows) == H and math.isnan(empty.rows[0]["entropy"]) and empty.rows[0]["calls"] == 1
    assert diagnose(lm(), torch.zeros(0, N, dtype=torch.long)).rows == [], "torch runs no kernel for nothing."
    single = diagnose(lm(), ids()[:, :1], energy).rows[0]
    assert (single["entropy"], single["max_weight"], single["self"]) == (0, 1, 1)
    assert all(math.isnan(single[name]) for name in ("entropy_share", "saturated", "token_cosine"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_float32(dtype):
    q, k, v = (x.to(dtype) for x in projections())
    found = diagnose(by_hand, (q, k, v)).rows
    fused = diagnose(F.scaled_dot_product_attention, (q, k, v)).rows
    exact = diagnose(by_hand, [x.double() for x in (q, k, v)]).rows
    same(fused, exact, 2e-2)  # the output is rounded
    for row, expected in zip(fused, exact, strict=True):
        assert row["entropy"] == pytest.approx(expected["entropy"], abs=1e-5), (
            "Its logits are those of the projections."
        )
    same(found, exact, 5e-2)


def test_autocast():
    torch.manual_seed(0)
    model, x = lm(), ids()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = diagnose(model, x, energy)
    same(half.rows, diagnose(model, x).rows, 3e-2)


def test_double_precision_stays():
    q, k, v = projections(dtype=torch.float64)
    weights = torch.softmax(q @ k.mT / math.sqrt(D), -1)
    expected = measure.attention_entropy(weights).mean((0, 2))
    rows = diagnose(F.scaled_dot_product_attention, (q, k, v)).rows
    assert [row["entropy"] for row in rows] == pytest.approx(expected.tolist(), abs=1e-13)


def test_nan_in_one_layer_is_named():
    model = lm()
    with torch.no_grad():
        model.blocks[1].attention.key.weight[0, 0] = math.nan
    report = diagnose(model, ids(), energy)
    bad = {row["layer"] for row in report.rows if row["non_finite"]}
    assert bad == {"blocks.1.attention"}
    assert report.rows[0]["entropy"] > 0 and math.isnan(report.row("blocks.1.attention")["entropy"])


def test_rows_that_hold_nan_do_not_spoil_the_others():
    q, k, v = projections()
    broken = q.clone()
    broken[0, :, 2] = math.nan
    kept = diagnose(by_hand, (broken, k, v)).rows
    weights = torch.softmax(q @ k.mT / math.sqrt(D), -1)
    entropy = measure.attention_entropy(weights)
    entropy[0, :, 2] = 0
    for head, row in enumerate(kept):
        assert row["non_finite"] == N
        assert row["entropy"] == pytest.approx(entropy[:, head].sum().item() / (B * N - 1), abs=1e-5)


@pytest.mark.parametrize("hidden", [-math.inf, torch.finfo(torch.float32).min, -1e9])
def test_rows_that_may_see_nothing_are_counted(hidden):
    q, k, v = projections()
    mask = torch.zeros(N, N)
    mask[1] = hidden
    for call in (by_hand, lambda *x, mask: F.scaled_dot_product_attention(*x, attn_mask=mask)):
        rows = diagnose(lambda *x, call=call: call(*x, mask=mask), (q, k, v)).rows
        assert {row["masked_rows"] for row in rows} == {B}
        assert {row["non_finite"] for row in rows} == {0}


def test_huge_logits_are_not_taken_for_a_mask():
    q, k, v = projections()
    (row, *_) = diagnose(by_hand, (q * 1e4, k, v)).rows
    expected = measure.logit_statistics((q * 1e4 @ k.mT / math.sqrt(D))[:, 0])
    assert row["logit_std"] == pytest.approx(expected.std.square().mean().sqrt().item(), rel=1e-5)
    assert row["saturated"] > 0.9 and row["masked_rows"] == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_blocks_count_once(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = lm()

        def forward(self, x):
            x = self.model.embed(x)
            for block in self.model.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return self.model.read(x)

    model, x = Checkpointed(), ids()
    report, plain = diagnose(model, x, energy), diagnose(model.model, x, energy)
    assert {layer["calls"] for layer in report.layers()} == {1}
    same(report.rows, plain.rows)
    for name in ("gradients", "stream"):
        for one, other in zip(getattr(report, name), getattr(plain, name), strict=True):
            one, other = ({**each, "layer": ""} for each in (one, other))
            assert one == pytest.approx(other), name


def test_a_layer_called_twice_has_two_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = MultiHeadAttention(16, H)

        def forward(self, x):
            return self.attention(self.attention(x))

    model, x = Twice(), torch.randn(B, N, 16)
    (layer,) = diagnose(model, x).layers()
    assert layer["calls"] == 2
    entropy = [
        measure.attention_entropy(model.attention(each, return_weights=True)[1]).mean()
        for each in (x, model.attention(x))
    ]
    assert layer["entropy"] == pytest.approx(sum(entropy).item() / 2, abs=1e-5)


def test_compiled_models():
    model, x = lm(), ids()
    expected = diagnose(model, x)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    same(diagnose(compiled, x).rows, expected.rows)
    assert [row["layer"] for row in diagnose(compiled, x).rows] == [row["layer"] for row in expected.rows]
    with listen(compiled) as report:
        compiled(x)
    if not any("compiled" in note for note in report.notes):  # older torch runs it as it is while it is listened to
        assert [row["layer"] for row in report.rows] == [row["layer"] for row in expected.rows], report.notes
    torch.testing.assert_close(compiled(x), model(x))


def test_flex_attention_is_named():
    from torch.nn.attention.flex_attention import flex_attention

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow uncompiled
        report = diagnose(flex_attention, projections())
    assert report.rows == []
    assert any("flex_attention" in note for note in report.notes), report.notes


# ---- the report


def test_json_brings_everything_back():
    report = diagnose(lm(), ids(), energy, maps=2)
    again = Report.from_json(report.to_json())
    assert repr(again.rows) == repr(report.rows) and again.notes == report.notes and again.model == report.model
    assert "NaN" not in report.to_json()
    cross = Report(rows=[dict(layer="a", kind="cross", head=0, self=math.nan, logit_max=math.inf)])
    back = Report.from_json(cross.to_json()).rows[0]
    assert math.isnan(back["self"]) and back["logit_max"] == math.inf


def test_compare_before_and_after():
    model, x = lm(), ids()
    before = diagnose(model, x, energy)
    with torch.no_grad():
        model.blocks[1].attention.query.weight.mul_(10)
    changes = {
        (line["layer"], line["head"]): line["change"]
        for line in before.compare(diagnose(model, x, energy))
        if line["statistic"] == "logit_std"
    }
    assert all(abs(changes["blocks.0.attention", head]) < 1e-6 for head in range(H))
    assert all(changes["blocks.1.attention", head] > 1 for head in range(H))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: diagnose(3, torch.ones(1)), TypeError, "model must be a torch.nn.Module or a function: got int"),
        (lambda: diagnose(lm(), ids(), "loss"), TypeError, "loss must be a function .* got str"),
        (
            lambda: diagnose(lm(), ids(), lambda o: o),
            TypeError,
            r"loss must give a scalar tensor: got shape \(2, 6, 10\)",
        ),
        (lambda: diagnose(lm(), ids(), lambda o: o.detach().sum()), TypeError, "without gradient.*checkpoint"),
        (lambda: diagnose(lm(), ids(), optimizer=1), ValueError, "optimizer needs a loss"),
        (lambda: diagnose(lm(), ids(), maps=-1), ValueError, "maps must be an integer ≥ 0"),
        (lambda: listen("model").__enter__(), TypeError, "model must be a torch.nn.Module: got str"),
        (lambda: listen(lm(), every=0).__enter__(), ValueError, "every must be an integer ≥ 1"),
        (lambda: listen(lm(), to=3).__enter__(), TypeError, "to must be a function of a tag, .* got int"),
        (lambda: listen(lm(), steps=0).__enter__(), ValueError, "steps must be an integer ≥ 1"),
        (lambda: Report.from_json("{}"), ValueError, "text must be a report of format 1"),
        (lambda: Report.from_json(3), TypeError, "text must be a str of JSON: got int"),
        (lambda: Report().compare(3), TypeError, "other must be a Report: got int"),
        (lambda: diagnose(lm(), ids()).row("blocks.0.atention"), ValueError, "Did you mean 'blocks.0.attention'"),
        (lambda: diagnose(lm(), ids()).row("blocks.0.attention", 9), ValueError, r"head must be one of \[0, 1, 2, 3\]"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
