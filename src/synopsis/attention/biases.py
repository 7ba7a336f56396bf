"""Changes of scores: ready-made ``score_mod`` functions.

Each is called as FlexAttention calls its own, (score, b, h, q_idx, kv_idx -> score), block by block. The tensors they
hold may want gradients. A bias that depends on the distance kv_idx − q_idx alone has as many values in a block as the
block has diagonals, Q + K − 1; only those are looked up, and only those receive gradients. The soft cap and the sink,
which changes the denominator instead of a score, have files of their own and their names here.
"""

# ruff: noqa: ARG002  (the five arguments are the convention; not every change looks at each)

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from synopsis.attention.diagonals import from_diagonals
from synopsis.attention.rules import ScoreMod
from synopsis.attention.sinks import with_sink
from synopsis.attention.softcap import SoftCap

__all__ = [
    "ALiBi",
    "Composed",
    "DistanceBias",
    "RelativePositionBias",
    "SoftCap",
    "T5Bias",
    "alibi",
    "alibi_slopes",
    "compose",
    "with_sink",
]


class DistanceBias(ABC):
    """Base of score changes that add something which depends on the head and on kv_idx − q_idx only."""

    @abstractmethod
    def values(self, h: Int[Tensor, "#*shape"], distance: Int[Tensor, "#*shape"]) -> Tensor:
        """What is added for a head at a distance; the two broadcast against each other."""

    def __call__(
        self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        """The score with the bias added, in the score's dtype."""
        first = _first_distance(q_idx, kv_idx)
        if first is None:
            return score + self.values(h, kv_idx - q_idx).to(score.dtype)
        queries, keys = q_idx.numel(), kv_idx.numel()
        distances = torch.arange(first, first + queries + keys - 1).view(1, 1, 1, -1)
        by_diagonal = self.values(h, distances).to(score.dtype).squeeze(2)
        return score + from_diagonals(by_diagonal, queries)


@dataclass(frozen=True, eq=False)
class ALiBi(DistanceBias):
    """−slope · |distance|: keys count less the further they are.

    Args:
        slopes: one for each head, usually from :func:`alibi_slopes`; may want a gradient.

    Example:
        >>> index = torch.arange(3)
        >>> ALiBi(torch.tensor([0.5]))(torch.zeros(3, 3), 0, 0, index[:, None], index)[2]
        tensor([-1.0000, -0.5000,  0.0000])

    Source: Press, Smith, Lewis, "Train short, test long", 2022, section 3; two-sided here, which under a causal mask is
    the same.
    """

    slopes: Float[Tensor, "heads"]

    def values(self, h: Int[Tensor, "#*shape"], distance: Int[Tensor, "#*shape"]) -> Tensor:
        """−slope · |distance|."""
        return -self.slopes[h] * distance.abs()


def alibi(heads: int) -> ALiBi:
    """ALiBi with the slopes of its paper, constants."""
    return ALiBi(alibi_slopes(heads))


def alibi_slopes(heads: int) -> Float[Tensor, "heads"]:
    """The geometric slopes 2^(−8/n), 2^(−16/n), … of Press et al. (2022).

    Args:
        heads: if it is no power of two, the slopes of the next smaller power n are followed by every second one of 2n,
            as in the authors' code.

    Raises:
        ValueError: less than one head.

    Example:
        >>> alibi_slopes(2)
        tensor([0.0625, 0.0039])
    """
    if heads < 1:
        raise ValueError(f"heads is {heads}; it must be at least 1")
    whole = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * i / whole) for i in range(1, whole + 1)]
    between = [2 ** (-4 * i / whole) for i in range(1, 2 * whole, 2)]
    return torch.tensor((slopes + between)[:heads])


@dataclass(frozen=True, eq=False)
class RelativePositionBias(DistanceBias):
    """A learned number for each head and distance; beyond the table's ends the outermost holds.

    Args:
        table: ``(heads, 2 · max_distance + 1)``; column ``max_distance + d`` is for the key d positions after the
            query. May want a gradient.

    Raises:
        ValueError: a table with an even number of columns, which has no middle.

    Example:
        >>> index = torch.arange(3)
        >>> table = torch.tensor([[-1.0, 0.0, 1.0]])
        >>> RelativePositionBias(table)(torch.zeros(3, 3), 0, 0, index[:, None], index)[0]
        tensor([0., 1., 1.])

    Source: the clipped distances of Shaw, Uszkoreit, Vaswani, 2018, equation 5, as a bias of the score.
    """

    table: Float[Tensor, "heads distances"]

    def __post_init__(self) -> None:
        if self.table.ndim != 2 or self.table.shape[1] % 2 == 0:
            raise ValueError(
                f"table has shape {tuple(self.table.shape)}; it must be (heads, 2 · max_distance + 1)"
            )

    def values(self, h: Int[Tensor, "#*shape"], distance: Int[Tensor, "#*shape"]) -> Tensor:
        """The table's entry of the clipped distance."""
        furthest = self.table.shape[1] // 2
        return self.table[h, distance.clamp(-furthest, furthest) + furthest]


