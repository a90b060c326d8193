"""What listening found, as plain data: lists of dictionaries that print, compare and survive JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from attntut._checks import check_choice
from attntut._extras import extra
from attntut.diagnose.faults import Finding, find
from attntut.diagnose.statistics import STATISTICS

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult

    from attntut.diagnose.draw import Drawing

FORMAT = 1
#: What is kept of each head at each step: a largest logit that grows comes before a loss that bursts.
BY_STEP = ("logit_max", "logit_std", "entropy")
COUNTS = ("non_finite", "masked_rows", "output_non_finite")
PLACE = ("layer", "kind", "head", "n_query", "n_key", "calls", "scale")


@dataclass
class Report:
    r"""What a model's attention does, one row per layer and head.

    Everything is plain data: strings, numbers, lists and dictionaries. NaN means that there is no such number (the
    token cosine of a single token); None that it was not measured (a gradient without a loss).

    Attributes:
        rows: one dictionary per layer and head, in the order of the forward pass. ``layer`` (dotted name of the module,
            ``"(function)"`` outside any), ``kind`` (``"self"`` or ``"cross"``), ``head``, ``n_query``, ``n_key`` (the
            largest seen) and ``calls``; of the logits that a query may see ``logit_mean``, ``logit_std`` (around each
            row's own mean) and ``logit_max`` (largest absolute value); of the weights, before any dropout and averaged
            over the rows that see something, ``entropy`` (nats), ``entropy_share`` (of :math:`\ln` of the number of
            visible keys; rows that see two or more), ``max_weight``, ``saturated`` (share of the rows that see two or
            more whose largest weight exceeds 0.99), ``first`` (weight on the first token) and ``self`` (on itself; NaN
            for cross) and ``sink`` (on columns that belong to no key; NaN where there are none); of the head's output,
            before the output projection, ``rank_residual`` (relative, Frobenius), ``token_cosine`` and ``output_rms``;
            ``axis`` (what the softmax runs over: ``"keys"``, or by mistake ``"queries"``, ``"heads"``, ``"batch"`` or
            ``"features"``; ``"weights"`` of another softmax), ``input_axis`` (which of the first two dimensions of the
            model's input is attended, or None where sizes do not tell: 0 where ``batch_first=True`` was forgotten),
            ``scale`` (what the products of queries and keys are multiplied with; NaN where it is not one number),
            ``visible_fill`` (a value that a mask writes and that hides nothing, or None) and ``masked_at`` (up to 8
            pairs of sequence and query that see nothing); and the counts ``non_finite`` (logits that are NaN or +∞;
            their rows count nowhere else), ``masked_rows`` (queries that may see nothing) and ``output_non_finite``
            (sequences in which what the head hands on is NaN or infinite).
        stream: one dictionary per block, in order: ``layer``, ``rms`` and ``token_cosine`` of what the block hands on,
            ``gradient_rms`` (of the loss by that output; None without a backward pass).
        gradients: one dictionary per attention layer: ``layer``, the Frobenius norms ``query``, ``key``, ``value``,
            ``output`` and the ratios ``ratio_query``, ``ratio_key`` to the value's. Empty without a backward pass.
        weights: one dictionary per layer and role: ``layer``, ``role``, ``shape``, ``std``, ``fan_in``, ``fan_out``,
            ``looks_like`` (names of schemes), ``clone_of`` (a layer or None), ``heads_alike``.
        steps: one dictionary per listened step and attention layer: ``step`` (from 0), ``layer``, ``kind`` and the
            statistics averaged over heads; how they moved. Empty when there was at most one step.
        maps: rows kept for pictures, where asked for: ``layer``, ``kind``, ``head``, ``queries`` (their numbers) and
            ``weights`` (one list per query), of the first sequence of the last call.
        update: RMS of the change of the output by one step of the given optimizer, or None.
        notes: what could not be seen, and why.
        model: ``name`` of the class, number of ``parameters``, ``training`` (mode), ``dtype``, ``device``, ``steps``
            (listened), and what else the caller adds.

    Example:
        >>> row = dict(layer="attention", kind="self", head=0, calls=1, n_query=4, n_key=4, entropy=1.25)
        >>> report = Report(rows=[row, {**row, "head": 1, "entropy": 0.75}])
        >>> [layer["entropy"] for layer in report.layers()]
        [1.0]
        >>> Report.from_json(report.to_json()) == report
        True
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    stream: list[dict[str, Any]] = field(default_factory=list)
    gradients: list[dict[str, Any]] = field(default_factory=list)
    weights: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    maps: list[dict[str, Any]] = field(default_factory=list)
    update: float | None = None
    notes: list[str] = field(default_factory=list)
    model: dict[str, Any] = field(default_factory=dict)

    def table(self) -> list[dict[str, Any]]:
        """A copy of the rows: one dictionary per layer and head, in the order of the forward pass."""
        return [dict(row) for row in self.rows]

    def frame(self) -> pd.DataFrame:
        """The rows as a table of pandas.

        Raises:
            ModuleNotFoundError: pandas is not installed.

        Example:
            >>> rows = [dict(layer="a", kind="self", head=head, entropy=1.0 + head) for head in (0, 1)]
            >>> Report(rows=rows).frame().groupby("layer")["entropy"].mean()["a"].item()
            1.5
        """
        with extra("tables"):
            import pandas as pd
        return pd.DataFrame(self.rows)

    def layers(self) -> list[dict[str, Any]]:
        """The rows averaged over the heads of each layer: ``heads`` is their number.

        ``logit_max`` is the largest of the heads', the counts are added up, NaN and None are left out of an average.
        """
        return [average_heads(heads) for heads in self.heads().values()]

    def heads(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """The rows by layer and kind."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in self.rows:
            groups.setdefault((row["layer"], row["kind"]), []).append(row)
        return groups

    def row(self, layer: str, head: int = 0, kind: str | None = None) -> dict[str, Any]:
        """The row of one head.

        Raises:
            ValueError: no such layer or head.
        """
        check_choice("layer", layer, dict.fromkeys(row["layer"] for row in self.rows))
        for row in self.rows:
            if row["layer"] == layer and row["head"] == head and kind in (None, row["kind"]):
                return row
        heads = [row["head"] for row in self.rows if row["layer"] == layer]
        raise ValueError(
            f"head must be one of {heads} in layer {layer!r}: got {head!r}" + ((kind and f", {kind}") or "") + "."
        )

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, worst first; see :func:`attntut.diagnose.faults.find`."""
        return find(self)

    def scalars(self) -> Iterator[tuple[str, float, int]]:
        """Largest logit, standard deviation of the logits and entropy of each head, by step: ``(tag, value, step)``.

        A tag like ``"logit_max/encoder.0.attention/self/3"`` names number, layer, kind and head. What does not exist (a
        head whose rows are all masked) is left out; without steps, the rows are step 0.

        For TensorBoard: ``for scalar in report.scalars(): writer.add_scalar(*scalar)``; while a model trains,
        ``listen(model, every=10, to=writer.add_scalar)``.

        Example:
            >>> row = dict(layer="attention", kind="self", head=0, logit_max=3.5, logit_std=1.0, entropy=0.5)
            >>> list(Report(rows=[row]).scalars())[:2]
            [('logit_max/attention/self/0', 3.5, 0), ('logit_std/attention/self/0', 1.0, 0)]
        """
        for step in self.steps:
            yield from scalars_of(step)
        for row in () if self.steps else self.rows:
            yield from scalars_of(row | {"step": 0, "heads": {name: [row[name]] for name in BY_STEP}}, row["head"])

    def compare(self, other: Report) -> list[dict[str, Any]]:
        """Before and after: one dictionary per layer, head and statistic that both reports know.

        Args:
            other: a later report of the same model, or of one with the same names.

        Returns:
            Dictionaries with ``layer``, ``kind``, ``head``, ``statistic``, ``before``, ``after`` and ``change``
            (``after − before``), in the order of this report. A layer's gradients come as ``head`` None, and so does
            the stream's.

        Example:
            >>> before, after = (
            ...     Report(rows=[dict(layer="a", kind="self", head=0, entropy=entropy)]) for entropy in (2.0, 0.5)
            ... )
            >>> [(line["statistic"], line["before"], line["after"], line["change"]) for line in before.compare(after)]
            [('entropy', 2.0, 0.5, -1.5)]
        """
        if not isinstance(other, Report):
            raise TypeError(f"other must be a Report: got {type(other).__name__}.")
        later = dict(other._numbers())
        return [
            dict(zip(("layer", "kind", "head", "statistic"), place, strict=True))
            | dict(before=before, after=later[place], change=later[place] - before)
            for place, before in self._numbers()
            if place in later
        ]

    def to_json(self, **options: Any) -> str:
        """As JSON (``options`` as of :func:`json.dumps`); NaN becomes ``{"float": "nan"}``, because JSON has none."""
        return json.dumps({"format": FORMAT} | _encode(asdict(self)), allow_nan=False, **options)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no such JSON.
        """
        if not isinstance(text, str | bytes):
            raise TypeError(f"text must be a str of JSON: got {type(text).__name__}.")
        data = json.loads(text, object_hook=_decode)
        known = {each.name for each in fields(cls)}
        if not isinstance(data, dict) or data.get("format") != FORMAT or set(data) - known - {"format"}:
            got = sorted(data) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f"text must be a report of format {FORMAT}, written by to_json: got {got}.")
        return cls(**{name: value for name, value in data.items() if name in known})

    def plot(self) -> Drawing:
        """The report as a figure; see :func:`attntut.diagnose.draw.plot`."""
        from attntut.diagnose import draw  # matplotlib is an extra

        return draw.plot(self)

    def __str__(self) -> str:
        from attntut.diagnose import render

        return render.text(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from attntut.diagnose import render

        yield from render.pieces(self, options.max_width)

    def _repr_html_(self) -> str:
        from attntut.diagnose import render

        return render.html(self)

    def __repr__(self) -> str:
        name = self.model.get("name", "model")
        return f"Report({name}: {len(self.heads())} attention layers, {len(self.rows)} heads, {len(self.notes)} notes)"

    def _numbers(self) -> Iterator[tuple[tuple[Any, ...], float]]:
        """Every measured number, by layer, kind, head and statistic."""
        for name in ("rows", "stream", "gradients"):
            for entry in getattr(self, name):
                for statistic, value in entry.items():
                    if statistic not in PLACE and isinstance(value, int | float) and not isinstance(value, bool):
                        full = statistic if name == "rows" else f"{name}: {statistic}"
                        yield (entry["layer"], entry.get("kind"), entry.get("head"), full), value


def average_heads(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One dictionary for the heads of a layer; see :meth:`Report.layers`.

    >>> head = dict(layer="a", head=0, first=0.0, logit_max=2.0, masked_rows=1, gate=None)
    >>> average_heads([head, dict(layer="a", head=1, first=0.5, logit_max=3.0, masked_rows=2, gate=0.5)])
    {'layer': 'a', 'heads': 2, 'first': 0.25, 'logit_max': 3.0, 'masked_rows': 3, 'gate': 0.5}
    """
    result: dict[str, Any] = {}
    for key, value in rows[0].items():
        values = [row[key] for row in rows]
        if key == "head":
            result["heads"] = len(rows)
        elif key in STATISTICS or any(isinstance(each, float) for each in values):
            numbers = [each for each in values if each is not None and not math.isnan(each)]
            average = max if key == "logit_max" else _mean
            result[key] = average(numbers) if numbers else math.nan
        else:
            result[key] = sum(values) if key in COUNTS else value
    return result


def scalars_of(step: dict[str, Any], first: int = 0) -> Iterator[tuple[str, float, int]]:
    """The scalars of one entry of ``report.steps``; none where it does not tell the heads apart."""
    for name, values in step.get("heads", {}).items():
        for head, value in enumerate(values, first):
            if not math.isnan(value):
                yield f"{name}/{step['layer']}/{step['kind']}/{head}", value, step["step"]


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if all(map(math.isfinite, numbers)) else sum(numbers) / len(numbers)


def _encode(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def _decode(value: dict[str, Any]) -> Any:
    return float(value["float"]) if value.keys() == {"float"} else value
