"""Initialization: a catalogue of schemes, and one call that applies any of them to any attention model."""

from attntut.anatomy.view import view
from attntut.anatomy.weight import Weight, weights
from attntut.init import data, depth, fan, parts, plain, structured, symmetric, width  # noqa: F401  (they register)
from attntut.init.apply import initialize_
from attntut.init.registry import scheme, schemes
from attntut.init.scheme import Scheme

__all__ = ["Scheme", "Weight", "initialize_", "scheme", "schemes", "view", "weights"]
