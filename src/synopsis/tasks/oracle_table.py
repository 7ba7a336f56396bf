"""How well anyone could do on the Gaussian-process task: the table of its exact ceilings.

Every figure is a mean over batches of a per-batch mean, the metric of the published tables: a
batch of three targets weighs as much as one of forty-six.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.tasks.fixed_batches import batch_generator
from synopsis.tasks.gaussian_process import Draw, GaussianProcessTask, PriorName
from synopsis.tasks.kernels import KernelName
from synopsis.tasks.oracle import exact_oracle, normal_log_density

STDDEV_FLOOR = 0.1  # the smallest standard deviation a conditional neural process can predict
METRICS = ("diagonal", "joint", "floored", "prior only")
TITLES = {"rbf": "RBF", "matern52": "Matérn-5/2", "periodic": "periodic"}


@dataclass(frozen=True)
class Estimate:
    """A mean over batches and its standard error, nats per target; the error None if not given."""

    mean: float
    error: float | None = None

    def __str__(self) -> str:
        mean = f"{self.mean:.3f}".replace("-", "−")
        return mean if self.error is None else f"{mean} ± {self.error:.3f}"


@dataclass(frozen=True)
class OracleRow:
    """The ceilings of one kernel under one prior of the length-scale, ours beside published ones.

    Args:
        kernel: name of the kernel.
        prior: name of the length-scale's prior.
        ours: one estimate per metric, in the order of ``METRICS``.
        published: the same from an independent implementation.
    """

    kernel: KernelName
    prior: PriorName
    ours: tuple[Estimate, ...]
    published: tuple[Estimate, ...]


def _row(*means: float, errors: tuple[float, float]) -> tuple[Estimate, ...]:
    return tuple(map(Estimate, means, (*errors, None, None)))


# Computed with the generators of the released code of the CMANP paper (arXiv 2305.14567), batches
# of 16: 6,000 of them for the prior "code" and 3,000 for "text".
PUBLISHED: dict[tuple[KernelName, PriorName], tuple[Estimate, ...]] = {
    ("rbf", "code"): _row(1.519, 1.811, 0.958, -0.678, errors=(0.008, 0.005)),
    ("matern52", "code"): _row(1.113, 1.386, 0.754, -0.678, errors=(0.008, 0.005)),
    ("periodic", "code"): _row(1.171, 1.483, 0.754, -0.678, errors=(0.009, 0.006)),
    ("rbf", "text"): _row(2.082, 2.258, 1.252, -0.678, errors=(0.008, 0.003)),
    ("matern52", "text"): _row(1.780, 2.007, 1.147, -0.678, errors=(0.010, 0.005)),
}


def batch_metrics(draw: Draw, noise: float) -> Float[Tensor, " metrics"]:
    """The metrics of one batch, in the order of ``METRICS``, nats per target.

    Args:
        draw: the batch with all that is known of it.
        noise: standard deviation of its observation noise.
    """
    oracle = exact_oracle(draw.factor, draw.y, draw.context)
    y = draw.y[:, draw.context :]
    floored = normal_log_density(y, oracle.mean, oracle.stddev.clamp(min=STDDEV_FLOOR))
    prior_stddev = (draw.hyper.scale.square() + noise**2).sqrt()[:, None]
    prior = normal_log_density(y, torch.zeros_like(y), prior_stddev)
    per_task = (oracle.diagonal.mean(-1), oracle.joint / y.shape[1], floored.mean(-1))
    return torch.stack([*per_task, prior.mean(-1)]).mean(dim=-1)


def oracle_row(
    task: GaussianProcessTask,
    batches: int,
    batch_size: int = 16,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Estimate, ...]:
    """Estimate every metric over ``batches`` fixed batches, those of ``evaluation_batches``.

    Args:
        task: without Student-t noise, for which there is no exact oracle.
        batches: how many, 2 or more.
        batch_size: tasks per batch.
        seed: names the set of batches.
        advance: called after each batch.

    Returns:
        One estimate per metric, in the order of ``METRICS``.

    Raises:
        ValueError: too few batches for a standard error, or a task without an exact oracle.

    Example:
        >>> [str(estimate) for estimate in oracle_row(GaussianProcessTask(), batches=2)][3][0]
        '−'
    """
    if batches < 2:
        raise ValueError(f"batches is {batches}; a standard error needs 2 or more")
    if task.student_t is not None:
        raise ValueError(f"student_t is {task.student_t}; only None has an exact oracle")
    rows = []
    for index in range(batches):
        draw = task.draw(batch_size, batch_generator(seed, index))
        rows.append(batch_metrics(draw, task.noise))
        advance()
    values = torch.stack(rows)
    errors = values.std(dim=0) / batches**0.5
    return tuple(map(Estimate, values.mean(dim=0).tolist(), errors.tolist()))


def oracle_table(
    batches: int, seed: int = 0, batch_size: int = 16, advance: Callable[[], None] = lambda: None
) -> list[OracleRow]:
    """Estimate every row that has published values; ``advance`` is called after each batch."""
    rows = []
    for (kernel, prior), published in PUBLISHED.items():
        task = GaussianProcessTask(kernel=kernel, prior=prior, dtype="float64")
        ours = oracle_row(task, batches, batch_size, seed, advance)
        rows.append(OracleRow(kernel, prior, ours, published))
    return rows


def markdown(rows: Iterable[OracleRow], command: str, batches: int, batch_size: int) -> str:
    """The table as a page of Markdown, with the command that writes it."""
    head = ["kernel", "prior of ℓ"]
    for metric in METRICS:
        head += [metric, "published"]
    lines = [head, ["---"] * len(head), *(_cells(row) for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return _PAGE.format(table=table, command=command, batches=batches, batch_size=batch_size)


def _cells(row: OracleRow) -> list[str]:
    interval = {"code": "[0.1, 0.6)", "text": "[0.6, 1.0)"}[row.prior]
    cells = [TITLES[row.kernel], f"{row.prior}, {interval}"]
    for ours, published in zip(row.ours, row.published, strict=True):
        cells += [str(ours), str(published)]
    return cells


_PAGE = """# The ceiling of the Gaussian-process task

What whoever knows the kernel and its hyper-parameters scores on the one-dimensional
Gaussian-process task; no model can do better on average. Nats per target; mean over batches of the
mean over a batch's tasks and targets, ± one standard error.

{table}

- *diagonal*: each target by itself, given the context; the ceiling of models that factorise.
- *joint*: all targets together, given the context; the ceiling of models with correlated targets.
- *floored*: the diagonal prediction with standard deviations of at least 0.1, as in the family of
  conditional neural processes; no score above 1.384 is possible there.
- *prior only*: each target by itself, with no context.
- *published*: the same metrics from the generators of the released code of the CMANP paper,
  6,000 batches of 16 for the prior "code" and 3,000 for "text".

Ours: {batches:,} batches of {batch_size} per row, computed in float64. All rows are drawn from the
same random numbers, so they lie above or below the long-run values together. The command:

    {command}
"""
