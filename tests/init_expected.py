"""What every scheme must draw, worked out by hand, and wrong variants that the same check must reject.

A new scheme needs an entry in ``EXPECTED`` and at least one in ``WRONG_VARIANTS``, in the section of its family; the
tests say which are missing. Nothing more is needed.

All numbers are for d = d_model = 64, h = n_heads = 4, d_head = 16, d_ff = 256, L = n_layers = 6, layer l = 3: the
feed-forward matrices are not square, so that a fan that was swapped shows, and l is not L.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import scipy.stats
import torch
from torch import Tensor

from attntut.anatomy.weight import BRANCH, Weight, weights
from attntut.device import seeded
from attntut.init.laws import Constant, Identity, Law, Normal, Orthogonal, TruncNormal, Uniform

SIZES = dict(d_model=64, n_heads=4, n_layers=6, layer=3, d_ff=256)
PLACE = {role: weights(**SIZES)[role] for role in BRANCH}  # type: ignore[arg-type]
CUT_2 = 0.8796256610  # standard deviation of a unit Gaussian cut at ±2: √(1 − 4 φ(2) / (2 Φ(2) − 1))


@dataclass(frozen=True)
class Expected:
    """What a scheme draws at ``SIZES``.

    Args:
        query, key, value, output, feed_forward_in, feed_forward_out: standard deviation of the entries.
        logits: row-wise standard deviation of the logits for uncorrelated inputs of unit variance, with the scale that
            the scheme requires, else 1/√d_head = 1/4.
        kind: the family of the law: ``"normal"``, ``"uniform"``, ``"truncated"`` (at 2σ) or ``"truncated at 3σ"``,
            ``"orthogonal"``, ``"identity"`` or ``"-identity"``, or ``"constant"``. A standard deviation of 0 is always
            constant.
        kinds: roles whose law is of another family.
        mean: of the entries of a constant matrix.
        final: False where ``finish`` puts something else in the place of what the law draws.
    """

    query: float
    key: float
    value: float
    output: float
    feed_forward_in: float
    feed_forward_out: float
    logits: float
    kind: str = "normal"
    kinds: Mapping[str, str] = field(default_factory=dict)
    mean: float = 0.0
    final: bool = True

    def kind_of(self, role: str) -> str:
        kind = self.kinds.get(role, self.kind)
        return kind if getattr(self, role) or kind == "identity" else "constant"


def of(qkv: float, out: float, ff_in: float, ff_out: float, logits: float, kind: str = "normal") -> Expected:
    """Query, key and value alike."""
    return Expected(qkv, qkv, qkv, out, ff_in, ff_out, logits, kind)


def alike(std: float, logits: float, kind: str = "normal") -> Expected:
    """Every matrix alike."""
    return of(std, std, std, std, logits, kind)


EXPECTED: dict[str, Expected] = {
    # --- symmetric ---
    "zeros": alike(0, 0),
    # q = c Σx in each of 16 channels; std of 16 c² Σx Σy / 4 is 4 · 0.0004 · 64
    "constant": dataclasses.replace(alike(0, 0.1024), mean=0.02),
    # Xavier: √(2/128) = 1/8; √(2/320) = 0.0790569
    "zero_query": Expected(0, 0.125, 0.125, 0.125, 0.0790569, 0.0790569, 0, "uniform"),
    "zero_output": Expected(0.125, 0.125, 0.125, 0, 0.0790569, 0, 1, "uniform"),
    # --- plain: logits d σ² ---
    "normal": alike(0.02, 0.0256),  # 64 · 0.0004
    "uniform": alike(0.0577350, 0.2133333, "uniform"),  # 0.1 / √3; 64 · 0.01 / 3
    "trunc_normal": alike(0.0175925, 0.0198077, "truncated"),  # 0.02 · 0.879626; 64 · 0.0004 · 0.773741
    "bert": alike(0.0175925, 0.0198077, "truncated"),
    "gpt2_released": alike(0.02, 0.0256),
    "opt": of(0.006, 0.00173205, 0.006, 0.00173205, 0.002304),  # 0.006 / √12; 64 · 0.000036
    "llama": alike(0.02, 0.0256),
    "vit": alike(0.02, 0.0256),
    # --- fan ---
    "lecun_normal": of(0.125, 0.125, 0.125, 0.0625, 1),  # 1/√64, 1/√256
    "lecun_uniform": of(0.125, 0.125, 0.125, 0.0625, 1, "uniform"),
    "xavier_normal": of(0.125, 0.125, 0.0790569, 0.0790569, 1),  # √(2/128), √(2/320)
    "xavier_uniform": of(0.125, 0.125, 0.0790569, 0.0790569, 1, "uniform"),
    # √(2 / (64 + 192)) = 1/√128; the rest 1/√(3·64), 1/√(3·256)
    "xavier_packed": of(0.0883883, 0.0721688, 0.0721688, 0.0360844, 0.5, "uniform"),
    "kaiming_normal": of(0.1767767, 0.1767767, 0.1767767, 0.0883883, 2),  # √(2/64), √(2/256)
    "kaiming_uniform": of(0.1767767, 0.1767767, 0.1767767, 0.0883883, 2, "uniform"),
    "torch_default": of(0.0721688, 0.0721688, 0.0721688, 0.0360844, 0.3333333, "uniform"),  # 1/√192, 1/√768
    "fairseq": of(0.0883883, 0.125, 0.0721688, 0.0360844, 0.5, "uniform"),  # √½ · 1/8, 1/8, 1/√192, 1/√768
    "small_init": alike(0.0790569, 0.4),  # √(2 / (5 · 64)) = √(2/320); 64 · 2/320
    # 1/√(64·16) = 1/32; logits 1 · √16 · 64 · 1/32 · 1/8
    "t5": Expected(0.03125, 0.125, 0.125, 0.125, 0.125, 0.0625, 1),
    "vit_jax": of(0.125, 0.125, 0.0790569, 0.0790569, 1, "uniform"),
    # √(1 − 6 φ(3) / (2 Φ(3) − 1)) = 0.9865788; logits its square
    "fan_in": of(0.1233224, 0.1233224, 0.1233224, 0.0616612, 0.9733377, "truncated at 3σ"),
    "nanochat": of(0.125, 0, 0.05, 0, 1, "uniform"),  # 1/√64, 0.4/√64
    # --- structured ---
    "orthogonal": of(0.125, 0.125, 0.0625, 0.0625, 1, "orthogonal"),  # 1/√64, 1/√max(64, 256)
    # √2/8, √(2/6)/8, √2/16, √(2/6)/16; logits g²
    "orthogonal_depth": of(0.1767767, 0.0721688, 0.0883883, 0.0360844, 2, "orthogonal"),
    "identity": Expected(
        0, 0.125, 0.125, 0.125, 0.125, 0.0625, 0, kinds={"value": "identity", "output": "identity"}
    ),  # 64 ones among 64²
    # The singular values of Z + I: mean 5/4; of the largest quarter, mean 2.11847 and root mean square 2.12931.
    # √(0.7 · 2.11847 / 64), √(0.4 · 1.25 / 64); logits 0.7 · √16 · 2.12931 / 4
    "mimetic": Expected(0.152220, 0.152220, 0.0883883, 0.0883883, 0.02, 0.02, 1.490514, final=False),
    # queries, keys, W₁: ½/√64, logits 64/256; √(0.05/64 + 0.0001)
    "negative_identity": Expected(
        0.0625,
        0.0625,
        0.0296859,
        0.0296859,
        0.0625,
        0,
        0.25,
        "uniform",
        final=False,
        kinds={"value": "identity", "output": "-identity"},
    ),
    # --- data ---
    "lsuv": dataclasses.replace(
        of(0.125, 0.125, 0.125, 0.0625, 1, "orthogonal"), final=False
    ),  # 1/√fan_in on unit inputs
    "admin": of(0.125, 0.125, 0.0790569, 0.0790569, 1, "uniform"),
    # --- depth ---
    "gpt2": of(0.02, 0.0057735, 0.02, 0.0057735, 0.0256),  # 0.02 / √12
    "wang": of(0.0790569, 0.0416667, 0.0790569, 0.0416667, 0.4),  # √(2/320); 2 / (6 · 8)
    "ds_init": of(0.0721688, 0.0721688, 0.0456435, 0.0456435, 0.3333333, "uniform"),  # Xavier / √3
    # B = 12: Xavier / 1.5130857 and / √12; logits 1 / 12^(1/3)
    "fixup": of(0.0826126, 0, 0.0228218, 0, 0.4367902, "uniform"),
    # 0.67 / 6^(1/4) = 0.4280921
    "t_fixup": Expected(0.125, 0.125, 0.0535115, 0.0535115, 0.0338436, 0.0338436, 1, "uniform"),
    "deepnorm": Expected(0.125, 0.125, 0.0474898, 0.0474898, 0.0300352, 0.0300352, 1),  # 48^(−1/4) = 0.3799178
    "sub_ln": Expected(0.125, 0.125, 0.1970449, 0.1970449, 0.1246220, 0.1246220, 1),  # √(ln 12) = 1.5763589
    "rezero": of(0.125, 0.125, 0.0790569, 0.0790569, 1, "uniform"),
    "skip_init": of(0.125, 0.125, 0.125, 0.0625, 1),
    "layer_scale": alike(0.02, 0.0256),
    "depth_scaled": of(0.125, 0.125, 0.0790569, 0.0790569, 1),
    "depth_index": of(0.02, 0.0081650, 0.02, 0.0081650, 0.0256),  # 0.02 / √6
    "normalized_residual": of(0.125, 0.125, 0.125, 0.0625, 1),
    "completep": of(0.125, 0.125, 0.125, 0.0625, 0.25),
    "ln_scale": alike(0.02, 0.0256),
    # --- width ---
    "mup": of(0.125, 0.125, 0.125, 0.0625, 0.25),  # logits 1/16 · √16 · 64 / 64
    "unit_scaling": alike(1, 1),
    "spectral": of(0.0625, 0.0625, 0.0833333, 0.0208333, 0.25),  # 1 / (8 + 8), 2 / (16 + 8), ½ / (16 + 8)
    "ngpt": dataclasses.replace(alike(0.125, 1), final=False),  # 64 numbers of length 1; cosines 1/√16 times √16
    # --- parts ---
    "qk_gain": alike(0.02, 1.44),
    "attention_sink": alike(0.02, 0.0256),
    "output_gate": alike(0.02, 0.0256),
    "differential": alike(0.02, 0.0256),  # √2/4 · √8 · 64 · 0.0004
    "zero_centred_gain": alike(0.02, 0.0256),
    "dyt": alike(0.02, 0.0256),
}


Choice = Law | Callable[[Weight], Law]
OUT = ("output", "feed_forward_out")
QK, VO, QKV = ("query", "key"), ("value", "output"), ("query", "key", "value")


def where(roles: tuple[str, ...], inside: Choice, elsewhere: Choice) -> Callable[[Weight], Law]:
    """One law for some roles, another for the rest."""

    def law(weight: Weight) -> Law:
        chosen = inside if weight.role in roles else elsewhere
        return chosen if isinstance(chosen, Law) else chosen(weight)

    return law


def xavier_std(weight: Weight) -> float:
    return math.sqrt(2 / (weight.fan_in + weight.fan_out))


def xavier(weight: Weight) -> Law:
    return Uniform.of_std(xavier_std(weight))


def packed(weight: Weight) -> Law:
    """Xavier as it comes out where three projections are taken for one."""
    return Uniform.of_std(math.sqrt(2 / (weight.fan_in + 3 * weight.fan_out)))


def linear(weight: Weight) -> Law:
    """``nn.Linear`` as it comes."""
    return Uniform(weight.fan_in**-0.5)


def lecun(weight: Weight) -> Law:
    return Normal(weight.fan_in**-0.5)


def xavier_normal(weight: Weight) -> Law:
    return Normal(xavier_std(weight))


def scaled(law_of: Callable[[Weight], Law], factor: float) -> Callable[[Weight], Law]:
    return lambda weight: law_of(weight) * factor


ZERO = Constant(0)

WRONG_VARIANTS: list[tuple[str, str, Callable[[Weight], Law]]] = [
    # --- symmetric ---
    ("zeros", "values not 0", where(("value",), Normal(0.02), ZERO)),
    ("zeros", "constant instead of 0", lambda w: Constant(0.02)),
    ("constant", "0 instead of constant", lambda w: ZERO),
    ("constant", "scattered around 0", lambda w: Normal(0.02)),
    ("zero_query", "key for query", where(("key",), ZERO, xavier)),
    ("zero_query", "key and query", where(QK, ZERO, xavier)),
    ("zero_output", "attention only", where(("output",), ZERO, xavier)),
    ("zero_output", "the first matrix of a branch for the last", where(("value", "feed_forward_in"), ZERO, xavier)),
    # --- plain ---
    ("normal", "variance for std", lambda w: Normal(0.02**2)),
    ("normal", "std for variance", lambda w: Normal(0.02**0.5)),
    ("normal", "uniform of the same std", lambda w: Uniform.of_std(0.02)),
    ("uniform", "bound for std", lambda w: Uniform.of_std(0.1)),
    ("uniform", "width of the interval for its half", lambda w: Uniform(0.05)),
    ("uniform", "Gaussian of the same std", lambda w: Normal(0.1 / 3**0.5)),
    ("trunc_normal", "corrected for the cut", lambda w: TruncNormal.of_std(0.02)),
    ("trunc_normal", "absolute cut", lambda w: TruncNormal(0.02, cut=2 / 0.02)),
    ("trunc_normal", "cut at 3σ", lambda w: TruncNormal(0.02, cut=3)),
    ("bert", "the plain Gaussian", lambda w: Normal(0.02)),
    ("bert", "a Gaussian of the right std", lambda w: Normal(0.02 * CUT_2)),
    ("gpt2_released", "scaled by depth", where(OUT, Normal(0.02 / 12**0.5), Normal(0.02))),
    ("gpt2_released", "the positions' std for all", lambda w: Normal(0.01)),
    ("opt", "not scaled by depth", lambda w: Normal(0.006)),
    ("opt", "L for 2L", where(OUT, Normal(0.006 / 6**0.5), Normal(0.006))),
    ("opt", "l for L", where(OUT, lambda w: Normal(0.006 / (2 * w.layer) ** 0.5), Normal(0.006))),
    ("opt", "attention's output only", where(("output",), Normal(0.006 / 12**0.5), Normal(0.006))),
    ("llama", "scaled by depth", where(OUT, Normal(0.02 / 12**0.5), Normal(0.02))),
    ("vit", "cut at 2σ", lambda w: TruncNormal(0.02, cut=2)),
    # --- fan ---
    ("lecun_normal", "fan-out for fan-in", lambda w: Normal(w.fan_out**-0.5)),
    ("lecun_normal", "variance for std", lambda w: Normal(1 / w.fan_in)),
    ("lecun_normal", "d_model for fan-in", lambda w: Normal(w.d_model**-0.5)),
    ("lecun_normal", "d_head for fan-in", lambda w: Normal(w.d_head**-0.5)),
    ("lecun_uniform", "√3 missed", linear),
    ("lecun_uniform", "fan-out for fan-in", lambda w: Uniform.of_std(w.fan_out**-0.5)),
    ("xavier_normal", "packed fan", where(QKV, Normal(math.sqrt(2 / 256)), lambda w: Normal(xavier_std(w)))),
    ("xavier_normal", "fan-in only", lecun),
    ("xavier_normal", "2 missed", lambda w: Normal((w.fan_in + w.fan_out) ** -0.5)),
    ("xavier_normal", "uniform of the same std", xavier),
    ("xavier_uniform", "std for bound", lambda w: Uniform(xavier_std(w))),
    ("xavier_uniform", "bound for std", lambda w: Normal(math.sqrt(3) * xavier_std(w))),
    ("xavier_uniform", "packed fan", where(QKV, packed, xavier)),
    ("xavier_packed", "one projection's fan", where(QKV, xavier, linear)),
    ("xavier_packed", "the output packed too", where((*QKV, "output"), packed, linear)),
    ("xavier_packed", "the rest by Xavier", where(QKV, packed, xavier)),
    ("kaiming_normal", "√2 missed", lecun),
    ("kaiming_normal", "fan-out for fan-in", lambda w: Normal(math.sqrt(2 / w.fan_out))),
    ("kaiming_normal", "2 for √2", lambda w: Normal(2 * w.fan_in**-0.5)),
    ("kaiming_uniform", "√2 missed", lambda w: Uniform.of_std(w.fan_in**-0.5)),
    ("kaiming_uniform", "std for bound", lambda w: Uniform(math.sqrt(2 / w.fan_in))),
    ("torch_default", "bound taken for std", lambda w: Uniform.of_std(w.fan_in**-0.5)),
    ("torch_default", "He's bound", lambda w: Uniform(math.sqrt(6 / w.fan_in))),
    ("torch_default", "fan-out for fan-in", lambda w: Uniform(w.fan_out**-0.5)),
    ("fairseq", "gain 1/√2 missed", where((*QKV, "output"), xavier, linear)),
    ("fairseq", "gain on the output too", where((*QKV, "output"), packed, linear)),
    ("fairseq", "gain beside the packed fan", where(QKV, Uniform.of_std(1 / 16), where(("output",), xavier, linear))),
    ("small_init", "Xavier", lambda w: Normal(xavier_std(w))),
    ("small_init", "5 missed", lambda w: Normal(math.sqrt(2 / w.d_model))),
    ("small_init", "fan-in for d", lambda w: Normal(math.sqrt(2 / (5 * w.fan_in)))),
    ("t5", "1/√d_head missed", lecun),
    ("t5", "1/√d_head on the key too", where(QK, Normal(1 / 32), lecun)),
    ("t5", "1/d_head for 1/√d_head", where(("query",), Normal(1 / 128), lecun)),
    ("t5", "n_heads for d_head", where(("query",), Normal(1 / 16), lecun)),
    ("vit_jax", "packed fan", where(QKV, packed, xavier)),
    ("fan_in", "not cut", lecun),
    ("fan_in", "cut at 2σ", lambda w: TruncNormal(w.fan_in**-0.5, cut=2)),
    ("fan_in", "corrected for the cut", lambda w: TruncNormal.of_std(w.fan_in**-0.5, cut=3)),
    ("fan_in", "d_model for fan-in", lambda w: TruncNormal(w.d_model**-0.5, cut=3)),
    ("nanochat", "√3 missed", where(OUT, ZERO, lambda w: Uniform(w.fan_in**-0.5))),
    ("nanochat", "Gaussian", where(OUT, ZERO, where(QKV, Normal(0.125), Normal(0.05)))),
    ("nanochat", "0.4 missed", where(OUT, ZERO, lambda w: Uniform.of_std(w.fan_in**-0.5))),
    ("nanochat", "attention's output only",
     where(("output",), ZERO, where(QKV, Uniform.of_std(0.125), Uniform.of_std(0.05)))),
    # --- structured ---
    ("orthogonal", "Gaussian of the same std", lambda w: Normal(max(w.shape) ** -0.5)),
    ("orthogonal", "gain √2", lambda w: Orthogonal(math.sqrt(2))),
    ("orthogonal", "the identity", lambda w: Identity()),
    ("orthogonal", "packed", where(QKV, Orthogonal(3**-0.5), Orthogonal())),
    ("orthogonal_depth", "l for L", where(OUT, Orthogonal(math.sqrt(2 / 3)), Orthogonal(math.sqrt(2)))),
    ("orthogonal_depth", "2L for L", where(OUT, Orthogonal(math.sqrt(2 / 12)), Orthogonal(math.sqrt(2)))),
    ("orthogonal_depth", "root forgotten", where(OUT, Orthogonal(2 / 6), Orthogonal(math.sqrt(2)))),
    ("orthogonal_depth", "everywhere", lambda w: Orthogonal(math.sqrt(2 / 6))),
    ("identity", "key 0 too", where(QK, ZERO, where(VO, Identity(), lecun))),
    ("identity", "any orthogonal", where(("query",), ZERO, where(VO, Orthogonal(), lecun))),
    ("mimetic", "0.7 and 0.4 swapped", where(QK, Normal(0.115), where(VO, Normal(0.117), Normal(0.02)))),
    ("mimetic", "rank d_model", where(QK, Normal(0.117), where(VO, Normal(0.0884), Normal(0.02)))),
    ("negative_identity", "β for √β",
     where(VO, Identity(0.05), where(("feed_forward_out",), ZERO, Uniform.of_std(0.0625)))),
    ("negative_identity", "½ missed",
     where(VO, Identity(0.2374872), where(("feed_forward_out",), ZERO, Uniform.of_std(0.125)))),
    ("negative_identity", "queries and keys instead",
     where(QK, Identity(0.2374872), where(("feed_forward_out",), ZERO, Uniform.of_std(0.0625)))),
    # --- data ---
    ("lsuv", "Xavier, not corrected", xavier_normal),
    ("lsuv", "orthogonal, not corrected", lambda w: Orthogonal()),
    ("admin", "packed fan", packed),
    ("admin", "torch's default", linear),
    # --- depth ---
    ("gpt2", "L for 2L", where(OUT, Normal(0.02 / 6**0.5), Normal(0.02))),
    ("gpt2", "l for L", where(OUT, lambda w: Normal(0.02 / (2 * w.layer) ** 0.5), Normal(0.02))),
    ("gpt2", "not scaled, as released", lambda w: Normal(0.02)),
    ("gpt2", "root forgotten", where(OUT, Normal(0.02 / 12), Normal(0.02))),
    ("gpt2", "attention only", where(("output",), Normal(0.02 / 12**0.5), Normal(0.02))),
    ("wang", "1/√L for 1/L", where(OUT, Normal(2 / (6 * 64) ** 0.5), Normal(320**-0.5 * 2**0.5))),
    ("wang", "2 missed", where(OUT, Normal(1 / 48), Normal(320**-0.5 * 2**0.5))),
    ("wang", "fan-in for d", where(OUT, lambda w: Normal(2 / (6 * w.fan_in**0.5)), Normal(320**-0.5 * 2**0.5))),
    ("ds_init", "L for l", scaled(xavier, 6**-0.5)),
    ("ds_init", "l counted from 0", scaled(xavier, 2**-0.5)),
    ("ds_init", "as a variance, as in the code", scaled(xavier, 3**-0.25)),
    ("ds_init", "the ends of branches only", where(OUT, scaled(xavier, 3**-0.5), xavier)),
    ("fixup", "L for 2L", where(OUT, ZERO, where(QKV, scaled(xavier, 6 ** (-1 / 6)), scaled(xavier, 6**-0.5)))),
    ("fixup", "two matrices in attention", where(OUT, ZERO, scaled(xavier, 12**-0.5))),
    ("fixup", "packed, as in the code",
     where(OUT, ZERO, where(QKV, scaled(packed, 12 ** (-1 / 6)), scaled(xavier, 12**-0.5)))),
    ("fixup", "the ends small, not 0", where(QKV, scaled(xavier, 12 ** (-1 / 6)), scaled(xavier, 12**-0.5))),
    ("t_fixup", "the decoder's factor", where(QK, xavier, scaled(xavier, 54**-0.25))),
    ("t_fixup", "½ for ¼", where(QK, xavier, scaled(xavier, 0.67 * 6**-0.5))),
    ("t_fixup", "2L for L", where(QK, xavier, scaled(xavier, 0.67 * 12**-0.25))),
    ("t_fixup", "query and key too", scaled(xavier, 0.67 * 6**-0.25)),
    ("t_fixup", "the ends of branches only", where(OUT, scaled(xavier, 0.67 * 6**-0.25), xavier)),
    ("t_fixup", "query and key 1/√2, as in the code",
     where(QK, scaled(xavier, 0.5**0.5), scaled(xavier, 0.67 * 6**-0.25))),
    ("deepnorm", "2L for 8L", where(QK, xavier_normal, scaled(xavier_normal, 12**-0.25))),
    ("deepnorm", "½ for ¼", where(QK, xavier_normal, scaled(xavier_normal, 48**-0.5))),
    ("deepnorm", "α for β", where(QK, xavier_normal, scaled(xavier_normal, 12**0.25))),
    ("deepnorm", "l for L", where(QK, xavier_normal, scaled(xavier_normal, 24**-0.25))),
    ("deepnorm", "query and key too", scaled(xavier_normal, 48**-0.25)),
    ("sub_ln", "root forgotten", where(QK, xavier_normal, scaled(xavier_normal, math.log(12)))),
    ("sub_ln", "L for 2L", where(QK, xavier_normal, scaled(xavier_normal, math.log(6) ** 0.5))),
    ("sub_ln", "divided for multiplied", where(QK, xavier_normal, scaled(xavier_normal, math.log(12) ** -0.5))),
    ("sub_ln", "value forgotten", where(QKV, xavier_normal, scaled(xavier_normal, math.log(12) ** 0.5))),
    ("rezero", "weights 0 too", where(OUT, ZERO, xavier)),
    ("rezero", "packed fan", packed),
    ("skip_init", "He", lambda w: Normal(math.sqrt(2 / w.fan_in))),
    ("layer_scale", "gain on the weights", where(OUT, Normal(0.02 * 1e-4), Normal(0.02))),
    ("layer_scale", "cut at 2σ", lambda w: TruncNormal(0.02, cut=2)),
    ("depth_scaled", "factor on the weights", where(OUT, scaled(xavier_normal, 6**-0.5), xavier_normal)),
    ("depth_index", "L for l", where(OUT, Normal(0.02 / 12**0.5), Normal(0.02))),
    ("depth_index", "l counted from 0", where(OUT, Normal(0.02 / 2), Normal(0.02))),
    ("depth_index", "l for 2l", where(OUT, Normal(0.02 / 3**0.5), Normal(0.02))),
    ("depth_index", "the first matrices of a branch", where(("feed_forward_in",), Normal(0.02 / 6**0.5), Normal(0.02))),
    ("normalized_residual", "the factor in the weights", where(OUT, scaled(lecun, 13**-0.5), lecun)),
    ("normalized_residual", "Xavier", xavier_normal),
    ("completep", "1/L in the weights", where(OUT, scaled(lecun, 1 / 3), lecun)),
    ("completep", "variance as the std", lambda w: Normal(1 / w.fan_in)),
    ("ln_scale", "1/√l in the weights", lambda w: Normal(0.02 / 3**0.5)),
    ("ln_scale", "depth-scaled too", where(OUT, Normal(0.02 / 12**0.5), Normal(0.02))),
    # --- width ---
    ("mup", "variance as the std", lambda w: Normal(1 / w.fan_in)),
    ("mup", "fan-out for fan-in", lambda w: Normal(w.fan_out**-0.5)),
    ("mup", "d_model for fan-in, as in mup's example", lambda w: Normal(w.d_model**-0.5)),
    ("mup", "query 0", where(("query",), ZERO, lecun)),
    ("unit_scaling", "multiplier in the weights", lecun),
    ("unit_scaling", "uniform in ±1", lambda w: Uniform(1.0)),
    ("spectral", "norm 1", lambda w: Normal(1 / (w.fan_out**0.5 + w.fan_in**0.5))),
    ("spectral", "fans swapped", lambda w: Normal((w.fan_in / w.fan_out) ** 0.5 / (w.fan_out**0.5 + w.fan_in**0.5))),
    ("spectral", "Frobenius norm", lambda w: Normal(1 / w.fan_in)),
    ("spectral", "LeCun", lecun),
    ("ngpt", "fan-in for d", lecun),
    ("ngpt", "1/√(2L) left in", where(OUT, Normal(0.125 / 12**0.5), Normal(0.125))),
    # --- parts ---
    ("qk_gain", "gain in the weights", where(("query",), Normal(0.02 * 1.44), Normal(0.02))),
    ("attention_sink", "cut at 2σ", lambda w: TruncNormal(0.02, cut=2)),
    ("output_gate", "made up for in the output", where(("output",), Normal(0.04), Normal(0.02))),
    ("differential", "1/√2 in queries and keys", where(QK, Normal(0.02 / 2**0.25), Normal(0.02))),
    ("zero_centred_gain", "weights 0 too", where(QKV, ZERO, Normal(0.02))),
    ("dyt", "α in the weights", where((*QKV, "feed_forward_in"), Normal(0.01), Normal(0.02))),
]  # fmt: skip


def mismatch(expected: Expected, law_of: Callable[[Weight], Law], *, draws: int = 4, seed: int = 0) -> str | None:
    """Draw every matrix of a block several times; None if all is as expected, else what is not."""
    generator = seeded(seed)
    for role, weight in PLACE.items():
        law = law_of(weight)
        drawn = torch.empty(draws, *weight.shape, dtype=torch.float64)
        for matrix in drawn:
            law.fill_(matrix, generator)
        wrong = disagreement(drawn, expected.kind_of(role), getattr(expected, role), expected.mean)
        if wrong:
            return f"{role}: {wrong}"
    return None


SHAPES: dict[str, Callable[[float], scipy.stats.rv_continuous]] = {
    "normal": lambda std: scipy.stats.norm(scale=std),
    "uniform": lambda std: scipy.stats.uniform(-math.sqrt(3) * std, 2 * math.sqrt(3) * std),
    "truncated": lambda std: scipy.stats.truncnorm(-2, 2, scale=std / CUT_2),
    "truncated at 3σ": lambda std: scipy.stats.truncnorm(-3, 3, scale=std / 0.9865784),
}


def disagreement(drawn: Tensor, kind: str, std: float, mean: float = 0.0) -> str | None:
    """What of draws ``(n, fan_out, fan_in)`` does not fit a law; None if all does."""
    if kind == "constant":
        return None if (drawn == torch.tensor(mean, dtype=drawn.dtype)).all() else f"not {mean} everywhere"
    if kind in ("orthogonal", "identity", "-identity"):
        gain = std * math.sqrt(max(drawn.shape[-2:])) * (-1 if kind.startswith("-") else 1)
        return structured_disagreement(drawn, gain, is_identity=kind.endswith("identity"))
    return independent_disagreement(drawn, SHAPES[kind](std))


def structured_disagreement(drawn: Tensor, gain: float, *, is_identity: bool) -> str | None:
    """None if the rows, or columns if there are fewer, are orthogonal and of length ``gain``, in random directions."""
    wide = drawn if drawn.shape[-2] <= drawn.shape[-1] else drawn.mT
    eye = torch.eye(*wide.shape[-2:], dtype=drawn.dtype)
    if not torch.allclose(wide @ wide.mT, gain**2 * (eye @ eye.mT), atol=1e-5):
        return f"singular values not all {gain:.4g}"
    if torch.allclose(wide, gain * eye, atol=1e-5) != is_identity:
        return "not the identity" if is_identity else "the identity"
    return None


def independent_disagreement(drawn: Tensor, law: scipy.stats.rv_continuous) -> str | None:
    """What of independent draws does not fit a distribution of mean 0; None if all does.

    The mean and the standard deviation may be five standard errors off; that of the standard deviation is
    σ √((κ − 1) / 4n), with the kurtosis κ of the law.
    """
    entries = drawn.double().flatten().numpy()
    n, std, kurtosis = entries.size, law.std(), 3 + float(law.stats("k"))
    z_mean = entries.mean() / (std / math.sqrt(n))
    z_std = (entries.std() / std - 1) / math.sqrt((kurtosis - 1) / (4 * n))
    if max(abs(z_mean), abs(z_std)) > 5:
        return (
            f"std {entries.std():.5g}, {z_std:+.1f} standard errors off {std:.5g}; "
            f"mean {entries.mean():.2g}, {z_mean:+.1f} off 0"
        )
    bound, largest = law.support()[1], abs(entries).max()
    if largest > bound * (1 + 1e-6):
        return f"largest entry {largest:.5g} beyond the bound {bound:.5g}"
    near = 100 / n  # as a share of the bound; the law puts more than 15 of n entries there, if it ends with a step
    if math.isfinite(bound) and 200 * bound * law.pdf(bound) > 15 and largest < bound * (1 - near):
        return f"largest entry {largest:.5g} far from the bound {bound:.5g}"
    p = scipy.stats.kstest(entries, law.cdf).pvalue
    return f"not distributed like {law.dist.name} (Kolmogorov–Smirnov p = {p:.1g})" if p < 1e-6 else None
