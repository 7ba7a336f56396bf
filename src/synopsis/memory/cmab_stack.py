"""Constant memory attention blocks over one stream, and the state that is all they keep of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.attention import SoftmaxSummary, fused
from synopsis.memory.base import Merges
from synopsis.memory.layers import blank, split_heads
from synopsis.memory.layers_training import softmax_attention
from synopsis.memory.ownership import Owner
from synopsis.memory.packing import PackingState

if TYPE_CHECKING:
    from synopsis.memory.cmab import CMAB

_ITEMS = 1024  # items folded at once over all streams
_SCORES = 1 << 20  # scores held at once where the fused kernel does not apply: 4 MiB of float32
_FUSED = 16  # pieces shorter than this are not worth the kernel


@dataclass(frozen=True)
class CMABState(PackingState):
    """What one or several blocks keep of each stream; rows of the summary are ``(batch, blocks·heads, latents)``."""

    kind: ClassVar[str] = "cmab"


def _piece_length(rows: torch.Size, fused: bool) -> int:
    """Items folded at once, so that the memory of a fold does not depend on how many come or how many streams."""
    return max(_FUSED, _ITEMS // rows[0] if fused else _SCORES // max(1, rows.numel()))


def _summarise(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> SoftmaxSummary:
    if seen is None and key.shape[-2] >= _FUSED and fused.applies(query, key, value):
        return fused.fused_summary(query.expand(len(key), -1, -1, -1), key, value)
    scores = query @ key.transpose(-2, -1)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None, None, :], -math.inf)
    return SoftmaxSummary.of(scores, value)


class _Entrance(NamedTuple):
    """What a stream meets in a stack: all learned queries, and one projection to all keys and values."""

    query: Float[Tensor, "rows latents width"]
    weight: Float[Tensor, "two_rows_width dim"]
    bias: Float[Tensor, " two_rows_width"]


class CMABStack(Owner):
    """Blocks that see the same stream: conditioned in one pass, read one after the other.

    The blocks' context normalisations share mean and variance, so their gains fold into one key/value projection for
    all blocks, and one softmax summary holds them all.

    Args:
        blocks: CMABs of equal sizes.
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(self, blocks: "Sequence[CMAB]") -> None:
        super().__init__(blocks=len(blocks))
        self.blocks: "Sequence[CMAB]" = nn.ModuleList(blocks)  # type: ignore[assignment]
        self._entrance_of: tuple[object, _Entrance] | None = None

    @property
    def owned(self) -> nn.Module:
        """The blocks, under the names that they have without the stack."""
        return cast(nn.ModuleList, self.blocks)

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> CMABState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        entrance = self._entrance()
        rows, latents, width = entrance.query.shape
        sums = torch.empty(0, dtype=torch.float64, device=entrance.query.device)
        summary = SoftmaxSummary.empty((*batch_shape, rows, latents), width, sums)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=sums.device)
        return CMABState(summary, count, self.fingerprint)

    def update(
        self,
        state: CMABState,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> CMABState:
        """Fold items in; ValueError when the state belongs to other weights."""
        return self.fold(state, (len(x), x.shape[1]), lambda piece: x[:, piece], mask)

    def fold(
        self,
        state: CMABState,
        shape: tuple[int, int],
        piece_of: Callable[[slice], Float[Tensor, "batch piece dim"]],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> CMABState:
        """Like :meth:`update` on items of ``shape`` (streams, length), embedded piece by piece when they are needed."""
        streams, length = shape
        self.check_belongs(state, streams)
        entrance, summary = self._entrance(), state.summary
        step = _piece_length(summary.maximum.shape, fused=mask is None)
        for start in range(0, length, step):
            piece = slice(start, start + step)
            seen = None if mask is None else mask[:, piece]
            key, value = self._keys_values(entrance, piece_of(piece), seen)
            summary = summary.merge(_summarise(entrance.query, key, value, seen))
        added = length if mask is None else mask.sum(-1)
        return replace(state, summary=summary, count=state.count + added)

    def merge(self, a: CMABState, b: CMABState) -> CMABState:
        """The state after both sets of items; ValueError when they belong to other weights."""
        self.check_belongs(a, len(b.count))
        self.check_belongs(b, len(a.count))
        return replace(a, summary=a.summary.merge(b.summary), count=a.count + b.count)

    def read(
        self, state: CMABState, latents: Float[Tensor, "batch latents dim"]
    ) -> list[Float[Tensor, "batch latents dim"]]:
        """Every block's answer, each asked with the answer of the one before."""
        self.check_belongs(state, len(latents))
        return self._answers(state.summary.output.to(latents.dtype), latents)

    def encode(
        self,
        x: Float[Tensor, "batch length dim"],
        latents: Float[Tensor, "batch latents dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> list[Float[Tensor, "batch latents dim"]]:
        """``read(update(init, x), latents)`` in one differentiable sweep by the fused kernel: for training."""
        entrance = self._entrance()
        key, value = self._keys_values(entrance, x, mask)
        query = entrance.query.expand(len(x), -1, -1, -1)
        if x.shape[1] == 0:  # nothing seen: attention over nothing is 0
            return self._answers(torch.zeros_like(query), latents)
        pairs = None if mask is None else mask[:, None, None, :]
        attended = softmax_attention(query, key, value, pairs, scale=1.0)
        return self._answers(attended, latents)

    def _answers(self, attended: Tensor, latents: Tensor) -> list[Tensor]:
        answers = []
        for block, rows in zip(self.blocks, attended.chunk(len(self.blocks), dim=1), strict=True):
            latents = block.answer(rows, latents)
            answers.append(latents)
        return answers

    def _keys_values(
        self, entrance: _Entrance, x: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of all blocks, (batch, rows, length, width); masked items become 0, so no NaN leaks."""
        normed = F.layer_norm(blank(x, mask), x.shape[-1:])
        both = split_heads(
            F.linear(normed, entrance.weight, entrance.bias), 2 * len(entrance.query)
        )
        key, value = both.chunk(2, dim=1)
        return key, value

    def _entrance(self) -> _Entrance:
        """The projections, kept between calls until a weight is written to or has to learn."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._of_entrance()):
            return self._project()
        key = self.version()
        if self._entrance_of is None or self._entrance_of[0] != key:
            self._entrance_of = (key, self._project())
        return self._entrance_of[1]

    def _of_entrance(self) -> Iterator[Tensor]:
        """The weights that a stream meets."""
        for block in self.blocks:
            yield block.latents
            yield from block.absorb.norm.parameters()
            yield from block.absorb.norm_context.parameters()
            yield block.absorb.attention.to_query.weight
            yield block.absorb.attention.to_key_value.weight

    def _project(self) -> _Entrance:
        pairs = [
            (b.absorb.attention.to_key_value.weight, b.absorb.norm_context) for b in self.blocks
        ]
        keys = [(w.chunk(2)[0], norm) for w, norm in pairs]
        values = [(w.chunk(2)[1], norm) for w, norm in pairs]
        weight = torch.cat([w * norm.weight for w, norm in keys + values])
        bias = torch.cat([w @ norm.bias for w, norm in keys + values])
        return _Entrance(torch.cat([block.query() for block in self.blocks]), weight, bias)

    def forget(self) -> None:
        """Drop what was derived from the weights."""
        super().forget()
        self._entrance_of = None
