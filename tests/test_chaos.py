"""The runs with nudged numbers: what is exact stays exact, and what hangs by a thread is found."""

from __future__ import annotations

import nbformat
import pytest
import torch

from tools import chaos

BASE = dict(kind="predicted", predicted=1.0, measured=1.0, low=None, high=None, explained=None)
BASE |= dict(at_least=0.9, at_most=1.1)
SEEDS = dict(measured=0.05, low=0.03, high=0.07)


@pytest.fixture
def run(tmp_path):
    def run(*cells: str, seed: int | None = 1) -> dict:
        path = tmp_path / "chapter.ipynb"
        first = "import torch\nfrom attntut import compare, observe"
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in (first, *cells)]), path)
        return chaos.run_apart(path, seed, threads=1)

    return run


def test_equal_and_opposite_numbers_stay_so():
    x = torch.randn(50)
    x[7], x[8] = x[3], -x[3]
    y = chaos.nudge(x.clone(), seed=3)
    assert y[7] == y[3] == -y[8]
    assert not torch.equal(y, x)
    assert torch.allclose(y, x, rtol=2e-6, atol=0)


def test_another_seed_is_another_nudge_and_numbers_differ_in_it():
    x = torch.rand(1000, dtype=torch.float64)
    one, two = (chaos.nudge(x.clone(), seed) / x for seed in (1, 2))
    assert ((one >= 1 - 1.0001e-6) & (one <= 1)).all(), "A nudge must not leave the range of a draw."
    assert abs(one.mean() - (1 - 0.5e-6)) < 5e-8
    assert abs(torch.corrcoef(torch.stack([one, two]))[0, 1]) < 0.1


def test_a_verdict_that_hangs_by_a_thread_flips_and_a_solid_one_does_not(run):
    cells = (
        "x = torch.empty(9).normal_(generator=torch.Generator().manual_seed(0))\n"
        "y = torch.randn(9, generator=torch.Generator().manual_seed(0))\n"
        "compare('the same draw', 0, (x - y).abs().max(), atol=0)\n"
        f"compare('thread', {torch.randn(9, generator=torch.Generator().manual_seed(0))[0].item()!r}, x[0], rtol=1e-8)",
        "1 / 0",
        "torch.manual_seed(0)\nw = torch.nn.Linear(4, 4).weight.double().sum()\nobserve('layer', w, between=(-9, 9))",
    )
    plain, *nudged = run(*cells, seed=None), run(*cells), run(*cells, seed=2)
    assert [record["agrees"] for record in plain["records"]] == [True, True, True]
    for one in nudged:
        assert [record["agrees"] for record in one["records"]] == [True, False, True]
        assert one["errors"] == ["cell 3: ZeroDivisionError: division by zero"]
    first = chaos.verdicts([plain, *nudged]).iloc[0]
    assert (first.record, first.flips, first.runs) == ("thread", 2, 3)
    assert not chaos.report("chapter", nudged)
    assert len({run["records"][2]["measured"] for run in (plain, *nudged)}) == 3, (
        "The weights of a layer are drawn too."
    )


@pytest.mark.parametrize(
    "change, expected",
    [
        (dict(measured=1.05), 0.5),
        (dict(measured=1.2), -1.0),
        (dict(measured=1.5, at_least=0.5, at_most=1.5), 0.0),
        (dict(measured=1.05, low=1.0, high=1.1), 0.5),
        (dict(at_least=1.0, at_most=1.0), 1.0),
        (dict(at_least=1.0, at_most=1.0, measured=1.1), -1.0),
        (dict(explained="a reason", measured=1.3), 2.0),
        (dict(explained="a reason", measured=1.3, low=1.1, high=1.5), 0.5),
        (SEEDS | dict(kind="expected", at_least=0.0, at_most=None), 1.5),
        (SEEDS | dict(kind="expected", at_least=0.04, at_most=None), -0.5),
        (SEEDS | dict(kind="expected", at_least=None, at_most=0.1), 1.5),
        (SEEDS | dict(kind="expected", at_least=-0.1, at_most=0.1), 1.5),
        (SEEDS | dict(kind="observed", at_least=0.03, at_most=0.5), 1.0),
        (dict(kind="observed", measured=2.0, at_least=1.0, at_most=5.0), 0.5),
        (dict(kind="expected", measured=2.0, at_least=1.0, at_most=None), 0.5),
        (dict(kind="expected", measured=2e-7, at_least=None, at_most=1e-06), 4.0),
    ],
)
def test_room_is_the_distance_to_the_other_verdict(change, expected):
    assert chaos.room(BASE | change) == pytest.approx(expected)
