"""Classifiers of sequences side by side: planned by their number of steps, trained, and read back with what they score.

A run that was cut short is read as far as it came, so that a page can be written at any time.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synopsis.diagnostics import MemoryReport, has_memory, measure_memory, reports_by_step
from synopsis.models import Model
from synopsis.reproduction.contenders import (
    Contender,
    Watch,
    held,
    parameters,
    remembered,
    wanted,
)
from synopsis.reproduction.trainings import train_all
from synopsis.states import write_atomic
from synopsis.tasks.sequences import SequenceTask
from synopsis.training.checkpoint import Checkpoint
from synopsis.training.classification import classify
from synopsis.training.experiment import Component, Evaluating, Experiment
from synopsis.training.layout import CHECKPOINT, EXPERIMENT, METRICS, MODEL
from synopsis.training.records import read_records
from synopsis.training.runs import load_trained

BATCH_SIZE = 32
# Departures from ``contenders.RECIPE``, the same for all models.
RECIPE: Mapping[str, Any] = {
    "batch_size": BATCH_SIZE,
    "learning_rate": 1e-3,
    "optimizer": "adamw",
    "schedule": "cosine",
    "warmup": 200,
    "weight_decay": 0.002,
    "clip": 0.0,
    "ema": 0.0,
}
RECIPE_IN_WORDS = (
    "AdamW with a peak learning rate of 1e-3, warm-up over 200 steps, cosine to 0, weight decay 0.002, batches of 32, "
    "no dropout, one thread"
)
MEMORY_EXAMPLES = 256  # validation examples that a memory is looked into with
_WARMUP_SHARE = 4  # of a short run, at most one step in so many
_LATE = 0.05  # share of the steps whose training loss is that of the end


@dataclass(frozen=True)
class Plan:
    """A table's trainings.

    Args:
        contenders: models, by name.
        task: what they are trained on.
        steps: of every training.
        seeds: trainings of each model.
        evaluations: points of a learning curve.
        batches: of 32 validation examples that such a point is measured on.
        folder: of the runs; each is ``<name>-s<seed>`` in it.
    """

    contenders: Mapping[str, Contender]
    task: Component
    steps: int
    seeds: int
    evaluations: int
    batches: int
    folder: Path

    def runs(self) -> list[tuple[Contender, int, Path]]:
        """Every run's contender, seed and folder; all models of a seed before the next seed."""
        return [
            (contender, seed, self.folder / f"{name}-s{seed}")
            for seed in range(self.seeds)
            for name, contender in self.contenders.items()
        ]


@dataclass(frozen=True)
class Point:
    """Of a learning curve: the accuracy on validation examples after so many steps."""

    step: int
    cpu_seconds: float
    accuracy: float


@dataclass(frozen=True)
class SequenceRun:
    """What became of a training.

    Args:
        contender: whose.
        seed: of weights and batches.
        folder: of the run.
        steps: planned.
        step: done; fewer where it was cut short.
        parameters: how many numbers were trained.
        cpu_seconds: spent, evaluations on the way included.
        curve: accuracy on validation examples.
        losses: mean training loss, nats, of the steps up to each.
        test: scores on test examples, as :meth:`Classification.to_dict` writes them.
        memory: what its memory looks like in the end; None where it has none.
        memories: the same, on fewer examples, after so many steps on the way.
    """

    contender: Contender
    seed: int
    folder: Path
    steps: int
    step: int
    parameters: int
    cpu_seconds: float
    curve: Sequence[Point]
    losses: Sequence[tuple[int, float]]
    test: Mapping[str, Any]
    memory: MemoryReport | None = None
    memories: Sequence[tuple[int, MemoryReport]] = ()

    @property
    def name(self) -> str:
        """Of the contender."""
        return self.contender.name

    @property
    def accuracy(self) -> float:
        """On test examples, 0 … 1."""
        return float(self.test["accuracy"]["value"])

    @property
    def loss(self) -> float | None:
        """Mean training loss of the last steps, nats."""
        late = [loss for step, loss in self.losses if step > (1 - _LATE) * self.step]
        return statistics.fmean(late) if late else None

    def steps_to(self, accuracy: float) -> float | None:
        """Steps until the validation accuracy first reached this, between two points linearly; None if it never did.

        Example:
            >>> run = SequenceRun(None, 0, Path(), 9, 9, 1, 1.0, [Point(4, 0, 0.2), Point(8, 0, 0.4)], [], {})
            >>> run.steps_to(0.3), run.steps_to(0.5)
            (6.0, None)
        """
        before = Point(0, 0.0, 0.0)
        for point in self.curve:
            if point.accuracy >= accuracy:
                share = (accuracy - before.accuracy) / (point.accuracy - before.accuracy)
                known = before.step > 0  # nothing was measured before the first step
                return before.step + share * (point.step - before.step) if known else point.step
            before = point
        return None


