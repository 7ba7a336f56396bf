"""Weights within a budget: planned once, continued after a kill, loaded when finished."""

import os
import signal
import time
from pathlib import Path

import pytest

from synopsis.processes import CNP
from synopsis.reproduction import contenders
from synopsis.reproduction.contenders import Contender, NotTrained, remembered, trained
from synopsis.training import Experiment, TrainingInterrupted
from synopsis.training.experiment import Component
from synopsis.training.records import read_records

TINY = Contender("CNP", Component("CNP", {"dim": 16}))
TASK = Component("gaussian_process", {"targets": 8, "oracle": False})
SECONDS = 0.6


def steps_of(folder: Path) -> int:
    return Experiment.read(folder / "experiment.toml").training.steps


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("trained again")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and what it has cost."""
    runs = tmp_path_factory.mktemp("runs")
    seen: list[tuple[str, int, int]] = []
    begin = time.process_time()
    process, ledger = trained(TINY, TASK, SECONDS, 3, runs, lambda *a: seen.append(a))
    return runs, process, ledger, seen, time.process_time() - begin


def test_a_run_keeps_to_its_budget(run):
    _, _, ledger, _, spent = run
    assert SECONDS / 4 < ledger.cpu_seconds < 3 * SECONDS
    assert spent < 6 * SECONDS  # building, timing and writing among it
    assert ledger.cpu_hours == ledger.cpu_seconds / 3600
    assert ledger.seconds_per_step == ledger.cpu_seconds / ledger.steps


def test_the_ledger_and_the_folder_say_what_was_done(run):
    runs, process, ledger, seen, _ = run
    assert isinstance(process, CNP)
    assert not process.training
    assert (ledger.origin, ledger.seed, ledger.folder) == ("trained here", 3, runs / "CNP-s3")
    assert ledger.parameters == sum(p.numel() for p in process.parameters())
    experiment = Experiment.read(ledger.folder / "experiment.toml")
    assert experiment.process == TINY.process
    assert experiment.task == TASK
    training = experiment.training
    assert training.optimizer == "muon"
    assert training.schedule == "one-cycle"
    assert training.warmup == max(1, round(0.1 * training.steps))
    assert (training.steps, training.seed, training.threads) == (ledger.steps, 3, 1)
    assert seen == [("CNP", step, ledger.steps) for step in range(1, ledger.steps + 1)]
    assert read_records(ledger.metrics)[-1]["step"] == ledger.steps


def test_a_finished_run_is_only_loaded(run, monkeypatch):
    runs, process, ledger, _, _ = run
    monkeypatch.setattr(contenders, "train", forbidden)
    for budget in (SECONDS, 0.0):
        again, same = trained(TINY, TASK, budget, 3, runs)
        assert again.fingerprint == process.fingerprint
        assert same == ledger


def test_another_experiment_or_budget_in_the_folder_is_refused(run):
    runs = run[0]
    wider = Contender("CNP", Component("CNP", {"dim": 32}))
    with pytest.raises(ValueError, match=r"holds another experiment: process .*16.*32"):
        trained(wider, TASK, SECONDS, 3, runs)
    with pytest.raises(ValueError, match="holds another experiment: task"):
        trained(TINY, Component("gaussian_process"), SECONDS, 3, runs)
    hotter = Contender("CNP", TINY.process, {"learning_rate": 0.5})
    with pytest.raises(ValueError, match="holds another experiment: training"):
        trained(hotter, TASK, SECONDS, 3, runs)
    with pytest.raises(ValueError, match=r"has a budget of 0\.01 minutes, not 0\.02; .*--budget 0"):
        trained(TINY, TASK, 2 * SECONDS, 3, runs)


def test_without_a_budget_and_without_weights_there_is_nothing(tmp_path):
    with pytest.raises(NotTrained, match=r"CNP: no weights in .*CNP-s0; give it a --budget"):
        trained(TINY, TASK, 0.0, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_continues_with_the_same_steps_and_comes_to_the_same_weights(tmp_path):
    def interrupt(_: str, step: int, steps: int) -> None:
        if step == steps // 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted):
        trained(TINY, TASK, SECONDS, 0, tmp_path / "a", interrupt)
    planned = steps_of(tmp_path / "a" / "CNP-s0")
    with pytest.raises(NotTrained):  # half a run is not a result
        trained(TINY, TASK, 0.0, 0, tmp_path / "a")
    seen: list[int] = []
    process, ledger = trained(TINY, TASK, SECONDS, 0, tmp_path / "a", lambda *a: seen.append(a[1]))
    assert ledger.steps == planned
    assert seen == list(range(planned // 2 + 1, planned + 1))

    whole = tmp_path / "b" / "CNP-s0"  # the same plan, never interrupted
    whole.mkdir(parents=True)
    for name in ("experiment.toml", "plan.json"):
        (whole / name).write_bytes((tmp_path / "a" / "CNP-s0" / name).read_bytes())
    uninterrupted, _ = trained(TINY, TASK, SECONDS, 0, tmp_path / "b")
    assert uninterrupted.fingerprint == process.fingerprint


def test_a_run_that_was_killed_outright_begins_again_with_the_same_plan(tmp_path):
    class Killed(Exception):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with pytest.raises(Killed):
        trained(TINY, TASK, SECONDS, 0, tmp_path, kill)
    planned = steps_of(tmp_path / "CNP-s0")
    assert trained(TINY, TASK, SECONDS, 0, tmp_path)[1].steps == planned


def test_long_runs_evaluate_on_the_way(monkeypatch, tmp_path):
    """For the learning curve: a dozen times, and for a twentieth of the budget."""
    monkeypatch.setattr(contenders, "_seconds_per_step", lambda *_: 0.01)
    budget = 600.0
    experiment = contenders._planned(TINY, TASK, budget, 0, tmp_path)
    evaluation, steps = experiment.evaluation, experiment.training.steps
    assert 4 <= evaluation.batches <= 100
    assert 12 <= steps / evaluation.every < 14
    assert 0.94 * budget <= 0.01 * steps <= budget
    assert evaluation.seed != 0  # not the tasks of the table


def test_shipped_weights_are_taken_without_training(tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "train", forbidden)
    name = "regression-8d"
    contender = Contender("Anchored", Component("AnchoredCMANP"), shipped=name)
    assert contender.is_shipped
    process, ledger = trained(contender, TASK, 1.0, 0, tmp_path)
    assert type(process).__name__ == "AnchoredCMANP"
    assert (ledger.origin, ledger.steps, ledger.seed) == ("shipped", 30000, 0)
    assert ledger.folder == tmp_path / name


def test_weights_that_are_not_shipped_yet_are_trained(run):
    runs, process, _, _, _ = run
    hoped = Contender("CNP", TINY.process, shipped="no-such-weights")
    assert not hoped.is_shipped
    assert trained(hoped, TASK, SECONDS, 3, runs)[0].fingerprint == process.fingerprint


def test_results_are_computed_once_for_each_setting(tmp_path):
    calls = []

    def compute() -> dict[str, float]:
        calls.append(1)
        return {"value": 0.1 + len(calls)}

    folder = tmp_path / "new" / "run"
    first = remembered(folder, "score", {"seed": 0, "kernel": "rbf"}, compute)
    assert (
        remembered(folder, "score", {"kernel": "rbf", "seed": 0}, compute)
        == first
        == {"value": 1.1}
    )
    assert remembered(folder, "score", {"kernel": "rbf", "seed": 1}, compute) == {"value": 2.1}
    assert len(list(folder.glob("score-*.json"))) == 2


def test_a_torn_result_is_computed_again(tmp_path):
    remembered(tmp_path, "score", {}, lambda: {"value": 1})
    (path,) = tmp_path.glob("score-*.json")
    path.write_text(path.read_text()[:-5])
    assert remembered(tmp_path, "score", {}, lambda: {"value": 2}) == {"value": 2}
    assert remembered(tmp_path, "score", {}, lambda: {"value": 3}) == {"value": 2}
