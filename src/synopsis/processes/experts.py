"""What Bayesian regressions of the same data say of targets: each of them, their average, and all targets together."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.processes.heads import Gaussian

_JITTER = 1e-10  # by which correlations are taken too small, so that targets may repeat


class Experts(NamedTuple):
    """The posterior under every length-scale and amplitude.

    Args:
        mean: predicted by each expert.
        stddev: of an observation, by each expert.
        log_weight: log posterior probability of each expert.
        noise: each expert's posterior mean of the noise variance.
        whitened: L⁻¹ φ of each target, where L Lᵀ is an expert's precision in units of its noise.
    """

    mean: Float[Tensor, "batch targets experts"]
    stddev: Float[Tensor, "batch targets experts"]
    log_weight: Float[Tensor, "batch experts"]
    noise: Float[Tensor, "batch experts"]
    whitened: Float[Tensor, "batch experts features targets"]

    def moments(self) -> Gaussian:
        """Mean and standard deviation of the experts' mixture."""
        weight = self.log_weight.exp().unsqueeze(1)
        mean = (weight * self.mean).sum(-1, keepdim=True)
        spread = self.stddev.square() + (self.mean - mean).square()
        return Gaussian(mean, (weight * spread).sum(-1, keepdim=True).sqrt())

    def covariance(self) -> "Covariance":
        """Covariance of the experts' mixture over all targets together; its diagonal is that of :meth:`moments`.

        Σ_e w_e [noise_e φ S_e⁻¹ φᵀ + noise_e I + (m_e − m)(m_e − m)ᵀ] is a factor with a column for every feature of
        every expert, and noise. Where there are fewer targets than columns, the factor is made square.
        """
        weight = self.log_weight.exp()
        scale = (weight * self.noise).sqrt()[:, :, None, None]
        apart = self.mean - (weight.unsqueeze(1) * self.mean).sum(-1, keepdim=True)
        columns = (scale * self.whitened).flatten(1, 2).mT
        factor = torch.cat([columns, weight.sqrt().unsqueeze(1) * apart], dim=-1)
        noise = (weight * self.noise).sum(-1).sqrt()
        return Covariance(_square(factor) if factor.shape[1] < factor.shape[2] else factor, noise)


class Covariance(NamedTuple):
    """A Aᵀ + noise² I over the targets.

    Args:
        factor: A, a row for each target.
        noise: standard deviation that is each target's own.
    """

    factor: Float[Tensor, "batch targets rank"]
    noise: Float[Tensor, " batch"]


def _square(factor: Tensor) -> Float[Tensor, "batch targets targets"]:
    """The triangle L with L Lᵀ = A Aᵀ on the diagonal, and less by the jitter's share off it.

    Cholesky of the correlations, for the triangle of a QR decomposition has no gradient where targets repeat.
    """
    length = factor.norm(dim=-1, keepdim=True)
    unit = factor / length  # never 0: the intercept has a column
    jitter = torch.full_like(length[..., 0], _JITTER)
    correlation = unit @ unit.mT + torch.diag_embed(jitter)
    triangle = torch.linalg.cholesky(correlation)
    return triangle * (length / math.sqrt(1.0 + _JITTER))


__all__ = ["Covariance", "Experts"]
