"""What an exact Gaussian process costs on the same rows: one Cholesky factorisation for every refit."""

import time
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

_NOISE_VARIANCE = 0.1
_SMALLEST, _SMALL, _REPEATS = 16, 256, 3


@dataclass(frozen=True)
class GaussianProcessCost:
    """One refit on ``rows`` rows and one prediction: CPU milliseconds, and bytes of data and factor."""

    rows: int
    milliseconds: float
    nbytes: int


def measure_exact_gp(
    rows: NDArray[np.float64], budget_seconds: float = 6.0
) -> tuple[GaussianProcessCost, ...]:
    """Time exact Gaussian process regression refitted on 16, 32, 64, ... of the rows.

    Its kernel is given (squared exponential, unit length-scale on standardised inputs), so this is the least an exact
    refit can cost: finding the kernel's parameters would take tens of such factorisations more.

    Args:
        rows: inputs and, in the last column, y.
        budget_seconds: CPU time after which no larger size is begun; a size is begun only if it should fit.
    """
    data = torch.from_numpy(np.nan_to_num(rows))
    data = (data - data.mean(0)) / data.std(0, correction=0).clamp_min(1e-9)
    _refit(data[:_SMALLEST])  # the first call pays for setting up
    costs: list[GaussianProcessCost] = []
    size, spent = _SMALLEST, 0.0
    while size <= len(data) and spent + _forecast(costs) < budget_seconds:
        costs.append(_refit(data[:size]))
        spent += costs[-1].milliseconds / 1000
        size = min(2 * size, len(data)) if size < len(data) else size + 1
    return tuple(costs)


def _forecast(costs: list[GaussianProcessCost]) -> float:
    """Doubling the rows takes up to eight times as long."""
    return 8 * costs[-1].milliseconds / 1000 if costs else 0.0


def _refit(data: Float64[Tensor, "rows columns"]) -> GaussianProcessCost:
    x, y = data[:, :-1], data[:, -1:]
    times = []
    for _ in range(_REPEATS if len(data) <= _SMALL else 1):
        start = time.process_time()
        factor = _predict(x, y)
        times.append(1000 * (time.process_time() - start))
    return GaussianProcessCost(len(data), min(times), factor.nbytes + data.nbytes)


def _predict(
    x: Float64[Tensor, "rows dim"], y: Float64[Tensor, "rows 1"]
) -> Float64[Tensor, "rows rows"]:
    """Fit to all rows and predict the last one; returns what a Gaussian process has to keep."""
    kernel = torch.cdist(x, x).square_().mul_(-0.5).exp_()
    kernel.diagonal().add_(_NOISE_VARIANCE)
    factor = cast(Tensor, torch.linalg.cholesky(kernel))
    weights = torch.cholesky_solve(y, factor)
    across = torch.exp(-0.5 * torch.cdist(x[-1:], x).square())
    mean = across @ weights
    variance = 1 - torch.linalg.solve_triangular(factor, across.T, upper=False).square().sum()
    float(mean.sum() + variance)
    return factor
