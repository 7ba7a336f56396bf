"""One-dimensional Gaussian-process regression, with the exact answer beside every batch.

A task is one function drawn from a Gaussian process with its own length-scale and scale, seen
through noise at random inputs. Context and targets are ordered context first, so that the one
Cholesky factor L that draws the outputs also holds the exact prediction of the targets: with
ε = L⁻¹y and L cut at the last context point into rows c and t,

    y_t | y_c  ~  N(L_tc ε_c,  L_tt L_ttᵀ),    log p(y_t | y_c) = log N(ε_t; 0, 1) − log det L_tt
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor

from synopsis.tasks.base import Batch, Task

KernelName = Literal["rbf", "matern52", "periodic"]
PriorName = Literal["code", "text"]

LENGTHS: dict[PriorName, tuple[float, float]] = {"code": (0.1, 0.6), "text": (0.6, 1.0)}
SCALES = (0.1, 1.0)
PERIODS = (0.1, 0.5)
STUDENT_T_FREEDOM = 2.1
STUDENT_T_LARGEST = 0.15  # of the scale drawn per point when student_t is −1
WEYL_STEP = 0x9E3779B1  # odd: a bijection modulo 2³²; near 2³² / golden ratio: well spread
JITTER = 1e-8  # relative to the largest variance, and only after a failure


Distance = Float[Tensor, "*batch rows columns"]
PerTask = Float[Tensor, "*batch 1 1"]


# The kernels work in place on their first temporary: large ones cost page faults, not arithmetic.
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
        if generator.device.type != "cpu":
            raise ValueError(f"generator is on {generator.device}; it must be on the cpu")
        dtype = getattr(torch, self.dtype)
        context, targets = self._sizes(generator)
        shape = (batch_size, context + targets)
        x = _uniform(shape, self.range, generator).to(dtype).double()
        hyper = Hyperparameters(
            _uniform((batch_size,), LENGTHS[self.prior], generator),
            _uniform((batch_size,), SCALES, generator),
            _uniform((batch_size,), PERIODS, generator),
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
        context = _integer(self.min_context, largest, generator)
        if self.targets is not None:
            return context, self.targets
        return context, _integer(self.min_targets, self.max_points - 1 - context, generator)


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
        return noise * _uniform(shape, (0.0, STUDENT_T_LARGEST), generator)
    return noise * scale


def batch_generator(seed: int, index: int) -> Generator:
    """The generator of batch ``index`` of the set ``seed``, 0 or more.

    torch's CPU generator keeps 32 bits of a seed; within a set no two of 2³² batches share theirs.
    """
    origin = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return Generator().manual_seed((origin + WEYL_STEP * index) % 2**32)


def evaluation_batches(
    task: Task, batches: int | Iterable[int], batch_size: int, seed: int
) -> Iterator[Batch]:
    """Fixed batches, each from a generator of its own: any of them can be made alone, anywhere.

    Args:
        task: what to draw from.
        batches: how many, or the indices of those wanted, in any order.
        batch_size: tasks per batch; part of what identifies a set.
        seed: names the set, 0 or more.

    Example:
        >>> task = GaussianProcessTask()
        >>> last = [*evaluation_batches(task, 100, 16, seed=0)][99]
        >>> alone = next(evaluation_batches(task, [99], 16, seed=0))
        >>> bool((last.yt == alone.yt).all())
        True
    """
    for index in range(batches) if isinstance(batches, int) else batches:
        yield task.sample(batch_size, batch_generator(seed, index))


def _uniform(
    shape: tuple[int, ...], interval: tuple[float, float], generator: Generator
) -> Float[Tensor, "..."]:
    low, high = interval
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def _integer(low: int, high: int, generator: Generator) -> int:
    """Uniform over low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


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
    for name, holds, wanted in rules:
        if not holds:
            raise ValueError(f"{name} is {getattr(task, name)!r}; it must {wanted}")
    if task.student_t is not None and task.student_t != -1 and not task.student_t > 0:
        raise ValueError(f"student_t is {task.student_t}; it must be None, positive, or -1")
