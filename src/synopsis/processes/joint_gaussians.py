"""Joint predictive distributions: all targets of a task at once.

Where the distributions of ``heads.py`` treat targets one by one, these have batch shape (batch,) and event shape
(targets, dim_y): ``log_prob`` is one number per task, and a sample is a whole function. Inside, the outputs of all
targets stand in one row, target-major: all outputs of the first target, then all of the second.
"""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F

from synopsis.memory.layers import blank
from synopsis.processes.heads import Gaussian
from synopsis.tasks.base import surely_complete


class JointGaussian(Distribution):
    """One Gaussian over all outputs of all targets of a task; subclasses say how its covariance is held.

    ``mean``, ``stddev``, ``quantile``, ``cdf`` and ``crps`` speak of each output by itself. ``log_prob`` is of the
    outputs that are observed, not NaN: the density of their marginal.

    Args:
        mean: of each output.
        real: True where a target is real; the others have no part in any density. None when all are.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        mean: Float[Tensor, "*batch targets dim_y"],
        real: Bool[Tensor, "*batch targets"] | None,
    ) -> None:
        super().__init__(mean.shape[:-2], mean.shape[-2:], validate_args=False)
        self.real = real
        self._mean = mean

    @property
    def mean(self) -> Float[Tensor, "*batch targets dim_y"]:
        """Mean of each output."""
        return self._mean

    @property
    def numbers(self) -> int:
        """Outputs of all targets together."""
        return self.event_shape.numel()

    @property
    def noise(self) -> int:
        """Standard normal numbers that one draw takes."""
        return self.numbers

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch numbers numbers"]:
        """The whole matrix, which nothing here needs."""
        raise NotImplementedError

    def from_noise(
        self, noise: Float[Tensor, "*sample_batch noise"]
    ) -> Float[Tensor, "*sample_batch targets dim_y"]:
        """The draw that these standard normal numbers stand for; with noise of a generator, it is reproducible."""
        raise NotImplementedError

    def masked(self, real: Bool[Tensor, "*batch targets"]) -> "JointGaussian":
        """The distribution of the real targets, as if the others had not been asked for."""
        raise NotImplementedError

    def affine(self, loc: Tensor | float, scale: Tensor | float) -> "JointGaussian":
        """The distribution of loc + scale·Y, scale > 0 and for each output by itself."""
        raise NotImplementedError

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*sample_batch targets dim_y"]:
        """Functions drawn from the distribution, differentiably."""
        return self.from_noise(
            torch.randn(
                (*sample_shape, *self.batch_shape, self.noise),
                dtype=self.mean.dtype,
                device=self.mean.device,
            )
        )

    @property
    def marginals(self) -> Gaussian:
        """What is predicted of each target by itself."""
        return Gaussian(self.mean, self.stddev)

    def quantile(self, q: float | Tensor) -> Float[Tensor, "*batch targets dim_y"]:
        """The q-quantile of each output, 0 < q < 1."""
        return self.marginals.quantile(q)

    def cdf(self, value: Float[Tensor, "*batch targets dim_y"]) -> Tensor:
        """P(Y ≤ value) of each output."""
        return self.marginals.cdf(value)

    def crps(self, value: Float[Tensor, "*batch targets dim_y"]) -> Tensor:
        """Continuous ranked probability score of each output, in the units of y; 0 is perfect."""
        return self.marginals.crps(value)

    def _residual(
        self, value: Tensor, missing: Tensor | None
    ) -> Float[Tensor, "*sample_batch numbers"]:
        """Distance from the mean in float64, 0 in padding and where there is no value."""
        residual = blank(value.double() - self.mean.double(), self.real).flatten(-2)
        return residual if missing is None else residual.masked_fill(missing, 0.0)

    def _missing(self, value: Tensor) -> Bool[Tensor, "*sample_batch numbers"] | None:
        """Which outputs of real targets have no value; None where surely none, which costs a density nothing."""
        value = blank(value, self.real)
        return None if surely_complete(value) else value.isnan().flatten(-2)

    def _log_density(
        self, squares: Tensor, log_determinant: Tensor, missing: Tensor | None
    ) -> Float[Tensor, "*sample_batch"]:
        count: Tensor | int = self.numbers
        if self.real is not None:
            count = self.real.sum(-1, dtype=torch.float64) * self.event_shape[-1]
        if missing is not None:
            count = count - missing.sum(-1)
        density = -0.5 * (squares + count * math.log(2 * math.pi)) - log_determinant
        return density.to(self.mean.dtype)


class LowRankGaussian(JointGaussian):
    """Σ = F Fᵀ + diag(stddev²): targets may come in any order, and Σ is never formed.

    A density takes O(numbers · rank²) operations in float64. With G = F / stddev and z = residual / stddev, the
    orthogonal factorisation QR of G above the identity gives |Σ| = |R|² Π stddev², and the Mahalanobis distance is the
    squared length of what Q leaves of z. Nothing cancels, as it does in Woodbury's formula, which
    ``torch.distributions.LowRankMultivariateNormal`` uses: in float32 that is off by half a nat where stddev is a
    thousandth of the factor, and fails below.

    Args:
        mean: of each output.
        factor: F, a row for each output, target-major.
        stddev: of each output by itself, positive.
        real: True where a target is real; None when all are.

    Example:
        >>> import torch
        >>> joint = LowRankGaussian(torch.zeros(1, 2, 1), torch.ones(1, 2, 1), torch.ones(1, 2, 1))
        >>> joint.covariance_matrix
        tensor([[[2., 1.],
                 [1., 2.]]])
    """

    def __init__(
        self,
        mean: Float[Tensor, "*batch targets dim_y"],
        factor: Float[Tensor, "*batch numbers rank"],
        stddev: Float[Tensor, "*batch targets dim_y"],
        real: Bool[Tensor, "*batch targets"] | None = None,
    ) -> None:
        super().__init__(mean, real)
        if real is not None:  # log 1 = 0, and a row of zeros leaves F Fᵀ of the others alone
            factor = blank(factor, outputs_of(real, mean))
            stddev = stddev.masked_fill(~real.unsqueeze(-1), 1.0)
        self.factor, self.own = factor, stddev

    @property
    def noise(self) -> int:
        """Standard normal numbers that one draw takes: those of the factor, then one per output."""
        return self.factor.shape[-1] + self.numbers

    @property
    def variance(self) -> Float[Tensor, "*batch targets dim_y"]:
        """Variance of each output."""
        shared = self.factor.square().sum(-1).unflatten(-1, self.event_shape)
        return shared + self.own.square()

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch numbers numbers"]:
        """The whole matrix, which nothing here needs."""
        return self.factor @ self.factor.mT + torch.diag_embed(self.own.square().flatten(-2))

    def log_prob(self, value: Float[Tensor, "*sample_batch targets dim_y"]) -> Tensor:
        """Joint log-density of all observed outputs of real targets, nats per task."""
        missing = self._missing(value)
        own, rows = self.own.double().flatten(-2), self.factor.double()
        if missing is not None:  # as in padding
            own, rows = own.masked_fill(missing, 1.0), blank(rows, ~missing)
        rows = rows / own.unsqueeze(-1)
        rank = rows.shape[-1]
        identity = torch.eye(rank, dtype=rows.dtype, device=rows.device)
        stacked = torch.cat([rows, identity.expand(*rows.shape[:-2], rank, rank)], dim=-2)
        basis, triangle = torch.linalg.qr(stacked)
        white = F.pad(self._residual(value, missing) / own, (0, rank)).unsqueeze(-1)
        left = white - basis @ (basis.mT @ white)
        diagonal = triangle.diagonal(dim1=-2, dim2=-1).abs()
        return self._log_density(
            left.square().sum((-2, -1)), diagonal.log().sum(-1) + own.log().sum(-1), missing
        )

    def from_noise(self, noise: Float[Tensor, "*sample_batch noise"]) -> Tensor:
        """The draw that these standard normal numbers stand for."""
        shared, own = noise.split([self.factor.shape[-1], self.numbers], dim=-1)
        together = (self.factor @ shared.unsqueeze(-1)).squeeze(-1).unflatten(-1, self.event_shape)
        return self.mean + together + self.own * own.unflatten(-1, self.event_shape)

    def masked(self, real: Bool[Tensor, "*batch targets"]) -> "LowRankGaussian":
        """The distribution of the real targets: here this is their marginal."""
        real = real if self.real is None else real & self.real
        return LowRankGaussian(self.mean, self.factor, self.own, real)

    def affine(self, loc: Tensor | float, scale: Tensor | float) -> "LowRankGaussian":
        """The distribution of loc + scale·Y, scale > 0 and for each output by itself."""
        mean, factor = loc + scale * self.mean, self.factor * rows_of(scale, self.mean)
        return LowRankGaussian(mean, factor, scale * self.own, self.real)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "LowRankGaussian":
        """The same distribution over a larger batch."""
        parts = (self.mean, self.factor, self.own)
        mean, factor, own = (part.expand(*batch_shape, *part.shape[-2:]) for part in parts)
        return LowRankGaussian(mean, factor, own, expanded(self.real, batch_shape))


def outputs_of(real: Tensor, mean: Tensor) -> Bool[Tensor, "*batch numbers"]:
    """Targets' mask for their outputs."""
    return real.unsqueeze(-1).expand(*real.shape, mean.shape[-1]).flatten(-2)


