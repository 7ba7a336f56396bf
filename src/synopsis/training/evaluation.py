"""How good a process is on a task: log-likelihood, coverage, and the distance to the exact answer."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.processes.base import Process
from synopsis.tasks import Batch, Task
from synopsis.tasks.gaussian_process import evaluation_batches
from synopsis.training.seeds import derived_seed, own_randomness

COVERAGES = (0.5, 0.9)


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error; the error is NaN for a single batch."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class Evaluation:
    """What a process scores on a task.

    Every batch has its own numbers of context and target points: the batch mean, which the
    literature tabulates, weighs a batch of 3 targets like one of 46; the pooled mean weighs
    targets equally. Batches are independent, targets within one are not, so standard errors
    are taken over batches.

    Args:
        log_likelihood: of the targets, nats per target, batch mean.
        pooled_log_likelihood: the same over all targets.
        coverage: share of targets inside the central interval, by the interval's probability,
            over all targets.
        oracle: exact log-density of the targets, batch mean, where every batch has one.
        oracle_gap: oracle minus log-likelihood, paired by target, batch mean.
        batches: how many there were.
        targets: how many there were in all batches together.
    """

    log_likelihood: Estimate
    pooled_log_likelihood: Estimate
    coverage: Mapping[float, Estimate]
    oracle: Estimate | None
    oracle_gap: Estimate | None
    batches: int
    targets: int

    def to_dict(self) -> dict[str, object]:
        """For JSON: an estimate is ``{"value": …, "standard_error": …}``."""

        def plain(estimate: Estimate | None) -> dict[str, float] | None:
            return None if estimate is None else dict(vars(estimate))

        return {
            "log_likelihood": plain(self.log_likelihood),
            "pooled_log_likelihood": plain(self.pooled_log_likelihood),
            "coverage": {f"{level:g}": plain(e) for level, e in self.coverage.items()},
            "oracle": plain(self.oracle),
            "oracle_gap": plain(self.oracle_gap),
            "batches": self.batches,
            "targets": self.targets,
        }


def evaluate(process: Process, task: Task, batches: int, batch_size: int, seed: int) -> Evaluation:
    """Measure a process on freshly drawn tasks, the same ones for every process.

    Args:
        process: measured in evaluation mode, on its own device; left as it was.
        task: where the batches come from.
        batches: how many, at least 1.
        batch_size: tasks per batch.
        seed: which tasks are drawn, and what else is random.

    Returns:
        The scores with their standard errors.

    Raises:
        ValueError: for no batches, or a task of other dimensions than the process.

    Source: metrics 1 and 4 of Feng et al. 2024's code (``tar_ll``, mean of the means per batch).
    """
    if batches < 1:
        raise ValueError(f"batches = {batches}; an evaluation needs at least 1")
    check_dimensions(process, task)
    held = chain(process.parameters(), process.buffers())
    device = next((tensor.device for tensor in held), torch.device("cpu"))
    sums: dict[str, list[float]] = defaultdict(list)
    with _evaluating(process), own_randomness(derived_seed(seed, "evaluation")):
        for batch in evaluation_batches(task, batches, batch_size, seed):
            for name, value in _sums(process, batch.to(device)).items():
                sums[name].append(value)
    return _summary(sums)


def check_dimensions(process: Process, task: Task) -> None:
    """Raise ValueError unless a process and a task speak of the same x and y."""
    for name in ("dim_x", "dim_y"):
        ours, theirs = getattr(process, name), getattr(task, name)
        if ours != theirs:
            raise ValueError(f"process has {name} {ours} but the task has {theirs}")


def _sums(process: Process, batch: Batch) -> dict[str, float]:
    """Sums over the real targets of one batch."""
    prediction = process(batch.xc, batch.yc, batch.xt, batch.context_mask)
    real = batch.target_mask
    real = torch.ones_like(batch.yt[..., 0], dtype=torch.bool) if real is None else real
    log_likelihood = prediction.log_prob(batch.yt)
    sums = {"targets": float(real.sum()), "log_likelihood": _sum(log_likelihood, real)}
    distance = (prediction.cdf(batch.yt) - 0.5).abs()  # of the PIT from the median
    for level in COVERAGES:
        sums[f"inside {level}"] = _sum((distance <= level / 2).double().mean(-1), real)
    if batch.oracle is not None:
        sums["oracle"] = _sum(batch.oracle, real)
    return sums


def _sum(values: Float[Tensor, "batch targets"], real: Bool[Tensor, "batch targets"]) -> float:
    return values.double().where(real, 0.0).sum().item()


def _summary(sums: Mapping[str, list[float]]) -> Evaluation:
    targets, scores = sums["targets"], sums["log_likelihood"]
    means = [s / t for s, t in zip(scores, targets, strict=True)]
    oracle = gap = None
    if len(sums.get("oracle", ())) == len(targets):
        exact = [s / t for s, t in zip(sums["oracle"], targets, strict=True)]
        oracle = ratio(exact, [1.0] * len(exact))
        gap = ratio([e - m for e, m in zip(exact, means, strict=True)], [1.0] * len(exact))
    return Evaluation(
        log_likelihood=ratio(means, [1.0] * len(means)),
        pooled_log_likelihood=ratio(scores, targets),
        coverage={level: ratio(sums[f"inside {level}"], targets) for level in COVERAGES},
        oracle=oracle,
        oracle_gap=gap,
        batches=len(targets),
        targets=round(sum(targets)),
    )


def ratio(sums: list[float], weights: list[float]) -> Estimate:
    """Σ sums / Σ weights with its standard error over independent pairs.

    Example:
        >>> ratio([1.0, 3.0], [1.0, 1.0])
        Estimate(value=2.0, standard_error=1.0)

    Source: the linearised ratio estimator, Cochran 1977, chapter 6; for equal weights it is
    the mean and its usual standard error.
    """
    number, total = len(sums), math.fsum(weights)
    value = math.fsum(sums) / total
    if number < 2:
        return Estimate(value, math.nan)
    squares = math.fsum((s - value * w) ** 2 for s, w in zip(sums, weights, strict=True))
    return Estimate(value, math.sqrt(squares * number / (number - 1)) / total)


@contextmanager
def _evaluating(process: Process) -> Iterator[None]:
    training = process.training
    process.eval()
    try:
        # Not inference_mode: a process may cache what it computes here and train on it later.
        with torch.no_grad():
            yield
    finally:
        process.train(training)
