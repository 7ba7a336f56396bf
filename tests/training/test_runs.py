import os
import signal

import pytest
import torch

from synopsis.processes import load
from synopsis.training import ExperimentError, TrainingInterrupted, train
from synopsis.training.checkpoint import Checkpoint
from synopsis.training.runs import experiment_of, load_trained
from tests.training.small import TOML, experiment


def stop(step, loss, learning_rate):
    if step == 5:
        os.kill(os.getpid(), signal.SIGINT)


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_finished_run_is_its_export(tmp_path):
    folder = train(experiment(), tmp_path)
    assert same(load_trained(str(tmp_path)), load(folder))
    assert same(load_trained(str(folder)), load(folder))
    assert experiment_of(str(tmp_path)) == experiment()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_unfinished_run_is_its_checkpoint(tmp_path, ema):
    with pytest.raises(TrainingInterrupted):
        train(experiment(f"training.ema={ema}"), tmp_path / "stopped", watch=stop)
    process = load_trained(str(tmp_path / "stopped"))
    assert not process.training
    assert process.config["latents"] == 4
    tensors = Checkpoint.read(tmp_path / "stopped" / "checkpoint.safetensors").tensors
    prefix = "average." if ema else "weights."
    assert all(torch.equal(v, tensors[prefix + k]) for k, v in process.state_dict().items())
    assert ema == 0 or not torch.equal(
        tensors["average.trunk.latents"], tensors["weights.trunk.latents"]
    )


def test_given_experiment_comes_before_that_of_the_run(tmp_path):
    train(experiment("training.steps=1"), tmp_path)
    (tmp_path / "other.toml").write_text(TOML)
    given = experiment_of(str(tmp_path), tmp_path / "other.toml", ["evaluation.batches=9"])
    assert given == experiment("evaluation.batches=9")


def test_nothing_to_measure(tmp_path):
    with pytest.raises(ExperimentError, match="is not a run; name an experiment"):
        experiment_of(str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder nor a shipped process"):
        load_trained(str(tmp_path / "none"))
