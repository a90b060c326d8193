"""What every test starts from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def repository() -> Path:
    """The root of the working tree."""
    return ROOT


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Seed torch before every test; the order of the tests must not matter."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
