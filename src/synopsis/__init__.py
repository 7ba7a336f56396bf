"""Attention in bounded memory: exact attention, constant-size memories, constant-memory neural processes."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synopsis import attention, calibration, memory, processes, states, tasks, testing
    from synopsis.attention import (
        AttentionState,
        scaled_dot_product_attention,
        streaming_attention,
    )
    from synopsis.processes import load
    from synopsis.states import StateFormatError

__version__ = "0.1.0"
__all__ = [
    "AttentionState",
    "StateFormatError",
    "attention",
    "calibration",
    "load",
    "memory",
    "processes",
    "scaled_dot_product_attention",
    "states",
    "streaming_attention",
    "tasks",
    "testing",
]

_HOMES = {
    "AttentionState": "attention",
    "StateFormatError": "states",
    "load": "processes",
    "scaled_dot_product_attention": "attention",
    "streaming_attention": "attention",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``synopsis --help`` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module 'synopsis' has no attribute {name!r}")
    if name in _HOMES:
        return getattr(import_module(f"synopsis.{_HOMES[name]}"), name)
    return import_module(f"synopsis.{name}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
