"""How far the vectors of a memory are from each other: a number for each sequence, NaN where there is none.

All of them work in float64, where sums of float32 numbers are exact enough to tell a collapse from its rounding.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_ROUNDINGS = 8  # so many units of rounding from the mean, a vector is the mean


def mean_cosine(
    vectors: Float[Tensor, "batch m dim"], centred: bool = False
) -> Float[Tensor, " batch"]:
    """Mean cosine between two different vectors; those that are 0 have none and do not count.

    Args:
        vectors: of each sequence.
        centred: take their mean away first; vectors that are their mean, but for rounding, then count as 0.

    Example:
        >>> mean_cosine(torch.eye(3)[None]), mean_cosine(torch.eye(3)[None], centred=True)
        (tensor([0.], dtype=torch.float64), tensor([-0.5000], dtype=torch.float64))
    """
    exact = vectors.double()
    nothing = exact.new_zeros(len(exact), 1)
    if centred:
        rounding = _ROUNDINGS * torch.finfo(vectors.dtype).eps
        nothing = rounding * exact.norm(dim=-1).amax(-1, keepdim=True)
        exact = exact - exact.mean(1, keepdim=True)
    norms = exact.norm(dim=-1)
    counted = ~(norms <= nothing)  # what is not a number counts, and shows
    units = torch.where(counted.unsqueeze(-1), exact / norms.unsqueeze(-1), 0.0)
    number = counted.sum(1)
    # Σ_{i≠j} u_i·u_j = |Σ u_i|² − Σ |u_i|²
    apart = units.sum(1).square().sum(-1) - units.square().sum((1, 2))
    return torch.where(number > 1, apart / (number * (number - 1)), math.nan)


def effective_rank(vectors: Float[Tensor, "batch m dim"]) -> Float[Tensor, " batch"]:
    """exp of the entropy of the singular values, as shares of their sum.

    Example:
        >>> effective_rank(torch.eye(3)[None])
        tensor([3.0000], dtype=torch.float64)

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    exact = vectors.double()
    finite = exact.isfinite().all(dim=2).all(dim=1)
    # A decomposition of what is not finite raises; a training that diverges must not end here.
    values = torch.linalg.svdvals(torch.where(finite[:, None, None], exact, 0.0))
    total = values.sum(-1)
    rank = torch.special.entr(values / total.unsqueeze(-1)).sum(-1).exp()
    return torch.where(total > 0, rank, math.nan)


def mean_norm(vectors: Float[Tensor, "batch m dim"]) -> Float[Tensor, " batch"]:
    """Mean Euclidean norm.

    Example:
        >>> mean_norm(torch.tensor([[[3.0, 4.0], [0.0, 1.0]]]))
        tensor([3.], dtype=torch.float64)
    """
    return vectors.double().norm(dim=-1).mean(-1)


__all__ = ["effective_rank", "mean_cosine", "mean_norm"]
