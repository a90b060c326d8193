"""What the weights themselves tell: their scale, the scheme they look like, copies, and whether they were learned."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attntut.anatomy.depth import SIDE
from attntut.anatomy.parameters import listing, undefined
from attntut.anatomy.view import Entry, ModelView
from attntut.anatomy.weight import BRANCH, OPERANDS
from attntut.diagnose.report import Report
from attntut.init import schemes
from attntut.init.laws import Constant, Identity, Law, Orthogonal, TruncNormal
from attntut.init.requirements import unmet
from attntut.init.scheme import Scheme

SIGMAS = 4.0
"""How many standard errors a measured standard deviation may lie from a predicted one."""
TRAITS = "norm residual residual_scale skip_scale branch_gain scale qk_norm soft_cap output_gate readout_scale".split()
"""What a report keeps of the architecture."""
TRACY_WIDOM = 4.6
"""One random matrix in ten thousand has a largest singular value beyond this quantile."""
TAILS = math.erfc(math.sqrt(2))
"""Share of a normal distribution beyond two standard deviations: 4.55 %."""


def describe(seen: ModelView) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    r"""Describe the weights of a model.

    Args:
        seen: the model by role, as :func:`attntut.anatomy.look` gives it; what is unknown in there is passed over.

    Returns:
        One record a projection, and what is known of the architecture (:data:`TRAITS`). A record has

        - ``layer`` (the attention module, or the module that owns the matrix), ``role``, ``parameter``, ``shape``,
          ``fan_in``, ``fan_out``, ``mean``, ``std``, ``trainable``;
        - ``beyond`` (the share of the entries more than two standard deviations from the mean: 0.0455 of a normal
          distribution, 0 of a uniform one) and ``law`` (that of all matrices of its role: see :func:`law`);
        - ``looks_like``: see :func:`looks_like` (matrices of the blocks, else empty); ``drawn``: see :func:`is_drawn`
          (queries and keys, else None);
        - ``packed``: whether several roles share one parameter;
        - ``reads_out``: whether an embedding is the matrix of a linear layer, too (tied);
        - ``clone_of``: an earlier layer whose matrix is equal, entry by entry, or None;
        - ``heads_alike``: whether all heads have equal rows (queries and keys of several heads, else None);
        - ``equals``: ``"key"`` for a query matrix equal to the key matrix, else None.

    Example:
        >>> from torch import nn
        >>> from attntut.anatomy import look
        >>> records, traits = describe(look(nn.MultiheadAttention(64, num_heads=4)))
        >>> [(each["role"], each["packed"], each["drawn"]) for each in records]
        [('query', True, True), ('key', True, True), ('value', True, None), ('output', False, None)]
    """
    entries = seen.entries
    statistics = {id(entry): Statistics.of(entry.view) for entry in entries}
    likely = looks_like(seen, statistics)
    by_role = {entry.role: [statistics[id(each)] for each in seen.by_role(entry.role)] for entry in entries}
    laws = {role: law(measured) for role, measured in by_role.items()}
    by_kind = [
        {id(each.weight) for each in seen.module.modules() if isinstance(each, kind)}
        for kind in (nn.Embedding, nn.Linear)
    ]
    tied = {name for name, each in seen.module.named_parameters() if all(id(each) in ids for ids in by_kind)}
    packed = [entry.parameter for entry in seen.by_role(*OPERANDS)]
    records: dict[int, dict[str, Any]] = {}
    for entry in entries:
        scores = entry.role in ("query", "key")
        place = entry.parameter.rpartition(".")[0] if entry.attention is None else entry.attention
        records[id(entry)] = {
            "layer": place,
            "role": entry.role,
            "parameter": entry.parameter,
            "shape": list(entry.weight.shape),
            "fan_in": entry.weight.fan_in,
            "fan_out": entry.weight.fan_out,
            "mean": statistics[id(entry)].mean,
            "std": statistics[id(entry)].std,
            "beyond": statistics[id(entry)].beyond,
            "law": laws[entry.role],
            "looks_like": likely.get(id(entry), []),
            "drawn": is_drawn(entry.view, _d_head(entry)) if scores else None,
            "packed": packed.count(entry.parameter) > 1,
            "reads_out": entry.role == "embedding" and entry.parameter in tied,
            "clone_of": None,
            "heads_alike": _heads_alike(entry),
            "equals": None,
            "trainable": seen.module.get_parameter(entry.parameter).requires_grad,
        }
    for group in seen.attention:
        if group.query is not None and group.key is not None and _is_copy(group.query.view, group.key.view):
            records[id(group.query)]["equals"] = "key"
    _find_clones(seen, records)
    return list(records.values()), {name: seen.traits[name] for name in TRAITS if name in seen.traits}


def fill(report: Report, seen: ModelView) -> Report:
    """Put :func:`describe`'s records and traits into a report, and notes on what is not known; return the report."""
    if any(parameter.is_meta for parameter in seen.module.parameters()):
        report.notes.append("Weights: some parameters are on the meta device, and have no values.")
        return report
    if seen.foreign:
        shown = listing([f"{name} ({kind})" for name, kind in seen.foreign.items()])
        report.notes.append(f"Weights not read, because they are sharded or quantized: {shown}.")
    if wild := undefined(seen.module):
        report.notes.append(f"Buffers hold numbers that are none or huge: {listing(wild)}.")
    if not seen.attention:
        report.notes.append(f"Weights: no attention is known in {type(seen.module).__name__}. Name it: roles={{…}}.")
        return report
    from attntut.adjust.handle import fitting, given_traits  # imported when a model is looked at

    report.weights, traits = describe(seen)
    report.model |= {"traits": traits | given_traits(seen.module), "adjustable_by": fitting(seen)}
    gains = [gain.detach().float().var() for gain, _ in seen.norms.values() if gain is not None and gain.numel() > 1]
    report.model["gain_std"] = torch.stack(gains).mean().sqrt().item() if gains else math.nan
    if seen.unknown:
        report.notes.append(
            f'Weights of unknown role: {listing(seen.unknown.values())}. Name them: roles={{"readout": …}}.'
        )
    report.notes += [*seen.unsure, *_uncut(seen.module, report.weights)]
    return report


