"""Faults of a stack of blocks: what becomes of the stream with depth."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from typing import Annotated, Any

from attntut.anatomy.depth import BLOCKS, FACTORS, STANDARD_ERRORS, USUAL, Law
from attntut.diagnose.faults.facts import Facts, Layer, Stack, relative_error
from attntut.diagnose.faults.fault import DEPTHS, LOGITS, NOTE, SIGNAL, VARIANCE, WARNING, Hit, Remedy, fault, hit
from attntut.evidence import number

TOKENS_APART = 1 / 2 * (1 - 1 / (2 * math.pi))
FLOOR = 1e-6  # tokens closer than this differ by rounding (float32)
UnitBranches = Annotated[float, "two branches of unit gain double the variance at most twice"]
TWICE_TWICE = 4.0


def _factors(stack: Stack, facts: Facts) -> list[float]:
    """Variance of each block's output over that of the one before; none where nothing is to be judged.

    Small tokens may grow until they are as large as what normalized branches add: unit variance twice a block.
    """
    normed = facts.traits.get("norm") != "none" and max(stack.variance) <= 1 + 2 * len(stack)
    if len(stack) < 3 or not stack.is_drawn or normed:
        return []
    return [after / before for before, after in zip(stack.variance, stack.variance[1:], strict=False)]


def _jumps(factors: list[float], limit: float) -> list[int]:
    """The few blocks (a quarter at most) whose factors are all more than the limit times that of any other."""
    falling = sorted(factors, reverse=True)
    for few in range(1, max(2, len(factors) // 4 + 1)):
        if falling[few - 1] > limit * max(1.0, *falling[few:]):
            return [i for i, factor in enumerate(factors) if factor >= falling[few - 1]]
    return []


_GROWTH: dict[str, Any] = dict(
    chapter=VARIANCE + "#when-he-is-wrong",
    explains=("depth scaling absent", "rank collapsing", *LOGITS),
    over="stacks",
)


@fault(
    "stream growing",
    WARNING,
    quantity="factor of the stream's variance a block",
    source="two branches of unit gain double the variance at most twice; a pre-norm stream grows by L/(L − 1) at "
    "depth L, a post-norm one not at all",
    text="Over {blocks} blocks the variance has grown {total}-fold, and gradients grow with it.",
    remedies=(
        Remedy(
            'Put a norm before each branch, take a scheme that does without (initialize_(model, "t_fixup")), or scale '
            "the branches by 1/√L.",
            lambda facts, stack: facts.traits.get("norm") == "none",
        ),
        Remedy(
            "Put a norm before each branch, if there is none, or scale the branches by 1/√L.",
            lambda facts, stack: facts.traits.get("norm") is None,
        ),
        Remedy("Scale the branches by 1/√L.", lambda facts, stack: facts.traits.get("norm") not in (None, "none")),
    ),
    **_GROWTH,
)
def stream_growing(stack: Stack, facts: Facts, *, variance_a_block: UnitBranches = TWICE_TWICE) -> Iterator[Hit]:
    """Fresh, 3 blocks or more: on average after the first, the variance grows more than 4-fold a block, and not in one
    block alone. With norms, or where they are not known, it must also exceed 1 + 2L somewhere, because a normalized
    stream may start small and grow until it is as large as what the branches add."""
    factors = _factors(stack, facts)
    rate = math.prod(factors) ** (1 / max(1, len(factors)))
    if rate > variance_a_block and not _jumps(factors, variance_a_block):
        total = number(math.prod(factors), digits=2)
        yield hit(rate, expected=1.0, threshold=variance_a_block, blocks=len(stack), total=total)


@fault(
    "stream jumping",
    WARNING,
    quantity="factor of the stream's variance in one block",
    source="two branches of unit gain double the variance at most twice; the blocks around it do no more",
    text="{block} multiplies the variance, the others by {usual} (median): what was written before is lost in it.",
    remedies=("Look at its W_v, W_o and feed-forward matrices, and at the gains of its norms.",),
    spreads=True,
    **_GROWTH,
)
def stream_jumping(stack: Stack, facts: Facts, *, variance_in_a_block: UnitBranches = TWICE_TWICE) -> Iterator[Hit]:
    """Fresh, 3 blocks or more: one block after the first (or a few, a quarter at most) multiplies the variance by more
    than 4, and by more than 4 times what any other does. With norms, or where they are not known, the variance must
    also exceed 1 + 2L somewhere."""
    factors = _factors(stack, facts)
    for jump in _jumps(factors, variance_in_a_block) if factors else ():
        block = stack.blocks[jump + 1]["layer"]
        inside = next((layer for layer in stack.layers if layer.block == block), stack.layers[-1])
        usual = median(factors)
        words: Hit = dict(block=block, usual=number(usual, digits=2))
        yield hit(factors[jump], expected=usual, threshold=variance_in_a_block, at=block, order=inside.order, **words)


def _allows_ds_init(facts: Facts, stack: Stack) -> bool:
    return facts.traits.get("norm") == "post" and facts.traits.get("residual") is not False


_COLLAPSE: dict[str, Any] = dict(
    remedies=(
        Remedy(
            'initialize_(model, "ds_init") divides the matrices of block l by √l: at 18 and 24 post-norm layers '
            "1 − cosine stays at 0.65 or more, and they learn.",
            _allows_ds_init,
        ),
        Remedy(
            "Scale the branches by 1/√L, or lower the gain of W_v and W_o.",
            lambda facts, stack: not _allows_ds_init(facts, stack),
        ),
    ),
    chapter=SIGNAL,
    over="stacks",
)


@fault(
    "rank collapsing",
    WARNING,
    quantity="factor of (1 − token cosine) a block",
    source="attention with a skip and unit gain halves it, a ReLU branch takes at most 1/(2π) more: "
    "½(1 − 1/(2π)) = 0.42; without skips it falls faster with every block",
    text="After {blocks} blocks 1 − cosine is {last}: the tokens point the same way, and the gradient of W_q and W_k "
    "is as small. Are the skip connections there?",
    explains=("rank collapsing (slowly)", "attention uniform (tokens alike)", "gradients vanishing"),
    **_COLLAPSE,
)
def rank_collapsing(
    stack: Stack,
    facts: Facts,
    *,
    left_a_block: Annotated[float, "½(1 − 1/(2π)), what skip connections and unit branches leave"] = TOKENS_APART,
    alike: Annotated[float, "1 − cosine below which ∇W_q is thousandths of ∇W_v (0.0017 was measured there)"] = 0.01,
) -> Iterator[Hit]:
    r"""Fresh: 1 − token cosine falls below 0.01, and by more than a factor
    :math:`\frac12 (1 - \frac{1}{2\pi}) = 0.42` a block. With a skip, attention halves 1 − cosine (Noci et al.
    2022), and a ReLU branch, which alone keeps :math:`1 - 1/\pi` of it, keeps :math:`1 - 1/(2\pi)`."""
    if len(stack) < 2 or not stack.is_drawn:
        return
    apart = stack.apart
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
    "rank collapsing (slowly)",
    WARNING,
    quantity="1 − token cosine after the last block",
    source="measured: of 14 post-norm stacks of 4 to 24 layers (Xavier) that learn to reverse, those whose last layer "
    "has a ∇W_q below 0.001 of ∇W_v stayed at ln 20 for 150 to 200 steps; with 0.003 to 0.009 they came to 2.97 to "
    "2.74, with 0.03 or more to 0.15 or less",
    text="After {blocks} blocks 1 − cosine has fallen from {first} to {last}: the tokens point the same way, and the "
    "gradient of W_q and W_k is {ratio} of that of W_v. A norm after each addition keeps the scale, but not what sets "
    "tokens apart.",
    explains=("attention uniform (tokens alike)", "gradients vanishing"),
    **_COLLAPSE,
)
def rank_collapsing_slowly(
    stack: Stack,
    facts: Facts,
    *,
    alike: Annotated[float, "as above"] = 0.01,
    gradient_ratio: Annotated[float, "see the source; between 0.001 and 0.01 they learned slowly"] = 0.001,
) -> Iterator[Hit]:
    """Fresh or trained: 1 − token cosine falls from more than ten times 0.01 after the first block to less than 0.01
    after the last, and the gradient of :math:`W_q` or :math:`W_k` there is less than 0.001 of that of :math:`W_v`.
    3 blocks or more. Where gradients were not measured, nothing is said, because a trained pre-norm model may have
    tokens that are nearly parallel and still learn."""
    last = stack.layers[-1].gradients or {}
    ratios = [last[key] for key in ("ratio_query", "ratio_key") if last.get(key) is not None]
    first, end = max(stack.apart[0], FLOOR), max(stack.apart[-1], FLOOR)
    if len(stack) > 2 and first > 10 * alike and end < alike and ratios and min(ratios) < gradient_ratio:
        words: Hit = dict(
            first=number(first, digits=2), last=number(end, digits=2), ratio=number(min(ratios), digits=2)
        )
        yield hit(end, expected=first, threshold=alike, blocks=len(stack), **words)


@fault(
    "depth scaling absent",
    NOTE,
    quantity="growth of the stream's variance after the first block",
    source="Xiong et al. (2020): a pre-norm stream has variance at most 1 + 3l/2 after l blocks, here l = 1 and "
    "{blocks}; with 1/√(2L), 1.54 to 1.59 was measured at L = 4 to 24",
    text="Of the variance after {blocks} blocks, the last one brought {last}, and the input is {left} at most.",
    remedies=(
        Remedy(
            "Scale W_o and W_2 by 1/√(2L) = {factor:.2f}, as in GPT-2.",
            lambda facts, stack: facts.traits.get("norm") in ("pre", "none"),
        ),
        Remedy(
            "Scale what the norms after the branches give by 1/√(2L) = {factor:.2f}: a factor on W_o and W_2 they "
            "divide out.",
            lambda facts, stack: facts.traits.get("norm") == "sandwich",
        ),
        Remedy(
            "Scale the branches by 1/√(2L) = {factor:.2f}: W_o and W_2, or, where a norm follows each branch and "
            "would divide that out, what it gives.",
            lambda facts, stack: facts.traits.get("norm") not in ("pre", "none", "sandwich"),
        ),
        Remedy(
            'initialize_(model, "gpt2", std={std:.3g}) draws all matrices so. The std is 1/√d_model; the usual '
            "0.02 is too small for a narrow model.",
            lambda facts, stack: facts.traits.get("norm") == "pre",
        ),
    ),
    chapter=DEPTHS,
    over="stacks",
)
def depth_scaling_absent(
    stack: Stack, facts: Facts, *, blocks_at_least: Annotated[int, "from here on 1/√(2L) is ¼ or less"] = 8
) -> Iterator[Hit]:
    r"""Fresh, L ≥ 8, :math:`W_o` not scaled down (gain over that of :math:`W_v` at least :math:`(2L)^{-1/4}`, half-way
    on a log scale; beneath a norm after each branch, whatever it is), and :math:`v_L / v_1 > (1 + \frac32 L)/(1 +
    \frac32)`, the upper bound of Xiong et al. (2020); and the branches are not scaled in the forward pass."""
    L = len(stack)
    if _is_scaled_in_forward(facts) or not stack.is_drawn or blocks_at_least > L:
        return
    growth, bound = stack.variance[-1] / stack.variance[0], (1 + 3 / 2 * L) / (1 + 3 / 2)
    gains = [layer.gain("output") / layer.gain("value") for layer in stack.layers if layer.kind == "self"]
    is_unscaled = facts.traits.get("norm") == "sandwich" or all(gain >= (2 * L) ** -0.25 for gain in gains)
    if growth > bound and gains and is_unscaled:
        last, left = (number(share, digits=2) for share in (1 - stack.variance[-2] / stack.variance[-1], 1 / growth))
        words: Hit = dict(factor=(2 * L) ** -0.5, std=stack.layers[0].of("value", "fan_in") ** -0.5)
        yield hit(growth, expected=1.6, threshold=bound, blocks=L, last=last, left=left, **words)


@fault(
    "depth scaling misplaced",
    WARNING,
    quantity="std of {where}, over that of the unscaled matrices",
    source="Radford et al. (2019) scale by 1/√(2L) what is added to the stream by 2L branches: W_o and the last matrix "
    "of the feed-forward network; scaled there, a branch's variance is 1/(2L), elsewhere it is not, or is 1/(4L²)",
    text="With depth are scaled: {found}",
    remedies=("Scale W_o and the feed-forward network's last matrix (W_2; down_proj of SwiGLU), and no other.",),
    chapter=DEPTHS + "#does-the-factor-on-the-wrong-matrix-cost-anything",
    explains=("depth scaling absent",),
    over="stacks",
)
def depth_scaling_misplaced(
    stack: Stack,
    facts: Facts,
    *,
    blocks_at_least: Annotated[int, "below, 1/√(2L) > 0.35 is a ratio that other laws have too"] = BLOCKS,
    standard_errors: Annotated[float, "one draw in 16 000 is farther off"] = STANDARD_ERRORS,
) -> Iterator[Hit]:
    r"""Fresh, L ≥ 4: the std of matrices that feed a branch (:math:`W_1`, SwiGLU's gate and up) is
    :math:`1/\sqrt{2L}` (or :math:`1/\sqrt{2l}` in block l) of what is usual, or it is so at the end of one branch
    (attention, feed-forward) and not of the other. What is usual is what :math:`W_q` has, under the law (one std for
    all, Xavier, 1/fan_in) by which all others have it."""
    if len(stack) < blocks_at_least or not stack.is_drawn or _is_scaled_in_forward(facts):
        return
    L = len(stack)
    laws = [_scaled(stack, usual, factor, standard_errors) for factor in FACTORS for usual in USUAL]
    known = [scaled for scaled in laws if scaled is not None]
    by_scheme = facts.explained([record for block in stack.weights for record in block])
    if not known or set() in known or set(ENDS) in known or by_scheme:
        return
    inputs, missing = sorted(known[0] - set(ENDS)), [role for role in ENDS if role not in known[0]]
    if inputs and missing:
        said = f"{_words(inputs)}, which does not write into the stream, but not {_words(missing)}, which does."
    elif inputs:
        said = f"{_words(inputs)} too: it multiplies into the branch a second time."
    else:
        said = f"{_words(sorted(known[0]))}, but not {_words(missing)}: half of the branches keep their size."
    factor = (2 * L) ** -0.5
    value, usual = (factor, 1.0) if inputs else (1.0, factor)
    severity = "" if inputs and missing else NOTE
    yield hit(value, expected=usual, severity=severity, where=_words(inputs or missing), found=said)


ENDS = ("output", "feed_forward_out")
"""Roles that write into the stream."""


def _scaled(stack: Stack, usual: Law, factor: Law, standard_errors: float) -> set[str] | None:
    """The matrices whose std is the factor times the usual in every block; None if the others do not fit it."""
    found: dict[str, set[bool]] = {}
    for number_, records in enumerate(stack.weights, start=1):
        several = [r["role"] for r in records].count("feed_forward_in") > 1
        query = next((record for record in records if record["role"] == "query"), None)
        if query is None or not query["std"]:
            return None
        for record in records:
            if record["role"] not in ("query", "key", "value", "feed_forward_in", *ENDS):
                continue
            expected, theirs = (usual(each["fan_in"], each["fan_out"]) for each in (record, query))
            ratio = record["std"] / expected / (query["std"] / theirs)
            error = standard_errors * math.hypot(relative_error(record), relative_error(query))
            usual_, scaled = (abs(ratio / each - 1) <= error for each in (1.0, factor(number_, len(stack))))
            if not (usual_ or scaled):
                return None
            own = record.get("parameter", "").removesuffix(".weight").rpartition(".")[2]
            label = own if several and record["role"] == "feed_forward_in" else record["role"]
            found.setdefault(label, set()).add(scaled)
    if not {"query", *ENDS} <= found.keys() or any(len(each) > 1 for each in found.values()):
        return None
    scaled = {label for label, each in found.items() if each == {True}}
    return None if scaled & {"query", "key", "value"} else scaled


def _words(roles: list[str]) -> str:
    names = dict(output="W_o", feed_forward_in="W_1", feed_forward_out="W_2")
    return " and ".join(names.get(role, role) for role in roles)


def _is_scaled_in_forward(facts: Facts) -> bool:
    in_forward = facts.traits.get("residual_scale") not in (None, 1) or facts.traits.get("branch_gain") is not None
    return in_forward or facts.traits.get("norm") == "sub"  # Sub-LN bounds the updates, not the stream


def _apart_before(layer: Layer) -> float:
    """At most 1 − token cosine before a layer: what differs inside a row of its logits, of all that is in them.

    0 (unknown) where its values are zero or, but for rounding, equal: then it is not tokens that set logits apart.
    """
    if not layer.mean("rank_residual") > FLOOR:
        return 0.0
    largest = max((row["logit_max"] for row in layer.rows), default=0.0)
    return min((layer.mean("logit_std") / largest) ** 2, 1.0) if largest > 0 else 0.0
