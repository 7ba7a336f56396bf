"""What goes wrong in a memory: statistics of its cells and of the attention to and from it, off the training path."""

from synopsis.diagnostics.measurement import has_memory, measure_memory
from synopsis.diagnostics.report import (
    Cells,
    LayerReport,
    MemoryReport,
    Pack,
    Unpack,
    reports_by_step,
)

__all__ = [
    "Cells",
    "LayerReport",
    "MemoryReport",
    "Pack",
    "Unpack",
    "has_memory",
    "measure_memory",
    "reports_by_step",
]
