"""Streams packed by queries that are parameters: the softmax summary of each is all that must be kept of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.attention import AttentionState, SoftmaxSummary
from synopsis.memory.base import Merges
from synopsis.memory.layers import blank
from synopsis.memory.ownership import Owner
from synopsis.states import State

_PIECE = 1024  # items folded at once over all streams


@dataclass(frozen=True)
class PackingState(State):
    """What learned queries keep of each stream.

    Args:
        summary: (m, d, n) of every query; rows ``(batch, heads, queries)``.
        count: items seen by each stream.
        fingerprint: of the weights that made it; other weights refuse it.
    """

    kind: ClassVar[str] = "packing"
    summary: SoftmaxSummary
    count: Int[Tensor, " batch"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless every stream has a count, and sums are float64."""
        if self.summary.denominator.dtype != torch.float64:
            raise ValueError(f"sums are {self.summary.denominator.dtype}; they must be float64")
        if self.count.shape != self.summary.maximum.shape[:1]:
            raise ValueError(
                f"{tuple(self.count.shape)} counts for {self.summary.maximum.shape[0]} streams"
            )


class Packing(Owner):
    """Base of memories that one attention of learned queries fills; a subclass says which, and how it is read."""

    merges: ClassVar[Merges] = "any order"

    def query(self) -> Float[Tensor, "one heads queries width"]:
        """The learned queries, projected and divided by the temperature."""
        raise NotImplementedError

    def key_value(
        self, x: Float[Tensor, "batch length dim"]
    ) -> tuple[
        Float[Tensor, "batch heads length width"], Float[Tensor, "batch heads length width"]
    ]:
        """What the queries meet of these items."""
        raise NotImplementedError

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> PackingState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        _, heads, queries, width = (query := self.query()).shape
        sums = torch.empty(0, dtype=torch.float64, device=query.device)
        summary = SoftmaxSummary.empty((*batch_shape, heads, queries), width, sums)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=query.device)
        return PackingState(summary, count, self.fingerprint)

    def update(
        self,
        state: PackingState,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> PackingState:
        """Fold items in, in any pieces and order; ValueError when the state belongs to other weights or streams."""
        self.check_belongs(state, len(x))
        query = self.query().expand(len(x), -1, -1, -1)
        empty = AttentionState.empty(query, query.shape[-1], scale=1.0)
        attention = replace(empty, summary=state.summary)
        # Fewer items than a few times the queries take longer to add to the sums than to fold.
        for piece in pieces(len(x), x.shape[1], least=min(_PIECE, 4 * query.shape[-2])):
            seen = None if mask is None else mask[:, piece]
            key, value = self.key_value(blank(x[:, piece], seen))
            attention = attention.update(
                key, value, None if seen is None else seen[:, None, None, :]
            )
        added = x.shape[1] if mask is None else mask.sum(-1)
        return replace(state, summary=attention.summary, count=state.count + added)

    def merge(self, a: PackingState, b: PackingState) -> PackingState:
        """The state after both sets of items; ValueError when they belong to other weights or streams."""
        self.check_belongs(a, len(b.count))
        self.check_belongs(b, len(a.count))
        return replace(a, summary=a.summary.merge(b.summary), count=a.count + b.count)


def pieces(streams: int, length: int, least: int = 1) -> Iterator[slice]:
    """Where to cut a stream, since float32 sums over many keys are rounded and those between pieces are not.

    Args:
        streams: that are folded side by side, and share what is held at once.
        length: items of each.
        least: items of each in a piece, however many streams there are.

    Returns:
        Slices that cover the length once and in order; none for a length of 0.

    Example:
        >>> list(pieces(streams=2, length=1000))
        [slice(0, 512, None), slice(512, 1024, None)]
    """
    step = max(least, _PIECE // max(1, streams))
    return (slice(start, start + step) for start in range(0, length, step))
