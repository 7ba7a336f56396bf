"""What the commands ``synopsis reproduce np-…`` share: their options, their progress, and how they end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from synopsis.cli.errors import one_line_errors

Watch = Callable[[str, int, int], None]

Budget = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="MINUTES",
        help="CPU-minutes of training for each model and seed; 0 takes what is shipped or trained already.",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Trainings of each model.")]
Models = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="Which models, by name.", show_default="all"),
]
Batches = Annotated[int, typer.Option(min=2, help="Batches of 16 tasks of each evaluation.")]
Out = Annotated[
    Path,
    typer.Option(dir_okay=False, help="Markdown file to write; its pictures are put beside it."),
]
Runs = Annotated[
    Path,
    typer.Option(
        file_okay=False, help="Folder of the runs, from which a killed command continues."
    ),
]


def chosen(models: str | None, known: list[str]) -> list[str]:
    """The names of ``--models`` in the table's order.

    Raises:
        ValueError: for a name that is not known.

    Example:
        >>> chosen("CMANP, CNP", ["CNP", "NP", "CMANP"])
        ['CNP', 'CMANP']
    """
    if models is None:
        return known
    wanted = [name.strip() for name in models.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise ValueError(f"--models: {name!r} is not in this table; it has {', '.join(known)}")
    return [name for name in known if name in wanted]


@contextmanager
def making(out: Path) -> Iterator[Watch]:
    """A progress bar on standard error, errors in one line, and an interruption that says how to go on.

    Args:
        out: the page that is to be written; that it can be is found before hours of work.

    Example:
        >>> with making(Path("docs/tables/np-gp.md")) as watch:    # doctest: +SKIP
        ...     watch("CNP", 1, 100)
    """
    from synopsis.training import TrainingInterrupted

    with one_line_errors():
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out.parent):
            pass
        progress = _progress()
        try:
            yield _watch(progress)
        except TrainingInterrupted as interrupted:
            typer.echo(f"{interrupted}: type the same command again", err=True)
            raise typer.Exit(128 + interrupted.signal) from interrupted
        finally:
            if progress.live.is_started:  # else it would print an empty line
                progress.stop()


def drawn(draw: Callable[[], list[Path]]) -> list[Path]:
    """The pictures, or none and a word on standard error where matplotlib is missing.

    Args:
        draw: imports what needs matplotlib, draws, and returns the files.
    """
    try:
        return draw()
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        Console(stderr=True).print("no pictures: they need matplotlib, the extra 'plot'")
        return []


def say_where(*written: Path) -> None:
    """Name the files that were written."""
    typer.echo(f"written to {', '.join(map(str, written))}")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _watch(progress: Progress) -> Watch:
    """A bar for each thing that is done, under its own name; one that is full goes away."""
    bars: dict[str, TaskID] = {}

    def watch(what: str, done: int, of: int) -> None:
        progress.start()  # not earlier: an error before there is anything to show needs no bar
        if what not in bars:
            bars[what] = progress.add_task(what, total=of)
        progress.update(bars[what], completed=done, total=of, visible=done < of)

    return watch
