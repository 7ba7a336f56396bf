"""ListOps through a shared memory: Luna, ConvLuna and the vanilla Transformer, and what each part of ConvLuna does.

Short expressions (32 to 128 tokens) and small models, so that a training takes minutes; what is compared is how fast
and how far each gets beyond the answers that need no composition.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from synopsis.reproduction.contenders import Contender, Watch, remembered
from synopsis.reproduction.sequence_runs import Plan, SequenceRun, read_plan, train_plan
from synopsis.tasks.listops import ListOps
from synopsis.training.experiment import Component

Part = Literal["main", "ablation", "both", "none"]
PARTS: tuple[Part, ...] = get_args(Part)
SHORTEST, LONGEST = 32, 128  # tokens of an expression
TASK = Component("listops", {"min_length": SHORTEST, "max_length": LONGEST, "train": 100_000})
SIZES: Mapping[str, Any] = {
    "vocabulary": 17,
    "classes": 10,
    "length": LONGEST,
    "layers": 4,
    "dim": 64,
    "heads": 4,
    "feedforward": 256,
}
CELLS = 16
MAIN_STEPS, MAIN_SEEDS = 12_000, 2  # what a whole table has
ABLATION_STEPS = 1_000

FILTERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "none": ("no filter", {"kernel": 1}),
    "conv4": ("convolution, 4 taps", {"kernel": 4}),
    "conv16": ("convolution, 16 taps, stride 8", {"kernel": 16, "stride": 8}),
    "max4": ("max-pooling of 4", {"kind": "max", "kernel": 4}),
}
TEMPERATURES = ("unit", "sqrt", "learn")
MEMORIES = (1, 16, 64)
_EVALUATIONS = {"main": (48, 32), "ablation": (20, 16)}  # points of a curve, and batches of each


def _contender(name: str, layer: str, memory: int, **options: Any) -> Contender:
    arguments = {**SIZES, "layer": layer, "memory": memory}
    arguments |= {"options": options} if options else {}
    return Contender(name, Component("SequenceClassifier", arguments), section="model")


def _ablated() -> dict[str, Contender]:
    found = {}
    for cells in MEMORIES:
        for temperature in TEMPERATURES:
            for key, (_, filtering) in FILTERS.items():
                name = f"{key}-{temperature}-m{cells}"
                options = {"filtering": filtering, "temperatures": {"pack": temperature}}
                found[name] = _contender(name, "SimplifiedConvLunaLayer", cells, **options)
    return found


MAIN: dict[str, Contender] = {
    "Luna": _contender("Luna", "SharedLunaLayer", CELLS),
    "ConvLuna": _contender("ConvLuna", "SimplifiedConvLunaLayer", CELLS),
    "Vanilla": _contender("Vanilla", "VanillaLayer", 0),
}
ABLATION: dict[str, Contender] = _ablated()


@dataclass(frozen=True)
class Settings:
    """What the table is made with.

    Args:
        part: which trainings are made; what is there already stands in the page in any case.
        main_steps: of the trainings at full comparison.
        ablation_steps: of those that differ by one part each.
        seeds: of the former; the latter have one.
        jobs: trainings at the same time.
        runs: folder of the runs.
        task: what is learned.
        test_examples: at most so many.
    """

    part: Part
    main_steps: int
    ablation_steps: int
    seeds: int
    jobs: int
    runs: Path
    task: Component = field(default_factory=lambda: TASK)
    test_examples: int = 2_000

    @property
    def main(self) -> Plan:
        """Luna, ConvLuna, vanilla."""
        folder = self.runs / f"main-{self.main_steps}"
        return Plan(MAIN, self.task, self.main_steps, self.seeds, *_EVALUATIONS["main"], folder)

    @property
    def ablation(self) -> Plan:
        """All combinations of filter, temperature and size of the memory."""
        steps, folder = self.ablation_steps, self.runs / f"ablation-{self.ablation_steps}"
        return Plan(ABLATION, self.task, steps, 1, *_EVALUATIONS["ablation"], folder)


@dataclass(frozen=True)
class Results:
    """Everything the page is made of.

    Args:
        baselines: accuracy of what needs no model, by name.
        checksum: of the examples.
        main: runs of the comparison, as far as they came.
        ablation: runs of the ablation, as far as they came.
        failures: why others failed, by name.
    """

    baselines: Mapping[str, float]
    checksum: str
    main: Sequence[SequenceRun]
    ablation: Sequence[SequenceRun]
    failures: Mapping[str, str] = field(default_factory=dict)


def results(settings: Settings, watch: Watch = lambda *_: None) -> Results:
    """Train what is asked for and not finished, then read all that is there.

    Raises:
        ValueError: when a folder holds another experiment, or there is nothing to show.
        TrainingInterrupted: on SIGINT or SIGTERM; the same call continues.
    """
    task = ListOps(**settings.task.arguments)  # type: ignore[arg-type]
    known = _known(task, settings.runs, watch)
    failures: dict[str, str] = {}
    for name, plan in (("main", settings.main), ("ablation", settings.ablation)):
        if settings.part in (name, "both"):
            failures |= train_plan(plan, settings.jobs, watch)
    examples = settings.test_examples
    main = read_plan(settings.main, task, examples, watch)
    ablation = read_plan(settings.ablation, task, examples, watch)
    if not main and not ablation:
        reasons = "; ".join(f"{name}: {why}" for name, why in failures.items())
        raise ValueError(reasons or f"{settings.runs}: nothing is trained there yet; choose a part")
    return Results(known["baselines"], known["checksum"], main, ablation, failures)


def _known(task: ListOps, runs: Path, watch: Watch) -> dict[str, Any]:
    """What does not depend on any model; makes the examples where there are none, before several trainings do."""

    def compute() -> dict[str, Any]:
        return {"baselines": task.baselines(), "checksum": task.checksum}

    if not all((task.home / f"{part}.safetensors").exists() for part in ("train", "test")):
        task.prepare(_shown(watch))
    return remembered(runs, "baselines", vars(task), compute)


def _shown(watch: Watch) -> Callable[[str, int, int], None]:
    return lambda part, done, of: watch(f"generating {part} examples", done, of)