def law(matrices: Sequence[Statistics]) -> str | None:
    r"""The law of the entries of several matrices: ``"uniform"``, ``"normal"``, ``"normal, cut at 2σ"``, or None.

    A normal distribution that is cut at :math:`k\sigma` keeps :math:`s_k\sigma` of its standard deviation, so that
    its largest entry is :math:`k/s_k` of these (2.27 for k = 2). Which k it was is measured, to a half; a cut beyond
    all entries, at 100σ, leaves no trace. Each matrix has its own σ; mean 0 and kurtosis must be met within
    :data:`SIGMAS` standard errors. None stands for any other law, and for fewer than 256 entries.

    Example:
        >>> fresh, w = torch.Generator().manual_seed(0), torch.empty(64, 64)
        >>> cut = torch.nn.init.trunc_normal_
        >>> law([Statistics.of(cut(w, generator=fresh))]), law([Statistics.of(cut(w, std=0.02, generator=fresh))])
        ('normal, cut at 2σ', 'normal')
    """
    matrices = [each for each in matrices if each.std > 0 and not each.orthogonal]
    entries = sum(each.entries for each in matrices)
    if entries < 256:
        return None

    def pooled(numbers: Iterable[float]) -> float:
        return sum(each.entries * number for each, number in zip(matrices, numbers, strict=True)) / entries

    mean, kurtosis = pooled(each.mean / each.std for each in matrices), pooled(each.kurtosis for each in matrices)
    largest = max(each.largest / each.std for each in matrices)
    inside = math.erf(largest / math.sqrt(2))  # of a Gaussian's mass
    whole = entries * math.log(inside) > -10  # one Gaussian in 20 000 has so small a largest entry
    laws = {"normal": (0.0, 3.0)} if whole else _LIGHT
    name = min(laws, key=lambda name: abs(laws[name][0] - largest))
    off = max(abs(mean), abs(kurtosis - laws[name][1]) / math.sqrt(24))
    return name if off <= SIGMAS / math.sqrt(entries) else None


