"""Each scheme at its own best learning rate."""

from __future__ import annotations

from collections.abc import Collection

from attntut._checks import check_choice
from attntut._extras import extra

with extra("tables"):
    import pandas as pd


def best_rate(
    frame: pd.DataFrame, by: str | Collection[str], *, rate: str = "lr", score: str = "accuracy", largest: bool = True
) -> pd.DataFrame:
    """Each group's own best learning rate: the one with the best mean over the seeds.

    Args:
        frame: runs; every rate of a group must have as many.
        by: the columns that make a group, ``"scheme"`` say.
        rate, score: the columns of the learning rate and of what is to be best.
        largest: whether a large score is a good one.

    Returns:
        A row a group: ``by``, the rate, the mean score there, and ``edge``: ``"lowest"`` or ``"highest"`` where the
        best is at an end of the group's grid, so that a better one may lie beyond; else empty. A rate with a NaN is
        worse than any without; with NaNs everywhere, rate and score are NaN. To get the runs themselves, merge.

    Raises:
        ValueError: a column is missing, or rates of a group have different numbers of runs.

    Example:
        >>> from attntut.sweep import grid
        >>> frame = pd.DataFrame(grid(scheme=["a", "b"], lr=[0.1, 0.3, 1.0], seed=range(2)))
        >>> frame["accuracy"] = [0.5, 0.7, 0.8, 0.9, 0.4, 0.2] + [0.1, 0.1, 0.2, 0.4, 0.9, 0.7]
        >>> best = best_rate(frame, "scheme")
        >>> best
          scheme   lr  accuracy     edge
        0      a  0.3      0.85
        1      b  1.0      0.80  highest
        >>> len(frame.merge(best[["scheme", "lr"]]))
        4
    """
    groups = [by] if isinstance(by, str) else list(by)
    for column in (*groups, rate, score):
        check_choice("column", column, map(str, frame.columns))
    rows = []
    for key, group in frame.groupby(groups, sort=False):
        scores = group.groupby(rate)[score]
        if len(counts := sorted(set(scores.size()))) > 1:
            raise ValueError(f"Every {rate} must have as many runs: got {counts[0]} to {counts[-1]} in {key}.")
        means = scores.agg(lambda each: each.mean(skipna=False)) * (1 if largest else -1)
        best = means.idxmax() if means.notna().any() else float("nan")
        edges = {means.index.max(): "highest", means.index.min(): "lowest"} if len(means) > 1 else {best: "only"}
        value = means.get(best, float("nan")) * (1 if largest else -1)
        rows.append([*key, best, value, edges.get(best, "")])
    return pd.DataFrame(rows, columns=[*groups, rate, score, "edge"])
