"""What it costs to listen: time against a plain forward and backward pass, and memory as the sequence grows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from attntut import Transformer, TransformerConfig
from attntut.anatomy import view
from attntut.diagnose import diagnose, listen
from bench.table import Row, seconds

VOCAB, WIDTH, LAYERS, HEADS = 50257, 768, 12, 12  # GPT-2 small
LENGTHS = (128, 256, 512)
MIB = 2**20
TURNS = 7


def diagnosis() -> list[Row]:
    """Median times over that of a forward and backward pass of a model of GPT-2 small's shape, and peak memory."""
    model = small()
    what = "GPT-2 small's shape, batch 1"
    listening = partial(view, model, inputs=torch.randint(VOCAB, (1, 256)))
    plain, *others = seconds(*runs(model, 256), listening, repeats=TURNS)
    diagnosed, listened, looked = (f"{taken / plain:.2f}×" for taken in others)
    rows = [
        Row(f"`diagnose` over a forward and backward pass, {what}, n = 256", diagnosed, "≤ 1.25×"),
        Row("… `listen` around the same", f"{listened} ({plain:.1f} s without)", "≤ 1.25×"),
        Row("… anatomy by listening over the same", looked, "≤ 1×"),
    ]
    above = []
    for n in LENGTHS:
        peaks = []
        for run in runs(model, n)[:2]:
            model.zero_grad(set_to_none=True)
            peaks.append(peak_memory(run))
        above.append(f"{(peaks[1] - peaks[0]) / MIB:+.1f}")
    lengths = " / ".join(map(str, LENGTHS))
    maps = " / ".join(f"{LAYERS * HEADS * n * n * 4 / MIB:.0f}" for n in LENGTHS)
    return [
        *rows,
        Row(f"… peak memory of `diagnose` above the plain run, n = {lengths}", f"{' / '.join(above)} MiB", "the same"),
        Row("… what the maps themselves would take", f"{maps} MiB"),
    ]


def small() -> Transformer:
    """A model of GPT-2 small's shape."""
    config = TransformerConfig(
        n_classes=VOCAB,
        vocab_size=VOCAB,
        seq_len=max(LENGTHS),
        d_model=WIDTH,
        n_heads=HEADS,
        n_layers=LAYERS,
        is_causal=True,
        pooling="none",
    )
    return Transformer(config, seed=0)


def runs(model: Transformer, n: int) -> list[Callable[[], object]]:
    """A forward and backward pass of ``n`` tokens: plain, diagnosed, listened to."""
    tokens = torch.randint(VOCAB, (1, n))

    def loss(logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    def plain() -> None:
        model.zero_grad(set_to_none=True)
        loss(model(tokens)).backward()

    def listened() -> None:
        with listen(model):
            plain()

    def diagnosed() -> None:
        model.zero_grad(set_to_none=True)
        diagnose(model, tokens, loss)

    return [plain, diagnosed, listened]


def peak_memory(call: Callable[[], Any]) -> int:
    """The most bytes that torch's allocator holds at one moment of a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    level = top = 0
    for _, change in memory:
        level += change
        top = max(top, level)
    return top
