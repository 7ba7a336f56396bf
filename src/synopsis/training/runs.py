"""Runs from the outside: which experiment a folder holds, and the process it has come to."""

from collections.abc import Iterable
from pathlib import Path

from synopsis.processes.base import Process, load
from synopsis.training.checkpoint import Checkpoint
from synopsis.training.experiment import Experiment, ExperimentError
from synopsis.training.loop import CHECKPOINT, EXPERIMENT, PROCESS
from synopsis.training.registries import build_process
from synopsis.training.seeds import own_randomness


def experiment_of(
    source: str, given: Path | None = None, overrides: Iterable[str] = ()
) -> Experiment:
    """The experiment to measure a process by: the one given, or else that of its run.

    Raises:
        ExperimentError: if there is none, or it cannot be read.
    """
    path = given or Path(source) / EXPERIMENT
    if given is None and not path.exists():
        raise ExperimentError(f"{source} is not a run; name an experiment to measure it by")
    return Experiment.read(path, overrides)


def load_process(source: str) -> Process:
    """The process of a run, finished or not, of a folder, or of a shipped name.

    Returns:
        The process in evaluation mode; the moving average of its weights where there is one.

    Raises:
        ValueError: if there is nothing to load or it is damaged.
    """
    run = Path(source)
    if (run / PROCESS).is_dir():
        return load(run / PROCESS)
    if not (run / CHECKPOINT).exists():
        return load(source)
    checkpoint = Checkpoint.read(run / CHECKPOINT)
    experiment = Experiment.from_toml(checkpoint.experiment, source=str(run / CHECKPOINT))
    with own_randomness(0):
        process = build_process(experiment)
    averaged = any(name.startswith("average.") for name in checkpoint.tensors)
    prefix = "average." if averaged else "weights."
    process.load_state_dict(
        {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
    )
    return process.eval()
