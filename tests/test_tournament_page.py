"""The page of the tournament: its table is the stored runs, one row a start and cell."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "book" / "_ext"))

from bookext import tournament

from attntut.sweeps import tournament as sweep
from attntut.sweeps.tournament import SWEEP, data_of


@pytest.fixture
def stored(monkeypatch):
    """Two starts in one cell, three seeds: one is worse than a guess, with a run that left no number."""
    cell = dict(norm="none", task="recall", depth=24, width=32, seconds=1.0)
    frame = pd.DataFrame(
        [
            cell | dict(scheme=name, seed=seed, accuracy=0.5, loss=loss, diverged=int(loss != loss), lr=lr)
            for name, lr, losses in [
                ("rezero", 1e-2, [0.7, 0.8, 0.75]),
                ("xavier_normal", 1e-4, [50.0, float("nan"), 3.0]),
            ]
            for seed, loss in enumerate(losses)
        ]
    )
    monkeypatch.setattr(sweep, "stored", lambda name: frame.copy())


def test_a_loss_above_that_of_guessing_counts_as_guessing(stored):
    rows = tournament.tournament().set_index("scheme")
    assert data_of("recall").n_classes == 12
    assert rows.loc["xavier_normal", "mean"] == pytest.approx(2.4849, abs=1e-4)
    assert rows.loc["xavier_normal", "diverged"] == 1
    assert rows["verdict"].to_dict() == {"rezero": "best", "xavier_normal": "worse"}


def test_a_rate_at_the_end_of_its_grid_is_said_so(stored):
    assert tournament.tournament().set_index("scheme")["edge"].to_dict() == {"rezero": "highest", "xavier_normal": ""}


def test_the_page_shows_every_start_in_every_cell():
    cells = {tuple(config[key] for key in ("norm", "task", "depth", "width", "scheme")) for config in SWEEP.configs}
    shown = tournament.page().data
    assert shown.count('<th scope="row">') == len(cells) == 525
    assert f'<p class="sortable-count" role="status">{len(cells)} starts in cells</p>' in shown
