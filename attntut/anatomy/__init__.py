"""Which matrix of a model plays which role: found by listening to a forward pass, or by names."""

from attntut.anatomy.layout import Matrix
from attntut.anatomy.names import Layout
from attntut.anatomy.view import Attention, Entry, ModelView, look, view
from attntut.anatomy.weight import Weight

__all__ = ["Attention", "Entry", "Layout", "Matrix", "ModelView", "Weight", "look", "view"]
