"""What a diagnosis says of a fault: the number that shows it, where its threshold comes from, and what to try."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from attntut.evidence import number

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")
STEPS = "notebooks/02-attention-step-by-step.html"
RANDOM = "notebooks/05-why-at-random.html"
SIGMA = "notebooks/06-the-gaussian.html"
VARIANCE = "notebooks/07-keeping-the-variance.html"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a model's attention.

    Attributes:
        name: a few words, always the same for the same fault.
        severity: ``"error"`` (cannot work), ``"warning"`` (will train badly) or ``"note"`` (good to know).
        layer: where it is worst; for what spreads, where it begins.
        layers: everywhere it was found, in the order of the forward pass.
        heads: which heads of ``layer``; empty for all, or where heads play no part.
        quantity: what was measured, in words.
        value: the measured number.
        expected: what theory, or a healthy model, gives.
        threshold: beyond which, on the side of ``value``, this is a finding.
        source: where expectation and threshold come from.
        text: what it means, and what to try.
        chapter: page of the book that treats it, relative to the book's root.
        order: number of the attention layer in the forward pass.
        fault: key of :data:`FAULTS`: the name, with the variety in brackets.
    """

    name: str
    severity: str
    layer: str
    quantity: str
    value: float
    expected: float
    threshold: float
    source: str
    text: str
    chapter: str
    heads: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    order: int = field(default=0, repr=False, compare=False)
    fault: str = field(default="", repr=False, compare=False)

    @property
    def place(self) -> str:
        """Layer, heads, and how many more layers."""
        heads = ", ".join(map(str, self.heads))
        where = self.layer + (f", head{'s' if len(self.heads) > 1 else ''} {heads}" if heads else "")
        return where + (f" and {len(self.layers) - 1} more" if len(self.layers) > 1 else "")

    @property
    def measurement(self) -> str:
        """The number beside its expectation and threshold."""
        side = "below" if self.value < self.threshold or self.value < self.expected else "above"
        bound = "" if self.threshold == self.expected else f", {side} {number(self.threshold)}"
        expected = "" if math.isnan(self.expected) else f" (expected {number(self.expected)}{bound})"
        return f"{self.quantity}: {number(self.value)}{expected}"

    def __str__(self) -> str:
        return f"{self.severity}: {self.name} in {self.place}. {self.measurement}."


class Fault(NamedTuple):
    """The words for a fault; ``{}`` are filled in when it is found."""

    severity: str
    quantity: str
    source: str
    text: str
    chapter: str


