"""What to run: a grid of configurations, and which of them go together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from attntut._checks import check_int

Config = dict[str, Any]
Job = list[Config]
PLAIN = (str, int, float, bool)
OURS = ("seconds", "machine")  # columns beside those of the configuration and of its numbers


def grid(**axes: Any) -> list[Config]:
    """Every combination of the values of the axes, the last axis fastest; a plain value stands for itself.

    Example:
        >>> grid(depth=[2, 8], lr=1e-3, seed=range(2))[1:3]
        [{'depth': 2, 'lr': 0.001, 'seed': 1}, {'depth': 8, 'lr': 0.001, 'seed': 0}]
    """
    values = [[axis] if isinstance(axis, PLAIN) else list(axis) for axis in axes.values()]
    return [dict(zip(axes, each, strict=True)) for each in itertools.product(*values)]


@dataclass(frozen=True)
class Sweep:
    """A grid of runs.

    Args:
        name: of its folder and of its file.
        run: from a configuration to a dictionary of numbers, NaN among them. Pure, and at the top level of a module, so
            that other processes find it. With ``shape``, from a list of configurations to a list of such dictionaries.
        configs: what to run: dictionaries of strings, numbers and bools, all different and with the same keys.
        shape: configurations with an equal shape are given to ``run`` together, so that ``train_many`` can train them
            at once. Their numbers do not depend on the company, but for rounding.
        at_once: how many at most.
        cost: of a run, relative to others: long jobs start first, and the remaining time is estimated by it.

    Raises:
        TypeError, ValueError: a configuration is not plain data, has other keys, or stands twice.

    Example:
        >>> from attntut.sweeps.depth import run, shape
        >>> configs = grid(scheme=["gpt2", "layer_scale"], norm="pre", depth=1, lr=1e-3, seed=range(3))
        >>> [len(job) for job in jobs(Sweep("small", run, configs, shape=shape, at_once=2))]
        [2, 2, 1, 1]
    """

    name: str
    run: Callable[..., Any]
    configs: Sequence[Config]
    shape: Callable[[Config], Hashable] | None = None
    at_once: int = 16
    cost: Callable[[Config], float] = lambda config: 1.0

    def __post_init__(self) -> None:
        check_int("at_once", self.at_once)
        seen = set()
        for i, config in enumerate(self.configs):
            for key, value in config.items():
                if type(value) not in PLAIN or key in OURS:
                    raise TypeError(f"configs[{i}] must hold strings, numbers and bools: got {key}={value!r}.")
            if config.keys() != self.configs[0].keys():
                raise ValueError(f"configs[{i}] must have the keys {list(self.configs[0])}: got {list(config)}.")
            if (key := json.dumps(config, sort_keys=True)) in seen:
                raise ValueError(f"configs must be different: configs[{i}] stands twice, {config}.")
            seen.add(key)


def jobs(sweep: Sweep, configs: Iterable[Config] | None = None) -> list[Job]:
    """The configurations, those that are run together in one list; the most expensive first."""
    groups: dict[Hashable, Job] = {}
    for i, config in enumerate(sweep.configs if configs is None else configs):
        groups.setdefault(sweep.shape(config) if sweep.shape else i, []).append(config)
    n = sweep.at_once
    parts = [group[start : start + n] for group in groups.values() for start in range(0, len(group), n)]
    return sorted(parts, key=lambda job: -sum(map(sweep.cost, job)))
