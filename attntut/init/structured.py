"""Matrices that are more than independent entries: orthogonal, the identity, or fitted to each other."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from attntut._checks import check_number
from attntut.anatomy.view import ModelView
from attntut.anatomy.weight import ATTENTION, BRANCH_OUT, Weight
from attntut.init.fan import lecun_normal
from attntut.init.laws import Constant, Identity, Law, Normal, Orthogonal, Uniform
from attntut.init.plain import vit
from attntut.init.registry import law_outside_blocks, scheme


@scheme(
    formula=r"W^\top W = g^2 I \text{ or } W W^\top = g^2 I",
    cite="saxe2014exact",
    source="Saxe et al. (2014), section 3; torch.nn.init.orthogonal_",
    why="A chain of square matrices keeps every length exactly, at any depth; Xavier's keeps it on average only.",
)
def orthogonal(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""Random directions, all of length ``gain`` and at right angles.

    Each projection is orthogonal by itself. ``nn.init.orthogonal_`` on a packed ``(3d, d)`` matrix makes the *columns*
    orthogonal: its blocks have variance 1/(3d), none is orthogonal, and the logits' variance is 1/9. Tables are
    N(0, 0.02²), and the readout is Gaussian too.

    Args:
        gain: the singular values.

    Example:
        >>> from attntut.anatomy.weight import weights
        >>> w = orthogonal(weights(64, 4)["query"]).fill_(torch.empty(64, 64))
        >>> x = torch.randn(64)
        >>> ((w @ x).norm() / x.norm()).item()
        1.0000
    """
    return law_outside_blocks(weight) or Orthogonal(gain)


@scheme(
    formula=r"W = g\,Q, \quad Q \text{ orthogonal}, \qquad g_{o,2} = \sqrt{2/L}, \qquad g = \sqrt{2} \text{ elsewhere}",
    cite="saxe2014exact",
    source="EleutherAI/gpt-neox, megatron/model/init_functions.py, orthogonal_init_method, as of 2021",
    year=2021,
    why="Orthogonal matrices whose branches shrink with the depth, so that the stream grows by a constant in all.",
)
def orthogonal_depth(weight: Weight) -> Law:
    r"""Orthogonal, with the gain √(2/L) at the end of each branch.

    The pair ``orthogonal`` and ``scaled_orthogonal`` of GPT-NeoX, as ``init_method`` and ``output_layer_init_method``;
    its code credits Saxe et al. (2014) and Nestler et al. (2021). GPT-NeoX-20B itself was drawn by :func:`small_init`
    and :func:`wang_init`, and since commit 0535bfbb (10 December 2022) ``orthogonal`` reads another argument for L.
    L is the number of blocks, of two branches each. The gain √2 of the first is the same formula with L = 1; it makes
    the logits' standard deviation 2.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["orthogonal_depth"].predict(d_model=64, n_heads=4, n_layers=8)
        >>> prediction.std["query"] / prediction.std["output"], prediction.logit_std
        (2.8284, 2.0)
    """
    depth = weight.n_layers if weight.role in BRANCH_OUT else 1
    return law_outside_blocks(weight) or Orthogonal(math.sqrt(2 / depth))


@scheme(
    formula=r"W_q = 0, \qquad W_v = W_o = I, \qquad \sigma^2 = \frac{1}{\text{fan\_in}} \text{ elsewhere}",
    cite="he2024simplifying",
    source="He & Hofmann (2024); bobby-he/simplified_transformers, model_utils.py",
    why="Attention that only averages: what is left of it when nothing is random.",
)
def identity(weight: Weight) -> Law:
    r"""Values and outputs pass tokens on as they are, and uniform attention averages them.

    He & Hofmann (2024) combine these weights with *shaped* attention, :math:`\alpha I + \beta A - \gamma C`, in which
    the uniform :math:`C` takes away the average, so that the layer is the identity and needs no skip connection. That
    is an architecture, not an initialization; without it these weights collapse the tokens of a model without skips in
    one layer. Keys and feed-forward matrices are LeCun normal here, N(0, 0.02²) in their code.

    Example:
        >>> from attntut.anatomy.weight import weights
        >>> x, each = torch.randn(5, 64), weights(64, 4)
        >>> q, k, v, o = (identity(each[role]).fill_(torch.empty(64, 64)) for role in ATTENTION)
        >>> output = torch.softmax((x @ q.mT) @ (x @ k.mT).mT, -1) @ x @ v.mT @ o.mT
        >>> (output - x.mean(0)).abs().max().item() < 1e-5
        True
    """
    if weight.role == "query":
        return Constant(0.0)
    if weight.role in ("value", "output"):
        return Identity()
    return lecun_normal(weight)


