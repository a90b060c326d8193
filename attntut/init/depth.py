"""Scale by the depth: each block adds to the stream, and the sum must not outgrow what a step can bear."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from attntut._checks import check_choice, check_number
from attntut.anatomy.view import ModelView
from attntut.anatomy.weight import BRANCH, BRANCH_OUT, Weight
from attntut.init.fan import lecun_normal, xavier_normal, xavier_uniform
from attntut.init.laws import Constant, Law, Normal
from attntut.init.registry import law_outside_blocks, scheme
from attntut.init.width import mup

LINEAR_PATH = ("value", "output", "feed_forward_in", "feed_forward_out")  # what a branch's output is proportional to


def is_second_stack(weight: Weight) -> bool:
    """Whether the weight is in a decoder that attends to an encoder: three branches a block, not two."""
    return weight.stack == "decoder" and weight.n_encoder > 0


@scheme(
    formula=r"\sigma = 0.02, \qquad \sigma_o = \sigma_2 = \frac{0.02}{\sqrt{2L}}",
    cite="radford2019language",
    source="Radford et al. (2019); nanoGPT, model.py; Hugging Face, modeling_gpt2.py",
    why="2L branches of equal variance add up to that of one, so the stream keeps its scale through any depth.",
    requires=("pre-LN",),
)
def gpt2(weight: Weight, *, std: float = 0.02) -> Law:
    r"""One Gaussian; the last matrix of each branch is divided by the root of the number of branches.

    The stream is a sum of 2L branches (3L in a decoder that also attends to an encoder); independent ones of variance
    1/(2L) sum to 1. It needs a norm before each branch: without one, a branch grows with the stream. The paper gives
    the factor in words; nanoGPT and Hugging Face have it, the released code of OpenAI has not. Positions are drawn with
    0.02 too, as in nanoGPT and Hugging Face.

    Args:
        std: the standard deviation of all other matrices, 0.02 in the formula.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["gpt2"].predict(d_model=768, n_heads=12, n_layers=12).std
        >>> std["query"], std["output"]
        (0.02, 0.00408)
    """
    branches = (3 if is_second_stack(weight) else 2) * weight.n_layers
    return Normal(std) * (branches**-0.5 if weight.role in BRANCH_OUT else 1)


@scheme(
    formula=r"\sigma_o = \sigma_2 = \frac{2}{L \sqrt{d}}, \qquad \text{all others } \sqrt{\frac{2}{5 d}}",
    cite="black2022gptneox",
    source="EleutherAI/gpt-neox, megatron/model/init_functions.py, wang_init and small_init, as of 2021",
    year=2021,
    why="Shrinks branches like 1/L instead of 1/√L; large language models were trained from it.",
)
def wang(weight: Weight) -> Law:
    r"""The small init of Transformers without Tears, and less still at the end of each branch.

    Black et al. (2022) trained GPT-NeoX-20B from it. No derivation was published: with 1/L, the 2L branches add up to
    a variance that falls with the depth. Tables and readouts get the small init as well, as in the code.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["wang"].predict(d_model=1024, n_heads=16, n_layers=24).std
        >>> std["query"], std["output"]
        (0.0198, 0.0026)
    """
    if weight.role in BRANCH_OUT:
        return Normal(2 / (weight.n_layers * math.sqrt(weight.d_model)))
    return Normal(math.sqrt(2 / (5 * weight.d_model)))


@scheme(
    formula=r"W \sim \text{Xavier} \cdot l^{-1/2}",
    cite="zhang2019improving",
    source="Zhang et al. (2019); bzhangGo/zero, models/transformer.py",
    why="Later blocks start smaller, so that a norm after the addition passes more of the gradient on.",
    requires=("post-LN",),
)
def ds_init(weight: Weight, *, as_in: str = "paper") -> Law:
    r"""Xavier, divided by the root of the number of the block.

    Here l counts blocks from 1; it is not L, their number. All matrices of a block are scaled alike. A norm after each
    addition multiplies gradients by :math:`1/\sqrt{1 + \operatorname{Var} f}`, the branch adds what comes back through
    it; both corrections are smaller for a smaller branch. Zhang, Titov & Sennrich (2019) divide the standard deviation
    by :math:`\sqrt l` (and multiply it by a hyper-parameter α, 1 here); their code hands :math:`l^{-1/2}` to TensorFlow
    as a *variance* scale, and so divides it by :math:`l^{1/4}` only.

    The paper speaks of gradients that vanish towards the first block. In ``attntut``'s post-norm models of one stack
    they do not: from Xavier they are larger there, 2 to 4 times at 12 blocks, and from this scheme 1.2 times.

    Args:
        as_in: ``"paper"`` or ``"code"``.

    Example:
        >>> from attntut.init import schemes
        >>> ds_init = schemes()["ds_init"]
        >>> [ds_init.predict(512, 8, n_layers=6, layer=4, as_in=which).std["query"] for which in ("paper", "code")]
        [0.0221, 0.0313]
    """
    power = {"paper": -0.5, "code": -0.25}[check_choice("as_in", as_in, ("paper", "code"))]
    return law_outside_blocks(weight) or xavier_uniform(weight) * weight.layer**power


def _fixup_gain(weight: Weight) -> float:
    branches = 2 * weight.n_layers
    if weight.n_encoder and weight.n_decoder:
        branches = 2 * weight.n_encoder + 3 * weight.n_decoder
    return branches ** (-1 / 2 if weight.role == "feed_forward_in" else -1 / 6)


@scheme(
    formula=r"W_{q,k,v} \sim \text{Xavier} \cdot B^{-1/6}, \quad W_1 \sim \text{Xavier} \cdot B^{-1/2}, \quad "
    r"W_o = W_2 = 0",
    cite="zhang2019fixup",
    source="Zhang et al. (2019), section 3; hongyi-zhang/Fixup, transformer_zero.py, multihead_attention_zero.py",
    why="With B branches and no norm, a step changes the output by an amount that does not depend on B.",
    requires=("no norm",),
)
def fixup(weight: Weight) -> Law:
    r"""Zero at the end of each branch, and little before it: residual learning without a norm.

    B is the number of branches of the whole model, :math:`2L`, or :math:`2L_e + 3L_d` with a decoder. Its power is
    −1/(2m − 2) with m matrices in a branch: 4 in attention (query and key are counted), 2 in the feed-forward network.
    With a norm, the scale would be divided out. The readout is 0 too; embeddings are N(0, 1/d).

    The paper's networks also have a learnable scalar bias before, and a learnable factor (``branch_gain=1.0``) after,
    the matrices of a branch; nothing here needs them at the start. The code draws query, key and value packed, √2
    smaller than Xavier, and forgets to pass B to cross-attention, where 12 stands for it; neither is done here.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["fixup"].predict(d_model=512, n_heads=8, n_layers=6).std
        >>> std["query"], std["feed_forward_in"], std["output"]
        (0.0292, 0.0081, 0.0)
    """
    if weight.role in (*BRANCH_OUT, "readout"):
        return Constant(0.0)
    if weight.is_table:
        return Normal(weight.d_model**-0.5)
    return law_outside_blocks(weight) or xavier_uniform(weight) * _fixup_gain(weight)


@scheme(
    formula=r"W_{v,o,1,2} \sim \text{Xavier} \cdot 0.67\,L^{-1/4} \;(\text{decoder: } (9L)^{-1/4}), \quad "
    r"E \sim \mathcal{N}\left(0, \tfrac{1}{d}\right) (9L)^{-1/4}",
    cite="huang2020improving",
    source="Huang et al. (2020); layer6ai-labs/T-Fixup, fairseq/modules/transformer_layer.py",
    why="Bounds Adam's first updates without a norm, so that neither norms nor a warm-up are needed.",
    requires=("no norm",),
)
def t_fixup(weight: Weight) -> Law:
    r"""Xavier; the linear path of each branch and the embeddings shrink with the fourth root of the depth.

    The decoder is one that attends to an encoder. The factors are derived from SGD updates of order one, with the
    inputs small as well; a norm would undo both. The bound counts matrices, not biases, whose updates add up with the
    depth. A model of one stack has two branches per block, whatever its mask, and gets the encoder's factor.

    Paper and code differ: the code leaves query and key with fairseq's gain 1/√2 (it undoes that for the value only),
    and multiplies embeddings by √d in the forward pass. Here it is the paper's.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["t_fixup"].predict(d_model=512, n_heads=8, n_layers=6).std
        >>> std["query"], std["value"], std["embedding"]
        (0.0442, 0.0189, 0.0163)
    """
    if weight.role in ("embedding", "position"):
        inputs = 1 if weight.is_table else weight.fan_in
        return Normal((weight.d_model * inputs) ** -0.5 * (9 * weight.n_layers) ** -0.25)
    gain = 1.0
    if weight.role in LINEAR_PATH:
        gain = (9 * weight.n_layers) ** -0.25 if is_second_stack(weight) else 0.67 * weight.n_layers**-0.25
    return law_outside_blocks(weight) or xavier_uniform(weight) * gain


def deepnorm_constants(
    n_layers: int, *, n_encoder: int = 0, n_decoder: int = 0, stack: str = "encoder"
) -> tuple[float, float]:
    r"""DeepNorm's factor of the skip, α, and gain of the weights, β.

    .. math:: \text{one stack: } \alpha = (2L)^{1/4},\; \beta = (8L)^{-1/4}

    .. math:: \text{encoder: } \alpha = 0.81 (N^4 M)^{1/16},\; \beta = 0.87 (N^4 M)^{-1/16}, \qquad
              \text{decoder: } \alpha = (3M)^{1/4},\; \beta = (12M)^{-1/4}

    Wang et al. (2022), figure 2. The released code (torchscale, ``encoder.py``) divides the encoder's weights by
    :math:`(N^4M)^{1/16}/1.15`, which makes the constant 1.15 where the paper has its inverse, 0.87. The bound that
    the constants are to satisfy, :math:`M\beta_d^2/\alpha_d \cdot 4N\beta_e^2/\alpha_e^2 = 1`, decides for the paper:
    1.01 against 1.77.

    Args:
        n_layers: number of blocks of a model of one stack.
        n_encoder, n_decoder: N and M; both > 0 in a model of two stacks.
        stack: of which stack.

    Example:
        >>> deepnorm_constants(12)
        (2.2134, 0.3195)
        >>> deepnorm_constants(0, n_encoder=6, n_decoder=6, stack="encoder")
        (1.4179, 0.497)
    """
    if not (n_encoder and n_decoder):
        return (2 * n_layers) ** 0.25, (8 * n_layers) ** -0.25
    if stack == "encoder":
        root = (n_encoder**4 * n_decoder) ** (1 / 16)
        return 0.81 * root, 0.87 / root
    return (3 * n_decoder) ** 0.25, (12 * n_decoder) ** -0.25


@scheme(
    formula=r"\operatorname{LN}\left((2L)^{1/4} x + f(x)\right), \quad "
    r"W_{v,o,1,2} \sim \text{Xavier} \cdot (8L)^{-1/4}",
    cite="wang2022deepnet",
    source="Wang et al. (2022), figure 2 and section 4; microsoft/torchscale, architecture/encoder.py and decoder.py",
    why="Bounds the update of a post-norm model by a constant that the depth does not enter.",
    requires=("post-LN", "residual scale"),
    architecture=lambda n_layers: {"skip_scale": deepnorm_constants(n_layers)[0]},
)
def deepnorm(weight: Weight) -> Law:
    r"""Xavier with a gain β = (8L)^(−1/4) on the linear path of each branch; the skip is multiplied by α = (2L)^(1/4).

    One step of SGD changes the output by at most a multiple of :math:`2L\,(v^2 + w^2)/\alpha^2`, v and w the scales of
    a branch's matrices: with :math:`v = w = \beta` that is 1. It needs the norm after the addition, and α on the
    *skip*: on the branch, it does the opposite. For two stacks see :func:`deepnorm_constants`. The bound counts
    matrices; the norms' own shifts, which also learn, still add up with the depth.

    Example:
        >>> from attntut.init import schemes
        >>> deepnorm = schemes()["deepnorm"]
        >>> deepnorm.architecture(n_layers=12)
        {'norm': 'post', 'skip_scale': 2.2134}
        >>> std = deepnorm.predict(d_model=512, n_heads=8, n_layers=12).std
        >>> std["query"], std["value"]
        (0.0442, 0.0141)
    """
    _, beta = deepnorm_constants(
        weight.n_layers, n_encoder=weight.n_encoder, n_decoder=weight.n_decoder, stack=weight.stack
    )
    return law_outside_blocks(weight) or xavier_normal(weight) * (beta if weight.role in LINEAR_PATH else 1)


def _sub_ln_gain(weight: Weight) -> float:
    if not (weight.n_encoder and weight.n_decoder):
        return math.sqrt(math.log(2 * weight.n_layers))
    decoder = math.log(3 * weight.n_decoder)
    if weight.stack == "encoder":
        return math.sqrt(decoder * math.log(2 * weight.n_encoder) / 3)
    return 1.0 if weight.is_cross else math.sqrt(decoder)


@scheme(
    formula=r"x + W_o \operatorname{LN}(\ldots), \quad x + W_2 \operatorname{LN}(\ldots), \quad "
    r"W_{v,o,1,2} \sim \text{Xavier} \cdot \sqrt{\ln 2L}",
    cite="wang2022magneto",
    source="Wang et al. (2022), Magneto, section 3; microsoft/torchscale, architecture/encoder.py and decoder.py",
    why="With a norm inside each branch, larger weights mean smaller relative updates: bounded ones at √(ln 2L).",
    requires=("sub-LN",),
)
def sub_ln(weight: Weight) -> Law:
    r"""Xavier with a gain that grows slowly with the depth; a second norm inside each branch takes it out again.

    In front of a norm only the direction of a product counts, and a step turns a large matrix less than a small one.
    For two stacks of N and M blocks, the gain is :math:`\sqrt{\ln(3M) \ln(2N)/3}` in the encoder and
    :math:`\sqrt{\ln 3M}` in the decoder, 1 in cross-attention, as in torchscale, where cross-attention has no inner
    norm either. Without the norm, the gain would be an explosion.

    Example:
        >>> from attntut.init import schemes
        >>> std = schemes()["sub_ln"].predict(d_model=512, n_heads=8, n_layers=12).std
        >>> std["query"], std["value"]
        (0.0442, 0.0788)
    """
    gain = _sub_ln_gain(weight) if weight.role in LINEAR_PATH else 1
    return law_outside_blocks(weight) or xavier_normal(weight) * gain


def _set_gains(view: ModelView, generator: Any, *, gain: float) -> None:
    check_number("gain", gain)
    for parameter in view.gains_named("attention_gain", "feed_forward_gain"):
        parameter.fill_(gain)


@scheme(
    formula=r"x + \alpha f(x), \quad \alpha = 0",
    cite="bachlechner2021rezero",
    source="Bachlechner et al. (2021); majumderb/rezero, rezero/transformer/rztx.py",
    why="Every block starts as the identity, so that signals and gradients cross any depth unchanged.",
    requires=("no norm", "branch gain"),
    architecture=lambda n_layers: {"branch_gain": 0.0},
    finish=lambda view, generator: _set_gains(view, generator, gain=0.0),
)
def rezero(weight: Weight) -> Law:
    r"""Xavier inside the branches, and a learnable factor 0 after each.

    The Jacobian of the whole stack is the identity. At the first step only the α move, since the gradient of what is
    inside a branch has the factor α. The authors' code shares one α between the two branches of a block, here each has
    its own. They drop the norms: x alone reaches the readout, at the scale of the embedding.

    Example:
        >>> import torch
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.init import initialize_, schemes
        >>> config = TransformerConfig(n_classes=2, d_input=4, **schemes()["rezero"].architecture())
        >>> trace = initialize_(Transformer(config), "rezero").trace(torch.randn(1, 3, 4))
        >>> torch.equal(trace.stream[0], trace.stream[-1])
        True
    """
    return law_outside_blocks(weight) or xavier_uniform(weight)


@scheme(
    formula=r"x + \alpha f(x), \quad \alpha = 0 \text{ or } \alpha = 1/\sqrt{2L}",
    cite="de2020batch",
    source="De & Smith (2020)",
    why="Batch normalization makes deep residual networks trainable by shrinking branches; a factor can do that too.",
    requires=("no norm", "branch gain"),
    architecture=lambda n_layers: {"branch_gain": 0.0},
    finish=partial(_set_gains, gain=0.0),
)
def skip_init(weight: Weight, *, gain: float = 0.0) -> Law:
    r"""A learnable factor at the end of each branch, 0 or small at the start.

    Made for convolutional networks without norms, whose matrices keep the variance of what they read; here they are
    :func:`~attntut.init.fan.lecun_normal`. The idea is that of :func:`rezero`, found independently.

    Args:
        gain: α.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["skip_init"].requires, schemes()["skip_init"].options
        (('no norm', 'branch gain'), {'gain': 0.0})
    """
    return lecun_normal(weight)


@scheme(
    formula=r"x + \operatorname{diag}(\lambda_1, \ldots, \lambda_d) f(\operatorname{LN} x), \quad \lambda_i = 10^{-4}",
    cite="touvron2021going",
    source="Touvron et al. (2021), section 2; facebookresearch/deit, cait_models.py",
    why="Deep image Transformers train when their branches start near zero, each channel with a factor of its own.",
    requires=("pre-LN", "branch gain"),
    architecture=lambda n_layers: {"branch_gain": 1e-4, "branch_gain_per_channel": True},
    finish=partial(_set_gains, gain=1e-4),
)
def layer_scale(weight: Weight, *, gain: float = 1e-4) -> Law:
    r"""N(0, 0.02²), and a small learnable factor for each channel of each branch.

    The rule of the paper, CaiT, is λ = 0.1 up to 18 blocks, 1e-5 at 24 and 1e-6 beyond. Its code has 1e-4 by default,
    1e-5 also in the narrow models of 36 blocks (XXS-36), and 1e-6 in S-36, M-36 and M-48. Unlike :func:`rezero` it
    keeps the norm, and no gradient is exactly 0. Its ``trunc_normal_`` cuts at ±2 and so does nothing at 0.02.

    Args:
        gain: λ.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["layer_scale"].architecture(n_layers=24)
        {'norm': 'pre', 'branch_gain': 0.0001, 'branch_gain_per_channel': True}
    """
    return Normal(0.02)


@scheme(
    formula=r"x + \frac{1}{\sqrt{L}} f(x), \qquad W \sim \text{Xavier}",
    cite="noci2022signal",
    source="Noci et al. (2022)",
    why="Tokens grow alike as branches add up; with 1/√L the sum, and the cosine of two tokens, stay bounded in depth.",
    requires=("residual scale",),
    architecture=lambda n_layers: {"residual_scale": n_layers**-0.5},
)
def depth_scaled(weight: Weight) -> Law:
    r"""Xavier, with a fixed factor :math:`1/\sqrt L` on every branch.

    What tokens have in common grows by the factor :math:`1 + \alpha^2` a block; with
    :math:`\alpha^2 = 1/L` it ends at most e times larger, whatever L. Not the same as small weights: the factor also
    scales the gradients, at every step.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["depth_scaled"].architecture(n_layers=16)
        {'residual_scale': 0.25}
    """
    return law_outside_blocks(weight) or xavier_normal(weight)


@scheme(
    formula=r"\sigma_o = \sigma_2 = \frac{0.02}{\sqrt{2 l}}, \qquad \sigma = 0.02 \text{ elsewhere}",
    cite="liang2024torchtitan",
    source="pytorch/torchtitan, models/common/param_init.py; allenai/OLMo-core, InitMethod.llama_depth; as of 2025",
    year=2025,
    why="A branch is as large as its share of what has come before it: block l adds the 2l-th part.",
    requires=("pre-LN",),
)
def depth_index(weight: Weight, *, std: float = 0.02) -> Law:
    r"""The last matrix of each branch is divided by the root of the number of branches so far.

    Here l counts blocks from 1 (the code counts from 0 and adds 1). :func:`gpt2` divides all blocks alike, so that the
    stream grows by a constant in all; here block l adds 1/l of a branch, and the variance grows like ln L. torchtitan
    divides both matrices that come second in its list, W₂ and W₃ of a SwiGLU, although only W₂ writes to the stream;
    it cuts at ±2, which at 0.02 cuts nothing; OLMo cuts at 3σ. Neither is done here. Tables are N(0, 1).

    Args:
        std: the standard deviation of all other matrices.

    Example:
        >>> from attntut.init import schemes
        >>> scheme = schemes()["depth_index"]
        >>> [scheme.predict(768, 12, n_layers=12, layer=layer).std["output"] for layer in (1, 2, 12)]
        [0.0141, 0.01, 0.0041]
    """
    if weight.role not in BRANCH:
        return Normal(1.0 if weight.is_table else weight.fan_in**-0.5)
    return Normal(std) * ((2 * weight.layer) ** -0.5 if weight.role in BRANCH_OUT else 1)


@scheme(
    formula=r"x \leftarrow \sqrt{\tfrac{k-1}{k}}\,x + \tfrac{1}{\sqrt k} f(x), \qquad "
    r"\sigma^2 = \frac{1}{\text{fan\_in}}",
    cite="wolf2020transformers",
    source="huggingface/transformers, models/beam/modeling_beam.py, depth_scaled_residual_add, as of 2026",
    year=2026,
    why="Each branch is an equal share of the stream, whose variance stays 1 at any depth, with no norm to thank.",
    requires=("normalized residual",),
)
def normalized_residual(weight: Weight) -> Law:
    r"""A sum of stream and branch whose squared factors add up to 1.

    Branch k of 2L (counted from 2, for the embedding is the first share) gets 1/√k, and the stream √((k−1)/k). Then
    every share ends with the factor 1/√(2L + 1): it is :func:`depth_scaled`, with the stream divided as it grows.
    Matrices are LeCun's, so that a branch of unit variance stays one; tables are N(0, 1).

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["normalized_residual"].architecture()
        {'parts': (NormalizedResidual(),)}
    """
    return Normal(1.0) if weight.is_table else lecun_normal(weight)


@scheme(
    formula=r"x + \frac{L_0}{L} f(x), \quad \sigma^2 = \frac{1}{\text{fan\_in}}, \quad s = \frac{q^\top k}{d_h}, \quad "
    r"\eta \propto \frac{1}{\text{fan\_in}}",
    cite="dey2025dont",
    source="Dey et al. (2025), table 1; EleutherAI/nanoGPT-mup, branch completep",
    why="Branches shrink like 1/L, so that what one step changes in a layer is the same at every depth: rates found "
    "on a small model hold for a deep one.",
    requires=("residual scale", "1/d_head logits", "learning rates by role"),
    architecture=lambda n_layers: {"residual_scale": 2 / n_layers},
)
def completep(weight: Weight, *, zero_readout: bool = True) -> Law:
    r"""The maximal update parametrization, with branches multiplied by L₀/L, L₀ = 2.

    1/√L keeps the stream's variance; 1/L keeps every layer learning features that are not linear in its weights, says
    the paper. Weights are those of :func:`~attntut.init.width.mup`, and so are the rates
    (:func:`~attntut.init.width.learning_rates`); the paper also scales Adam's ε and the weight decay.

    Args:
        zero_readout: as in :func:`~attntut.init.width.mup`.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["completep"].architecture(n_layers=8, d_head=16)
        {'scale': 0.0625, 'residual_scale': 0.25}
    """
    return mup(weight, zero_readout=zero_readout)


@scheme(
    formula=r"\operatorname{LN}(x) / \sqrt{l}, \qquad \sigma = 0.02",
    cite="sun2025curse",
    source="Sun et al. (2025), LayerNorm Scaling; lmsdss/LayerNorm-Scaling, peft_pretraining/modeling_llama.py",
    why="Deep pre-LN blocks are nearly the identity; if they read less, the stream grows slower, and they count.",
    requires=("pre-LN", "LN/√l"),
)
def ln_scale(weight: Weight) -> Law:
    r"""One Gaussian for all; what each branch reads is divided by the root of its block's number.

    The factor belongs to the architecture and is never learned. Its authors advise against depth-scaled weights beside
    it, which would shrink branches twice. Queries and keys read less too: the logits of block l have 1/l of the first's
    spread.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["ln_scale"].architecture()
        {'norm': 'pre', 'parts': (DepthDividedNorm(),)}
    """
    return Normal(0.02)
