"""The page of the wheel bandit's tables."""

from collections.abc import Callable, Sequence
from pathlib import Path

from jaxtyping import Float64
from torch import Tensor

from synopsis.reproduction.bandit_curves import DELTAS, Curves
from synopsis.reproduction.contenders import RECIPE_IN_WORDS
from synopsis.reproduction.family import TITLES
from synopsis.reproduction.np_bandit import Row, Settings, Table
from synopsis.reproduction.pages import UNKNOWN, made_by, number, plus_minus, table

_PROTOCOLS = {
    "fresh": "Fresh protocol: new wheels at every training step, contexts and rewards of its own for every run",
    "legacy": "Legacy protocol: the published code's, one batch of 8 wheels to train on, and the same 562 contexts "
    "among the 2,000 of every run",
}
_CHOICES = {
    "ucb": "the arm of the highest μ + σ is pulled (the published rule)",
    "mean": "the arm of the highest predicted mean is pulled",
    "thompson": "the arm of the highest draw from N(μ, σ²) is pulled",
}


def markdown(
    tables: Sequence[Table], settings: Settings, command: str, pictures: Sequence[Path]
) -> str:
    """The tables as a page of Markdown.

    Args:
        tables: one for each protocol.
        settings: of the tables.
        command: that writes this page.
        pictures: beside it.
    """
    return _PAGE.format(
        steps=f"{settings.steps:,}",
        runs=settings.runs_per_delta,
        choice=_CHOICES[settings.exploration],
        budget=_budget(settings),
        tables="\n\n".join(_section(one, settings) for one in tables),
        pictures="".join(f"\n![{path.stem}]({path.name})\n" for path in pictures),
        notes="\n".join(f"- {note}" for note in _notes(tables)),
        command=made_by(command),
    )


def _budget(settings: Settings) -> str:
    if settings.budget_seconds <= 0:
        trained = "Nothing was trained for this page: rows are processes that were there already"
    else:
        trained = (
            f"**{settings.budget_seconds / 60:.3g} CPU-minutes of training for each model** and protocol (published: "
            "100,000 steps)"
        )
    return (
        f"{trained}; {settings.play_seconds / 60:.3g} CPU-minutes of playing, in which a model whose steps get dearer "
        "plays fewer runs, or not all steps of one (†)."
    )


def _section(played: Table, settings: Settings) -> str:
    parts = [
        f"## {_PROTOCOLS[played.protocol]}",
        f"Cumulative regret after {settings.steps:,} steps, uniform agent = 100",
        _regrets(played, lambda curves: curves.final(played.uniform)),
        f"Simple regret: the last {settings.steps // 4:,} steps only, uniform agent = 100",
        _regrets(played, lambda curves: curves.simple(played.uniform)),
        "Cost",
        _costs(played.rows, settings),
    ]
    return "\n\n".join(parts)


def _regrets(played: Table, measure: Callable[[Curves], Float64[Tensor, "deltas runs"]]) -> str:
    head = ["agent", *(f"δ = {delta:g}" for delta in DELTAS), "runs of each δ", "steps"]
    named = [(f"*{name}*", curves) for name, curves in played.references.items()]
    named += [(TITLES[row.name], row.curves) for row in played.rows if row.curves]
    lines = []
    for name, curves in named:
        values = measure(curves)
        mark = "" if curves.played == played.uniform.played else " †"
        cells = [plus_minus(float(v.mean()), _spread(v), 1) for v in values]
        lines.append([name + mark, *cells, str(values.shape[1]), f"{curves.played:,}"])
    return table(head, lines)


def _spread(runs: Float64[Tensor, " runs"]) -> float | None:
    return float(runs.std()) if len(runs) > 1 else None


def _costs(rows: Sequence[Row], settings: Settings) -> str:
    head = ["model", "CPU-ms of a step, first 1 %", "last 1 % played", "CPU-seconds of a run"]
    head += ["kept at the end, bytes", "seeds", "parameters", "training steps", "CPU-hours"]
    done = [(row, row.curves) for row in rows if row.curves is not None]
    lines = [[TITLES[row.name], *_cost(c, settings), *_ledger(row)] for row, c in done]
    return table(head, lines)


def _cost(curves: Curves, settings: Settings) -> list[str]:
    first, last = (1e3 * float(curves.seconds[i]) for i in (0, -1))
    total = float(curves.seconds.sum()) * settings.grid
    mark = "" if curves.played == settings.steps else f" for {curves.played:,} steps †"
    return [f"{first:.2f}", f"{last:.2f}", f"{total:.2f}{mark}", f"{curves.nbytes:,}"]


def _ledger(row: Row) -> list[str]:
    ledger = row.ledgers[0]
    hours = [one.cpu_hours for one in row.ledgers if one.cpu_hours is not None]
    steps = UNKNOWN if ledger.steps is None else f"{ledger.steps:,}"
    spent = number(sum(hours) if hours else None)
    return [str(len(row.ledgers)), f"{ledger.parameters:,}", steps, spent]


def _notes(tables: Sequence[Table]) -> list[str]:
    failed = [(one, row) for one in tables for row in one.rows if row.failure]
    return [*_NOTES, *(f"{TITLES[row.name]}, {one.protocol}: {row.failure}" for one, row in failed)]


_NOTES = (
    "Mean ± standard deviation over runs, each in per cent of the uniform agent's mean regret over as many steps. "
    "Regret is realised, so luck can make it negative.",
    "Published regrets: not found, the tables of the papers could not be read; nor is there an exact answer, but 0 is "
    "the best on average.",
    "*always the quadrant's*: pulls the arm that is rich far out in this direction, wherever it is. It needs no "
    "history: who knows the rule from training but never finds out δ does as well. Only less shows learning of δ.",
    "History: context and five rewards, that of the arm pulled and N(0, 1) noise for the four nobody has seen; in both "
    "protocols, because training replaces every reward of the context by such noise with probability ½ (`drop_y`). The "
    "first arm is random.",
    "Training contexts have 512 points, as published, but play begins with none: early steps are outside of what was "
    "trained on.",
    f"One recipe, ours: {RECIPE_IN_WORDS} – but here batches of 8 wheels, as published.",
    "Sizes: CMANP, LBANP, TNP-D and EQTNP are 16 wide with 4 layers or blocks, one head and 8 latents, as published, "
    "but for embedders of 4 layers instead of 3 and feed-forward layers of 32 instead of 64, which the constructors "
    "fix; CMANP's are ours, as its code has no bandit. The family of CNP has its published sizes (128 wide); NP and "
    "ANP train with one draw, as published; NP, ANP, BNP and BANP play with 10 draws instead of 50.",
    "All models are trained on targets only, but the family of CNP on context and targets (its published loss; TNP-D's "
    "is on both as well).",
    "*CPU-seconds of a run*: of runs played side by side, up to 250 streams at once for the models with a state of "
    "constant size (CMANP, CNP, NP), five for the others, which condition on their whole history at every step.",
    "In the legacy protocol all runs of a δ are one data set in other orders, so standard deviations say little.",
    "† not all steps fitted into the allowance: regret in per cent of the uniform agent's over as many steps, not "
    "comparable with that over all.",
)

_PAGE = """# The contextual wheel bandit

An agent stands at a random point of a disc and pulls one of five arms. Arm 0 pays 1.2 everywhere, the others 1.0; but
beyond radius δ the arm of the point's quadrant pays 50. Nobody says so: the agent asks a process, trained on other
wheels, what every arm would pay here, given its own history; {choice}. {steps} steps, {runs} runs for each δ at most.

{budget}
{pictures}
{tables}

{notes}

{command}"""
