"""How a stream begins: from scratch, or from a saved state that nothing may contradict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synopsis.processes.scaling import Scale
from synopsis.serving.dates import as_moment, seconds_since_epoch
from synopsis.serving.stream import Stream, StreamSettings
from synopsis.serving.stream_state import StreamState
from synopsis.states import StateFormatError, read_state

DEFAULT_PROCESS = "regression-8d"


@dataclass(frozen=True)
class Wanted:
    """What was asked for; None where nothing was said.

    Args:
        process: name or folder of the process.
        y: column to predict.
        inputs: columns, as :meth:`~synopsis.serving.columns.InputSpec.parse` reads them.
        lags: how many rows back y is an input as well.
        horizon: rows predicted at a time.
        warmup: rows that settle the scaling.
        trend_from: date where trends begin.
    """

    process: str | None = None
    y: str | None = None
    inputs: tuple[str, ...] | None = None
    lags: tuple[int, ...] | None = None
    horizon: int | None = None
    warmup: int | None = None
    trend_from: str | None = None


def begin_stream(wanted: Wanted, columns: Sequence[str], scale: Path | None = None) -> Stream:
    """A stream that has seen nothing.

    Args:
        wanted: y at least, and an input or lag.
        columns: of the table.
        scale: file of a known scaling, instead of a warm-up.

    Raises:
        ValueError: when something is missing or does not fit.
    """
    if wanted.y is None:
        raise ValueError("name the column to predict: --y COLUMN")
    settings = StreamSettings(
        wanted.process or DEFAULT_PROCESS,
        wanted.y,
        wanted.inputs or (),
        wanted.lags or (),
        wanted.horizon or 1,
        wanted.warmup or StreamSettings.warmup,
        None if wanted.trend_from is None else _seconds(wanted.trend_from),
    )
    return Stream.begin(settings, columns, None if scale is None else read_scale(scale))


def resume_stream(wanted: Wanted, columns: Sequence[str], state: Path) -> Stream:
    """A stream that goes on from a file.

    Args:
        wanted: must be what the state says, or None.
        columns: of the table.
        state: file written by :class:`~synopsis.serving.run.Run`.

    Raises:
        ValueError: when the state contradicts what is wanted, or belongs to another process.
    """
    saved = read_stream_state(state)
    origin = None if wanted.trend_from is None else _seconds(wanted.trend_from)
    asked: dict[str, Any] = {
        "y": wanted.y,
        "inputs": wanted.inputs,
        "lags": wanted.lags,
        "horizon": wanted.horizon,
        "warmup": wanted.warmup,
        "origin": origin,
    }
    for name, value in asked.items():
        held = getattr(saved, name)
        if value is not None and value != held:
            raise ValueError(
                f"{state}: was saved with {name} {_listed(held)}, not {_listed(value)}"
            )
    try:
        return Stream.resume(saved, columns, wanted.process)
    except ValueError as error:
        raise ValueError(f"{state}: {error}") from error


def read_stream_state(path: Path) -> StreamState:
    """Read a saved stream.

    Raises:
        StateFormatError: when the file is not there, not whole, or holds another kind of state.
    """
    state = read_state(path)
    if not isinstance(state, StreamState):
        raise StateFormatError(f"{path}: holds a state of kind {state.kind!r}, not of a stream")
    return state


def read_scale(path: Path) -> Scale:
    """Read a scaling that was saved as JSON.

    Raises:
        ValueError: when there is none; the message names the file.
    """
    try:
        return Scale.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{path}: {reason}") from error


def _seconds(text: str) -> float:
    try:
        return seconds_since_epoch(as_moment(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a date ({error})") from error


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) or "none" if isinstance(value, tuple) else repr(value)
