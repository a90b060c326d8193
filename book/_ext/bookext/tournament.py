"""Who wins where: the table of ``book/tournament.md``, from ``runs/tournament.csv``."""

from __future__ import annotations

import math

import pandas as pd
from IPython.display import HTML

from attntut.sweep import ranking
from attntut.sweeps.tournament import judged, rates_of

from . import sortable

CELL = ["norm", "task", "depth", "width"]
NORMS = {"pre": "pre-LN", "post": "post-LN", "none": "none"}
COLUMNS = {
    "scheme": "start",
    "norm": "norm",
    "task": "task",
    "depth": "blocks",
    "width": "width",
    "lr": "rate",
    "edge": "at the edge",
    "mean": "loss",
    "half": "±",
    "gap": "gap to the best",
    "gap_half": "± of the gap",
    "verdict": "verdict",
    "accuracy": "accuracy",
    "diverged": "diverged of 8",
}


def tournament() -> pd.DataFrame:
    """A row a start and cell: its rate, its loss, and what it is beside the best of the cell."""
    runs = judged()
    how = dict(lr=("lr", "first"), accuracy=("accuracy", "mean"), diverged=("diverged", "sum"))
    rows = ranking(runs, CELL).merge(runs.groupby([*CELL, "scheme"]).agg(**how).reset_index())
    rows["half"], rows["gap_half"] = rows["high"] - rows["mean"], rows["gap_high"] - rows["gap"]
    first = rows["verdict"] == "best"
    rows.loc[first, ["gap", "gap_half"]] = [0, math.nan]
    rows["edge"] = [_edge(row) for row in rows.to_dict("records")]
    return rows


def _edge(row: dict[str, object]) -> str:
    rates = rates_of(row)
    return {rates[0]: "lowest", rates[-1]: "highest"}.get(row["lr"], "")  # type: ignore[call-overload, no-any-return]


def page() -> HTML:
    """The table of the page."""
    rows = tournament()
    rows["norm"] = rows["norm"].map(NORMS)
    return sortable.table(
        rows.to_dict("records"),
        COLUMNS,
        caption="Each start in each cell: the test loss at the rate that seed 100 chose, mean of eight other seeds.",
        noun="starts in cells",
        choices=("scheme", "norm", "task", "depth", "width", "edge", "verdict"),
    )
