"""The part of any model whose roles are known."""

from __future__ import annotations

from torch import nn

from attntut.init.parameters import Drawers
from attntut.init.patterns import CallerPatterns
from attntut.init.roles import ModelView, view


def known_view(model: nn.Module) -> ModelView:
    """The model by role, as in :func:`attntut.init.view`; matrices of no known role are passed over.

    Raises:
        ValueError: there is no attention whose projections are known.

    Example:
        >>> model = nn.Sequential(nn.MultiheadAttention(8, num_heads=2), nn.Bilinear(8, 8, 8))
        >>> [entry.weight.role for entry in known_view(model).entries]
        ['query', 'key', 'value', 'output']
    """
    try:
        return view(model)
    except ValueError:
        unknown = list(Drawers(model, CallerPatterns(None)).unknown)
        return view(model, roles={"keep": unknown} if unknown else None)
