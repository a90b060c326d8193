"""What can be wrong with a stack of blocks: what becomes of the stream with depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from attntut.diagnose.facts import Facts, Layer, Stack
from attntut.diagnose.finding import Finding, found
from attntut.evidence import number

UNIT_BRANCHES = 4.0
"""Two branches of unit gain double the variance of the stream at most twice."""
TOKENS_APART = 1 / 2 * (1 - 1 / (2 * math.pi))
"""What a block with skip connections and unit branches leaves of 1 − token cosine, at least."""
ALIKE = 0.01
"""Below this 1 − token cosine, the gradient of W_q is a few thousandths of W_v's (0.0017 was measured there)."""
FLOOR = 1e-6
"""Tokens closer than this differ by rounding (float32)."""
SCALED_GROWTH = 1.6
"""Growth of the stream with 1/√(2L): 1.54, 1.57, 1.59 were measured at L = 4, 12, 24, for branches of unit variance."""
DEEP = 8
"""From here on 1/√(2L) is ¼ or less."""


def rank_collapsing(facts: Facts) -> Iterator[Finding]:
    """Tokens that become alike faster than skip connections allow."""
    for stack in _fresh(facts, at_least=2):
        apart = [1 - block["token_cosine"] for block in stack.blocks]
        if apart[0] <= 10 * FLOOR:  # it happened in the first block, if it was not so before
            apart = [_apart_before(stack.layers[0]), *apart]
        end = next((i for i, each in enumerate(apart) if each <= FLOOR), len(apart) - 1)
        if end == 0 or not apart[end] < ALIKE:
            continue
        rate = (max(apart[end], FLOOR) / apart[0]) ** (1 / end)
        if rate < TOKENS_APART:
            words = {"blocks": len(stack), "last": number(max(apart[-1], FLOOR), digits=2)}
            yield _found("rank collapsing", stack, rate, expected=0.5, threshold=TOKENS_APART, words=words)


def stream_growing(facts: Facts) -> Iterator[Finding]:
    """A stream whose variance is multiplied, block after block, by more than unit branches can."""
    for stack in _fresh(facts, at_least=3):
        total = _growth(stack)
        factor = total ** (1 / (len(stack) - 1))
        if factor > UNIT_BRANCHES:
            words = {"blocks": len(stack), "total": number(total, digits=2)}
            yield _found("stream growing", stack, factor, expected=1.0, threshold=UNIT_BRANCHES, words=words)


def depth_scaling_absent(facts: Facts) -> Iterator[Finding]:
    """A deep stream that outgrows Xiong's bound, with output matrices that are not scaled down."""
    in_forward = facts.traits.get("residual_scale") not in (None, 1) or facts.traits.get("branch_gain") is not None
    if in_forward or facts.traits.get("norm") == "sub":  # Sub-LN bounds the updates, not the stream
        return
    for stack in _fresh(facts, at_least=DEEP):
        L = len(stack)
        threshold = (1 + 3 / 2 * L) / (1 + 3 / 2)
        gains = [_gain(layer, "output") / _gain(layer, "value") for layer in stack.layers if layer.kind == "self"]
        unscaled = bool(gains) and all(gain >= (2 * L) ** -0.25 for gain in gains)
        if _growth(stack) > threshold and unscaled:
            words = {"blocks": L, "factor": (2 * L) ** -0.5}
            yield _found(
                "depth scaling absent", stack, _growth(stack), expected=SCALED_GROWTH, threshold=threshold, words=words
            )


DEPTH_RULES = (rank_collapsing, stream_growing, depth_scaling_absent)


def _fresh(facts: Facts, *, at_least: int) -> Iterator[Stack]:
    for stack in facts.stacks:
        finite = all(math.isfinite(block["rms"]) and block["rms"] > 0 for block in stack.blocks)
        if len(stack) >= at_least and stack.is_drawn and finite:
            yield stack


def _growth(stack: Stack) -> float:
    """Variance of the stream after the last block over that after the first."""
    return float((stack.blocks[-1]["rms"] / stack.blocks[0]["rms"]) ** 2)


def _apart_before(layer: Layer) -> float:
    """At most 1 − token cosine before a layer: what differs inside a row of its logits, of all that is in them."""
    largest = max((row["logit_max"] for row in layer.rows), default=0.0)
    return min((layer.mean("logit_std") / largest) ** 2, 1.0) if largest > 0 else 0.0


def _gain(layer: Layer, role: str) -> float:
    """σ·√fan_in: the factor by which a random matrix multiplies the scale of a vector."""
    return layer.std(role) * math.sqrt(layer.fan_in(role)) or math.nan


def _found(
    fault: str, stack: Stack, value: float, *, expected: float, threshold: float, words: Mapping[str, Any]
) -> Finding:
    last = stack.layers[-1]
    names = tuple(layer.name for layer in stack.layers)
    return found(
        fault, last.name, value, expected=expected, threshold=threshold, order=last.order, layers=names, words=words
    )
