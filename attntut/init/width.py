"""Scale by the width: what stays as it is when the model grows wider, before training and in it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from attntut._checks import check_int, check_number
from attntut.anatomy.names import RolePatterns
from attntut.anatomy.view import ModelView, view
from attntut.anatomy.weight import BRANCH, BRANCH_OUT, Weight
from attntut.init.fan import lecun_normal
from attntut.init.laws import Constant, Law, Normal
from attntut.init.registry import scheme


@scheme(
    formula=r"\sigma^2 = \frac{1}{\text{fan\_in}}, \quad W_\text{readout} = 0 \text{ or } \sigma = \frac{1}{d}, \quad "
    r"s = \frac{q^\top k}{d_h}, \quad \eta \propto \frac{1}{\text{fan\_in}}",
    cite="yang2022tensor",
    source="Yang et al. (2022), table 3 and definition 4.1; microsoft/mup, mup/layer.py and mup/optim.py",
    why="With learning rates that fall with the fan-in, activations move alike at every width, so that the best "
    "learning rate of a narrow model is that of a wide one.",
    requires=("1/d_head logits", "learning rates by role"),
)
def mup(weight: Weight, *, zero_query: bool = False, zero_readout: bool = True) -> Law:
    r"""Half of the maximal update parametrization; :func:`learning_rates` is the other half.

    Of table 3 the form without multipliers: hidden matrices and the readout learn with Adam at a rate that falls like
    1/width, all else at a fixed one. After a few steps queries and keys are correlated, and their product grows with
    :math:`d_h`, not its root: hence the logits' factor. Tables are N(0, 1).

    The package ``mup`` writes the same readout with a multiplier 1/width, a larger weight and a fixed rate. Its
    example draws :math:`W_2` with variance 1/d, not 1/(4d): a constant, which the width does not see.

    Args:
        zero_query: query weights 0, so that attention starts uniform at every width (appendix D.2 of the paper).
        zero_readout: readout 0, so that the output starts at 0 at every width.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["mup"].predict(d_model=256, n_heads=4, zero_readout=False).std
        >>> std["query"], std["feed_forward_out"], std["readout"]
        (0.0625, 0.0313, 0.0039)
    """
    if weight.is_table:
        return Normal(1.0)
    if weight.role == "readout":
        return Constant(0.0) if zero_readout else Normal(1 / weight.fan_in)
    return Constant(0.0) if zero_query and weight.role == "query" else lecun_normal(weight)


def learning_rates(
    model: nn.Module,
    lr: float,
    *,
    base_width: int,
    inputs: Any = None,
    roles: RolePatterns | None = None,
    n_heads: int | None = None,
) -> list[dict[str, Any]]:
    r"""Parameter groups for Adam, with the rates of the maximal update parametrization.

    .. math:: \eta_\text{hidden} = \eta_\text{readout} = \eta \cdot \frac{d_\text{base}}{d}, \qquad
              \eta_\text{embedding, positions, biases, norms, gains} = \eta

    Adam moves every entry by about η. Where a sum over the width follows, d aligned moves add up: divide by d. Yang et
    al. (2022), table 3. At ``d_model = base_width`` every rate is ``lr``. For SGD the rule is another.

    Args:
        model: any model whose roles :func:`~attntut.init.view` finds; the inner width of the feed-forward network must
            grow in proportion to ``d_model``.
        lr: the rate found at ``base_width``.
        base_width: the width at which ``lr`` was found.
        inputs, roles, n_heads: as in :func:`~attntut.init.view`.

    Returns:
        Two groups, ``{"params": […], "lr": …}``, for :class:`torch.optim.Adam` or ``AdamW``: the slow one first.
        Each parameter is in exactly one. A readout tied to the embedding counts as embedding, and needs a multiplier
        1/width in the forward pass instead.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> model = Transformer(TransformerConfig(n_classes=2, d_input=4, d_model=128))
        >>> [group["lr"] for group in learning_rates(model, 0.01, base_width=32)]
        [0.0025, 0.01]
    """
    check_number("lr", lr, low=0, open_low=True), check_int("base_width", base_width)
    entries = view(model, inputs=inputs, roles=roles, n_heads=n_heads).entries
    summed = {entry.parameter for entry in entries if entry.weight.role in (*BRANCH, "readout")}
    tables = {entry.parameter for entry in entries if entry.weight.is_table}
    slow = summed - tables
    parameters = dict(model.named_parameters())
    slow_lr = lr * base_width / entries[0].weight.d_model
    return [
        {"params": [p for name, p in parameters.items() if name in slow], "lr": slow_lr},
        {"params": [p for name, p in parameters.items() if name not in slow], "lr": lr},
    ]


def unit_logits(query: Weight, key: Weight, scale: float) -> float:
    """The logits' standard deviation where multipliers or norms make queries and keys of variance 1."""
    return abs(scale) * math.sqrt(query.d_head)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}(0, 1), \qquad y = \frac{1}{\sqrt{\text{fan\_in}}} W x",
    cite="blake2023unit",
    source="Blake et al. (2023), section 5; graphcore-research/unit-scaling, unit_scaling/functional.py",
    why="Weights, activations and gradients start with variance 1, in the middle of what 8- and 16-bit floats hold.",
    requires=("weight multipliers",),
    predicts_logits=unit_logits,
)
def unit_scaling(weight: Weight) -> Law:
    r"""Weights of variance 1; the model divides by the root of the fan-in instead.

    Forward, a linear layer keeps the variance. Backward, :math:`W^\top g / \sqrt{\text{fan\_in}}` multiplies the
    scale of a gradient by :math:`\sqrt{\text{fan\_out}/\text{fan\_in}}`: 1 where the matrix is square, 2 and ½ in the
    two halves of a feed-forward network. Blake et al. (2023) scale the gradients apart from the signals; their
    default takes the geometric mean of the two factors for both. Here the forward factor serves both, as in the later
    u-μP. Embeddings and positions are N(0, 1) too.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["unit_scaling"].predict(d_model=512, n_heads=8)
        >>> prediction.std["query"], prediction.logit_std
        (1.0, 1.0)
    """
    return Normal(1.0)


