"""How the architectures of transformers start: the table of ``book/world.md``, from ``runs/world.csv``."""

from __future__ import annotations

from IPython.display import HTML

from attntut.sweep import stored

from . import sortable

COLUMNS = {
    "type": "type",
    "d": "d",
    "layers": "layers",
    "norm": "norm",
    "logit": "logits",
    "entropy": "entropy",
    "q": "query",
    "k": "key",
    "v": "value",
    "o": "output",
    "up": "up",
    "down": "down",
    "embedding": "tokens",
    "fan": "query·√d",
    "law": "law",
    "looks": "looks like",
    "by_width": "p of width",
    "deep_q": "p of depth, query",
    "deep_o": "p of depth, output",
    "deep_down": "p of depth, down",
    "stream_1": "stream, 1",
    "stream_2": "stream, 2",
    "heads": "heads",
    "qk": "QK-norm",
    "findings": "findings",
    "unread": "read by none",
    "how": "drawn",
}


def page() -> HTML:
    """The table of the page."""
    frame = stored("world")
    frame["fan"] = frame["q"] * frame["d"] ** 0.5
    frame["qk"] = frame["qk_norm"].map({0: "no", 1: "yes"})
    for name in ("unread", "findings"):
        frame[name] = frame[name].str.replace(";", ", ")
    built = frame[frame["how"] != "not"]
    return sortable.table(
        built.to_dict("records"),
        COLUMNS,
        caption="Fresh models of transformers at the widths of their default configurations.",
        noun="architectures",
        choices=("norm", "qk", "law", "looks", "findings", "unread", "how"),
    )
