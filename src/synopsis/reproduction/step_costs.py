"""What a training step costs: CPU time, wall time and peak memory, each in a process of its own.

A step is forward, backward and AdamW's update. Before the measured one there is a small one, so that nothing that is
made at first use (kernels, the optimiser's moments) is counted.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from synopsis.attention.forks import is_lack_of_memory
from synopsis.attention.resident_memory import measured_call
from synopsis.models import MODELS, Model
from synopsis.reproduction.costs import COUNTING, GIB, limit_memory, limited
from synopsis.reproduction.materialised import materialise
from synopsis.tasks.sequences import SequenceBatch
from synopsis.training.experiment import Component
from synopsis.training.pieces import pieces

_WARM_UP = 64  # tokens of the step before the measured one
_MOST_STEPS, _ENOUGH_SECONDS = 3, 60.0  # timed steps: so many, or until their CPU time is beyond it
_TOO_MUCH = 3  # exit code of the measuring process


@dataclass(frozen=True)
class StepCell:
    """One step to measure, with random weights and random tokens, none of them a pad.

    Args:
        model: a ``SequenceClassifier``, as in an experiment.
        batch: sequences.
        materialised: with all scores stored, as the published code does.
        threads: of the processor.
        micro: sequences at a time; 0 for all at once.
    """

    model: Component
    batch: int
    materialised: bool = False
    threads: int = 1
    micro: int = 0


@dataclass(frozen=True)
class StepCost:
    """What was found.

    Args:
        batch: sequences of the step.
        cpu_seconds: over all threads; None where it was stopped.
        seconds: of wall time, which other programs make longer.
        peak: bytes of resident memory at its peak, beyond what was there before.
        stopped: ``"time"``, ``"memory"`` or ``"died"``; None for a whole step.
    """

    batch: int
    cpu_seconds: float | None = None
    seconds: float | None = None
    peak: int | None = None
    stopped: str | None = None


def measure_step(cell: StepCell, patience: float, most_gib: float) -> StepCost:
    """Measure one step in a process of its own.

    Args:
        cell: what.
        patience: CPU-seconds that the step may take.
        most_gib: memory that it may ask for, GiB.

    Example:
        >>> sizes = {"layers": 1, "dim": 8, "heads": 2, "feedforward": 8, "memory": 4, "length": 64}
        >>> cell = StepCell(Component("SequenceClassifier", sizes), batch=2)
        >>> measure_step(cell, patience=60.0, most_gib=4.0).stopped    # doctest: +SKIP
    """
    asked = {**asdict(cell), "patience": patience, "most_gib": most_gib}
    ended = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(cell.threads)},
        check=False,
    )
    if ended.returncode == 0:
        return StepCost(cell.batch, **json.loads(ended.stdout))
    stopped = {-signal.SIGPROF: "time", _TOO_MUCH: "memory"}.get(ended.returncode, "died")
    if stopped == "died":
        raise OSError(f"the process that measures has died: {ended.stderr.strip()[-500:]}")
    return StepCost(cell.batch, stopped=stopped)


def one_step(
    model: Model, optimizer: torch.optim.Optimizer, micro: int = 0
) -> Callable[[SequenceBatch], None]:
    """A step of training on a batch, its gradient computed so many sequences at a time."""

    def step(batch: SequenceBatch) -> None:
        optimizer.zero_grad(set_to_none=True)
        for piece, share in pieces(batch, micro):
            (model.loss(piece) * share).backward()
        optimizer.step()

    return step


def _measure_here(asked: dict[str, Any]) -> dict[str, float]:
    torch.manual_seed(0)
    torch.set_num_threads(asked["threads"])
    config = asked["model"]["arguments"]
    model = MODELS[asked["model"]["name"]](**config).train()
    step = one_step(model, torch.optim.AdamW(model.parameters(), lr=1e-4), asked["micro"])
    if asked["materialised"]:
        materialise(model)
    step(_random(2, min(_WARM_UP, config["length"]), config))
    batch = _random(asked["batch"], config["length"], config)
    limit_memory(round(asked["most_gib"] * GIB))
    peak = limited(lambda: measured_call(lambda: step(batch))[0], COUNTING * asked["patience"])
    cpu_seconds, seconds = _times(lambda: step(batch), asked["patience"])
    return {"cpu_seconds": cpu_seconds, "seconds": seconds, "peak": peak}


def _times(step: Callable[[], None], patience: float) -> tuple[float, float]:
    """CPU-seconds and wall seconds of a step, each the median of what was taken."""
    cpu, wall = list[float](), list[float]()
    while len(cpu) < _MOST_STEPS and sum(cpu) < _ENOUGH_SECONDS:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        limited(step, patience)
        cpu.append(time.process_time() - cpu_begin)
        wall.append(time.perf_counter() - begin)
    return statistics.median(cpu), statistics.median(wall)


def _random(batch: int, length: int, config: dict[str, Any]) -> SequenceBatch:
    tokens = torch.randint(1, config.get("vocabulary", 17), (batch, length))
    return SequenceBatch(torch.randint(config.get("classes", 10), (batch,)), tokens)


def _run() -> int:
    try:
        found = _measure_here(json.loads(sys.stdin.read()))
    except (RuntimeError, MemoryError) as error:
        if is_lack_of_memory(error):
            return _TOO_MUCH
        raise
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(_run())


__all__ = ["StepCell", "StepCost", "measure_step", "one_step"]
