"""What 48 blocks gain from divided branches, and lower rates without a norm. Chapter 9 said the outcome before.

Said before the first run was begun, from the shares of chapter 9 (in 48 blocks .014 with pre-LN and 7e-23 with post-LN;
divided .41 and .23): divided branches gain more accuracy over Xavier's rule than in 24 blocks, with pre-LN and with
post-LN; divided, pre-LN and post-LN differ by less than .03, and each differs by less than .03 from itself in 24
blocks; without a norm Xavier's rule stays below .2 in 48 blocks at each of six rates, and gains less than .05 from the
two lower rates in 24. (Two lower rates for post-LN were added when the lowest of four had turned out Xavier's best.)
"""

from __future__ import annotations

from attntut.sweep import Sweep, grid
from attntut.sweeps import depth

RATES = [1e-4, 3e-4, 1e-3, 3e-3]
LOWER = [1e-5, 3e-5]  # without a norm Xavier's best rate was the lowest in 8 and in 24 blocks
PAIR = ("xavier_uniform", "depth_scaled")
SWEEP = Sweep(
    "deeper",
    depth.run,
    [
        *grid(depth=48, norm=depth.NORMS, scheme=PAIR, lr=RATES, seed=range(8)),
        *grid(depth=[8, 24, 48], norm="none", scheme="xavier_uniform", lr=LOWER, seed=range(8)),
        *grid(depth=8, norm="none", scheme="xavier_uniform", lr=1e-4, seed=range(8)),  # between those and the others
        *grid(depth=48, norm="post", scheme="xavier_uniform", lr=LOWER, seed=range(8)),
    ],
    shape=depth.shape,
    at_once=8,
    cost=depth.SWEEP.cost,
)
