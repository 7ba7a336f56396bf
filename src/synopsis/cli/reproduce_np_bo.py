"""``synopsis reproduce np-bo``: Bayesian optimisation with processes as surrogates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synopsis.cli.reproduction import Budget, Out, Runs, chosen, drawn, making, say_where

if TYPE_CHECKING:
    from synopsis.reproduction.np_bo import Settings

PAGE, RUNS, WEIGHTS = Path("docs/tables/np-bo.md"), Path("runs/np-bo"), Path("runs/np-gp")


def np_bo(  # noqa: PLR0913  (every argument is an option of the command)
    budget: Budget = 20.0,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C", help="Which models in one dimension, by name.", show_default="five"
        ),
    ] = None,
    plane_models: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C", help="Which models in two dimensions.", show_default="CMANP-32"
        ),
    ] = None,
    functions: Annotated[
        int, typer.Option(min=0, help="Functions of each kernel; 0 leaves one dimension out.")
    ] = 100,
    decisions: Annotated[int, typer.Option(min=1, help="For each of these functions.")] = 50,
    tasks: Annotated[
        int,
        typer.Option(
            min=0, help="First points of each test function; 0 leaves two dimensions out."
        ),
    ] = 2,
    plane_decisions: Annotated[int, typer.Option(min=1, help="For each of these tasks.")] = 40,
    out: Out = PAGE,
    runs: Runs = RUNS,
    weights: Annotated[
        Path,
        typer.Option(file_okay=False, help="Folder of the runs of np-gp, whose models play."),
    ] = WEIGHTS,
) -> None:
    """Bayesian optimisation with processes as surrogates: 1-D on a grid, 2-D through BoTorch.

    Besides training, one dimension takes about three quarters of an hour, two about ten minutes; published are 100
    decisions, and 100 tasks, which would take a day.
    """
    with making(out) as watch:
        from synopsis.reproduction.np_bo import (
            MODELS,
            ON_PLANE,
            PLANE_MODELS,
            Settings,
            grid_rows,
            plane_rows,
        )
        from synopsis.reproduction.np_bo_page import markdown
        from synopsis.reproduction.np_gp import CONTENDERS

        settings = Settings(
            models=list(MODELS) if models is None else chosen(models, list(CONTENDERS)),
            plane_models=(
                list(PLANE_MODELS) if plane_models is None else chosen(plane_models, list(ON_PLANE))
            ),
            budget_seconds=60 * budget,
            functions=functions,
            decisions=decisions,
            tasks=tasks,
            plane_decisions=plane_decisions,
            weights=weights,
            runs=runs,
        )
        grid, plane = grid_rows(settings, watch), plane_rows(settings, watch)

        def pictures() -> list[Path]:
            from synopsis.reproduction.np_bo_pictures import draw

            return draw(grid, plane, out)

        made = drawn(pictures)
        page = markdown(grid, plane, settings, _command(settings, budget), made)
        out.write_text(page, encoding="utf-8")
    say_where(out, *made)


def _command(settings: "Settings", budget: float) -> str:
    return (
        f"synopsis reproduce np-bo --budget {budget:g} --functions {settings.functions} "
        f"--decisions {settings.decisions} --tasks {settings.tasks} "
        f"--plane-decisions {settings.plane_decisions} --models {','.join(settings.models)} "
        f"--plane-models {','.join(settings.plane_models)}"
    )