@functools.cache
def _spectrum(share: float) -> tuple[float, float]:
    r"""Mean and root mean square of the largest ``share`` of the singular values of a wide :math:`Z + I`.

    Their squares follow the Raney law (3, 2), given by an angle :math:`0 < \varphi < \pi/3`:
    :math:`s^2 = \sin^3 3\varphi / (\sin\varphi \sin^2 2\varphi)` with density
    :math:`\sin\varphi \sin 2\varphi / (\pi \sin 3\varphi)`. :math:`Z - I` has the same.

    >>> _spectrum(1.0), _spectrum(0.25)
    ((1.25, 1.4142), (2.1185, 2.1293))
    """
    angle = np.linspace(0, math.pi / 3, 4001)[1:-1]
    square = np.sin(3 * angle) ** 3 / (np.sin(angle) * np.sin(2 * angle) ** 2)  # falls from 27/4 to 0
    density = np.sin(angle) * np.sin(2 * angle) / (math.pi * np.sin(3 * angle))
    mass = np.cumsum(-np.gradient(square, angle) * density) * (angle[1] - angle[0])
    chosen = np.diff(np.minimum(mass, share), prepend=0)
    return float(chosen @ np.sqrt(square)) / share, math.sqrt(chosen @ square / share)


def _fit_pairs(
    view: ModelView, generator: torch.Generator | None, *, query_key: float = 0.7, value_output: float = 0.4
) -> None:
    """Put the factors of noisy identities into every self-attention."""
    for layer in view.attention:
        entries = [each for each in (layer.query, layer.key, layer.value, layer.output) if each is not None]
        if not entries or (weight := entries[0].weight).is_cross:
            continue
        if len(entries) < 4 or any(each.weight.shape != (weight.d_model,) * 2 for each in entries):
            shapes = ", ".join(f"{each.weight.role} {each.weight.shape}" for each in entries)
            raise ValueError(
                "mimetic fits queries to keys head by head, and values to outputs: "
                f"{layer.name or 'the attention'} must have all four, of shape {(weight.d_model,) * 2}: got {shapes}."
            )
        like = entries[0].view
        heads = [_factors(query_key, +1, like, generator) for _ in range(weight.n_heads)]
        left, right = _factors(value_output, -1, like, generator)
        fitted = (
            torch.cat([of_query.mT[: weight.d_head] for of_query, _ in heads]),
            torch.cat([of_key[: weight.d_head] for _, of_key in heads]),
            left.mT,
            right.mT,
        )
        for entry, matrix in zip(entries, fitted, strict=True):
            entry.matrix.write_(matrix)


