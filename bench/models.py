"""Attention against torch's, and many models at once against one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attntut import MultiHeadAttention, Transformer, TransformerConfig
from attntut.data import digits
from attntut.train import train, train_many
from bench.table import Row, seconds

MODELS, STEPS, BATCH, WIDTH = 24, 60, 32, 32
SHAPES = [(32, 16, 32, 4), (8, 128, 256, 8)]  # batch, tokens, d_model, heads


def attention() -> list[Row]:
    """``MultiHeadAttention`` over ``nn.MultiheadAttention``, same shapes."""
    rows = []
    for batch, tokens, width, heads in SHAPES:
        x = torch.randn(batch, tokens, width)
        theirs = nn.MultiheadAttention(width, heads, batch_first=True)
        separate, packed = (MultiHeadAttention(width, heads, packed=packed) for packed in (False, True))

        calls = [partial(theirs, x, x, x, need_weights=False), partial(separate, x), partial(packed, x)]
        many = max(1, 2_000_000 // (batch * tokens * width))
        shape = f"batch {batch}, {tokens} tokens, d_model {width}"
        for name, times in {
            "forward": seconds(*(partial(_forward, call, many) for call in calls), repeats=15),
            "forward and backward": seconds(*(partial(_backward, call, many) for call in calls), repeats=15),
        }.items():
            reference, ours, in_one = times
            result = f"{ours / reference:.2f}× (packed {in_one / reference:.2f}×)"
            rows.append(Row(f"`MultiHeadAttention` over `nn.MultiheadAttention`, {name}, {shape}", result, "≤ 1.1×"))
    return rows


@torch.no_grad()
def _forward(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def _backward(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        output = call()
        (output[0] if isinstance(output, tuple) else output).square().mean().backward()


def training() -> list[Row]:
    """24 small Transformers on digits: at once over one by one, and the share of what the machine can multiply."""
    data = digits()
    config = TransformerConfig(
        n_classes=data.n_classes,
        d_input=data.train_inputs.shape[-1],
        seq_len=data.train_inputs.shape[1],
        d_model=WIDTH,
        n_heads=4,
    )

    def models() -> list[nn.Module]:
        return [Transformer(config, seed=seed) for seed in range(MODELS)]

    def together(steps: int = STEPS) -> None:
        train_many(models(), data, steps=steps, lrs=1e-3, seeds=range(MODELS), batch_size=BATCH, progress=False)

    def one_by_one(steps: int = STEPS) -> None:
        for seed, model in enumerate(models()):
            train(model, data, steps=steps, lr=1e-3, seed=seed, batch_size=BATCH, progress=False)

    together(steps=2)
    one_by_one(steps=1)
    at_once, single = seconds(together, one_by_one, repeats=5, warm_up=False)
    with FlopCounterMode(display=False) as counter:
        Transformer(config)(data.train_inputs[:BATCH]).square().mean().backward()
    rate = counter.get_total_flops() * MODELS * STEPS / at_once
    what = f"{MODELS} Transformers on digits (batch {BATCH}, d_model {WIDTH}, {STEPS} steps)"
    return [
        Row(f"{what}: `train_many` over one by one", f"{single / at_once:.1f}× as fast ({at_once:.1f} s)", "≥ 3×"),
        Row("… its share of the machine's peak in matrix products", f"{100 * rate / peak():.0f} %"),
    ]


def peak(size: int = 1536) -> float:
    """Floating-point operations a second in a large product of float32 matrices."""
    a, b = torch.randn(2, size, size)
    return 2 * size**3 / seconds(lambda: a @ b, repeats=9)[0]