def without(
    lower: Float[Tensor, "*batch numbers numbers"], missing: Bool[Tensor, "*sample_batch numbers"]
) -> Float[Tensor, "*sample_batch numbers numbers"]:
    """The triangle of the covariance that is the same among other outputs, and among the missing the identity.

    It is that of the missing rows' unit vectors, on columns of their own, beside the rows of the others: Σ = A Aᵀ with
    Aᵀ = QR is Rᵀ R. No covariance is formed, whose condition would be squared.
    """
    kept = blank(lower, ~missing)
    units = torch.diag_embed(missing.to(kept)).expand_as(kept)
    _, triangle = torch.linalg.qr(torch.cat([kept, units], dim=-1).mT)
    signs = triangle.diagonal(dim1=-2, dim2=-1).sgn()
    return (triangle * signs.unsqueeze(-1)).mT


def rows_of(scale: Tensor | float, mean: Tensor) -> Tensor | float:
    """A scale of outputs, as a scale of rows."""
    if not isinstance(scale, Tensor):
        return scale
    return scale.expand(mean.shape).flatten(-2).unsqueeze(-1)


def expanded(real: Tensor | None, batch_shape: Any) -> Tensor | None:
    """A mask over a larger batch."""
    return None if real is None else real.expand(*batch_shape, real.shape[-1])


__all__ = ["JointGaussian", "LowRankGaussian", "expanded", "outputs_of", "rows_of", "without"]
