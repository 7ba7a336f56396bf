"""The page about Gaussian processes: its tables, and what is not as published."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synopsis.reproduction.contenders import RECIPE_IN_WORDS
from synopsis.reproduction.costs import Cost
from synopsis.reproduction.family import OURS, is_joint, streams
from synopsis.reproduction.np_gp import (
    BATCH_SIZE,
    KERNELS,
    PUBLISHED,
    TARGETS,
    Row,
    Settings,
    title,
)
from synopsis.reproduction.np_gp_functions import DRAWN_BATCHES, SAMPLES, Functions
from synopsis.reproduction.np_gp_grid import BLOCK, CONTEXTS, FUNCTIONS, Extremes
from synopsis.reproduction.pages import (
    UNKNOWN,
    UNPUBLISHED,
    joined,
    made_by,
    mebibytes,
    number,
    plus_minus,
    table,
    wrapped,
)
from synopsis.tasks.kernels import KernelName
from synopsis.tasks.oracle_table import TITLES as KERNEL_TITLES

COST_POINTS = 1000  # of the context that costs are measured with
Scores = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """Everything a page is made of.

    Args:
        rows: every model.
        exact: by kernel, ``diagonal`` and ``joint``, of whoever knows the kernel.
        functions: joint densities and draws.
        exact_energy: of draws from the exact posterior.
        costs: by model, of a context of ``COST_POINTS`` points.
        extremes: how far functions go that are drawn along a grid.
    """

    rows: Sequence[Row]
    exact: Mapping[KernelName, Scores]
    functions: Sequence[Functions]
    exact_energy: Scores
    costs: Mapping[str, Cost]
    extremes: Sequence[Extremes] = ()


def markdown(results: Results, settings: Settings, command: str, pictures: Sequence[str]) -> str:
    """The page."""
    rows = [row for row in results.rows if row.processes]
    head = _HEAD.format(
        budget=_budget(settings),
        targets=TARGETS,
        batches=settings.batches,
        tasks=settings.batches * BATCH_SIZE,
        batch_size=BATCH_SIZE,
        recipe=RECIPE_IN_WORDS,
    )
    parts = [wrapped(head), *(f"![{name}]({name})" for name in pictures)]
    if any(name.endswith("-learning.png") for name in pictures):
        parts.append(wrapped(_LEARNING.format(targets=TARGETS)))
    parts += ["## Log-likelihood", _LOG_LIKELIHOOD, _likelihoods(rows, results, settings)]
    parts += ["## Distance to the exact answer", _DISTANCE, _gaps(rows)]
    if any(is_joint(row.model) for row in rows):
        parts += ["## Joint models, each target by itself", _MARGINAL, _marginals(rows, results)]
    if results.functions:
        parts += ["## Whole functions", _FUNCTIONS, _functions(results)]
    if len(results.extremes) > 1:
        parts += ["## Functions along a grid", _EXTREMES, _extremes(results.extremes)]
    parts += ["## Calibration on RBF", _CALIBRATION, _calibration(rows)]
    parts += ["## What each has cost", _COST, _costs(rows, results.costs)]
    return joined([*parts, _absent(results.rows), _TAIL, made_by(command)])


def _likelihoods(rows: Sequence[Row], results: Results, settings: Settings) -> str:
    head = ["model", "weights", "scored"]
    for kernel in KERNELS:
        head += [KERNEL_TITLES[kernel], "published"]
    lines = []
    for kind in ("joint", "diagonal"):
        words = "together" if kind == "joint" else "each by itself"
        line = ["*the exact answer*", UNKNOWN, words]
        for kernel in KERNELS:
            line += [_estimate(results.exact[kernel][kind]), UNKNOWN]
        lines.append([*line, f"{settings.batches:,}", UNKNOWN])
    for row in rows:
        line = [*_who(row), "together" if is_joint(row.model) else "each by itself"]
        for kernel in KERNELS:
            missing = UNKNOWN if row.model in OURS else UNPUBLISHED
            published = PUBLISHED.get(row.model, {}).get(kernel, missing)
            line += [_over_seeds(row, kernel, "log_likelihood"), published]
        batches = row.scores[KERNELS[0]][0]["batches"]
        lines.append([*line, f"{batches:,}", str(len(row.processes))])
    return table([*head, "batches", "seeds"], lines)


def _gaps(rows: Sequence[Row]) -> str:
    head = ["model", "weights"]
    head += [f"{KERNEL_TITLES[k]}, {what}" for k in KERNELS for what in ("by itself", "together")]
    lines = []
    for row in rows:
        gaps = (
            _over_seeds(row, k, gap) for k in KERNELS for gap in ("oracle_gap", "joint_oracle_gap")
        )
        lines.append([*_who(row), *gaps])
    return table(head, lines)


def _marginals(rows: Sequence[Row], results: Results) -> str:
    exact = (_estimate(results.exact[kernel]["diagonal"]) for kernel in KERNELS)
    lines = [["*the exact answer*", UNKNOWN, *exact]]
    for row in rows:
        if is_joint(row.model):
            scores = (_over_seeds(row, k, "marginal_log_likelihood") for k in KERNELS)
            lines.append([*_who(row), *scores])
    return table(["model", "weights", *map(KERNEL_TITLES.__getitem__, KERNELS)], lines)


def _functions(results: Results) -> str:
    exact = (_estimate(results.exact[kernel]["joint"]) for kernel in KERNELS)
    zeros = (UNKNOWN for _ in KERNELS)
    energy = _estimate(results.exact_energy, 4)
    lines = [["*the exact answer*", UNKNOWN, "all", *exact, *zeros, energy, UNKNOWN]]
    for found in results.functions:
        together = _together(found)
        scores = [_estimate(found.scores[k]["log_likelihood"]) for k in KERNELS]
        scores += [_estimate(found.scores[k]["joint_oracle_gap"]) for k in KERNELS]
        batches = f"{found.scores[KERNELS[0]]['batches']:,}"
        lines.append([*_who(found.row), together, *scores, _estimate(found.energy, 4), batches])
    head = ["model", "weights", "targets at a time"]
    head += [KERNEL_TITLES[k] for k in KERNELS] + [f"{KERNEL_TITLES[k]}, gap" for k in KERNELS]
    return table([*head, "energy score, RBF", "batches"], lines)


def _extremes(found: Sequence[Extremes]) -> str:
    lines = []
    for line in found:
        who = ["*the exact answer*", UNKNOWN] if line.row is None else _who(line.row)
        together = "all" if line.block is None else str(line.block)
        lines.append([*who, together, *(number(value, 2) for value in line.largest)])
    head = [f"{points} context points" for points in CONTEXTS]
    return table(["model", "weights", "targets at a time", *head], lines)


def _together(found: Functions) -> str:
    if found.target_block is not None:
        return str(found.target_block)
    return "all" if is_joint(found.row.model) and found.row.model != "TNPA" else "1"


def _calibration(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        scores = row.scores["rbf"]
        covered = [
            number(100 * statistics.fmean(s["coverage"][level]["value"] for s in scores), 1)
            for level in ("0.5", "0.9")
        ]
        crps = statistics.fmean(s["crps"]["value"] for s in scores)
        lines.append([*_who(row), *(f"{share} %" for share in covered), number(crps, 4)])
    return table(["model", "weights", "in the central 50 %", "in the central 90 %", "CRPS"], lines)


def _costs(rows: Sequence[Row], costs: Mapping[str, Cost]) -> str:
    lines = []
    for row in rows:
        first, cost = row.ledgers[0], costs.get(row.name)
        hours = _mean(ledger.cpu_hours for ledger in row.ledgers)
        step = _mean(ledger.seconds_per_step for ledger in row.ledgers)
        steps = _mean(ledger.steps for ledger in row.ledgers)
        line = [*_who(row), f"{first.parameters:,}", number(steps, 0), number(hours, 2)]
        line += [number(step, 3), mebibytes(cost.peak if cost else None)]
        kept = None if cost is None else cost.kept
        line += [number(kept, 0), "no" if streams(row.model) else "yes"]
        lines.append(line)
    head = ["model", "weights", "parameters", "steps", "CPU-hours", "CPU-s per step"]
    head += [f"peak at {COST_POINTS:,}, MiB", f"kept of {COST_POINTS:,}, bytes", "grows"]
    return table(head, lines)


def _mean(values: Any) -> float | None:
    known = list(values)
    return None if None in known else statistics.fmean(known)


def _who(row: Row) -> list[str]:
    if not row.contender.has_weights:
        return [title(row.name), "none"]
    return [title(row.name), "shipped" if row.is_shipped else "budget"]


def _over_seeds(row: Row, kernel: KernelName, what: str) -> str:
    """Mean ± standard deviation over seeds; of a single one, its value ± standard error."""
    found = [scores[what] for scores in row.scores[kernel]]
    if None in found:
        return UNKNOWN
    if len(found) == 1:
        return _estimate(found[0])
    values = [estimate["value"] for estimate in found]
    return plus_minus(statistics.fmean(values), statistics.stdev(values))


def _estimate(estimate: Scores | None, digits: int = 3) -> str:
    if estimate is None:
        return UNKNOWN
    return plus_minus(estimate["value"], estimate["standard_error"], digits)


def _budget(settings: Settings) -> str:
    if settings.budget_seconds:
        return f"{settings.budget_seconds / 60:g} CPU-minutes for each model and seed"
    return "none of its own: what was shipped or trained before, at the CPU-hours in the last table"


def _absent(rows: Sequence[Row]) -> str:
    failures = []
    for row in rows:
        if row.failure:
            named = row.failure.startswith(row.name)
            failures.append(f"- {row.failure}" if named else f"- {title(row.name)}: {row.failure}")
    return "\n".join(["Without figures:", "", *failures]) if failures else ""


_LEARNING = """Each curve is measured on fresh tasks of the law that its model was trained on, so not all on the same
tasks, nor on those of the tables below: models trained here have {targets} targets to learn from, some of the shipped
ones another number or the published law, and a shipped curve may end below one of the same model that is shorter."""

_HEAD = """# Neural processes on Gaussian processes

