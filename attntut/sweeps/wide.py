"""The best rates of one width more, 512. Chapter 10 said them before.

Said before the first run was begun: from width 256 the best rate falls by one octave for the standard parametrization,
by half an octave for unit scaling, and not for μP nor for the standard with rates by width; each within half an octave,
by the parabola of chapter 10.
"""

from __future__ import annotations

from attntut.sweep import Sweep, grid
from attntut.sweeps import width

RATES = {  # log₂ of the lowest and the highest learning rate
    ("lecun_normal", 0.0): (-14, -10),
    ("lecun_normal", 1.0): (-10, -6),
    ("mup", 1.0): (-9, -5),
    ("unit_scaling", 0.0): (-10, -6),
}
SWEEP = Sweep(
    "wide",
    width.run,
    [
        config
        for (scheme, power), (low, high) in RATES.items()
        for config in grid(
            scheme=scheme, power=power, width=512, lr=[2.0**k for k in range(low, high + 1)], seed=range(6)
        )
    ],
    shape=width.SWEEP.shape,
    at_once=6,
    cost=width.SWEEP.cost,
)
