"""Exact softmax attention in bounded memory."""

from synopsis.attention import biases, fused, masks
from synopsis.attention.blockwise import BlockwiseTransformerLayer
from synopsis.attention.choice import engine
from synopsis.attention.exact import scaled_dot_product_attention
from synopsis.attention.state import AttentionState
from synopsis.attention.stream import streaming_attention
from synopsis.attention.summary import SoftmaxSummary

__all__ = [
    "AttentionState",
    "BlockwiseTransformerLayer",
    "SoftmaxSummary",
    "biases",
    "engine",
    "fused",
    "masks",
    "scaled_dot_product_attention",
    "streaming_attention",
]
