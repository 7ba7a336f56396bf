"""Which query may attend to which key: ready-made ``mask_mod`` functions that know their own shape.

Each is called as FlexAttention calls its own (b, h, q_idx, kv_idx -> bool) and can be handed to it unchanged. Beyond
that it is ``Bounded``: it tells which range of keys a range of queries can reach, so that blocks outside are never
touched, and whether a block is allowed as a whole, so that no mask is written for it. What is compared are positions:
query i stands at ``i + query_offset``. Here are the masks that positions alone decide; ``lengths``, ``documents`` and
``combinations`` hold the others, and all have their names here.
"""

# ruff: noqa: ARG002  (the four arguments are the convention; not every mask looks at each)

from dataclasses import dataclass

import torch
from torch import Tensor

from synopsis.attention.combinations import And, Or, and_masks, or_masks
from synopsis.attention.documents import DocumentIds, Documents
from synopsis.attention.lengths import KeyLengths, PrefixLM
from synopsis.attention.rules import Span

__all__ = [
    "And",
    "BlockCausal",
    "Causal",
    "Chunked",
    "Dilated",
    "DocumentIds",
    "Documents",
    "KeyLengths",
    "Or",
    "PrefixLM",
    "SlidingWindow",
    "and_masks",
    "causal_mask",
    "document_mask",
    "or_masks",
    "prefix_lm",
    "sliding_window",
]


@dataclass(frozen=True)
class Causal:
    """A query attends to keys at its own position and before.

    Args:
        offset: how many positions further it may look; ``keys − queries`` aligns the two ends (bottom right).

    Example:
        >>> queries, keys = torch.arange(2)[:, None], torch.arange(3)
        >>> Causal(offset=1)(0, 0, queries, keys).int().tolist()
        [[1, 1, 0], [1, 1, 1]]
    """

    offset: int = 0

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where the key is not beyond the query."""
        return kv_idx <= q_idx + self.offset

    def keys(self, queries: Span, keys: Span) -> Span:
        """Up to the last query."""
        return keys & Span(keys.start, queries.stop + self.offset)

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether the first query sees the last key."""
        return keys.stop - 1 <= queries.start + self.offset


@dataclass(frozen=True)
class SlidingWindow:
    """A query attends to keys from ``left`` before it to ``right`` after it, and to its own.

    Args:
        left: how many keys before the query; None or negative: all.
        right: how many keys after it; None or negative: all.

    Example:
        >>> queries, keys = torch.arange(3)[:, None], torch.arange(3)
        >>> SlidingWindow(1)(0, 0, queries, keys).int().tolist()
        [[1, 0, 0], [1, 1, 0], [0, 1, 1]]

    Source: Beltagy, Peters, Cohan, "Longformer", 2020; −1 for an open end is FlashAttention's convention.
    """

    left: int | None
    right: int | None = 0

    def __post_init__(self) -> None:
        for end in ("left", "right"):
            width = getattr(self, end)
            object.__setattr__(self, end, None if width is None or width < 0 else width)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True inside the window."""
        ahead = kv_idx - q_idx
        if self.left is None:
            return (
                torch.ones_like(ahead, dtype=torch.bool)
                if self.right is None
                else ahead <= self.right
            )
        near = ahead >= -self.left
        return near if self.right is None else near & (ahead <= self.right)

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the left end of the first query to the right end of the last."""
        start = keys.start if self.left is None else queries.start - self.left
        stop = keys.stop if self.right is None else queries.stop + self.right
        return keys & Span(start, stop)

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether the last query sees the first key and the first query the last key."""
        back, ahead = queries.stop - 1 - keys.start, keys.stop - 1 - queries.start
        return (self.left is None or back <= self.left) and (
            self.right is None or ahead <= self.right
        )


@dataclass(frozen=True)
class BlockCausal:
    """Positions fall into blocks; a query attends to its own block, all of it, and to those before.

    Args:
        block: positions of a block, at least 1.

    Example:
        >>> queries, keys = torch.arange(3)[:, None], torch.arange(4)
        >>> BlockCausal(2)(0, 0, queries, keys).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    """

    block: int

    def __post_init__(self) -> None:
        _check_positive("block", self.block)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where the key's block is not after the query's."""
        return kv_idx // self.block <= q_idx // self.block

    def keys(self, queries: Span, keys: Span) -> Span:
        """Up to the end of the last query's block."""
        return keys & Span(keys.start, ((queries.stop - 1) // self.block + 1) * self.block)

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether the last key's block is not after the first query's."""
        return (keys.stop - 1) // self.block <= queries.start // self.block


@dataclass(frozen=True)
class Chunked:
    """Positions fall into chunks; a query attends to its own chunk only. With ``Causal``: Llama 4's local attention.

    Args:
        chunk: positions of a chunk, at least 1.

    Example:
        >>> queries, keys = torch.arange(3)[:, None], torch.arange(4)
        >>> Chunked(2)(0, 0, queries, keys).int().tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]]
    """

    chunk: int

    def __post_init__(self) -> None:
        _check_positive("chunk", self.chunk)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where both are in one chunk."""
        return kv_idx // self.chunk == q_idx // self.chunk

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the beginning of the first query's chunk to the end of the last one's."""
        first, last = queries.start // self.chunk, (queries.stop - 1) // self.chunk
        return keys & Span(first * self.chunk, (last + 1) * self.chunk)

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether all of them are in one chunk."""
        ends = (queries.start, queries.stop - 1, keys.start, keys.stop - 1)
        return len({end // self.chunk for end in ends}) == 1


@dataclass(frozen=True)
class Dilated:
    """A query attends to every ``stride``-th key, counted from its own. With ``SlidingWindow``: a dilated window.

    Args:
        stride: distance between the keys attended to, at least 1.

    Example:
        >>> queries, keys = torch.arange(2)[:, None], torch.arange(5)
        >>> Dilated(2)(0, 0, queries, keys).int().tolist()
        [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]

    Source: Child et al., "Generating long sequences with sparse transformers", 2019.
    """

    stride: int

    def __post_init__(self) -> None:
        _check_positive("stride", self.stride)

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where the distance is a multiple of the stride."""
        return (kv_idx - q_idx) % self.stride == 0

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the first key that any query meets to the last."""
        met = min(
            queries.stop - queries.start, self.stride
        )  # residues are met from the first query's on
        first = (keys.start - queries.start) % self.stride
        last = (keys.stop - 1 - queries.start) % self.stride
        start = keys.start if first < met else keys.start + self.stride - first
        return keys & Span(start, keys.stop - max(0, last - met + 1))

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Only one query and its own residue, unless the stride is 1."""
        single = queries.stop - queries.start == 1 == keys.stop - keys.start
        return self.stride == 1 or (single and (keys.start - queries.start) % self.stride == 0)


causal_mask = Causal()  # the names that users of FlexAttention look for
sliding_window = SlidingWindow
prefix_lm = PrefixLM
document_mask = Documents


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
