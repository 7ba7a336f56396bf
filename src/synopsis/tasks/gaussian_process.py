"""One-dimensional Gaussian-process regression, with the exact answer beside every batch.

A task is one function drawn from a Gaussian process with its own length-scale and scale, seen
through noise at random inputs.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.kernels import Hyperparameters, KernelName, covariance
from synopsis.tasks.laws import check_generator, check_settings, integer, uniform
from synopsis.tasks.oracle import cholesky, exact_oracle

PriorName = Literal["code", "text"]

LENGTHS: dict[PriorName, tuple[float, float]] = {"code": (0.1, 0.6), "text": (0.6, 1.0)}
SCALES = (0.1, 1.0)
PERIODS = (0.1, 0.5)
STUDENT_T_FREEDOM = 2.1
STUDENT_T_LARGEST = 0.15  # of the scale drawn per point when student_t is −1


class Draw(NamedTuple):
    """A batch of noisy functions in float64, with all that is known of them."""

    x: Float[Tensor, "batch points"]
    y: Float[Tensor, "batch points"]
    context: int
    hyper: Hyperparameters
    factor: Float[Tensor, "batch points points"]  # Cholesky of the covariance of y, without Student


@dataclass(frozen=True)
class GaussianProcessTask:
    """Functions of one input from a Gaussian process, as published for neural processes.

    The published law, with the defaults: x ~ U[−2, 2); one number of context points
    N ~ U{3..46} and then of targets M ~ U{3..49−N} per batch; per task length-scale
    ℓ ~ U[0.1, 0.6), scale s ~ U[0.1, 1), period p ~ U[0.1, 0.5); zero mean. One seed gives the
    same N, M, x, ℓ, s, p and underlying normals for all three kernels.

    Args:
        kernel: "rbf" (the one trained on), "matern52" or "periodic".
        prior: "code": ℓ ~ U[0.1, 0.6), as in the released code (and very likely the published
            tables); "text": ℓ ~ U[0.6, 1), as the paper says.
        max_points: N + M stays below it; at least ``min_context + min_targets + 1``.
        min_context: fewest context points, 0 or more.
        min_targets: fewest targets, 1 or more.
        targets: None for the published law of M; a number gives every task that many targets and
            leaves the law of N alone, which trains faster: targets are cheap, their noise is not.
        noise: standard deviation of the observation noise, positive; targets are noisy too.
        student_t: scale of additional Student-t noise of 2.1 degrees of freedom on every output;
            −1 draws the scale of each point from U[0, 0.15); None for none. It has no exact oracle.
        range: the interval of x.
        oracle: compute the exact log-densities of the targets.
        dtype: "float32" or "float64", of what is handed out; the oracle is always float64, and
            exact for the rounded numbers handed out.

    Example:
        >>> task = GaussianProcessTask(kernel="matern52")
        >>> batch = task.sample(16, torch.Generator().manual_seed(0))
        >>> batch.oracle.shape == batch.yt.shape[:2]
        True

    Source: Lee et al., 2020 (Bootstrapping neural processes), whose code later papers share.
    """

    kernel: KernelName = "rbf"
    prior: PriorName = "code"
    max_points: int = 50
    min_context: int = 3
    min_targets: int = 3
    targets: int | None = None
    noise: float = 0.02
    student_t: float | None = None
    range: tuple[float, float] = (-2.0, 2.0)
    oracle: bool = True
    dtype: Literal["float32", "float64"] = "float32"
    dim_x = 1  # not fields: a task of one dimension by construction
    dim_y = 1

    def __post_init__(self) -> None:
        _check_task(self)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw ``batch_size`` tasks that share one number of context and of target points.

        Raises:
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        draw = self.draw(batch_size, generator)
        dtype = getattr(torch, self.dtype)
        x, y = draw.x.to(dtype)[:, :, None], draw.y.to(dtype)[:, :, None]
        n = draw.context
        batch = Batch(xc=x[:, :n], yc=y[:, :n], xt=x[:, n:], yt=y[:, n:])
        if not self.oracle or self.student_t is not None:
            return batch
        exact = exact_oracle(draw.factor, draw.y, n)
        return replace(batch, oracle=exact.diagonal, joint_oracle=exact.joint)

    def draw(self, batch_size: int, generator: Generator) -> Draw:
        """Draw what ``sample`` hands out, with the hyper-parameters and the covariance's factor."""
        check_generator(generator)
        dtype = getattr(torch, self.dtype)
        context, targets = self._sizes(generator)
        shape = (batch_size, context + targets)
        x = uniform(shape, self.range, generator).to(dtype).double()
        hyper = Hyperparameters(
            uniform((batch_size,), LENGTHS[self.prior], generator),
            uniform((batch_size,), SCALES, generator),
            uniform((batch_size,), PERIODS, generator),
        )
        normals = torch.randn(shape, generator=generator, dtype=torch.float64)
        matrix = covariance(self.kernel, x, hyper)
        matrix.diagonal(dim1=-2, dim2=-1).add_(self.noise**2)
        factor = cholesky(matrix)
        y = (factor @ normals[:, :, None])[:, :, 0]
        if self.student_t is not None:
            y = y + student_t_noise(shape, self.student_t, generator)
        return Draw(x, y.to(dtype).double(), context, hyper, factor)

    def _sizes(self, generator: Generator) -> tuple[int, int]:
        largest = self.max_points - self.min_targets - 1
        context = integer(self.min_context, largest, generator)
        if self.targets is not None:
            return context, self.targets
        return context, integer(self.min_targets, self.max_points - 1 - context, generator)


def student_t_noise(
    shape: tuple[int, ...], scale: float, generator: Generator
) -> Float[Tensor, "..."]:
    """Student-t noise of 2.1 degrees of freedom; scale −1 draws each point's from U[0, 0.15).

    Source: Bailey, 1994, Polar generation of random variates with the t-distribution: exact, and
    unlike ``torch.distributions`` it draws from a generator.
    """
    freedom = STUDENT_T_FREEDOM
    u, angle = torch.rand((2, *shape), generator=generator, dtype=torch.float64)
    radius = (freedom * torch.expm1(-2 / freedom * torch.log1p(-u))).sqrt()
    noise = radius * torch.cos(2 * math.pi * angle)
    if scale == -1:
        return noise * uniform(shape, (0.0, STUDENT_T_LARGEST), generator)
    return noise * scale


def _check_task(task: GaussianProcessTask) -> None:
    kernels, priors, dtypes = get_args(KernelName), get_args(PriorName), ("float32", "float64")
    fewest = task.min_context + task.min_targets + 1
    rules = (
        ("kernel", task.kernel in kernels, f"be one of {', '.join(kernels)}"),
        ("prior", task.prior in priors, f"be one of {', '.join(priors)}"),
        ("dtype", task.dtype in dtypes, f"be one of {', '.join(dtypes)}"),
        ("min_context", task.min_context >= 0, "be 0 or more"),
        ("min_targets", task.min_targets >= 1, "be 1 or more"),
        ("max_points", task.max_points >= fewest, f"be {fewest} or more"),
        ("targets", task.targets is None or task.targets >= 1, "be None or 1 or more"),
        ("noise", task.noise > 0, "be positive: without noise densities are unbounded"),
        ("range", task.range[0] < task.range[1], "be increasing"),
    )
    check_settings(task, rules)
    if task.student_t is not None and task.student_t != -1 and not task.student_t > 0:
        raise ValueError(f"student_t is {task.student_t}; it must be None, positive, or -1")
