"""Who competes in a table, and how a contender comes to its weights: shipped, or trained within a budget.

A run is planned once: a few steps are timed, and as many are planned as fit into the budget under a one-cycle schedule.
The plan stands in the run's folder, so that a command that was killed continues with the same number of steps when it
is typed again, and a run that is finished is only loaded.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from synopsis.processes.base import Process, build, load, shipped
from synopsis.reproduction.remembering import remembered
from synopsis.states import write_atomic
from synopsis.training import Experiment, TrainingInterrupted, train
from synopsis.training.experiment import Component, Evaluating, Section, Training
from synopsis.training.layout import EXPERIMENT, METRICS, PROCESS
from synopsis.training.records import read_records
from synopsis.training.registries import build_task, build_trainee
from synopsis.training.seeds import own_randomness
from synopsis.training.trainees import Trainee, measure

Watch = Callable[[str, int, int], None]  # what is done, how much of it, and how much there is

# One recipe for all models, ours and not the papers': Adam under a cosine needs several times the steps.
RECIPE: Mapping[str, Any] = {
    "batch_size": 16,
    "learning_rate": 1e-3,
    "optimizer": "muon",
    "muon_learning_rate": 0.01,
    "schedule": "one-cycle",
    "clip": 1.0,
    "ema": 0.995,
    "threads": 1,
    "checkpoint_minutes": 1.0,
}
RECIPE_IN_WORDS = (
    "Muon 0.01 for the weights between wide layers and AdamW 1e-3 for the rest, one cycle with 10 % warm-up, "
    "gradients clipped at 1.0, moving average of the weights 0.995, batches of 16 tasks, one thread"
)
_WARMUP = 0.1  # share of all steps
_PLAN = "plan.json"
_IDLE_STEPS, _TIMED_STEPS, _FEWEST_TIMED = 2, 16, 3
_TIMING_SHARE = 0.05  # of the budget, at most, to find out what a step costs
_EVALUATIONS, _EVALUATION_SHARE = (
    12,
    0.05,
)  # points of a learning curve, and what they may cost of the budget
_MOST_BATCHES, _FEWEST_BATCHES = 100, 4  # of such a point
_CURVE_SEED = 1  # other tasks than those of the tables


class NotTrained(ValueError):
    """There are no weights, and the budget is 0."""


@dataclass(frozen=True)
class Contender:
    """A row of a table before it has weights.

    Args:
        name: of the row and of the run's folder, such as ``"CMANP-32"``.
        process: what is built, as in an experiment.
        training: departures from ``RECIPE``, as keys of an experiment's section ``[training]``.
        remark: what a reader has to know of this row.
        shipped: name of the weights that come with the package and are taken instead of training, where there are any.
        section: of an experiment, that says what is built: a process or a model of sequences.
        has_weights: or there is nothing to train.
    """

    name: str
    process: Component
    training: Mapping[str, Any] = field(default_factory=dict)
    remark: str = ""
    shipped: str | None = None
    section: Section = "process"
    has_weights: bool = True

    @property
    def is_shipped(self) -> bool:
        """Whether its weights come with the package."""
        return self.shipped is not None and self.shipped in shipped()


@dataclass(frozen=True)
class Ledger:
    """What a contender's weights have cost.

    Args:
        origin: ``"shipped"``, ``"trained here"`` or ``"without weights"``.
        folder: of the run, or for results about shipped weights.
        seed: of the run; None where it is not known.
        parameters: how many numbers were trained.
        steps: optimiser steps; None where it is not known.
        cpu_seconds: of training, the few evaluations on the way included; None where it is not known.
        metrics: the run's lines of metrics, among them its learning curve; a file that need not be there.
    """

    origin: str
    folder: Path
    seed: int | None
    parameters: int
    steps: int | None
    cpu_seconds: float | None
    metrics: Path

    @property
    def cpu_hours(self) -> float | None:
        """CPU-hours of training."""
        return None if self.cpu_seconds is None else self.cpu_seconds / 3600

    @property
    def seconds_per_step(self) -> float | None:
        """CPU-seconds of an optimiser step."""
        known = self.cpu_seconds is not None and self.steps
        return self.cpu_seconds / self.steps if known else None  # type: ignore[operator]


def trained(
    contender: Contender,
    task: Component,
    budget_seconds: float,
    seed: int,
    runs: Path,
    watch: Watch = lambda *_: None,
) -> tuple[Process, Ledger]:
    """A contender with its weights: shipped ones, those of a finished run, or new ones within a budget.

    Args:
        contender: who.
        task: what it is trained on.
        budget_seconds: CPU-seconds of training; 0 takes what is there, whatever it has cost.
        seed: of weights, batches and everything else random.
        runs: folder of the table's runs; this one is ``<name>-s<seed>`` in it.
        watch: called after each step with the contender's name, steps done and all steps.

    Returns:
        The process in evaluation mode, and what it has cost.

    Raises:
        NotTrained: when the budget is 0 and there are no weights.
        ValueError: when the folder holds another experiment, or one of another budget.
        TrainingInterrupted: on SIGINT or SIGTERM; the same call continues.
        TrainingDiverged: see :func:`synopsis.training.train`.

    Example:
        >>> cnp = Contender("CNP", Component("CNP"))
        >>> trained(cnp, Component("gaussian_process"), 60.0, 0, Path("runs/np-gp"))    # doctest: +SKIP
    """
    if contender.shipped is not None and contender.is_shipped:
        return _shipped(contender.shipped, runs)
    if not contender.has_weights:
        return _weightless(contender.process, runs / contender.name)
    folder = runs / f"{contender.name}-s{seed}"
    if not (folder / PROCESS / "config.json").exists():
        if budget_seconds <= 0:
            raise NotTrained(f"{contender.name}: no weights in {folder}; give it a --budget")
        _train(_planned(contender, task, budget_seconds, seed, folder), folder, contender, watch)
    experiment = held(folder, wanted(contender, task, seed))
    _check_budget(folder, budget_seconds)
    process, metrics = load(folder / PROCESS), folder / METRICS
    numbers = (seed, parameters(process), experiment.training.steps, spent(metrics))
    return process, Ledger("trained here", folder, *numbers, metrics)


def _shipped(name: str, runs: Path) -> tuple[Process, Ledger]:
    process, folder = load(name), Path(str(resources.files("synopsis") / "pretrained" / name))
    metrics, seed, steps = folder / METRICS, None, None
    if (folder / EXPERIMENT).exists():
        training = Experiment.read(folder / EXPERIMENT).training
        seed, steps = training.seed, training.steps
    numbers = (seed, parameters(process), steps, spent(metrics))
    return process, Ledger("shipped", runs / name, *numbers, metrics)


def _weightless(process: Component, folder: Path) -> tuple[Process, Ledger]:
    made = build({"process": process.name, "arguments": process.arguments}).eval()
    return made, Ledger("without weights", folder, None, 0, None, None, folder / METRICS)


def wanted(contender: Contender, task: Component, seed: int, steps: int = 1) -> Experiment:
    """The experiment of a contender, as it comes back from a TOML file: ``RECIPE`` and its departures."""
    settings = {**RECIPE, "warmup": max(1, round(_WARMUP * steps)), **contender.training}
    length = {"steps": steps, "log_every": max(1, steps // 100)}
    training = Training(**{**settings, **length, "seed": seed})
    made = Experiment(contender.process, task, training, Evaluating(batches=0), contender.section)
    return Experiment.from_toml(made.to_toml(), source=contender.name)


def _planned(
    contender: Contender, task: Component, budget: float, seed: int, folder: Path
) -> Experiment:
    """The experiment that a folder holds already, or else one whose steps fit into the budget."""
    sketch = wanted(contender, task, seed)
    if (folder / EXPERIMENT).exists():
        _check_budget(folder, budget)
        return held(folder, sketch)
    per_step = _seconds_per_step(sketch, budget)
    evaluating, for_curve = _curve(sketch, budget)
    steps = max(1, int((budget - for_curve) / per_step))
    plan = {"budget_seconds": budget, "timed_seconds_per_step": per_step}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / _PLAN, (json.dumps(plan, indent=1) + "\n").encode())
    evaluating = replace(evaluating, every=max(1, steps // _EVALUATIONS))
    return replace(wanted(contender, task, seed, steps), evaluation=evaluating)


def held(folder: Path, sketch: Experiment) -> Experiment:
    """The experiment of a folder; ValueError unless it is the wanted one but for its length."""
    found = Experiment.read(folder / EXPERIMENT)
    length = {name: getattr(found.training, name) for name in ("steps", "warmup", "log_every")}
    same = replace(sketch, training=replace(sketch.training, **length), evaluation=found.evaluation)
    for part in ("process", "task", "training"):
        was, now = getattr(found, part), getattr(same, part)
        if was != now:
            raise ValueError(f"{folder} holds another experiment: {part} {was}, wanted {now}")
    return found


def _check_budget(folder: Path, budget: float) -> None:
    try:
        before = float(json.loads((folder / _PLAN).read_text())["budget_seconds"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no plan of this run; choose another --runs") from error
    if budget > 0 and budget != before:
        raise ValueError(
            f"{folder}: has a budget of {before / 60:g} minutes, not {budget / 60:g}; "
            "choose another --runs, or --budget 0 to take what is there"
        )


def _train(experiment: Experiment, folder: Path, contender: Contender, watch: Watch) -> None:
    steps = experiment.training.steps
    resume = (folder / EXPERIMENT).exists()
    train(experiment, folder, resume, lambda step, *_: watch(contender.name, step, steps))


class _Enough(Exception):
    """Steps enough were timed."""


def _seconds_per_step(experiment: Experiment, budget: float) -> float:
    """CPU-seconds of an optimiser step, the mean of a few after the first ones."""
    times = [time.process_time()]

    def watch(*_: float) -> None:
        times.append(time.process_time())
        steps = len(times) - 1 - _IDLE_STEPS
        late = times[-1] - times[0] > _TIMING_SHARE * budget and steps >= _FEWEST_TIMED
        if late or steps >= _TIMED_STEPS:
            raise _Enough

    endless = replace(experiment, training=replace(experiment.training, steps=10**9, warmup=10**8))
    with TemporaryDirectory() as folder:
        try:
            train(endless, Path(folder) / "timing", watch=watch)
        except _Enough:
            return (times[-1] - times[_IDLE_STEPS]) / (len(times) - 1 - _IDLE_STEPS)
        except TrainingInterrupted as interrupted:
            raise KeyboardInterrupt from interrupted  # nothing was begun that could be continued
    raise AssertionError("an endless training ended")


def _curve(experiment: Experiment, budget: float) -> tuple[Evaluating, float]:
    """How to evaluate on the way without spending much of the budget, and what that costs, CPU-seconds."""
    size = experiment.training.batch_size
    with own_randomness(0):
        trainee, task = build_trainee(experiment), build_task(experiment)
    begin = time.process_time()
    measure(trainee, task, Evaluating(1, size, seed=_CURVE_SEED))
    per_batch = time.process_time() - begin
    batches = int(_EVALUATION_SHARE * budget / _EVALUATIONS / per_batch)
    if batches < _FEWEST_BATCHES:
        return Evaluating(batches=0), 0.0
    batches = min(batches, _MOST_BATCHES)
    return Evaluating(batches, size, seed=_CURVE_SEED), batches * _EVALUATIONS * per_batch


def spent(metrics: Path) -> float | None:
    """CPU-seconds of a run, where its metrics are there."""
    records = read_records(metrics)
    return float(records[-1]["cpu_seconds"]) if records else None


def parameters(trainee: Trainee) -> int:
    """How many numbers were trained."""
    return sum(parameter.numel() for parameter in trainee.parameters())


__all__ = [
    "RECIPE",
    "RECIPE_IN_WORDS",
    "Contender",
    "Ledger",
    "NotTrained",
    "Watch",
    "held",
    "parameters",
    "remembered",
    "spent",
    "trained",
    "wanted",
]
