"""``synopsis reproduce np-gp``: every model on one-dimensional Gaussian processes."""

from pathlib import Path
from typing import TYPE_CHECKING

from synopsis.cli.reproduction import (
    Batches,
    Budget,
    Models,
    Out,
    Runs,
    Seeds,
    Watch,
    chosen,
    drawn,
    making,
    say_where,
)

if TYPE_CHECKING:
    from synopsis.reproduction.np_gp import Settings
    from synopsis.reproduction.np_gp_page import Results

PAGE, RUNS = Path("docs/tables/np-gp.md"), Path("runs/np-gp")


def np_gp(
    budget: Budget = 20.0,
    seeds: Seeds = 1,
    models: Models = None,
    batches: Batches = 3000,
    out: Out = PAGE,
    runs: Runs = RUNS,
) -> None:
    """Every model on one-dimensional Gaussian processes, three kernels, beside the exact answer.

    It may be killed at any moment: typed again, it continues where it was.
    """
    with making(out) as watch:
        from synopsis.reproduction.np_gp import CONTENDERS, Settings
        from synopsis.reproduction.np_gp_page import markdown

        names = chosen(models, list(CONTENDERS))
        settings = Settings(60 * budget, seeds, batches, runs)
        results = _results(names, settings, watch)

        def pictures() -> list[Path]:
            from synopsis.reproduction.np_gp_pictures import draw

            return draw(results.rows, out)

        made = drawn(pictures)
        command = (
            f"synopsis reproduce np-gp --budget {budget:g} --seeds {seeds} --batches {batches}"
        )
        command += f" --models {','.join(names)}" if models else ""
        page = markdown(results, settings, command, [path.name for path in made])
        out.write_text(page, encoding="utf-8")
    say_where(out, *made)


def _results(names: list[str], settings: "Settings", watch: Watch) -> "Results":
    from synopsis.reproduction.costs import Cell, FreshProcesses
    from synopsis.reproduction.np_gp import exact, rows
    from synopsis.reproduction.np_gp_functions import exact_energy, whole_functions
    from synopsis.reproduction.np_gp_grid import extremes
    from synopsis.reproduction.np_gp_page import COST_POINTS, Results

    found = rows(names, settings, watch)
    if not any(row.processes for row in found):
        raise ValueError("; ".join(row.failure for row in found))
    known = exact(settings, watch)
    functions = whole_functions(found, settings, watch)
    costs = {}
    with FreshProcesses() as fresh:
        for row in found:
            if row.processes:
                costs[row.name] = fresh.measure(Cell(row.contender.process, COST_POINTS))
            watch("memory", len(costs), len(found))
    far = extremes(found)
    return Results(found, known, functions, exact_energy(settings), costs, far)
