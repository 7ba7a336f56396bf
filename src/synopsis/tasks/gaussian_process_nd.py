"""Gaussian-process regression in two, three or more dimensions, with the exact answer.

The tasks that models for Bayesian optimisation are trained on. The covariance is
v exp(−|x − x′|² / 2ℓ²) with length-scale ℓ and variance v; all of a batch share one ℓ and one v
unless told otherwise.
"""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.kernels import rbf
from synopsis.tasks.laws import check_generator, check_settings, integer, uniform
from synopsis.tasks.oracle import cholesky, exact_oracle

LENGTHS = (0.1, 1.0)
VARIANCES = (0.1, 1.0)
POINTS = {2: (30, 128), 3: (64, 256)}  # published: fewest of either kind, bound on both together


class DrawND(NamedTuple):
    """A batch of noisy functions in float64, with all that is known of them."""

    x: Float[Tensor, "batch points dim_x"]
    y: Float[Tensor, "batch points"]
    context: int
    length: Float[Tensor, " batch"]
    variance: Float[Tensor, " batch"]
    factor: Float[Tensor, "batch points points"]  # Cholesky of the covariance of y


@dataclass(frozen=True)
class GaussianProcessNDTask:
    """Functions of several inputs from a Gaussian process, as published for optimisation.

    The published law: x ~ U[−2, 2)^D, N ~ U{lo..hi−lo−1}, then M ~ U{lo..hi−N−1} per batch, with
    (lo, hi) = (30, 128) for D = 2 and (64, 256) for D = 3; ℓ and v ~ U[0.1, 1), one draw per
    batch; zero mean.

    Args:
        dim_x: D, 1 or more.
        hyperparameters: "batch" for one ℓ and v per batch, "task" for one per task.
        min_context: fewest context points, 0 or more; None for lo.
        min_targets: fewest targets, 1 or more; None for lo.
        max_points: N + M stays below it; None for hi. For D other than 2 and 3 all three must be
            given.
        targets: None for the published law of M; a number gives every task that many.
        noise: standard deviation of the observation noise, positive. The published draws have
            none, and so no density; ours is that of the one-dimensional tasks.
        range: the interval of every coordinate.
        oracle: compute the exact log-densities of the targets.
        dtype: "float32" or "float64", of what is handed out; the oracle is always float64, and
            exact for the rounded numbers handed out.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> batch = GaussianProcessNDTask(dim_x=3).sample(4, torch.Generator().manual_seed(0))
        >>> batch.xc.shape[-1], batch.joint_oracle.shape
        (3, torch.Size([4]))

    Source: Nguyen & Grover, 2022 (Transformer neural processes), whose "output-scale" is GPyTorch's
    and so a variance.
    """

    dim_x: int = 2
    hyperparameters: Literal["batch", "task"] = "batch"
    min_context: int | None = None
    min_targets: int | None = None
    max_points: int | None = None
    targets: int | None = None
    noise: float = 0.02
    range: tuple[float, float] = (-2.0, 2.0)
    oracle: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    dim_y = 1  # not a field

    def __post_init__(self) -> None:
        _check_task(self)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw ``batch_size`` tasks that share one number of context and of target points.

        Raises:
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        draw = self.draw(batch_size, generator)
        dtype = getattr(torch, self.dtype)
        x, y, n = draw.x.to(dtype), draw.y.to(dtype)[:, :, None], draw.context
        batch = Batch(xc=x[:, :n], yc=y[:, :n], xt=x[:, n:], yt=y[:, n:])
        if not self.oracle:
            return batch
        exact = exact_oracle(draw.factor, draw.y, n)
        return replace(batch, oracle=exact.diagonal, joint_oracle=exact.joint)

    def draw(self, batch_size: int, generator: Generator) -> DrawND:
        """Draw what ``sample`` hands out, with ℓ, v and the covariance's factor."""
        check_generator(generator)
        dtype = getattr(torch, self.dtype)
        context, targets = self._sizes(generator)
        shape = (batch_size, context + targets)
        x = uniform((*shape, self.dim_x), self.range, generator).to(dtype).double()
        kernels = batch_size if self.hyperparameters == "task" else 1
        length = uniform((kernels,), LENGTHS, generator).expand(batch_size)
        variance = uniform((kernels,), VARIANCES, generator).expand(batch_size)
        normals = torch.randn((*shape, 1), generator=generator, dtype=torch.float64)
        matrix = covariance_nd(x, length, variance)
        matrix.diagonal(dim1=-2, dim2=-1).add_(self.noise**2)
        factor = cholesky(matrix)
        y = (factor @ normals)[:, :, 0].to(dtype).double()
        return DrawND(x, y, context, length, variance, factor)

    def _sizes(self, generator: Generator) -> tuple[int, int]:
        fewest, fewest_targets, bound = _bounds(self)
        context = integer(fewest, bound - fewest_targets - 1, generator)
        if self.targets is not None:
            return context, self.targets
        return context, integer(fewest_targets, bound - context - 1, generator)


def covariance_nd(
    x: Float[Tensor, "batch points dim_x"],
    length: Float[Tensor, " batch"],
    variance: Float[Tensor, " batch"],
) -> Float[Tensor, "batch points points"]:
    """Squared-exponential covariance of the noiseless function values at ``x``.

    Example:
        >>> one = torch.ones(1)
        >>> covariance_nd(torch.tensor([[[0.0, 0.0], [3.0, 4.0]]]), 5 * one, one)
        tensor([[[1.0000, 0.6065],
                 [0.6065, 1.0000]]])
    """
    # Not by products of inputs: cancellation would cost the closest pairs their digits.
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return rbf(distance, length[:, None, None], variance.sqrt()[:, None, None])


def _bounds(task: GaussianProcessNDTask) -> tuple[int, int, int]:
    """Fewest context points, fewest targets, and what their sum stays below."""
    low, high = POINTS.get(task.dim_x, (None, None))
    context = low if task.min_context is None else task.min_context
    targets = low if task.min_targets is None else task.min_targets
    bound = high if task.max_points is None else task.max_points
    if context is None or targets is None or bound is None:
        raise ValueError(
            f"min_context, min_targets and max_points are {task.min_context}, {task.min_targets} "
            f"and {task.max_points}; for dim_x {task.dim_x} all must be given"
        )
    return context, targets, bound


def _check_task(task: GaussianProcessNDTask) -> None:
    if task.dim_x < 1:
        raise ValueError(f"dim_x is {task.dim_x}; it must be 1 or more")
    context, targets, bound = _bounds(task)
    fewest, drawn, dtypes = context + targets + 1, ("batch", "task"), ("float32", "float64")
    rules = (
        ("hyperparameters", task.hyperparameters in drawn, f"be one of {', '.join(drawn)}"),
        ("dtype", task.dtype in dtypes, f"be one of {', '.join(dtypes)}"),
        ("min_context", context >= 0, "be 0 or more"),
        ("min_targets", targets >= 1, "be 1 or more"),
        ("max_points", bound >= fewest, f"be {fewest} or more"),
        ("targets", task.targets is None or task.targets >= 1, "be None or 1 or more"),
        ("noise", task.noise > 0, "be positive: without noise densities are unbounded"),
        ("range", task.range[0] < task.range[1], "be increasing"),
    )
    check_settings(task, rules)
