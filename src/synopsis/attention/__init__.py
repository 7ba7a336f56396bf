"""Exact softmax attention in bounded memory."""

from synopsis.attention import fused
from synopsis.attention.state import AttentionState, SoftmaxSummary

__all__ = ["AttentionState", "SoftmaxSummary", "fused"]
