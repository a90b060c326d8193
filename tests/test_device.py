"""The device is decided once, by the environment, and a missing one is said clearly."""

import pytest
import torch

from attntut.device import VARIABLE, default_device, seeded


def test_the_default_is_the_cpu(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert default_device() == torch.device("cpu")


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv(VARIABLE, "cpu")
    assert torch.zeros(1, device=default_device()).device.type == "cpu"


def test_an_unknown_name(monkeypatch):
    monkeypatch.setenv(VARIABLE, "gpu")
    with pytest.raises(ValueError, match="ATTNTUT_DEVICE must name a torch device such as 'cpu' or 'cuda': got 'gpu'"):
        default_device()


@pytest.mark.parametrize("name", ["cuda:99", "meta"])
def test_a_device_that_is_not_there(name, monkeypatch):
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(RuntimeError, match=f"'{name}', but torch finds no such device"):
        default_device()


@pytest.mark.parametrize("seed, error", [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_a_seed_is_a_whole_number(seed, error):
    with pytest.raises(error, match="seed must be an integer ≥ 0"):
        seeded(seed)
