"""What may attend to what, and how scores are changed: asked for one block at a time, never as a whole.

A score is ``score_mod(scale · q·k) + attn_mask``; a pair that any mask rules out scores −∞. Positions are what the
rules see: query i stands at i + query_offset, key j at j + key_offset, and causal means that a key's position is not
beyond the query's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.attention.captured import captured_tensors
from synopsis.attention.dropout import Dropout

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # b, h, q_idx, kv_idx -> bool
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]  # score, b, h, q_idx, kv_idx


class Span(NamedTuple):
    """A half-open range of positions."""

    start: int
    stop: int

    def __and__(self, other: "Span") -> "Span":
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.stop <= self.start


@runtime_checkable
class Bounded(Protocol):
    """A mask_mod that knows its shape, so that blocks it rules out entirely are never looked at."""

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where the pair may attend."""
        ...

    def keys(self, queries: Span, keys: Span) -> Span:
        """The part of ``keys`` outside which none of ``queries`` may attend to anything."""
        ...

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether every one of ``queries`` surely may attend to every one of ``keys``."""
        ...


class Block(NamedTuple):
    """Rows and columns of one block, as indices into query and key."""

    queries: slice
    keys: slice


@dataclass(frozen=True)
class Rules:
    """Everything but query, key and value.

    Args:
        scale: factor on query · key.
        is_causal: keys beyond the query's position are ruled out.
        attn_mask: ``(B or 1, H or 1, Q or 1, K or 1)``; bool (True may attend) or added to the scores.
        mask_mod: of (b, h, q_idx, kv_idx), True where a pair may attend.
        score_mod: of (score, b, h, q_idx, kv_idx), elementwise.
        query_offset: position of the first query.
        key_offset: position of the first key.
        dropout: of the normalised weights, or None.
        first: index of the first batch entry and of the first head.
        guarded: a pair whose additive mask is −∞ is ruled out like any other, whatever its score: NaN + (−∞) is NaN.
    """

    scale: float
    is_causal: bool = False
    attn_mask: Tensor | None = None
    mask_mod: MaskMod | None = None
    score_mod: ScoreMod | None = None
    query_offset: int = 0
    key_offset: int = 0
    dropout: Dropout | None = None
    first: tuple[int, int] = (0, 0)
    guarded: bool = False

    @property
    def are_plain(self) -> bool:
        """Whether scores are only scaled, and every pair may attend or the causal ones do."""
        return (
            self.attn_mask is None
            and self.mask_mod is None
            and self.score_mod is None
            and self.dropout is None
        )

    @property
    def is_aligned(self) -> bool:
        """Whether the first query stands where the first key does."""
        return self.query_offset == self.key_offset

    @cached_property
    def captured(self) -> tuple[Tensor, ...]:
        """Tensors inside score_mod that want a gradient."""
        return () if self.score_mod is None else captured_tensors(self.score_mod)

    @property
    def _bounded(self) -> Bounded | None:
        """The mask_mod, where it knows its shape; asking a protocol takes longer than a small tile."""
        mask_mod = self.mask_mod
        return mask_mod if mask_mod is not None and isinstance(mask_mod, Bounded) else None

    @property
    def bias(self) -> Tensor | None:
        """The additive mask, if there is one."""
        mask = self.attn_mask
        return None if mask is None or mask.dtype == torch.bool else mask

    def with_bias(self, bias: Tensor | None) -> Self:
        """The same rules with another additive mask."""
        return self if bias is None else replace(self, attn_mask=bias)

    def of_part(self, batch: slice, heads: slice) -> Self:
        """The same rules for some of the batch and some of the heads."""
        mask = self.attn_mask
        if mask is not None:
            mask = part_of(mask, batch, heads)
        return replace(self, attn_mask=mask, first=(batch.start, heads.start))

    def keys(self, queries: slice, length: int) -> Span:
        """Indices of the keys outside which these queries attend to nothing."""
        asked, span = self._positions(queries, self.query_offset), Span(0, length)
        if self.is_causal:
            span = span & Span(0, asked.stop - self.key_offset)
        bounded = self._bounded
        if bounded is not None:
            there = Span(span.start + self.key_offset, span.stop + self.key_offset)
            found = bounded.keys(asked, there)
            span = span & Span(found.start - self.key_offset, found.stop - self.key_offset)
        return span

    def blocks(
        self, shape: tuple[int, int], query_block: int, key_block: int
    ) -> Iterator[tuple[slice, list[Block]]]:
        """Query blocks in order, each with the key blocks it may attend to, in order."""
        for start in range(0, shape[0], query_block):
            queries = slice(start, min(start + query_block, shape[0]))
            span = self.keys(queries, shape[1])
            first = span.start - span.start % key_block  # blocks lie on one grid for all queries
            keys = (
                slice(max(k, span.start), min(k + key_block, span.stop))
                for k in range(first, span.stop, key_block)
            )
            yield queries, [Block(queries, k) for k in keys if k.start < k.stop]

    def allowed(
        self, block: Block, shape: tuple[int, int], device: torch.device
    ) -> Bool[Tensor, "#batch #heads #queries #keys"] | None:
        """True where a pair of the block may attend; None when all may.

        Args:
            block: which queries and keys.
            shape: batch and heads, for the indices that mask_mod is given.
            device: of the indices.
        """
        queries = self._positions(block.queries, self.query_offset)
        keys = self._positions(block.keys, self.key_offset)
        found: Tensor | None = None
        if self.attn_mask is not None and self.attn_mask.dtype == torch.bool:
            found = _slice(self.attn_mask, block)
        if self.is_causal and keys.stop - 1 > queries.start:
            _, _, q_idx, kv_idx = self.indices(block, (1, 1), device)
            found = _both(found, kv_idx <= q_idx)
        if self.guarded and self.bias is not None:
            found = _both(found, _slice(self.bias, block) != -math.inf)
        bounded = self._bounded
        certain = bounded is not None and bounded.allows_all(queries, keys)
        if self.mask_mod is not None and not certain:
            found = _both(found, self.mask_mod(*self.indices(block, shape, device)))
        return found

    def scores(
        self, raw: Float[Tensor, "batch heads queries keys"], block: Block
    ) -> Float[Tensor, "batch heads queries keys"]:
        """What becomes of the scaled products of a block, before masks."""
        if self.score_mod is not None:
            raw = self.score_mod(raw, *self.indices(block, tuple(raw.shape[:2]), raw.device))
        bias = self.bias_of(block)
        return raw if bias is None else raw + bias.to(raw.dtype)

    def bias_of(self, block: Block) -> Float[Tensor, "#batch #heads #queries #keys"] | None:
        """The part of the additive mask that meets a block."""
        return None if self.bias is None else _slice(self.bias, block)

    def indices(
        self, block: Block, shape: tuple[int, ...], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b ``(B, 1, 1, 1)``, h ``(1, H, 1, 1)``, q_idx ``(1, 1, Q, 1)``, kv_idx ``(1, 1, 1, K)``."""
        queries = self._positions(block.queries, self.query_offset)
        keys = self._positions(block.keys, self.key_offset)
        batch, heads = (range(a, a + n) for a, n in zip(self.first, shape[:2], strict=True))
        ranges = (batch, heads, range(*queries), range(*keys))
        return tuple(  # type: ignore[return-value]
            torch.arange(r.start, r.stop, device=device).view(
                [-1 if d == i else 1 for d in range(4)]
            )
            for i, r in enumerate(ranges)
        )

    def keep(
        self, block: Block, shape: tuple[int, int], device: torch.device
    ) -> Float[Tensor, "batch heads queries keys"] | None:
        """Factors of the weights under dropout: 0 or 1/(1 − p); None without dropout."""
        if self.dropout is None:
            return None
        return self.dropout.factors(*self.indices(block, shape, device))

    @staticmethod
    def _positions(indices: slice, offset: int) -> Span:
        return Span(indices.start + offset, indices.stop + offset)


def part_of(mask: Tensor, batch: slice, heads: slice) -> Tensor:
    """The view of a broadcastable mask (or of its gradient) that some of the batch and of the heads meet."""
    mask = mask[batch] if mask.shape[0] > 1 else mask
    return mask[:, heads] if mask.shape[1] > 1 else mask


def _slice(mask: Tensor, block: Block) -> Tensor:
    """The part of a broadcastable mask that meets a block."""
    rows = block.queries if mask.shape[-2] > 1 else slice(None)
    columns = block.keys if mask.shape[-1] > 1 else slice(None)
    return mask[..., rows, columns]


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b
