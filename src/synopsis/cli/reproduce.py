"""``synopsis reproduce``: make the tables of the documentation again.

``COMMANDS`` is the one place where commands that train or measure models are registered: a line is the command's name
and where its function stands, ``module:function``. Such a module imports torch, and whatever imports torch, inside its
functions only, so that ``--help`` is instant; what the commands share is in :mod:`synopsis.cli.reproduction` (options
``Budget``, ``Seeds``, ``Models``, ``Batches``, ``Out``, ``Runs``; ``making``, ``chosen``, ``drawn``, ``say_where``).
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from synopsis.attention.measurement import Cell
    from synopsis.attention.memory_table import Figures
    from synopsis.tasks.oracle_table import OracleRow

BATCH_SIZE = 16
GP_ORACLE_PAGE = Path("docs/tables/gp-oracle.md")
ATTENTION_MEMORY_PAGE = Path("docs/tables/attention-memory.md")

COMMANDS = {
    "np-gp": "synopsis.cli.reproduce_np_gp:np_gp",
    "np-memory": "synopsis.cli.reproduce_np_memory:np_memory",
    "np-images": "synopsis.cli.reproduce_np_images:np_images",
    "np-bandit": "synopsis.cli.reproduce_np_bandit:np_bandit",
    "np-bo": "synopsis.cli.reproduce_np_bo:np_bo",
    "np-ablation": "synopsis.cli.reproduce_np_ablation:np_ablation",
    "luna-memory": "synopsis.cli.reproduce_luna_memory:luna_memory",
    "luna-lra": "synopsis.cli.reproduce_luna_lra:luna_lra",
    "luna-speed": "synopsis.cli.reproduce_luna_speed:luna_speed",
}


def register(app: typer.Typer) -> None:
    """Add ``reproduce`` and its commands to the application."""
    reproduce = typer.Typer(
        help="Make the tables of the documentation again.", no_args_is_help=True
    )
    reproduce.command("gp-oracle")(gp_oracle)
    reproduce.command("attention-memory")(attention_memory)
    for name, place in COMMANDS.items():
        module, _, function = place.partition(":")
        reproduce.command(name)(getattr(import_module(module), function))
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
        with _progress(MofNCompleteColumn()) as progress:
            bar = progress.add_task("gp-oracle", total=batches * len(PUBLISHED))
            rows = oracle_table(batches, seed, BATCH_SIZE, lambda: progress.advance(bar))
        command = f"synopsis reproduce gp-oracle --batches {batches} --seed {seed}"
        out.write_text(markdown(rows, command, batches, BATCH_SIZE), encoding="utf-8")
    except OSError as error:
        raise _failed(out, error) from error
    Console().print(_table(rows))
    _say_where(out)


def attention_memory(
    largest: Annotated[
        int,
        typer.Option(
            min=256, max=2**20, help="Longest sequence; lengths are 256 times powers of 4."
        ),
    ] = 16384,
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls of each kind.")] = 3,
    out: Annotated[
        Path, typer.Option(dir_okay=False, writable=True, help="Markdown file to write.")
    ] = ATTENTION_MEMORY_PAGE,
) -> None:
    """Time and memory of attention, the textbook's, torch's and ours, beside the paper's figures.

    65,536 takes about a quarter of an hour, the default a few minutes.
    """
    from synopsis.attention.memory_table import cells, cost, markdown, measure

    planned = cells(largest)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _check_writable(out.parent)
        with _progress(TaskProgressColumn()) as progress:
            bar = progress.add_task("attention-memory", total=sum(map(cost, planned)))

            def watch(cell: "Cell", done: bool) -> None:
                progress.update(bar, advance=cost(cell) if done else 0, description=_cell(cell))

            figures = measure(planned, repeats, watch)
        command = f"synopsis reproduce attention-memory --largest {largest} --repeats {repeats}"
        pictures = _pictures(figures, out)
        names = [path.name for path in pictures]
        out.write_text(markdown(figures, command, names, _versions()), encoding="utf-8")
    except OSError as error:
        raise _failed(out, error) from error
    _say_where(out, *pictures)


def _cell(cell: "Cell") -> str:
    what = "forward and backward" if cell.differentiate else "forward"
    return f"{cell.method} {cell.queries:,} × {cell.keys:,} {cell.dtype} {what}"


def _check_writable(folder: Path) -> None:
    """What cannot be written is found before minutes of work."""
    with TemporaryFile(dir=folder):
        pass


def _pictures(figures: "Figures", out: Path) -> list[Path]:
    try:
        from synopsis.attention.memory_pictures import draw
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("matplotlib"):
            raise
        Console(stderr=True).print("no pictures: they need matplotlib, the extra 'plot'")
        return []
    return draw(figures, out)


def _versions() -> str:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch", "jax"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {platform.python_version()}"])


def _failed(out: Path, error: OSError) -> typer.Exit:
    message = f"Error: {out}: {error.strerror or error}"
    Console(stderr=True).print(message, markup=False, soft_wrap=True)
    return typer.Exit(2)


def _say_where(*written: Path) -> None:
    names = ", ".join(map(str, written))
    Console().print(f"written to {names}", markup=False, highlight=False, soft_wrap=True)


def _progress(count: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        count,
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
