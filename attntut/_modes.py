"""Another name for what is in :mod:`attntut._restore`."""

from attntut._restore import no_fast_path, restored_mode

__all__ = ["no_fast_path", "restored_mode"]
