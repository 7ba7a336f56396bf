"""``synopsis reproduce np-memory``: what every model keeps of a context, and what it costs."""

from pathlib import Path
from typing import Annotated

import typer

from synopsis.cli.reproduction import Models, Out, chosen, drawn, making, say_where

PAGE = Path("docs/tables/np-memory.md")


def np_memory(
    longest: Annotated[
        int, typer.Option(min=100, max=10**6, help="Points of the longest context.")
    ] = 10**6,
    patience: Annotated[
        float, typer.Option(min=0.01, metavar="SECONDS", help="CPU time that one call may take.")
    ] = 20.0,
    models: Models = None,
    out: Out = PAGE,
) -> None:
    """Time and memory of every model for contexts of 100 to a million points.

    The default takes a quarter of an hour.
    """
    with making(out) as watch:
        from synopsis.reproduction.np_memory import MODELS, markdown, measure

        names = chosen(models, list(MODELS))
        costs = measure(names, longest, patience, watch)
        command = f"synopsis reproduce np-memory --longest {longest} --patience {patience:g}"
        command += f" --models {','.join(names)}" if models else ""

        def pictures() -> list[Path]:
            from synopsis.reproduction.np_memory_pictures import draw

            return draw(costs, out)

        made = drawn(pictures)
        page = markdown(costs, command, [path.name for path in made], patience)
        out.write_text(page, encoding="utf-8")
    say_where(out, *made)
