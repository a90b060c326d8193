"""The sweeps of the book, one a module: its ``SWEEP`` is what ``nox -s runs -- NAME`` makes."""
