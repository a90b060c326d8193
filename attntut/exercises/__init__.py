"""The exercises of the book in a notebook: ``%load_ext attntut.exercises``, then ``%%exercise 2.4`` begins a cell."""

from attntut.exercises.public import check

__all__ = ["check", "load_ipython_extension"]


def load_ipython_extension(shell: object) -> None:
    """Register ``%student`` and ``%%exercise``; called by ``%load_ext attntut.exercises``."""
    from attntut.exercises.magic import Exercises

    shell.register_magics(Exercises)  # type: ignore[attr-defined]
