"""Zeros and constants: what a network cannot leave, what it leaves in one step, and what is a good start."""

from __future__ import annotations

from attntut._checks import check_number
from attntut.anatomy.weight import BRANCH_OUT, Weight
from attntut.init.fan import xavier_uniform
from attntut.init.laws import Constant, Law
from attntut.init.registry import law_outside_blocks, scheme


@scheme(
    formula=r"W = 0",
    cite="rumelhart1986learning",
    source="a demonstration; Rumelhart, Hinton & Williams (1986) describe the problem",
    why="A saddle: with every matrix of a block 0, no matrix of a block gets a gradient, and none ever moves.",
)
def zeros(weight: Weight) -> Law:
    r"""Every matrix inside the blocks is 0.

    The gradient of each factor of a product contains the other factors. If both factors are 0, so are both gradients:
    queries against keys, values against outputs, one feed-forward matrix against the other. One zero factor would be
    harmless (:func:`zero_query`, :func:`zero_output`). Embeddings, positions and readout are drawn as usual, so that
    what does not move is the blocks.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["zeros"].predict(d_model=64, n_heads=4).logit_std
        0.0
    """
    return law_outside_blocks(weight) or Constant(0.0)


@scheme(
    formula=r"W_{ij} = c",
    cite="rumelhart1986learning",
    source="a demonstration; Rumelhart, Hinton & Williams (1986) describe the problem",
    why="All heads are one head: equal weights get equal gradients, and stay equal for ever.",
)
def constant(weight: Weight, *, value: float = 0.02) -> Law:
    r"""Every entry of every matrix inside the blocks is the same number.

    A matrix reads one number of a token, the sum of its channels, and writes it to every channel. Heads see the same,
    get the same gradient, and never part. Behind a LayerNorm even that number is gone: a normalized token sums to 0, so
    that every query, key and value is 0, whatever ``value`` is. Embeddings, positions and readout are drawn as usual.

    Args:
        value: the number c.

    Example:
        >>> import torch
        >>> from attntut.anatomy.weight import weights
        >>> w = constant(weights(64, 4)["query"]).fill_(torch.empty(64, 64))
        >>> x = torch.nn.functional.layer_norm(torch.randn(5, 64), [64])
        >>> (x @ w.mT).abs().max().item() < 1e-5
        True
    """
    return law_outside_blocks(weight) or Constant(check_number("value", value))


@scheme(
    formula=r"W_q = 0, \qquad \sigma^2 = \frac{2}{\text{fan\_in} + \text{fan\_out}} \text{ elsewhere}",
    cite="yang2022tensor",
    source="Yang et al. (2022), appendix D.2",
    why="Training starts from uniform attention exactly, at every width, and leaves it at the first step.",
)
def zero_query(weight: Weight) -> Law:
    r"""Queries are 0, so that every token attends to all tokens alike.

    No saddle: the gradient of :math:`W_q` contains the keys, which are not 0. Only the gradient of :math:`W_k` is 0,
    and only at the first step. The source advises it because the random logits of a narrow model are larger than those
    of a wide one; logits of 0 are alike. All other matrices are Xavier uniform.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["zero_query"].predict(d_model=64, n_heads=4)
        >>> prediction.std["query"], prediction.std["key"], prediction.logit_std
        (0.0, 0.125, 0.0)
    """
    return Constant(0.0) if weight.role == "query" else xavier_uniform(weight)


@scheme(
    formula=r"W_o = W_2 = 0, \qquad \sigma^2 = \frac{2}{\text{fan\_in} + \text{fan\_out}} \text{ elsewhere}",
    cite="zhang2019fixup",
    source="Zhang et al. (2019), who zero the last layer of every branch; KellerJordan/modded-nanogpt, commit 5450eda7",
    why="Every block starts as the identity, so depth costs nothing at the first step.",
)
def zero_output(weight: Weight) -> Law:
    r"""The last matrix of each branch is 0, so that a block passes its input on unchanged.

    Of each branch only this matrix gets a gradient at the first step. Were :math:`W_v` 0 too, neither would: see
    :func:`zeros`. Of Zhang et al. (2019) nothing else is taken: that is :func:`~attntut.init.depth.fixup`.
    modded-nanogpt did so for :math:`W_o` and :math:`W_2` from 13 October 2024 (commit 5450eda7) to 30 January 2026. All
    other matrices are Xavier uniform.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["zero_output"].predict(d_model=64, n_heads=4).std
        >>> std["output"], std["feed_forward_out"], std["value"]
        (0.0, 0.0, 0.125)
    """
    return Constant(0.0) if weight.role in BRANCH_OUT else xavier_uniform(weight)
