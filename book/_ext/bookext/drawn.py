"""What a scheme of ``attntut.init`` promises of a model, and what a drawn model shows.

One small model is drawn for each scheme, of the architecture that the scheme asks for. Predictions and measurements
must agree within the sampling error, or :func:`draw` says where they do not.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attntut import MultiHeadAttention, Transformer, TransformerConfig, seeded
from attntut.init import Scheme, initialize_, view
from attntut.init.requirements import REQUIREMENTS
from attntut.measure import attention_entropy

SHAPE = dict(n_classes=64, vocab_size=256, seq_len=64, d_model=64, n_heads=4, n_layers=6)
N_KEYS, D_HEAD, N_LAYERS = SHAPE["seq_len"], SHAPE["d_model"] // SHAPE["n_heads"], SHAPE["n_layers"]
LAYER = 3  # the block whose numbers are shown: neither the first, nor the last
BATCH = 8
SIGMAS = 5  # how many standard errors are sampling, and not a mistake
NORMALIZED = ("query", "key", "value", "feed_forward_in")  # in a pre-norm block these read unit variance


@dataclass(frozen=True)
class Pair:
    """A prediction, None where it takes the data to make one, and what was measured."""

    predicted: float | None
    measured: float


@dataclass
class Drawn:
    """The numbers of one scheme, at block :data:`LAYER`; ``problems`` are found in all blocks."""

    std: dict[str, Pair]
    logit_std: Pair
    entropy: Pair
    problems: list[str] = field(default_factory=list)


def draw(scheme: Scheme) -> Drawn:
    """Draw a model from a scheme of the registry and compare.

    >>> from attntut.init import schemes
    >>> drawn = draw(schemes()["xavier_normal"])
    >>> drawn.std["query"].predicted, round(drawn.std["query"].measured, 1), drawn.problems
    (0.125, 0.1, [])
    """
    config = TransformerConfig(**SHAPE | scheme.architecture(N_LAYERS, D_HEAD))
    model = Transformer(config, seed=0)
    needs_batch = "batch" in scheme.requires
    batch = torch.randint(SHAPE["vocab_size"], (16, N_KEYS), generator=seeded(1))
    options: dict[str, Any] = {"batch": batch} if needs_batch else {}
    taken_on_trust = [name for name in scheme.requires if name != "batch" and not REQUIREMENTS[name].wants]
    initialize_(model, scheme.name, generator=seeded(0), force=taken_on_trust, **options)
    problems: list[str] = []
    by_data = needs_batch and scheme.predicts is not None
    with torch.no_grad():
        return Drawn(_weights(scheme, model, by_data, problems), *_attention(scheme, model, problems), problems)


def _weights(scheme: Scheme, model: Transformer, by_data: bool, problems: list[str]) -> dict[str, Pair]:
    shown: dict[str, Pair] = {}
    compared: dict[str, list[tuple[float, int]]] = {}  # (measured / predicted)², 1 where both are 0; number of entries
    for entry in view(model).entries:
        weight = entry.weight
        measured = (entry.view - scheme.law(weight).mean).square().mean().sqrt().item()
        predicted = None if by_data and weight.role not in NORMALIZED and not weight.is_table else scheme.std(weight)
        if weight.layer == LAYER or weight.role not in shown:
            shown[weight.role] = Pair(predicted, measured)
        if predicted is not None:
            square = 1.0 if measured == predicted else (measured / predicted) ** 2 if predicted else math.inf
            compared.setdefault(weight.role, []).append((square, entry.view.numel()))
    for role, found in compared.items():
        squares, sizes = np.array(found).T
        in_all = math.sqrt(np.average(squares, weights=sizes))
        if _compare(f"the weights of the role {role}", in_all, SIGMAS / math.sqrt(2 * sizes.sum()), problems):
            for layer, (square, size) in enumerate(found, 1):
                what = f"the weights of the role {role} in block {layer}"
                _compare(what, math.sqrt(square), SIGMAS / math.sqrt(2 * size), problems)
    return shown


def _attention(scheme: Scheme, model: Transformer, problems: list[str]) -> tuple[Pair, Pair]:
    """Logits of unrelated queries and keys, made from tokens of unit variance."""
    x, y = torch.randn(2, BATCH, N_KEYS, SHAPE["d_model"], generator=seeded(2))
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    logits = torch.stack([attention.logits(x, y) for attention in attentions], dim=1)
    variance = logits.var(-1).mean(-1).double()  # (batch, layers, heads)
    entropy = attention_entropy(logits.softmax(-1)).mean(-1).double()
    sizes = dict(d_model=SHAPE["d_model"], n_heads=SHAPE["n_heads"], n_layers=N_LAYERS)
    stds = [scheme.predict(**sizes, layer=layer).logit_std for layer in range(1, N_LAYERS + 1)]
    entropies = [gaussian_entropy(std, on_sphere="QK-norm" in scheme.requires) for std in stds]
    squared = torch.tensor(stds).double().square()[:, None]
    ratio = torch.where(variance == squared, 1.0, variance / squared)
    deficit = entropy - torch.tensor(entropies).double()[:, None]
    _compare("the logits", ratio.mean().sqrt().item(), SIGMAS * _standard_error(ratio) / 2 + 0.01, problems)
    error = SIGMAS * _standard_error(deficit) + 0.02
    _compare("exp(entropy) of the attention", math.exp(deficit.mean()), error, problems)
    at = LAYER - 1
    return (
        Pair(stds[at], variance[:, at].mean().sqrt().item()),
        Pair(entropies[at], entropy[:, at].mean().item()),
    )


def _standard_error(values: Tensor) -> float:
    """Of the mean of ``(batch, layers, heads)``: what the inputs and what the matrices contribute."""
    per_input, per_matrix = values.mean((1, 2)), values.mean(0).flatten()
    return math.sqrt(per_input.var().item() / len(per_input) + per_matrix.var().item() / len(per_matrix))


def _compare(what: str, ratio: float, error: float, problems: list[str]) -> bool:
    agree = abs(ratio - 1) <= error  # no, where one is not a number
    if not agree:
        problems.append(f"{what}: measured is {ratio:.3f} times predicted, and sampling explains ±{error:.3f}")
    return agree


@functools.cache
def _unit_logits(on_sphere: bool) -> Tensor:
    vectors = torch.randn(2, 32, N_KEYS, D_HEAD, generator=seeded(3))
    query, key = torch.nn.functional.rms_norm(vectors, (D_HEAD,)) if on_sphere else vectors
    return query @ key.mT / math.sqrt(D_HEAD)


@functools.cache
def gaussian_entropy(logit_std: float, *, on_sphere: bool = False) -> float:
    r"""Mean entropy of attention over 64 keys, for Gaussian queries and keys whose logits have this spread.

    :math:`\ln n - \sigma^2/2` for small σ, and right for large ones too. On a sphere (QK-norm) all vectors have one
    length: no query is loud by itself, and the entropy is larger.

    >>> round(gaussian_entropy(0.0), 3), round(gaussian_entropy(0.5), 2), round(gaussian_entropy(2.0), 1)
    (4.159, 4.04, 2.7)
    >>> round(gaussian_entropy(2.0, on_sphere=True), 1)
    2.8
    """
    return attention_entropy((logit_std * _unit_logits(on_sphere)).softmax(-1)).mean().item()
