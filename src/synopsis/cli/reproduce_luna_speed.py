"""``synopsis reproduce luna-speed``: training steps at the length of ListOps, and an endless stream."""

from pathlib import Path
from typing import Annotated

import typer

from synopsis.cli.reproduction import Models, Out, chosen, making, say_where

PAGE, RUNS = Path("docs/tables/luna-speed.md"), Path("runs/luna-speed")


def luna_speed(
    models: Models = None,
    length: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 2_000,
    batch: Annotated[int, typer.Option(min=1, help="Sequences of a step.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Of the processor.")] = 1,
    patience: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="CPU time that a step may take.")
    ] = 150.0,
    memory: Annotated[
        float, typer.Option(min=0.1, metavar="GIB", help="Memory that a step may ask for.")
    ] = 14.0,
    out: Out = PAGE,
    runs: Annotated[
        Path, typer.Option(file_okay=False, help="Folder where measurements are kept.")
    ] = RUNS,
) -> None:
    """Time and memory of a training step through a shared memory, ours and the published way; and a stream.

    Measurements are kept: typed again after an interruption, it continues where it was.
    """
    with making(out) as watch:
        from synopsis.reproduction.luna_speed import KINDS, Settings, rows, streams
        from synopsis.reproduction.luna_speed_page import markdown

        names = chosen(models, list(KINDS))
        limits = (threads, patience, memory)
        settings = Settings(names, length, batch, *limits, runs)
        command = f"synopsis reproduce luna-speed --length {length} --batch {batch}"
        command += f" --threads {threads}"
        command += f" --models {','.join(names)}" if models else ""
        page = markdown(rows(settings, watch), streams(settings, watch), settings, command)
        out.write_text(page, encoding="utf-8")
    say_where(out)
