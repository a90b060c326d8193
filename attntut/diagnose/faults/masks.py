"""Faults of who may look at whom: masks that hide too much or nothing, and a softmax over the wrong axis."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attntut.diagnose.faults.facts import Facts, Layer
from attntut.diagnose.faults.fault import DEPTH, ERROR, LOGITS, STEPS, Hit, Remedy, fault, hit
from attntut.diagnose.faults.finite import rows_that_see_nothing

MASKS = STEPS + "#masks-who-may-look-at-whom"
NOTHING = "a softmax over nothing is 0/0: NaN in torch's own code, zeros in a careful kernel"


@fault(
    "mask hides everything",
    ERROR,
    quantity="queries that may see no key",
    source=NOTHING,
    text="Is the mask inverted? In F.scaled_dot_product_attention True means *may be seen*; in the key_padding_mask "
    "and attn_mask of nn.MultiheadAttention it means *hidden*. A mask that is added holds 0 and −∞.",
    chapter=MASKS,
    explains=("not finite", "mask hides some rows", "attention uniform", "no gradient", *LOGITS),
    spreads=True,
)
def mask_hides_everything(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """No query of a layer may see a key."""
    if layer.is_fully_masked:
        yield hit(layer.total("masked_rows"), expected=0)


@fault(
    "mask hides some rows",
    ERROR,
    quantity="queries that may see no key",
    source=NOTHING,
    text="What follows is NaN, because queries of this layer see no key: {rows}.",
    remedies=("Let every query see a key (itself, say), or use a kernel that gives such rows 0.",),
    chapter=MASKS,
    explains=("not finite", "attention uniform", *LOGITS),
    spreads=True,
)
def mask_hides_some_rows(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """Some queries of a layer may see no key, and NaN follows; where a kernel gives zeros, nothing is wrong."""
    ill = facts.first_not_finite
    if layer.is_partly_masked and ill is not None and layer.order <= ill.order:
        yield hit(layer.total("masked_rows"), expected=0, rows=rows_that_see_nothing(layer))


@fault(
    "mask hides nothing",
    ERROR,
    quantity="value that the mask writes",
    source="e^fill is the weight that is left to a masked key, beside 1 for a logit of 0; only −∞, or what is far "
    "below every logit, leaves none",
    text="Masked keys keep about the weight of a key with this logit (where it is added: e to this of their own "
    "weight), so padding or the future is looked at.",
    remedies=(
        Remedy(
            "Fill with −∞ (float('-inf')) or torch.finfo(dtype).min; −1e-9 is a slip for −1e9. A mask of 0 and 1 is "
            "neither added nor multiplied: masked_fill(mask == 0, float('-inf')).",
            lambda facts, layer: not facts.traits.get("soft_cap"),
        ),
        Remedy(
            "A soft-cap follows, and it makes of any fill the negative cap: mask after it.",
            lambda facts, layer: bool(facts.traits.get("soft_cap")),
        ),
    ),
    chapter=MASKS,
    explains=("soft-cap reached",),
)
def mask_hides_nothing(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """A mask writes a finite value, or has two values of which one is 0, and is added or (0 and 1) multiplied; and the
    keys that are to be hidden stay visible (whether they do is measured)."""
    filled = [row for row in layer.rows if row.get("visible_fill") is not None]
    if filled:
        yield hit(max(row["visible_fill"] for row in filled), expected=-math.inf, heads=layer.heads(filled))


@fault(
    "softmax over the wrong axis",
    ERROR,
    quantity="heads whose softmax runs over the {axis}",
    source="an output is a weighted mean of the values only if the weights of one query add up to 1 over the keys",
    text="The softmax runs over the {axis} instead of the keys: {meaning}",
    remedies=(
        "The weights of a query must add up to 1 over the tokens whose values are summed: softmax(dim=-1) for logits "
        "(…, queries, keys).",
    ),
    chapter=STEPS + "#forward-one-key-takes-all",
    explains=("attention uniform", "mask hides everything", "no gradient", *DEPTH, *LOGITS),
)
def wrong_axis(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """The softmax normalizes over queries, heads, sequences or parts of a token instead of keys (it is measured)."""
    meaning = {
        "queries": "each key hands out a weight of 1, and a query may get none or many.",
        "heads": "the heads compete for each pair of tokens, and a query's weights add up to anything.",
        "batch": "the sequences compete with each other, and what one gets depends on the others.",
        "features": "a token attends among its own heads and hears no other (is transpose(1, 2) missing?).",
    }.get(axis := layer.rows[0].get("axis", "keys"))
    if meaning:
        yield hit(len(layer.rows), expected=0, axis=axis, meaning=meaning)


@fault(
    "softmax applied twice",
    ERROR,
    quantity="heads whose weights go through a second softmax",
    source="what the second softmax receives lies between 0 and 1, so that no weight is more than e times another",
    text="Whatever the logits are, every query takes nearly the plain mean of the values.",
    remedies=("Take one of the two away: some functions that give attention weights have had theirs already.",),
    chapter=STEPS + "#forward-one-key-takes-all",
    explains=("attention uniform", "no gradient", *DEPTH, *LOGITS),
)
def softmax_twice(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """The weights that a softmax gives are the logits of a second one (it is seen, not measured)."""
    if layer.rows[0].get("axis") == "weights":
        yield hit(len(layer.rows), expected=0)
