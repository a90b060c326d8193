"""One standard deviation for all: it fits one width, and the schemes differ in which."""

from __future__ import annotations

from attntut.anatomy.weight import BRANCH_OUT, Weight
from attntut.init.laws import Law, Normal, TruncNormal, Uniform
from attntut.init.registry import scheme


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}(0, \sigma^2), \qquad \sigma = 0.02",
    cite="radford2018improving",
    source="Radford et al. (2018), model specifications",
    why="One number, good for the width it was found at; the scale of the signal then depends on the width.",
)
def normal(weight: Weight, *, std: float = 0.02) -> Law:
    r"""A Gaussian of the same width for every matrix.

    The logits' standard deviation is d σ², in proportion to ``d_model``: with σ = 0.02 it is 0.31 at 768 and 1.6 at
    4096. "Since layernorm is used extensively throughout the model, a simple weight initialization of N(0, 0.02) was
    sufficient", says the source, whose model has width 768. Tables are drawn with the same σ, and so are embeddings and
    readouts.

    Args:
        std: the σ of the formula. The paper's "N(0, 0.02)" is this number, not its square.

    Example:
        >>> from attntut.init import schemes
        >>> [schemes()["normal"].predict(d, n_heads=8).logit_std for d in (768, 4096)]
        [0.307, 1.638]
    """
    return Normal(std)


@scheme(
    formula=r"W_{ij} \sim \mathcal{U}(-a, a), \qquad a = 0.1, \qquad \sigma = a / \sqrt{3}",
    cite="vaswani2018tensor2tensor",
    source="Vaswani et al. (2018): tensor2tensor, utils/optimize.py, initializer 'uniform'",
    why="The usual choice of the recurrent years; kept as an option beside the fan rules that replaced it.",
)
def uniform(weight: Weight, *, bound: float = 0.1) -> Law:
    r"""Uniform between −a and a for every matrix.

    The bound is √3 times the standard deviation; taking one for the other makes the logits three times too large or too
    small. The bound ±0.1 is that of the initializer ``"uniform"`` in tensor2tensor; its Transformer uses
    :func:`~attntut.init.fan.xavier_uniform`.

    Args:
        bound: the a of the formula.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["uniform"].predict(d_model=512, n_heads=8)
        >>> prediction.std["query"], prediction.logit_std
        (0.0577, 1.707)
    """
    return Uniform(bound)


@scheme(
    formula=(
        r"W_{ij} \sim \mathcal{N}(0, \sigma^2) \text{ given } |W_{ij}| \le c\,\sigma, \qquad \sigma = 0.02,\; c = 2"
    ),
    cite="devlin2019bert",
    source="tf.keras.initializers.TruncatedNormal, as in BERT; torch.nn.init.trunc_normal_ cuts elsewhere",
    why="No outlier among the first weights, at the price of a standard deviation that is not the one you wrote.",
)
def trunc_normal(weight: Weight, *, std: float = 0.02, cut: float = 2.0, corrected: bool = False) -> Law:
    r"""A Gaussian whose tails are drawn again.

    Three conventions share the name. TensorFlow's and Keras's ``TruncatedNormal`` cut at 2σ and leave it at that:
    0.880 σ is left (:class:`~attntut.init.laws.TruncNormal`), 12 % less spread, 23 % smaller logits. The
    variance-scaling initializers of Keras and JAX, and timm's ``lecun_normal_``, divide by 0.880 first
    (``corrected=True``). :func:`torch.nn.init.trunc_normal_` cuts at the *absolute* numbers ±2, which at σ = 0.02 is
    100 σ, and does nothing (``cut=2 / std``).

    Args:
        std: the σ before the cut, or with ``corrected`` the standard deviation after it.
        cut: c, in multiples of σ.
        corrected: whether to widen the Gaussian so that what is left has standard deviation ``std``.

    Example:
        >>> from attntut.init import schemes
        >>> ways = ({}, {"corrected": True}, {"cut": 100})
        >>> [schemes()["trunc_normal"].predict(64, 4, **way).std["query"] for way in ways]
        [0.0176, 0.02, 0.02]
    """
    return TruncNormal.of_std(std, cut) if corrected else TruncNormal(std, cut)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}(0, 0.02^2) \text{ given } |W_{ij}| \le 0.04, \qquad b = 0",
    cite="devlin2019bert",
    source="Devlin et al. (2019): google-research/bert, modeling.py, create_initializer",
    why="What BERT was trained from; the width of the paper's models, 768 and 1024, is built into it.",
)
def bert(weight: Weight) -> Law:
    r"""A Gaussian of width 0.02, cut at twice that; embeddings and positions too.

    The released code calls TensorFlow's ``truncated_normal_initializer(stddev=0.02)``, which does not make up for the
    cut: 0.0176 is left. Hugging Face's BERT draws the plain N(0, 0.02²) instead, 14 % wider: :func:`normal`.

    Example:
        >>> from attntut.init import schemes
        >>> prediction = schemes()["bert"].predict(d_model=768, n_heads=12)
        >>> prediction.std["query"], prediction.logit_std
        (0.0176, 0.2377)
    """
    return TruncNormal(0.02, cut=2.0)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}(0, 0.02^2), \qquad P_{ij} \sim \mathcal{N}(0, 0.01^2), \qquad b = 0",
    cite="radford2019language",
    source="openai/gpt-2, src/model.py: conv1d, wte and wpe",
    why="The code that OpenAI released, in which no matrix is scaled by the depth.",
)
def gpt2_released(weight: Weight) -> Law:
    r"""Gaussians: 0.02 for matrices and tokens, 0.01 for positions.

    Radford et al. (2019) write that residual layers are scaled by one over the root of their number. The released
    ``src/model.py`` does no such thing; the scheme ``gpt2`` does what the paper says.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["gpt2_released"].predict(d_model=768, n_heads=12, n_layers=12).std
        >>> std["output"], std["position"]
        (0.02, 0.01)
    """
    return Normal(0.01 if weight.role == "position" else 0.02)


