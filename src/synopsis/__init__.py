"""Attention in bounded memory: exact attention, constant-size memories, constant-memory neural processes."""

from synopsis import memory, processes, states
from synopsis.attention import AttentionState
from synopsis.processes import load
from synopsis.states import StateFormatError

__all__ = ["AttentionState", "StateFormatError", "load", "memory", "processes", "states"]
__version__ = "0.1.0"
