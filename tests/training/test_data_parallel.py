"""Two processes on one machine against the same thing written out in one."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from synopsis.tasks.fixed_batches import batch_generator
from synopsis.training.records import read_records
from synopsis.training.registries import build_task, build_trainee
from synopsis.training.seeds import derived_seed, own_randomness
from tests.tolerances import FLOAT32
from tests.training.small import experiment

STEPS = 4
PROGRAM = """
import sys
from pathlib import Path
from synopsis.training import Experiment, train
train(Experiment.read(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def run_on_two(arguments: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def naive(wanted) -> list[float]:
    """Losses when two batches' gradients are averaged, with torch's own Adam and no library."""
    settings, task, losses = wanted.training, build_task(wanted), []
    with own_randomness(derived_seed(settings.seed, "weights")):
        process = build_trainee(wanted)
    optimizer = torch.optim.Adam(process.parameters())
    for step in range(settings.steps):
        optimizer.param_groups[0]["lr"] = settings.learning_rate
        optimizer.zero_grad()
        drawn = [
            task.sample(2, batch_generator(derived_seed(settings.seed, "task"), 2 * step + rank))
            for rank in range(2)
        ]
        loss = sum(process.loss(batch) for batch in drawn) / 2
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_two_processes_average_their_gradients(tmp_path):
    wanted = experiment(
        f"training.steps={STEPS}", "training.log_every=1", "training.schedule=warmup-stable-decay",
        "training.decay_fraction=0.0",
    )  # fmt: skip
    (tmp_path / "e.toml").write_text(wanted.to_toml())
    run_on_two([str(tmp_path / "e.toml"), str(tmp_path / "run")])
    lines = [line for line in read_records(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == pytest.approx(naive(wanted), abs=100 * FLOAT32)
    assert (tmp_path / "run" / "process" / "model.safetensors").exists()
