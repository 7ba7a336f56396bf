"""``synopsis train`` and ``synopsis evaluate``: run an experiment, and measure what came of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from synopsis.cli.errors import one_line_errors

if TYPE_CHECKING:
    from synopsis.training import Estimate, Evaluation
    from synopsis.training.classification import Classification

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override, such as training.steps=100."),
]


def register(app: typer.Typer) -> None:
    """Add ``train`` and ``evaluate`` to the application."""
    app.command("train")(train)
    app.command("evaluate")(evaluate)


def train(
    experiment: Annotated[Path, typer.Argument(help="TOML file of the experiment.")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the folder, bit for bit.")
    ] = False,
) -> None:
    """Train a process or a model; Ctrl-C leaves a checkpoint to resume from."""
    with one_line_errors():
        from synopsis.training import Experiment, TrainingDiverged, TrainingInterrupted
        from synopsis.training import train as run
        from synopsis.training.progress import TrainingProgress

        wanted = Experiment.read(experiment, overrides or ())
        try:
            with TrainingProgress(wanted.training.steps) as watch:
                folder = run(wanted, out, resume, watch)
        except TrainingInterrupted as interrupted:
            _say(f"{interrupted}; add --resume to the command")
            raise typer.Exit(128 + interrupted.signal) from interrupted
        except TrainingDiverged as diverged:
            _say(f"Error: {diverged}")
            raise typer.Exit(1) from diverged
        typer.echo(
            f"trained for {wanted.training.steps} steps; the {wanted.section} is in {folder}"
        )


def evaluate(
    source: Annotated[
        str, typer.Argument(help="Run, folder of a process or model, or a shipped name.")
    ],
    experiment: Annotated[
        Path | None, typer.Option(help="TOML file with the task; a run brings its own.")
    ] = None,
    batches: Annotated[int | None, typer.Option(min=1, help="Batches to draw.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Tasks per batch.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Which tasks are drawn.")] = None,
    split: Annotated[
        str | None, typer.Option(help="validation or test, where a task has fixed examples.")
    ] = None,
    overrides: Overrides = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the scores there as well.")
    ] = None,
) -> None:
    """Measure log-likelihood, coverage and the gap to the exact answer, or a model's accuracy."""
    with one_line_errors():
        from synopsis.training.registries import build_task
        from synopsis.training.runs import experiment_of, load_trained
        from synopsis.training.trainees import measure

        options = {"batches": batches, "batch_size": batch_size, "seed": seed, "split": split}
        given = [f"evaluation.{k}={v}" for k, v in options.items() if v is not None]
        wanted = experiment_of(source, experiment, [*(overrides or ()), *given])
        scores = measure(load_trained(source), build_task(wanted), wanted.evaluation)
        if json_file is not None:
            json_file.write_text(json.dumps(scores.to_dict(), indent=2) + "\n", encoding="utf-8")
        Console().print(_table(source, scores))


def _table(source: str, scores: "Evaluation | Classification") -> Table:
    from synopsis.training.classification import Classification

    if isinstance(scores, Classification):
        return _classified(source, scores)
    title = f"{source}: {scores.batches} batches, {scores.targets} targets"
    table = Table("nats per target, or share", "value", "± standard error", title=title)

    def row(name: str, estimate: "Estimate | None") -> None:
        if estimate is not None:
            table.add_row(name, f"{estimate.value:.4f}", f"{estimate.standard_error:.4f}")

    row("log-likelihood, mean of batches", scores.log_likelihood)
    row("log-likelihood, pooled", scores.pooled_log_likelihood)
    row("oracle, mean of batches", scores.oracle)
    row("gap to the oracle, mean of batches", scores.oracle_gap)
    for level, estimate in scores.coverage.items():
        row(f"coverage of the central {level:.0%}", estimate)
    return table


def _classified(source: str, scores: "Classification") -> Table:
    title = f"{source}: {scores.examples} {scores.split} examples"
    table = Table("", "value", "± standard error", title=title)
    for name, estimate in (("accuracy", scores.accuracy), ("loss, nats", scores.loss)):
        table.add_row(name, f"{estimate.value:.4f}", f"{estimate.standard_error:.4f}")
    return table


def _say(line: str) -> None:
    typer.echo(" ".join(line.split()), err=True)
