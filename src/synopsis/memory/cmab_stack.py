"""Constant memory attention blocks over one stream, and the state that is all they keep of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.attention import SoftmaxSummary, fused
from synopsis.memory.base import Merges
from synopsis.memory.layers import split_heads
from synopsis.memory.layers_training import softmax_attention
from synopsis.states import State, check_streams
from synopsis.weights import Weights, fingerprint

if TYPE_CHECKING:
    from synopsis.memory.cmab import CMAB

_ITEMS = 1024  # items folded at once over all streams
_SCORES = 1 << 20  # scores held at once where the fused kernel does not apply: 4 MiB of float32
_FUSED = 16  # pieces shorter than this are not worth the kernel


@dataclass(frozen=True)
class CMABState(State):
    """What one or several blocks keep of each stream.

    Args:
        summary: (m, d, n) of every learned query; rows ``(batch, blocks·heads, latents)``.
        count: items seen by each stream.
        fingerprint: of the weights that made it; other weights refuse it.
    """

    kind: ClassVar[str] = "cmab"
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


class CMABStack(nn.Module):
    """Blocks that see the same stream: conditioned in one pass, read one after the other.

    The blocks' context normalisations share mean and variance, so their gains fold into one key/value projection for
    all blocks, and one softmax summary holds them all.

    Args:
        blocks: CMABs of equal sizes.
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(self, blocks: "Sequence[CMAB]") -> None:
        super().__init__()
        self.blocks: "Sequence[CMAB]" = nn.ModuleList(blocks)  # type: ignore[assignment]
        self._weights: Weights | None = None
        self._entrance_of: tuple[object, _Entrance] | None = None
        self._fingerprint_of: tuple[object, str] | None = None

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
        self._check_belongs(state)
        check_streams(state, streams)
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
        self._check_belongs(a)
        self._check_belongs(b)
        check_streams(a, len(b.count))
        return replace(a, summary=a.summary.merge(b.summary), count=a.count + b.count)

    def read(
        self, state: CMABState, latents: Float[Tensor, "batch latents dim"]
    ) -> list[Float[Tensor, "batch latents dim"]]:
        """Every block's answer, each asked with the answer of the one before."""
        self._check_belongs(state)
        check_streams(state, len(latents))
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
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0.0)
        normed = F.layer_norm(x, x.shape[-1:])
        both = split_heads(
            F.linear(normed, entrance.weight, entrance.bias), 2 * len(entrance.query)
        )
        key, value = both.chunk(2, dim=1)
        return key, value

    def _entrance(self) -> _Entrance:
        """The projections, kept between calls until a weight is written to or has to learn."""
        if torch.is_grad_enabled() and any(p.requires_grad for p in self._of_entrance()):
            return self._project()
        key = self._weights_version()
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

    def train(self, mode: bool = True) -> Self:
        """Change mode, and forget what was derived from the weights: fused optimisers change them unseen."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop what was derived from the weights."""
        self._entrance_of = self._fingerprint_of = None

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that only these weights have."""
        key = self._weights_version()
        if self._fingerprint_of is None or self._fingerprint_of[0] != key:
            blocks = nn.ModuleList(self.blocks)
            self._fingerprint_of = (key, fingerprint(blocks, {"blocks": len(self.blocks)}))
        return self._fingerprint_of[1]

    def _weights_version(self) -> object:
        if self._weights is None:
            self._weights = Weights(nn.ModuleList(self.blocks))
        return self._weights.version()

    def _check_belongs(self, state: CMABState) -> None:
        if state.fingerprint != self.fingerprint:
            raise ValueError(
                f"the state was made by weights {state.fingerprint}, not by these ({self.fingerprint})"
            )
