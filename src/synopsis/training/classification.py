"""How often a model of labelled sequences is right, and how surprised it is by the labels."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from synopsis.models import Model
from synopsis.tasks.sequences import PairBatch, SequenceBatch, SequenceTask, Split
from synopsis.training.evaluation import Estimate


@dataclass(frozen=True)
class Classification:
    """What a model scores on a part of a task.

    Args:
        accuracy: share of the examples whose label is the most probable one.
        loss: cross-entropy of the labels, nats per example.
        examples: how many there were.
        split: which part of the task they are.
    """

    accuracy: Estimate
    loss: Estimate
    examples: int
    split: Split

    def to_dict(self) -> dict[str, object]:
        """For JSON: an estimate is ``{"value": …, "standard_error": …}``."""
        return asdict(self)


def classify(
    model: Model,
    task: SequenceTask,
    split: Split = "validation",
    batch_size: int = 32,
    limit: int | None = None,
) -> Classification:
    """Measure a model on the examples of a part of a task, in their order.

    Args:
        model: measured in evaluation mode, on its own device; left as it was.
        task: whose examples they are.
        split: which part.
        batch_size: examples at once.
        limit: at most so many examples; None for all.

    Returns:
        The scores with their standard errors.

    Raises:
        ValueError: for a task that the model does not fit, or no examples.
    """
    check_fit(model, task)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            right, losses = _answers(model, task.batches(split, batch_size, limit))
    finally:
        model.train(training)
    if not len(right):
        raise ValueError(f"{task.name} has no {split} examples")
    return Classification(_mean(right), _mean(losses), len(right), split)


def check_fit(model: Model, task: SequenceTask) -> None:
    """Raise ValueError unless a model has the classes, the ids and the length of a task."""
    if model.classes != task.classes:
        raise ValueError(f"the model has {model.classes} classes but the task has {task.classes}")
    ids = model.config.get("vocabulary")
    if (ids is None) != (task.vocabulary is None):
        kinds = ("real values", "ids")
        raise ValueError(
            f"the model takes {kinds[ids is not None]} but the task has {kinds[task.vocabulary is not None]}"
        )
    for name, ours, theirs in (
        ("ids", ids, task.vocabulary),
        ("items", model.config["length"], task.length),
    ):
        if ours is not None and theirs is not None and ours < theirs:
            raise ValueError(f"the model takes {ours} {name} but the task has {theirs}")


def _answers(
    model: Model, batches: Iterable[SequenceBatch | PairBatch]
) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    right, losses = [torch.empty(0)], [torch.empty(0)]
    for batch in batches:
        batch = batch.to(device)
        logits = model(batch).float()
        right.append((logits.argmax(-1) == batch.labels).float().cpu())
        losses.append(F.cross_entropy(logits, batch.labels, reduction="none").cpu())
    return torch.cat(right).double(), torch.cat(losses).double()


def _mean(values: torch.Tensor) -> Estimate:
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(values.mean().item(), error)


__all__ = ["Classification", "check_fit", "classify"]
