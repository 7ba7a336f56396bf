"""How good a process is on a task: log-likelihood, coverage, CRPS, and the distance to the exact answer.

A process is scored by what it predicts: ``process(xc, yc, xt, mask)`` gives a distribution of each target by itself,
whose ``log_prob`` is summed. One that can tell the joint log-density of a task's targets says so by a method
``log_likelihood(batch)`` (nats per task), and is scored by that; a :class:`synopsis.processes.joint.JointProcess` gives
both by ``score(batch)``.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from synopsis.processes.base import Process
from synopsis.processes.heads import PredictiveDistribution
from synopsis.processes.joint import JointProcess
from synopsis.tasks import Batch, Task
from synopsis.tasks.fixed_batches import evaluation_batches
from synopsis.training.seeds import derived_seed, own_randomness

COVERAGES = (0.5, 0.9)


@runtime_checkable
class HasJointDensity(Protocol):
    """A process that knows how probable the targets of a task are together."""

    def log_likelihood(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Joint log-density of each task's real targets, nats; 0 for a task without any."""
        ...


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
    are taken over batches. A target without any output does not count, and of one that lacks
    some those are scored that it has.

    Args:
        log_likelihood: of the targets, nats per target, batch mean; of a process that predicts
            targets together, their joint log-density divided by their number.
        pooled_log_likelihood: the same over all targets.
        marginal_log_likelihood: of each target by itself, batch mean; for a process that predicts
            them one by one it is the log-likelihood.
        coverage: share of targets inside the central interval, by the interval's probability,
            over all targets.
        crps: continuous ranked probability score, in the units of y, over all targets.
        oracle: exact log-density of each target by itself, batch mean, where every batch has one.
        oracle_gap: oracle minus marginal log-likelihood, paired by target, batch mean.
        joint_oracle: exact joint log-density divided by the number of targets, batch mean, where
            every batch has one.
        joint_oracle_gap: joint oracle minus log-likelihood, paired by task, batch mean.
        batches: how many there were.
        targets: how many there were in all batches together.
    """

    log_likelihood: Estimate
    pooled_log_likelihood: Estimate
    marginal_log_likelihood: Estimate
    coverage: Mapping[float, Estimate]
    crps: Estimate
    oracle: Estimate | None
    oracle_gap: Estimate | None
    joint_oracle: Estimate | None
    joint_oracle_gap: Estimate | None
    batches: int
    targets: int

    def to_dict(self) -> dict[str, object]:
        """For JSON: an estimate is ``{"value": …, "standard_error": …}``."""

        plain: dict[str, object] = {}
        for name, value in vars(self).items():
            plain[name] = dict(vars(value)) if isinstance(value, Estimate) else value
        levels = self.coverage.items()
        return plain | {"coverage": {f"{level:g}": dict(vars(e)) for level, e in levels}}


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

    Source: metrics 1, 2 and 4 of Feng et al. 2024's code (``tar_ll``, mean of the means per batch).
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
    """Sums over the real targets of one batch that have any output; of each, means over those it has."""
    batch = batch.observed()
    real = batch.target_mask
    real = torch.ones_like(batch.yt[..., 0], dtype=torch.bool) if real is None else real
    seen = real.unsqueeze(-1) & ~batch.yt.isnan()
    joint, prediction = _score(process, batch)
    marginal = _sum(prediction.log_prob(batch.yt), real)
    sums = {"targets": float(real.sum()), "marginal": marginal}
    sums["log_likelihood"] = marginal if joint is None else joint.double().sum().item()
    distance = (prediction.cdf(batch.yt) - 0.5).abs()  # of the PIT from the median
    for level in COVERAGES:
        sums[f"inside {level}"] = _sum_of_means(distance <= level / 2, seen)
    sums["crps"] = _sum_of_means(prediction.crps(batch.yt), seen)
    if batch.oracle is not None:
        sums["oracle"] = _sum(batch.oracle, real)
    if batch.joint_oracle is not None:
        sums["joint_oracle"] = batch.joint_oracle.double().sum().item()
    return sums


def _score(process: Process, batch: Batch) -> tuple[Tensor | None, PredictiveDistribution]:
    """Joint log-density of each task where the process has one, and each target by itself."""
    if isinstance(process, JointProcess):
        return process.score(batch)
    prediction = process(batch.xc, batch.yc, batch.xt, batch.context_mask)
    joint = process.log_likelihood(batch) if isinstance(process, HasJointDensity) else None
    return joint, prediction


def _sum(values: Float[Tensor, "batch targets"], real: Bool[Tensor, "batch targets"]) -> float:
    return values.double().where(real, 0.0).sum().item()


def _sum_of_means(
    values: Shaped[Tensor, "batch targets dim_y"], seen: Bool[Tensor, "batch targets dim_y"]
) -> float:
    """The sum over targets of the mean over the outputs that were observed; 0 for a target without any."""
    totals = values.double().where(seen, 0.0).sum(-1)
    return (totals / seen.sum(-1).clamp(min=1)).sum().item()


def _summary(sums: Mapping[str, list[float]]) -> Evaluation:
    targets = sums["targets"]
    known = {name: values for name, values in sums.items() if len(values) == len(targets)}
    means = {name: _divide(values, targets) for name, values in known.items()}
    return Evaluation(
        log_likelihood=_mean(means["log_likelihood"]),
        pooled_log_likelihood=ratio(sums["log_likelihood"], targets),
        marginal_log_likelihood=_mean(means["marginal"]),
        coverage={level: ratio(sums[f"inside {level}"], targets) for level in COVERAGES},
        crps=ratio(sums["crps"], targets),
        **_against(means, "oracle", "marginal"),
        **_against(means, "joint_oracle", "log_likelihood"),
        batches=len(targets),
        targets=round(sum(targets)),
    )


def _against(
    means: Mapping[str, list[float]], oracle: str, score: str
) -> dict[str, Estimate | None]:
    """An oracle, where every batch has one, and its distance from a score."""
    exact = means.get(oracle)
    if exact is None:
        return {oracle: None, f"{oracle}_gap": None}
    gaps = [best - reached for best, reached in zip(exact, means[score], strict=True)]
    return {oracle: _mean(exact), f"{oracle}_gap": _mean(gaps)}


def _mean(values: list[float]) -> Estimate:
    return ratio(values, [1.0] * len(values))


def _divide(values: list[float], targets: list[float]) -> list[float]:
    return [value / number for value, number in zip(values, targets, strict=True)]


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
