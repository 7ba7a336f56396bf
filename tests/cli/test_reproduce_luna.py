"""``synopsis reproduce luna-…`` as commands, on models and tasks as small as they come."""

import signal

import pytest

from synopsis.reproduction import luna_lra, luna_memory, luna_speed, sequence_runs
from synopsis.reproduction.luna_lra import Arena
from synopsis.reproduction.step_costs import StepCost
from synopsis.reproduction.stream_check import StreamFacts
from synopsis.training import TrainingInterrupted
from tests.cli.commands import assert_one_line_error, run
from tests.reproduction.sequences import LENGTH, TINY, listops, train_here


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    task = listops(tmp_path / "data")
    monkeypatch.setattr(sequence_runs, "train_all", train_here)
    monkeypatch.setattr(luna_memory, "TASK", task)
    monkeypatch.setattr(luna_memory, "MAIN", {"Luna": TINY["Luna"], "Vanilla": TINY["Vanilla"]})
    one = {"none-unit-m1": TINY["ConvLuna"]}
    monkeypatch.setattr(luna_memory, "ABLATION", one)
    monkeypatch.setattr(luna_memory, "_EVALUATIONS", {"main": (2, 1), "ablation": (1, 1)})
    arguments = {"vocabulary": 17, "classes": 10, "length": LENGTH}
    arena = Arena("ListOps", task, "SequenceClassifier", arguments)
    monkeypatch.setattr(luna_lra, "ARENAS", {"pathfinder": arena, "image": arena})


def reproduce(tmp_path, table: str, *options: object):
    places = ("--out", tmp_path / "made" / f"{table}.md", "--runs", tmp_path / "runs")
    return run("reproduce", table, *places, *options)


def page_of(tmp_path, table: str) -> str:
    return (tmp_path / "made" / f"{table}.md").read_text(encoding="utf-8")


def test_luna_memory_trains_in_parts_and_shows_all_that_there_is(tmp_path):
    steps = ("--main-steps", 4, "--ablation-steps", 2, "--seeds", 1)
    ablation = reproduce(tmp_path, "luna-memory", *steps, "--part", "ablation")
    assert ablation.exit_code == 0, ablation.output
    page = page_of(tmp_path, "luna-memory")
    assert "## What does it" in page
    assert "## Side by side" not in page
    both = reproduce(tmp_path, "luna-memory", *steps, "--part", "main")
    assert both.exit_code == 0, both.output
    page = page_of(tmp_path, "luna-memory")
    command = "synopsis reproduce luna-memory --main-steps 4 --ablation-steps 2 --seeds 1 --jobs 2"
    assert f"    {command}\n" in page
    assert "4 steps instead of 12,000" in page
    assert "## What does it" in page
    assert "| Luna, shared |" in page
    assert "luna-memory-memory.png" in both.stdout
    assert (tmp_path / "made" / "luna-memory-learning.png").exists()


def test_with_nothing_trained_there_is_no_page(tmp_path):
    result = reproduce(tmp_path, "luna-memory", "--part", "none")
    assert result.exit_code == 2
    assert "nothing is trained there yet; choose a part" in result.stderr
    assert not (tmp_path / "made" / "luna-memory.md").exists()


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(folders, *_: object) -> None:
        raise TrainingInterrupted(signal.SIGINT, 3, next(iter(folders.values())))

    monkeypatch.setattr(sequence_runs, "train_all", interrupted)
    result = reproduce(tmp_path, "luna-memory", "--main-steps", 4, "--part", "main")
    assert result.exit_code == 128 + signal.SIGINT
    assert "type the same command again" in result.stderr


def test_luna_lra_trains_and_writes(tmp_path):
    result = reproduce(tmp_path, "luna-lra", "--tasks", "image", "--steps", 2, "--layers", 1)
    assert result.exit_code == 0, result.output
    page = page_of(tmp_path, "luna-lra")
    assert "--tasks image --steps 2 --layers 1 --seeds 1\n" in page
    assert "| ConvLuna, simplified |" in page
    again = reproduce(
        tmp_path, "luna-lra", "--tasks", "image", "--steps", 2, "--layers", 1, "--jobs", 0
    )
    assert again.exit_code == 0, again.output
    assert page_of(tmp_path, "luna-lra") == page


def test_luna_lra_refuses_what_it_does_not_know(tmp_path):
    assert_one_line_error(
        reproduce(tmp_path, "luna-lra", "--tasks", "path-x"), "'path-x' is not in"
    )
    for original in ("image", "text=folder"):
        result = reproduce(tmp_path, "luna-lra", "--tasks", "image", "--original", original)
        assert_one_line_error(result, "must be TASK=FOLDER, of image")


def test_luna_speed_measures_and_writes(tmp_path, monkeypatch):
    cost = StepCost(1, 2.0, 3.0, 2**20)
    facts = StreamFacts([1000] * 10, [2**20] * 10, 4.0, 2**30, 2.0, 4e-7, 3.6)
    monkeypatch.setattr(luna_speed, "measure_step", lambda *_: cost)
    monkeypatch.setattr(luna_speed, "check_stream", lambda _: facts)
    options = ("--models", "luna-16,luna-256", "--length", 100, "--batch", 1)
    result = reproduce(tmp_path, "luna-speed", *options)
    assert result.exit_code == 0, result.output
    page = page_of(tmp_path, "luna-speed")
    command = (
        "synopsis reproduce luna-speed --length 100 --batch 1 --threads 1 --models luna-256,luna-16"
    )
    assert f"    {command}\n" in page
    assert "| Luna, 256 cells | 2.0 |" in page
    unknown = reproduce(tmp_path, "luna-speed", "--models", "mamba")
    assert_one_line_error(unknown, "'mamba' is not in this table")
