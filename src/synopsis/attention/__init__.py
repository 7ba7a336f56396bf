"""Exact softmax attention in bounded memory."""

from synopsis.attention import fused
from synopsis.attention.exact import engine, scaled_dot_product_attention
from synopsis.attention.state import AttentionState, SoftmaxSummary

__all__ = [
    "AttentionState",
    "SoftmaxSummary",
    "engine",
    "fused",
    "scaled_dot_product_attention",
]
