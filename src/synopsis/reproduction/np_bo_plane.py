"""Bayesian optimisation of test functions of two inputs, by BoTorch's own acquisition function and optimiser.

A process comes in through :mod:`synopsis.adapters.botorch`: outputs standardised by the first observations, inputs
mapped to the square it was trained on. Beside it stand a Gaussian process that is refitted after every observation,
BoTorch's ``SingleTaskGP`` as it comes, and search at random.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from botorch.acquisition import UpperConfidenceBound
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize
from botorch.optim import optimize_acqf
from botorch.test_functions import Ackley, DropWave, Michalewicz
from gpytorch.mlls import ExactMarginalLogLikelihood
from jaxtyping import Float
from torch import Tensor

from synopsis.adapters.botorch import NeuralProcessModel
from synopsis.processes.base import Process
from synopsis.training.seeds import derived_seed, own_randomness

BETA = 0.1  # of the confidence bound, mean − √β·sd
RESTARTS, RAW_SAMPLES = 50, 100
_EDGE = 2.0  # domains are clipped to the square that processes are trained on
_ZOOMS, _LINES = 12, 201  # of the search for the true minimum

Propose = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """A function to be minimised over a rectangle.

    Args:
        name: of the function.
        function: of (points, 2), gives (points,).
        bounds: lowest and highest value of each input.
    """

    name: str
    function: Callable[[Float[Tensor, "points 2"]], Float[Tensor, " points"]]
    bounds: Float[Tensor, "2 2"]

    def least(self) -> float:
        """The least value in the rectangle: of a grid, and of finer ones around the best point so far.

        Example:
            >>> bowl = Problem("bowl", lambda x: (x - 0.3).square().sum(-1), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
            >>> round(bowl.least(), 6)
            0.0
        """
        low, high = self.bounds
        value = torch.tensor(torch.inf)
        for _ in range(_ZOOMS):
            lines = [torch.linspace(*edges, _LINES, dtype=low.dtype) for edges in _pairs(low, high)]
            points = torch.cartesian_prod(*lines)
            values = self.function(points)
            best, reach = points[values.argmin()], 4 * (high - low) / _LINES
            value = torch.minimum(value, values.min())
            low = torch.maximum(best - reach, self.bounds[0])
            high = torch.minimum(best + reach, self.bounds[1])
        return float(value)


def problems() -> dict[str, Problem]:
    """BoTorch's test functions, on the part of their domain that lies in [−2, 2]²."""
    found = {}
    for name, kind in (("Ackley", Ackley), ("DropWave", DropWave), ("Michalewicz", Michalewicz)):
        function = kind() if kind is DropWave else kind(dim=2)
        bounds = function.bounds.double().clamp(-_EDGE, _EDGE)
        found[name] = Problem(name, function, bounds)
    return found


def play(
    problem: Problem,
    propose: Propose,
    seed: int,
    decisions: int,
    watch: Callable[[int], None] = lambda _: None,
) -> tuple[list[float], float]:
    """Minimise a function from one random point on.

    Args:
        problem: what is minimised.
        propose: gives the next point, of shape (1, 2), knowing all (points, 2) so far and their (points, 1) values.
        seed: of the first point and whatever else is random; every strategy starts from the same one.
        decisions: points after the first one.
        watch: called after each decision with how many were made.

    Returns:
        Least value so far minus the least there is, after 0, 1, … decisions; CPU-seconds of a decision.
    """
    with own_randomness(derived_seed(seed, "first point")):
        low, high = problem.bounds
        X = low + (high - low) * torch.rand(1, 2, dtype=low.dtype)
    Y = problem.function(X)[:, None]
    begin = time.process_time()
    for decision in range(decisions):
        with own_randomness(derived_seed(seed, "decision", decision)), _quiet():
            X = torch.cat([X, propose(X, Y).detach()])
        Y = torch.cat([Y, problem.function(X[-1:])[:, None]])
        watch(decision + 1)
    spent = (time.process_time() - begin) / max(1, decisions)
    regret = Y[:, 0].cummin(0).values - problem.least()
    return regret.clamp(min=0).tolist(), spent


def by_process(process: Process, problem: Problem) -> Propose:
    """A process that is told every point once, as it comes."""
    told: list[NeuralProcessModel] = [NeuralProcessModel(process, bounds=problem.bounds)]

    def propose(X: Tensor, Y: Tensor) -> Tensor:
        told[0] = told[0].condition_on_observations(X[-1:], Y[-1:])
        return _best(told[0], problem)

    return propose


def by_refitting(problem: Problem) -> Propose:
    """BoTorch's Gaussian process with its defaults, refitted to all points every time."""

    def propose(X: Tensor, Y: Tensor) -> Tensor:
        model = SingleTaskGP(X, Y, input_transform=Normalize(2, bounds=problem.bounds))
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        return _best(model, problem)

    return propose


def at_random(problem: Problem) -> Propose:
    """A point drawn uniformly."""
    low, high = problem.bounds
    return lambda *_: low + (high - low) * torch.rand(1, 2, dtype=low.dtype)


def strategies(processes: Sequence[tuple[str, Process]]) -> dict[str, Callable[[Problem], Propose]]:
    """All who optimise, by name: processes, then the two to compare them with."""
    named: dict[str, Callable[[Problem], Propose]] = {
        name: partial(by_process, process) for name, process in processes
    }
    return {**named, "refitted": by_refitting, "random": at_random}


def _best(model: Any, problem: Problem) -> Tensor:
    acquisition = UpperConfidenceBound(model, beta=BETA, maximize=False)
    found: Tensor = optimize_acqf(
        acquisition, problem.bounds, q=1, num_restarts=RESTARTS, raw_samples=RAW_SAMPLES
    )[0]
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without BoTorch's warnings that a search stalled, after which it starts another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _pairs(low: Tensor, high: Tensor) -> list[tuple[float, float]]:
    return list(zip(low.tolist(), high.tolist(), strict=True))
