"""Exact attention over keys that arrive in pieces: from a file, a generator, a socket, a list.

The next block is read while this one is computed, and memory holds these two, whatever the length of the stream.
"""

import math
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention import folding, second_pass
from synopsis.attention.captured import captures_gradients
from synopsis.attention.reading_ahead import ReadAhead
from synopsis.attention.rules import MaskMod, Rules, ScoreMod
from synopsis.attention.state import AttentionState

Piece = tuple[Tensor, Tensor]


def streaming_attention(  # noqa: PLR0913  (as scaled_dot_product_attention)
    query: Float[Tensor, "*batch heads queries dim"],
    blocks: Iterable[Piece],
    *,
    scale: float | None = None,
    is_causal: bool = False,
    mask_mod: MaskMod | None = None,
    score_mod: ScoreMod | None = None,
    query_offset: int = 0,
    return_lse: bool = False,
    prefetch: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention over all blocks together, in the memory of two of them.

    Gradients to the query, and to tensors that ``score_mod`` captured, come from a second pass over the blocks, so
    ``blocks`` must then be something that can be iterated again and gives the same. Blocks are constants, unless they
    want a gradient themselves: those are kept, and get theirs. The second pass has no derivative.

    Args:
        query: ``(..., heads, queries, dim)``, or ``(queries, dim)`` for one head.
        blocks: pairs of key ``(..., key_heads, keys, dim)`` and value ``(..., key_heads, keys, value_dim)``, as
            :meth:`AttentionState.update` takes them, in the order of their positions.
        scale: factor on query · key; 1/√dim when None.
        is_causal: key j of the whole stream may be attended by query i when j ≤ i + query_offset.
        mask_mod: of (b, h, q_idx, kv_idx), True where a pair may attend; kv_idx counts through the stream.
        score_mod: of (score, b, h, q_idx, kv_idx), elementwise.
        query_offset: position of the first query.
        return_lse: also return the natural log-sum-exp, in at least float32.
        prefetch: read the next block in a background thread; False reads in this one.

    Returns:
        Output ``(..., heads, queries, value_dim)`` in the dtype of the query, or (output, lse). Without any block,
        output is 0, as wide as the query or as ``blocks.value_dim`` says, and lse −∞.

    Raises:
        ValueError: when a block does not fit; whatever the source raises is passed on.
        RuntimeError: in backward, when the blocks cannot be read twice.

    Example:
        >>> query, key, value = torch.randn(3, 1, 100, 16).unbind()
        >>> pieces = list(zip(key.split(7, dim=-2), value.split(7, dim=-2)))
        >>> whole = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        >>> torch.allclose(streaming_attention(query, pieces), whole, atol=1e-6)
        True

    Source: Rabe & Staats, "Self-attention Does Not Need O(n²) Memory", 2021.
    """
    rules = Rules(
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
        is_causal=is_causal,
        mask_mod=mask_mod,
        score_mod=score_mod,
        query_offset=query_offset,
    )
    captures = score_mod is not None and captures_gradients(score_mod)
    wants = torch.is_grad_enabled() and (query.requires_grad or captures)
    stream = Stream(blocks, rules, prefetch)
    if wants:
        output, lse = stream.differentiable(query)
    else:
        state = stream.state(query)
        output, lse = state.output, state.lse
    return (output, lse.to(folding.working_dtype(query))) if return_lse else output


@dataclass(frozen=True)
class Stream:
    """Blocks of keys and values in order, and the rules they are attended under.

    Args:
        blocks: pairs of key and value.
        rules: with ``key_offset`` the position of the first key.
        prefetch: read one block ahead in the background.
    """

    blocks: Iterable[Piece]
    rules: Rules
    prefetch: bool = True

    def pieces(self, query: Tensor) -> Generator[tuple[int, Tensor, Tensor], None, None]:
        """Position, key and value of each block, on the device of the query; let go of them before the next."""
        position = self.rules.key_offset
        with ReadAhead(self.blocks, self.prefetch) as ahead:
            while (piece := ahead.take()) is not None:
                key, value = _checked(piece, query)
                yield position, key, value
                position += key.shape[-2]
                del piece, key, value  # the next but one is read from here on

    def states(self, state: AttentionState) -> Iterator[AttentionState]:
        """The state after each block."""
        with closing(self.pieces(state.query)) as pieces:
            for position, key, value in pieces:
                state = self._after(state, position, key, value)
                del key, value
                yield state

    def state(self, query: Tensor) -> AttentionState:
        """The state after all blocks; blocks that want a gradient get theirs."""
        state: AttentionState | None = None
        with closing(self.pieces(query)) as pieces:
            for position, key, value in pieces:
                state = self.empty(query, value) if state is None else state
                state = self._after(state, position, key, value)
                del key, value
        return self.empty(query) if state is None else state

    def differentiable(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp, with a graph to query, captured tensors, and blocks that want a gradient."""
        wanting: list[tuple[int, Tensor, Tensor]] = []
        state: AttentionState | None = None
        with closing(self.pieces(query)) as pieces:
            for position, key, value in pieces:
                state = self.empty(query, value) if state is None else state
                if key.requires_grad or value.requires_grad:
                    wanting.append((position, key, value))
                else:
                    with torch.no_grad():
                        state = self._after(state, position, key, value)
                del key, value
        state = self.empty(query) if state is None else state
        if int(state.count) or not wanting:
            output, lse = second_pass.with_graph(self, query, state)
            if not wanting:
                return output.to(query.dtype), lse
            state = AttentionState.from_output(output, lse, query, scale=self.rules.scale)
        for position, key, value in wanting:
            state = self._after(state, position, key, value)
        return state.output, state.lse

    def empty(self, query: Tensor, value: Tensor | None = None) -> AttentionState:
        """The state before any block; its width is that of a value, or what the blocks or else the query suggest."""
        width = getattr(self.blocks, "value_dim", query.shape[-1])
        width = width if value is None else value.shape[-1]
        return AttentionState.empty(query, width, self.rules.scale)

    def _after(
        self, state: AttentionState, position: int, key: Tensor, value: Tensor
    ) -> AttentionState:
        try:
            return state.fold(key, value, self.rules_at(position))
        except ValueError as error:
            raise ValueError(f"the block from key {position:,} on: {error}") from error

    def rules_at(self, position: int) -> Rules:
        """The rules as keys from a position on see them."""
        return replace(self.rules, key_offset=position)


def _checked(piece: Any, query: Tensor) -> Piece:
    fits = isinstance(piece, tuple | list) and len(piece) == 2
    if not fits or not all(isinstance(part, Tensor) and part.dim() > 1 for part in piece):
        raise ValueError(f"blocks must be pairs of tensors (key, value), not {_described(piece)}")
    return piece[0].to(query.device), piece[1].to(query.device)


def _described(piece: Any) -> str:
    if isinstance(piece, tuple | list):
        return f"({', '.join(map(_described, piece))})"
    return str(tuple(piece.shape)) if isinstance(piece, Tensor) else type(piece).__name__
