"""``synopsis reproduce luna-lra``: short trainings on the tasks of the Long Range Arena."""

from pathlib import Path
from typing import Annotated

import typer

from synopsis.cli.reproduction import Out, Runs, Seeds, chosen, drawn, making, say_where

PAGE, RUNS = Path("docs/tables/luna-lra.md"), Path("runs/luna-lra")


def luna_lra(
    tasks: Annotated[
        str,
        typer.Option(
            metavar="A,B,C", help="Which of pathfinder, image, text and retrieval, by name."
        ),
    ] = "pathfinder,image",
    steps: Annotated[int, typer.Option(min=1, help="Steps of every training.")] = 2_000,
    layers: Annotated[int, typer.Option(min=1, help="Layers of every model.")] = 2,
    seeds: Seeds = 1,
    jobs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Trainings at the same time, each with one thread; 0 writes the page of what there is.",
        ),
    ] = 2,
    original: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=FOLDER", help="Original files of a task, instead of a stand-in."
        ),
    ] = None,
    out: Out = PAGE,
    runs: Runs = RUNS,
) -> None:
    """The Transformer, Luna and ConvLuna on tasks of the Long Range Arena, the first few thousand steps.

    It may be killed at any moment: typed again, it continues where it was.
    """
    with making(out) as watch:
        from synopsis.reproduction.luna_lra import ARENAS, Settings, results
        from synopsis.reproduction.luna_lra_page import markdown

        names = chosen(tasks, list(ARENAS))
        folders = _originals(original or [], names)
        settings = Settings(names, steps, layers, seeds, jobs, runs, folders)
        found = results(settings, watch)

        def pictures() -> list[Path]:
            from synopsis.reproduction.luna_lra_pictures import draw

            return draw(found, out)

        made = drawn(pictures)
        command = f"synopsis reproduce luna-lra --tasks {','.join(names)} --steps {steps}"
        command += f" --layers {layers} --seeds {seeds}"
        command += "".join(f" --original {name}=…" for name in folders)
        page = markdown(found, settings, command, [path.name for path in made])
        out.write_text(page, encoding="utf-8")
    say_where(out, *made)


def _originals(given: list[str], names: list[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or name not in names:
            raise ValueError(f"--original {text!r}: must be TASK=FOLDER, of {', '.join(names)}")
        found[name] = folder
    return found
