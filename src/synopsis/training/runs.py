"""Runs from the outside: which experiment a folder holds, and what it has come to."""

from collections.abc import Iterable
from pathlib import Path

from synopsis.models import load_model
from synopsis.processes.base import load
from synopsis.training.checkpoint import Checkpoint
from synopsis.training.experiment import Experiment, ExperimentError
from synopsis.training.layout import CHECKPOINT, EXPERIMENT, MODEL, PROCESS
from synopsis.training.registries import build_trainee
from synopsis.training.seeds import own_randomness
from synopsis.training.trainees import Trainee
from synopsis.weight_files import CONFIG, read_folder


def experiment_of(
    source: str, given: Path | None = None, overrides: Iterable[str] = ()
) -> Experiment:
    """The experiment to measure by: the one given, or else that of its run.

    Raises:
        ExperimentError: if there is none, or it cannot be read.
    """
    path = given or Path(source) / EXPERIMENT
    if given is None and not path.exists():
        raise ExperimentError(f"{source} is not a run; name an experiment to measure it by")
    return Experiment.read(path, overrides)


def load_trained(source: str) -> Trainee:
    """The process or the model of a run, finished or not, of a folder, or of a shipped name.

    Returns:
        In evaluation mode; the moving average of its weights where there is one.

    Raises:
        ValueError: if there is nothing to load or it is damaged.
    """
    run = Path(source)
    for folder in (run / PROCESS, run / MODEL, run):
        if (folder / CONFIG).exists():
            return _load(folder)
    if not (run / CHECKPOINT).exists():
        return load(source)
    checkpoint = Checkpoint.read(run / CHECKPOINT)
    experiment = Experiment.from_toml(checkpoint.experiment, source=str(run / CHECKPOINT))
    with own_randomness(0):
        trainee = build_trainee(experiment)
    averaged = any(name.startswith("average.") for name in checkpoint.tensors)
    prefix = "average." if averaged else "weights."
    trainee.load_state_dict(
        {
            name.removeprefix(prefix): tensor
            for name, tensor in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
    )
    return trainee.eval()


def _load(folder: Path) -> Trainee:
    """A process or a model, whichever the configuration names."""
    names_model = "model" in read_folder(folder)[0]
    return load_model(folder) if names_model else load(folder)