def _rescale_spectrally(view: ModelView, generator: Any, *, exact: bool = False) -> None:
    for entry in view.entries if exact else ():
        if not entry.weight.is_table:
            target = math.sqrt(entry.weight.fan_out / entry.weight.fan_in)
            entry.matrix.write_(entry.view * (target / torch.linalg.matrix_norm(entry.view.float(), ord=2)))


@scheme(
    formula=r"\lVert W \rVert_2 = \sqrt{\frac{\text{fan\_out}}{\text{fan\_in}}}, \qquad "
    r"\sigma = \frac{\sqrt{\text{fan\_out}/\text{fan\_in}}}{\sqrt{\text{fan\_out}} + \sqrt{\text{fan\_in}}}",
    cite="yang2023spectral",
    source="Yang, Simon & Bernstein (2023), condition 1",
    why="A vector with entries of size 1 becomes one with entries of size 1 at most: at every width, and also after "
    "training has aligned it with the largest singular direction.",
    requires=("learning rates by role",),
    finish=_rescale_spectrally,
)
def spectral(weight: Weight, *, exact: bool = False) -> Law:
    r"""A Gaussian whose largest singular value is :math:`\sqrt{\text{fan\_out}/\text{fan\_in}}`.

    The norm says that :math:`\operatorname{rms}(Wx)` is at most :math:`\operatorname{rms}(x)`, since
    :math:`\operatorname{rms}(x) = \lVert x\rVert/\sqrt{\text{fan\_in}}`. The paper asks for the order of magnitude
    only; the constant 1, and the σ that reaches it, are derived here. The largest singular value of a Gaussian matrix
    is :math:`\sigma(\sqrt{\text{fan\_out}} + \sqrt{\text{fan\_in}})`, up to a relative error that falls like
    :math:`\text{width}^{-2/3}`. A square matrix gets half of LeCun's σ, so a random vector leaves with half its size.
    It belongs to learning rates whose updates obey the same norm; with Adam, those of :func:`learning_rates`. Tables
    read a one-hot vector: N(0, 1).

    Args:
        exact: rescale each matrix by its own largest singular value, instead of relying on the Gaussian's average.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["spectral"].predict(d_model=256, n_heads=4)
        >>> prediction.std["query"], prediction.std["feed_forward_out"], prediction.logit_std
        (0.0313, 0.0104, 0.25)
    """
    root_out, root_in = math.sqrt(weight.fan_out), math.sqrt(weight.fan_in)
    return Normal(1.0 if weight.is_table else math.sqrt(weight.fan_out / weight.fan_in) / (root_out + root_in))


def _put_on_sphere(view: ModelView, generator: Any) -> None:
    """Give what each channel of the stream meets the length 1: rows of readers, columns of writers and tables."""
    writers = (*BRANCH_OUT, "embedding", "position")
    for entry in view.entries:
        entry.matrix.write_(torch.nn.functional.normalize(entry.view, dim=0 if entry.role in writers else 1))


@scheme(
    formula=r"\lVert w \rVert_2 = 1, \qquad x \leftarrow \operatorname{norm}(\hat x + \alpha (\hat f - \hat x)), \quad "
    r"\alpha = 0.05",
    cite="loshchilov2024ngpt",
    source="Loshchilov et al. (2024), section 2; NVIDIA/ngpt, model.py",
    why="Tokens and the vectors that meet them have length 1: every product is a cosine, at every width and step.",
    requires=("no norm", "sphere", "QK-norm"),
    finish=_put_on_sphere,
    predicts=lambda weight: weight.d_model**-0.5,
    predicts_logits=unit_logits,
)
def ngpt(weight: Weight) -> Law:
    r"""Directions are random, lengths are 1: N(0, 1/d), then normalized along the stream's dimension.

    The code draws N(0, 1/1024), and the writers 1/√(2L) smaller, which the normalization takes out again. It normalizes
    after every step as well, which is for the training loop to do. There the sphere has radius 1 and factors √d follow;
    here it has radius √d, and they are not needed (:class:`~attntut.parts.Hypersphere`).

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["ngpt"].predict(d_model=256, n_heads=4)
        >>> prediction.std["query"], prediction.std["output"], prediction.logit_std
        (0.0625, 0.0625, 1.0)
    """
    return Normal(weight.d_model**-0.5)
