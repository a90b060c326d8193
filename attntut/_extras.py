"""Packages that come with an extra: imported when they are used, and named where they are missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Say which extra of this package brings what an import inside did not find.

    Args:
        name: of the extra, a key of ``optional-dependencies`` in ``pyproject.toml``.

    Raises:
        ModuleNotFoundError: with the package that is missing and the command that installs it.

    Example:
        >>> with extra("plots"):
        ...     import matplotlib_of_tomorrow
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: matplotlib_of_tomorrow is not installed, and this needs it: pip install 'attntut[plots]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or __package__).partition(".")[0]
        if package == __package__:
            raise  # a fault of this package, or a message that already says what to do
        message = f"{package} is not installed, and this needs it: pip install 'attntut[{name}]'"
        raise ModuleNotFoundError(message) from error