@dataclass(frozen=True, eq=False)
class T5Bias(DistanceBias):
    """A learned number for each head and bucket of distances: near ones have their own, far ones share by logarithm.

    Args:
        embedding: ``(buckets, heads)``, the layout of T5's ``relative_attention_bias.weight``; may want a gradient.
        bidirectional: half of the buckets are for keys after the query (encoder); else these count as distance 0.
        max_distance: from here on all distances share the last bucket.

    Raises:
        ValueError: too few buckets, or a max_distance that leaves nothing to the logarithm.

    Example:
        >>> bias = T5Bias(torch.arange(32.0)[:, None], bidirectional=False)
        >>> index = torch.tensor([0, 10, 40, 500])
        >>> bias(torch.zeros(4, 1), 0, 0, index[:, None], torch.zeros(1, dtype=torch.long)).flatten()
        tensor([ 0., 10., 23., 31.])

    Source: Raffel et al., "Exploring the limits of transfer learning", 2020, section 2.1; buckets as in their code.
    """

    embedding: Float[Tensor, "buckets heads"]
    bidirectional: bool = True
    max_distance: int = 128

    def __post_init__(self) -> None:
        near = self._one_sided // 2
        if near < 1 or self.max_distance <= near:
            raise ValueError(
                f"embedding has {len(self.embedding)} buckets and max_distance is {self.max_distance}; "
                f"there must be at least {4 if self.bidirectional else 2}, and more distance than the {near} near ones"
            )

    def values(self, h: Int[Tensor, "#*shape"], distance: Int[Tensor, "#*shape"]) -> Tensor:
        """The embedding of the distance's bucket."""
        return self.embedding[self.bucket(distance), h]

    def bucket(self, distance: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """The bucket of each distance kv_idx − q_idx."""
        count = self._one_sided
        near = count // 2  # each of these distances has a bucket of its own
        far = distance.abs() if self.bidirectional else (-distance).clamp_min(0)
        ratio = (far.clamp_min(1).float() / near).log() / math.log(self.max_distance / near)
        shared = near + (ratio * (count - near)).long()
        bucket = torch.where(far < near, far, shared.clamp(near, count - 1))
        return bucket + (distance > 0) * count if self.bidirectional else bucket

    @property
    def _one_sided(self) -> int:
        return len(self.embedding) // (2 if self.bidirectional else 1)


@dataclass(frozen=True, eq=False)
class Composed:
    """Score changes one after another; made by :func:`compose`.

    Args:
        score_mods: the first is applied to the score first.
    """

    score_mods: tuple[ScoreMod, ...]

    def __call__(
        self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor
    ) -> Tensor:
        """The score after all of them."""
        for score_mod in self.score_mods:
            score = score_mod(score, b, h, q_idx, kv_idx)
        return score


def compose(*score_mods: ScoreMod) -> Composed:
    """Score changes one after another, the first given first.

    Example:
        >>> index = torch.arange(2)
        >>> both = compose(SoftCap(1.0), ALiBi(torch.tensor([3.0])))
        >>> both(torch.full((2, 2), 50.0), 0, 0, index[:, None], index)
        tensor([[ 1., -2.],
                [-2.,  1.]])
    """
    flat: list[ScoreMod] = []  # flat, so that tensors inside are found however deep the nesting was
    for score_mod in score_mods:
        flat.extend(score_mod.score_mods if isinstance(score_mod, Composed) else (score_mod,))
    return Composed(tuple(flat))


def _first_distance(q_idx: Tensor, kv_idx: Tensor) -> int | None:
    """Distance of the lower left corner, if the indices are those of a block without gaps; else None.

    Asking costs a look at the indices, so it is done where that is cheap: on a CPU, outside of compilation.
    """
    block = q_idx.ndim == kv_idx.ndim == 4 and q_idx.numel() == q_idx.shape[2] > 0
    if not block or kv_idx.numel() != kv_idx.shape[3] or kv_idx.numel() == 0:
        return None
    if q_idx.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    ends = []
    for index in (q_idx.flatten(), kv_idx.flatten()):
        first = int(index[0])
        if not torch.equal(index, torch.arange(first, first + len(index), dtype=index.dtype)):
            return None
        ends.append(first)
    return ends[1] - ends[0] - q_idx.numel() + 1
