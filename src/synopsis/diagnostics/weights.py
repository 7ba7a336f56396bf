"""Where attention weights go: a number for each sequence, NaN where there is none.

Weights are computed again, some keys or rows at a time, and never all held at once.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from synopsis.attention import scaled_dot_product_attention

BLOCK = 2**21  # attention weights held at once
_SHARE = 0.9
_ROUNDING = 1e-6  # of a share: ten equal cells hold 90 % in nine

PerSequence = Float[Tensor, " batch"]


class Scores(NamedTuple):
    """What attention weights are made of.

    Args:
        query: divided by the temperature.
        key: after the filter.
        seen: True where a key is real; None: all are.
    """

    query: Float[Tensor, "batch heads queries width"]
    key: Float[Tensor, "batch heads keys width"]
    seen: Bool[Tensor, "batch keys"] | None

    def options(self) -> Float[Tensor, " batch"]:
        """How many real keys there are."""
        if self.seen is None:
            return self.key.new_full((len(self.key),), self.key.shape[-2])
        return self.seen.sum(-1).to(self.key.dtype)


def of_packing(scores: Scores) -> tuple[PerSequence, PerSequence]:
    """What each cell chooses, and whether cells choose differently.

    Args:
        scores: cells are the queries.

    Returns:
        Entropy of the cells' weights over ln n for n real keys, and mean total variation between two cells' weights,
        both in 0 … 1. NaN for fewer than two keys, and the second for fewer than two cells.
    """
    batch, heads, cells, _ = scores.query.shape
    entropy = scores.query.new_zeros(batch, heads, cells)
    distance = scores.query.new_zeros(batch * heads, cells * (cells - 1) // 2)
    for weights in _by_keys(scores):
        entropy += torch.special.entr(weights).sum(-1)
        distance += torch.stack([F.pdist(rows, p=1.0) for rows in weights.flatten(0, 1)])
    options = scores.options()
    apart = distance.view(batch, heads, -1).mean((1, 2)) / 2  # NaN without a pair
    return (
        torch.where(options > 1, entropy.mean((1, 2)) / options.log(), math.nan),
        torch.where(options > 1, apart, math.nan),
    )


def of_unpacking(
    scores: Scores, real: Bool[Tensor, "batch queries"] | None
) -> tuple[PerSequence, PerSequence]:
    """How many cells an item asks, and how many all items ask together.

    Args:
        scores: cells are the keys.
        real: True where an item is; None: all are.

    Returns:
        Entropy of the items' weights over ln m for m cells, NaN for fewer than two; and the fewest cells that hold 90 %
        of the weight. Both are NaN for sequences without a real item.
    """
    batch, heads, items, _ = scores.query.shape
    counted = scores.query.new_ones(batch, items) if real is None else real.to(scores.query.dtype)
    entropy = scores.query.new_zeros(batch)
    mass = scores.query.new_zeros(batch, scores.key.shape[-2])
    for weights, rows in _by_rows(scores):
        share = counted[:, None, rows]
        entropy += (torch.special.entr(weights).sum(-1) * share).sum((1, 2))
        mass += (weights * share.unsqueeze(-1)).sum((1, 2))
    options, number = scores.options(), counted.sum(1)
    return (
        torch.where(options > 1, entropy / (heads * number) / options.log(), math.nan),
        torch.where((number > 0) & mass.isfinite().all(-1), cells_holding(mass), math.nan),
    )


def cells_holding(
    mass: Float[Tensor, "batch cells"], share: float = _SHARE
) -> Float[Tensor, " batch"]:
    """The fewest cells that hold a share of the mass of all.

    Example:
        >>> cells_holding(torch.tensor([[1.0, 1.0, 8.0], [0.0, 10.0, 0.0]]))
        tensor([2., 1.])
    """
    held = mass.sort(dim=-1, descending=True).values.cumsum(-1)
    wanted = (share - _ROUNDING) * held[:, -1:]
    return ((held < wanted).sum(-1) + 1).to(mass.dtype)


def _by_keys(scores: Scores) -> Iterator[Float[Tensor, "batch heads queries block"]]:
    """The weights of all queries, some keys at a time; 0 for a key that is not real."""
    query, key, seen = scores
    allowed = None if seen is None else seen[:, None, None, :]
    _, lse = scaled_dot_product_attention(
        query, key, key, attn_mask=allowed, scale=1.0, return_lse=True
    )
    size = max(1, BLOCK // max(1, query[..., 0].numel()))
    for start in range(0, key.shape[-2], size):
        part = slice(start, start + size)
        weights = (query @ key[..., part, :].mT - lse.unsqueeze(-1)).exp()
        # Also where no key is real and the log-sum-exp is −∞.
        yield weights if allowed is None else torch.where(allowed[..., part], weights, 0.0)


def _by_rows(
    scores: Scores,
) -> Iterator[tuple[Float[Tensor, "batch heads block keys"], slice]]:
    """The weights of some queries at a time, and which queries they are."""
    query, key, seen = scores
    size = max(1, BLOCK // max(1, key[..., 0].numel()))
    for start in range(0, query.shape[-2], size):
        part = slice(start, start + size)
        found = query[..., part, :] @ key.mT
        if seen is not None:
            found = found.masked_fill(~seen[:, None, None, :], -math.inf)
        yield found.softmax(-1), part


__all__ = ["BLOCK", "Scores", "cells_holding", "of_packing", "of_unpacking"]
