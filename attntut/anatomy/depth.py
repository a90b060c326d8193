"""Whether matrices were drawn smaller with depth: the law of the sizes, read off the weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from torch import Tensor

from attntut.anatomy.view import Entry, ModelView
from attntut.anatomy.weight import BRANCH_OUT

Law = Callable[[int, int], float]
USUAL: tuple[Law, ...] = (
    lambda fan_in, fan_out: 1.0,
    lambda fan_in, fan_out: (fan_in + fan_out) ** -0.5,
    lambda fan_in, fan_out: fan_in**-0.5,
)
"""What the std of unscaled matrices is proportional to."""
FACTORS: tuple[Law, ...] = (
    lambda block, n_blocks: (2 * n_blocks) ** -0.5,
    lambda block, n_blocks: (2 * block) ** -0.5,
)
"""What depth-scaled matrices are multiplied with."""
BLOCKS = 4  # below, 1/√(2L) > 0.35 is a ratio that other laws have too
STANDARD_ERRORS = 4.0  # one draw in 16 000 is farther off
SIDE = 256  # of larger matrices, only so many rows and columns are counted, or half as many


def is_depth_scaled(view: ModelView) -> bool:
    """Whether the last matrices of all branches are by 1/√(2L), or 1/√(2l) in block l, smaller than the queries'.

    As drawn, within sampling error, in a stack of four or more blocks, and under one law for all others: training blurs
    it, and matrices of a few entries do not tell, so that False stands for what is not known, too.

    Example:
        >>> from attntut import Transformer, TransformerConfig, initialize_
        >>> from attntut.anatomy import look
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4, n_layers=4), seed=0)
        >>> is_depth_scaled(look(model)), is_depth_scaled(look(initialize_(model, "gpt2")))
        (False, True)
    """

    @functools.cache
    def some(entry: Entry) -> Tensor:
        return entry.view[:: math.ceil(entry.view.shape[0] / SIDE), :SIDE]

    @functools.cache
    def size(entry: Entry) -> float:
        return (some(entry).float().norm() / math.sqrt(some(entry).numel())).item()

    def is_scaled(end: Entry, query: Entry, usual: Law, factor: float) -> bool:
        unscaled = usual(end.weight.fan_in, end.weight.fan_out) / usual(query.weight.fan_in, query.weight.fan_out)
        error = STANDARD_ERRORS * math.hypot(*((2 * some(each).numel()) ** -0.5 for each in (end, query)))
        ratio = size(end) / (unscaled * size(query)) if size(query) else math.nan
        return abs(ratio - factor) <= error * factor and abs(ratio - 1) > error  # a few entries tell neither

    queries = {(each.weight.stack, each.weight.layer): each for each in view.by_role("query")}
    ends = [each for each in view.by_role(*BRANCH_OUT) if each.weight.n_layers >= BLOCKS]
    pairs = [(each, queries.get((each.weight.stack, each.weight.layer))) for each in ends]
    return bool(pairs) and any(
        all(
            query is not None and is_scaled(end, query, usual, factor(end.weight.layer, end.weight.n_layers))
            for end, query in pairs
        )
        for factor in FACTORS
        for usual in USUAL
    )
