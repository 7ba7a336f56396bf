"""``synopsis reproduce luna-memory``: what goes wrong in a shared memory, on ListOps."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from synopsis.cli.reproduction import Out, Runs, Seeds, drawn, making, say_where

PAGE, RUNS = Path("docs/tables/luna-memory.md"), Path("runs/luna-memory")

Jobs = Annotated[int, typer.Option(min=1, help="Trainings at the same time, each with one thread.")]


def luna_memory(
    part: Annotated[
        Literal["main", "ablation", "both", "none"],
        typer.Option(help="What is trained; what is trained already stands in the page anyway."),
    ] = "both",
    main_steps: Annotated[
        int, typer.Option(min=1, help="Steps of Luna, ConvLuna and the Transformer.")
    ] = 12_000,
    ablation_steps: Annotated[
        int, typer.Option(min=1, help="Steps of each of the 36 trainings of the ablation.")
    ] = 1_000,
    seeds: Seeds = 2,
    jobs: Jobs = 2,
    out: Out = PAGE,
    runs: Runs = RUNS,
) -> None:
    """Luna, ConvLuna and the Transformer on ListOps, and what filter, temperature and cells each do.

    It may be killed at any moment: typed again, it continues where it was; with --part none it writes the page of what
    there is.
    """
    with making(out) as watch:
        from synopsis.reproduction.luna_memory import Settings, results
        from synopsis.reproduction.luna_memory_page import markdown

        settings = Settings(part, main_steps, ablation_steps, seeds, jobs, runs)
        found = results(settings, watch)

        def pictures() -> list[Path]:
            from synopsis.reproduction.luna_memory_pictures import draw

            return draw(found, out)

        made = drawn(pictures)
        command = f"synopsis reproduce luna-memory --main-steps {main_steps}"
        command += f" --ablation-steps {ablation_steps} --seeds {seeds} --jobs {jobs}"
        page = markdown(found, settings, command, [path.name for path in made])
        out.write_text(page, encoding="utf-8")
    say_where(out, *made)
