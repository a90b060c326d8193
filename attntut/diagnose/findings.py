"""The old address of :func:`~attntut.diagnose.faults.find`."""

from attntut.diagnose.faults import Finding, find

__all__ = ["Finding", "find"]
