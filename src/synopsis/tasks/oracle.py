"""The exact prediction of a Gaussian process, by whoever knows its kernel.

Points are ordered context first, so that the one Cholesky factor L that draws the outputs also holds the exact
prediction of the targets: with ε = L⁻¹y and L cut at the last context point into rows c and t,

    y_t | y_c  ~  N(L_tc ε_c,  L_tt L_ttᵀ),    log p(y_t | y_c) = log N(ε_t; 0, 1) − log det L_tt
"""

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

JITTER = 1e-8  # relative to the largest variance, and only after a failure


def cholesky(
    matrix: Float[Tensor, "batch points points"],
) -> Float[Tensor, "batch points points"]:
    """Lower Cholesky factors of the matrices as they are; jitter only where that fails, and said.

    Returns:
        The factors. A matrix that fails is tried once more with ``JITTER`` of its largest variance
        on the diagonal, under a RuntimeWarning; the others are left alone.

    Raises:
        torch.linalg.LinAlgError: a matrix is not positive definite even so.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    failed = info != 0
    if not failed.any():
        return factor
    warnings.warn(
        f"{int(failed.sum())} of {len(matrix)} covariance matrices are not positive definite; "
        f"adding {JITTER:g} of their largest variance to the diagonal",
        RuntimeWarning,
        stacklevel=2,
    )
    variances = matrix.diagonal(dim1=-2, dim2=-1)
    jitter = failed[:, None] * JITTER * variances.amax(dim=-1, keepdim=True)
    factor = torch.linalg.cholesky(matrix + torch.diag_embed(jitter.expand_as(variances)))
    return factor


class Oracle(NamedTuple):
    """The exact prediction of noisy targets given the context, by whoever knows the kernel."""

    mean: Float[Tensor, "batch targets"]
    stddev: Float[Tensor, "batch targets"]
    diagonal: Float[Tensor, "batch targets"]  # log-density of each target by itself, nats
    joint: Float[Tensor, " batch"]  # log-density of all targets together, nats


def normal_log_density(
    y: Float[Tensor, "..."], mean: Float[Tensor, "..."], stddev: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Log-density of ``y`` under independent normal distributions, nats."""
    return -0.5 * ((y - mean) / stddev).square() - stddev.log() - 0.5 * math.log(2 * math.pi)


def exact_oracle(
    factor: Float[Tensor, "batch points points"], y: Float[Tensor, "batch points"], context: int
) -> Oracle:
    """Exact prediction of the last points given the first ``context`` of them.

    Args:
        factor: lower Cholesky factor of the covariance of ``y``, noise included.
        y: outputs, context first.
        context: how many points come before the targets; 0 gives the prior.

    Returns:
        Means, standard deviations and log-densities of the points after the context.

    Example:
        >>> oracle = exact_oracle(torch.eye(3)[None], torch.zeros(1, 3), context=1)
        >>> oracle.diagonal
        tensor([[-0.9189, -0.9189]])
    """
    white = torch.linalg.solve_triangular(factor, y[:, :, None], upper=False)[:, :, 0]
    cross, own = factor[:, context:, :context], factor[:, context:, context:]
    mean = (cross @ white[:, :context, None])[:, :, 0]
    stddev = own.square().sum(dim=-1).sqrt()
    joint = normal_log_density(white[:, context:], torch.zeros(()), torch.ones(())).sum(dim=-1)
    joint = joint - own.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return Oracle(mean, stddev, normal_log_density(y[:, context:], mean, stddev), joint)


__all__ = ["Oracle", "cholesky", "exact_oracle", "normal_log_density"]
