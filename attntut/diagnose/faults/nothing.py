"""Faults of numbers that are none: NaN, infinity, and rows that may see nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attntut.diagnose.faults.facts import Facts, Layer
from attntut.diagnose.faults.fault import ERROR, STEPS, Hit, fault, hit


@fault(
    "not finite",
    ERROR,
    quantity="NaN or infinite numbers",
    source="a softmax of NaN or +∞ is NaN, and so is all that follows",
    text="{where}",
    remedies=(
        "Look for an overflow in half precision, a division by zero, or a step that was too large; "
        "torch.autograd.detect_anomaly names the operation in the backward pass.",
    ),
    chapter=STEPS + "#forward-one-key-takes-all",
)
def not_finite(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """NaN or infinity in a layer's logits or weights, or in what its block hands on; the first place is named."""
    if layer is not facts.first_not_finite:
        return
    count, roles, _ = facts.not_finite(layer)
    if count or roles:
        where = (
            f"It is in the weights: {', '.join(roles)}." if roles else "It comes in with the tokens, or is made here."
        )
        heads = layer.heads([row for row in layer.rows if row["non_finite"]])
        yield hit(count or len(roles), expected=0, heads=heads, where=where)
    else:
        yield hit(1, expected=0, at=layer.block, where="It is in what this block hands on.")


_LOGITS = ("logits too large", "logits too large (trained)", "entropy collapsed", "gradients vanishing")
_UNIFORM = ("attention uniform (zero weights)", "attention uniform (tokens alike)")


@fault(
    "mask hides everything",
    ERROR,
    quantity="queries that may see no key",
    source="a softmax over nothing is 0/0: NaN in torch's own code, zeros in a careful kernel",
    text="Is the mask inverted? In F.scaled_dot_product_attention True means *may be seen*; in the key_padding_mask "
    "and attn_mask of nn.MultiheadAttention it means *hidden*. A mask that is added holds 0 and −∞.",
    chapter=STEPS + "#masks-who-may-look-at-whom",
    explains=("not finite", *_UNIFORM, *_LOGITS),
    spreads=True,
)
def mask_hides_everything(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """No query of a layer may see a key; or some may not, and NaN follows."""
    masked, ill = layer.total("masked_rows"), facts.first_not_finite
    nobody = all(math.isnan(row["entropy"]) for row in layer.rows)
    if masked and (nobody or (ill is not None and layer.order <= ill.order)):
        yield hit(masked, expected=0)
