"""Scale by the fans: how many numbers a unit reads, and how many units read it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from attntut.anatomy.weight import ATTENTION, BRANCH_OUT, FEED_FORWARD, OPERANDS, Weight
from attntut.init.laws import Constant, Law, Normal, TruncNormal, Uniform
from attntut.init.registry import law_outside_blocks, scheme


def _lecun(weight: Weight) -> float:
    return weight.fan_in**-0.5


def _xavier(weight: Weight) -> float:
    return math.sqrt(2 / (weight.fan_in + weight.fan_out))


def variance_scaling(
    weight: Weight, of_std: Callable[[float], Law], gain: float = 1.0, *, unit: Callable[[Weight], float]
) -> Law:
    """The law of standard deviation ``gain · unit(weight)`` inside the blocks, the usual one outside.

    LeCun's, Xavier's and He's rules are this law, for a Gaussian, a uniform or a truncated distribution.

    Args:
        of_std: from a standard deviation to a law: ``Normal``, ``Uniform.of_std`` or ``TruncNormal.of_std``.
        unit: from the weight to the standard deviation that a gain of 1 has.

    Example:
        >>> from attntut.init.laws import TruncNormal
        >>> from attntut.anatomy.weight import weights
        >>> by_fan_in(weights(64, 4)["query"], TruncNormal.of_std)  # Keras's and timm's function named lecun_normal
        TruncNormal(sigma=0.1421, cut=2.0)
    """
    return law_outside_blocks(weight) or of_std(gain * unit(weight))


by_fan_in = partial(variance_scaling, unit=_lecun)  # keeps the variance of what is read
by_both_fans = partial(variance_scaling, unit=_xavier)  # nearly that, and nearly that of gradients


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}\left(0, \frac{g^2}{\text{fan\_in}}\right)",
    cite="lecun1998efficient",
    source="LeCun et al. (1998)",
    why="A linear map keeps the variance of what it reads.",
)
def lecun_normal(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""Fill so that a linear map writes with the variance that it reads.

    Each output sums ``fan_in`` independent terms of variance :math:`g^2 / \text{fan\_in}`. Tables (tokens, positions)
    are N(0, 0.02²): nothing is summed there. Keras's and timm's functions of this name draw a truncated Gaussian of
    the same standard deviation.

    Args:
        gain: multiplies the standard deviation.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["lecun_normal"].predict(d_model=64, n_heads=4).std
        >>> std["feed_forward_in"], std["feed_forward_out"]
        (0.125, 0.0625)
    """
    return by_fan_in(weight, Normal, gain)


@scheme(
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = g \sqrt{\frac{3}{\text{fan\_in}}}",
    cite="lecun1998efficient",
    source="LeCun et al. (1998), with a uniform law",
    why="A linear map keeps the variance of what it reads; no entry is far out.",
)
def lecun_uniform(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""The standard deviation of :func:`lecun_normal`, uniformly.

    The rule asks for the variance, here a²/3; the law is free. Without the √3 it is :func:`torch_default`.

    Args:
        gain: multiplies the standard deviation.

    Example:
        >>> from attntut.anatomy.weight import weights
        >>> lecun_uniform(weights(64, 4)["query"])
        Uniform(bound=0.2165)
    """
    return by_fan_in(weight, Uniform.of_std, gain)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}\left(0, \frac{2\,g^2}{\text{fan\_in} + \text{fan\_out}}\right)",
    cite="glorot2010understanding",
    source="Glorot & Bengio (2010)",
    why="Between keeping the variance of signals forward and that of gradients backward: exact for square matrices.",
)
def xavier_normal(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""Fill so that signals and gradients both nearly keep their variance.

    Forward wants :math:`1/\text{fan\_in}`, backward :math:`1/\text{fan\_out}`; their harmonic mean makes the two
    factors average to 1. The fans are those of *one projection*: a packed query-key-value matrix of shape
    ``(3·d_model, d_model)`` has ``fan_out = d_model``, not three times that. See :func:`xavier_packed`.

    Args:
        gain: multiplies the standard deviation; 1 for a linear map.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["xavier_normal"].predict(d_model=512, n_heads=8)
        >>> prediction.std["query"], prediction.std["feed_forward_in"], prediction.logit_std
        (0.0442, 0.028, 1.0)
    """
    return by_both_fans(weight, Normal, gain)


@scheme(
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = g \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}",
    cite="glorot2010understanding",
    source="Glorot & Bengio (2010); tensor2tensor, initializer 'uniform_unit_scaling'",
    why="As xavier_normal, without far entries; what most code for the original Transformer draws.",
)
def xavier_uniform(weight: Weight, *, gain: float = 1.0) -> Law:
    r"""The standard deviation of :func:`xavier_normal`, uniformly.

    The Transformer of Vaswani et al. (2017) in tensor2tensor draws with it. But from its first public commit (3d9c62f2,
    15 June 2017) to 0ffe0e66 (28 November 2017) query, key and value of self-attention lay in one matrix, and each was
    √2 narrower, as in :func:`xavier_packed`.

    Args:
        gain: multiplies the standard deviation.

    Example:
        >>> from attntut.anatomy.weight import weights
        >>> xavier_uniform(weights(64, 4)["query"]).bound == (6 / 128) ** 0.5
        True
    """
    return by_both_fans(weight, Uniform.of_std, gain)