def _cut(k: float) -> tuple[float, float]:
    """Of a normal distribution that is cut at kσ: its largest entry over its std, and its kurtosis."""
    left, inside = TruncNormal(1.0, k).std(1, 1), math.erf(k / math.sqrt(2))
    edge = 2 * math.exp(-(k**2) / 2) / math.sqrt(2 * math.pi) / inside
    return k / left, (3 * left**2 - k**3 * edge) / left**4


_LIGHT = {"uniform": (math.sqrt(3), 1.8)} | {
    f"normal, cut at {k:g}σ": _cut(k) for k in (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0)
}


def _uncut(module: nn.Module, records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A remark where code calls ``trunc_normal_`` and a model that is as drawn is cut nowhere (up to 4σ)."""
    inside = [record for record in records if record["role"] in BRANCH and record["std"] > 0]
    normal = [record for record in inside if record["law"] == "normal"]
    fresh = {True} <= {record["drawn"] for record in inside} <= {True, None}
    if not normal or not fresh or any("cut" in (record["law"] or "") for record in inside):
        return
    if names := sorted({name for each in module.modules() if _truncates(name := type(each).__module__)}):
        share, std = (fmean(record[key] for record in normal) for key in ("beyond", "std"))
        yield (
            f"{', '.join(names)} calls trunc_normal_, but of {len(normal)} matrices none is cut: {share:.1%} of the "
            f"entries lie beyond 2σ, as of any normal distribution ({TAILS:.1%}). The bounds of trunc_normal_ (-2 and "
            f"2, unless given) are absolute, here {2 / std:.0f}σ: so far out it cuts nothing. That is no fault. To cut "
            "at 2σ, write trunc_normal_(w, std=s, a=-2*s, b=2*s); 0.88 s is left, which dividing s by 0.8796 mends."
        )


@cache
def _truncates(module: str) -> bool:
    """Whether the source of a Python module (not torch's) calls ``trunc_normal_``; False where it cannot be read."""
    try:
        source = "" if module.partition(".")[0] == "torch" else inspect.getsource(sys.modules[module])
    except (OSError, TypeError, KeyError):
        return False
    return re.search(r"\btrunc_normal_\(", source) is not None


def is_drawn(matrix: Tensor, d_head: int | None = None) -> bool:
    r"""Whether a matrix may be fresh from a generator, as opposed to learned.

    The singular values of a matrix of independent entries end at a sharp edge, whatever the scale:

    .. math:: s_1^2 \approx \sigma^2 \left[(\sqrt m + \sqrt n)^2
              + t\,(\sqrt m + \sqrt n)(1/\sqrt m + 1/\sqrt n)^{1/3}\right],
              \qquad t \sim \text{Tracy–Widom}

    (Johnstone 2001). Training adds a few directions that stick out. Constant, zero, identity and orthogonal matrices
    lie within the edge. Some training leaves all singular values inside, so True is "cannot be told from a draw".

    Args:
        matrix: ``(fan_out, fan_in)``; its mean is taken off first.
        d_head: first bring every ``d_head`` rows to one scale, so that a single large head does not count as learned.

    Example:
        >>> w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> is_drawn(w), is_drawn(w + torch.ones(64, 1) * torch.randn(64) / 2)
        (True, False)
    """
    w = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    m, n = w.shape
    heads = w.reshape(-1, d_head or m, n)  # (heads, d_head, n)
    mean = heads.mean((-2, -1), keepdim=True)
    heads = heads - mean
    spread = torch.linalg.vector_norm(heads, dim=(-2, -1), keepdim=True) / heads[0].numel() ** 0.5
    scale = (1 / spread).where(spread > 1e-6 * (spread + mean.abs()).amax(), 0)
    w, squared = heads.flatten(0, 1), scale.square().expand(-1, heads.shape[1], 1).flatten()
    v = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(w)  # a start that no matrix is made for
    for _ in range(8):
        v = w.mT @ (squared * (w @ torch.nn.functional.normalize(v, dim=0)))
    if not v.isfinite().all():
        return True
    roots, inverse = m**0.5 + n**0.5, m**-0.5 + n**-0.5
    return bool(v.norm() <= roots**2 + TRACY_WIDOM * roots * inverse ** (1 / 3))  # ‖v‖ ≈ s₁²


class Statistics(NamedTuple):
    """What is known of the entries of a matrix, from a sample of them; ``beyond`` is the share beyond 2 std."""

    mean: float
    std: float
    largest: float
    kurtosis: float
    entries: int
    orthogonal: bool
    beyond: float = math.nan

    @classmethod
    def of(cls, matrix: Tensor) -> Statistics:
        """Measure a matrix: every so many rows and columns, 2¹⁶ entries at most. NaN anywhere makes all NaN.

        Example:
            >>> Statistics.of(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
            Statistics(mean=0.5, std=0.866, largest=1.0, kurtosis=2.333, entries=4, orthogonal=True, beyond=0.0)
        """
        w = matrix.detach()
        exact = torch.promote_types(w.dtype, torch.float32)
        some = w[:: math.ceil(w.shape[0] / SIDE), :: math.ceil(w.shape[1] / SIDE)].to(exact).contiguous()
        if not w.sum(dtype=exact).isfinite():
            return cls(math.nan, math.nan, math.nan, math.nan, w.numel(), False)
        low, high = some.amin().item(), some.amax().item()
        if low == high and w.amin() == w.amax():
            return cls(low, 0.0, abs(low), math.nan, w.numel(), False)
        unit = 2.0 ** max(-100, min(100, math.frexp(max(-low, high))[1]))  # so that no fourth power is 0 or ∞
        some = some / unit
        mean = some.mean()
        square = (some - mean).square()
        variance = square.mean()
        kurtosis = (square.square().mean() / variance.square()).item()
        beyond = (square > 4 * variance).to(exact).mean().item()
        std, largest = variance.sqrt().item() * unit, max(-low, high)
        return cls(mean.item() * unit, std, largest, kurtosis, some.numel(), _is_orthogonal(w), beyond)


def looks_like(seen: ModelView, statistics: Mapping[int, Statistics]) -> dict[int, list[str]]:
    r"""The schemes that may have made each weight, the likeliest first.

    A scheme is named if its prediction lies within :data:`SIGMAS` standard errors of the measured standard deviation,

    .. math:: |s - \sigma| \le 4\, \frac{\sigma}{2} \sqrt{\frac{\kappa - 1}{N}},

    with the measured kurtosis κ of N entries; if its largest entry is possible; if the model has what the scheme
    requires; and if something in the first or the last block agrees with it. Schemes that agree with *every* weight of
    the blocks come first.

    Args:
        seen: the model.
        statistics: by ``id(entry)``.

    Returns:
        Names by ``id(entry)``.

    Example:
        >>> from torch import nn
        >>> from attntut.anatomy import look
        >>> seen = look(nn.MultiheadAttention(64, 4))
        >>> entry = seen.entries[3]
        >>> _ = entry.view.normal_(std=3.0)
        >>> looks_like(seen, {id(each): Statistics.of(each.view) for each in seen.entries})[id(entry)]
        []
    """
    entries = [entry for entry in seen.entries if entry.role in BRANCH]
    if not entries:
        return {}
    ends = [entry for entry in entries if entry.weight.layer in (1, entry.weight.n_layers)]  # few are asked first
    first = entries[0].weight
    found: dict[str, set[int]] = {}
    for name, each in schemes().items():
        if "batch" in each.requires:
            continue
        lacking = unmet(each.requires, seen.traits, each.architecture(first.n_layers, first.d_head), {})
        if set(lacking) <= {"learning rates by role"} and any(_agrees(e, statistics[id(e)], each) for e in ends):
            found[name] = {id(entry) for entry in entries if _agrees(entry, statistics[id(entry)], each)}
    order = sorted(found, key=lambda name: len(found[name]) < len(entries))  # stable: the catalogue's order inside
    return {id(entry): [name for name in order if id(entry) in found[name]] for entry in entries}


def _agrees(entry: Entry, measured: Statistics, scheme: Scheme) -> bool:
    weight, law = entry.weight, scheme.law(entry.weight)
    predicted = scheme.std(weight)
    if isinstance(law, Constant | Identity) and predicted == law.std(*weight.shape):
        if measured.std > 0 and isinstance(law, Constant):
            return False
        return torch.equal(law.fill_(torch.empty_like(entry.view)), entry.view)
    if not measured.std > 0 or not predicted > 0:
        return False
    close = abs(measured.std - predicted)
    if isinstance(law, Orthogonal):
        return close <= 0.02 * predicted and measured.orthogonal
    if close > SIGMAS * predicted / 2 * math.sqrt((measured.kurtosis - 1) / measured.entries):
        return False
    return scheme.predicts is not None or (_is_possible(measured, law) and not measured.orthogonal)


def _is_possible(measured: Statistics, law: Law) -> bool:
    """Whether the largest entry is one that the law can draw, and not far too small for it."""
    if law.support is not None:
        return measured.largest <= law.support * (1 + 1e-6)
    inside = math.erf(measured.largest / (measured.std * math.sqrt(2)))  # of a Gaussian's mass
    return measured.entries * math.log(inside) > -20


def _is_orthogonal(matrix: Tensor) -> bool:
    """Whether rows (columns, if there are fewer) are orthogonal and of one length; judged by the first few."""
    rows = (matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT)[:8].double()
    products = rows @ rows.mT
    return bool((products / products.diagonal().mean() - torch.eye(len(rows)).to(products)).abs().amax() < 1e-2)


def _find_clones(seen: ModelView, records: Mapping[int, dict[str, Any]]) -> None:
    earlier: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in seen.entries:
        if seen.is_computed(entry):
            continue
        key = (entry.role, *entry.weight.shape, records[id(entry)]["mean"], records[id(entry)]["std"])
        for other in earlier.setdefault(key, []):
            if _is_copy(entry.view, other.view):
                records[id(entry)]["clone_of"] = records[id(other)]["layer"]
                break
        earlier[key].append(entry)


def _is_copy(a: Tensor, b: Tensor) -> bool:
    """Equal entry by entry, in other memory, and no matter of course (zeros, a constant, the identity)."""
    if a.shape != b.shape or a.data_ptr() == b.data_ptr() or not torch.equal(a, b):
        return False
    return a.flatten()[:4096].unique().numel() > 2


def _heads_alike(entry: Entry) -> bool | None:
    width = _d_head(entry)
    if entry.role not in ("query", "key") or width is None or width == entry.weight.fan_out:
        return None
    heads = entry.view.reshape(-1, width, entry.weight.fan_in)  # (heads, d_head, fan_in)
    return all(torch.equal(head, heads[0]) for head in heads[1:])  # stops at the first that differs


def _d_head(entry: Entry) -> int | None:
    """The width of a head; None where the matrix is no whole number of heads."""
    return entry.weight.d_head if entry.weight.fan_out % entry.weight.d_head == 0 else None
