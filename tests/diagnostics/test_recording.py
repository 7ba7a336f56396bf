"""Reports among the metrics of a training, which goes on as if there were none."""

import pytest

from synopsis.diagnostics import measure_memory, reports_by_step
from synopsis.models import load_model
from synopsis.training import Experiment, ExperimentError, train
from synopsis.training.checkpoint import Checkpoint
from synopsis.training.records import read_records
from synopsis.training.registries import SEQUENCE_TASKS
from tests.diagnostics.runs import TOML, FirstId


@pytest.fixture(autouse=True)
def _task(monkeypatch):
    monkeypatch.setitem(SEQUENCE_TASKS, "first_id", FirstId)


def run(folder, *overrides):
    train(Experiment.from_toml(TOML, overrides), folder)
    return read_records(folder / "metrics.jsonl")


def test_each_evaluation_has_a_report_of_the_same_examples(tmp_path):
    history = reports_by_step(run(tmp_path, "evaluation.memory_batches=2"))
    assert [step for step, _ in history] == [2, 4]
    model = load_model(tmp_path / "model")
    assert history[1][1] == measure_memory(model, FirstId().batches("validation", 4, 8))
    assert history[0][1].layers != history[1][1].layers


def test_training_is_the_same_with_and_without(tmp_path):
    with_reports = run(tmp_path / "a")
    without = run(tmp_path / "b", "evaluation.memory_batches=0")
    assert len(reports_by_step(with_reports)) == 2
    assert not reports_by_step(without)
    assert [line["loss"] for line in with_reports if "loss" in line] == [
        line["loss"] for line in without if "loss" in line
    ]
    ours, theirs = (Checkpoint.read(tmp_path / x / "checkpoint.safetensors") for x in "ab")
    assert all(tensor.equal(theirs.tensors[name]) for name, tensor in ours.tensors.items())


def test_a_model_without_a_memory_has_no_reports(tmp_path):
    assert not reports_by_step(run(tmp_path, "model.layer=VanillaLayer", "model.memory=0"))


def test_a_negative_number_of_batches_is_refused():
    with pytest.raises(ExperimentError, match=r"evaluation.memory_batches = -1: must be at least"):
        Experiment.from_toml(TOML, ["evaluation.memory_batches=-1"])
