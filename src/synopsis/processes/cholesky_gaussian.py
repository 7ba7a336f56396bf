"""The joint Gaussian of the neural-process papers: a triangle whose product with itself is the covariance."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.memory.layers import blank
from synopsis.processes.joint_gaussians import JointGaussian, expanded, outputs_of, rows_of, without


class CholeskyGaussian(JointGaussian):
    """Σ = L Lᵀ with a lower triangle L, as the neural-process papers have it.

    Args:
        mean: of each output.
        scale_tril: L, with a positive diagonal; rows and columns target-major.
        real: True where a target is real; None when all are.
    """

    def __init__(
        self,
        mean: Float[Tensor, "*batch targets dim_y"],
        scale_tril: Float[Tensor, "*batch numbers numbers"],
        real: Bool[Tensor, "*batch targets"] | None = None,
    ) -> None:
        super().__init__(mean, real)
        if real is not None:
            outputs = outputs_of(real, mean)
            kept = blank(blank(scale_tril, outputs).mT, outputs).mT
            scale_tril = kept + torch.diag_embed((~outputs).to(kept))
        self.scale_tril = scale_tril

    @classmethod
    def from_factor(
        cls,
        mean: Float[Tensor, "*batch targets dim_y"],
        factor: Float[Tensor, "*batch numbers rank"],
        real: Bool[Tensor, "*batch targets"] | None = None,
        bounded: bool = False,
    ) -> "CholeskyGaussian":
        """L = tril(P Pᵀ), which depends on the order of the targets.

        Args:
            mean: of each output.
            factor: P, a row for each output.
            real: True where a target is real.
            bounded: the diagonal is 0.05 + 0.95·tanh(‖p‖²) instead of ‖p‖², which has no floor.
        """
        wide = factor.double()  # which automatic mixed precision leaves alone
        product = (wide @ wide.mT).to(factor.dtype)
        if bounded:
            diagonal = 0.05 + 0.95 * factor.square().sum(-1).tanh()
            return cls(mean, product.tril(-1) + torch.diag_embed(diagonal), real)
        return cls(mean, product.tril(), real)

    @property
    def variance(self) -> Float[Tensor, "*batch targets dim_y"]:
        """Variance of each output."""
        return self.scale_tril.square().sum(-1).unflatten(-1, self.event_shape)

    @property
    def covariance_matrix(self) -> Float[Tensor, "*batch numbers numbers"]:
        """The whole matrix, which nothing here needs."""
        return self.scale_tril @ self.scale_tril.mT

    def log_prob(self, value: Float[Tensor, "*sample_batch targets dim_y"]) -> Tensor:
        """Joint log-density of all observed outputs of real targets, nats per task."""
        missing = self._missing(value)
        residual = self._residual(value, missing).unsqueeze(-1)
        lower = self.scale_tril.double()
        lower = lower if missing is None else without(lower, missing)
        white = torch.linalg.solve_triangular(lower, residual, upper=False)
        log_determinant = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self._log_density(white.square().sum((-2, -1)), log_determinant, missing)

    def from_noise(self, noise: Float[Tensor, "*sample_batch noise"]) -> Tensor:
        """The draw that these standard normal numbers stand for."""
        moved = (self.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
        return self.mean + moved.unflatten(-1, self.event_shape)

    def masked(self, real: Bool[Tensor, "*batch targets"]) -> "CholeskyGaussian":
        """The distribution of the real targets without the others' rows and columns of L.

        This is what the heads would have predicted had only the real targets been asked for; it is not their marginal.
        """
        real = real if self.real is None else real & self.real
        return CholeskyGaussian(self.mean, self.scale_tril, real)

    def affine(self, loc: Tensor | float, scale: Tensor | float) -> "CholeskyGaussian":
        """The distribution of loc + scale·Y, scale > 0 and for each output by itself."""
        lower = self.scale_tril * rows_of(scale, self.mean)
        return CholeskyGaussian(loc + scale * self.mean, lower, self.real)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "CholeskyGaussian":
        """The same distribution over a larger batch."""
        parts = (self.mean, self.scale_tril)
        mean, lower = (part.expand(*batch_shape, *part.shape[-2:]) for part in parts)
        return CholeskyGaussian(mean, lower, expanded(self.real, batch_shape))


__all__ = ["CholeskyGaussian"]