Protocol, as published (Feng et al. 2024, whose code follows Lee et al. 2020): weights from tasks with the RBF kernel;
length-scale ℓ ~ U[0.1, 0.6), scale s ~ U[0.1, 1), noise 0.02, x ~ U[−2, 2), N ~ U{{3..46}} context points and
M ~ U{{3..49−N}} targets. Evaluated on {tasks:,} tasks per kernel in {batches:,} batches of {batch_size}; nats per
target, the mean over batches of a batch's mean. ± is a standard error over batches, or, where there are several seeds,
the standard deviation over seeds.

Training, not as published: {recipe}; {targets} targets in every task, whatever N. The published schedule is 100,000
steps of Adam 5e-4 under a cosine. Budget here: {budget}. *shipped* are the weights that come with the package, trained
for longer, at the cost in the last table. Sizes are the published ones, but residual streams are not normalised and
joint heads are low-rank plus diagonal, our defaults. The published figures of all other models were not found.

The *anchored* rows are ours and not of the paper: four blocks of CMANP's, 32 latents each, beside Bayesian
regressions on Fourier features of even frequencies, whose sums are as constant and merge as exactly. Their prior
covers the length-scales, amplitudes and noise that the task draws from, and its interval, which the other rows have
to learn; the head says where to leave the regressions' answer; *the anchor alone* is those regressions, without a
weight. They say what constant memory is worth when something is known of the functions."""

_LOG_LIKELIHOOD = """*together*: the joint log-density of a task's targets divided by their number, the published metric
of joint models, to be held against the joint exact answer; *each by itself*: the mean log-density of single targets.
CNP, NP and BNP and their attentive forms never predict a standard deviation below 0.1 and cannot come above about
0.94 (RBF), 0.74 (Matérn) and 0.73 (periodic): see [the ceilings](gp-oracle.md)."""

_DISTANCE = """Nats per target that a model loses to whoever knows the kernel, on the same tasks: differences vary less
than scores do. *by itself* compares single targets with the diagonal exact answer; *together* compares the score of
the table above with the joint one, so that a diagonal model also loses what the correlations are worth."""

_MARGINAL = """What joint models say of single targets given the context only. TNP-A's are mixtures over 50 functions
that it has sampled."""

_FUNCTIONS = f"""Joint log-density divided by the number of targets when so many of them are predicted at a time, each
such block given the true values of those before it; and the energy score of whole functions that are drawn in the same
blocks, each given the drawn values of those before it ({SAMPLES} functions, at most {DRAWN_BATCHES} batches; units of
y; lower is better). *all* is what CMANP-AND's published procedure amounts to on this task. The product of such blocks
is a density of the very process that is drawn from. TNP-A goes target by target. CMANP, whose targets are drawn each by
itself, shows what correlations are worth."""

_EXTREMES = f"""The largest distance from 0 that a function reaches when it is drawn over the whole grid of the picture,
median of {FUNCTIONS} functions, for the three tasks of the picture: all of the grid at once, as `sample` does by
default and the picture shows, or {BLOCK} neighbours at a time from left to right, each block told of those before it.
The latter may drift from few points: where the scale is still unknown, a draw that is too large makes the next
larger."""

_CALIBRATION = """Share of targets inside the central interval of the prediction of each target by itself, and the
continuous ranked probability score in the units of y."""

_COST = f"""CPU-hours of training on one thread, means over seeds; peak memory of conditioning on {COST_POINTS:,} points
and predicting 100 targets, beyond the weights and the points; bytes kept of such a task, and whether they grow with it.
More in [np-memory](np-memory.md)."""

_TAIL = """BNP, BANP and TNP-A draw 50 times for every answer and are evaluated on fewer batches, the first ones of the
others'; "weights" says whether a row is *shipped* or trained here within the *budget*."""
