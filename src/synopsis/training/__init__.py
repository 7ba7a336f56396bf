"""One training loop for all models; an experiment is a dataclass read from a TOML file."""

from synopsis.training.checkpoint import CheckpointError
from synopsis.training.evaluation import Estimate, Evaluation, evaluate
from synopsis.training.experiment import Experiment, ExperimentError
from synopsis.training.learner import TrainingDiverged
from synopsis.training.loop import TrainingInterrupted, train
from synopsis.training.registries import TASKS

__all__ = [
    "TASKS",
    "CheckpointError",
    "Estimate",
    "Evaluation",
    "Experiment",
    "ExperimentError",
    "TrainingDiverged",
    "TrainingInterrupted",
    "evaluate",
    "train",
]
