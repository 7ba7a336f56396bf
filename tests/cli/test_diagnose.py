"""``synopsis diagnose``: the table, the picture, and what it says where there is nothing to look into."""

import pytest
from typer.testing import CliRunner

from synopsis.cli import app
from synopsis.diagnostics import measure_memory
from synopsis.models import load_model
from synopsis.training import Experiment, train
from synopsis.training.registries import SEQUENCE_TASKS
from tests.diagnostics.runs import TOML, FirstId
from tests.training.small import TOML as PROCESS


def diagnose(*arguments):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a run, one that recorded nothing, one without a memory, and one of a process."""
    made = {
        "run": (TOML, ()),
        "unrecorded": (TOML, ("evaluation.memory_batches=0",)),
        "vanilla": (TOML, ("model.layer=VanillaLayer", "model.memory=0")),
        "process": (PROCESS, ("training.steps=1",)),
    }
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SEQUENCE_TASKS, "first_id", FirstId)
        for name, (toml, overrides) in made.items():
            train(Experiment.from_toml(toml, overrides), folder / name)
        yield folder


def row(output, label):
    """The numbers of a row of the table."""
    line = next(line for line in output.splitlines() if label in line)
    return [cell.strip() for cell in line.strip("│").split("│")[1:]]


def test_the_table_holds_what_was_measured_and_the_picture_lies_in_the_run(trained):
    result = diagnose(trained / "run", "--batches", 2)
    assert result.exit_code == 0, result.output
    model = load_model(trained / "run" / "model")
    report = measure_memory(model, FirstId().batches("validation", 4, 8))
    assert row(result.output, "memory out: cosine ") == [
        f"{layer.memory_out.cosine:.3f}" for layer in report.layers
    ]
    assert row(result.output, "unpack: cells for 90 %") == [
        f"{layer.unpack.cells_for_90:.1f}" for layer in report.layers
    ]
    assert (trained / "run" / "memory.png").exists()
    assert "memory.png" in result.output


def test_a_run_that_is_not_finished_and_a_picture_elsewhere(trained, tmp_path):
    for name in ("experiment.toml", "metrics.jsonl", "checkpoint.safetensors"):
        (tmp_path / name).write_bytes((trained / "run" / name).read_bytes())
    result = diagnose(tmp_path, "--png", tmp_path / "elsewhere.png")
    assert result.exit_code == 0, result.output
    assert row(result.output, "pack: temperature") == row(
        diagnose(trained / "run").output, "pack: temperature"
    )
    assert (tmp_path / "elsewhere.png").exists()
    assert not (tmp_path / "memory.png").exists()


def test_without_reports_there_is_a_table_but_no_picture(trained, tmp_path):
    result = diagnose(trained / "unrecorded")
    assert result.exit_code == 0, result.output
    assert len(row(result.output, "pack: entropy")) == 2
    assert "no picture: " in result.output
    assert not (trained / "unrecorded" / "memory.png").exists()
    asked = diagnose(trained / "unrecorded", "--png", tmp_path / "a.png")
    assert asked.exit_code == 2
    assert "metrics.jsonl holds no report of a memory, so there is no picture" in asked.output
    assert asked.output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vanilla", "has no memory to look into: VanillaLayer keeps none"),
        ("process", "is of a process, CMANP; only models of sequences have a memory"),
        ("nowhere", "is not a run: it has no experiment.toml"),
    ],
)
def test_errors_are_one_line(trained, name, said):
    result = diagnose(trained / name)
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1
