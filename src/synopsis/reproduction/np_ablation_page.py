"""The page of the ladder from the published training to ours."""

import statistics
from collections.abc import Iterable, Sequence

from synopsis.reproduction.np_ablation import COMPILED, KERNELS, LADDER, Compiled, Results
from synopsis.reproduction.np_gp import BATCH_SIZE, PUBLISHED, Row, Settings
from synopsis.reproduction.pages import (
    UNKNOWN,
    joined,
    made_by,
    number,
    plus_minus,
    table,
    wrapped,
)
from synopsis.tasks.oracle_table import TITLES as KERNEL_TITLES


def markdown(results: Results, settings: Settings, command: str) -> str:
    """The page."""
    tasks = settings.batches * BATCH_SIZE
    published = PUBLISHED["CMANP"]
    budget = f"{settings.budget_seconds / 60:g} CPU-minutes for each row and seed"
    head = _HEAD.format(
        budget=budget if settings.budget_seconds else "none: only what was trained before",
        tasks=f"{tasks:,}",
        batches=f"{settings.batches:,}",
        size=BATCH_SIZE,
        rbf=published["rbf"],
        matern=published["matern52"],
    )
    parts = [wrapped(head), _ladder(results), wrapped(_COLUMNS)]
    parts += ["## Compiling", wrapped(_compiling(results))]
    return joined([*parts, _absent(results.rows.values()), made_by(command)])


def _ladder(results: Results) -> str:
    head = ["training", "parameters", "CPU-s per step", "steps", "CPU-minutes"]
    head += [f"{KERNEL_TITLES[k]}{what}" for k in KERNELS for what in ("", ", gap")]
    lines = []
    for name, row in results.rows.items():
        if row.processes:
            lines.append([LADDER[name].change, *_cost(row), *_scores(row)])
        if name == COMPILED and results.compiled:
            lines.append(["+ compiled, its cost only", *_compiled(row, results.compiled)])
    return table([*head, "seeds"], lines)


def _cost(row: Row) -> list[str]:
    steps, seconds = (_mean(getattr(x, n) for x in row.ledgers) for n in ("steps", "cpu_seconds"))
    per_step = _mean(ledger.seconds_per_step for ledger in row.ledgers)
    minutes = None if seconds is None else seconds / 60
    first = f"{row.ledgers[0].parameters:,}"
    return [first, number(per_step), number(steps, 0), number(minutes, 1)]


def _scores(row: Row) -> list[str]:
    cells = [
        _over_seeds([scores[what] for scores in row.scores[kernel]])
        for kernel in KERNELS
        for what in ("log_likelihood", "oracle_gap")
    ]
    return [*cells, str(len(row.processes))]


def _compiled(row: Row, found: Compiled) -> list[str]:
    """The cost of the row before, as often less as a compiled step was less than a plain one."""
    before = _mean(ledger.seconds_per_step for ledger in row.ledgers)
    cost = None if before is None else before * found.compiled / found.plain
    return [UNKNOWN, number(cost), *[UNKNOWN] * (2 + 2 * len(KERNELS) + 1)]


def _compiling(results: Results) -> str:
    found = results.compiled
    if found is None:
        return f"Not measured: {results.remark or 'it was not asked for'}."
    return _COMPILING.format(
        plain=number(found.plain),
        compiled=number(found.compiled),
        times=number(found.plain / found.compiled, 2),
        first=number(found.first, 0),
    )


def _over_seeds(estimates: Sequence[dict[str, float] | None]) -> str:
    """Mean ± standard deviation over seeds; of a single one, its value ± standard error."""
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return UNKNOWN
    if len(known) == 1:
        return plus_minus(known[0]["value"], known[0]["standard_error"])
    values = [estimate["value"] for estimate in known]
    return plus_minus(statistics.fmean(values), statistics.stdev(values))


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else statistics.fmean(v for v in known if v is not None)


def _absent(rows: Iterable[Row]) -> str:
    failures = [f"- {row.name}: {row.failure}" for row in rows if row.failure]
    return "\n".join(["Without figures:", "", *failures]) if failures else ""


_HEAD = """# What each change to the training of CMANP brings

Every row is trained from scratch for the same CPU time, and keeps what the rows above it changed; the last is another
process, trained by the same recipe. Budget: {budget}; the published training has 100,000 steps, and reaches
{rbf} (RBF) and {matern} (Matérn-5/2).

Protocol as in [np-gp](np-gp.md): RBF tasks in training, evaluated on {tasks} tasks per kernel in {batches} batches of
{size} with the published numbers of points; nats per target, batch mean. *gap*: what is lost to whoever knows the
kernel, on the same tasks. ± is a standard error over batches, or, where there are several seeds, the standard deviation
over seeds."""

_COLUMNS = """*as published*: normalised residual stream, all blocks and decoder layers start as copies of one, Adam
5e-4 under a cosine, as many targets as published (3 to 46), 128 latents. Every row warms up over the first 10 % of its
steps, which the published training does not. The steps of all rows are taken by our code, which is faster than the
published one: see [training-step](training-step.md)."""

_COMPILING = """A training step of the row "products in bfloat16" takes {plain} CPU-s, and {compiled} when
`torch.compile` has what a block does after it has met the context ({times} times faster, in turns, optimiser
included). The first step takes {first} CPU-s, and a C++ compiler is needed."""
