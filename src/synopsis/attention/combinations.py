"""Masks made of masks, which keep what their parts know about their shape."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from synopsis.attention.rules import Bounded, MaskMod, Span


@dataclass(frozen=True)
class And:
    """Pairs that every mask allows; made by :func:`and_masks`.

    Args:
        masks: any mask functions; those that are not ``Bounded`` take no part in the bounds.
    """

    masks: tuple[MaskMod, ...]

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where all say so."""
        return _folded(torch.logical_and, self.masks, True, (b, h, q_idx, kv_idx))

    def keys(self, queries: Span, keys: Span) -> Span:
        """What is left when each mask has cut its part off what the ones before it left."""
        for mask in self.masks:
            if isinstance(mask, Bounded) and not keys.is_empty:
                keys = keys & mask.keys(queries, keys)
        return keys

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether each mask surely does."""
        return all(_surely(mask, queries, keys) for mask in self.masks)


@dataclass(frozen=True)
class Or:
    """Pairs that at least one mask allows; made by :func:`or_masks`.

    Args:
        masks: any mask functions; with one that is not ``Bounded`` every key may be reached.
    """

    masks: tuple[MaskMod, ...]

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where any says so."""
        return _folded(torch.logical_or, self.masks, False, (b, h, q_idx, kv_idx))

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the first key that any mask reaches to the last."""
        reached = [
            mask.keys(queries, keys) & keys if isinstance(mask, Bounded) else keys
            for mask in self.masks
        ]
        reached = [span for span in reached if not span.is_empty]
        if not reached:
            return Span(keys.start, keys.start)
        return Span(min(span.start for span in reached), max(span.stop for span in reached))

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether one mask alone surely does."""
        return any(_surely(mask, queries, keys) for mask in self.masks)


def and_masks(*masks: MaskMod) -> And:
    """Pairs that every mask allows; of no masks: every pair.

    Example:
        >>> queries, keys = torch.arange(4)[:, None], torch.arange(4)
        >>> mask = and_masks(lambda b, h, q, k: k <= q, lambda b, h, q, k: k // 2 == q // 2)
        >>> mask(0, 0, queries, keys).int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    """
    return And(masks)


def or_masks(*masks: MaskMod) -> Or:
    """Pairs that at least one mask allows; of no masks: none.

    Example:
        >>> queries, keys = torch.arange(3)[:, None], torch.arange(3)
        >>> mask = or_masks(lambda b, h, q, k: k == q, lambda b, h, q, k: k == 0 * q)
        >>> mask(0, 0, queries, keys).int().tolist()
        [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    return Or(masks)


def _folded(
    combine: Callable[[Tensor, Tensor], Tensor],
    masks: tuple[MaskMod, ...],
    identity: bool,
    indices: tuple[Tensor, Tensor, Tensor, Tensor],
) -> Tensor:
    if not masks:
        return torch.full_like(indices[2], identity, dtype=torch.bool)
    return reduce(combine, [mask(*indices) for mask in masks])


def _surely(mask: MaskMod, queries: Span, keys: Span) -> bool:
    return isinstance(mask, Bounded) and mask.allows_all(queries, keys)
