"""Which device the book computes on, decided once, by the environment."""

from __future__ import annotations

import os

import torch

from attntut._checks import check_int

VARIABLE = "ATTNTUT_DEVICE"


def default_device() -> torch.device:
    """The device named by the environment variable ``ATTNTUT_DEVICE``; ``cpu`` when it is unset.

    Returns:
        A device that is present: it holds and returns a number.

    Raises:
        ValueError: the name is no device of torch.
        RuntimeError: torch knows the device, but this machine has none.

    Example:
        >>> default_device().type in {"cpu", "cuda", "mps"}
        True
    """
    name = os.environ.get(VARIABLE) or "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{VARIABLE} must name a torch device such as 'cpu' or 'cuda': got {name!r}.") from error
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own way to say no
        raise RuntimeError(
            f"{VARIABLE} is {name!r}, but torch finds no such device here. Unset it to compute on the CPU."
        ) from error
    return device


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator with its own state: the same draws whatever ran before.

    Args:
        seed: any integer ≥ 0.
        device: where the generator draws; the same seed gives other numbers on another device.

    Example:
        >>> torch.equal(torch.randn(3, generator=seeded(1)), torch.randn(3, generator=seeded(1)))
        True
    """
    return torch.Generator(device=device).manual_seed(check_int("seed", seed, low=0))
