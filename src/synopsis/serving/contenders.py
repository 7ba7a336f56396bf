"""Who takes part in a progressive evaluation: the process and the baselines that it must beat."""

from collections.abc import Sequence

import torch

from synopsis.processes import BayesianLinear, Process
from synopsis.processes.baselines import LastValue, RunningMean
from synopsis.processes.scaling import Scale
from synopsis.processes.standardized import Standardized
from synopsis.serving.columns import InputKind
from synopsis.serving.progressive import Method, Progressive, Row
from synopsis.serving.stream_state import StreamState

BASELINES = ("last value", "running mean", "linear regression")


def contenders(process: Process, kinds: Sequence[InputKind], warmup: int) -> tuple[Process, ...]:
    """The process and, in the order of ``BASELINES``, the baselines; all speak in the units of y.

    Args:
        process: that takes standardised inputs.
        kinds: how each input is scaled.
        warmup: rows that settle the scaling.

    Raises:
        ValueError: when the process takes fewer inputs, or the warm-up is too short.
    """
    width = len(kinds)
    return (
        Standardized(process, warmup, kinds).eval(),
        LastValue(dim_x=width).eval(),
        RunningMean(dim_x=width).eval(),
        Standardized(BayesianLinear(dim_x=width), warmup, kinds).eval(),
    )


def begin(name: str, processes: Sequence[Process], scale: Scale | None) -> tuple[Method, ...]:
    """All of them before the first row.

    Args:
        name: of the process, as it is shown.
        processes: as :func:`contenders` gives them.
        scale: a known scaling, instead of a warm-up.
    """
    return tuple(
        Method(label, each, each.init((1,), scale) if isinstance(each, Standardized) else None)
        for label, each in zip((name, *BASELINES), processes, strict=True)
    )


def resume(state: StreamState, process: Process) -> Progressive:
    """A progressive evaluation where it was left.

    Args:
        state: that was saved.
        process: that the state was made by.

    Raises:
        ValueError: when it was made by another one.
    """
    if process.fingerprint != state.fingerprint:
        raise ValueError(
            f"the state was made by process {state.source!r} with fingerprint {state.fingerprint}; "
            f"this one has {process.fingerprint}"
        )
    processes = contenders(process, state.kinds, state.warmup)
    parts = zip(state.names, processes, state.methods, state.scores.values(), strict=True)
    methods = [Method(*part) for part in parts]
    return Progressive(
        methods, state.horizon, state.unscored, state.rows, state.begun, _waiting(state)
    )


def understands_gaps(process: Process) -> bool:
    """Whether an input may be NaN, which means that it is not given."""
    nothing = torch.full((1, 1, process.dim_x), torch.nan, dtype=torch.float64)
    try:
        process.predict(process.init((1,)), nothing)
    except ValueError:
        return False
    return True


def _waiting(state: StreamState) -> list[Row]:
    rows = zip(
        state.waiting_at.tolist(), state.waiting_x.tolist(), state.waiting_y.tolist(), strict=True
    )
    return [Row(number, line, tuple(x), y) for (number, line), x, y in rows]
