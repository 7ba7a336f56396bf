"""What the one loop trains, processes and models of sequences, and how each is measured on its kind of task."""

from typing import Any

from synopsis.diagnostics import MemoryReport, has_memory, measure_memory
from synopsis.models import Model
from synopsis.processes.base import Process
from synopsis.training.classification import Classification, check_fit, classify
from synopsis.training.evaluation import Evaluation, check_dimensions, evaluate
from synopsis.training.experiment import Evaluating

Trainee = Process | Model


def check_suits(trainee: Trainee, task: Any) -> None:
    """Raise ValueError unless a process or a model can be trained on this task."""
    if isinstance(trainee, Process):
        check_dimensions(trainee, task)
    else:
        check_fit(trainee, task)


def measure(trainee: Trainee, task: Any, settings: Evaluating) -> Evaluation | Classification:
    """The scores of a process on fresh tasks, or of a model on the examples that the settings name.

    Args:
        trainee: left as it was.
        task: of its kind.
        settings: with at least one batch.

    Raises:
        ValueError: for no batches, or a task that does not suit it.
    """
    batches, size = settings.batches, settings.batch_size
    if isinstance(trainee, Process):
        return evaluate(trainee, task, batches, size, settings.seed)
    if batches < 1:
        raise ValueError(f"batches = {batches}; an evaluation needs at least 1")
    return classify(trainee, task, settings.split, size, batches * size)


def look_into(trainee: Trainee, task: Any, settings: Evaluating) -> MemoryReport | None:
    """What is in the memory of a model that has one, over the first examples that the settings name.

    Args:
        trainee: left as it was.
        task: of its kind.
        settings: with the number of batches.

    Returns:
        None for a process, for a model without a memory, and for no batches.

    Raises:
        ValueError: for a task that does not suit the model, or has no examples.
    """
    batches, size = settings.memory_batches, settings.batch_size
    if isinstance(trainee, Process) or not batches or not has_memory(trainee):
        return None
    check_fit(trainee, task)
    return measure_memory(trainee, task.batches(settings.split, size, batches * size))


__all__ = ["Trainee", "check_suits", "look_into", "measure"]
