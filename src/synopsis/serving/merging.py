"""One state from several, each built from its own part of the data."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from synopsis.processes import Process, load
from synopsis.serving.contenders import resume
from synopsis.serving.stream_state import StreamState

_SAME = {
    "fingerprint": "process",
    "y": "predicted column",
    "input_names": "list of inputs",
    "kinds": "list of inputs' kinds",
    "lags": "list of lags",
    "horizon": "horizon",
    "warmup": "warm-up",
    "origin": "start of trends",
    "names": "list of methods",
}


def merge_streams(
    states: Sequence[StreamState], labels: Sequence[str], source: str | None = None
) -> StreamState:
    """The state of a stream of all parts, one after the other.

    Scores add up; the last value and the past values of y are those of the last part.

    Args:
        states: in the order of the data, at least one; of the same process, inputs and scaling.
        labels: what to call each state in messages, such as its file.
        source: name or folder of the process; None: as the first state names it.

    Raises:
        ValueError: when they do not belong together, or their process cannot merge.

    Example:
        >>> merge_streams([january, february], ["january", "february"])    # doctest: +SKIP
    """
    process = load(source or states[0].source)
    merged = states[0]
    for state, label in zip(states[1:], labels[1:], strict=True):
        _check_same(states[0], state, labels[0], label)
        try:
            merged = _merge(merged, state, process)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{label}: cannot be merged with {labels[0]}: {error}") from error
    return merged


def _check_same(a: StreamState, b: StreamState, label_a: str, label_b: str) -> None:
    for name, meaning in _SAME.items():
        mine, theirs = getattr(a, name), getattr(b, name)
        if mine != theirs:
            raise ValueError(f"{label_b}: its {meaning} is {theirs!r}; in {label_a} it is {mine!r}")


def _merge(a: StreamState, b: StreamState, process: Process) -> StreamState:
    before, after = resume(a, process), resume(b, process)
    before.absorb_waiting()  # nothing of the incomplete block's forecasts is lost: they are scored
    methods = [
        mine.process.merge(mine.state, theirs.state)
        for mine, theirs in zip(before.methods, after.methods, strict=True)
    ]
    return replace(
        b,
        methods=tuple(methods),
        scored=a.scored + b.scored,
        sums=a.sums + b.sums,
        pit=a.pit + b.pit,
        past=torch.where(b.past.isnan(), _shifted(a.past, b.rows), b.past),
        source=a.source,
        rows=a.rows + b.rows,
        missing=a.missing + b.missing,
        unscored=min(a.unscored, b.unscored),
    )


def _shifted(past: torch.Tensor, rows: int) -> torch.Tensor:
    """Values of y as they stand after so many rows more, which are not known."""
    rows = min(rows, len(past))
    return torch.cat([past[rows:], torch.full((rows,), torch.nan, dtype=past.dtype)])
