"""From the names in an experiment to the classes they mean: explicit, nothing is imported by name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_type_hints

import synopsis.processes  # noqa: F401  (importing the room fills PROCESSES)
from synopsis.models import MODELS
from synopsis.processes.base import PROCESSES
from synopsis.tasks import Task
from synopsis.tasks.byte_pairs import BytePairs
from synopsis.tasks.byte_texts import ByteTexts
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.tasks.gaussian_process_nd import GaussianProcessNDTask
from synopsis.tasks.images import ImageCompletion
from synopsis.tasks.listops import ListOps
from synopsis.tasks.lotka_volterra import HareLynxTask, LotkaVolterraTask
from synopsis.tasks.mixture import FixedGaussianProcessTask, ProcessMixture
from synopsis.tasks.pathfinder import Pathfinder
from synopsis.tasks.pixel_sequences import PixelSequences
from synopsis.tasks.regression_prior import RegressionPrior
from synopsis.tasks.sawtooth import SawtoothTask
from synopsis.tasks.sequences import SequenceTask
from synopsis.tasks.wheel_bandit import WheelBanditTask
from synopsis.training.experiment import (
    Component,
    Experiment,
    ExperimentError,
    as_declared,
    has_type,
    type_name,
)
from synopsis.training.trainees import Trainee

_T = TypeVar("_T")

TASKS: dict[str, Callable[..., Task]] = {
    "fixed_gaussian_process": FixedGaussianProcessTask,
    "gaussian_process": GaussianProcessTask,
    "gaussian_process_nd": GaussianProcessNDTask,
    "hare_lynx": HareLynxTask,
    "image_completion": ImageCompletion,
    "lotka_volterra": LotkaVolterraTask,
    "process_mixture": ProcessMixture,
    "regression_prior": RegressionPrior,
    "sawtooth": SawtoothTask,
    "wheel_bandit": WheelBanditTask,
}

SEQUENCE_TASKS: dict[str, Callable[..., SequenceTask]] = {
    "image": PixelSequences,
    "listops": ListOps,
    "pathfinder": Pathfinder,
    "retrieval": BytePairs,
    "text": ByteTexts,
}


def build_trainee(experiment: Experiment) -> Trainee:
    """A new process or model with random weights from torch's global generator.

    Raises:
        ExperimentError: if the name is not registered or an argument is wrong.
    """
    registry: Mapping[str, Callable[..., Trainee]] = (
        MODELS if experiment.section == "model" else PROCESSES
    )
    return _build(registry, experiment.process, f"{experiment.source}: {experiment.section}")


def build_task(experiment: Experiment) -> Any:
    """The task of an experiment, of processes or of models as its section says; raises as :func:`build_trainee`."""
    registry: Mapping[str, Callable[..., Any]] = (
        SEQUENCE_TASKS if experiment.section == "model" else TASKS
    )
    return _build(registry, experiment.task, f"{experiment.source}: task")


def _build(registry: Mapping[str, Callable[..., _T]], part: Component, where: str) -> _T:
    if part.name not in registry:
        known = ", ".join(sorted(registry))
        raise ExperimentError(f"{where}.name = {part.name!r}: unknown; known are {known}")
    make = registry[part.name]
    hints = _hints(make)
    for key, value in part.arguments.items():
        if key not in hints:
            known = ", ".join(hints) or "none"
            raise ExperimentError(f"{where}.{key} = {value!r}: unknown key; known are {known}")
        if not has_type(value, hints[key]):
            raise ExperimentError(f"{where}.{key} = {value!r}: must be {type_name(hints[key])}")
    arguments = {key: as_declared(value, hints[key]) for key, value in part.arguments.items()}
    try:
        return make(**arguments)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{where}: {error}") from error


def _hints(make: Callable[..., object]) -> dict[str, Any]:
    """Parameter names of a constructor with their types; Any where there is no annotation."""
    constructor = make.__init__ if inspect.isclass(make) else make
    known = get_type_hints(constructor)
    return {name: known.get(name, Any) for name in inspect.signature(make).parameters}
