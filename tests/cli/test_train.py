import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import synopsis
from synopsis.cli import app
from synopsis.training.checkpoint import Checkpoint
from tests.training.small import TOML

CONSTANT = ["--set", "training.schedule=warmup-stable-decay", "--set", "training.decay_fraction=0"]


@pytest.fixture
def toml(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text(TOML)
    return str(path)


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def rows(result):
    """The table without its title."""
    return [line for line in result.output.splitlines() if line.startswith("│")]


def test_train_then_evaluate(tmp_path, toml):
    run = tmp_path / "run"
    trained = invoke("train", toml, "--out", run, "--set", "training.steps=5")
    assert trained.exit_code == 0, trained.output
    assert f"trained for 5 steps; the process is in {run}/process" in trained.output
    assert Checkpoint.read(run / "checkpoint.safetensors").step == 5
    scores = tmp_path / "scores.json"
    measured = invoke("evaluate", run, "--batches", 3, "--seed", 1, "--json", scores)
    assert measured.exit_code == 0, measured.output
    read = json.loads(scores.read_text())
    assert read["batches"] == 3
    for score in ("log_likelihood", "pooled_log_likelihood", "oracle", "oracle_gap"):
        assert f"{read[score]['value']:.4f}" in measured.output
    elsewhere = invoke("evaluate", run / "process", "--experiment", toml, "--batches", 3,
                       "--seed", 1, "--batch-size", 2)  # fmt: skip
    assert rows(elsewhere) == rows(measured)


def test_resume_needs_to_be_said_and_continues(tmp_path, toml):
    run = tmp_path / "run"
    invoke("train", toml, "--out", run, "--set", "training.steps=5")
    again = invoke("train", toml, "--out", run)
    assert again.exit_code == 2
    assert "checkpoint.safetensors: already there; resume it" in again.output
    assert again.output.count("\n") == 1
    more = invoke("train", toml, "--out", run, "--resume", "--set", "training.steps=8")
    assert more.exit_code == 0, more.output
    assert Checkpoint.read(run / "checkpoint.safetensors").step == 8


def test_a_real_ctrl_c_leaves_a_checkpoint_that_continues_to_the_bit(tmp_path, toml):
    """The command in a process of its own, stopped by SIGINT at whatever step it is at."""
    settings = ["--set", "training.steps=4000", "--set", "training.log_every=1"]
    settings += ["--set", "evaluation.batches=0"]
    command = [sys.executable, "-m", "synopsis", "train", toml, *settings, *CONSTANT, "--out"]
    with subprocess.Popen([*command, tmp_path / "a"], stderr=subprocess.PIPE, text=True) as running:
        metrics = tmp_path / "a" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGINT, errors
    stopped = Checkpoint.read(tmp_path / "a" / "checkpoint.safetensors").step
    assert 0 < stopped < 4000
    assert f"interrupted after step {stopped}; " in errors
    assert errors.rstrip().endswith("add --resume to the command")
    assert "Traceback" not in errors
    last = ["--set", f"training.steps={stopped + 10}", *settings[2:]]
    assert (
        invoke("train", toml, *last, *CONSTANT, "--resume", "--out", tmp_path / "a").exit_code == 0
    )
    assert invoke("train", toml, *last, *CONSTANT, "--out", tmp_path / "b").exit_code == 0
    ours, theirs = (Checkpoint.read(tmp_path / k / "checkpoint.safetensors") for k in "ab")
    assert ours.scalars["tally"] == theirs.scalars["tally"]
    assert all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in ours.tensors.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.steps=0"], "e.toml: training.steps = 0: must be at least 1"),
        (["--set", "process.latent=1"], "e.toml: process.latent = 1: unknown key; known are dim_x"),
        (["--set", "process.dim_x=2"], "e.toml: process has dim_x 2 but the task has 1"),
        (["--resume"], "run: no run to resume"),
    ],
)
def test_errors_of_train_are_one_line_and_exit_2(tmp_path, toml, arguments, message):
    result = invoke("train", toml, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


def test_damaged_checkpoint_is_one_line(tmp_path, toml):
    run = tmp_path / "run"
    invoke("train", toml, "--out", run, "--set", "training.steps=1")
    (run / "checkpoint.safetensors").write_bytes(b"\x00" * 40)
    result = invoke("train", toml, "--out", run, "--resume")
    assert result.exit_code == 2
    assert "checkpoint.safetensors: not a whole checkpoint" in result.output
    assert result.output.count("\n") == 1


def test_divergence_is_one_line_and_exit_1(tmp_path, toml, monkeypatch):
    from synopsis.tasks.gaussian_process import GaussianProcessTask
    from synopsis.training import TASKS

    class Hopeless(GaussianProcessTask):
        def sample(self, batch_size, generator):
            batch = super().sample(batch_size, generator)
            batch.yt.fill_(torch.inf)
            return batch

    monkeypatch.setitem(TASKS, "gaussian_process", Hopeless)
    result = invoke("train", toml, "--out", tmp_path / "run")
    assert result.exit_code == 1
    assert "not finite in 20 steps in a row" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is not a run; name an experiment"),
        (["nowhere", "--experiment", "e.toml"], "neither a folder nor a shipped process"),
        (["nowhere", "--experiment", "f.toml"], "f.toml: No such file"),
    ],
)
def test_errors_of_evaluate_are_one_line_and_exit_2(
    toml, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    result = invoke("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


def test_naming_the_commands_loads_no_torch():
    """In a fresh interpreter, with the package's own ``__init__`` left out."""
    program = (
        "import sys, types; package = types.ModuleType('synopsis'); "
        f"package.__path__ = [{str(Path(synopsis.__file__).parent)!r}]; package.__version__ = ''; "
        "sys.modules['synopsis'] = package; from synopsis.cli import app; "
        "assert {'train', 'evaluate'} <= {command.name for command in app.registered_commands}; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
