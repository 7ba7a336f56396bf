"""``synopsis diagnose``: what is in the memory of a trained model, and what became of it in training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from synopsis.cli.errors import one_line_errors

if TYPE_CHECKING:
    from synopsis.diagnostics import MemoryReport
    from synopsis.training import Experiment

_PICTURE = "memory.png"
_CELLS = {"cosine": 3, "centred_cosine": 3, "effective_rank": 1, "norm": 2}
_DECIMALS = {  # of what is shown of each part of a layer
    "memory_in": _CELLS,
    "memory_out": _CELLS,
    "pack": {"entropy": 3, "total_variation": 3, "norm": 2, "temperature": 2},
    "unpack": {"entropy": 3, "cells_for_90": 1, "temperature": 2},
}
_LABELS = {
    "centred_cosine": "cosine, mean removed",
    "cells_for_90": "cells for 90 %",
}


def register(app: typer.Typer) -> None:
    """Add ``diagnose`` to the application."""
    app.command("diagnose")(diagnose)


def diagnose(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not.")],
    batches: Annotated[
        int | None,
        typer.Option(min=1, help="Batches to measure on.", show_default="those of the run"),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            dir_okay=False,
            help="Where to draw what became of the memory.",
            show_default=f"{_PICTURE} in the run's folder",
        ),
    ] = None,
) -> None:
    """Print what is in a model's memory, layer by layer, and draw how it came there.

    What the numbers mean: docs/memory-diagnostics.md.
    """
    with one_line_errors():
        from synopsis.diagnostics import reports_by_step
        from synopsis.training.layout import METRICS
        from synopsis.training.records import read_records

        wanted = _experiment(run)
        history = reports_by_step(read_records(run / METRICS))
        if png is not None and not history:
            raise ValueError(f"{run / METRICS} holds no report of a memory, so there is no picture")
        report = _measured(run, wanted, batches or max(1, wanted.evaluation.memory_batches))
        split = wanted.evaluation.split
        Console().print(_table(f"{run}: {report.examples} {split} examples", report))
        if not history:
            typer.echo(f"no picture: {run / METRICS} holds no report of a memory", err=True)
            return
        _draw(history, png or run / _PICTURE, str(run))


def _experiment(run: Path) -> "Experiment":
    from synopsis.training import Experiment
    from synopsis.training.layout import EXPERIMENT, MODEL

    if not (run / EXPERIMENT).exists():
        raise ValueError(f"{run} is not a run: it has no {EXPERIMENT}")
    wanted = Experiment.read(run / EXPERIMENT)
    if wanted.section != MODEL:
        raise ValueError(
            f"{run} is of a process, {wanted.process.name}; only models of sequences have a memory to look into"
        )
    return wanted


def _measured(run: Path, wanted: "Experiment", batches: int) -> "MemoryReport":
    from dataclasses import replace

    from synopsis.training.registries import build_task
    from synopsis.training.runs import load_trained
    from synopsis.training.trainees import look_into

    settings = replace(wanted.evaluation, memory_batches=batches)
    report = look_into(load_trained(str(run)), build_task(wanted), settings)
    if report is None:
        layer = wanted.process.arguments.get("layer", wanted.process.name)
        raise ValueError(f"{run} has no memory to look into: {layer} keeps none")
    return report


def _draw(history: list[tuple[int, "MemoryReport"]], path: Path, title: str) -> None:
    try:
        from synopsis.diagnostics.pictures import draw_memory
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        typer.echo("no picture: it needs matplotlib, the extra 'plot'", err=True)
        return
    draw_memory(history, path, title)
    typer.echo(f"written to {path}")


def _table(title: str, report: "MemoryReport") -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    for layer in report.layers:
        table.add_column(str(layer.layer), justify="right", no_wrap=True)
    for part, decimals in _DECIMALS.items():
        for name, places in decimals.items():
            numbers = [layer.number(part, name) for layer in report.layers]
            cells = ["-" if number is None else f"{number:.{places}f}" for number in numbers]
            label = f"{part.replace('_', ' ')}: {_LABELS.get(name, name.replace('_', ' '))}"
            table.add_row(label, *cells, end_section=name == list(decimals)[-1])
    return table
