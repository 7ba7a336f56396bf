"""The columns of a table about memories: where each stands in a report, and how many digits of it mean something."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from synopsis.diagnostics import LayerReport
from synopsis.reproduction.pages import UNKNOWN, number


class Column(NamedTuple):
    """One statistic of a layer.

    Args:
        part: of the layer's report.
        name: of the statistic in that part.
        digits: after the decimal point.
    """

    part: Literal["memory_in", "memory_out", "pack", "unpack"]
    name: str
    digits: int = 3

    def of(self, layer: LayerReport) -> float | None:
        """Its value; None where the layer has none."""
        part = getattr(layer, self.part)
        value: float | None = None if part is None else getattr(part, self.name)
        return value

    def mean(self, layers: Iterable[LayerReport]) -> str:
        """The mean over layers that have one, as a table writes it."""
        known = [value for value in map(self.of, layers) if value is not None]
        return number(statistics.fmean(known), self.digits) if known else UNKNOWN


COLUMNS: Mapping[str, Column] = {
    "cosine": Column("memory_out", "cosine"),
    "centred": Column("memory_out", "centred_cosine"),
    "effective rank": Column("memory_out", "effective_rank", 2),
    "norm": Column("memory_out", "norm", 2),
    "pack entropy": Column("pack", "entropy"),
    "pack TV": Column("pack", "total_variation"),
    "packed norm": Column("pack", "norm", 2),
    "τ of pack": Column("pack", "temperature", 2),
    "unpack entropy": Column("unpack", "entropy"),
    "cells for 90 %": Column("unpack", "cells_for_90", 1),
}
