"""Options of the test run, set before anything imports torch or starts a kernel."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["tools.nbval_plugin"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attntut")
    group.addoption("--device", help="device of the tests and of the notebooks' kernels: cpu (default) or cuda")
    group.addoption("--threads", type=int, help="threads of the linear algebra (default 1)")


def pytest_configure(config: pytest.Config) -> None:
    device, threads = config.getoption("--device"), config.getoption("--threads")
    if device:
        os.environ["ATTNTUT_DEVICE"] = device
    for name in THREADS:
        if threads:
            os.environ[name] = str(threads)
        os.environ.setdefault(name, "1")
    if config.getoption("nbval", False):
        os.environ["ATTNTUT_EXPLORER"] = "picture"  # as the committed outputs: no widget, no data
        os.environ["TQDM_DISABLE"] = "1"
    if (device := os.environ.get("ATTNTUT_DEVICE", "cpu")) != "cpu":
        import torch

        try:
            torch.zeros(1, device=device)
        except (RuntimeError, AssertionError):
            pytest.exit(f"Skipped: this machine has no device {device!r}. Leave --device out to run on the CPU.", 0)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """Seed torch before every test and example; their order must not matter."""
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
