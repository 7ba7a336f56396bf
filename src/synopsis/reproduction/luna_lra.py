"""Short trainings on the other tasks of the Long Range Arena: Transformer, Luna and ConvLuna, small, side by side.

What takes days on a GPU is not repeated; the first few thousand steps are, on the benchmark's own generator
(Pathfinder) and, where no original files are given, on data that stand in for the benchmark's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synopsis.reproduction.contenders import Contender, Watch, remembered
from synopsis.reproduction.sequence_runs import Plan, SequenceRun, read_plan, train_plan
from synopsis.tasks.pathfinder import Pathfinder
from synopsis.tasks.sequences import SequenceTask
from synopsis.training.experiment import Component, Experiment
from synopsis.training.registries import build_task

BYTES = 1_000  # of each text that are read; the published length is 4,000
CELLS = 16
STEPS, LAYERS = 2_000, 2
_SIZES: Mapping[str, Any] = {"dim": 64, "heads": 4, "feedforward": 256}
_EVALUATIONS, _BATCHES = 16, 16  # points of a curve, and batches of each


@dataclass(frozen=True)
class Arena:
    """One task, and what reads it.

    Args:
        title: of its section.
        task: as in an experiment.
        model: name of the classifier.
        arguments: of the classifier that follow from the task.
    """

    title: str
    task: Component
    model: str
    arguments: Mapping[str, Any]

    def contenders(self, layers: int) -> dict[str, Contender]:
        """The models, with so many layers."""
        kinds = {
            "Vanilla": ("VanillaLayer", 0),
            "Luna": ("SharedLunaLayer", CELLS),
            "ConvLuna": ("SimplifiedConvLunaLayer", CELLS),
        }
        shared = {**_SIZES, **self.arguments, "layers": layers}
        return {
            name: Contender(
                name,
                Component(self.model, {**shared, "layer": layer, "memory": memory}),
                section="model",
            )
            for name, (layer, memory) in kinds.items()
        }


_PIXELS = {"length": 1024}
_TEXT = {"vocabulary": 257, "classes": 2, "length": BYTES}
ARENAS: dict[str, Arena] = {
    "pathfinder": Arena(
        "Pathfinder-32",
        Component("pathfinder", {"train": 16_000, "validation": 2_000, "test": 2_000}),
        "PixelClassifier",
        {**_PIXELS, "classes": 2},
    ),
    "image": Arena("Image", Component("image"), "PixelClassifier", {**_PIXELS, "classes": 10}),
    "text": Arena("Text", Component("text", {"length": BYTES}), "SequenceClassifier", _TEXT),
    "retrieval": Arena(
        "Retrieval", Component("retrieval", {"length": BYTES}), "PairMatcher", _TEXT
    ),
}
DEFAULT = ("pathfinder", "image")


@dataclass(frozen=True)
class Settings:
    """What the page is made with.

    Args:
        tasks: keys of ``ARENAS``.
        steps: of every training.
        layers: of every model.
        seeds: trainings of each model.
        jobs: trainings at the same time; 0 trains nothing, and shows what is there.
        runs: folder of the runs.
        originals: folders of original files, by task; the others are generated or stood in for.
        test_examples: at most so many.
    """

    tasks: Sequence[str]
    steps: int
    layers: int
    seeds: int
    jobs: int
    runs: Path
    originals: Mapping[str, str] = field(default_factory=dict)
    test_examples: int = 2_000

    def plan(self, name: str) -> Plan:
        """The trainings on one task."""
        arena, folder = self.arena(name), self.runs / f"{name}-{self.layers}x{self.steps}"
        contenders = arena.contenders(self.layers)
        return Plan(contenders, arena.task, self.steps, self.seeds, _EVALUATIONS, _BATCHES, folder)

    def arena(self, name: str) -> Arena:
        """One task, on its original files where they are given."""
        arena = ARENAS[name]
        if name not in self.originals:
            return arena
        arguments = {**arena.task.arguments, "folder": self.originals[name]}
        return replace(arena, task=replace(arena.task, arguments=arguments))


@dataclass(frozen=True)
class Result:
    """What is known of one task.

    Args:
        name: a key of ``ARENAS``.
        stand_in: what its data stand in for; "" for the benchmark's own.
        baselines: accuracy of what needs no model.
        checksum: of the examples.
        runs: as far as they came.
        failures: why others failed.
    """

    name: str
    stand_in: str
    baselines: Mapping[str, float]
    checksum: str
    runs: Sequence[SequenceRun]
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Of the task, with what stands in for what."""
        label = f" (stand-in for {self.stand_in})" if self.stand_in else ""
        return f"{ARENAS[self.name].title}{label}"


def results(settings: Settings, watch: Watch = lambda *_: None) -> list[Result]:
    """Train what is not finished, then read all that is there.

    Raises:
        ValueError: when there is nothing to show, or a folder holds another experiment.
        FileNotFoundError: when a stand-in's files are not there; the message says how to get them.
        TrainingInterrupted: on SIGINT or SIGTERM; the same call continues.
    """
    found = []
    for name in settings.tasks:
        plan = settings.plan(name)
        task: SequenceTask = build_task(_declared(plan))
        known = _known(task, plan, watch)
        failures = train_plan(plan, settings.jobs, watch) if settings.jobs else {}
        runs = read_plan(plan, task, settings.test_examples, watch)
        found.append(Result(name, task.stand_in, **known, runs=runs, failures=failures))
    if not any(result.runs for result in found):
        reasons = [f"{n}: {why}" for result in found for n, why in result.failures.items()]
        raise ValueError("; ".join(reasons) or f"{settings.runs}: nothing is trained there yet")
    return found


def _declared(plan: Plan) -> Experiment:
    process = next(iter(plan.contenders.values())).process
    return Experiment(process, plan.task, section="model", source=plan.task.name)


def _known(task: SequenceTask, plan: Plan, watch: Watch) -> dict[str, Any]:
    """What does not depend on any model; makes the examples where there are none, before several trainings do."""

    def compute() -> dict[str, Any]:
        return {"baselines": task.baselines(), "checksum": task.checksum}

    if isinstance(task, Pathfinder):
        _make(task, watch)
    return remembered(plan.folder, "baselines", {**plan.task.arguments}, compute)


def _make(task: Pathfinder, watch: Watch) -> None:
    if not task.home.exists():
        task.prepare(lambda part, done, of: watch(f"drawing {part} pictures", done, of))
