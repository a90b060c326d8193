"""The old address of :class:`~attntut.diagnose.faults.Finding`."""

from attntut.diagnose.faults import Finding

__all__ = ["Finding"]
