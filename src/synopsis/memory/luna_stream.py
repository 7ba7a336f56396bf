"""One layer of the Luna family as the memory of a stream without end.

The memory of a first layer is a parameter, so what it packs is the softmax attention of queries that never change, and
the summary (m, d, n) of each is all that must be kept. Where a filter stands before it, the last ``kernel − 1`` items
are kept too, because windows reach back to them. A stack is another matter: the memory of a second layer depends on the
whole of the stream, so it cannot be folded and has no ``update``.

Source: Ma et al., "Luna: Linear Unified Nested Attention", NeurIPS 2021; Yorsh et al., "On Difficulties of Attention
Factorization through Shared Memory", ICLR 2024 Tiny Papers. There is no streaming form in either.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from synopsis.attention import AttentionState, SoftmaxSummary
from synopsis.memory.base import Merges
from synopsis.memory.conv_luna import ConvLunaLayer, SimplifiedConvLunaLayer
from synopsis.memory.luna import LunaLayer, PackUnpackLayer, SharedLunaLayer
from synopsis.memory.ownership import Owner
from synopsis.memory.packing import Packing, PackingState, pieces
from synopsis.memory.sequence_filters import MaxPooling, SequenceFilter
from synopsis.states import State


class Luna(Packing):
    """A Luna layer whose memory is a parameter, over a stream: items in any pieces and any order, states that merge.

    ``read(state, latents)`` gives what ``layer(x, memory)`` gives, items and memory, for an x of everything seen; only
    that the latents, not x, ask what was packed.

    Args:
        layer: whose memory it is.
        cells: vectors of the learned memory.

    Example:
        >>> import torch
        >>> memory = Luna(LunaLayer(dim=8, heads=2, feedforward=16), cells=4)
        >>> state = memory.update(memory.init((1,)), torch.randn(1, 100, 8))
        >>> x, cells = memory.read(state, torch.randn(1, 3, 8))
        >>> x.shape, cells.shape
        (torch.Size([1, 3, 8]), torch.Size([1, 4, 8]))
    """

    def __init__(self, layer: LunaLayer | SharedLunaLayer, cells: int) -> None:
        if not isinstance(layer, LunaLayer | SharedLunaLayer):
            raise ValueError(
                f"a {type(layer).__name__} packs no stream here; filters need ConvLuna"
            )
        super().__init__(**_settings(layer))
        self.memory = _learned(layer, cells)
        self.layer = layer

    def query(self) -> Float[Tensor, "one heads cells width"]:
        """The learned memory as items meet it."""
        return self.layer.pack.query(self.memory)

    def key_value(self, x: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """What the memory meets of these items."""
        key, value, _ = self.layer.pack.keys_values(x)
        return key, value

    def memory_of(self, state: PackingState) -> Float[Tensor, "batch cells dim"]:
        """The memory that the stream leaves in the layer."""
        return self.layer.remember(self.memory, self._packed(state))

    def read(
        self, state: PackingState, latents: Float[Tensor, "batch latents dim"]
    ) -> tuple[Float[Tensor, "batch latents dim"], Float[Tensor, "batch cells dim"]]:
        """What these latents become when they ask what was packed, and the memory; reading changes nothing."""
        self.check_belongs(state, len(latents))
        return self.layer.answer(latents, self._packed(state)), self.memory_of(state)

    def _packed(self, state: PackingState) -> Tensor:
        return self.layer.pack.output(state.summary.output.to(self.memory.dtype))


@dataclass(frozen=True)
class ConvLunaState(State):
    """What a filtered memory keeps of each stream.

    Args:
        summary: (m, d, n) of every query over complete windows; rows ``(batch, heads, cells)``.
        tail: the last ``kernel − 1`` items, the newest last; 0 where there were fewer.
        count: items seen by each stream.
        fingerprint: of the weights that made it; other weights refuse it.
    """

    kind: ClassVar[str] = "conv-luna"
    summary: SoftmaxSummary
    tail: Float[Tensor, "batch tail dim"]
    count: Int[Tensor, " batch"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless sums are float64 and all parts are of the same streams and width."""
        if self.summary.denominator.dtype != torch.float64:
            raise ValueError(f"sums are {self.summary.denominator.dtype}; they must be float64")
        streams = {len(t) for t in (self.summary.maximum, self.tail, self.count)}
        if len(streams) > 1:
            raise ValueError(f"summary, tail and counts are of {sorted(streams)} streams")
        heads, width = self.summary.numerator.shape[1], self.summary.numerator.shape[-1]
        if self.tail.shape[-1] != heads * width:
            raise ValueError(
                f"items have {self.tail.shape[-1]} features in the tail but {heads * width} in the "
                "summary; they must agree"
            )


