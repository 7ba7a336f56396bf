"""``synopsis reproduce np-ablation``: what each change to the published training of CMANP brings."""

from pathlib import Path
from typing import Annotated

import typer

from synopsis.cli.reproduction import (
    Batches,
    Budget,
    Models,
    Out,
    Runs,
    Seeds,
    chosen,
    making,
    say_where,
)

PAGE, RUNS = Path("docs/tables/np-ablation.md"), Path("runs/np-ablation")


def np_ablation(
    budget: Budget = 20.0,
    seeds: Seeds = 1,
    models: Models = None,
    batches: Batches = 1000,
    compiling: Annotated[
        bool, typer.Option(help="Measure a compiled step; it needs a C++ compiler.")
    ] = True,
    out: Out = PAGE,
    runs: Runs = RUNS,
) -> None:
    """What each change to the published training of CMANP brings, at equal CPU time.

    It may be killed at any moment: typed again, it continues where it was.
    """
    with making(out) as watch:
        from synopsis.reproduction.np_ablation import LADDER, climb, with_compiling
        from synopsis.reproduction.np_ablation_page import markdown
        from synopsis.reproduction.np_gp import Settings

        names = chosen(models, list(LADDER))
        settings = Settings(60 * budget, seeds, batches, runs)
        results = climb(names, settings, watch)
        if not any(row.processes for row in results.rows.values()):
            raise ValueError("; ".join(row.failure for row in results.rows.values()))
        if compiling:
            results = with_compiling(results, watch)
        command = f"synopsis reproduce np-ablation --budget {budget:g} --seeds {seeds}"
        command += f" --batches {batches}" + ("" if compiling else " --no-compiling")
        command += f" --models {','.join(names)}" if models else ""
        out.write_text(markdown(results, settings, command), encoding="utf-8")
    say_where(out)