def _factors(scale: float, sign: int, like: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """``left @ right = scale (Z + sign I)``, both with the roots of its singular values, the largest first."""
    d, dtype = like.shape[-1], torch.promote_types(like.dtype, torch.float32)
    noise = torch.randn(d, d, generator=generator, dtype=dtype, device=like.device) * d**-0.5
    left, size, right = torch.linalg.svd(scale * (noise + sign * torch.eye(d, dtype=dtype, device=like.device)))
    return left * size.sqrt(), size.sqrt()[:, None] * right


def _mimetic_logits(query: Weight, key: Weight, scale: float, *, query_key: float = 0.7) -> float:
    """The pair is not independent: the logits see the root mean square of the product's singular values."""
    return abs(scale) * math.sqrt(query.d_head) * query_key * _spectrum(query.d_head / query.fan_in)[1]


@scheme(
    formula=(
        r"W_{q,h}^\top W_{k,h} \approx 0.7\,(Z_h + I) \text{ in rank } d_{\text{head}}, \qquad "
        r"W_v^\top W_o^\top = 0.4\,(Z - I), \qquad Z_{ij} \sim \mathcal{N}\left(0, \frac{1}{d}\right)"
    ),
    cite="trockman2023mimetic",
    source="Trockman & Kolter (2023), with the rest of the model as in timm",
    why="Attention starts as trained vision models have it: tokens attend to their like, and values are turned back.",
    finish=_fit_pairs,
    predicts_logits=_mimetic_logits,
)
def mimetic(weight: Weight, *, query_key: float = 0.7, value_output: float = 0.4) -> Law:
    r"""Queries fitted to keys and values to outputs, so that their products are noisy identities.

    .. math:: 0.7\,(Z_h + I) = U S V^\top, \qquad W_{q,h} = S_k^{1/2} U_k^\top, \quad W_{k,h} = S_k^{1/2} V_k^\top

    Each head has its own Z, and keeps the ``d_head`` largest of the ``d_model`` singular values; half a singular
    value's root goes to either side. So a head's :math:`W_q^\top W_k` is the best approximation of rank ``d_head``
    only: of the identity's trace, one head of four keeps 45 %. Values and outputs are fitted once for all heads, in
    full rank, with −I. Cross-attention, feed-forward network and the rest are :func:`~attntut.init.plain.vit`. The
    paper's vision models have sinusoidal positions. Implementations disagree on which pair has 0.7 and which 0.4, and
    some draw Z uniformly.

    Args:
        query_key: the factor of the query-key pair, 0.7 in the formula.
        value_output: that of the value-output pair, 0.4 in the formula.

    Raises:
        ValueError: an attention whose four matrices are not all square, as with grouped queries.

    Example:
        >>> from attntut import MultiHeadAttention
        >>> from attntut.init import initialize_
        >>> attention = initialize_(MultiHeadAttention(64, 4), "mimetic", generator=torch.Generator().manual_seed(0))
        >>> product = attention.output.weight @ attention.value.weight
        >>> round(product.diagonal().mean().item(), 1)
        -0.4
    """
    if weight.role not in ATTENTION or weight.is_cross:
        return vit(weight)
    check_number("query_key", query_key, low=0), check_number("value_output", value_output, low=0)
    pair = query_key if weight.role in ("query", "key") else value_output
    share = weight.d_head / weight.d_model if weight.role in ("query", "key") else 1.0
    return Normal(math.sqrt(pair * _spectrum(share)[0] / weight.d_model))


def _add_noise(view: ModelView, generator: torch.Generator | None, *, noise: float = 0.01) -> None:
    """Add independent entries to every value and output matrix."""
    for entry in view.by_role("value", "output"):
        drawn = torch.empty_like(entry.view, memory_format=torch.contiguous_format)
        entry.matrix.write_(entry.view + drawn.normal_(0, noise, generator=generator))


@scheme(
    formula=r"W_v = \sqrt{\beta}\,I + Z, \quad W_o = -\sqrt{\beta}\,I + Z', \quad \beta = 0.05, \qquad "
    r"\sigma_{q,k,1} = \frac{1}{2\sqrt d}, \quad W_2 = 0",
    cite="jordan2024moddednanogpt",
    source="KellerJordan/modded-nanogpt, pull request 214, mimetic value-output initialization, as of 2026",
    year=2026,
    why="What trained attention looks like to its authors: each head subtracts a little of what it attends to.",
    requires=("pre-LN",),
    finish=_add_noise,
    predicts=lambda weight, *, beta=0.05, noise=0.01: _negative_identity_std(weight, beta, noise),
)
def negative_identity(weight: Weight, *, beta: float = 0.05) -> Law:
    r"""Value and output matrices whose product is :math:`-\beta I`, and noise on both.

    The idea is that of :func:`mimetic`, without its factors: the product of value and output is the negative identity
    by construction. It took the timed training run of that repository from 1575 to 1555 steps in January 2026 and was
    replaced soon after. In a language model the sign is disputed in the same thread.

    Args:
        beta: what a head takes away of a token that it attends to.
        noise: standard deviation of what is added to each entry.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.init import initialize_, view
        >>> config = TransformerConfig(n_classes=2, d_input=4, d_model=64, n_layers=1)
        >>> model = initialize_(Transformer(config), "negative_identity", noise=0.0)
        >>> value, output = view(model).by_role("value", "output")
        >>> (output.view @ value.view).diagonal()[:3]
        tensor([-0.0500, -0.0500, -0.0500])
    """
    if weight.role in ("value", "output"):
        return Identity(math.sqrt(beta) * (1 if weight.role == "value" else -1))
    if weight.role == "feed_forward_out":
        return Constant(0.0)
    return law_outside_blocks(weight) or Uniform.of_std(0.5 * weight.d_model**-0.5)


def _negative_identity_std(weight: Weight, beta: float, noise: float) -> float:
    std = negative_identity(weight, beta=beta).std(*weight.shape)
    return math.hypot(std, noise) if weight.role in ("value", "output") else std
