"""What a model's attention does, and what is wrong with it: one call, no change to the model's code."""

from attntut.diagnose.listener import diagnose, listen
from attntut.diagnose.report import Report

__all__ = ["Report", "diagnose", "listen"]
