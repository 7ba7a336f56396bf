"""Covariance functions of Gaussian processes, as tasks are drawn from them.

They work in place on their first temporary: large ones cost page faults, not arithmetic.
"""

import math
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

KernelName = Literal["rbf", "matern52", "periodic"]

Distance = Float[Tensor, "*batch rows columns"]
PerTask = Float[Tensor, "*batch 1 1"]


def rbf(distance: Distance, length: PerTask, scale: PerTask) -> Distance:
    """Squared-exponential covariance, s² exp(−d² / 2ℓ²)."""
    return (distance / length).square_().mul_(-0.5).exp_().mul_(scale.square())


def matern52(distance: Distance, length: PerTask, scale: PerTask) -> Distance:
    """Matérn covariance of smoothness 5/2, s² (1 + r + r²/3) exp(−r) with r = √5 |d| / ℓ."""
    r = (distance * (math.sqrt(5) / length)).abs_()
    polynomial = (r / 3).add_(1).mul_(r).add_(1)
    return r.neg_().exp_().mul_(polynomial).mul_(scale.square())


def periodic(distance: Distance, length: PerTask, scale: PerTask, period: PerTask) -> Distance:
    """Periodic covariance, s² exp(−2 sin²(πd/p) / ℓ²)."""
    sine = (distance * (math.pi / period)).sin_()
    return sine.div_(length).square_().mul_(-2).exp_().mul_(scale.square())


class Hyperparameters(NamedTuple):
    """What makes one task's kernel, one value per task; for every kernel all three are drawn."""

    length: Float[Tensor, " batch"]
    scale: Float[Tensor, " batch"]
    period: Float[Tensor, " batch"]


def covariance(
    kernel: KernelName, x: Float[Tensor, "batch points"], hyper: Hyperparameters
) -> Float[Tensor, "batch points points"]:
    """Covariance of the noiseless function values at ``x``.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> covariance("rbf", torch.tensor([[0.0, 1.0]]), Hyperparameters(one, one, one))
        tensor([[[1.0000, 0.6065],
                 [0.6065, 1.0000]]])
    """
    distance = x[:, :, None] - x[:, None, :]
    length, scale, period = (value[:, None, None] for value in hyper)
    if kernel == "rbf":
        return rbf(distance, length, scale)
    if kernel == "matern52":
        return matern52(distance, length, scale)
    return periodic(distance, length, scale, period)


__all__ = ["Hyperparameters", "KernelName", "covariance", "matern52", "periodic", "rbf"]
