"""What starts with a part that the plain Transformer lacks: gains of QK-norm, sinks, gates, slopes."""

from __future__ import annotations

from functools import partial

import torch

from attntut._checks import check_number
from attntut.anatomy.view import ModelView
from attntut.anatomy.weight import Weight
from attntut.init.laws import Law, Normal
from attntut.init.registry import scheme
from attntut.init.width import unit_logits


def _set_query_gain(view: ModelView, generator: torch.Generator | None, *, gain: float) -> None:
    check_number("gain", gain)
    for name, (weight, _) in view.norms.items():
        own = name.rpartition(".")[2].lower()
        if weight is not None and own.startswith("q") and "norm" in own:
            weight.fill_(gain - (f"{name}.weight" in view.zero_centred))


@scheme(
    formula=r"s_{ij} = \frac{(g \odot \hat q_i)^\top \hat k_j}{\sqrt{d_h}}, \quad g = 1.44 \qquad "
    r"\Rightarrow \qquad \sigma_s = g, \quad |s_{ij}| \le g \sqrt{d_h}",
    cite="henry2020query",
    source="Henry et al. (2020); gains: karpathy/nanochat, nanochat/gpt.py, 1.2 on queries and on keys, as of 2026",
    year=2026,
    why="With a norm on queries and keys the weights no longer set the logits: the gain does, and it is the only knob.",
    requires=("QK-norm",),
    finish=partial(_set_query_gain, gain=1.44),
    predicts_logits=lambda query, key, scale, *, gain=1.44: abs(gain) * unit_logits(query, key, scale),
)
def qk_gain(weight: Weight, *, gain: float = 1.44) -> Law:
    r"""N(0, 0.02²), and the gain of the query's norm is the standard deviation of the logits.

    Unit vectors at random angles have cosines of standard deviation :math:`1/\sqrt{d_h}`; lengths
    :math:`g\sqrt{d_h}` and :math:`\sqrt{d_h}` and the factor :math:`1/\sqrt{d_h}` leave g. Most models start at 1
    (Qwen3, OLMo 2); nanochat at 1.44.

    Args:
        gain: g.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["qk_gain"].predict(d_model=256, n_heads=4).logit_std
        1.44
    """
    return Normal(0.02)


def _draw_sinks(view: ModelView, generator: torch.Generator | None, *, start: float = 0.0, std: float = 0.02) -> None:
    check_number("start", start), check_number("std", std, low=0)
    for parameter in view.gains_named("sink", "sinks"):
        parameter.normal_(start, std, generator=generator)


@scheme(
    formula=r"a_{ij} = \frac{e^{s_{ij}}}{e^{b_h} + \sum_{j'} e^{s_{ij'}}}, \qquad b_h \sim \mathcal{N}(0, 0.02^2)",
    cite="openai2025gptoss",
    source="OpenAI (2025); huggingface/transformers, models/gpt_oss/modeling_gpt_oss.py",
    why="A head that finds nothing can give its weight to the sink, which starts with 1/(n + 1) of uniform attention.",
    requires=("sink",),
    finish=_draw_sinks,
)
def attention_sink(weight: Weight) -> Law:
    r"""N(0, 0.02²) for everything, the sinks included.

    Without it, trained heads use the first token as a sink. Beside n logits of spread σ_s it takes the share
    :math:`e^b / (e^b + n\,e^{\sigma_s^2/2})`, so it matters at the start for few keys only. Megatron has the constant
    0 as well (``softmax_type="off-by-one"``): ``std=0``.

    Args:
        start: mean of the sinks.
        std: their standard deviation.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["attention_sink"].options
        {'start': 0.0, 'std': 0.02}
    """
    return Normal(0.02)


def _set_gate_bias(view: ModelView, generator: torch.Generator | None, *, bias: float = 0.0) -> None:
    check_number("bias", bias)
    for entry in view.by_role("gate"):
        if entry.bias is not None:
            entry.bias.fill_(bias)


