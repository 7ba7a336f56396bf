"""Training steps at the length of ListOps in the Long Range Arena: ours beside the published code's way of taking them.

The published settings: 2,000 tokens and a class vector, width 128, 4 heads, 6 layers, feed-forward 512, dropout 0.1 of
features and of attention weights, batches of 32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from synopsis.reproduction.contenders import Watch, remembered
from synopsis.reproduction.step_costs import StepCell, StepCost, measure_step
from synopsis.reproduction.stream_check import Stream, StreamFacts, check_stream
from synopsis.training.experiment import Component

LENGTH, BATCH = 2_000, 32
MICRO = 4  # sequences at a time, where a step is cut
_SIZES: Mapping[str, Any] = {
    "vocabulary": 17,
    "classes": 10,
    "layers": 6,
    "dim": 128,
    "heads": 4,
    "feedforward": 512,
    "dropout": 0.1,
    "attention_dropout": 0.1,
}


@dataclass(frozen=True)
class Kind:
    """A model of the table.

    Args:
        title: in the table.
        layer: its name.
        memory: cells.
        options: of the layer.
        held: sequences that the published way of computing is measured with: what its memory allows.
        found: CPU-seconds of the published code itself for a step of 32, measured elsewhere, scaled from a batch of
            ``held``; None where it was not measured.
    """

    title: str
    layer: str
    memory: int
    options: Mapping[str, Any]
    held: int
    found: float | None

    def model(self, length: int, recompute: bool) -> Component:
        """As in an experiment."""
        arguments = {**_SIZES, "length": length, "layer": self.layer, "memory": self.memory}
        arguments |= {"options": dict(self.options)} if self.options else {}
        return Component("SequenceClassifier", {**arguments, "recompute": recompute})


_WAYS = ("whole", "cut", "recomputed", "published")  # of taking a step, as the fields of a row
_STRIDED = {"filtering": {"kernel": 16, "stride": 8}}
_CONV = "SimplifiedConvLunaLayer"
KINDS: dict[str, Kind] = {
    "transformer": Kind("Transformer", "VanillaLayer", 0, {}, 2, 71.0),
    "luna-256": Kind("Luna, 256 cells", "SharedLunaLayer", 256, {}, 8, 26.0),
    "convluna-256": Kind("ConvLuna, 256 cells, 4 taps", _CONV, 256, {}, 8, 19.0),
    "convluna-256-strided": Kind(
        "ConvLuna, 256 cells, 16 taps, stride 8", _CONV, 256, _STRIDED, 8, 15.0
    ),
    "luna-16": Kind("Luna, 16 cells", "SharedLunaLayer", 16, {}, 8, 8.3),
    "convluna-16": Kind("ConvLuna, 16 cells, 4 taps", _CONV, 16, {}, 8, 9.6),
}
STREAMS: tuple[Stream, ...] = (Stream(), Stream(kernel=16, stride=8))


@dataclass(frozen=True)
class Settings:
    """What the page is made with.

    Args:
        models: keys of ``KINDS``.
        length: tokens.
        batch: sequences of a step.
        threads: of the processor.
        patience: CPU-seconds that a step may take.
        most_gib: memory that a step may ask for, GiB.
        runs: folder where measurements are kept, so that a command that was killed goes on.
        streams: what is folded.
    """

    models: Sequence[str]
    length: int
    batch: int
    threads: int
    patience: float
    most_gib: float
    runs: Path
    streams: Sequence[Stream] = field(default_factory=lambda: STREAMS)


@dataclass(frozen=True)
class Row:
    """The measurements of one model.

    Args:
        kind: which.
        whole: our step.
        cut: our step, its gradient computed ``MICRO`` sequences at a time.
        recomputed: our step when layers are computed again for the gradient.
        published: the step as the published code computes it, on a batch that it can hold.
    """

    kind: Kind
    whole: StepCost
    cut: StepCost
    recomputed: StepCost
    published: StepCost


def rows(settings: Settings, watch: Watch = lambda *_: None) -> list[Row]:
    """Measure what has not been measured; each measurement is kept as soon as it is made."""
    found, all_of_them = list[Row](), len(_WAYS) * len(settings.models)
    for name in settings.models:
        kind, costs = KINDS[name], []
        for way in _WAYS:
            model = kind.model(settings.length, way == "recomputed")
            batch = min(kind.held, settings.batch) if way == "published" else settings.batch
            micro = MICRO if way == "cut" else 0
            cell = StepCell(model, batch, way == "published", settings.threads, micro)
            costs.append(_measured(name, cell, settings))
            watch("training steps", len(_WAYS) * len(found) + len(costs), all_of_them)
        found.append(Row(kind, *costs))
    return found


def _measured(name: str, cell: StepCell, settings: Settings) -> StepCost:
    asked = {
        "model": {"name": cell.model.name, **cell.model.arguments},
        "batch": cell.batch,
        "materialised": cell.materialised,
        "threads": cell.threads,
        "micro": cell.micro,
        "patience": settings.patience,
        "most_gib": settings.most_gib,
    }

    def compute() -> dict[str, Any]:
        return vars(measure_step(cell, settings.patience, settings.most_gib))

    return StepCost(**remembered(settings.runs, f"step-{name}", asked, compute))


def streams(settings: Settings, watch: Watch = lambda *_: None) -> list[tuple[Stream, StreamFacts]]:
    """Fold every stream that has not been folded yet."""
    found = []
    for stream in settings.streams:
        compute = partial(_folded, stream)
        facts = remembered(settings.runs, "stream", vars(stream), compute)
        found.append((stream, StreamFacts(**facts)))
        watch("streams", len(found), len(settings.streams))
    return found


def _folded(stream: Stream) -> dict[str, Any]:
    return vars(check_stream(stream))