@scheme(
    formula=(
        r"a_{q,k,v} = \sqrt{\frac{6}{\text{fan\_in} + 3\,\text{fan\_out}}}, \qquad "
        r"a_{o,1,2} = \frac{1}{\sqrt{\text{fan\_in}}}"
    ),
    cite="paszke2019pytorch",
    source="torch.nn.MultiheadAttention._reset_parameters and torch.nn.TransformerEncoderLayer",
    why="What torch's own attention starts with: Xavier on the packed matrix, a quarter of the logits' variance.",
    bias=lambda weight: Uniform(weight.fan_in**-0.5) if weight.role in FEED_FORWARD else Constant(0.0),
)
def xavier_packed(weight: Weight) -> Law:
    r"""Query, key and value as :class:`torch.nn.MultiheadAttention` leaves them; the rest as ``nn.Linear`` does.

    Three projections lie in one matrix of shape ``(3d, d)``, and ``xavier_uniform_`` takes ``3d`` for the fan-out. Each
    gets variance :math:`2/(d + 3d) = 1/(2d)` and is √2 too narrow. The output projection and, in
    :class:`torch.nn.TransformerEncoderLayer`, the feed-forward matrices are ``nn.Linear`` as it comes
    (:func:`torch_default`); only the feed-forward biases are random. :class:`torch.nn.Transformer` draws those matrices
    again by Xavier, but leaves the packed one packed.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["xavier_packed"].predict(d_model=512, n_heads=8).logit_std
        0.5
        >>> from torch.nn import MultiheadAttention
        >>> MultiheadAttention(512, 8).in_proj_weight.abs().max().item() / math.sqrt(6 / (4 * 512))
        1.0
    """
    if weight.role in OPERANDS:
        return Uniform.of_std(math.sqrt(2 / (weight.fan_in + 3 * weight.fan_out)))
    return law_outside_blocks(weight) or Uniform(weight.fan_in**-0.5)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}\left(0, \frac{g^2}{\text{fan\_in}}\right), \qquad g = \sqrt{2}",
    cite="he2015delving",
    source="He et al. (2015); torch.nn.init.kaiming_normal_",
    why="A ReLU halves the second moment, and the factor 2 restores it; nothing in attention halves anything.",
)
def kaiming_normal(weight: Weight, *, gain: float = math.sqrt(2)) -> Law:
    r"""Fill so that a linear map after a ReLU keeps the second moment.

    Queries and keys pass no ReLU: their logits have standard deviation 2, and values and outputs together multiply the
    variance by 4 a layer.

    Args:
        gain: multiplies the standard deviation; √2 for a ReLU.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["kaiming_normal"].predict(d_model=512, n_heads=8).logit_std
        2.0
    """
    return by_fan_in(weight, Normal, gain)


