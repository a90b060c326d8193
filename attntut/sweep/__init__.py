"""Experiments that take longer than a reader waits: grids of runs on any executor, each result kept as it comes.

A *run* is a function from a configuration to numbers; a :class:`Sweep` is a grid of them; :func:`execute` makes those
that are missing, and :func:`stored` reads what the book has stored.
"""

from attntut.sweep.engine import Failure, Outcome, execute, missing
from attntut.sweep.files import store, stored
from attntut.sweep.plan import Sweep, grid, jobs
from attntut.sweep.ranking import ranking
from attntut.sweep.rates import best_rate

__all__ = [
    "Failure",
    "Outcome",
    "Sweep",
    "best_rate",
    "execute",
    "grid",
    "jobs",
    "missing",
    "ranking",
    "store",
    "stored",
]
