import os
import signal
from dataclasses import replace

import pytest
import torch

from synopsis.processes import load
from synopsis.processes.base import PROCESSES
from synopsis.processes.cmanp import CMANP
from synopsis.tasks import Batch
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.training import (
    TASKS,
    CheckpointError,
    Experiment,
    ExperimentError,
    TrainingDiverged,
    TrainingInterrupted,
    evaluate,
    train,
)
from synopsis.training.checkpoint import Checkpoint
from synopsis.training.records import read_records
from tests.tolerances import FLOAT64
from tests.training.small import TOML, experiment

TIMES = ("seconds", "cpu_seconds")


def metrics(folder):
    """All lines but for the time they took."""
    lines = read_records(folder / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def interrupting(at: int, number: int = signal.SIGINT):
    def watch(step, loss, learning_rate):
        if step == at:
            os.kill(os.getpid(), number)

    return watch


def assert_same_run(a, b):
    ours, theirs = (Checkpoint.read(folder / "checkpoint.safetensors") for folder in (a, b))
    assert (ours.step, ours.experiment) == (theirs.step, theirs.experiment)
    assert ours.scalars["tally"] == theirs.scalars["tally"]
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name
    assert metrics(a) == metrics(b)


class Wavering(CMANP):
    """Its loss draws from torch's global generator, as dropout and latent variables do."""

    def loss(self, batch):
        return super().loss(batch) * (1 + 0.1 * torch.rand(()))


PROCESSES.pop("Wavering")  # only the tests below may build it


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "warmup-stable-decay"])
def test_stopped_and_resumed_is_the_run_at_once(tmp_path, monkeypatch, schedule):
    monkeypatch.setitem(PROCESSES, "Wavering", Wavering)
    wanted = experiment(
        "process.name=Wavering",
        f"training.schedule={schedule}",
        "training.ema=0.9",
        "training.clip=1.0",
        "training.weight_decay=0.1",
        "evaluation.every=7",
    )
    train(wanted, tmp_path / "once")
    with pytest.raises(TrainingInterrupted, match="after step 10;"):
        train(wanted, tmp_path / "twice", watch=interrupting(10))
    torch.manual_seed(99)  # nothing outside may matter
    train(wanted, tmp_path / "twice", resume=True)
    assert len(metrics(tmp_path / "once")) == 7 + 3  # lines every 3 of 20, evaluations every 7
    assert_same_run(tmp_path / "once", tmp_path / "twice")


