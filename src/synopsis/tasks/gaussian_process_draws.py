"""Held-out exact Gaussian processes of the regression prior, with their exact answers.

What the shipped process is measured on: inputs, length-scales and noise follow the laws of the
prior, but the function is an exact draw, so that the best possible prediction is known.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.elementary_draws import choose, coin, log_uniform
from synopsis.tasks.random_functions import KERNELS, length_scales
from synopsis.tasks.random_inputs import Role, random_inputs
from synopsis.tasks.warmup import location_and_scale, standardised


@dataclass(frozen=True)
class GaussianProcessDraws:
    """Rows in no particular order, an exact Gaussian process of them, Gaussian noise.

    Args:
        inputs: number of inputs given, 1 … columns.
        context: number of context points, 0 … 1,000.
        targets: number of target points, ≥ 1.
        columns: number of input columns handed out; those after ``inputs`` are NaN.
        warmup: location and scale come from the first min(warmup, context) rows; with fewer than
            3 context points they are those of the prior itself, so that the oracle stays exact.
        noise_range: smallest and largest noise sd against the function's; log-uniform between.

    Raises:
        ValueError: if a number is out of its range.

    Example:
        >>> batch = GaussianProcessDraws(inputs=2).sample(4, torch.Generator().manual_seed(0))
        >>> batch.oracle.shape
        torch.Size([4, 64])
    """

    inputs: int
    context: int = 100
    targets: int = 64
    columns: int = 8
    warmup: int = 32
    noise_range: tuple[float, float] = (0.03, 1.0)
    dim_y: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.inputs <= self.columns:
            raise ValueError(f"inputs is {self.inputs} but must lie in 1 … {self.columns}")
        if not 0 <= self.context <= 1000:
            raise ValueError(f"context is {self.context} but must lie in 0 … 1000")
        if self.targets < 1:
            raise ValueError(f"targets is {self.targets} but must be at least 1")

    @property
    def dim_x(self) -> int:
        """Number of input columns."""
        return self.columns

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw ``batch_size`` tasks with the exact log-density of their targets in ``oracle``."""
        drawn = [self._task(generator) for _ in range(batch_size)]  # one at a time: bounded memory
        x, y, oracle, joint = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        n = self.context
        return Batch(x[:, :n], y[:, :n], x[:, n:], y[:, n:], oracle=oracle, joint_oracle=joint)

    def _task(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Standardised inputs and outputs of all rows; log-densities of the targets."""
        x, covariance = self._process(generator)
        factor = torch.linalg.cholesky(covariance)
        whitened = torch.randn(len(factor), generator=generator, dtype=torch.float64)
        y = factor @ whitened
        warmup = torch.tensor([min(self.warmup, self.context)])
        if self.context < 3:
            y_location, y_scale = torch.zeros(1, 1, 1), covariance.diagonal().mean().sqrt()
            x_location, x_scale = x.mean(0), x.std(0, correction=0)
        else:
            y_location, y_scale = location_and_scale(y[None, :, None], warmup)
            x_location, x_scale = location_and_scale(x[None], warmup)
        x = standardised(x[None], x_location, x_scale)[0]
        absent = x.new_full((len(x), self.columns - self.inputs), math.nan)
        diagonal, joint = _log_densities(factor, whitened, self.context)
        # A density per unit of y / scale is scale times the one per unit of y.
        log_scale = y_scale.log().squeeze()
        y = standardised(y[None, :, None], y_location, y_scale)[0]
        return (
            torch.cat([x, absent], dim=-1),
            y.float(),
            (diagonal + log_scale).float(),
            (joint + self.targets * log_scale).float(),
        )

    def _process(
        self, generator: torch.Generator
    ) -> tuple[Float[Tensor, "rows inputs"], Float[Tensor, "rows rows"]]:
        """Inputs in natural units, and the covariance of the noisy outputs (float64)."""
        rows = self.context + self.targets
        roles = torch.full((1, self.inputs), Role.STILL)
        x = random_inputs(generator, roles, rows, coin(generator, (1,)))[0][0]
        scales = length_scales(generator, torch.ones(1, self.inputs, dtype=torch.bool))[0]
        kernel = choose(generator, (1,) * len(KERNELS), (1,))
        seen = (x / x.std(0, correction=0).clamp_min(1e-6) / scales).double()
        covariance = kernel_matrix(kernel, seen)
        # The prior scales its functions to unit variance along the stream. The expected variance
        # does the same without touching the draw, so that the process stays exactly Gaussian.
        covariance = covariance / (1 - covariance.mean()).clamp_min(1e-4)
        noise = log_uniform(generator, (1,), *self.noise_range).double()
        covariance.diagonal().add_(noise.square())
        return x, covariance


def kernel_matrix(
    kernel: Int[Tensor, "1"], x: Float[Tensor, "rows columns"]
) -> Float[Tensor, "rows rows"]:
    """Covariance of unit variance between all rows, whose inputs are in length-scales.

    Args:
        kernel: index into ``random_functions.KERNELS``.
        x: inputs divided by their length-scales.
    """
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    match list(KERNELS)[int(kernel)]:
        case "rbf":
            return (-distance.square() / 2).exp()
        case "matern-3/2":
            r = math.sqrt(3) * distance
            return (1 + r) * (-r).exp()
        case _:
            r = math.sqrt(5) * distance
            return (1 + r + r.square() / 3) * (-r).exp()


def _log_densities(
    factor: Float[Tensor, "rows rows"], whitened: Float[Tensor, " rows"], context: int
) -> tuple[Float[Tensor, " targets"], Float[Tensor, ""]]:
    """Of every target given the context, and of all together, from one Cholesky factor.

    With y = L e, the leading block of L is the factor of the context, e_c its whitened outputs;
    so the mean of the targets is L_tc e_c, and L_tt is the factor of their covariance.
    """
    own = factor[context:, context:]
    residual, variance = own @ whitened[context:], own.square().sum(-1)
    constant = math.log(2 * math.pi)
    diagonal = -0.5 * (residual.square() / variance + variance.log() + constant)
    joint = -0.5 * (whitened[context:].square() + constant) - own.diagonal().log()
    return diagonal, joint.sum()
