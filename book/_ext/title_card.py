"""Draw the book's title card, ``book/_static/title-card.png``: ``python book/_ext/title_card.py``.

The picture that a link to the book shows elsewhere: the causal attention of nine random tokens, beside the title.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

TARGET = Path(__file__).resolve().parents[1] / "_static" / "title-card.png"
NIGHT, PAPER, MUTED = "#0b2436", "#f4f1ea", "#9fc3d9"


def weights(n: int = 9, d: int = 64, scale: float = 1.9, seed: int = 8) -> np.ndarray:
    """Return causal attention weights, ``(n, n)``, of random queries and keys."""
    random = np.random.default_rng(seed)
    logits = scale * random.normal(size=(n, d)) @ random.normal(size=(d, n)) / np.sqrt(d)
    logits[np.triu_indices(n, 1)] = -np.inf
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def draw() -> Figure:
    """Return the card, 1200 × 630 pixels."""
    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor=NIGHT)
    axes = figure.add_axes((0.56, 0.1, 0.42, 0.8))
    masked = np.ma.masked_equal(weights(), 0)
    axes.imshow(masked, cmap="cividis", vmin=-0.12, vmax=0.9, interpolation="nearest")
    axes.set_xticks(np.arange(-0.5, 9), minor=True)
    axes.set_yticks(np.arange(-0.5, 9), minor=True)
    axes.grid(which="minor", color=NIGHT, linewidth=5)
    axes.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
    axes.set_facecolor(NIGHT)
    for spine in axes.spines.values():
        spine.set_visible(False)
    title = "How to\ninitialize\nself-attention"
    figure.text(0.06, 0.8, title, color=PAPER, size=50, weight="bold", va="top", linespacing=1.2)
    figure.text(0.06, 0.2, "Predict, measure, turn the knobs.", color=MUTED, size=21, va="top")
    return figure


if __name__ == "__main__":
    with rc_context({"font.family": "DejaVu Sans"}):
        draw().savefig(TARGET, metadata={"Software": None})
    print(TARGET)
