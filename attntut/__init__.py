"""Attention, its initialization and its diagnosis: the helper package of the book."""

from typing import TYPE_CHECKING, Any

from attntut.attention import MultiHeadAttention, scaled_dot_product_attention
from attntut.device import default_device, seeded
from attntut.diagnose import diagnose, listen
from attntut.evidence import compare, expect, observe
from attntut.init import initialize_, schemes
from attntut.recommend import recommend
from attntut.transformer import Transformer, TransformerBlock, TransformerConfig

if TYPE_CHECKING:
    from attntut.explorer import Explorer

__all__ = [
    "Explorer",
    "MultiHeadAttention",
    "Transformer",
    "TransformerBlock",
    "TransformerConfig",
    "compare",
    "default_device",
    "diagnose",
    "expect",
    "initialize_",
    "listen",
    "observe",
    "recommend",
    "scaled_dot_product_attention",
    "schemes",
    "seeded",
]


def __getattr__(name: str) -> Any:
    if name != "Explorer":  # which needs Jupyter's widgets and matplotlib: imported when it is used
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from attntut.explorer import Explorer

    return Explorer