@scheme(
    formula=r"y = W_o\left(\sigma(W_g x + b_g) \odot \text{heads}\right), \qquad "
    r"b_g = 0 \;\Rightarrow\; \text{gate} \approx \tfrac12",
    cite="qiu2025gated",
    source="Qiu et al. (2025); qiuzh20/gated_attention, modeling_qwen3.py",
    why="A gate opens and closes heads token by token; at the start it only halves the branch, unless it has a bias.",
    requires=("output gate",),
    finish=_set_gate_bias,
)
def output_gate(weight: Weight) -> Law:
    r"""N(0, 0.02²) for everything, the gate included.

    σ(z) of small z is ½ + z/4: the branch has half its size, as if the output matrix were drawn with half its standard
    deviation. A bias of 4 opens the gate to 0.98.

    Args:
        bias: of the gate.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["output_gate"].requires
        ('output gate',)
    """
    return Normal(0.02)


def _draw_shares(view: ModelView, generator: torch.Generator | None) -> None:
    for parameter in view.gains_named("lambda_*"):
        parameter.normal_(0, 0.1, generator=generator)


@scheme(
    formula=r"A = \operatorname{softmax}(s_1) - \lambda \operatorname{softmax}(s_2), \quad "
    r"\lambda_0 = 0.8 - 0.6\,e^{-0.3 (l - 1)}, \qquad \lambda_{q,k} \sim \mathcal{N}(0, 0.1^2)",
    cite="ye2024differential",
    source="Ye et al. (2024); huggingface/transformers, models/diffllama/modeling_diffllama.py",
    why="Noise that two attentions share cancels; early blocks start with little of it, later ones with nearly all.",
    requires=("differential attention",),
    finish=_draw_shares,
)
def differential(weight: Weight) -> Law:
    r"""N(0, 0.02²) for the matrices, N(0, 0.1²) for the vectors that λ is made of.

    λ starts near λ₀: 0.2 in the first block, 0.36 in the second, 0.8 in deep ones; the two exponentials differ by about
    0.02√d_head. A norm of each head, times 1 − λ₀, undoes what the difference does to the scale.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["differential"].architecture()
        {'parts': (Differential(layer=1),)}
    """
    return Normal(0.02)


@scheme(
    formula=r"y = (1 + w) \odot \hat x, \quad w = 0, \qquad \sigma = 0.02",
    cite="gemma2024open",
    source="Gemma Team (2024); huggingface/transformers, models/gemma/modeling_gemma.py",
    why="The same function as gains of 1, but weight decay now pulls gains to 1 and not to 0.",
    requires=("zero-centred gains",),
)
def zero_centred_gain(weight: Weight) -> Law:
    r"""N(0, 0.02²), and norms that do nothing, stored as zeros.

    :func:`~attntut.init.initialize_` knows such norms in any model, by listening or by their class, and gives them 0
    for every scheme. Filling them with 1 doubles what every branch reads, and the logits are four times as large.

    Example:
        >>> from attntut import Transformer, TransformerConfig
        >>> from attntut.init import initialize_, schemes
        >>> config = TransformerConfig(n_classes=2, d_input=4, **schemes()["zero_centred_gain"].architecture())
        >>> model = initialize_(Transformer(config), "zero_centred_gain")
        >>> model.blocks[0].attention_norm.weight.abs().max().item()
        0.0
    """
    return Normal(0.02)


def _set_slope(view: ModelView, generator: torch.Generator | None, *, alpha: float = 0.5) -> None:
    check_number("alpha", alpha, low=0, open_low=True)
    for parameter in view.gains_named("alpha"):
        if parameter.numel() == 1:
            parameter.fill_(alpha)


@scheme(
    formula=r"y = \gamma \odot \tanh(\alpha x) + \beta, \quad \alpha = 0.5, \qquad \sigma = 0.02",
    cite="zhu2025transformers",
    source="Zhu et al. (2025), section 4; jiachenzhu/DyT, dynamic_tanh.py",
    why="A bounded function does for training what a norm does, but it does not divide: α must fit the stream's scale.",
    requires=("pre-LN", "DyT"),
    finish=_set_slope,
)
def dyt(weight: Weight) -> Law:
    r"""N(0, 0.02²), and the slope α = 0.5 of the function in the norm's place.

    Branches read tanh(αx), which for a small stream is αx: of embeddings of size 0.02 a norm makes 1, and DyT 0.01. The
    paper takes 0.5 for most models; for language models 0.8 before attention and 0.2 elsewhere, less as they grow
    wider. γ is 1 and β is 0.

    Args:
        alpha: α.

    Example:
        >>> from attntut.init import schemes
        >>> schemes()["dyt"].options
        {'alpha': 0.5}
    """
    return Normal(0.02)
