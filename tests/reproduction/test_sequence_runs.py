"""Runs that are read back: learning curves, steps to an accuracy, and runs that were cut short."""

import os
import signal
from pathlib import Path

import pytest
import torch

from synopsis.diagnostics import measure_memory
from synopsis.models import Model
from synopsis.reproduction import sequence_runs
from synopsis.reproduction.contenders import Contender
from synopsis.reproduction.sequence_runs import Plan, Point, SequenceRun, read_plan, train_plan
from synopsis.tasks.listops import ListOps
from synopsis.training import Experiment, TrainingInterrupted, train
from synopsis.training.experiment import Component
from tests.reproduction.sequences import TINY, listops, train_here

STEPS = 12


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    made = ListOps(**listops(tmp_path_factory.mktemp("listops")).arguments)
    made.prepare()
    return made


@pytest.fixture
def plan(task, tmp_path, monkeypatch):
    monkeypatch.setattr(sequence_runs, "train_all", train_here)
    return Plan(TINY, listops(task.home), STEPS, 1, 4, 1, tmp_path / "runs")


def a_run(curve, losses=(), step: int = 100) -> SequenceRun:
    points = [Point(at, 0.0, accuracy) for at, accuracy in curve]
    contender = Contender("Luna", Component("SequenceClassifier"))
    return SequenceRun(contender, 0, Path(), 100, step, 1, 1.0, points, losses, {})


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([(10, 0.1), (20, 0.2), (30, 0.4), (40, 0.2)], 25.0),  # halfway between two
        ([(10, 0.1), (20, 0.3)], 20.0),
        ([(10, 0.5), (20, 0.1)], 10),  # before the first evaluation nothing is known
        ([(10, 0.1), (20, 0.29)], None),
        ([], None),
    ],
)
def test_steps_to_an_accuracy(curve, expected):
    assert a_run(curve).steps_to(0.3) == (None if expected is None else pytest.approx(expected))


def test_the_loss_is_that_of_the_last_steps():
    losses = [(90, 5.0), (95, 4.0), (96, 2.0), (100, 1.0)]
    assert a_run([], losses).loss == 1.5
    assert a_run([], losses[:2], step=95).loss == 4.0
    assert a_run([], ()).loss is None


def test_a_plan_is_trained_and_read_back(plan, task):
    assert train_plan(plan, 1, lambda *_: None) == {}
    runs = read_plan(plan, task, 40, lambda *_: None)
    assert [run.name for run in runs] == list(TINY)
    for run in runs:
        assert (run.step, run.steps, run.seed) == (STEPS, STEPS, 0)
        assert [point.step for point in run.curve] == [3, 6, 9, 12]
        assert run.losses[-1][0] == STEPS
        model = sequence_runs.model_of(run.folder)
        assert run.parameters == sum(p.numel() for p in model.parameters())
        assert run.accuracy == pytest.approx(independent_accuracy(model, task))
        assert run.cpu_seconds >= run.curve[0].cpu_seconds > 0
    luna, vanilla = runs[0], runs[2]
    expected = measure_memory(
        sequence_runs.model_of(luna.folder), task.batches("validation", 32, 256)
    )
    assert luna.memory == expected
    assert [step for step, _ in luna.memories] == [3, 6, 9, 12]
    assert vanilla.memory is None
    experiment = Experiment.read(luna.folder / "experiment.toml")
    training = experiment.training
    assert (training.optimizer, training.schedule, training.warmup) == ("adamw", "cosine", 3)
    assert (training.batch_size, training.weight_decay, training.clip) == (32, 0.002, 0.0)


def independent_accuracy(model: Model, task: ListOps) -> float:
    (batch,) = task.batches("test", 40)
    with torch.no_grad():
        return (model(batch).argmax(-1) == batch.labels).double().mean().item()


def test_scores_are_computed_once(plan, task, monkeypatch):
    train_plan(plan, 1, lambda *_: None)
    first = read_plan(plan, task, 40, lambda *_: None)
    for name in ("classify", "measure_memory"):
        monkeypatch.setattr(sequence_runs, name, lambda *_: pytest.fail("measured again"))
    assert read_plan(plan, task, 40, lambda *_: None) == first


def test_a_run_that_was_cut_short_is_read_as_far_as_it_came(plan, task, monkeypatch):
    def cut(folders, jobs, watch):
        folder = next(iter(folders.values()))

        def interrupt(step: int, *_: float) -> None:
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)

        train(Experiment.read(folder / "experiment.toml"), folder, True, interrupt)

    monkeypatch.setattr(sequence_runs, "train_all", cut)
    with pytest.raises(TrainingInterrupted):
        train_plan(plan, 1, lambda *_: None)
    (run,) = read_plan(plan, task, 40, lambda *_: None)
    assert (run.name, run.step, run.steps) == ("Luna", 7, STEPS)
    assert [point.step for point in run.curve] == [3, 6]


def test_another_experiment_in_the_folder_is_refused(plan):
    train_plan(plan, 1, lambda *_: None)
    wider = {**TINY["Luna"].process.arguments, "dim": 16}
    other = {"Luna": Contender("Luna", Component("SequenceClassifier", wider), section="model")}
    changed = Plan(other, plan.task, STEPS, 1, 4, 1, plan.folder)
    with pytest.raises(ValueError, match="holds another experiment: process"):
        train_plan(changed, 1, lambda *_: None)
