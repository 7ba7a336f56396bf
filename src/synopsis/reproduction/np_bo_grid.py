"""Bayesian optimisation on a grid: functions of one input, and expected improvement over all of it.

All functions of a portion are optimised side by side. What is believed of a function is a mean and a standard deviation
of the *observation* at each of the grid's points, noise included.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from synopsis.tasks.gaussian_process import LENGTHS, PERIODS, SCALES
from synopsis.tasks.kernels import Hyperparameters, KernelName, covariance
from synopsis.tasks.oracle import cholesky

POINTS = 1000  # of the grid
NOISE = 0.02  # standard deviation, as in the tasks that processes are trained on
_RANDOM_SEED = 1_000_000  # far from those of functions


@dataclass(frozen=True)
class Functions:
    """Functions on the grid, with all that is known of them.

    Args:
        kernel: they were drawn from.
        x: the grid.
        y: their values, noise included: a function gives the same value whenever it is asked for it.
        hyper: length-scale, scale and period of each.
        start: where the first observation of each is made.
        first: number of the first of them.
    """

    kernel: KernelName
    x: Float[Tensor, " points"]
    y: Float[Tensor, "functions points"]
    hyper: Hyperparameters
    start: Int[Tensor, " functions"]
    first: int

    @classmethod
    def drawn(cls, kernel: KernelName, first: int, last: int, points: int = POINTS) -> "Functions":
        """Functions ``first`` to ``last``, the latter not included; number i is drawn from seed i.

        Example:
            >>> Functions.drawn("rbf", 0, 2, points=50).y.shape
            torch.Size([2, 50])
        """
        x = torch.linspace(-2, 2, points, dtype=torch.float64)
        values, hypers, starts = [], [], []
        for seed in range(first, last):
            generator = Generator().manual_seed(seed)
            hyper = _hyperparameters(generator)
            factor = cholesky(of_observations(kernel, x, hyper))
            normals = torch.randn(1, points, 1, generator=generator, dtype=torch.float64)
            values.append((factor @ normals)[0, :, 0])
            hypers.append(hyper)
            starts.append(torch.randint(points, (), generator=generator))
        together = Hyperparameters(*map(torch.cat, zip(*hypers, strict=True)))
        return cls(kernel, x, torch.stack(values), together, torch.stack(starts), first)

    def __len__(self) -> int:
        return len(self.y)

    def at(self, places: Int[Tensor, " functions"]) -> Float[Tensor, " functions"]:
        """The value of each function at a place of its own."""
        return self.y.gather(1, places[:, None])[:, 0]


class Belief(Protocol):
    """What is believed of functions, one observation of each after another."""

    def tell(self, places: Int[Tensor, " functions"]) -> None:
        """Learn the values at these places, one of each function."""
        ...

    def predict(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of an observation, each (functions, points), float64."""
        ...


@dataclass(frozen=True)
class Played:
    """How an optimisation went.

    Args:
        regret: least value so far minus the least there is, after 0, 1, … decisions.
        seconds: CPU time of one decision for one function.
        nbytes: kept of a function in the end; None where it is the observations.
    """

    regret: Float[Tensor, "functions decisions"]
    seconds: float
    nbytes: int | None = None


def optimise(
    belief: Belief,
    functions: Functions,
    decisions: int,
    repeats: bool = True,
    watch: Callable[[int], None] = lambda _: None,
) -> Played:
    """Minimise functions by expected improvement over the least value so far.

    Args:
        belief: that has been told nothing.
        functions: to be minimised.
        decisions: observations after the first one, whose place was drawn.
        repeats: a place may be chosen again, as published.
        watch: called after each decision with how many were made.
    """
    belief.tell(functions.start)
    best, least = functions.at(functions.start), functions.y.amin(1)
    tried = torch.zeros_like(functions.y, dtype=torch.bool).scatter(
        1, functions.start[:, None], True
    )
    regrets, begin = [best - least], time.process_time()
    for decision in range(decisions):
        gain = expected_improvement(best[:, None], *belief.predict())
        chosen = gain.masked_fill(tried & (not repeats), -1.0).argmax(1)
        tried.scatter_(1, chosen[:, None], True)
        belief.tell(chosen)
        best = torch.minimum(best, functions.at(chosen))
        regrets.append(best - least)
        watch(decision + 1)
    spent = (time.process_time() - begin) / max(1, decisions * len(functions))
    return Played(torch.stack(regrets, 1), spent, getattr(belief, "nbytes", None))


def search_at_random(functions: Functions, decisions: int, repeats: bool = True) -> Played:
    """Places drawn uniformly: what any belief must beat."""
    generator = Generator().manual_seed(_RANDOM_SEED + functions.first)
    size, points = (len(functions), decisions), len(functions.x)
    order = torch.rand(len(functions), points, generator=generator)
    order = order.scatter(1, functions.start[:, None], math.inf).argsort(1)[:, :decisions]
    places = torch.randint(points, size, generator=generator) if repeats else order
    places = torch.cat([functions.start[:, None], places], dim=1)
    best = functions.y.gather(1, places).cummin(1).values
    return Played(best - functions.y.amin(1, keepdim=True), 0.0)


def expected_improvement(
    best: Float[Tensor, "functions 1"],
    mean: Float[Tensor, "functions points"],
    stddev: Float[Tensor, "functions points"],
) -> Float[Tensor, "functions points"]:
    """E[max(best − Y, 0)] of a Gaussian Y, in the units of y.

    Example:
        >>> zero = torch.zeros(1, 1, dtype=torch.float64)
        >>> round(expected_improvement(zero, zero, zero + 1).item(), 4)
        0.3989

    Source: Jones, Schonlau & Welch, "Efficient Global Optimization of Expensive Black-Box Functions", 1998.
    """
    ahead = (best - mean) / stddev
    density = (-0.5 * ahead.square()).exp() / math.sqrt(2 * math.pi)
    return stddev * (ahead * torch.special.ndtr(ahead) + density)


def _hyperparameters(generator: Generator) -> Hyperparameters:
    """Of one function, by the law of the tasks that processes are trained on."""
    ranges = (LENGTHS["code"], SCALES, PERIODS)
    draws = torch.rand(3, generator=generator, dtype=torch.float64)
    return Hyperparameters(
        *(low + (high - low) * draw[None] for (low, high), draw in zip(ranges, draws, strict=True))
    )


def of_observations(
    kernel: KernelName, x: Float[Tensor, " points"], hyper: Hyperparameters
) -> Float[Tensor, "functions points points"]:
    """Covariance of the values at the grid's points, noise included."""
    matrix = covariance(kernel, x.expand(len(hyper.length), -1), hyper)
    matrix.diagonal(dim1=-2, dim2=-1).add_(NOISE**2)
    return matrix
