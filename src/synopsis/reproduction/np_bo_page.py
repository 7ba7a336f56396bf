"""The page of Bayesian optimisation: what was played, by whom, and what it has cost."""

from collections.abc import Sequence
from pathlib import Path

from synopsis.reproduction.contenders import RECIPE_IN_WORDS
from synopsis.reproduction.np_bo import Row, Settings, standard_error
from synopsis.reproduction.np_bo_grid import Played
from synopsis.reproduction.np_gp import KERNELS
from synopsis.reproduction.pages import (
    UNPUBLISHED,
    joined,
    made_by,
    number,
    plus_minus,
    seconds,
    table,
)
from synopsis.tasks.oracle_table import TITLES as KERNEL_TITLES

MARKS = (5, 10, 20, 50, 100)  # decisions after which regret is told
RULES = {True: "a place may be chosen again, as published", False: "no place is chosen twice"}


def markdown(
    grid: Sequence[Row],
    plane: Sequence[Row],
    settings: Settings,
    command: str,
    pictures: Sequence[Path],
) -> str:
    """The page.

    Args:
        grid: of one dimension; empty where it was left out.
        plane: of two; likewise.
        settings: what was asked for.
        command: that was typed.
        pictures: beside the page.
    """
    shown = [f"![{path.name}]({path.name})" for path in pictures]
    parts = [_HEAD, *shown]
    if grid:
        parts += [_GRID.format(functions=settings.functions, decisions=settings.decisions)]
        for kernel in KERNELS:
            for repeats, rule in RULES.items():
                parts += [f"### {KERNEL_TITLES[kernel]}: {rule}", _table(grid, (kernel, repeats))]
    if plane:
        parts += [_PLANE.format(tasks=settings.tasks, decisions=settings.plane_decisions)]
        names = dict.fromkeys(cell for row in plane for cell in row.played)
        for cell in names:
            parts += [f"### {cell[0]}", _table(plane, cell)]
    parts += [
        _COSTS.format(recipe=RECIPE_IN_WORDS),
        _costs([*grid, *plane]),
        _failures([*grid, *plane]),
    ]
    return joined([*parts, _SHORT, made_by(command)])


def _table(rows: Sequence[Row], cell: tuple[str, bool]) -> str:
    played = {row.title: row.played[cell] for row in rows if cell in row.played}
    last = max(found.regret.shape[1] - 1 for found in played.values())
    marks = sorted({*(mark for mark in MARKS if mark < last), last})
    head = ["", *(f"regret after {mark}" for mark in marks), "published", "CPU time of a decision"]
    return table(head, [_line(name, found, marks) for name, found in played.items()])


def _line(name: str, played: Played, marks: Sequence[int]) -> list[str]:
    mean, error = played.regret.mean(0), standard_error(played.regret)
    cells = [plus_minus(float(mean[mark]), float(error[mark]), 3) for mark in marks]
    time = seconds(played.seconds) if played.seconds > 1e-5 else "–"
    return [name, *cells, UNPUBLISHED, time]


def _costs(rows: Sequence[Row]) -> str:
    head = [
        "",
        "weights",
        "parameters",
        "steps",
        "CPU-hours",
        "bytes kept of a function in the end",
    ]
    lines = []
    for row in rows:
        if row.ledger is None:
            continue
        ledger, dimensions = row.ledger, 2 if _on_plane(row) else 1
        kept = [played.nbytes for played in row.played.values() if played.nbytes]
        steps = number(ledger.steps, 0)
        numbers = [number(ledger.parameters, 0), steps, number(ledger.cpu_hours, 2)]
        origin = f"{ledger.origin}, seed {ledger.seed}"
        name = f"{row.title}, {dimensions}-D"
        lines.append([name, origin, *numbers, number(kept[0], 0) if kept else "–"])
    return table(head, lines) if lines else ""


def _on_plane(row: Row) -> bool:
    return not any(kernel in KERNELS for kernel, _ in row.played)


def _failures(rows: Sequence[Row]) -> str:
    return "\n".join(f"- {row.title}: {row.failure}" for row in rows if row.failure)


_HEAD = """# Bayesian optimisation

Where a function should be looked at next, so that its least value is found soon, after the protocol of Nguyen & Grover,
"Transformer Neural Processes" (2022). *Regret* is the least value seen so far minus the least there
is, mean over functions ± one standard error; lower is better. Published figures were not found."""

_GRID = """## One dimension

{functions} functions of each kernel, drawn on 1,000 points of [−2, 2] by the law of the table np-gp, function i from
seed i; one observation at a random point, then {decisions} decisions by expected improvement over the least value so
far, wherever on the grid it is largest. Processes were trained on RBF functions only, and with three points of context
at least.

- *exact Gaussian process*: knows the kernel, its hyper-parameters, and that a place keeps its value.
- *refitted Gaussian process*: squared-exponential kernel, length-scale and variance of the largest likelihood within
  the ranges they were drawn from, found anew by scikit-learn for every function after every observation.
- *random search*: places drawn uniformly."""

_PLANE = """## Two dimensions

BoTorch's Ackley, DropWave and Michalewicz functions on the part of their domains that lies in [−2, 2]², mapped onto
that square. Random first points of each: {tasks}; then {decisions} decisions by BoTorch's upper confidence bound
(β = 0.1) and `optimize_acqf` with 50 restarts of 100 raw samples. Processes come in by
[`synopsis.adapters.botorch`](../bayesian-optimisation.md), their outputs standardised by the observations; they were
trained on two-dimensional RBF functions of 1 to 97 points of context (published: 30 to 97).

- *refitted Gaussian process*: BoTorch's `SingleTaskGP` with its defaults, fitted anew after every observation."""

_COSTS = """## What it took

Training, where it was done here: {recipe}."""

_SHORT = """- Values carry the observation noise of training (standard deviation 0.02), drawn once: a place gives
  the same value whenever it is asked. Neither a process nor the refitted Gaussian process knows this. They expect fresh
  noise, and with it a small improvement at the best place so far; where places may be chosen again they can stay there.
- Published are 100 functions or first points, 100 decisions, and training for 100,000 steps; TNP processes with 8
  heads.
- The CPU time of a decision is that of one function. In one dimension it is the time of predicting all 1,000 points of
  the grid, for 25 functions side by side."""
