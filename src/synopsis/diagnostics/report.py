"""What was found in the memory of each layer, as frozen dataclasses and as JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

Number = float | None


@dataclass(frozen=True)
class Cells:
    """The m vectors of a memory; every number is a mean over sequences, None where none has one.

    Args:
        cosine: mean cosine between two different vectors, −1 … 1; None for fewer than two that are not 0.
        centred_cosine: the same after their mean is taken away: −1/(m − 1) where all are equally far from it, more
            where most huddle together and a few stand apart; None also where they differ by no more than rounding.
        effective_rank: exp(H(σ/Σσ)) of the matrix they form, 1 … min(m, dim); None for zeros.
        norm: mean Euclidean norm.
    """

    cosine: Number
    centred_cosine: Number
    effective_rank: Number
    norm: Number


@dataclass(frozen=True)
class Pack:
    """The attention of cells to a sequence; a mean over heads and cells, and then over sequences.

    Args:
        entropy: of a cell's weights over ln n, for n real keys after the filter, 0 … 1; None without two of them.
        total_variation: mean of ½ Σ|p − q| over pairs of different cells, 0 … 1; None without two cells and two keys.
        norm: mean Euclidean norm of what a cell has packed.
        temperature: what queries are divided by.
    """

    entropy: Number
    total_variation: Number
    norm: Number
    temperature: Number


@dataclass(frozen=True)
class Unpack:
    """The attention of a sequence's real items to the cells.

    Args:
        entropy: of an item's weights over ln m, 0 … 1, a mean over heads and items; None for one cell.
        cells_for_90: fewest cells that hold 90 % of the weight that all items and heads of a sequence give, 1 … m.
        temperature: what queries are divided by.
    """

    entropy: Number
    cells_for_90: Number
    temperature: Number


@dataclass(frozen=True)
class LayerReport:
    """One layer; a part that it does not have is None.

    Args:
        layer: its number, from 1.
        memory_in: the memory that it was given, or that its pack begins with where it has its own.
        memory_out: the memory that it hands on, or that its items ask where it hands on none.
        pack: from the memory to the sequence.
        unpack: from the sequence to the memory.
    """

    layer: int
    memory_in: Cells | None
    memory_out: Cells | None
    pack: Pack | None
    unpack: Unpack | None

    def number(self, part: str, name: str) -> Number:
        """One number of one part, such as ``("memory_out", "cosine")``; None where the layer has no such part."""
        found = getattr(self, part)
        return None if found is None else getattr(found, name)


@dataclass(frozen=True)
class MemoryReport:
    """All layers of a model.

    Args:
        layers: in their order.
        examples: how many they were measured on.

    Example:
        >>> layer = LayerReport(1, Cells(0.5, -0.1, 2.5, 8.0), None, Pack(0.9, 0.2, 3.0, 1.0), None)
        >>> report = MemoryReport((layer,), examples=32)
        >>> MemoryReport.from_dict(report.to_dict()) == report
        True
    """

    layers: tuple[LayerReport, ...]
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON: nested dictionaries under the names of the fields; no NaN."""
        return {"examples": self.examples, "layers": [asdict(layer) for layer in self.layers]}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """The report that :meth:`to_dict` wrote.

        Raises:
            ValueError: when it is none.
        """
        try:
            layers = tuple(_layer(layer) for layer in found["layers"])
            return cls(layers, int(found["examples"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the report of a memory: {error!r}") from error


def reports_by_step(
    records: Iterable[Mapping[str, Any]],
) -> list[tuple[int, MemoryReport]]:
    """The reports among the lines of a run's metrics, with the steps at which they were made.

    Raises:
        ValueError: when a line that says it is a report is none.

    Example:
        >>> reports_by_step([{"step": 10, "loss": 2.3}])
        []
    """
    return [
        (int(record["step"]), MemoryReport.from_dict(record["memory"]))
        for record in records
        if "memory" in record
    ]


_PARTS = {"memory_in": Cells, "memory_out": Cells, "pack": Pack, "unpack": Unpack}


def _layer(found: Mapping[str, Any]) -> LayerReport:
    parts = {
        name: None if found[name] is None else kind(**found[name]) for name, kind in _PARTS.items()
    }
    return LayerReport(int(found["layer"]), **parts)


__all__ = ["Cells", "LayerReport", "MemoryReport", "Pack", "Unpack", "reports_by_step"]
