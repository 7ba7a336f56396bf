"""Trainings in processes of their own: they end like any other, and stop where they can go on."""

import os
import signal
import threading
import time

import pytest

from synopsis.models import load_model
from synopsis.reproduction.sequence_runs import Plan, _experiment, train_plan
from synopsis.reproduction.trainings import _train_here, train_all
from synopsis.tasks.listops import ListOps
from synopsis.training import Experiment, TrainingInterrupted, train
from synopsis.training.checkpoint import Checkpoint
from tests.reproduction.sequences import TINY, listops

PATIENCE = 60.0  # seconds until a process must have begun


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("listops")
    ListOps(**listops(folder).arguments).prepare()
    return folder


def plan(data, tmp_path, steps: int, names=("Luna",), seeds: int = 1) -> Plan:
    contenders = {name: TINY[name] for name in names}
    return Plan(contenders, listops(data), steps, seeds, 2, 1, tmp_path / "runs")


def test_they_run_at_the_same_time_and_one_that_fails_says_why(data, tmp_path):
    wanted = plan(data, tmp_path, 6, ("Luna", "Vanilla"))
    broken = tmp_path / "runs" / "Vanilla-s0"
    broken.mkdir(parents=True)
    held = _experiment(wanted, TINY["Vanilla"], 0)
    text = held.to_toml().replace("VanillaLayer", "LunaLayer")  # which needs a memory
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(ValueError, match="holds another experiment"):
        (broken / "experiment.toml").write_text(text)
        train_plan(wanted, 2, lambda *a: seen.append(a))
    folders = {name: tmp_path / "runs" / name for name in ("Luna-s0", "Vanilla-s0")}
    failures = train_all(folders, 2, lambda *a: seen.append(a))
    assert failures.keys() == {"Vanilla-s0"}
    assert "LunaLayer needs a memory" in failures["Vanilla-s0"]
    assert ("Luna-s0", 6, 6) in seen
    train(Experiment.read(folders["Luna-s0"] / "experiment.toml"), tmp_path / "here")
    theirs, ours = (
        load_model(f / "model").state_dict() for f in (folders["Luna-s0"], tmp_path / "here")
    )
    assert all(ours[name].equal(theirs[name]) for name in ours)
    finished = plan(data, tmp_path, 6)
    assert train_plan(finished, 2, lambda *_: pytest.fail("trained again")) == {}


def test_an_interruption_leaves_a_checkpoint(data, tmp_path):
    folder = tmp_path / "runs" / "Luna-s0"
    wanted = plan(data, tmp_path, 1_000_000)

    def interrupt() -> None:
        end = time.monotonic() + PATIENCE
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.5)  # a few steps
        os.kill(os.getpid(), signal.SIGINT)

    killer = threading.Thread(target=interrupt)
    killer.start()
    with pytest.raises(TrainingInterrupted, match="continues from there"):
        train_plan(wanted, 1, lambda *_: None)
    killer.join()
    assert Checkpoint.read(folder / "checkpoint.safetensors").step > 0
    assert not (folder / "model").exists()


def test_one_whose_parent_was_killed_saves_and_ends(data, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    held = _experiment(plan(data, tmp_path, 1_000_000), TINY["Luna"], 0)
    (folder / "experiment.toml").write_text(held.to_toml())
    assert _train_here(folder, parent=-1) == 128 + signal.SIGTERM
    assert Checkpoint.read(folder / "checkpoint.safetensors").step == 1


def test_there_must_be_a_job(tmp_path):
    with pytest.raises(ValueError, match="jobs = 0; there must be at least 1"):
        train_all({}, 0, lambda *_: None)