@scheme(
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = g \sqrt{\frac{3}{\text{fan\_in}}}, \qquad g = \sqrt{2}",
    cite="he2015delving",
    source="He et al. (2015), with a uniform law; torch.nn.init.kaiming_uniform_",
    why="As kaiming_normal, without far entries.",
)
def kaiming_uniform(weight: Weight, *, gain: float = math.sqrt(2)) -> Law:
    r"""The standard deviation of :func:`kaiming_normal`, uniformly.

    torch's ``kaiming_uniform_(a=√5)`` is another thing: :func:`torch_default`.

    Args:
        gain: multiplies the standard deviation; √2 for a ReLU.

    Example:
        >>> from attntut.anatomy.weight import weights
        >>> kaiming_uniform(weights(64, 4)["query"])
        Uniform(bound=0.3062)
    """
    return by_fan_in(weight, Uniform.of_std, gain)


@scheme(
    formula=r"W_{ij}, b_i \sim \mathcal{U}(-a, a), \qquad a = \frac{1}{\sqrt{\text{fan\_in}}}",
    cite="paszke2019pytorch",
    source="torch.nn.Linear.reset_parameters; torch.nn.Embedding.reset_parameters",
    why="What every layer that nobody initialized has: a bound where a standard deviation was meant, 1/√3 of LeCun.",
    bias=lambda weight: Constant(0.0) if weight.is_table else Uniform(weight.fan_in**-0.5),
)
def torch_default(weight: Weight) -> Law:
    r"""Matrices and biases as :class:`torch.nn.Linear` draws them; tables N(0, 1), as :class:`torch.nn.Embedding`.

    ``reset_parameters`` calls ``kaiming_uniform_(a=√5)``, whose gain √(2/(1 + 5)) = 1/√3 turns the bound √(3/fan_in)
    into 1/√fan_in, and the variance into 1/(3 fan_in). That of the logits is a ninth of Xavier's.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["torch_default"].predict(d_model=512, n_heads=8).logit_std
        0.3333
    """
    return Normal(1.0) if weight.is_table else Uniform(weight.fan_in**-0.5)