@scheme(
    formula=r"\sigma = 0.006, \qquad \sigma_o = \sigma_2 = \frac{0.006}{\sqrt{2L}}, \qquad b = 0",
    cite="zhang2022opt",
    source="Zhang et al. (2022); facebookresearch/metaseq, utils.py and transformer_decoder_layer.py",
    why="A narrow Gaussian made for width 12288, where it gives logits of standard deviation 0.44.",
)
def opt(weight: Weight) -> Law:
    r"""A Gaussian of width 0.006, less at the end of each branch.

    L is the number of blocks. It was used for every size of OPT. At the smallest, width 768, the logits
    have standard deviation 0.028, and the entropy of attention is 0.0004 nats below its maximum. Hugging Face's OPT
    draws N(0, 0.02²).

    Example:
        >>> from attntut.init import schemes
        >>> [schemes()["opt"].predict(d, n_heads=12).logit_std for d in (768, 12288)]
        [0.0276, 0.442]
    """
    return Normal(0.006 * (weight.n_layers * 2) ** -0.5 if weight.role in BRANCH_OUT else 0.006)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}(0, 0.02^2)",
    cite="touvron2023llama",
    source="transformers, LlamaConfig.initializer_range = 0.02; Touvron et al. (2023) do not say what they used",
    why="What a Llama made from its configuration starts with.",
)
def llama(weight: Weight) -> Law:
    r"""A Gaussian of width 0.02 for everything; there are no biases.

    This is the default of the Hugging Face configuration, not a finding: the paper is silent, and its training code was
    not released. At width 4096 the logits have standard deviation 1.6.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["llama"].predict(d_model=4096, n_heads=32).logit_std
        1.638
    """
    return Normal(0.02)


@scheme(
    formula=r"W_{ij} \sim \mathcal{N}(0, 0.02^2) \text{ given } |W_{ij}| \le 2, \qquad b = 0",
    cite="touvron2021training",
    source="Touvron et al. (2021); timm, vision_transformer.py, init_weights_vit_timm",
    why="The usual start of vision transformers in PyTorch; the patches' projection stays as torch made it.",
)
def vit(weight: Weight) -> Law:
    r"""The truncated Gaussian of timm, whose cut is so far out that it is none.

    timm's ``trunc_normal_`` has absolute bounds, like torch's: ±2 is 100 σ. The projection of the patches is a
    convolution, which timm leaves at torch's default, uniform within :math:`1/\sqrt{\text{fan\_in}}`; Hugging Face's
    ViT draws it from N(0, 0.02²) too. The Vision Transformer of the paper starts otherwise:
    :func:`~attntut.init.fan.vit_jax`.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["vit"].predict(d_model=768, n_heads=12).logit_std
        0.3072
    """
    if weight.role == "embedding" and not weight.is_table:
        return Uniform(weight.fan_in**-0.5)
    return TruncNormal(0.02, cut=100.0)
