"""One stream: records of a table in, forecasts out, and a state that holds all of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from synopsis.processes import Process, load
from synopsis.processes.scaling import Scale
from synopsis.processes.standardized import Standardized
from synopsis.serving.columns import InputSpec, LagBuffer, RowEncoder
from synopsis.serving.contenders import begin, contenders, resume, understands_gaps
from synopsis.serving.progressive import Outcome, Progressive
from synopsis.serving.records import InputError, Record, given, shown
from synopsis.serving.stream_state import StreamState

LARGEST = 1e30  # squares of larger numbers would leave the range of float32


@dataclass(frozen=True)
class StreamSettings:
    """What is predicted from what, and how.

    Args:
        source: name of a shipped process, or a folder of :meth:`~synopsis.processes.Process.save_pretrained`.
        y: column predicted.
        inputs: columns, as :meth:`~synopsis.serving.columns.InputSpec.parse` reads them.
        lags: how many rows back y is an input as well, each at least the horizon.
        horizon: rows predicted at a time.
        warmup: rows that settle the scaling, at least 2.
        origin: where trends begin, seconds since 1970; None: at the first row.
    """

    source: str
    y: str
    inputs: tuple[str, ...] = ()
    lags: tuple[int, ...] = ()
    horizon: int = 1
    warmup: int = 32
    origin: float | None = None

    def encoder(self, columns: Sequence[str]) -> RowEncoder:
        """What turns records into numbers.

        Args:
            columns: names that exist, where known: an input may hold a colon in its name then.

        Raises:
            ValueError: the inputs contradict each other or the horizon.
        """
        for lag in self.lags:
            if lag < self.horizon:
                raise ValueError(
                    f"lag {lag} is not known yet when {self.horizon} rows are predicted at a time; "
                    f"lags must be at least the horizon"
                )
        specs = [InputSpec.parse(text, columns) for text in self.inputs]
        return RowEncoder(self.y, specs, self.lags, self.origin)


class Stream:
    """Records in, forecasts out; made by :meth:`begin` or :meth:`resume`.

    Args:
        settings: what is predicted from what.
        process: that predicts, without its scaling.
        encoder: turns records into numbers.
        progressive: predicts, scores and learns.
        past: the last values of y.
        missing: records skipped so far.
    """

    def __init__(
        self,
        settings: StreamSettings,
        process: Process,
        encoder: RowEncoder,
        progressive: Progressive,
        past: LagBuffer,
        missing: int = 0,
    ) -> None:
        self.settings, self.encoder, self.progressive = settings, encoder, progressive
        self.fingerprint, self.missing = process.fingerprint, missing
        self.strict = False
        self._past = past
        self._gaps = understands_gaps(progressive.methods[0].process)

    @classmethod
    def begin(
        cls, settings: StreamSettings, columns: Sequence[str] = (), scale: Scale | None = None
    ) -> Self:
        """A stream that has seen nothing.

        Args:
            settings: what is predicted from what.
            columns: of the table, where known.
            scale: a known scaling, instead of a warm-up.

        Raises:
            ValueError: the inputs do not fit the process, the horizon or the scale; no such process.
        """
        encoder = settings.encoder(columns)
        process = load(settings.source)
        _check_inputs(process, encoder, scale)
        processes = contenders(process, encoder.kinds, settings.warmup)
        methods = begin(Path(settings.source).name, processes, scale)
        unscored = 0 if scale else settings.warmup
        progressive = Progressive(methods, settings.horizon, unscored)
        return cls(settings, process, encoder, progressive, encoder.no_past())

    @classmethod
    def resume(
        cls, state: StreamState, columns: Sequence[str] = (), source: str | None = None
    ) -> Self:
        """Go on from a saved state, as if there had been no pause.

        Args:
            state: of the stream so far.
            columns: of the table, where known.
            source: name or folder of the process; None: as the state names it.

        Raises:
            ValueError: the process is not the one that the state was made by.
        """
        settings = StreamSettings(
            source or state.source,
            state.y,
            state.inputs,
            state.lags,
            state.horizon,
            state.warmup,
            state.origin,
        )
        process = load(settings.source)
        past = LagBuffer(tuple(state.past.tolist()))
        return cls(
            settings,
            process,
            settings.encoder(columns),
            resume(state, process),
            past,
            state.missing,
        )

    @property
    def name(self) -> str:
        """Of the process, as it is shown."""
        return self.progressive.methods[0].name

    def take(self, record: Record) -> list[Outcome]:
        """Predict a record before learning from it.

        A record without y is only predicted; one without an input is skipped. Both are counted.

        Returns:
            What was forecast for every row of the block, if this record completes one.

        Raises:
            InputError: text stands where a number belongs, or a value is missing and ``strict`` is set. The stream is
                then as it was before the record.
        """
        encoder = self.encoder.anchored(record)
        inputs, y = encoder.encode(record)
        complete = not any(map(math.isnan, inputs))
        missing = not complete or math.isnan(y)
        if self.strict and missing:
            raise _missing(record, encoder.columns)
        if any(abs(number) > LARGEST for number in (*inputs, y)):
            raise _too_large(record, encoder.columns)
        given_inputs = (*inputs, *self._past.values(encoder.lags))
        usable = complete and (self._gaps or not any(map(math.isnan, given_inputs)))
        try:
            advance = self.progressive
            outcomes = advance.take(given_inputs, y, record.line) if usable else advance.skip()
        except (ValueError, RuntimeError) as error:  # also what linear algebra raises
            raise InputError(record.file, record.line, f"cannot go on: {error}") from error
        self.encoder = encoder
        self._past = self._past.push(y)
        self.missing += missing
        return outcomes

    def scale(self) -> Scale:
        """The scaling of inputs and y.

        Raises:
            ValueError: during the warm-up.
        """
        method = self.progressive.methods[0]
        assert isinstance(method.process, Standardized)
        return method.process.scale(method.state, self.encoder.names)

    def state(self) -> StreamState:
        """Everything needed to go on; call :meth:`Progressive.flush` before."""
        progressive, settings = self.progressive, self.settings
        scores = list(progressive.scores().values())
        waiting = progressive.waiting
        return StreamState(
            methods=tuple(method.state for method in progressive.methods),
            scored=torch.stack([each.count for each in scores]),
            sums=torch.stack([each.sums for each in scores]),
            pit=torch.stack([each.pit for each in scores]),
            past=torch.tensor(self._past.past, dtype=torch.float64),
            waiting_at=torch.tensor(
                [(row.number, row.line) for row in waiting], dtype=torch.int64
            ).view(-1, 2),
            waiting_x=torch.tensor([row.inputs for row in waiting], dtype=torch.float64).view(
                -1, self.encoder.dim
            ),
            waiting_y=torch.tensor([row.y for row in waiting], dtype=torch.float64),
            names=tuple(method.name for method in progressive.methods),
            source=settings.source,
            fingerprint=self.fingerprint,
            y=settings.y,
            inputs=tuple(str(spec) for spec in self.encoder.specs),
            input_names=self.encoder.names,
            kinds=self.encoder.kinds,
            lags=settings.lags,
            origin=self.encoder.origin,
            horizon=settings.horizon,
            begun=progressive.begun,
            warmup=settings.warmup,
            unscored=progressive.unscored,
            rows=progressive.rows,
            missing=self.missing,
        )


def _check_inputs(process: Process, encoder: RowEncoder, scale: Scale | None) -> None:
    if encoder.dim > process.dim_x:
        raise ValueError(
            f"the process takes {process.dim_x} inputs but there are {encoder.dim}: "
            f"{', '.join(encoder.names)}"
        )
    if process.dim_y != 1:
        raise ValueError(f"the process predicts {process.dim_y} outputs; a stream has one")
    if scale is not None and scale.names != encoder.names:
        raise ValueError(
            f"the scale is of the inputs {', '.join(scale.names)}; "
            f"there are {', '.join(encoder.names)}"
        )


def _missing(record: Record, columns: Sequence[str]) -> InputError:
    for column, value in zip(columns, record.values, strict=True):
        if given(value) is None:
            return InputError(record.file, record.line, f"column {shown(column)} holds no value")
    return _too_large(record, columns)


def _too_large(record: Record, columns: Sequence[str]) -> InputError:
    for column, value in zip(columns, record.values, strict=True):
        try:
            large = not abs(float(value)) <= LARGEST  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            large = isinstance(value, int)
        if large:
            reason = f"column {shown(column)} holds {shown(value)}, which is too large"
            return InputError(record.file, record.line, reason)
    return InputError(record.file, record.line, "a value is too large")
