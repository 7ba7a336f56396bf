"""The ladder from the published training to ours, on models as small as they come."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from synopsis.processes import CMANP, build
from synopsis.reproduction import np_ablation, np_gp
from synopsis.reproduction.contenders import RECIPE, Contender
from synopsis.reproduction.np_ablation import (
    COMPILED,
    LADDER,
    Compiled,
    Results,
    Rung,
    climb,
    compile_blocks,
    compiling,
    with_compiling,
)
from synopsis.reproduction.np_ablation_page import markdown
from synopsis.reproduction.np_gp import Settings
from synopsis.training import Experiment
from synopsis.training.experiment import Component, Training
from tests.cli.commands import assert_one_line_error, run

SMALL = {"dim": 16, "heads": 2, "blocks": 1, "latents": 4}
TINY = {
    name: replace(
        LADDER[name],
        contender=replace(
            LADDER[name].contender,
            process=Component("CMANP", {**SMALL, **published}),
        ),
    )
    for name, published in (
        ("published", {"residual": "normed", "initial": "copies"}),
        ("bf16", {}),
    )
}
BATCHES = 2


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(0.3, 1, BATCHES, tmp_path_factory.mktemp("np-ablation"))


@pytest.fixture(scope="module")
def results(settings):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np_ablation, "LADDER", TINY)
        return climb(list(TINY), settings)


def training(name: str) -> Training:
    return Training(**{**RECIPE, **LADDER[name].contender.training})


def test_the_first_rung_is_the_published_training():
    rung, found = LADDER["published"], training("published")
    assert (found.optimizer, found.learning_rate, found.schedule) == ("adamw", 5e-4, "cosine")
    assert (found.clip, found.ema, found.weight_decay, found.precision) == (0.0, 0.0, 0.0, "no")
    assert rung.task.arguments == {"kernel": "rbf", "oracle": False}
    part = rung.contender.process
    process = build({"process": part.name, "arguments": part.arguments})
    assert process.config["residual"] == "normed"
    assert sum(p.numel() for p in process.parameters()) == 1_341_634
    first, second, *_ = process.trunk.stack.blocks
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_every_rung_changes_one_thing_more():
    """Of process, task and training, exactly what the rung's words say."""
    names = list(LADDER)
    assert names[-1] == "anchored"
    changed = []
    for before, after in pairwise(names[:-1]):
        parts = [
            (LADDER[n].contender.process, LADDER[n].task, training(n)) for n in (before, after)
        ]
        changed.append([a != b for a, b in zip(*parts, strict=True)])
    process, task, recipe = ([c[i] for c in changed] for i in range(3))
    assert process == [True, False, False, False, True, False]
    assert task == [False, False, True, False, False, False]
    assert recipe == [False, True, False, True, False, True]
    assert training("muon") == Training(**RECIPE)
    assert training("bf16") == Training(**RECIPE, precision="bf16")


def test_rungs_are_trained_as_they_say_and_scored_on_two_kernels(results, settings):
    for name, row in results.rows.items():
        experiment = Experiment.read(row.ledgers[0].folder / "experiment.toml")
        assert row.ledgers[0].folder == settings.runs / f"{name}-s0"
        assert experiment.task == LADDER[name].task
        assert experiment.training.precision == ("bf16" if name == "bf16" else "no")
        assert experiment.training.optimizer == ("muon" if name == "bf16" else "adamw")
        assert set(row.scores) == {"rbf", "matern52"}
        assert row.scores["rbf"][0]["batches"] == BATCHES