class ConvLuna(Owner):
    """A ConvLuna layer whose memory is a parameter, over a stream: items in any pieces, in their order.

    ``read(state, latents)`` gives what ``layer(x, memory)`` gives, items and memory, for an x of everything seen; only
    that the latents, not x, ask what was packed. Masked items do not exist: windows close over them, where in a padded
    batch they see a zero.

    States do not merge: a window may reach over the border of two parts, and where the second part's windows begin
    depends on the length of the first.

    Args:
        layer: whose memory it is.
        cells: vectors of the learned memory.

    Example:
        >>> import torch
        >>> layer = ConvLunaLayer(dim=8, heads=2, feedforward=16)
        >>> memory, x = ConvLuna(layer, cells=4), torch.randn(1, 100, 8)
        >>> state = memory.update(memory.update(memory.init((1,)), x[:, :30]), x[:, 30:])
        >>> _, cells = memory.read(state, torch.randn(1, 3, 8))
        >>> torch.allclose(cells, layer(x, memory.memory)[1], atol=1e-5)
        True
    """

    merges: ClassVar[Merges] = None

    def __init__(self, layer: ConvLunaLayer | SimplifiedConvLunaLayer, cells: int) -> None:
        if not isinstance(layer, ConvLunaLayer | SimplifiedConvLunaLayer):
            raise ValueError(f"a {type(layer).__name__} has no filter; use Luna")
        super().__init__(**_settings(layer))
        self.memory = _learned(layer, cells)
        self.layer = layer

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> ConvLunaState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        _, heads, cells, width = (query := self.layer.pack.query(self.memory)).shape
        sums = torch.empty(0, dtype=torch.float64, device=query.device)
        summary = SoftmaxSummary.empty((*batch_shape, heads, cells), width, sums)
        tail = query.new_zeros(*batch_shape, self._filter.kernel - 1, self.layer.dim)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=query.device)
        return ConvLunaState(summary, tail.detach(), count, self.fingerprint)

    def update(
        self,
        state: ConvLunaState,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> ConvLunaState:
        """Fold items in, in order; ValueError when the state belongs to other weights or streams."""
        self.check_belongs(state, len(x))
        for piece in pieces(len(x), x.shape[1], least=self._filter.kernel):
            state = self._fold(state, x[:, piece], None if mask is None else mask[:, piece])
        return state

    def memory_of(self, state: ConvLunaState) -> Float[Tensor, "batch cells dim"]:
        """The memory that the stream leaves in the layer."""
        return self.layer.remember(self.memory, self._packed(state))

    def read(
        self, state: ConvLunaState, latents: Float[Tensor, "batch latents dim"]
    ) -> tuple[Float[Tensor, "batch latents dim"], Float[Tensor, "batch cells dim"]]:
        """What these latents become when they ask what was packed, and the memory; reading changes nothing."""
        self.check_belongs(state, len(latents))
        packed = self._packed(state)
        return self.layer.answer(latents, packed), self.layer.remember(self.memory, packed)

    def _packed(self, state: ConvLunaState) -> Tensor:
        """With the windows that would close if the stream ended now."""
        blanks = state.tail.new_zeros(len(state.tail), self._filter.kernel, self.layer.dim)
        items = torch.cat([state.tail, blanks], 1)
        ended = self._summary(items, state.count, torch.zeros_like(state.count), self._due(state))
        summary = state.summary.merge(ended)
        return self.layer.pack.output(summary.output.to(self.memory.dtype))

    def _due(self, state: ConvLunaState) -> Tensor:
        """Blank items that the end of a stream adds after its last one."""
        kernel, lead = self._filter.kernel, self._filter.lead
        keeps = self._filter.keeps_length and self._filter.stride == 1
        due = torch.full_like(state.count, kernel - 1 - lead)
        due = due if keeps else (kernel - state.count).clamp(min=0)
        return due.masked_fill(state.count == 0, 0)

    def _fold(self, state: ConvLunaState, x: Tensor, mask: Tensor | None) -> ConvLunaState:
        added = torch.full_like(state.count, x.shape[1]) if mask is None else mask.sum(-1)
        if mask is not None:  # real items first, in their order
            order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)
            x = _picked(x.masked_fill(~mask.unsqueeze(-1), 0.0), order)
        items = torch.cat([state.tail, x.to(state.tail.dtype)], 1)
        summary = state.summary.merge(self._summary(items, state.count, added, added))
        kept = torch.arange(self._filter.kernel - 1, device=x.device) + added.unsqueeze(1)
        count = state.count + added
        return replace(state, summary=summary, tail=_picked(items, kept), count=count)

    def _summary(self, items: Tensor, count: Tensor, added: Tensor, room: Tensor) -> SoftmaxSummary:
        """Attention over the windows that begin before ``room``, in ``tail`` items and ``added`` more.

        Streams stand at different places in their strides, so each is shifted to where its next window begins.
        """
        before, stride = self._filter.kernel - 1, self._filter.stride
        first = (before - self._filter.lead - count).clamp(min=0)
        first = first + (before - self._filter.lead - count - first) % stride
        places = torch.arange(items.shape[1], device=items.device) + first.unsqueeze(1)
        real = (places >= (before - count).unsqueeze(1)) & (places < before + added.unsqueeze(1))
        picked = _picked(items, places.clamp(max=items.shape[1] - 1))
        key, value, covered = self._windows(picked, real)
        begins = places[:, : key.shape[-2] * stride : stride]
        seen = covered & (begins < room.unsqueeze(1))
        query = self.layer.pack.query(self.memory).expand(len(items), -1, -1, -1)
        empty = AttentionState.empty(query, value.shape[-1], scale=1.0)
        return empty.update(key, value, seen[:, None, None, :]).summary

    def _windows(self, items: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pack = self.layer.pack
        key, value = pack.key_value(items)
        windows, covered = self._filter.windows(key, real)
        valued = windows if value is key else self._filter.windows(value, real)[0]
        return pack.split(windows), pack.split(valued), covered

    @property
    def _filter(self) -> SequenceFilter:
        filtering = self.layer.pack.filtering
        return MaxPooling(1) if filtering is None else filtering  # the largest of one item


def _picked(items: Tensor, places: Tensor) -> Tensor:
    """Items of each stream at its own places."""
    return items.gather(1, places.unsqueeze(-1).expand(-1, -1, items.shape[-1]))


def _learned(layer: PackUnpackLayer, cells: int) -> nn.Parameter:
    if cells < 1:
        raise ValueError(f"a memory needs at least 1 cell, not {cells}")
    if layer.pack.dropout or layer.unpack.dropout:
        raise ValueError(
            f"attention dropout of {layer.pack.dropout} and {layer.unpack.dropout} does not stream: "
            "a summary has no weights to drop"
        )
    return nn.Parameter(torch.randn(1, cells, layer.dim))


def _settings(layer: PackUnpackLayer) -> dict[str, Any]:
    """What the shapes of the weights do not tell."""
    name, both = type(layer).__name__, {"pack": layer.pack, "unpack": layer.unpack}
    return {"layer": name, **{part: one.settings() for part, one in both.items()}}
