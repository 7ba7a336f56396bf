"""Whole functions: how probable the targets of a task are together, and how good functions drawn at them are.

CMANP-AND predicts blocks of targets, each told of those before it. With one block it is the published procedure on this
task, whose tasks have fewer targets than a published block. With smaller blocks its joint density is the product of
the blocks' given the true values before them, and its draws are fed back: both are of one and the same process.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.processes.autoregressive import BlockAutoregressive
from synopsis.processes.base import Process
from synopsis.processes.joint import JointProcess
from synopsis.processes.tnp_autoregressive import TNPA
from synopsis.reproduction.contenders import Watch, remembered
from synopsis.reproduction.family import is_joint
from synopsis.reproduction.np_gp import BATCH_SIZE, KERNELS, SEED, Row, Settings, score
from synopsis.tasks import Batch
from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.tasks.kernels import KernelName
from synopsis.training.evaluation import ratio
from synopsis.training.seeds import derived_seed, own_randomness

SAMPLES = 16  # functions drawn for each task
DRAWN_BATCHES = 25  # on which draws are scored, at most
BLOCKS: dict[int | None, int] = {None: 10**9, 10: 200, 1: 50}  # targets together: most batches
_DIAGONAL = ("CMANP", "CMANP-32", "AnchoredCMANP")  # for comparison: what no correlations are worth


@dataclass(frozen=True)
class Functions:
    """What a model scores with so many targets at a time.

    Args:
        row: the model.
        target_block: targets predicted together; None for all of them.
        scores: of each kernel, as :meth:`synopsis.training.Evaluation.to_dict` writes them.
        energy: energy score of its draws on RBF tasks, value and standard error.
    """

    row: Row
    target_block: int | None
    scores: Mapping[KernelName, Mapping[str, Any]]
    energy: Mapping[str, Any]


def whole_functions(
    rows: Sequence[Row], settings: Settings, watch: Watch = lambda *_: None
) -> list[Functions]:
    """Scores of every joint model, block by block where it can, and of CMANPs for comparison; first seeds only."""
    wanted = [
        (row, block)
        for row in rows
        if row.processes and (is_joint(row.model) or row.name in _DIAGONAL)
        for block in (BLOCKS if isinstance(row.processes[0], BlockAutoregressive) else (None,))
    ]
    found = []
    for row, block in wanted:
        process, folder = row.processes[0], row.ledgers[0].folder
        batches = min(settings.batches_of(row.model), BLOCKS[block])
        scores = {k: score(process, folder, k, batches, block) for k in KERNELS}
        energy = _energy(process, folder, min(settings.batches, DRAWN_BATCHES), block)
        found.append(Functions(row, block, scores, energy))
        watch("whole functions", len(found), len(wanted))
    return found


def exact_energy(settings: Settings) -> dict[str, Any]:
    """The energy score of functions drawn by whoever knows the kernel: value and standard error."""
    batches = min(settings.batches, DRAWN_BATCHES)
    wanted = {"batches": batches, "samples": SAMPLES, "batch_size": BATCH_SIZE, "seed": SEED}
    return remembered(
        settings.runs / "exact", "energy", wanted, lambda: _mean_energy(None, batches, None)
    )


def energy_score(
    draws: Float[Tensor, "samples batch targets"], y: Float[Tensor, "batch targets"]
) -> Float[Tensor, " batch"]:
    """How far whole functions are from the true one, less how far they are from each other; lower is better.

    E‖F − y‖ − ½ E‖F − F′‖ over √targets, in the units of y; the expectation is lowest for the true distribution.

    Args:
        draws: functions at the targets, at least 2 for each task.
        y: the true values.

    Source: Gneiting and Raftery 2007, section 4.3, by the unbiased estimate over pairs.

    Example:
        >>> energy_score(torch.zeros(2, 1, 4), torch.ones(1, 4))
        tensor([1.])
    """
    samples, _, targets = draws.shape
    error = (draws - y).norm(dim=-1).mean(0)
    by_task = draws.transpose(0, 1)
    spread = torch.cdist(by_task, by_task).sum((-1, -2)) / (samples * (samples - 1))
    return (error - spread / 2) / targets**0.5


def _energy(process: Process, folder: Path, batches: int, block: int | None) -> dict[str, Any]:
    settings = {
        "process": process.fingerprint,
        "batches": batches,
        "batch_size": BATCH_SIZE,
        "samples": SAMPLES,
        "seed": SEED,
        "target_block": block or 0,
    }
    return remembered(folder, "energy", settings, lambda: _mean_energy(process, batches, block))


def _mean_energy(process: Process | None, batches: int, block: int | None) -> dict[str, Any]:
    """Mean over batches of RBF tasks, with its standard error; of the exact posterior without a process."""
    task = GaussianProcessTask(oracle=False)
    means = []
    with torch.no_grad(), own_randomness(derived_seed(SEED, "functions")):
        for index in range(batches):
            batch = task.sample(BATCH_SIZE, batch_generator(SEED, index))
            draws = _exact_draws(task, index) if process is None else draw(process, batch, block)
            means.append(energy_score(draws.double(), batch.yt[..., 0].double()).mean().item())
    return vars(ratio(means, [1.0] * batches))


def draw(
    process: Process, batch: Batch, block: int | None = None, samples: int = SAMPLES
) -> Float[Tensor, "samples batch targets"]:
    """Functions at the targets of a batch, from torch's global generator.

    Args:
        process: joint, or else every target is drawn by itself.
        batch: contexts and target inputs.
        block: targets that a block-autoregressive process draws together; None for all of them.
        samples: functions for each task.
    """
    if isinstance(process, TNPA):
        kept = process.update(process.init((len(batch.xc),)), batch.xc, batch.yc)
        return process.sample(kept, batch.xt, samples)[..., 0]
    if isinstance(process, BlockAutoregressive):
        state = process.update(process.init((len(batch.xc),)), batch.xc, batch.yc)
        together = batch.xt.shape[1] if block is None else block
        return process.sample(state, batch.xt, together, samples=samples)[..., 0]
    if isinstance(process, JointProcess):
        return process.joint(batch).sample((samples,))[..., 0]
    return process(batch.xc, batch.yc, batch.xt).sample((samples,))[..., 0]


def _exact_draws(task: GaussianProcessTask, index: int) -> Float[Tensor, "samples batch targets"]:
    """Functions from the exact posterior: with the factor L of all points, L_tc ε_c + L_tt z."""
    known = task.draw(BATCH_SIZE, batch_generator(SEED, index))
    n = known.context
    white = torch.linalg.solve_triangular(known.factor, known.y[:, :, None], upper=False)
    mean = known.factor[:, n:, :n] @ white[:, :n]
    normals = torch.randn(SAMPLES, *known.y[:, n:].shape, 1, dtype=known.y.dtype)
    return (mean + known.factor[:, n:, n:] @ normals)[..., 0]
