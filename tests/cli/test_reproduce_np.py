"""``synopsis reproduce np-gp`` and ``np-memory`` as commands, on models as small as they come."""

import os
import signal
import sys

import pytest

from synopsis.cli.reproduction import chosen
from synopsis.reproduction import contenders, np_gp, np_memory
from synopsis.reproduction.contenders import Contender
from synopsis.reproduction.costs import Call, Cost, FreshProcesses
from synopsis.training.experiment import Component
from tests.cli.commands import assert_one_line_error, run

TINY = {
    "CNP": Contender("CNP", Component("CNP", {"dim": 16})),
    "TNPND": Contender("TNPND", Component("TNPND", {"dim": 16, "heads": 2, "layers": 1})),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setattr(np_gp, "CONTENDERS", TINY)
    cost = Cost(900, Call(0.1, 0), Call(0.1, 0), Call(0.1, 2**20))
    monkeypatch.setattr(FreshProcesses, "measure", lambda *_: cost)


def reproduce(tmp_path, *options: object):
    places = ("--out", tmp_path / "made" / "np-gp.md", "--runs", tmp_path / "runs")
    return run("reproduce", "np-gp", "--batches", 2, *places, *options)


def test_the_command_trains_evaluates_and_writes_the_page(tmp_path):
    result = reproduce(tmp_path, "--budget", 0.004)
    assert result.exit_code == 0, result.output
    page = (tmp_path / "made" / "np-gp.md").read_text(encoding="utf-8")
    assert "    synopsis reproduce np-gp --budget 0.004 --seeds 1 --batches 2\n" in page
    assert "| CNP | budget |" in page
    assert "| TNP-ND | budget |" in page
    assert "np-gp.md" in result.stdout
    picture = "np-gp-posteriors.png"
    assert f"![{picture}]({picture})" in page
    assert (tmp_path / "made" / picture).exists()


def test_typed_again_it_trains_nothing_and_writes_the_same_page(tmp_path, monkeypatch):
    first = reproduce(tmp_path, "--budget", 0.004, "--models", "CNP")
    assert first.exit_code == 0, first.output
    page = (tmp_path / "made" / "np-gp.md").read_bytes()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(contenders, "train", forbidden)
    monkeypatch.setattr(np_gp, "evaluate", forbidden)
    again = reproduce(tmp_path, "--budget", 0.004, "--models", "CNP")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "made" / "np-gp.md").read_bytes() == page
    assert b"--models CNP\n" in page


def test_an_interrupted_command_says_how_to_go_on_and_does(tmp_path, monkeypatch):
    train = contenders.train

    def interrupted(experiment, folder, resume=False, watch=None):
        def kill(step: int, *rest: float) -> None:
            watch(step, *rest)
            if step == 2 and folder.name != "timing":
                os.kill(os.getpid(), signal.SIGTERM)

        return train(experiment, folder, resume, kill)

    monkeypatch.setattr(contenders, "train", interrupted)
    stopped = reproduce(tmp_path, "--budget", 0.004, "--models", "CNP")
    assert stopped.exit_code == 128 + signal.SIGTERM
    assert "type the same command again" in stopped.stderr
    monkeypatch.setattr(contenders, "train", train)
    assert reproduce(tmp_path, "--budget", 0.004, "--models", "CNP").exit_code == 0


def test_errors_are_one_line(tmp_path):
    unknown = reproduce(tmp_path, "--models", "CNP,GPT")
    assert_one_line_error(unknown, "--models: 'GPT' is not in this table; it has CNP, TNPND")
    nothing = reproduce(tmp_path, "--budget", 0)
    assert_one_line_error(nothing, "CNP: no weights in")
    (tmp_path / "file").write_text("")
    blocked = run("reproduce", "np-gp", "--out", tmp_path / "file" / "x.md")
    assert_one_line_error(blocked, "file")
    assert run("reproduce", "np-gp", "--batches", 1).exit_code == 2


def test_without_matplotlib_there_are_no_pictures(tmp_path, monkeypatch):
    for name in ("synopsis.reproduction.np_gp_pictures", "synopsis.reproduction.looks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("matplotlib", "matplotlib.axes", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    result = reproduce(tmp_path, "--budget", 0.004, "--models", "CNP")
    assert result.exit_code == 0, result.output
    assert "no pictures" in result.stderr
    assert "![" not in (tmp_path / "made" / "np-gp.md").read_text(encoding="utf-8")


def test_memory_is_measured_and_written(tmp_path):
    out = tmp_path / "np-memory.md"
    options = ("--longest", 1000, "--models", "CMANP,CNP", "--patience", 0.5)
    result = run("reproduce", "np-memory", *options, "--out", out)
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    command = "synopsis reproduce np-memory --longest 1000 --patience 0.5 --models CNP,CMANP"
    assert f"    {command}\n" in page
    assert "| CNP | a summary | 900 | 900 |" in page
    assert (tmp_path / "np-memory-memory.png").exists()
    unknown = run("reproduce", "np-memory", "--models", "LSTM", "--out", out)
    assert_one_line_error(unknown, "'LSTM' is not in this table")


def test_models_come_in_the_order_of_the_table():
    known = list(np_memory.MODELS)
    assert chosen(None, known) == known
    assert chosen(" CMANP,CNP ,", known) == ["CNP", "CMANP"]
