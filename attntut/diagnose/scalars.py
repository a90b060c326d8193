"""What every head does, step by step, as plain scalars: for TensorBoard, or whatever takes a tag and a number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from attntut.diagnose.report import Report

BY_STEP = ("logit_max", "logit_std", "entropy")
"""What is kept of each head at each step: a largest logit that grows comes before a loss that bursts."""


def scalars(report: Report) -> Iterator[tuple[str, float, int]]:
    """Largest logit, standard deviation of the logits and entropy of each head, by step: ``(tag, value, step)``.

    A tag like ``"logit_max/encoder.0.attention/self/3"`` names the number, the layer, the kind and the head. Numbers
    that do not exist (a head whose rows are all masked) are left out. A report of one step gives step 0.

    Args:
        report: of :func:`~attntut.diagnose.listen` or :func:`~attntut.diagnose.diagnose`.

    Example:
        To TensorBoard afterwards, ``for scalar in scalars(report): writer.add_scalar(*scalar)``; while the model
        trains, ``listen(model, every=10, to=writer.add_scalar)``.

        >>> row = dict(layer="attention", kind="self", head=0, logit_max=3.5, logit_std=1.0, entropy=0.5)
        >>> list(scalars(Report(rows=[row])))[:2]
        [('logit_max/attention/self/0', 3.5, 0), ('logit_std/attention/self/0', 1.0, 0)]
    """
    if report.steps:
        for step in report.steps:
            yield from scalars_of(step)
        return
    for row in report.rows:
        place = {"step": 0, "layer": row["layer"], "kind": row["kind"]}
        for tag, value, at in scalars_of(place | {"heads": {name: [row[name]] for name in BY_STEP}}):
            yield f"{tag.rpartition('/')[0]}/{row['head']}", value, at


def scalars_of(step: dict[str, Any]) -> Iterator[tuple[str, float, int]]:
    """The scalars of one entry of ``report.steps``; none where it does not tell the heads apart."""
    for name, values in step.get("heads", {}).items():
        for head, value in enumerate(values):
            if not math.isnan(value):
                yield f"{name}/{step['layer']}/{step['kind']}/{head}", value, step["step"]
