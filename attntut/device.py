"""Which device the book computes on, decided once, by the environment; and on which machine."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from attntut._checks import check_int

VARIABLE = "ATTNTUT_DEVICE"


def default_device() -> torch.device:
    """The device named by the environment variable ``ATTNTUT_DEVICE``; ``cpu`` when it is unset.

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

    The same seed gives other numbers on another device.

    Example:
        >>> torch.equal(torch.randn(3, generator=seeded(1)), torch.randn(3, generator=seeded(1)))
        True
    """
    return torch.Generator(device=device).manual_seed(check_int("seed", seed, low=0))


@contextmanager
def own_randomness(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Let what draws from torch's global generators draw from ``seed``, and leave them as they were.

    The global generators are that of the CPU, and that of the device if it is a GPU.

    Example:
        >>> with own_randomness(1):
        ...     first = torch.randn(3)
        >>> torch.equal(first, torch.randn(3, generator=seeded(1)))
        True
    """
    check_int("seed", seed, low=0)
    gpu = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=gpu):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all GPUs, which nobody restores
        for one in gpu:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        yield


def machine() -> str:
    """The machine and the versions that measured numbers belong to.

    Example:
        >>> machine()
        '... cores of ..., ...; Python 3..., torch 2..., ... thread...'
    """
    names = []
    if (info := Path("/proc/cpuinfo")).exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8"), re.MULTILINE)
    processor = " ".join((names or [platform.processor() or platform.machine()])[0].split())
    if (device := default_device()).type == "cuda":
        processor += f" with {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return (
        f"{os.cpu_count()} cores of {processor}, {platform.system()}; Python {platform.python_version()}, "
        f"torch {torch.__version__.partition('+')[0]}, {threads} thread{'s' * (threads > 1)}"
    )
