"""A run over a stream from its first row to its last, or to whatever ends it: nothing absorbed is lost."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from synopsis.serving.interruption import Interruption
from synopsis.serving.predictions import PredictionsFile
from synopsis.serving.progressive import Outcome
from synopsis.serving.records import Record
from synopsis.serving.report import Timing, write_report
from synopsis.serving.stream import Stream
from synopsis.serving.trace import LEVELS, Trace
from synopsis.states import write_atomic


@dataclass(frozen=True)
class Outputs:
    """Where a run leaves what it found; None leaves it out.

    Args:
        predictions: CSV of forecasts.
        state: file to go on from.
        scale: JSON of the scaling.
        report: folder of metrics and pictures.
        save_every: rows between two writes of the state.
    """

    predictions: Path | None = None
    state: Path | None = None
    scale: Path | None = None
    report: Path | None = None
    save_every: int = 1000


class Run:
    """One run: a stream, where its results go, and what it has done so far.

    Args:
        stream: that learns.
        outputs: where results go.
        watch: called after every row.

    Raises:
        ValueError: when a file of predictions to go on from holds something else.
        OSError: when it cannot be written.

    Example:
        >>> run = Run(stream, Outputs(report=Path("report")))    # doctest: +SKIP
        >>> run.over(records)                                      # doctest: +SKIP
    """

    def __init__(
        self, stream: Stream, outputs: Outputs, watch: Callable[["Run"], None] | None = None
    ) -> None:
        self.stream, self.outputs, self.watch = stream, outputs, watch
        self.rows, self.remarks = 0, list[str]()
        self.signal: Signals | None = None
        self._started = time.monotonic()
        self._trace = Trace(stream.encoder.dim)
        self._saved_at = stream.progressive.rows
        for file in (outputs.predictions, outputs.state, outputs.scale):
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
        path = outputs.predictions
        self._predictions = None if path is None else PredictionsFile(path, self._saved_at)

    @property
    def timing(self) -> Timing:
        """Rows and wall time of this run."""
        return Timing(self.rows, time.monotonic() - self._started)

    def over(self, records: Iterator[Record]) -> None:
        """Take every record; then, and also when an error ends it, save and report.

        Ctrl-C or SIGTERM ends it between two rows; ``signal`` then says so.

        Raises:
            InputError: where the input cannot be used; everything before is saved.
            ValueError: when a forecast is not a distribution.
            OSError: when a file cannot be written.
        """
        try:
            with Interruption() as interruption:
                for record in interruption.watch(records):
                    self._write(self.stream.take(record))
                    self.rows += 1
                    self._save_if_due()
                    if self.watch is not None:
                        self.watch(self)
            self.signal = interruption.signal
        finally:
            self._finish()

    def _finish(self) -> None:
        try:
            self._write(self.stream.progressive.flush())
        finally:
            self.save()
            if self._predictions is not None:
                self._predictions.close()
        timing = self.timing
        if self.outputs.scale is not None:
            self._save_scale(self.outputs.scale)
        if self.outputs.report is not None:
            self.remarks += write_report(self.outputs.report, self.stream, self._trace, timing)

    def _write(self, outcomes: Iterable[Outcome]) -> None:
        lines = [(o, tuple(map(o.forecast.quantile, LEVELS))) for o in outcomes]
        for outcome, quantiles in lines:
            row = outcome.row
            self._trace.add(
                (row.number, row.y, *quantiles), row.inputs, outcome.milliseconds, outcome.seen
            )
        if self._predictions is not None and lines:
            self._predictions.write(lines)

    def _save_if_due(self) -> None:
        progressive = self.stream.progressive
        if not progressive.begun and progressive.rows - self._saved_at >= self.outputs.save_every:
            self.save()

    def save(self) -> None:
        """Write the state; it never knows of a row that is not in the file of predictions."""
        if self.outputs.state is not None:
            write_atomic(self.outputs.state, self.stream.state().serialize())
        self._saved_at = self.stream.progressive.rows

    def _save_scale(self, path: Path) -> None:
        try:
            text = self.stream.scale().to_json()
        except ValueError:
            self.remarks.append("There is no scale to save, as the warm-up is not over.")
            return
        write_atomic(path, f"{text}\n".encode())