def test_killed_between_checkpoints_is_the_run_at_once(tmp_path):
    """What was logged after the last checkpoint is not said twice."""
    wanted = experiment()
    train(wanted, tmp_path / "once")
    folder = tmp_path / "killed"
    with pytest.raises(TrainingInterrupted):
        train(wanted, folder, watch=interrupting(4))
    kept = (folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(TrainingInterrupted):
        train(wanted, folder, resume=True, watch=interrupting(11, signal.SIGTERM))
    (folder / "checkpoint.safetensors").write_bytes(kept)  # as if it had been killed at step 11
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')
    train(wanted, folder, resume=True)
    assert_same_run(tmp_path / "once", folder)


def test_checkpoints_come_with_time(tmp_path):
    class Killed(Exception):
        pass

    def kill(step, loss, learning_rate):
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(experiment("training.checkpoint_minutes=0"), tmp_path, watch=kill)
    assert Checkpoint.read(tmp_path / "checkpoint.safetensors").step == 4


def test_resume_without_a_checkpoint_begins_anew(tmp_path):
    wanted = experiment()
    train(wanted, tmp_path / "once")
    train(wanted, tmp_path / "again")
    (tmp_path / "again" / "checkpoint.safetensors").unlink()
    train(wanted, tmp_path / "again", resume=True)
    assert_same_run(tmp_path / "once", tmp_path / "again")


def test_more_steps_can_be_asked_for(tmp_path):
    train(experiment(), tmp_path)
    train(experiment("training.steps=25"), tmp_path, resume=True)
    assert metrics(tmp_path)[-1]["step"] == 25
    again = Experiment.read(tmp_path / "experiment.toml")
    assert again == experiment("training.steps=25")


class Line:
    """One and the same line every time."""

    dim_x = dim_y = 1

    def sample(self, batch_size, generator):
        x = torch.rand(batch_size, 24, 1, generator=generator) * 4 - 2
        y = x + 0.1 * torch.randn(x.shape, generator=generator)
        return Batch(x[:, :8], y[:, :8], x[:, 8:], y[:, 8:])


def test_training_learns_and_exports_what_it_evaluated(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "line", Line)
    text = TOML.replace('"gaussian_process"', '"line"').replace("max_points = 12", "")
    overrides = ["training.steps=150", "training.log_every=25", "training.ema=0.9"]
    folder = train(Experiment.from_toml(text, overrides), tmp_path)
    lines = metrics(tmp_path)
    assert lines[-2]["loss"] < lines[0]["loss"] - 0.5
    scores = evaluate(load(folder), Line(), 2, 2, 0)
    assert scores.to_dict() == lines[-1]["evaluation"]


def test_lines_are_means_since_the_last_one(tmp_path):
    seen = []
    train(experiment(), tmp_path, watch=lambda *arguments: seen.append(arguments))
    assert [step for step, _, _ in seen] == list(range(1, 21))
    lines = [line for line in metrics(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [3, 6, 9, 12, 15, 18, 20]
    assert lines[1]["loss"] == sum(loss for _, loss, _ in seen[3:6]) / 3
    assert lines[1]["learning_rate"] == seen[5][2]


def test_nothing_outside_the_folder_is_left_changed(tmp_path):
    generator, threads = torch.get_rng_state(), torch.get_num_threads()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(experiment("training.threads=2", "training.steps=2"), tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_num_threads() == threads
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_seeds_change_weights_and_batches(tmp_path):
    for seed in (0, 1):
        train(experiment(f"training.seed={seed}"), tmp_path / str(seed))
    first, second = (metrics(tmp_path / str(seed))[0]["loss"] for seed in (0, 1))
    assert first != second


class Brittle(GaussianProcessTask):
    """Every so often a target that is not a number."""

    def sample(self, batch_size, generator):
        batch = super().sample(batch_size, generator)
        if generator.initial_seed() % 3 == 0:
            batch.yt[0, 0] = torch.inf
        return batch


class Hopeless(GaussianProcessTask):
    def sample(self, batch_size, generator):
        batch = super().sample(batch_size, generator)
        return replace(batch, yt=torch.full_like(batch.yt, torch.inf))


def test_bad_steps_are_skipped_and_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "gaussian_process", Brittle)
    train(experiment("evaluation.batches=0"), tmp_path)
    last = metrics(tmp_path)[-1]
    assert 1 <= last["skipped"] <= 15
    process = load(tmp_path / "process")
    assert all(torch.isfinite(p).all() for p in process.parameters())


def test_hopeless_training_raises_and_keeps_the_checkpoint(tmp_path, monkeypatch):
    with pytest.raises(TrainingInterrupted):
        train(experiment("training.steps=50"), tmp_path, watch=interrupting(10))
    monkeypatch.setitem(TASKS, "gaussian_process", Hopeless)
    with pytest.raises(TrainingDiverged, match="20 steps in a row"):
        train(experiment("training.steps=50"), tmp_path, resume=True)
    assert Checkpoint.read(tmp_path / "checkpoint.safetensors").step == 10


def test_what_is_there_is_not_overwritten(tmp_path):
    train(experiment("training.steps=1"), tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: already there; resume"):
        train(experiment("training.steps=1"), tmp_path)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="none: no run to resume"):
        train(experiment(), tmp_path / "none", resume=True)


def test_another_process_or_task_cannot_go_on(tmp_path):
    train(experiment("training.steps=1"), tmp_path)
    with pytest.raises(CheckpointError, match=r"safetensors: of process .*'latents': 4.*: 5"):
        train(experiment("process.latents=5"), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"safetensors: of task .*matern52"):
        train(experiment("task.kernel=matern52"), tmp_path, resume=True)


def test_damaged_checkpoint_is_one_line(tmp_path):
    train(experiment("training.steps=1"), tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"safetensors: not a whole checkpoint") as caught:
        train(experiment(), tmp_path, resume=True)
    assert "\n" not in str(caught.value)


def test_process_and_task_must_fit(tmp_path):
    with pytest.raises(ExperimentError, match="experiment: process has dim_x 2 but the task has 1"):
        train(experiment("process.dim_x=2"), tmp_path)


def test_precisions_follow_each_other_in_one_interpreter(tmp_path):
    for precision in ("no", "bf16", "no"):
        train(
            experiment(f"training.precision={precision}", "training.steps=2"),
            tmp_path / f"{precision}{len(list(tmp_path.iterdir()))}",
        )
    first, middle, last = (metrics(tmp_path / name)[0] for name in ("no0", "bf161", "no2"))
    assert first == last
    assert first != middle


def test_training_begins_with_the_weights_that_are_named(tmp_path):
    first = train(experiment("training.steps=2"), tmp_path / "first")
    start = f"training.start={tmp_path / 'first'}"
    started = experiment("training.steps=1", "training.learning_rate=1e-12", start)
    again = load(train(started, tmp_path / "second"))
    for name, weight in load(first).state_dict().items():
        assert torch.allclose(weight, again.state_dict()[name], atol=1e3 * FLOAT64), name


@pytest.mark.parametrize("start", ["nowhere", "gp-tnpd"])
def test_weights_that_do_not_fit_are_an_error_of_the_experiment(tmp_path, start):
    with pytest.raises(ExperimentError, match=rf"training\.start = '{start}': "):
        train(experiment("training.steps=1", f"training.start={start}"), tmp_path)
