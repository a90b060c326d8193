"""Faults of a stack of blocks: what becomes of the stream with depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from attntut.diagnose.faults.facts import Facts, Layer, Stack
from attntut.diagnose.faults.fault import NOTE, VARIANCE, WARNING, Hit, fault, hit
from attntut.evidence import number

TOKENS_APART = 1 / 2 * (1 - 1 / (2 * math.pi))
FLOOR = 1e-6  # tokens closer than this differ by rounding (float32)


@fault(
    "stream growing",
    WARNING,
    quantity="factor of the stream's variance a block",
    source="two branches of unit gain double the variance at most twice; a pre-norm stream grows by L/(L − 1) at "
    "depth L, a post-norm one not at all",
    text="Over {blocks} blocks the variance has grown {total}-fold, and gradients grow with it.",
    remedies=(
        'Put a norm before each branch, take a scheme that does without (initialize_(model, "t_fixup")), or scale the '
        "branches by 1/√L.",
    ),
    chapter=VARIANCE + "#when-he-is-wrong",
    explains=(
        *("depth scaling absent", "rank collapsing", "logits too large", "logits too large (trained)"),
        *("entropy collapsed", "gradients vanishing"),
    ),
    over="stacks",
)
def stream_growing(
    stack: Stack,
    facts: Facts,
    *,
    variance_a_block: Annotated[float, "two branches of unit gain double it at most twice"] = 4.0,
) -> Iterator[Hit]:
    """Fresh: variance × more than 4 a block after the first."""
    if len(stack) < 3 or not stack.is_drawn:
        return
    factor = stack.growth ** (1 / (len(stack) - 1))
    if factor > variance_a_block:
        total = number(stack.growth, digits=2)
        yield hit(factor, expected=1.0, threshold=variance_a_block, blocks=len(stack), total=total)


@fault(
    "rank collapsing",
    WARNING,
    quantity="factor of (1 − token cosine) a block",
    source="attention with a skip and unit gain halves it, a ReLU branch takes at most 1/(2π) more: "
    "½(1 − 1/(2π)) = 0.42; without skips it falls faster with every block",
    text="After {blocks} blocks 1 − cosine is {last}: the tokens point the same way, and the gradient of W_q and W_k "
    "is as small. Are the skip connections there?",
    remedies=("Scale the branches by 1/√L, or lower the gain of W_v and W_o.",),
    chapter=VARIANCE,
    explains=("attention uniform (tokens alike)", "gradients vanishing"),
    over="stacks",
)
def rank_collapsing(
    stack: Stack,
    facts: Facts,
    *,
    left_a_block: Annotated[float, "½(1 − 1/(2π)), what skip connections and unit branches leave"] = TOKENS_APART,
    alike: Annotated[float, "1 − cosine below which ∇W_q is thousandths of ∇W_v (0.0017 was measured there)"] = 0.01,
) -> Iterator[Hit]:
    r"""Fresh: 1 − token cosine falls below 0.01, and by more than a factor
    :math:`\frac12 (1 - \frac{1}{2\pi}) = 0.42` a block: attention doubles the common mode (:math:`m \to 2m`, Noci et
    al. 2022), and a ReLU branch keeps at least :math:`1 - 1/\pi` of what sets tokens apart."""
    if len(stack) < 2 or not stack.is_drawn:
        return
    apart = [1 - block["token_cosine"] for block in stack.blocks]
    if apart[0] <= 10 * FLOOR:  # it happened in the first block, if it was not so before
        apart = [_apart_before(stack.layers[0]), *apart]
    end = next((i for i, each in enumerate(apart) if each <= FLOOR), len(apart) - 1)
    if end == 0 or not apart[end] < alike:
        return
    rate = (max(apart[end], FLOOR) / apart[0]) ** (1 / end)
    if rate < left_a_block:
        last = number(max(apart[-1], FLOOR), digits=2)
        yield hit(rate, expected=0.5, threshold=left_a_block, blocks=len(stack), last=last)


@fault(
    "depth scaling absent",
    NOTE,
    quantity="growth of the stream's variance after the first block",
    source="Xiong et al. (2020): a pre-norm stream has variance at most 1 + 3l/2 after l blocks, here l = 1 and "
    "{blocks}; with 1/√(2L), 1.54 to 1.59 was measured at L = 4 to 24",
    text="The last of {blocks} blocks changes the stream by little, and the input is lost in it.",
    remedies=(
        'Scale W_o and W_2 by 1/√(2L) = {factor:.2f}, as in GPT-2: initialize_(model, "gpt2") for all, or scale these '
        "two.",
    ),
    chapter=VARIANCE,
    over="stacks",
)
def depth_scaling_absent(
    stack: Stack, facts: Facts, *, blocks_at_least: Annotated[int, "from here on 1/√(2L) is ¼ or less"] = 8
) -> Iterator[Hit]:
    r"""Fresh, L ≥ 8, :math:`W_o` not scaled down (gain over that of :math:`W_v` at least :math:`(2L)^{-1/4}`, half-way
    on a log scale), and :math:`v_L / v_1 > (1 + \frac32 L)/(1 + \frac32)`, the upper bound of Xiong et al. (2020); and
    the branches are not scaled in the forward pass."""
    in_forward = facts.traits.get("residual_scale") not in (None, 1) or facts.traits.get("branch_gain") is not None
    if in_forward or facts.traits.get("norm") == "sub":  # Sub-LN bounds the updates, not the stream
        return
    if len(stack) < blocks_at_least or not stack.is_drawn:
        return
    L = len(stack)
    bound = (1 + 3 / 2 * L) / (1 + 3 / 2)
    gains = [layer.gain("output") / layer.gain("value") for layer in stack.layers if layer.kind == "self"]
    if stack.growth > bound and gains and all(gain >= (2 * L) ** -0.25 for gain in gains):
        yield hit(stack.growth, expected=1.6, threshold=bound, blocks=L, factor=(2 * L) ** -0.5)


def _apart_before(layer: Layer) -> float:
    """At most 1 − token cosine before a layer: what differs inside a row of its logits, of all that is in them."""
    largest = max((row["logit_max"] for row in layer.rows), default=0.0)
    return min((layer.mean("logit_std") / largest) ** 2, 1.0) if largest > 0 else 0.0
