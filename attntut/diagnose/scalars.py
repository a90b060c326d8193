"""What every head does, step by step, as plain scalars: for TensorBoard, or whatever takes a tag and a number."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

BY_STEP = ("logit_max", "logit_std", "entropy")
"""What is kept of each head at each step: a largest logit that grows comes before a loss that bursts."""


def scalars(rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]] = ()) -> Iterator[tuple[str, float, int]]:
    """Largest logit, standard deviation of the logits and entropy of each head, by step: ``(tag, value, step)``.

    A tag like ``"logit_max/encoder.0.attention/self/3"`` names the number, the layer, the kind and the head. Numbers
    that do not exist (a head whose rows are all masked) are left out.

    Args:
        rows, steps: of a :class:`~attntut.diagnose.Report`; without steps, the rows are step 0.

    Example:
        >>> row = dict(layer="attention", kind="self", head=0, logit_max=3.5, logit_std=1.0, entropy=0.5)
        >>> list(scalars([row]))[:2]
        [('logit_max/attention/self/0', 3.5, 0), ('logit_std/attention/self/0', 1.0, 0)]
    """
    for step in steps:
        yield from scalars_of(step)
    for row in () if steps else rows:
        place = {"step": 0, "layer": row["layer"], "kind": row["kind"]}
        for tag, value, at in scalars_of(place | {"heads": {name: [row[name]] for name in BY_STEP}}):
            yield f"{tag.rpartition('/')[0]}/{row['head']}", value, at


def scalars_of(step: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """The scalars of one entry of ``report.steps``; none where it does not tell the heads apart."""
    for name, values in step.get("heads", {}).items():
        for head, value in enumerate(values):
            if not math.isnan(value):
                yield f"{name}/{step['layer']}/{step['kind']}/{head}", value, step["step"]