def test_what_was_done_is_not_done_again(results, settings, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(np_ablation, "LADDER", TINY)
    monkeypatch.setattr(np_gp, "evaluate", forbidden)
    again = climb(list(TINY), replace(settings, budget_seconds=0.0))
    assert [row.scores for row in again.rows.values()] == [
        row.scores for row in results.rows.values()
    ]


def lines_of(page: str) -> list[list[str]]:
    found = [line for line in page.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_the_page_has_a_line_for_each_rung_and_one_for_compiling(results, settings):
    measured = replace(results, compiled=Compiled(0.2, 0.1, 33.0))
    page = markdown(measured, settings, "synopsis reproduce np-ablation --some")
    head, _, published, bf16, compiled = lines_of(page)
    assert all(len(line) == len(head) for line in (published, bf16, compiled))
    assert head[5:7] == ["RBF", "RBF, gap"]
    assert published[0] == "as published"
    score = results.rows["published"].scores["rbf"][0]["log_likelihood"]
    text = f"{score['value']:.3f} ± {score['standard_error']:.3f}".replace("-", "−")
    assert published[5] == text
    per_step = results.rows["bf16"].ledgers[0].seconds_per_step
    assert bf16[2] == f"{per_step:.3f}"
    assert compiled[:3] == ["+ compiled, its cost only", "–", f"{per_step / 2:.3f}"]
    assert "takes 0.200 CPU-s, and 0.100 when" in page
    assert "(2.00 times faster" in page
    assert "Budget: 0.005 CPU-minutes for each row and seed" in page
    assert "    synopsis reproduce np-ablation --some\n" in page


def test_the_page_says_what_is_missing(results, settings):
    failed = climb_one(Rung("never", Contender("never", Component("CMANP", SMALL))), settings)
    both = Results({**results.rows, **failed.rows}, remark="no C++ compiler")
    page = markdown(both, settings, "command")
    assert "Not measured: no C++ compiler." in page
    assert "Without figures:\n\n- never: never: no weights in" in page


def climb_one(rung: Rung, settings: Settings) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np_ablation, "LADDER", {rung.name: rung})
        return climb([rung.name], replace(settings, budget_seconds=0.0))


def test_compiling_is_measured_beside_plain_steps(monkeypatch):
    """What is compiled is the blocks' answer, of one of two equal processes; torch's compiler is not what is tested."""
    made = []

    def compile(function, dynamic):
        made.append(function)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    found = compiling(TINY["bf16"])
    assert [function.__name__ for function in made] == ["answer"]
    assert 0 < found.plain < 5 and 0 < found.compiled < 5 and found.first > 0


def test_without_a_compiler_the_reason_is_kept(results, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("InvalidCxxCompiler: no g++\nmuch more")

    monkeypatch.setattr(np_ablation, "compiling", fail)
    assert with_compiling(results).remark == "InvalidCxxCompiler: no g++"
    assert with_compiling(results).compiled is None


def test_only_blocks_can_be_compiled():
    with pytest.raises(ValueError, match="CNP has no blocks"):
        compile_blocks(build({"process": "CNP", "arguments": {"dim": 16}}))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_compiled_blocks_answer_as_before(monkeypatch):
    """With torch's own eager backend: what is compiled sees the same weights and gives the same gradients."""
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic: compiler(f, dynamic=dynamic, backend="eager")
    )
    torch.manual_seed(0)
    process = CMANP(**SMALL).train()
    points = [torch.randn(2, n, 1) for n in (5, 5, 3)]
    plain = process(*points).mean
    compile_blocks(process)
    torch.testing.assert_close(process(*points).mean, plain)


def test_the_command_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(np_ablation, "LADDER", {"bf16": TINY["bf16"]})
    assert COMPILED == "bf16"
    out = tmp_path / "made" / "np-ablation.md"
    options = ("--budget", 0.004, "--batches", 2, "--no-compiling")
    places = ("--out", out, "--runs", tmp_path / "runs")
    result = run("reproduce", "np-ablation", *options, *places)
    assert result.exit_code == 0, result.output
    page = out.read_text(encoding="utf-8")
    command = "synopsis reproduce np-ablation --budget 0.004 --seeds 1 --batches 2 --no-compiling"
    assert f"    {command}\n" in page
    assert "| + products in bfloat16 |" in page
    nothing = run(
        "reproduce", "np-ablation", "--budget", 0, "--out", out, "--runs", tmp_path / "no"
    )
    assert_one_line_error(nothing, "bf16: no weights in")
