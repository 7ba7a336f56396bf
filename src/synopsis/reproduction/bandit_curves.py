"""Regret curves of the wheel bandit: what is remembered of runs, and the numbers of the table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from synopsis.reproduction.bandit_agents import Play, regret_of
from synopsis.tasks.wheel_bandit import WheelBandit

DELTAS = (0.7, 0.9, 0.95, 0.99, 0.995)  # streams are the runs of every one of these in turn
_TAIL = 0.25  # share of the steps, the last ones, that simple regret is taken over


@dataclass(frozen=True)
class Curves:
    """Cumulative regret at every ``grid``-th step played, and what it cost.

    Args:
        regret: by δ, run and point.
        seconds: CPU-seconds of one step of one run, by point: the mean over the steps before it.
        played: steps of each run.
        nbytes: that are kept of one run at the end; 0 where nothing is.
    """

    regret: Float64[Tensor, "deltas runs points"]
    seconds: Float64[Tensor, " points"]
    played: int
    nbytes: int = 0

    def final(self, uniform: "Curves") -> Float64[Tensor, "deltas runs"]:
        """Cumulative regret in per cent of the uniform agent's mean over as many steps."""
        last = self.regret.shape[-1] - 1
        return 100 * self.regret[..., -1] / uniform.regret[..., last].mean(-1, keepdim=True)

    def simple(self, uniform: "Curves") -> Float64[Tensor, "deltas runs"]:
        """Regret of the last quarter of the whole run's steps, or of all if fewer were played, in the same units."""
        tail, points = max(1, round(_TAIL * uniform.regret.shape[-1])), self.regret.shape[-1]
        ours, theirs = (
            c.regret[..., points - 1] - (c.regret[..., points - 1 - tail] if points > tail else 0.0)
            for c in (self, uniform)
        )
        return 100 * ours / theirs.mean(-1, keepdim=True)


def of_arms(
    bandits: Sequence[WheelBandit], arms: Int[Tensor, "streams steps"], grid: int
) -> Curves:
    """The curves of agents whose arms are known; they cost nothing and keep nothing."""
    return _curves([_points(regret_of(bandits, arms), grid)], [], arms.shape[1], 0)


def kept(found: Play, grid: int) -> dict[str, Any]:
    """What is remembered of a portion of runs, as JSON: whole points of the curves.

    Args:
        found: what was played, ``grid`` steps at least.
        grid: steps between two points.
    """
    points = found.regret.shape[1] // grid
    seconds = found.seconds[: points * grid].double().view(points, grid).mean(-1)
    return {
        "regret": [[round(v, 4) for v in run] for run in _points(found.regret, grid).tolist()],
        "seconds": (seconds / len(found.regret)).tolist(),
        "played": points * grid,
        "nbytes": found.nbytes,
        "cpu_seconds": float(found.seconds.sum()),
    }


def together(portions: Sequence[Mapping[str, Any]], grid: int) -> Curves:
    """The curves of all portions of runs, as far as the shortest goes; costs are means over runs."""
    played = min(portion["played"] for portion in portions)
    points = played // grid
    each = [torch.tensor(portion["seconds"][:points]) for portion in portions]
    weights = torch.tensor([float(len(portion["regret"])) for portion in portions])
    seconds = (torch.stack(each) * weights[:, None]).sum(0) / weights.sum()
    regret = [torch.tensor(portion["regret"], dtype=torch.float64) for portion in portions]
    nbytes = portions[-1]["nbytes"]
    return _curves([r[:, :points] for r in regret], seconds.tolist(), played, nbytes)


def _points(regret: Float[Tensor, "streams steps"], grid: int) -> Float64[Tensor, "streams points"]:
    """Cumulative regret at every ``grid``-th step."""
    return regret.double().cumsum(1)[:, grid - 1 :: grid]


def _curves(
    regret: Sequence[Float64[Tensor, "streams points"]],
    seconds: Sequence[float],
    played: int,
    nbytes: int,
) -> Curves:
    """Curves by δ."""
    each = [one.unflatten(0, (len(DELTAS), -1)) for one in regret]
    cost = torch.tensor(list(seconds), dtype=torch.float64)
    return Curves(torch.cat(each, dim=1), cost, played, nbytes)
