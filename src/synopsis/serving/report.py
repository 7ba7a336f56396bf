"""What a stream came to: metrics as JSON, who won, and pictures."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synopsis.calibration import RunningScores
from synopsis.serving.stream import Stream
from synopsis.serving.trace import Trace
from synopsis.states import write_atomic

_VERSION = 1
RULES = {"nll": "NLL", "crps": "CRPS"}


@dataclass(frozen=True)
class Timing:
    """How long this run took.

    Args:
        rows: read in this run.
        seconds: of wall time.
    """

    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """0 before anything was measured."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


def metrics(stream: Stream, timing: Timing) -> dict[str, Any]:
    """Everything that can be said in numbers; all but ``run`` is the same however often the stream was interrupted.

    Args:
        stream: whose scores are reported.
        timing: of this run.
    """
    settings, progressive = stream.settings, stream.progressive
    scores = progressive.scores()
    return {
        "format": _VERSION,
        "process": {"name": stream.name, "fingerprint": stream.fingerprint},
        "y": settings.y,
        "inputs": list(stream.encoder.names),
        "horizon": settings.horizon,
        "rows": {
            "read": progressive.rows,
            "absorbed": progressive.absorbed,
            "missing": stream.missing,
            "scored": int(scores[stream.name].count),
        },
        "state_bytes": progressive.nbytes,
        "methods": {name: _finite(each.summary()) for name, each in scores.items()},
        "best": best(scores),
        "run": {
            "rows": timing.rows,
            "seconds": round(timing.seconds, 3),
            "rows_per_second": round(timing.rows_per_second, 1),
        },
    }


def best(scores: Mapping[str, RunningScores]) -> dict[str, str | None]:
    """The method of lowest NLL and the one of lowest CRPS; None when nothing was scored."""
    summaries = {name: each.summary() for name, each in scores.items() if int(each.count)}
    if not summaries:
        return dict.fromkeys(RULES)
    return {
        "nll": min(summaries, key=lambda name: summaries[name]["nll"] or 0.0),
        "crps": min(summaries, key=lambda name: summaries[name]["crps"] or 0.0),
    }


def verdict(scores: Mapping[str, RunningScores]) -> str:
    """Who wins, in one sentence per score; the first method is the one on trial.

    Example:
        >>> verdict({"regression-8d": RunningScores.empty()})
        'Nothing was scored: there were no rows after the warm-up.'
    """
    winners = best(scores)
    if winners["nll"] is None:
        return "Nothing was scored: there were no rows after the warm-up."
    name = next(iter(scores))
    return " ".join(_sentence(rule, name, winners[rule], scores) for rule in RULES)


def _sentence(rule: str, name: str, winner: str | None, scores: Mapping[str, RunningScores]) -> str:
    values: dict[str, float] = {
        method: each.summary()[rule]  # type: ignore[literal-required]
        for method, each in scores.items()
    }
    if winner != name and winner is not None:
        return f"{winner} wins on {RULES[rule]}: {values[winner]:#.4g}; {name} has {values[name]:#.4g}."
    others = {method: value for method, value in values.items() if method != name}
    if not others:
        return f"{RULES[rule]} of {name} is {values[name]:#.4g}."
    second = min(others, key=lambda method: others[method])
    return (
        f"{name} wins on {RULES[rule]}: {values[name]:#.4g}; "
        f"the best baseline, {second}, has {others[second]:#.4g}."
    )


def _finite(summary: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no infinity: a density of zero somewhere leaves no NLL."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in summary.items()
    }


def write_report(folder: Path, stream: Stream, trace: Trace, timing: Timing) -> list[str]:
    """Write ``metrics.json`` and, with matplotlib, ``fan.png``, ``reliability.png`` and ``cost.png``.

    Args:
        folder: made if it does not exist.
        stream: whose scores are reported.
        trace: what was kept of the run for the pictures.
        timing: of this run.

    Returns:
        Why something was not written, one sentence each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics(stream, timing), indent=2, allow_nan=False)
    write_atomic(folder / "metrics.json", f"{text}\n".encode())
    if not len(trace.recent.rows):
        return ["There are no pictures, as no row was predicted."]
    try:
        from synopsis.serving import pictures
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        return [
            "There are no pictures, as matplotlib is not installed: pip install 'synopsis-attention[plot]'."
        ]
    _draw(pictures, folder, stream, trace)
    return []


def _draw(pictures: Any, folder: Path, stream: Stream, trace: Trace) -> None:
    from synopsis.serving.exact_gp import measure_exact_gp

    progressive = stream.progressive
    pictures.draw_fan(folder / "fan.png", trace, stream.settings.y, stream.settings.horizon)
    scores = progressive.scores()
    if any(int(each.count) for each in scores.values()):
        pits = {name: each.pit.tolist() for name, each in scores.items()}
        pictures.draw_reliability(folder / "reliability.png", pits)
    exact = measure_exact_gp(trace.first)
    pictures.draw_cost(folder / "cost.png", trace.costs, progressive.nbytes, stream.name, exact)
