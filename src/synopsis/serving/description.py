"""What a state file holds, in words and numbers."""

import math
from pathlib import Path
from typing import Any

from synopsis.processes.standardized import StandardizedState
from synopsis.serving.stream_state import StreamState
from synopsis.states import State, StateFormatError, header


def describe_file(path: Path) -> dict[str, Any]:
    """What a state file of any kind holds, as JSON would.

    Raises:
        StateFormatError: when the file is not there or not whole; the message names it.

    Example:
        >>> describe_file(Path("seattle.state"))["rows"]["absorbed"]    # doctest: +SKIP
        1461
    """
    try:
        data = path.read_bytes()
        state = State.deserialize(data)
        version = header(data)["format"]
    except OSError as error:
        raise StateFormatError(f"{path}: {error.strerror}") from error
    except StateFormatError as error:
        raise StateFormatError(f"{path}: {error}") from error
    found: dict[str, Any] = {
        "file": str(path),
        "kind": state.kind,
        "format": version,
        "count": int(state.count.sum()),
        "bytes": {"file": len(data), "state": state.nbytes},
    }
    return found | (_describe_stream(state) if isinstance(state, StreamState) else {})


def _describe_stream(state: StreamState) -> dict[str, Any]:
    return {
        "process": {"name": state.source, "fingerprint": state.fingerprint},
        "process_bytes": state.methods[0].nbytes,
        "rows": {
            "read": state.rows,
            "absorbed": int(state.count.sum()),
            "missing": state.missing,
            "waiting": len(state.waiting_y),
        },
        "horizon": state.horizon,
        "warmup": state.warmup,
        "y": state.y,
        "scaling": _describe_scaling(state, state.methods[0]),
        "scores": {name: scores.summary() for name, scores in state.scores.items()},
    }


def _describe_scaling(state: StreamState, standardized: Any) -> list[dict[str, Any]] | None:
    """One entry per input, then y; None during the warm-up."""
    if not isinstance(standardized, StandardizedState) or not bool(standardized.fixed.all()):
        return None
    names, scaling = (*state.input_names, state.y), standardized.scaling
    inputs = slice(len(state.input_names))
    locations = [*scaling.location_x[0, inputs].tolist(), *scaling.location_y[0].tolist()]
    scales = [*scaling.scale_x[0, inputs].tolist(), *scaling.scale_y[0].tolist()]
    return [
        {"name": name, "location": location, "scale": None if math.isnan(scale) else scale}
        for name, location, scale in zip(names, locations, scales, strict=True)
    ]