@scheme(
    formula=(
        r"a_o = \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}, \qquad a_{q,k,v} = \frac{a_o}{\sqrt{2}}, \qquad "
        r"a_{1,2} = \frac{1}{\sqrt{\text{fan\_in}}}"
    ),
    cite="ott2019fairseq",
    source="fairseq, modules/multihead_attention.py, reset_parameters; modules/transformer_layer.py, build_fc1",
    why="The accident of the packed matrix, kept on purpose when query, key and value were taken apart.",
    bias=lambda weight: Uniform(weight.fan_in**-0.5) if weight.role in (*OPERANDS, *FEED_FORWARD) else Constant(0.0),
)
def fairseq(weight: Weight) -> Law:
    r"""Query, key and value by Xavier with gain 1/√2, the output by Xavier, the feed-forward network as torch made it.

    "Empirically observed the convergence to be much better with the scaled initialization", says the comment in
    fairseq. The gain gives separate matrices the width of :func:`xavier_packed`. Token tables are
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
    formula=r"\sigma_{q,k,v,o}^2 = \frac{2}{5d}, \qquad \sigma_{1,2}^2 = \frac{2}{d + d_{\text{ff}}}",
    cite="nguyen2019transformers",
    source="Nguyen & Salazar (2019); tnq177/transformers_without_tears, layers.py",
    why="Attention as narrow as the feed-forward network, so that a post-norm Transformer trains.",
)
def small_init(weight: Weight) -> Law:
    r"""Attention matrices with the standard deviation that Xavier gives to the feed-forward network.

    Xavier's variance between widths d and 4d is :math:`2/(d + 4d) = 2/(5d)`. In the authors' code the feed-forward
    matrices themselves are Xavier normal, the same number if :math:`d_\text{ff} = 4d`; GPT-NeoX writes √(2/(5d))
    everywhere. Token tables are N(0, 1/d), multiplied by √d when they are looked up.

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
    formula=(
        r"\sigma_q^2 = \frac{1}{d\,d_{\text{head}}}, \qquad \sigma_{k,v}^2 = \frac{1}{d}, \qquad "
        r"\sigma_o^2 = \frac{1}{h\,d_{\text{head}}}, \qquad \sigma_{1,2}^2 = \frac{1}{\text{fan\_in}}"
    ),
    cite="raffel2020t5",
    source="transformers, modeling_t5.py, T5PreTrainedModel._init_weights",
    why="The 1/√d_head of the logits is put into the query's weights, once, and left out of the forward pass.",
    requires=("unscaled logits",),
)
def t5(weight: Weight) -> Law:
    r"""LeCun's rule, with the query narrower by the factor that T5 does not multiply its logits with.

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


@scheme(
    formula=(
        r"a = \sqrt{\frac{6}{\text{fan\_in} + \text{fan\_out}}}, \qquad b_{1,2} \sim \mathcal{N}(0, 10^{-12}), \qquad "
        r"W_{\text{readout}} = 0"
    ),
    cite="dosovitskiy2021image",
    source="google-research/vision_transformer, vit_jax/models_vit.py",
    why="The Vision Transformer as it was trained: Xavier, and a readout of 0, so that the first loss is ln(classes).",
    bias=lambda weight: Normal(1e-6) if weight.role in FEED_FORWARD else Constant(0.0),
)
def vit_jax(weight: Weight) -> Law:
    r"""Xavier uniform for each projection by itself, and a readout of zeros.

    The patches' projection is LeCun's (Flax truncates the Gaussian; here it is not).
    timm's ``weight_init="jax"`` applies the rule to the packed matrix, and so gets :func:`xavier_packed`'s query, key
    and value; its ``"moco"`` does not.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["vit_jax"].predict(d_model=768, n_heads=12)
        >>> prediction.logit_std, prediction.std["readout"]
        (1.0, 0.0)
    """
    return Constant(0.0) if weight.role == "readout" else xavier_uniform(weight)


@scheme(
    formula=r"\sigma = \frac{1}{\sqrt{\text{fan\_in}}}, \text{ cut at } 3\sigma, \qquad E \sim \mathcal{N}(0, 1)",
    cite="olmo2024furious",
    source="allenai/OLMo-core, nn/transformer/init.py, InitMethod.fan_in, as of 2025",
    year=2025,
    why="Every matrix keeps the variance of what it reads, from embeddings of variance 1 to the readout.",
)
def fan_in(weight: Weight) -> Law:
    r"""LeCun's rule with a cut, and tables of unit variance.

    OLMo-core also has ``llama_depth``, which is :func:`~attntut.init.depth.depth_index`. The cut at 3σ takes 1.3 % off
    the standard deviation and is not corrected for.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["fan_in"].predict(d_model=256, n_heads=4).std
        >>> std["query"], std["feed_forward_out"], std["embedding"]
        (0.0617, 0.0308, 1.0)
    """
    return Normal(1.0) if weight.is_table else TruncNormal(weight.fan_in**-0.5, cut=3.0)


@scheme(
    formula=r"\sigma_{q,k,v} = \frac{1}{\sqrt d}, \quad \sigma_1 = \frac{0.4}{\sqrt d}, \text{ uniform,} "
    r"\quad W_o = W_2 = 0",
    cite="karpathy2025nanochat",
    source="karpathy/nanochat, nanochat/gpt.py, init_weights, as of 2026",
    year=2026,
    why="Branches start at 0, what they read keeps its variance, and the readout starts as a guess.",
    requires=("pre-LN",),
)
def nanochat(weight: Weight) -> Law:
    r"""Uniform readers, writers of 0, embeddings N(0, 0.8²) and a readout N(0, 0.001²).

    A uniform law has no outliers; its bound is √3 σ. The first matrix of the feed-forward network was 1/√d until early
    2026. The model has RMSNorm without gains and QK-norm with the gain 1.2² = 1.44, as
    :func:`~attntut.init.parts.qk_gain`, so the scale of query and key weights does not reach the logits there; in a
    model without QK-norm it does. The port in transformers draws N(0, 0.02²) instead, with 1/√(2L) at the output.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["nanochat"].predict(d_model=256, n_heads=4).std
        >>> std["query"], std["feed_forward_in"], std["output"], std["embedding"]
        (0.0625, 0.025, 0.0, 0.8)
    """
    if weight.role in (*BRANCH_OUT, "position"):
        return Constant(0.0) if weight.role in BRANCH_OUT else Normal(0.02)
    if weight.role == "embedding":
        return Normal(0.8) if weight.is_table else Normal(weight.fan_in**-0.5)
    if weight.role == "readout":
        return Normal(0.001)
    return Uniform.of_std((0.4 if weight.role == "feed_forward_in" else 1.0) * weight.fan_in**-0.5)
