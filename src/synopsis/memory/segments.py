"""Recurrence over segments: a memory that a network rewrites once for every so many items.

Such a memory is whatever the network wrote: it cannot be merged, and items fold in their order. What does not yet fill
a segment waits in the state, so a stream in any pieces is cut where the whole sequence would be.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from synopsis.memory.base import Merges
from synopsis.memory.layers import blank
from synopsis.memory.ownership import Owner
from synopsis.states import State


@dataclass(frozen=True)
class SegmentState(State):
    """The memory after all full segments, and the items that wait for theirs to fill.

    Args:
        memory: what the network wrote.
        pending: items of the segment that is not full, first ones first, 0 behind them.
        filled: how many of them there are.
        count: items seen by each stream.
        fingerprint: of the weights that made it; other weights refuse it.
    """

    kind: ClassVar[str] = "segments"
    memory: Float[Tensor, "batch m dim"]
    pending: Float[Tensor, "batch segment dim"]
    filled: Int[Tensor, " batch"]
    count: Int[Tensor, " batch"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless all parts are of the same streams and width, and no segment is over-full."""
        streams = {len(t) for t in (self.memory, self.pending, self.filled, self.count)}
        if len(streams) != 1:
            raise ValueError(f"parts are of {sorted(streams)} streams; they must agree")
        if self.memory.shape[-1] != self.pending.shape[-1]:
            raise ValueError(
                f"memory {tuple(self.memory.shape)} of items {tuple(self.pending.shape)}: widths must agree"
            )
        outside = (self.filled < 0) | (self.filled >= self.pending.shape[1])
        if bool(outside.any()):
            raise ValueError(
                f"{self.filled.tolist()} items wait in segments of {self.pending.shape[1]}"
            )


class _Compact(NamedTuple):
    """Real items moved to the front of each stream, in their order, with 0 behind them."""

    items: Float[Tensor, "batch length dim"]
    order: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]

    @classmethod
    def of(cls, x: Tensor, mask: Tensor) -> "_Compact":
        order = (~mask).int().argsort(dim=1, stable=True)
        items = blank(x, mask).gather(1, _rows(order, x))
        return cls(items, order, mask.sum(1))

    def restored(self, items: Tensor) -> Tensor:
        """Items in the places that they came from, and 0 in the others."""
        real = torch.arange(items.shape[1], device=items.device) < self.lengths[:, None]
        places = _rows(self.order, items)
        return torch.zeros_like(items).scatter(1, places, blank(items, real))


def _rows(places: Tensor, x: Tensor) -> Tensor:
    return places.unsqueeze(-1).expand(-1, -1, x.shape[-1])


class SegmentRecurrence(Owner):
    """Base of memories that are rewritten segment by segment; a subclass says how (``first``, ``step``).

    Args:
        dim: width of items and memory.
        segment: real items of a segment; the last one of a sequence may have fewer.
        **configuration: what else decides answers.
    """

    merges: ClassVar[Merges] = None

    def __init__(self, dim: int, segment: int, **configuration: object) -> None:
        super().__init__(segment=segment, **configuration)
        if segment < 1:
            raise ValueError(f"segment must be at least 1, not {segment}")
        self.dim, self.segment = dim, segment

    def first(self, streams: int) -> Float[Tensor, "streams m dim"]:
        """The memory that has seen nothing."""
        raise NotImplementedError

    def step(
        self,
        x: Float[Tensor, "batch items dim"],
        memory: Float[Tensor, "batch m dim"],
        mask: Bool[Tensor, "batch items"] | None = None,
    ) -> tuple[Float[Tensor, "batch items dim"], Float[Tensor, "batch m dim"]]:
        """One segment: what becomes of its items, and of the memory."""
        raise NotImplementedError

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch m dim"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch m dim"]]:
        """The whole sequence, segment after segment; gradients flow through all of them.

        Args:
            x: items; what stands in masked places does not matter: segments are of real items.
            memory: the memory to begin with, a batch of 1 serves all; None: the one that has seen nothing.
            mask: True where an item is real; None: all are.

        Returns:
            What became of the items, 0 where they are not real, and the memory after the last segment. A stream
            without a real item keeps its memory.
        """
        memory = (self.first(1) if memory is None else memory).expand(len(x), -1, -1)
        found = [x[:, :0]]
        if mask is None:
            for piece in x.split(self.segment, dim=1) if x.shape[1] else ():
                piece, memory = self.step(piece, memory)
                found.append(piece)
            return torch.cat(found, dim=1), memory
        compact = _Compact.of(x, mask)
        for piece, real in self._segments(compact):
            piece, written = self.step(piece, memory, real)
            memory = torch.where(real.any(1)[:, None, None], written, memory)
            found.append(piece)
        answers = torch.cat(found, dim=1)
        answers = F.pad(answers, (0, 0, 0, x.shape[1] - answers.shape[1]))
        return compact.restored(answers), memory

    def _segments(self, compact: _Compact) -> Iterator[tuple[Tensor, Tensor]]:
        longest = int(compact.lengths.max()) if len(compact.lengths) else 0
        positions = torch.arange(compact.items.shape[1], device=compact.items.device)
        for start in range(0, longest, self.segment):
            piece = slice(start, start + self.segment)
            yield compact.items[:, piece], positions[piece] < compact.lengths[:, None]

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> SegmentState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        memory = self.first(*batch_shape).clone()
        pending = memory.new_zeros(*batch_shape, self.segment, self.dim)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=memory.device)
        return SegmentState(memory, pending, count, count.clone(), self.fingerprint)

    def update(
        self,
        state: SegmentState,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> SegmentState:
        """Take items in, in their order: write full segments to the memory, and keep the others waiting.

        Raises:
            ValueError: when the state belongs to other weights or streams.
        """
        self.check_belongs(state, len(x))
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        waiting = self._waiting(state)
        both = torch.cat([state.pending, x.to(state.pending.dtype)], dim=1)
        compact = _Compact.of(both, torch.cat([waiting, mask], dim=1))
        memory, full = state.memory, compact.lengths // self.segment
        for i in range(int(full.max()) if len(full) else 0):
            items = compact.items[:, i * self.segment : (i + 1) * self.segment]
            written = self.step(items, memory)[1]
            memory = torch.where((i < full)[:, None, None], written, memory)
        pending = self._tail(compact.items, full * self.segment)
        filled = compact.lengths - full * self.segment
        count = state.count + mask.sum(1)
        return replace(state, memory=memory, pending=pending, filled=filled, count=count)

    def memory_of(self, state: SegmentState) -> Float[Tensor, "batch m dim"]:
        """The memory after everything seen, with the waiting items as a short last segment."""
        written = self.step(state.pending, state.memory, self._waiting(state))[1]
        return torch.where((state.filled > 0)[:, None, None], written, state.memory)

    def read(
        self, state: SegmentState, latents: Float[Tensor, "batch latents dim"]
    ) -> Float[Tensor, "batch latents dim"]:
        """What becomes of these latents as the items of one more segment; reading changes nothing."""
        self.check_belongs(state, len(latents))
        return self.step(latents, self.memory_of(state))[0]

    def _waiting(self, state: SegmentState) -> Tensor:
        places = torch.arange(self.segment, device=state.filled.device)
        return places < state.filled[:, None]

    def _tail(self, items: Tensor, start: Tensor) -> Tensor:
        """As many items as a segment has, from a place of its own for each stream; beyond the end there is 0."""
        places = start[:, None] + torch.arange(self.segment, device=items.device)
        padded = F.pad(items, (0, 0, 0, self.segment))
        return padded.gather(1, _rows(places, items))