FAULTS: Mapping[str, Fault] = {
    "not finite": Fault(
        ERROR,
        "NaN or infinite numbers",
        "a softmax of NaN or +∞ is NaN, and so is all that follows",
        "{where} Look for an overflow in half precision, a division by zero, or a step that was too large; "
        "torch.autograd.detect_anomaly names the operation in the backward pass.",
        STEPS + "#forward-one-key-takes-all",
    ),
    "mask hides everything": Fault(
        ERROR,
        "queries that may see no key",
        "a softmax over nothing is 0/0: NaN in torch's own code, zeros in a careful kernel",
        "Is the mask inverted? In F.scaled_dot_product_attention True means *may be seen*; in the key_padding_mask "
        "and attn_mask of nn.MultiheadAttention it means *hidden*. A mask that is added holds 0 and −∞.",
        STEPS + "#masks-who-may-look-at-whom",
    ),
    "heads identical": Fault(
        ERROR,
        "different heads",
        "symmetry: equal weights get equal gradients, so they stay equal",
        "All heads compute one map, and unless the output matrix tells them apart they always will. Draw every "
        'matrix at random, from one generator: initialize_(model, "xavier_normal").',
        RANDOM + "#the-argument",
    ),
    "attention uniform (zero weights)": Fault(
        WARNING,
        "std of the logits in a row",
        "8 units in the last place, for rounding; N(0, 0.02²) at this width would give d·σ²·√(1 − ρ)",
        "{zero} zero: every query weighs all keys alike. {remedy}",
        RANDOM + "#the-argument",
    ),
    "attention uniform (tokens alike)": Fault(
        WARNING,
        "std of the logits in a row",
        "8 units in the last place, for rounding; N(0, 0.02²) at this width would give d·σ²·√(1 − ρ)",
        "Every query weighs all keys alike, though its matrix is not zero. Are all the tokens alike? Look at what "
        "comes into this layer.",
        SIGMA + "#the-prediction-the-scale-of-the-logits",
    ),
    "query equals key": Fault(
        WARNING,
        "mean weight of a token on itself",
        "with one matrix in both places, a token scores itself by √d_head at Xavier's scale, others by about 1",
        "W_q and W_k hold the same numbers: was the seed set inside the function that draws? Draw both from one "
        "generator. Sharing them on purpose is a choice; attention to oneself is its price.",
        RANDOM + "#the-article-s-code-and-a-trap-in-it",
    ),
    "layers cloned": Fault(
        WARNING,
        "matrices equal to an earlier layer's",
        "independent draws never agree; nn.TransformerEncoder copies one layer with deepcopy",
        "{roles} as in {origin}. Draw each layer anew: "
        'initialize_(model, "xavier_uniform"). nn.Transformer does so by itself, nn.TransformerEncoder does not.',
        RANDOM + "#what-frameworks-do",
    ),
    "logits too large": Fault(
        WARNING,
        "std of the logits in a row",
        "√(2 ln n), n = {n} keys: beyond it a handful of keys holds everything, however many there are",
        "The largest weight of a row is {largest} on average, and the gradient dies with the others. Divide W_q by "
        '{excess}, or draw both with std 1/√d: initialize_(model, "xavier_normal"). '
        "A temperature or QK-norm does the same in the forward pass.",
        SIGMA + "#the-prediction-the-scale-of-the-logits",
    ),
    "logits too large (trained)": Fault(
        WARNING,
        "largest logit",
        "bfloat16 has 8 bits: from 256 on its numbers are 2 apart, and rounding changes a weight by a factor e",
        "The largest weight of a row is {largest} on average. The logits have grown in training: lower the "
        "learning rate, or add QK-norm or weight decay on W_q and W_k.",
        STEPS + "#the-knob-behind-the-root-temperature",
    ),
    "entropy collapsed": Fault(
        WARNING,
        "share of rows with a weight above 0.99",
        "the Jacobian diag(p) − ppᵀ of such a row is below 2·0.99·0.01 ≈ 0.02: most queries learn nothing",
        "The entropy is {entropy} of {most} nats. Check the scale of the inputs and of W_q and W_k; in training, "
        "try a lower learning rate, warm-up or QK-norm.",
        STEPS + "#saturation-a-few-rows-decide",
    ),
    "gradients vanishing": Fault(
        WARNING,
        "gradient of {matrix} over that of W_v",
        "(1 − ρ)·√[(n/d + 1)/(nρ + 1 − ρ)]·d·σ_v·σ; where nothing was wrong, no layer had less than a quarter of it",
        "The loss hardly reaches {matrix}. Is it detached, or multiplied by something tiny? Saturated rows and "
        "equal tokens would have been named by themselves.",
        SIGMA + "#does-it-matter-for-training",
    ),
    "rank collapsing": Fault(
        WARNING,
        "factor of (1 − token cosine) a block",
        "attention with a skip and unit gain halves it, a ReLU branch takes at most 1/(2π) more: "
        "½(1 − 1/(2π)) = 0.42; without skips it falls faster with every block",
        "After {blocks} blocks 1 − cosine is {last}: the tokens point the same way, and the gradient of W_q and W_k is "
        "as small. Are the skip connections there? Scale the branches by 1/√L, or lower the gain of W_v and W_o.",
        VARIANCE,
    ),
    "stream growing": Fault(
        WARNING,
        "factor of the stream's variance a block",
        "two branches of unit gain double the variance at most twice; a pre-norm stream grows by L/(L − 1) at depth L, "
        "a post-norm one not at all",
        "Over {blocks} blocks the variance has grown {total}-fold, and gradients grow with it. Put a norm before each "
        'branch, take a scheme that does without (initialize_(model, "t_fixup")), or scale the branches by 1/√L.',
        VARIANCE + "#when-he-is-wrong",
    ),
    "depth scaling absent": Fault(
        NOTE,
        "growth of the stream's variance after the first block",
        "Xiong et al. (2020): a pre-norm stream has variance at most 1 + 3l/2 after l blocks, here l = 1 and {blocks}; "
        "with 1/√(2L), 1.54 to 1.59 was measured at L = 4 to 24",
        "The last of {blocks} blocks changes the stream by little, and the input is lost in it. Scale W_o and W_2 by "
        '1/√(2L) = {factor:.2f}, as in GPT-2: initialize_(model, "gpt2") for all, or scale these two.',
        VARIANCE,
    ),
    "packed query-key-value scale": Fault(
        NOTE,
        "std of the query matrix",
        "√(2/(fan_in + fan_out)) of one projection; the packed shape (3d, d) gives √(2/(4d)), √2 too small",
        "The logits have half the standard deviation that Xavier's rule means them to have. It is on the gentle side, "
        'and every nn.MultiheadAttention starts so; initialize_(model, "xavier_uniform") takes each projection by '
        "its own fans.",
        VARIANCE + "#the-packed-trap",
    ),
}


def found(
    fault: str,
    layer: str,
    value: float,
    *,
    expected: float,
    threshold: float,
    order: int,
    severity: str | None = None,
    heads: tuple[int, ...] = (),
    layers: tuple[str, ...] = (),
    words: Mapping[str, Any] = MappingProxyType({}),
) -> Finding:
    """A finding in the words of :data:`FAULTS`.

    Example:
        >>> print(found("heads identical", "attention", 1, expected=4, threshold=4, order=0))
        error: heads identical in attention. different heads: 1 (expected 4).
    """
    usual, quantity, source, text, chapter = FAULTS[fault]
    return Finding(
        fault.partition(" (")[0],
        severity or usual,
        layer,
        quantity.format(**words),
        value,
        expected,
        threshold,
        source.format(**words),
        text.format(**words),
        chapter,
        heads,
        layers or (layer,),
        order,
        fault,
    )
