"""``synopsis reproduce np-bandit``: playing the contextual wheel bandit with every model."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from synopsis.cli.reproduction import (
    Budget,
    Out,
    Runs,
    Seeds,
    chosen,
    drawn,
    making,
    say_where,
)

if TYPE_CHECKING:
    from synopsis.reproduction.np_bandit import Settings, Table
    from synopsis.tasks.wheel_bandit import ProtocolName

PAGE, RUNS = Path("docs/tables/np-bandit.md"), Path("runs/np-bandit")
_PLAY_SHARE = 2 / 3  # of the budget, unless told otherwise
_PLAY_ALONE = 1.0  # minutes, where nothing is trained


class Protocol(StrEnum):
    """Where wheels come from."""

    BOTH = "both"
    FRESH = "fresh"
    LEGACY = "legacy"


class Exploration(StrEnum):
    """Which arm is pulled."""

    UCB = "ucb"
    MEAN = "mean"
    THOMPSON = "thompson"


Play = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        metavar="MINUTES",
        help="CPU-minutes of playing for each model and seed.",
        show_default="2/3 of the budget",
    ),
]


def np_bandit(  # noqa: PLR0913  (every argument is an option of the command)
    budget: Budget = 10.0,
    play: Play = None,
    runs_per_delta: Annotated[
        int, typer.Option(min=2, help="Runs of each δ; fewer where they take too long.")
    ] = 50,
    steps: Annotated[int, typer.Option(min=10, help="Steps of a run.")] = 2000,
    exploration: Annotated[
        Exploration, typer.Option(help="Arm of the highest mean + sd, mean, or draw.")
    ] = Exploration.UCB,
    protocol: Annotated[
        Protocol, typer.Option(help="Wheels of its own for every run, the published ones, or both.")
    ] = Protocol.BOTH,
    seeds: Seeds = 1,
    models: Annotated[
        str | None,
        typer.Option(metavar="A,B,C", help="Which models, by name.", show_default="nine of them"),
    ] = None,
    out: Out = PAGE,
    runs: Runs = RUNS,
) -> None:
    """The contextual wheel bandit, played with every model: regret, and what a decision costs.

    Budget and playing time are shared equally by the protocols. With --budget 2 it takes about half an hour.
    """
    with making(out) as watch:
        from synopsis.reproduction.np_bandit import ALL, MODELS, Settings, tables
        from synopsis.reproduction.np_bandit_page import markdown

        protocols = _protocols(protocol)
        names = list(MODELS) if models is None else chosen(models, list(ALL))
        minutes = play or (_PLAY_SHARE * budget if budget else _PLAY_ALONE)
        settings = Settings(
            models=names,
            protocols=protocols,
            budget_seconds=60 * budget / len(protocols),
            play_seconds=60 * minutes / len(protocols),
            runs_per_delta=runs_per_delta,
            steps=steps,
            exploration=exploration.value,
            seeds=seeds,
            runs=runs,
        )
        found = tables(settings, watch)
        made = drawn(lambda: _pictures(found, settings, out))
        command = _command(settings, protocol, budget, minutes)
        out.write_text(markdown(found, settings, command, made), encoding="utf-8")
    say_where(out, *made)


def _protocols(protocol: Protocol) -> list["ProtocolName"]:
    if protocol is Protocol.BOTH:
        return ["fresh", "legacy"]
    return ["fresh" if protocol is Protocol.FRESH else "legacy"]


def _command(settings: "Settings", protocol: Protocol, budget: float, play: float) -> str:
    return (
        f"synopsis reproduce np-bandit --budget {budget:g} --play {play:.4g} "
        f"--runs-per-delta {settings.runs_per_delta} --steps {settings.steps} "
        f"--exploration {settings.exploration} --protocol {protocol.value} "
        f"--seeds {settings.seeds} --models {','.join(settings.models)}"
    )


def _pictures(found: list["Table"], settings: "Settings", out: Path) -> list[Path]:
    from synopsis.reproduction.np_bandit_pictures import draw

    return draw(found, settings, out)
