"""Several trainings at the same time, each in a process of its own with one thread.

A training knows nothing but its run's folder, whose ``experiment.toml`` says what to do; it continues from the
checkpoint that is there. On an interruption every one of them saves its checkpoint first, and one whose parent was
killed outright does so too.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from synopsis.reproduction.contenders import Watch
from synopsis.training import Experiment, TrainingDiverged, TrainingInterrupted, train
from synopsis.training.interruption import Interruption
from synopsis.training.layout import CHECKPOINT, EXPERIMENT, METRICS
from synopsis.training.records import read_records

_POLL_SECONDS = 0.2
_PROGRESS_EVERY = 10  # polls: lines of metrics come slowly, and files grow


@dataclass(frozen=True)
class _Training:
    """One that runs: its process, and what it says when it fails."""

    name: str
    folder: Path
    steps: int
    process: subprocess.Popen[bytes]
    words: IO[bytes]

    @property
    def step(self) -> int:
        records = read_records(self.folder / METRICS)
        return int(records[-1]["step"]) if records else 0

    def failure(self) -> str:
        """Its last words."""
        self.words.seek(0)
        lines = self.words.read().decode(errors="replace").splitlines()
        return lines[-1] if lines else f"died with exit code {self.process.returncode}"


def train_all(folders: Mapping[str, Path], jobs: int, watch: Watch) -> dict[str, str]:
    """Train every run to its last step, in the given order.

    Args:
        folders: of runs by name, each with its ``experiment.toml``.
        jobs: trainings at the same time, at least 1.
        watch: called now and then with a run's name, steps done and all steps.

    Returns:
        Why trainings failed, by name; empty when none did.

    Raises:
        ValueError: for no jobs.
        TrainingInterrupted: on SIGINT or SIGTERM, once every checkpoint is written; the same call continues.
    """
    if jobs < 1:
        raise ValueError(f"jobs = {jobs}; there must be at least 1")
    waiting, running, failures = list(folders.items()), list[_Training](), dict[str, str]()
    polls = 0
    with Interruption() as interruption:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    running.append(_start(*waiting.pop(0)))
                time.sleep(_POLL_SECONDS)
                polls += 1
                if interruption.signal is not None:
                    raise _interrupted(running, interruption.signal)
                if polls % _PROGRESS_EVERY == 0:
                    for training in running:
                        watch(training.name, training.step, training.steps)
                running = [t for t in running if not _ended(t, failures, watch)]
        finally:
            _stop(running)
    return failures


def _start(name: str, folder: Path) -> _Training:
    words = TemporaryFile()  # noqa: SIM115  (closed with the training)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=words,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is ours alone: a second signal would tear a step
    )
    steps = Experiment.read(folder / EXPERIMENT).training.steps
    return _Training(name, folder, steps, process, words)


def _ended(training: _Training, failures: dict[str, str], watch: Watch) -> bool:
    code = training.process.poll()
    if code is None:
        return False
    if code:
        failures[training.name] = training.failure()
    training.words.close()
    watch(training.name, training.steps, training.steps)
    return True


def _interrupted(running: list[_Training], number: signal.Signals) -> TrainingInterrupted:
    """Every training saves what it has; the exception names the first."""
    _stop(running)
    first = running[0]
    return TrainingInterrupted(number, first.step, first.folder / CHECKPOINT)


def _stop(running: list[_Training]) -> None:
    for training in running:
        training.process.terminate()
    for training in running:
        training.process.wait()
        training.words.close()


def _train_here(folder: Path, parent: int) -> int:
    """In a process of its own: the exit code."""

    def watch(*_: float) -> None:
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)  # noted; the loop saves and ends after this step

    try:
        train(Experiment.read(folder / EXPERIMENT), folder, resume=True, watch=watch)
    except TrainingInterrupted as interrupted:
        return 128 + interrupted.signal
    except (TrainingDiverged, ValueError, OSError) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_train_here(Path(sys.argv[1]), int(sys.argv[2])))


__all__ = ["train_all"]
