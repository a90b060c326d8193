"""Plugin for pytest that mends two habits of nbval 0.11.

nbval runs cells outside the history of the kernel. IPython looks there for the semicolon that ends a cell, so under
nbval ``compare(…);`` would show its value after all. Here cells enter the history, as they do in a notebook.

nbval applies its regular expressions to strings only; it compares JSON as it is, and cannot report how two of them
differ. Here the records of a cell first lose what was measured, which :mod:`attntut.evidence` has checked already, and
become text; then they are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

MEASURED = ("measured", "low", "high")
DERIVED = ("at_least", "at_most")  # of the prediction and the tolerance, which are compared
DIGITS = 4


def stable(value: Any) -> Any:
    """Return what nbval should compare of the records of evidence, and anything else as it is.

    >>> stable([{"name": "entropy", "predicted": 0.1234567, "measured": 0.12, "low": 0.1, "high": 0.2, "passed": True}])
    [{'name': 'entropy', 'predicted': 0.1235, 'passed': True}]
    >>> stable("text")
    'text'
    """
    if isinstance(value, list):
        return [stable(record) for record in value]
    if not (isinstance(value, Mapping) and {"predicted", "measured"} <= value.keys()):
        return value
    return {key: _rounded(part) for key, part in value.items() if key not in MEASURED + DERIVED}


def _rounded(value: Any) -> Any:
    """Round numbers, however nested, to the digits that no other machine changes."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


def _sanitize(sanitize: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def wrapped(value: Any) -> Any:
        if isinstance(value, list | Mapping):
            return json.dumps(stable(value), indent=1, sort_keys=True, ensure_ascii=False)
        return sanitize(value)

    return wrapped


def pytest_configure(config: pytest.Config) -> None:
    """Let cells enter the kernel's history."""
    if config.getoption("nbval", False):
        from nbval.kernel import RunningKernel

        RunningKernel.execute_cell_input = _execute


def _execute(kernel: Any, source: str, allow_stdin: bool | None = None) -> Any:
    return kernel.kc.execute(source, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Wrap the sanitizer of a notebook's cell."""
    if type(item).__name__ == "IPyNbCell":
        item.sanitize = _sanitize(item.sanitize)  # type: ignore[attr-defined]
