"""``synopsis stream``: predict every row of a table before learning from it."""

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from synopsis.cli.errors import one_line_errors

_INPUTS = "Inputs"
_RESULTS = "Results"
_RESUMING = "Going on from a saved state"


def register(app: typer.Typer) -> None:
    """Add ``stream`` to the application."""
    app.command("stream")(stream)


def stream(  # noqa: PLR0913  (every argument is an option of the command)
    source: Annotated[
        str,
        typer.Argument(
            help="CSV, TSV, JSON Lines or Parquet file (.gz too), or - for standard input."
        ),
    ],
    y: Annotated[
        str | None,
        typer.Option("--y", metavar="COLUMN", rich_help_panel=_INPUTS, help="Column to predict."),
    ] = None,
    x: Annotated[
        list[str] | None,
        typer.Option(
            "--x",
            metavar="COLUMN[:PART]",
            rich_help_panel=_INPUTS,
            help="Input, or several with commas: a column of numbers; date:year, date:week or date:day "
            "for where in it a date falls; date:trend for the years since the first row.",
        ),
    ] = None,
    lags: Annotated[
        str | None,
        typer.Option(
            metavar="1,2,…", rich_help_panel=_INPUTS, help="Rows back whose y is an input too."
        ),
    ] = None,
    process: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FOLDER",
            help="Process that predicts.",
            show_default="regression-8d",
        ),
    ] = None,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Rows predicted at a time, before any of them is learned from.",
            show_default="1",
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(
            min=2,
            rich_help_panel=_INPUTS,
            help="First rows, which settle the scaling and are not scored.",
            show_default="32",
        ),
    ] = None,
    scale: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_INPUTS,
            help="Scaling of another run, instead of a warm-up.",
        ),
    ] = None,
    trend_from: Annotated[
        str | None,
        typer.Option(
            metavar="DATE",
            rich_help_panel=_INPUTS,
            help="Where date:trend begins; by default at the first row.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="A missing value is an error; otherwise skipped and counted."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=0, help="Most rows to read.")] = None,
    predictions: Annotated[
        Path, typer.Option(metavar="FILE", rich_help_panel=_RESULTS, help="CSV of all forecasts.")
    ] = Path("predictions.csv"),
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", rich_help_panel=_RESULTS, help="Folder for metrics.json and pictures."
        ),
    ] = None,
    save_state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_RESULTS, help="File to save the state in."),
    ] = None,
    save_every: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=_RESULTS, help="Rows between two saves of the state."),
    ] = 1000,
    save_scale: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=_RESULTS, help="JSON file to save the scaling in."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_RESUMING, help="Saved state to go on from."),
    ] = None,
    skip_seen: Annotated[
        bool,
        typer.Option(
            "--skip-seen",
            rich_help_panel=_RESUMING,
            help="The source begins where the stream began: pass over the rows that the state has seen.",
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads to compute with.")] = 1,
) -> None:
    """Predict each row of a stream before learning from it, in memory that never grows.

    Beside it run three baselines: the last value, the running mean and online Bayesian linear regression.

    Example: synopsis stream examples/seattle-weather.csv --y temp_max --x date:year --lags 1,2 --report report/
    """
    from synopsis.cli.display import StreamDisplay

    display = StreamDisplay(quiet, limit)
    with one_line_errors(), display:
        import torch

        from synopsis.serving.opening import Wanted, begin_stream, resume_stream
        from synopsis.serving.rows import open_table
        from synopsis.serving.run import Outputs, Run

        torch.set_num_threads(threads)
        wanted = Wanted(process, y, _split(x), _numbers(lags), horizon, warmup, trend_from)
        with open_table(source) as table:
            if state is None:
                opened = begin_stream(wanted, table.columns, scale)
            else:
                _refuse(scale, "--scale", state)
                opened = resume_stream(wanted, table.columns, state)
            opened.strict = strict
            records = table.records(opened.encoder.columns)
            seen = opened.progressive.rows if skip_seen else 0
            run = Run(
                opened, Outputs(predictions, save_state, save_scale, report, save_every), display
            )
            try:
                run.over(islice(records, seen, None if limit is None else seen + limit))
            finally:
                display.finish(run)
    if run.signal is not None:
        raise typer.Exit(128 + run.signal)


def _refuse(option: object, name: str, state: Path) -> None:
    if option is not None:
        raise ValueError(f"{name} cannot go with --state: {state} holds its own scaling")


def _split(values: list[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ValueError(
            f"--lags takes whole numbers with commas, such as 1,2; not {text!r}"
        ) from None