def train_plan(plan: Plan, jobs: int, watch: Watch) -> dict[str, str]:
    """Train all that is not finished.

    Returns:
        Why trainings failed, by the names of their folders.

    Raises:
        ValueError: when a folder holds another experiment.
        TrainingInterrupted: on SIGINT or SIGTERM; the same call continues.
    """
    folders = {}
    for contender, seed, folder in plan.runs():
        _write(_experiment(plan, contender, seed), folder)
        if not _finished(folder):
            folders[folder.name] = folder
    return train_all(folders, jobs, watch)


def read_plan(
    plan: Plan, task: SequenceTask, test_examples: int, watch: Watch
) -> list[SequenceRun]:
    """Every run that has come far enough to have weights, with its scores on test examples."""
    found = []
    for done, (contender, seed, folder) in enumerate(plan.runs(), 1):
        if (folder / EXPERIMENT).exists() and (folder / CHECKPOINT).exists():
            held(folder, _experiment(plan, contender, seed))
            found.append(read_run(contender, seed, folder, task, test_examples))
        watch(f"evaluating {plan.folder.name}", done, len(plan.runs()))
    return found


def read_run(
    contender: Contender, seed: int, folder: Path, task: SequenceTask, test_examples: int
) -> SequenceRun:
    """One run as far as it came; what it scores is computed once."""
    steps = Experiment.read(folder / EXPERIMENT).training.steps
    step = steps if _finished(folder) else Checkpoint.read(folder / CHECKPOINT).step
    model = model_of(folder)
    records = [r for r in read_records(folder / METRICS) if r["step"] <= step]
    return SequenceRun(
        contender,
        seed,
        folder,
        steps,
        step,
        parameters(model),
        float(records[-1]["cpu_seconds"]) if records else 0.0,
        curve=tuple(
            Point(r["step"], r["cpu_seconds"], r["evaluation"]["accuracy"]["value"])
            for r in records
            if "evaluation" in r
        ),
        losses=tuple((r["step"], r["loss"]) for r in records if r.get("loss") is not None),
        test=_test(model, task, folder, step, test_examples),
        memory=_memory(model, task, folder, step),
        memories=reports_by_step(records),
    )


def _test(
    model: Model, task: SequenceTask, folder: Path, step: int, examples: int
) -> dict[str, Any]:
    def compute() -> dict[str, Any]:
        return classify(model, task, "test", BATCH_SIZE, examples).to_dict()

    asked = {"step": step, "split": "test", "examples": examples}
    return remembered(folder, "test", asked, compute)


def _memory(model: Model, task: SequenceTask, folder: Path, step: int) -> MemoryReport | None:
    def compute() -> dict[str, Any]:
        batches = task.batches("validation", BATCH_SIZE, MEMORY_EXAMPLES)
        return measure_memory(model, batches).to_dict()

    if not has_memory(model):
        return None
    asked = {"step": step, "examples": MEMORY_EXAMPLES}
    return MemoryReport.from_dict(remembered(folder, "memory", asked, compute))


def model_of(folder: Path) -> Model:
    """The model of a run, in evaluation mode, finished or not."""
    model = load_trained(str(folder))
    if not isinstance(model, Model):
        raise ValueError(f"{folder} holds a {type(model).__name__}, not a model of sequences")
    return model


def _experiment(plan: Plan, contender: Contender, seed: int) -> Experiment:
    short = max(1, plan.steps // _WARMUP_SHARE)
    recipe = {**RECIPE, "warmup": min(RECIPE["warmup"], short), **contender.training}
    sketch = wanted(replace(contender, training=recipe), plan.task, seed, plan.steps)
    every = max(1, plan.steps // plan.evaluations)
    return replace(sketch, evaluation=Evaluating(plan.batches, BATCH_SIZE, every))


def _write(experiment: Experiment, folder: Path) -> None:
    """Leave the experiment for the training to find; one that is there must be the same."""
    if (folder / EXPERIMENT).exists():
        held(folder, experiment)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / EXPERIMENT, experiment.to_toml().encode())


def _finished(folder: Path) -> bool:
    return (folder / MODEL / "config.json").exists()


__all__ = [
    "BATCH_SIZE",
    "RECIPE_IN_WORDS",
    "Plan",
    "Point",
    "SequenceRun",
    "model_of",
    "read_plan",
    "read_run",
    "train_plan",
]
