"""Bayesian optimisation: processes that choose where to look, beside Gaussian processes that know or refit, and chance.

In one dimension every contender of :mod:`synopsis.reproduction.np_gp` may play, with the very weights of that table. In
two, processes are trained here. What was played is remembered in portions, so that a killed table continues.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synopsis.processes.base import Process
from synopsis.reproduction.contenders import (
    Contender,
    Ledger,
    NotTrained,
    Watch,
    remembered,
    trained,
)
from synopsis.reproduction.np_bo_beliefs import ExactBelief, ProcessBelief, RefittedBelief
from synopsis.reproduction.np_bo_grid import Functions, Played, optimise, search_at_random
from synopsis.reproduction.np_gp import CONTENDERS, KERNELS, TRAINED_ON, title
from synopsis.tasks.kernels import KernelName
from synopsis.training import TrainingDiverged
from synopsis.training.experiment import Component

MODELS = ("CMANP-32", "AnchoredCMANP", "TNPD", "LBANP-32", "CNP")  # of the default table
PLANE_MODELS = ("CMANP-32",)
ON_PLANE = {
    "CMANP-32": Contender("CMANP-32", Component("CMANP", {"dim_x": 2, "latents": 32})),
    "TNPD": Contender("TNPD", Component("TNPD", {"dim_x": 2})),
    "CNP": Contender("CNP", Component("CNP", {"dim_x": 2})),
}
# Published contexts have 30 points at least, while an optimisation begins with one.
TRAINED_ON_PLANE = Component(
    "gaussian_process_nd", {"dim_x": 2, "min_context": 1, "targets": 64, "oracle": False}
)
REFERENCES = {
    "exact": "exact Gaussian process",
    "refitted": "refitted Gaussian process",
    "random": "random search",
}
PORTION = 25  # functions played side by side
_VERSION = 1  # of the protocol: results of another are not taken


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Args:
        models: that play in one dimension, of ``np_gp.CONTENDERS``.
        plane_models: that play in two, of ``ON_PLANE``.
        budget_seconds: CPU-seconds of training for each model; 0 takes what is there.
        functions: of each kernel; 0 leaves one dimension out.
        decisions: for each function.
        tasks: first points of each test function; 0 leaves two dimensions out.
        plane_decisions: for each of these.
        weights: folder of the runs of the table np-gp.
        runs: folder of everything else.
        training: departures from the common recipe, in two dimensions.
    """

    models: Sequence[str] = MODELS
    plane_models: Sequence[str] = PLANE_MODELS
    budget_seconds: float = 1200.0
    functions: int = 100
    decisions: int = 50
    tasks: int = 2
    plane_decisions: int = 40
    weights: Path = Path("runs/np-gp")
    runs: Path = Path("runs/np-bo")
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def portions(self) -> list[tuple[int, int]]:
        """Functions that are played together, from one to before another."""
        starts = range(0, self.functions, PORTION)
        return [(start, min(start + PORTION, self.functions)) for start in starts]


@dataclass(frozen=True)
class Row:
    """Who played, and how it went.

    Args:
        name: a contender's, or a key of ``REFERENCES``.
        played: by kernel and rule (whether places may be chosen again), or by test function and True.
        ledger: of the training; None for a reference.
        failure: why nothing was played.
    """

    name: str
    played: Mapping[tuple[str, bool], Played] = field(default_factory=dict)
    ledger: Ledger | None = None
    failure: str = ""

    @property
    def title(self) -> str:
        """The name as the table writes it."""
        return REFERENCES[self.name] if self.name in REFERENCES else title(self.name)


def grid_rows(settings: Settings, watch: Watch = lambda *_: None) -> list[Row]:
    """Everyone on functions of one input.

    Args:
        settings: what is asked for.
        watch: called with what is done, how much of it is done and how much there is.
    """
    if not settings.functions:
        return []
    rows = [_grid_row(name, None, settings, watch) for name in ("exact", "refitted", "random")]
    for name in settings.models:
        contender, folder = CONTENDERS[name], settings.weights
        made = _weights(contender, TRAINED_ON, folder, settings.budget_seconds, watch)
        rows.append(
            Row(name, failure=made)
            if isinstance(made, str)
            else _grid_row(name, made, settings, watch)
        )
    return rows


def plane_rows(settings: Settings, watch: Watch = lambda *_: None) -> list[Row]:
    """Everyone on test functions of two inputs; see :func:`grid_rows`.

    Raises:
        ValueError: BoTorch is not there.
    """
    if not settings.tasks:
        return []
    try:
        from synopsis.reproduction.np_bo_plane import problems, strategies
    except ModuleNotFoundError as error:
        raise ValueError(f"{error}; or leave two dimensions out: --tasks 0") from error
    made: dict[str, tuple[Process, Ledger] | str] = {}
    for name in settings.plane_models:
        contender = replace(ON_PLANE[name], training=settings.training)
        folder = settings.runs / "plane"
        made[name] = _weights(contender, TRAINED_ON_PLANE, folder, settings.budget_seconds, watch)
    ready = {name: found for name, found in made.items() if not isinstance(found, str)}
    rows = []
    for name, make in strategies([(name, found[0]) for name, found in ready.items()]).items():
        found = ready.get(name)
        played = {
            (problem, True): _on_plane(name, found, problems()[problem], make, settings, watch)
            for problem in problems()
        }
        rows.append(Row(name, played, None if found is None else found[1]))
    return rows + [Row(name, failure=why) for name, why in made.items() if isinstance(why, str)]


