"""Sequence memories of constant size, one published block per file."""

from synopsis.memory.base import Memory
from synopsis.memory.cmab import CMAB, CMABStack, CMABState

__all__ = ["CMAB", "CMABStack", "CMABState", "Memory"]
