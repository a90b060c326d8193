"""Who is best in a cell of a comparison, and who cannot be told from it."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from attntut._checks import check_choice
from attntut._extras import extra
from attntut.evidence import confidence_interval

with extra("tables"):
    import pandas as pd

VERDICTS = ("best", "within the noise", "worse")
NUMBERS = ("mean", "low", "high", "gap", "gap_low", "gap_high", "p")
LEVEL = 0.05  # of the tests of one cell together


def ranking(frame: pd.DataFrame, cell: str | Collection[str]) -> pd.DataFrame:
    r"""The schemes of each cell, the least loss first, each against the first by paired differences.

    The best of a cell is chosen from the same numbers that it is then compared by, and there are :math:`k - 1`
    comparisons. So a scheme is "worse" only where a paired :math:`t` test says so after the correction of Holm (1979):
    of :math:`p_{(1)} \le \ldots \le p_{(k-1)}` the number :math:`i` is multiplied by :math:`k - i`, and none is smaller
    than the one before it.

    Args:
        frame: runs, one a ``scheme``, ``seed`` and cell, with its ``loss``.
        cell: the columns within which schemes are compared.

    Returns:
        A row a cell and scheme: ``cell``, ``scheme``, ``mean``, ``low`` and ``high`` (its 95 % interval), ``gap`` to
        the best with ``gap_low`` and ``gap_high`` (a paired interval of 95 %, not corrected), ``p`` (corrected) and
        ``verdict``: ``"best"``, ``"within the noise"`` or ``"worse"``.

    Raises:
        ValueError: a column is missing, or a cell has a scheme without a run of each seed.

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
    for column in (*groups, "scheme", "loss", "seed"):
        check_choice("column", column, map(str, frame.columns))
    rows = []
    for key, part in frame.groupby(groups, sort=False):
        scores = part.pivot(index="seed", columns="scheme", values="loss")
        if scores.isna().any(axis=None):
            raise ValueError(f"Every scheme must have a number of each seed: got a gap in {key}.")
        scores = scores[scores.mean().sort_values(kind="stable").index]
        gaps = scores.sub(scores.iloc[:, 0], axis=0).iloc[:, 1:]
        t = gaps.mean() / gaps.std() * math.sqrt(len(gaps))  # 0/0 where two entries are one
        p = (2 * stdtr(len(gaps) - 1, -t.fillna(0))).sort_values(kind="stable")
        p = (p * np.arange(len(p), 0, -1)).cummax().clip(upper=1)
        for name in scores:
            verdict = VERDICTS[0] if name == scores.columns[0] else VERDICTS[2 if p[name] < LEVEL else 1]
            gap = confidence_interval(scores[name] - scores.iloc[:, 0])
            rows.append([*key, name, *confidence_interval(scores[name]), *gap, p.get(name, math.nan), verdict])
    return pd.DataFrame(rows, columns=[*groups, "scheme", *NUMBERS, "verdict"])
