"""The contextual wheel bandit: every model trained on wheels, and then played with for 2,000 steps.

Runs are played in portions, side by side. A process with a state of constant size plays fifty runs of every δ at once;
one that keeps its context, whose steps get dearer and dearer, plays one. Portions are begun while another like the
last still fits into the allowance, and each is remembered, so that a killed table continues.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from synopsis.processes.base import Process
from synopsis.reproduction.bandit_agents import Exploration, play, quadrant_arms, uniform_arms
from synopsis.reproduction.bandit_curves import DELTAS, Curves, kept, of_arms, together
from synopsis.reproduction.contenders import (
    Contender,
    Ledger,
    NotTrained,
    Watch,
    remembered,
    trained,
)
from synopsis.tasks.wheel_bandit import ARMS, LEGACY_WHEELS, ProtocolName, WheelBandit
from synopsis.training import TrainingDiverged
from synopsis.training.experiment import JSON, Component

STEPS = 2000
_POINTS = 100  # of a regret curve
_SIDE_BY_SIDE = 50  # runs of each δ in a portion of a process with a state of constant size
_SIZES: Mapping[str, Mapping[str, JSON]] = {
    "CMANP": {"dim": 16, "heads": 1, "blocks": 4, "latents": 8},
    "LBANP": {"dim": 16, "heads": 1, "layers": 4, "latents": 8},
    "TNPD": {"dim": 16, "heads": 1, "layers": 4},
    "EQTNP": {"dim": 16, "heads": 1, "layers": 4},
    "CNP": {},
    "CANP": {},
    "NP": {"train_samples": 1, "samples": 10},
    "ANP": {"train_samples": 1, "samples": 10},
    "BNP": {"samples": 10},
    "BANP": {"samples": 10},
}
MODELS = (
    "CMANP",
    "LBANP",
    "TNPD",
    "CNP",
    "NP",
    "ANP",
    "BNP",
    "BANP",
    "CANP",
)  # of the default table
ALL = tuple(_SIZES)


@dataclass(frozen=True)
class Settings:
    """What table is asked for.

    Args:
        models: rows, by name.
        protocols: of training and evaluation.
        budget_seconds: CPU-seconds of training for each model, seed and protocol; 0 takes what is there.
        play_seconds: CPU-seconds of playing for each model, seed and protocol.
        runs_per_delta: runs of each δ, fewer where they do not fit into ``play_seconds``.
        steps: of a run.
        exploration: see :func:`synopsis.reproduction.bandit_agents.play`.
        seeds: trainings of each model.
        runs: folder of the trainings.
        training: departures from the common recipe.
    """

    models: Sequence[str] = MODELS
    protocols: Sequence[ProtocolName] = ("fresh", "legacy")
    budget_seconds: float = 300.0
    play_seconds: float = 100.0
    runs_per_delta: int = 50
    steps: int = STEPS
    exploration: Exploration = "ucb"
    seeds: int = 1
    runs: Path = Path("runs/np-bandit")
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def grid(self) -> int:
        """Steps between two points of a regret curve."""
        return max(1, self.steps // _POINTS)

    def bandits(self, protocol: ProtocolName, first: int, last: int) -> list[WheelBandit]:
        """Runs ``first`` to ``last``, the latter not included, of every δ in turn."""
        return [
            WheelBandit(delta, self.steps, seed, protocol)
            for delta in DELTAS
            for seed in range(first, last)
        ]


@dataclass(frozen=True)
class Row:
    """A line of the tables.

    Args:
        name: of the model.
        curves: of all runs; None where there is nothing.
        ledgers: one for each seed.
        failure: why there are no curves.
    """

    name: str
    curves: Curves | None = None
    ledgers: tuple[Ledger, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Table:
    """All that was played in one protocol.

    Args:
        protocol: which.
        references: agents without a model, by name: the uniform one, whose regret is the unit of everything, the one
            who always pulls arm 0, and the one who always pulls the quadrant's arm.
        rows: one for each model.
    """

    protocol: ProtocolName
    references: Mapping[str, Curves]
    rows: tuple[Row, ...]

    @property
    def uniform(self) -> Curves:
        """The agent who pulls arms at random."""
        return self.references["uniform"]


def contender(name: str, settings: Settings) -> Contender:
    """A model in the sizes published for the bandit, as far as its constructor has them.

    Raises:
        ValueError: there is no such model.
    """
    if name not in _SIZES:
        raise ValueError(f"unknown model {name!r}; there are {', '.join(ALL)}")
    arguments = {"dim_x": 2, "dim_y": ARMS, **_SIZES[name]}
    training = {"batch_size": LEGACY_WHEELS, **settings.training}
    return Contender(name, Component(name, arguments), training)


def tables(settings: Settings, watch: Watch = lambda *_: None) -> list[Table]:
    """Train or load every model, and play, in every protocol.

    Args:
        settings: of the tables.
        watch: called with what is done, how much of it, and how much there is.

    Example:
        >>> [table] = tables(Settings(("CNP",), ("fresh",), 5.0, 5.0))    # doctest: +SKIP
        >>> table.rows[0].curves.final(table.uniform).mean(-1)    # doctest: +SKIP
        tensor([52.1, 61.3, 70.0, 98.2, 99.1], dtype=torch.float64)
    """
    return [_table(protocol, settings, watch) for protocol in settings.protocols]


def _table(protocol: ProtocolName, settings: Settings, watch: Watch) -> Table:
    bandits = settings.bandits(protocol, 0, settings.runs_per_delta)
    arms = uniform_arms(bandits)
    agents = {
        "uniform": arms,
        "always arm 0": torch.zeros_like(arms),
        "always the quadrant's": quadrant_arms(bandits),
    }
    references = {name: of_arms(bandits, a, settings.grid) for name, a in agents.items()}
    rows = [_row(contender(name, settings), protocol, settings, watch) for name in settings.models]
    return Table(protocol, references, tuple(rows))


def _row(who: Contender, protocol: ProtocolName, settings: Settings, watch: Watch) -> Row:
    task, runs = Component("wheel_bandit", {"protocol": protocol}), settings.runs / protocol
    try:
        found = [
            trained(who, task, settings.budget_seconds, seed, runs, watch)
            for seed in range(settings.seeds)
        ]
    except (NotTrained, TrainingDiverged) as error:
        return Row(who.name, failure=str(error))
    portions = [
        portion
        for process, ledger in found
        for portion in _portions(process, ledger, protocol, settings, watch)
    ]
    return Row(who.name, together(portions, settings.grid), tuple(ledger for _, ledger in found))


def _portions(
    process: Process, ledger: Ledger, protocol: ProtocolName, settings: Settings, watch: Watch
) -> Iterator[dict[str, Any]]:
    """Portions of runs while they fit; the first may end early, and is then the only one."""
    size = _SIDE_BY_SIDE if process.bounded else 1
    spent = dearest = 0.0
    for first in range(0, settings.runs_per_delta, size):
        if spent + dearest > settings.play_seconds:
            return
        last = min(first + size, settings.runs_per_delta)
        portion = _portion(process, ledger, protocol, settings, watch, (first, last))
        yield portion
        spent, dearest = spent + portion["cpu_seconds"], max(dearest, portion["cpu_seconds"])
        if portion["played"] < settings.steps:
            return


def _portion(
    process: Process,
    ledger: Ledger,
    protocol: ProtocolName,
    settings: Settings,
    watch: Watch,
    between: tuple[int, int],
) -> dict[str, Any]:
    first, last = between
    what = f"{ledger.folder.name}, {protocol}, runs {first + 1}–{last}"

    def compute() -> dict[str, Any]:
        found = play(
            process,
            settings.bandits(protocol, first, last),
            settings.exploration,
            math.inf if first else settings.play_seconds,
            settings.grid,
            lambda done, steps: watch(what, done, steps),
        )
        watch(what, settings.steps, settings.steps)
        return kept(found, settings.grid)

    asked: dict[str, JSON] = {"protocol": protocol, "first": first, "last": last}
    asked |= {"steps": settings.steps, "exploration": settings.exploration}
    asked |= {"process": process.fingerprint, "play_seconds": settings.play_seconds}
    return remembered(ledger.folder, "play", asked, compute)
