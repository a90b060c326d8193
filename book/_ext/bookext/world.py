"""How the architectures of transformers start: the table of ``book/world.md``, from ``runs/world.csv``."""

from __future__ import annotations

import pandas as pd
from IPython.display import HTML

from attntut.sweep import stored

from . import sortable

COLUMNS = {
    "type": "type",
    "how": "drawn",
    "d": "d",
    "heads": "heads",
    "layers": "layers",
    "norm": "norm",
    "qk": "QK-norm",
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "output",
    "up": "up",
    "down": "down",
    "embedding": "tokens",
    "law": "law",
    "fan": "query·√d",
    "by_width": "p of width",
    "deep_o": "p of depth, output",
    "deep_down": "p of depth, down",
    "logit": "logits",
    "entropy": "entropy",
    "stream_1": "stream, 1",
    "stream_2": "stream, 2",
    "looks": "looks like",
    "unread": "read by none",
    "findings": "findings",
}
WORDS = {"type", "how", "reason", "law", "norm", "looks", "unread", "findings"}


def world() -> pd.DataFrame:
    """The stored table, a row an architecture: numbers as numbers, NaN where there is none."""
    frame = stored("world")
    for name in frame.columns.difference(list(WORDS)):
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    return frame


def page() -> HTML:
    """The table of the page."""
    frame = world()
    frame["fan"] = frame["q"] * frame["d"] ** 0.5
    frame["qk"] = frame["qk_norm"].map({0: "no", 1: "yes"})
    for name in ("looks", "unread", "findings"):
        frame[name] = frame[name].str.replace(";", ", ")
    built = frame[frame["how"] != "not"]
    return sortable.table(
        built.to_dict("records"),
        COLUMNS,
        caption="Fresh models of transformers at the widths of their default configurations.",
        noun="architectures",
        choices=("how", "norm", "qk", "law", "looks", "unread", "findings"),
    )