def _weights(
    contender: Contender, task: Component, folder: Path, budget: float, watch: Watch
) -> tuple[Process, Ledger] | str:
    """What is shipped or was trained at whatever budget, or else what this budget gives; or why there is nothing."""
    try:
        return trained(contender, task, 0.0, 0, folder, watch)
    except NotTrained as nothing:
        if not budget:
            return str(nothing)
    try:
        return trained(contender, task, budget, 0, folder, watch)
    except TrainingDiverged as failure:
        return str(failure)


def _grid_row(
    name: str, made: tuple[Process, Ledger] | None, settings: Settings, watch: Watch
) -> Row:
    played: dict[tuple[str, bool], Played] = {}
    cells = [*product(KERNELS, (True, False))]
    total = len(cells) * len(settings.portions) * settings.decisions
    for number, (kernel, repeats) in enumerate(cells):
        parts = []
        for index, portion in enumerate(settings.portions):
            done = (number * len(settings.portions) + index) * settings.decisions

            def advance(decisions: int, done: int = done) -> None:
                watch(f"{name} in 1-D", done + decisions, total)

            parts.append(_on_grid(name, made, (kernel, repeats), portion, settings, advance))
            advance(settings.decisions)
        played[kernel, repeats] = _together(parts)
    return Row(name, played, None if made is None else made[1])


def _on_grid(
    name: str,
    made: tuple[Process, Ledger] | None,
    cell: tuple[KernelName, bool],
    portion: tuple[int, int],
    settings: Settings,
    advance: Callable[[int], None],
) -> Played:
    """One portion of functions, played or remembered."""
    kernel, repeats = cell
    folder = settings.runs / name if made is None else made[1].folder

    def compute() -> dict[str, Any]:
        functions, decisions = Functions.drawn(kernel, *portion), settings.decisions
        if name == "random":
            return _kept(search_at_random(functions, decisions, repeats))
        if made is not None:
            return _kept(
                optimise(ProcessBelief(made[0], functions), functions, decisions, repeats, advance)
            )
        belief = ExactBelief(functions) if name == "exact" else RefittedBelief(functions)
        return _kept(optimise(belief, functions, decisions, repeats, advance))

    who = name if made is None else made[0].fingerprint
    asked = {"who": who, "kernel": kernel, "repeats": repeats, "functions": list(portion)}
    asked |= {"decisions": settings.decisions, "version": _VERSION}
    return _found(remembered(folder, "optimisation", asked, compute))


def _on_plane(
    name: str,
    made: tuple[Process, Ledger] | None,
    problem: Any,
    make: Callable[[Any], Any],
    settings: Settings,
    watch: Watch,
) -> Played:
    """All tasks of one test function, played or remembered."""
    from synopsis.reproduction.np_bo_plane import play

    regrets, seconds, decisions = [], [], settings.plane_decisions
    folder = settings.runs / name if made is None else made[1].folder
    for task in range(settings.tasks):

        def advance(done: int, task: int = task) -> None:
            what = f"{name} on {problem.name}"
            watch(what, task * decisions + done, settings.tasks * decisions)

        def compute(task: int = task, advance: Callable[[int], None] = advance) -> dict[str, Any]:
            regret, spent = play(problem, make(problem), task, decisions, advance)
            return {"regret": [regret], "seconds": spent}

        who = name if made is None else made[0].fingerprint
        asked = {"who": who, "problem": problem.name, "task": task, "version": _VERSION}
        asked["decisions"] = decisions
        result = remembered(folder, "optimisation", asked, compute)
        advance(decisions)
        regrets.append(torch.tensor(result["regret"], dtype=torch.float64))
        seconds.append(result["seconds"])
    return Played(torch.cat(regrets), sum(seconds) / len(seconds))


def standard_error(regret: Tensor) -> Tensor:
    """Of the mean over functions, for each number of decisions; NaN for a single function."""
    if len(regret) < 2:
        return torch.full_like(regret[0], math.nan)
    return regret.std(0) / math.sqrt(len(regret))


def _kept(played: Played) -> dict[str, Any]:
    rounded = [[float(f"{value:.6g}") for value in row] for row in played.regret.tolist()]
    return {"regret": rounded, "seconds": played.seconds, "nbytes": played.nbytes}


def _found(result: Mapping[str, Any]) -> Played:
    regret = torch.tensor(result["regret"], dtype=torch.float64)
    return Played(regret, result["seconds"], result["nbytes"])


def _together(parts: Sequence[Played]) -> Played:
    sizes = [len(part.regret) for part in parts]
    spent = sum(part.seconds * size for part, size in zip(parts, sizes, strict=True)) / sum(sizes)
    return Played(torch.cat([part.regret for part in parts]), spent, parts[0].nbytes)
