"""Faults of numbers that are none: NaN and infinity, on the way forward and on the way back."""

from __future__ import annotations

import math
from collections.abc import Iterator

from attntut.diagnose.faults.facts import Facts, Layer
from attntut.diagnose.faults.fault import ERROR, LOGITS, STEPS, Hit, fault, hit

ROLES = ("query", "key", "value", "output")


@fault(
    "not finite",
    ERROR,
    quantity="{what} with NaN or infinity",
    source="a softmax of NaN or +∞ is NaN, and so is all that follows",
    text="{where}",
    remedies=(
        "Look for an overflow in half precision, a division by zero, or a step that was too large; "
        "torch.autograd.detect_anomaly names the operation in the backward pass.",
    ),
    chapter=STEPS + "#forward-one-key-takes-all",
    explains=LOGITS,
)
def not_finite(layer: Layer, facts: Facts) -> Iterator[Hit]:
    """NaN or infinity in a layer's logits or weights, or in what its block hands on; the first place is named."""
    if layer is not facts.first_not_finite:
        return
    count, roles, _ = facts.not_finite(layer)
    if count or roles:
        where = f"It is in the weights: {', '.join(roles)}."
        if not roles:
            unread = ", ".join(role for role in ROLES[:3] if role not in layer.weights)
            where = "It comes in with the tokens, or is made here."
            where += f" Or it is in weights that could not be read: {unread}." if unread else ""
        heads = layer.heads([row for row in layer.rows if row["non_finite"]])
        yield hit(count or len(roles), expected=0, heads=heads, where=where, what="logits" if count else "matrices")
    else:
        what, whose = ("blocks", "this block hands") if layer.block else ("layers", "its heads hand")
        yield hit(1, expected=0, at=layer.block or layer.name, where=f"It is in what {whose} on.", what=what)


def rows_that_see_nothing(layer: Layer) -> str:
    """The queries of a layer that may see no key, as far as they are recorded: "(sequence, query) (1, 0), (1, 3)"."""
    pairs = sorted({tuple(pair) for row in layer.rows for pair in row.get("masked_at") or ()})
    more = ", …" if len(pairs) >= 8 else ""  # no more are recorded
    return f"(sequence, query) {', '.join(map(str, pairs))}{more}" if pairs else "some (which was not recorded)"


def _broken_roles(layer: Layer, facts: Facts) -> list[str]:
    """The matrices whose gradient is not finite; where no matrix is known, what the block hands on."""
    gradients = layer.gradients or {"what its block hands on": (facts.block(layer) or {}).get("gradient_rms")}
    measured = {k: v for k, v in gradients.items() if isinstance(v, float) and not k.startswith("ratio")}
    return [name for name, gradient in measured.items() if not math.isfinite(gradient)]


def _broken_gradients(facts: Facts, *, masked: bool) -> Iterator[Hit]:
    """Gradients that are NaN or infinite though no forward pass before was, with masked rows or without.

    If what all blocks hand on is finite, NaN in the gradients of a layer after the last masked one comes from the loss.
    """
    broken = {layer: roles for layer in facts.layers if (roles := _broken_roles(layer, facts))}
    if not broken or any(layer.is_fully_masked for layer in facts.layers):
        return
    blinds, ill = [layer for layer in facts.layers if layer.is_partly_masked], facts.first_not_finite
    if ill is None and blinds and all(layer.block for layer in facts.layers):
        blinds *= list(broken)[-1].order <= blinds[-1].order
    blind = next(iter(blinds), None)
    if (ill is not None and (blind is None or ill.order < blind.order)) or masked != (blind is not None):
        return
    start = blind or list(broken)[-1]  # a backward pass comes from the end
    names, count = tuple(layer.name for layer in broken), sum(map(len, broken.values()))
    ill_roles, rows = ", ".join(broken.get(start) or next(iter(broken.values()))), rows_that_see_nothing(start)
    yield hit(count, expected=0, at=start.name, layers=names, order=start.order, roles=ill_roles, rows=rows)


@fault(
    "gradients not finite (masked rows)",
    ERROR,
    quantity="gradients that are NaN or infinite",
    source="a row without a visible key is 0/0, and backwards 0 · NaN is NaN, also where the loss does not look",
    text="The gradients are NaN or infinite ({roles}), and queries of this layer see no key: {rows}.",
    remedies=(
        "Let every query see a key (itself, say) and leave it out of the loss, or use a kernel that gives such rows 0 "
        "(F.scaled_dot_product_attention with a boolean mask).",
    ),
    chapter=STEPS + "#masks-who-may-look-at-whom",
    explains=("not finite", "mask hides some rows"),
    spreads=True,
    over="model",
)
def masked_gradients(model: Facts, facts: Facts) -> Iterator[Hit]:
    """NaN or infinity in gradients, and some queries of a layer see no key; nothing before it was NaN."""
    return _broken_gradients(facts, masked=True)


@fault(
    "gradients not finite",
    ERROR,
    quantity="gradients that are NaN or infinite",
    source="NaN spreads to all that the backward pass reaches later: it begins at the last layer that has it",
    text="The forward pass is finite as far as it is seen, the gradients are not ({roles}); in the backward pass this "
    "layer is the first.",
    remedies=(
        "Look for a root or a norm of zero (√x has slope ∞ there), a division by a number that rounds to zero, or a "
        "loss scale that is too large; torch.autograd.detect_anomaly names the operation.",
    ),
    chapter=STEPS + "#forward-one-key-takes-all",
    over="model",
)
def broken_gradients(model: Facts, facts: Facts) -> Iterator[Hit]:
    """NaN or infinity in gradients, where no forward pass had any and no query without a key can have made it."""
    return _broken_gradients(facts, masked=False)
