"""Attention, its initialization and its diagnosis: the helper package of the book."""

from attntut.attention import MultiHeadAttention, scaled_dot_product_attention
from attntut.device import default_device, seeded
from attntut.diagnose import diagnose, listen
from attntut.evidence import compare, expect, observe
from attntut.explorer import Explorer
from attntut.init import initialize_, schemes
from attntut.transformer import Transformer, TransformerBlock, TransformerConfig

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
    "scaled_dot_product_attention",
    "schemes",
    "seeded",
]
