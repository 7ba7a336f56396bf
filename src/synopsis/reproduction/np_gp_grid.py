"""Functions over a whole grid, far more targets than a task has: what a reader of the pictures sees.

Drawn block after block from one end, a function is told its own values twenty times over, the hardest there is for a
process whose uncertainty scales with what it is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.processes.autoregressive import BlockAutoregressive
from synopsis.reproduction.contenders import remembered
from synopsis.reproduction.np_gp import Row
from synopsis.reproduction.np_gp_functions import draw
from synopsis.tasks import Batch
from synopsis.tasks.kernels import Hyperparameters, covariance
from synopsis.training.seeds import own_randomness

CONTEXTS = (4, 10, 25)  # points of the three tasks
SEED = 4
BLOCK = 8  # neighbours of the grid that are drawn together
FUNCTIONS = 64
_LENGTH, _SCALE, _NOISE = 0.35, 0.8, 0.02  # of their kernel, and the task's noise
_GRID = 161


@dataclass(frozen=True)
class GridTask:
    """One task: its context, the grid as targets, and what whoever knows the kernel says there.

    Args:
        context: a batch of one.
        mean: of an observation.
        stddev: of an observation.
        factor: triangle L with L Lᵀ the covariance of observations on the grid.
    """

    context: Batch
    mean: Float[Tensor, " grid"]
    stddev: Float[Tensor, " grid"]
    factor: Float[Tensor, "grid grid"]


@dataclass(frozen=True)
class Extremes:
    """How far functions go that are drawn along the grid.

    Args:
        row: the model; None for whoever knows the kernel.
        block: neighbours drawn together; None for the whole grid.
        largest: of every context, the median over functions of the largest distance from 0.
    """

    row: Row | None
    block: int | None
    largest: tuple[float, ...]


def grid_task(points: int) -> GridTask:
    """A task with the RBF kernel; noisy values, as models predict them."""
    generator = torch.Generator().manual_seed(SEED)
    x = 4 * torch.rand(1, points, generator=generator, dtype=torch.float64) - 2
    grid = torch.linspace(-2, 2, _GRID, dtype=torch.float64)[None]
    length, scale = (torch.full((1,), v, dtype=torch.float64) for v in (_LENGTH, _SCALE))
    both = covariance("rbf", torch.cat([x, grid], dim=1), Hyperparameters(length, scale, length))[0]
    both = both + _NOISE**2 * torch.eye(len(both), dtype=torch.float64)
    factor = torch.linalg.cholesky(both)
    normals = torch.randn(points, generator=generator, dtype=torch.float64)
    yc = factor[:points, :points] @ normals
    mean, rest = factor[points:, :points] @ normals, factor[points:, points:]
    xc, yc, xt = (values.float()[..., None] for values in (x, yc[None], grid))
    return GridTask(
        Batch(xc, yc, xt, torch.zeros_like(xt)), mean, rest.square().sum(-1).sqrt(), rest
    )


def extremes(rows: Sequence[Row]) -> list[Extremes]:
    """Of the exact posterior, and of every block-autoregressive model, on the whole grid at once and in blocks."""
    tasks = [grid_task(points) for points in CONTEXTS]
    found = [Extremes(None, None, tuple(_exact(task) for task in tasks))]
    for row in rows:
        process = row.processes[0] if row.processes else None
        if not isinstance(process, BlockAutoregressive):
            continue
        for block in (None, BLOCK):
            asked = {"process": process.fingerprint, "block": block or 0, "functions": FUNCTIONS}
            compute = partial(_drawn, process, tasks, block)
            values = remembered(row.ledgers[0].folder, "extremes", asked, compute)
            found.append(Extremes(row, block, tuple(values["largest"])))
    return found


def _exact(task: GridTask) -> float:
    generator = torch.Generator().manual_seed(SEED)
    normals = torch.randn(_GRID, FUNCTIONS, generator=generator, dtype=torch.float64)
    return _largest((task.mean[:, None] + task.factor @ normals).mT)


def _drawn(
    process: BlockAutoregressive, tasks: Sequence[GridTask], block: int | None
) -> Mapping[str, Any]:
    largest = []
    for task in tasks:
        with torch.no_grad(), own_randomness(SEED):
            functions = draw(process, task.context, block, FUNCTIONS)
        largest.append(_largest(functions[:, 0]))
    return {"largest": largest}


def _largest(functions: Float[Tensor, "functions grid"]) -> float:
    return functions.abs().amax(-1).median().item()


__all__ = [
    "BLOCK",
    "CONTEXTS",
    "FUNCTIONS",
    "SEED",
    "Extremes",
    "GridTask",
    "extremes",
    "grid_task",
]
