"""Four processes with fixed parameters, and their mixture: which one it is must be inferred.

Three are Gaussian, with unit variance and, D = |x − x′|,

    eq               exp(−D² / 2ℓ²), ℓ = 0.25
    matern           (1 + r + r²/3) exp(−r), r = √5 D / 0.25
    weakly-periodic  exp(−D² / 2ℓ²) exp(−2 sin²(πD / p)), ℓ = 0.5, p = 0.25

and the fourth is the sawtooth.

Source: the released code of Bruinsma et al., 2023 (Autoregressive conditional neural processes).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from synopsis.tasks.base import Batch, Task
from synopsis.tasks.kernels import matern52, periodic, rbf
from synopsis.tasks.laws import check_generator, check_settings, integer, uniform
from synopsis.tasks.oracle import cholesky, exact_oracle
from synopsis.tasks.sawtooth import SawtoothTask

GaussianName = Literal["eq", "matern", "weakly-periodic"]
ComponentName = Literal["eq", "matern", "weakly-periodic", "sawtooth"]

NOISE = math.sqrt(0.05)


def fixed_covariance(
    kernel: GaussianName, x: Float[Tensor, "batch points"]
) -> Float[Tensor, "batch points points"]:
    """Covariance of the noiseless function values at ``x``.

    Example:
        >>> fixed_covariance("eq", torch.tensor([[0.0, 0.25]]))[0, 0]
        tensor([1.0000, 0.6065])
    """
    distance = x[:, :, None] - x[:, None, :]
    one = x.new_ones(1, 1, 1)
    if kernel == "eq":
        return rbf(distance, one / 4, one)
    if kernel == "matern":
        return matern52(distance, one / 4, one)
    return rbf(distance, one / 2, one) * periodic(distance, one, one, one / 4)


@dataclass(frozen=True)
class FixedGaussianProcessTask:
    """Functions from a Gaussian process whose kernel never changes, with the exact answer.

    The published law: x ~ U[−2, 2); one N ~ U{0..30} per batch and M = 50; noise of variance 0.05.

    Args:
        kernel: "eq", "matern" or "weakly-periodic".
        min_context: fewest context points, 0 or more.
        max_context: most context points.
        targets: number of targets, 1 or more.
        noise: standard deviation of the observation noise, positive; targets are noisy too.
        context_range: interval of the context's x.
        target_range: the same of the targets. Published evaluations: both (−2, 2), interpolation;
            both (2, 6), interpolation beyond the range of training; (−2, 2) and (2, 6),
            extrapolation.
        oracle: compute the exact log-densities of the targets.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> task = FixedGaussianProcessTask("weakly-periodic", target_range=(2.0, 6.0))
        >>> batch = task.sample(4, torch.Generator().manual_seed(0))
        >>> batch.oracle.shape
        torch.Size([4, 50])
    """

    kernel: GaussianName = "eq"
    min_context: int = 0
    max_context: int = 30
    targets: int = 50
    noise: float = NOISE
    context_range: tuple[float, float] = (-2.0, 2.0)
    target_range: tuple[float, float] = (-2.0, 2.0)
    oracle: bool = True
    dim_x = 1  # not fields
    dim_y = 1

    def __post_init__(self) -> None:
        kernels, least = get_args(GaussianName), self.min_context
        rules = (
            ("kernel", self.kernel in kernels, f"be one of {', '.join(kernels)}"),
            ("min_context", least >= 0, "be 0 or more"),
            ("max_context", self.max_context >= least, f"be {least} or more"),
            ("targets", self.targets >= 1, "be 1 or more"),
            ("noise", self.noise > 0, "be positive: without noise densities are unbounded"),
            ("context_range", self.context_range[0] < self.context_range[1], "be increasing"),
            ("target_range", self.target_range[0] < self.target_range[1], "be increasing"),
        )
        check_settings(self, rules)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw ``batch_size`` functions that share one number of context points.

        Raises:
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        check_generator(generator)
        n = integer(self.min_context, self.max_context, generator)
        # Rounded first, so that the oracle is exact for the numbers handed out.
        x = torch.cat(
            [
                uniform((batch_size, n), self.context_range, generator),
                uniform((batch_size, self.targets), self.target_range, generator),
            ],
            dim=1,
        ).float()
        matrix = fixed_covariance(self.kernel, x.double())
        matrix.diagonal(dim1=-2, dim2=-1).add_(self.noise**2)
        factor = cholesky(matrix)
        normals = torch.randn((*x.shape, 1), generator=generator, dtype=torch.float64)
        y = (factor @ normals).float()
        exact = exact_oracle(factor, y[:, :, 0].double(), n) if self.oracle else None
        return Batch(
            xc=x[:, :n, None],
            yc=y[:, :n],
            xt=x[:, n:, None],
            yt=y[:, n:],
            oracle=None if exact is None else exact.diagonal,
            joint_oracle=None if exact is None else exact.joint,
        )


@dataclass(frozen=True)
class ProcessMixture:
    """Every batch comes from one of several processes, drawn with equal probability.

    The published law: the four components share N ~ U{0..30}, M = 100 and x ~ U[−2, 2). The oracle
    of a batch, where it has one, is that of whoever knows its component: no model can reach it
    with little context.

    Args:
        components: which processes, at least one; a name given twice weighs twice.
        max_context: most context points, 0 or more.
        targets: number of targets, 1 or more.
        context_range: interval of the context's x.
        target_range: the same of the targets.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> task = ProcessMixture(components=("eq", "sawtooth"))
        >>> task.sample(4, torch.Generator().manual_seed(0)).xt.shape
        torch.Size([4, 100, 1])
    """

    components: tuple[ComponentName, ...] = ("eq", "matern", "sawtooth", "weakly-periodic")
    max_context: int = 30
    targets: int = 100
    context_range: tuple[float, float] = (-2.0, 2.0)
    target_range: tuple[float, float] = (-2.0, 2.0)
    dim_x = 1  # not fields
    dim_y = 1

    def __post_init__(self) -> None:
        known = get_args(ComponentName)
        if not self.components or not set(self.components) <= set(known):
            raise ValueError(
                f"components are {self.components!r}; they must be among {', '.join(known)}"
            )
        for index in range(len(self.components)):
            self.component(index)  # raises where it cannot be

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Draw a component, then ``batch_size`` functions of it."""
        check_generator(generator)
        index = int(torch.randint(len(self.components), (), generator=generator))
        return self.component(index).sample(batch_size, generator)

    def component(self, index: int) -> Task:
        """The process of that place in ``components``."""
        name = self.components[index]
        if name == "sawtooth":
            return SawtoothTask(
                max_context=self.max_context,
                targets=self.targets,
                context_range=self.context_range,
                target_range=self.target_range,
            )
        return FixedGaussianProcessTask(
            kernel=name,
            max_context=self.max_context,
            targets=self.targets,
            context_range=self.context_range,
            target_range=self.target_range,
        )
