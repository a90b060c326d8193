"""Scale by the fans: how many numbers a unit reads, and how many units read it."""

from __future__ import annotations

import math

from attntut.init.laws import Constant, Law, Normal, Uniform
from attntut.init.registry import outside, scheme
from attntut.init.weight import ATTENTION, FEED_FORWARD, Weight


@scheme(
    family="fan",
    formula=r"W_{ij} \sim \mathcal{N}\left(0, \frac{g^2}{\text{fan\_in}}\right)",
    cite="lecun1998efficient",
    source="LeCun et al. (1998), eq. 16",
    year=1998,
    why="A linear map keeps the variance of what it reads.",
)
def lecun_normal(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""Fill so that a linear map writes with the variance that it reads.

    .. math:: W_{ij} \sim \mathcal{N}\left(0, \frac{g^2}{\text{fan\_in}}\right)

    Each output sums ``fan_in`` independent terms of variance :math:`g^2 / \text{fan\_in}`. LeCun et al. (1998), eq. 16.
    Tables (tokens, positions) are N(0, 0.02²): nothing is summed there. Keras's and timm's functions of this name draw
    a truncated Gaussian of the same standard deviation.

    Args:
        weight: any weight; its fans are those of one projection, packed or not.
        gain: multiplies the standard deviation.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["lecun_normal"].predict(d_model=64, n_heads=4).std
        >>> std["feed_forward_in"], std["feed_forward_out"]
        (0.125, 0.0625)
    """
    return outside(weight) or Normal(gain * _lecun(weight))


@scheme(
    family="fan",
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = g \sqrt{\frac{3}{\text{fan\_in}}}",
    cite="lecun1998efficient",
    source="LeCun et al. (1998), eq. 16, with a uniform law",
    year=1998,
    why="A linear map keeps the variance of what it reads; no entry is far out.",
)
def lecun_uniform(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""The standard deviation of :func:`lecun_normal`, uniformly.

    .. math:: a = g\sqrt{3/\text{fan\_in}}, \qquad \sigma^2 = a^2/3 = g^2/\text{fan\_in}

    LeCun et al. (1998), eq. 16, ask for the variance; the law is free. Without the √3 it is :func:`torch_default`.

    Args:
        weight: any weight; its fans are those of one projection.
        gain: multiplies the standard deviation.

    Example:
        >>> from attntut.init.weight import weights
        >>> lecun_uniform(weights(64, 4)["query"])
        Uniform(bound=0.2165)
    """
    return outside(weight) or Uniform.of_std(gain * _lecun(weight))


@scheme(
    family="fan",
    formula=r"W_{ij} \sim \mathcal{N}\left(0, \frac{2\,g^2}{\text{fan\_in} + \text{fan\_out}}\right)",
    cite="glorot2010understanding",
    source="Glorot & Bengio (2010), eq. 12",
    year=2010,
    why="Between keeping the variance of signals forward and that of gradients backward: exact for square matrices.",
)
def xavier_normal(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""Fill so that signals and gradients both nearly keep their variance.

    .. math:: W_{ij} \sim \mathcal{N}\left(0, \frac{2\,g^2}{\text{fan\_in} + \text{fan\_out}}\right)

    Forward wants :math:`1/\text{fan\_in}`, backward :math:`1/\text{fan\_out}`; their harmonic mean makes the two
    factors average to 1. Glorot & Bengio (2010), eq. 12. The fans are those of *one projection*: a packed
    query-key-value matrix of shape ``(3·d_model, d_model)`` has ``fan_out = d_model``, not three times that. See
    :func:`xavier_packed`.

    Args:
        weight: any weight.
        gain: multiplies the standard deviation; 1 for a linear map.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["xavier_normal"].predict(d_model=512, n_heads=8)
        >>> prediction.std["query"], prediction.std["feed_forward_in"], prediction.logit_std
        (0.0442, 0.028, 1.0)
    """
    return outside(weight) or Normal(gain * _xavier(weight))


@scheme(
    family="fan",
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = g \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}",
    cite="glorot2010understanding",
    source="Glorot & Bengio (2010), eq. 16; tensor2tensor, initializer 'uniform_unit_scaling'",
    year=2010,
    why="As xavier_normal, without far entries; what most code for the original Transformer draws.",
)
def xavier_uniform(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""The standard deviation of :func:`xavier_normal`, uniformly.

    .. math:: a = g\sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}

    Glorot & Bengio (2010), eq. 16. The Transformer of Vaswani et al. (2017) in tensor2tensor draws with it. But from
    its first public commit (June 2017) to 0ffe0e66 (28 November 2017) query, key and value of self-attention lay in
    one matrix, and each was √2 narrower, as in :func:`xavier_packed`.

    Args:
        weight: any weight; its fans are those of one projection.
        gain: multiplies the standard deviation.

    Example:
        >>> from attntut.init.weight import weights
        >>> xavier_uniform(weights(64, 4)["query"]).bound == (6 / 128) ** 0.5
        True
    """
    return outside(weight) or Uniform.of_std(gain * _xavier(weight))


def _linear_bias_of_feed_forward(weight: Weight) -> Law:
    return Uniform(weight.fan_in**-0.5) if weight.role in FEED_FORWARD else Constant(0.0)


@scheme(
    family="fan",
    formula=(
        r"a_{q,k,v} = \sqrt{\frac{6}{\text{fan\_in} + 3\,\text{fan\_out}}}, \qquad "
        r"a_{o,1,2} = \frac{1}{\sqrt{\text{fan\_in}}}"
    ),
    cite="paszke2019pytorch",
    source="torch.nn.MultiheadAttention._reset_parameters and torch.nn.TransformerEncoderLayer",
    year=2019,
    why="What torch's own attention starts with: Xavier on the packed matrix, a quarter of the logits' variance.",
    bias=_linear_bias_of_feed_forward,
)
def xavier_packed(weight: Weight) -> Law:
    r"""Query, key and value as :class:`torch.nn.MultiheadAttention` leaves them; the rest as ``nn.Linear`` does.

    .. math:: \sigma_{q,k,v}^2 = \frac{2}{d + 3d} = \frac{1}{2d}, \qquad \sigma_s = d\,\sigma_q\sigma_k = \frac12

    Three projections lie in one matrix of shape ``(3d, d)``, and ``xavier_uniform_`` takes ``3d`` for the fan-out. Each
    is √2 too narrow. The output projection and, in :class:`torch.nn.TransformerEncoderLayer`, the feed-forward matrices
    are ``nn.Linear`` as it comes (:func:`torch_default`); only the feed-forward biases are random.
    :class:`torch.nn.Transformer` draws those matrices again by Xavier, but leaves the packed one packed.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["xavier_packed"].predict(d_model=512, n_heads=8).logit_std
        0.5
        >>> from torch.nn import MultiheadAttention
        >>> MultiheadAttention(512, 8).in_proj_weight.abs().max().item() / math.sqrt(6 / (4 * 512))
        1.0
    """
    if weight.role in ("query", "key", "value"):
        return Uniform.of_std(math.sqrt(2 / (weight.fan_in + 3 * weight.fan_out)))
    return outside(weight) or Uniform(weight.fan_in**-0.5)


@scheme(
    family="fan",
    formula=r"W_{ij} \sim \mathcal{N}\left(0, \frac{g^2}{\text{fan\_in}}\right), \qquad g = \sqrt{2}",
    cite="he2015delving",
    source="He et al. (2015), eq. 10; torch.nn.init.kaiming_normal_",
    year=2015,
    why="A ReLU halves the second moment, and the factor 2 restores it; nothing in attention halves anything.",
)
def kaiming_normal(weight: Weight, *, gain: float = math.sqrt(2)) -> Law:
    r"""Fill so that a linear map after a ReLU keeps the second moment.

    .. math:: W_{ij} \sim \mathcal{N}\left(0, \frac{2}{\text{fan\_in}}\right), \qquad
              \mathbb{E}[\max(z, 0)^2] = \tfrac12\,\mathbb{E}[z^2]

    He et al. (2015), eq. 10. Queries and keys pass no ReLU: their logits have standard deviation 2, and values and
    outputs together multiply the variance by 4 a layer.

    Args:
        weight: any weight.
        gain: multiplies the standard deviation; √2 for a ReLU.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["kaiming_normal"].predict(d_model=512, n_heads=8).logit_std
        2.0
    """
    return outside(weight) or Normal(gain * _lecun(weight))


@scheme(
    family="fan",
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = g \sqrt{\frac{3}{\text{fan\_in}}}, \qquad g = \sqrt{2}",
    cite="he2015delving",
    source="He et al. (2015), eq. 10, with a uniform law; torch.nn.init.kaiming_uniform_",
    year=2015,
    why="As kaiming_normal, without far entries.",
)
def kaiming_uniform(weight: Weight, *, gain: float = math.sqrt(2)) -> Law:
    r"""The standard deviation of :func:`kaiming_normal`, uniformly.

    .. math:: a = \sqrt{\frac{6}{\text{fan\_in}}}

    He et al. (2015), eq. 10. torch's ``kaiming_uniform_(a=√5)`` is another thing: :func:`torch_default`.

    Args:
        weight: any weight.
        gain: multiplies the standard deviation; √2 for a ReLU.

    Example:
        >>> from attntut.init.weight import weights
        >>> kaiming_uniform(weights(64, 4)["query"])
        Uniform(bound=0.3062)
    """
    return outside(weight) or Uniform.of_std(gain * _lecun(weight))


@scheme(
    family="fan",
    formula=r"W_{ij}, b_i \sim \mathcal{U}(-a, a), \qquad a = \frac{1}{\sqrt{\text{fan\_in}}}",
    cite="paszke2019pytorch",
    source="torch.nn.Linear.reset_parameters; torch.nn.Embedding.reset_parameters",
    year=2019,
    why="What every layer that nobody initialized has: a bound where a standard deviation was meant, 1/√3 of LeCun.",
    bias=lambda weight: Constant(0.0) if weight.is_table else Uniform(weight.fan_in**-0.5),
)
def torch_default(weight: Weight) -> Law:
    r"""Matrices and biases as :class:`torch.nn.Linear` draws them; tables N(0, 1), as :class:`torch.nn.Embedding`.

    .. math:: W_{ij}, b_i \sim \mathcal{U}(-a, a), \qquad a = \frac{1}{\sqrt{\text{fan\_in}}},
              \qquad \sigma^2 = \frac{1}{3\,\text{fan\_in}}

    ``reset_parameters`` calls ``kaiming_uniform_(a=√5)``, whose gain √(2/(1 + 5)) = 1/√3 turns the bound √(3/fan_in)
    into 1/√fan_in. The variance of the logits is a ninth of Xavier's.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["torch_default"].predict(d_model=512, n_heads=8).logit_std
        0.3333
    """
    return Normal(1.0) if weight.is_table else Uniform(weight.fan_in**-0.5)


def _fairseq_bias(weight: Weight) -> Law:
    linear = weight.role in ("query", "key", "value", *FEED_FORWARD)
    return Uniform(weight.fan_in**-0.5) if linear else Constant(0.0)


@scheme(
    family="fan",
    formula=(
        r"a_o = \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}, \qquad a_{q,k,v} = \frac{a_o}{\sqrt{2}}, \qquad "
        r"a_{1,2} = \frac{1}{\sqrt{\text{fan\_in}}}"
    ),
    cite="ott2019fairseq",
    source="fairseq, modules/multihead_attention.py, reset_parameters; modules/transformer_layer.py, build_fc1",
    year=2019,
    why="The accident of the packed matrix, kept on purpose when query, key and value were taken apart.",
    bias=_fairseq_bias,
)
def fairseq(weight: Weight) -> Law:
    r"""Query, key and value by Xavier with gain 1/√2, the output by Xavier, the feed-forward network as torch made it.

    .. math:: \sigma_{q,k,v}^2 = \frac12 \cdot \frac{2}{d + d} = \frac{1}{2d}, \qquad \sigma_o^2 = \frac{1}{d}

    "Empirically observed the convergence to be much better with the scaled initialization", says the comment in
    fairseq (Ott et al. 2019). The gain gives separate matrices the width of :func:`xavier_packed`. Token tables are
    N(0, 1/d); fairseq multiplies what it looks up by √d.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["fairseq"].predict(d_model=512, n_heads=8)
        >>> prediction.std["query"], prediction.std["output"], prediction.logit_std
        (0.03125, 0.0442, 0.5)
    """
    if weight.role in ATTENTION:
        return Uniform.of_std(_xavier(weight) * (1 if weight.role == "output" else 0.5**0.5))
    if weight.role in FEED_FORWARD:
        return Uniform(weight.fan_in**-0.5)
    return Normal(weight.d_model**-0.5)


@scheme(
    family="fan",
    formula=r"\sigma_{q,k,v,o}^2 = \frac{2}{5d}, \qquad \sigma_{1,2}^2 = \frac{2}{d + d_{\text{ff}}}",
    cite="nguyen2019transformers",
    source="Nguyen & Salazar (2019), section 2.2; tnq177/transformers_without_tears, layers.py",
    year=2019,
    why="Attention as narrow as the feed-forward network, so that a post-norm Transformer trains.",
)
def small_init(weight: Weight) -> Law:
    r"""Attention matrices with the standard deviation that Xavier gives to the feed-forward network.

    .. math:: \sigma^2 = \frac{2}{d + 4d} = \frac{2}{5d} \quad\Rightarrow\quad \sigma_s = \tfrac25

    Nguyen & Salazar (2019). In their code the feed-forward matrices themselves are Xavier normal, the same number if
    :math:`d_\text{ff} = 4d`; GPT-NeoX writes √(2/(5d)) everywhere. Token tables are N(0, 1/d), multiplied by √d when
    they are looked up.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["small_init"].predict(d_model=64, n_heads=4)
        >>> prediction.std["query"], prediction.std["feed_forward_in"], prediction.logit_std
        (0.0791, 0.0791, 0.4)
    """
    if weight.role in ATTENTION:
        return Normal(math.sqrt(2 / (5 * weight.d_model)))
    if weight.role in FEED_FORWARD:
        return Normal(_xavier(weight))
    return Normal(weight.d_model**-0.5)


@scheme(
    family="fan",
    formula=(
        r"\sigma_q^2 = \frac{1}{d\,d_{\text{head}}}, \qquad \sigma_{k,v}^2 = \frac{1}{d}, \qquad "
        r"\sigma_o^2 = \frac{1}{h\,d_{\text{head}}}, \qquad \sigma_{1,2}^2 = \frac{1}{\text{fan\_in}}"
    ),
    cite="raffel2020t5",
    source="transformers, modeling_t5.py, T5PreTrainedModel._init_weights",
    year=2020,
    why="The 1/√d_head of the logits is put into the query's weights, once, and left out of the forward pass.",
    requires=("unscaled logits",),
)
def t5(weight: Weight) -> Law:
    r"""LeCun's rule, with the query narrower by the factor that T5 does not multiply its logits with.

    .. math:: \sigma_q = (d\,d_\text{head})^{-1/2}, \qquad \sigma_k = \sigma_v = d^{-1/2}, \qquad
              \sigma_o = (h\,d_\text{head})^{-1/2}

    The logits start at standard deviation 1, as Xavier's do. Steps that ignore the size of a weight, such as Adam's,
    then move them √d_head times as far as if the factor stood in the forward pass; Adafactor, which T5 was trained
    with, scales its steps by the weights. Tokens are N(0, 1), relative positions N(0, 1/d), and a readout
    N(0, 1/d), which is what T5's shared embedding is after its factor :math:`d^{-1/2}`.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["t5"].predict(d_model=512, n_heads=8)
        >>> prediction.std["query"] * 8 == prediction.std["key"], prediction.logit_std
        (True, 1.0)
    """
    if weight.role == "query":
        return Normal((weight.fan_in * weight.d_head) ** -0.5)
    if weight.role == "position":
        return Normal(weight.d_model**-0.5)
    return Normal(1.0) if weight.is_table else Normal(_lecun(weight))


def _vit_jax_bias(weight: Weight) -> Law:
    return Normal(1e-6) if weight.role in FEED_FORWARD else Constant(0.0)


@scheme(
    family="fan",
    formula=(
        r"a = \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}, \qquad b_{1,2} \sim \mathcal{N}(0, 10^{-12}), \qquad "
        r"W_{\text{readout}} = 0"
    ),
    cite="dosovitskiy2021image",
    source="google-research/vision_transformer, vit_jax/models_vit.py",
    year=2021,
    why="The Vision Transformer as it was trained: Xavier, and a readout of 0, so that the first loss is ln(classes).",
    bias=_vit_jax_bias,
)
def vit_jax(weight: Weight) -> Law:
    r"""Xavier uniform for each projection by itself, and a readout of zeros.

    .. math:: a = \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}, \qquad W_\text{readout} = 0

    Dosovitskiy et al. (2021). The patches' projection is LeCun's (Flax truncates the Gaussian; here it is not).
    timm's ``weight_init="jax"`` applies the rule to the packed matrix, and so gets :func:`xavier_packed`'s query, key
    and value; its ``"moco"`` does not.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["vit_jax"].predict(d_model=768, n_heads=12)
        >>> prediction.logit_std, prediction.std["readout"]
        (1.0, 0.0)
    """
    if weight.role == "readout":
        return Constant(0.0)
    return outside(weight) or Uniform.of_std(_xavier(weight))


def _lecun(weight: Weight) -> float:
    return weight.fan_in**-0.5


def _xavier(weight: Weight) -> float:
    return math.sqrt(2 / (weight.fan_in + weight.fan_out))
