"""``synopsis reproduce``: make the tables of the documentation again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from synopsis.tasks.oracle_table import OracleRow

BATCH_SIZE = 16
GP_ORACLE_PAGE = Path("docs/tables/gp-oracle.md")


def register(app: typer.Typer) -> None:
    """Add ``reproduce`` and its commands to the application."""
    reproduce = typer.Typer(
        help="Make the tables of the documentation again.", no_args_is_help=True
    )
    reproduce.callback()(lambda: None)  # a group even while it holds a single command
    reproduce.command("gp-oracle")(gp_oracle)
    app.add_typer(reproduce, name="reproduce")


def gp_oracle(
    batches: Annotated[int, typer.Option(min=2, help="Batches of 16 tasks per row.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Names the set of batches.")] = 0,
    out: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Markdown file to write.")
    ] = GP_ORACLE_PAGE,
) -> None:
    """Exact ceilings of the Gaussian-process task, beside the published ones."""
    from synopsis.tasks.oracle_table import PUBLISHED, markdown, oracle_table

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _progress() as progress:
            bar = progress.add_task("gp-oracle", total=batches * len(PUBLISHED))
            rows = oracle_table(batches, seed, BATCH_SIZE, lambda: progress.advance(bar))
        command = f"synopsis reproduce gp-oracle --batches {batches} --seed {seed}"
        out.write_text(markdown(rows, command, batches, BATCH_SIZE), encoding="utf-8")
    except OSError as error:
        Console(stderr=True).print(f"Error: {out}: {error.strerror}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    console = Console()
    console.print(_table(rows))
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _table(rows: Sequence["OracleRow"]) -> Table:
    from synopsis.tasks.oracle_table import METRICS, TITLES

    table = Table("kernel", "prior", *METRICS, title="nats per target (published below ours)")
    for row in rows:
        pairs = zip(row.ours, row.published, strict=True)
        cells = (f"{ours}\n[dim]{published}[/dim]" for ours, published in pairs)
        table.add_row(TITLES[row.kernel], row.prior, *cells)
    return table
