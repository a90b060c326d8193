"""Who is best in a cell of a comparison, and who cannot be told from it."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from attntut._checks import check_choice, check_number
from attntut._extras import extra
from attntut.evidence import confidence_interval

with extra("tables"):
    import pandas as pd

VERDICTS = ("best", "within the noise", "worse")


def ranking(
    frame: pd.DataFrame,
    cell: str | Collection[str],
    *,
    entry: str = "scheme",
    score: str = "loss",
    pair: str = "seed",
    level: float = 0.05,
) -> pd.DataFrame:
    r"""The entries of each cell, the least score first, each against the first by paired differences.

    The best of a cell is chosen from the same numbers that it is then compared by, and there are :math:`k - 1`
    comparisons. So an entry is "worse" only where a paired :math:`t` test says so after the correction of Holm (1979):
    of :math:`p_{(1)} \le \ldots \le p_{(k-1)}` the number :math:`i` is multiplied by :math:`k - i`, and none is smaller
    than the one before it.

    Args:
        frame: runs, one an entry, pair and cell; a small score is a good one.
        cell: the columns within which entries are compared.
        entry, score, pair: the columns of what is compared, by what, and of the runs that belong together.
        level: of the tests of one cell together.

    Returns:
        A row a cell and entry: ``cell``, ``entry``, ``mean``, ``low`` and ``high`` (its 95 % interval), ``gap`` to the
        best with ``gap_low`` and ``gap_high`` (a paired interval of 95 %, not corrected), ``p`` (corrected) and
        ``verdict``: ``"best"``, ``"within the noise"`` or ``"worse"``.

    Raises:
        ValueError: a column is missing, or a cell has an entry without a run of each pair.

    Example:
        >>> from attntut.sweep import grid
        >>> frame = pd.DataFrame(grid(task="t", scheme=["a", "b", "c"], seed=range(3)))
        >>> frame["loss"] = [1.0, 1.2, 1.1] + [1.1, 1.1, 1.1] + [2.0, 2.2, 2.2]
        >>> ranking(frame, "task")[["scheme", "gap", "verdict"]].round(2)
          scheme   gap           verdict
        0      a  0.00              best
        1      b  0.00  within the noise
        2      c  1.03             worse
    """
    with extra("plots"):
        from scipy.special import stdtr  # the distribution of Student's t
    groups = [cell] if isinstance(cell, str) else list(cell)
    check_number("level", level, low=0)
    for column in (*groups, entry, score, pair):
        check_choice("column", column, map(str, frame.columns))
    rows = []
    for key, part in frame.groupby(groups, sort=False):
        scores = part.pivot(index=pair, columns=entry, values=score)
        if scores.isna().any(axis=None):
            raise ValueError(f"Every entry must have a number of each {pair}: got a gap in {key}.")
        scores = scores[scores.mean().sort_values(kind="stable").index]
        gaps = scores.sub(scores.iloc[:, 0], axis=0).iloc[:, 1:]
        t = gaps.mean() / gaps.std() * math.sqrt(len(gaps))  # 0/0 where two entries are one
        p = (2 * stdtr(len(gaps) - 1, -t.fillna(0))).sort_values(kind="stable")
        p = (p * np.arange(len(p), 0, -1)).cummax().clip(upper=1)
        for name in scores:
            verdict = VERDICTS[0] if name == scores.columns[0] else VERDICTS[2 if p[name] < level else 1]
            gap = confidence_interval(scores[name] - scores.iloc[:, 0])
            rows.append([*key, name, *confidence_interval(scores[name]), *gap, p.get(name, math.nan), verdict])
    return pd.DataFrame(
        rows, columns=[*groups, entry, "mean", "low", "high", "gap", "gap_low", "gap_high", "p", "verdict"]
    )
