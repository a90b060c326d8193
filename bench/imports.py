"""What ``import attntut`` takes in a new process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from bench.table import Row

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def imports(repeats: int = 5) -> list[Row]:
    """Median seconds of ``import attntut``, and of the part of it that is torch."""
    taken: dict[str, list[float]] = {"attntut": [], "torch": []}
    for _ in range(repeats + 1):  # the first one reads the files from the disk
        for module, times in taken.items():
            done = subprocess.run(
                [sys.executable, "-c", TIMED.format(module)], capture_output=True, text=True, check=True
            )
            times.append(float(done.stdout))
    ours, torch = (statistics.median(times[1:]) for times in taken.values())
    return [Row("`import attntut`", f"{ours:.1f} s (torch alone {torch:.1f} s)", "≤ 2 s")]
