"""Draws from the von Mises-Fisher distribution: directions around a mean direction, differentiable in it.

Source: Wood, "Simulation of the von Mises Fisher Distribution", 1994, for the cosine with the mean; the rest is a
uniform direction in the tangent space and a Householder reflection that takes the first axis to the mean (Davidson et
al., "Hyperspherical Variational Auto-Encoders", 2018). The concentration is a number, so only the reflection carries a
gradient.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def sample_von_mises_fisher(
    mean: Float[Tensor, "*batch dim"], concentration: float
) -> Float[Tensor, "*batch dim"]:
    """One unit vector for each mean direction, from torch's global generator.

    Args:
        mean: unit vectors of width 2 or more.
        concentration: κ > 0; 0 would be uniform.

    Raises:
        ValueError: when there is no such distribution.

    Example:
        >>> mean = torch.nn.functional.normalize(torch.ones(1000, 3), dim=-1)
        >>> drawn = sample_von_mises_fisher(mean, concentration=100.0)
        >>> bool((drawn * mean).sum(-1).mean() > 0.98)
        True
    """
    dim = mean.shape[-1]
    if dim < 2 or not concentration > 0:
        raise ValueError(f"no von Mises-Fisher of width {dim} and concentration {concentration}")
    cosine = _cosines(mean[..., :1], dim, concentration).to(mean)
    tangent = F.normalize(torch.randn_like(mean[..., 1:]), dim=-1)
    around_first = torch.cat([cosine, (1.0 - cosine.square()).clamp(min=0.0).sqrt() * tangent], -1)
    first = torch.zeros_like(mean)
    first[..., 0] = 1.0
    mirror = F.normalize(first - mean, dim=-1)
    return around_first - 2.0 * (around_first * mirror).sum(-1, keepdim=True) * mirror


@torch.no_grad()
def _cosines(like: Tensor, dim: int, concentration: float) -> Tensor:
    """Cosines with the mean, float64 in the shape of ``like``: drawn until every one is accepted."""
    rest = dim - 1
    slope = rest / (2.0 * concentration + math.sqrt(4.0 * concentration**2 + rest**2))
    centre = (1.0 - slope) / (1.0 + slope)
    most = concentration * centre + rest * math.log1p(-(centre**2))
    half = torch.tensor(rest / 2.0, dtype=torch.float64, device=like.device)
    proposals = torch.distributions.Beta(half, half)
    accepted = torch.empty(like.numel(), dtype=torch.float64, device=like.device)
    pending = torch.arange(like.numel(), device=like.device)
    while len(pending):
        drawn = proposals.sample(pending.shape)
        cosine = (1.0 - (1.0 + slope) * drawn) / (1.0 - (1.0 - slope) * drawn)
        height = concentration * cosine + rest * torch.log1p(-centre * cosine) - most
        kept = height >= torch.rand_like(height).log()
        accepted[pending[kept]] = cosine[kept]
        pending = pending[~kept]
    return accepted.reshape(like.shape)
