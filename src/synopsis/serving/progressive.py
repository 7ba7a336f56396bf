"""Progressive evaluation: every row is predicted before it is learned from (Dawid, 1984, "the prequential approach").

The methods compared see the same rows in the same order and are scored on the same ones, so their scores can be
compared; and each of them is a process with a state of constant size, so the comparison can go on for ever.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from synopsis.calibration import RunningScores
from synopsis.processes import Process
from synopsis.serving.forecasts import Forecast, forecasts
from synopsis.serving.tally import Tally


@dataclass(frozen=True, slots=True)
class Row:
    """One row in numbers.

    Args:
        number: in the stream, from 1.
        line: in its file, from 1.
        inputs: what a model is given; NaN for a past value that is not known.
        y: the outcome; NaN when it is missing.
    """

    number: int
    line: int
    inputs: tuple[float, ...]
    y: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """A row, what the first method forecast for it, and the CPU time it took to predict and learn, in ms."""

    row: Row
    forecast: Forecast
    milliseconds: float
    seen: int


class Method:
    """A process on its way through a stream: its state and its scores.

    Args:
        name: as it is shown.
        process: in evaluation mode, speaking in the units of y.
        state: to go on from; None to begin.
        scores: to go on from; None to begin.
    """

    def __init__(
        self,
        name: str,
        process: Process,
        state: Any = None,
        scores: RunningScores | None = None,
    ) -> None:
        self.name, self.process = name, process
        self.state = process.init((1,)) if state is None else state
        self.tally = Tally.of(RunningScores.empty() if scores is None else scores)


class Progressive:
    """Predict, score, learn, block by block.

    A block is ``horizon`` rows of the stream, counted from its first row, all predicted from what was known before the
    block. A block that is not complete yet has been predicted after :meth:`flush` but is not learned from: its rows
    wait in :attr:`waiting`, so that a stream may stop and go on anywhere without a trace.

    Args:
        methods: those compared; the first one's forecasts are handed out.
        horizon: rows predicted at a time, ≥ 1.
        unscored: rows learned from before scoring begins.
        rows: rows of the stream that came before (``waiting`` included).
        begun: rows of the incomplete block among them, used or not.
        waiting: those of them that are predicted but not learned from.

    Example:
        >>> from synopsis.processes.baselines import RunningMean
        >>> run = Progressive([Method("mean", RunningMean())], horizon=1, unscored=0)
        >>> [outcome.forecast.mean for y in (1.0, 2.0, 3.0) for outcome in run.take((0.0,), y, line=1)]
        [0.0, 1.0, 1.5]
    """

    def __init__(
        self,
        methods: Sequence[Method],
        horizon: int,
        unscored: int,
        rows: int = 0,
        begun: int = 0,
        waiting: Sequence[Row] = (),
    ) -> None:
        if horizon < 1:
            raise ValueError(f"the horizon is {horizon}; it must be at least 1 row")
        self.methods, self.horizon, self.unscored = tuple(methods), horizon, unscored
        self.rows, self.begun = rows, begun
        self._block: list[Row] = list(waiting)
        self._predicted = len(self._block)

    @property
    def absorbed(self) -> int:
        """Rows learned from."""
        return int(self.methods[0].state.count.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of the first method's state."""
        return int(self.methods[0].state.nbytes)

    @property
    def waiting(self) -> tuple[Row, ...]:
        """Rows of the incomplete block, once :meth:`flush` has been called."""
        return tuple(self._block)

    def scores(self) -> Mapping[str, RunningScores]:
        """Of every method, by name."""
        return {method.name: method.tally.scores for method in self.methods}

    def skip(self) -> list[Outcome]:
        """A row that cannot be used: it takes its place in the block, and no more."""
        return self._advance([])

    def take(self, inputs: tuple[float, ...], y: float, line: int) -> list[Outcome]:
        """The next row; y is NaN when it is missing, and then the row is only predicted.

        Returns:
            What was forecast for each row of the block, if this row completes one.

        Raises:
            ValueError: when a forecast is not a distribution; the row is then not part of the stream.
        """
        return self._advance([Row(self.rows + 1, line, inputs, y)])

    def flush(self) -> list[Outcome]:
        """Predict and score what stands in an incomplete block, without learning from it."""
        return self._predict()

    def absorb_waiting(self) -> None:
        """Learn from an incomplete block as well, and begin a new one."""
        self._learn()

    def _advance(self, taken: list[Row]) -> list[Outcome]:
        """One row further in the block, and to its end if that completes it."""
        before, begun = self._block, self.begun
        self._block, self.begun = [*before, *taken], begun + 1
        try:
            outcomes = self._complete() if self.begun == self.horizon else []
        except Exception:
            self._block, self.begun = before, begun
            raise
        self.rows += 1
        return outcomes

    def _complete(self) -> list[Outcome]:
        outcomes = self._predict()
        each = self._learn() / max(len(outcomes), 1)
        return [replace(o, milliseconds=o.milliseconds + each) for o in outcomes]

    @torch.no_grad()
    def _predict(self) -> list[Outcome]:
        """Forecast and score the block's rows that are not predicted yet."""
        new = self._block[self._predicted :]
        if not new:
            return []
        # Always ``horizon`` targets, so that a row's forecast does not depend on how many came with it.
        rows = [*self._block, *[self._block[-1]] * (self.horizon - len(self._block))]
        x = _points([row.inputs for row in rows])
        predicted, milliseconds, seen = [], 0.0, self.absorbed
        start = time.process_time()
        for method in self.methods:
            each = forecasts(method.process.predict(method.state, x))
            predicted.append(each[self._predicted : len(self._block)])
            milliseconds = milliseconds or 1000 * (time.process_time() - start)
        if seen >= self.unscored:
            self._score(new, predicted)
        self._predicted = len(self._block)
        share = milliseconds / len(new)
        return [Outcome(r, f, share, seen) for r, f in zip(new, predicted[0], strict=True)]

    def _score(self, rows: Sequence[Row], predicted: Sequence[Sequence[Forecast]]) -> None:
        tallies = []
        for method, each in zip(self.methods, predicted, strict=True):
            tally = method.tally
            for row, forecast in zip(rows, each, strict=True):
                try:
                    tally = tally if math.isnan(row.y) else tally.add(forecast, row.y)
                except ValueError as error:
                    raise ValueError(f"line {row.line}: {method.name}: {error}") from error
            tallies.append(tally)
        for method, tally in zip(self.methods, tallies, strict=True):
            method.tally = tally

    @torch.no_grad()
    def _learn(self) -> float:
        """End the block: every method absorbs its outcomes. Returns the CPU time of the first, in ms."""
        real = [row for row in self._block if not math.isnan(row.y)]
        states, milliseconds = [method.state for method in self.methods], 0.0
        if real:
            x, y = _points([row.inputs for row in real]), _points([(row.y,) for row in real])
            start = time.process_time()
            for i, method in enumerate(self.methods):
                states[i] = method.process.update(method.state, x, y)
                milliseconds = milliseconds or 1000 * (time.process_time() - start)
        for method, state in zip(self.methods, states, strict=True):
            method.state = state
        self._block, self._predicted, self.begun = [], 0, 0
        return milliseconds


def _points(rows: Sequence[tuple[float, ...]]) -> Float64[Tensor, "1 points dim"]:
    return torch.tensor([rows], dtype=torch.float64)
