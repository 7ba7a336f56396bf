"""A stream on disk: everything needed to go on where a run stopped, or to join runs over parts of the data."""

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float64, Int64
from torch import Tensor

from synopsis.calibration import PIT_BINS, SUMS, RunningScores
from synopsis.states import State


@dataclass(frozen=True)
class StreamState(State):
    """What a stream has seen, learned and scored.

    Args:
        methods: state of the process (with its scaling), then of every baseline.
        scored: predictions scored, by method.
        sums: sums of the scores named in ``calibration.SUMS``, by method.
        pit: PIT counts, by method.
        past: the last values of y, oldest first; NaN where not known.
        waiting_at: number and line of rows that are predicted but not learned from, as their block is not complete.
        waiting_x: their inputs.
        waiting_y: their outcomes; NaN where missing.
        names: of the methods, the process first.
        source: name or folder that the process was loaded from.
        fingerprint: of that process.
        y: column predicted.
        inputs: as given to ``--x``.
        input_names: one per number that the process is given, lags included.
        kinds: how each of these is scaled.
        lags: how many rows back y is an input as well.
        origin: where trends begin, seconds since 1970; None when there are none.
        horizon: rows predicted at a time.
        begun: rows of the incomplete block so far, used or not.
        warmup: rows that settle the scaling, where it was not given.
        unscored: rows learned from before scoring began; 0 when the scaling was given.
        rows: of the stream that were read, used or not.
        missing: rows skipped because a value was missing.
    """

    kind: ClassVar[str] = "stream"
    methods: tuple[Any, ...]
    scored: Int64[Tensor, " methods"]
    sums: Float64[Tensor, "methods sums"]
    pit: Int64[Tensor, "methods bins"]
    past: Float64[Tensor, " lags"]
    waiting_at: Int64[Tensor, "waiting 2"]
    waiting_x: Float64[Tensor, "waiting dim"]
    waiting_y: Float64[Tensor, " waiting"]
    names: tuple[str, ...]
    source: str
    fingerprint: str
    y: str
    inputs: tuple[str, ...]
    input_names: tuple[str, ...]
    kinds: tuple[Any, ...]
    lags: tuple[int, ...]
    origin: float | None
    horizon: int
    begun: int
    warmup: int
    unscored: int
    rows: int
    missing: int

    @property
    def count(self) -> Tensor:
        """Rows learned from."""
        count: Tensor = self.methods[0].count
        return count

    def check(self) -> None:
        """Raise ValueError unless methods, scores and waiting rows fit each other."""
        methods, waiting = len(self.names), len(self.waiting_y)
        if len(self.kinds) != len(self.input_names):
            raise ValueError(f"there are {len(self.kinds)} kinds of {len(self.input_names)} inputs")
        expected = {
            "scored": (methods,),
            "sums": (methods, len(SUMS)),
            "pit": (methods, PIT_BINS),
            "past": (max(self.lags, default=0),),
            "waiting_at": (waiting, 2),
            "waiting_x": (waiting, len(self.input_names)),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} is {tuple(getattr(self, name).shape)}; it must be {shape}"
                )
        if not methods or len(self.methods) != methods:
            raise ValueError(f"there are {len(self.methods)} states for the methods {self.names}")
        if not waiting <= self.begun < max(self.horizon, 1):
            raise ValueError(f"{waiting} of {self.begun} rows wait in a block of {self.horizon}")

    @property
    def scores(self) -> dict[str, RunningScores]:
        """Of every method, by name."""
        parts = zip(self.names, self.scored, self.sums, self.pit, strict=True)
        return {name: RunningScores(count, sums, pit) for name, count, sums, pit in parts}
