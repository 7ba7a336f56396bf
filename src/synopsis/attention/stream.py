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
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from synopsis.attention import folding, tiles
from synopsis.attention.layouts import four_dimensional
from synopsis.attention.reading_ahead import ReadAhead
from synopsis.attention.rules import MaskMod, Rules, ScoreMod
from synopsis.attention.state import AttentionState
from synopsis.attention.tiles import Gradients, Inputs, Wanted

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
    wants = torch.is_grad_enabled() and (query.requires_grad or bool(rules.captured))
    stream = Stream(blocks, rules, prefetch)
    state = stream.differentiable(query) if wants else stream.state(query)
    if not return_lse:
        return state.output
    return state.output, state.lse.to(folding.working_dtype(query))


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
                state = state.fold(key, value, self.rules_at(position))
                del key, value
                yield state

    def state(self, query: Tensor) -> AttentionState:
        """The state after all blocks; blocks that want a gradient get theirs."""
        state: AttentionState | None = None
        with closing(self.pieces(query)) as pieces:
            for position, key, value in pieces:
                state = self.empty(query, value) if state is None else state
                state = state.fold(key, value, self.rules_at(position))
                del key, value
        return self.empty(query) if state is None else state

    def differentiable(self, query: Tensor) -> AttentionState:
        """The state after all blocks, with a graph to the query and to captured tensors as well."""
        wanting: list[tuple[int, Tensor, Tensor]] = []
        state: AttentionState | None = None
        with closing(self.pieces(query)) as pieces:
            for position, key, value in pieces:
                state = self.empty(query, value) if state is None else state
                if key.requires_grad or value.requires_grad:
                    wanting.append((position, key, value))
                else:
                    with torch.no_grad():
                        state = state.fold(key, value, self.rules_at(position))
                del key, value
        state = _with_graph(self, query, self.empty(query) if state is None else state)
        for position, key, value in wanting:
            state = state.fold(key, value, self.rules_at(position))
        return state

    def empty(self, query: Tensor, value: Tensor | None = None) -> AttentionState:
        """The state before any block; its width is that of a value, or what the blocks or else the query suggest."""
        width = getattr(self.blocks, "value_dim", query.shape[-1])
        width = width if value is None else value.shape[-1]
        return AttentionState.empty(query, width, self.rules.scale)

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


def _with_graph(stream: Stream, query: Tensor, state: AttentionState) -> AttentionState:
    """A state of constant keys, whose output and log-sum-exp depend on the query through a second pass."""
    count = int(state.count)
    tensors = (*state.partial(), query, *stream.rules.captured)
    output, lse = _SecondPass.apply(stream, count, *tensors)
    scale = stream.rules.scale
    return AttentionState.from_output(output, lse, query, scale=scale, count=count)


class _SecondPass(Function):
    """(stream, keys, output, lse, query, *captured) to (output, lse): gradients by reading the stream again."""

    @staticmethod
    def forward(
        ctx: Any, stream: Stream, keys: int, output: Tensor, lse: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.stream, ctx.keys = stream, keys
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, lse, *inputs)
        return output.clone(), lse.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> Any:
        output, lse, query, *captured = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        sweep = _Sweep(ctx.stream, query, (output, lse), (grad_output, grad_lse))
        sweep.wanted = Wanted(captured=any(ctx.needs_input_grad[5:]))
        sweep.run(ctx.keys)
        found = sweep.grad_captured or (None,) * len(captured)
        return None, None, None, None, sweep.grad_query.to(query.dtype), *found


class _Sweep:
    """The second pass: from output and log-sum-exp of the whole stream, each block's part of the gradient.

    Args:
        stream: to be read again.
        query: of the first pass.
        outputs: output and log-sum-exp of the constant blocks, float64.
        gradients: of output and log-sum-exp; None for a log-sum-exp that was not used.
    """

    def __init__(
        self,
        stream: Stream,
        query: Tensor,
        outputs: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor | None],
    ) -> None:
        self.stream, self.query, self.wanted = stream, query, Wanted()
        self.batch = tuple(query.shape[:-3])
        self.output, self.grad_output = (self._rows(t) for t in (outputs[0], gradients[0]))
        self.lse = self._rows(outputs[1].unsqueeze(-1)).squeeze(-1)
        grad_lse = gradients[1]
        self.grad_lse = None if grad_lse is None else self._rows(grad_lse.unsqueeze(-1)).squeeze(-1)
        self.grad_query = torch.zeros_like(query, dtype=torch.float64)
        self.grad_captured: list[Tensor] = []

    def run(self, keys: int) -> None:
        """Read all blocks; there must be as many constant keys as before."""
        if keys and isinstance(self.stream.blocks, Iterator):
            raise RuntimeError(
                "a gradient to the query needs a second pass over the blocks, and an iterator is used up; "
                "give something that can be iterated again, such as a list or a reader of files"
            )
        found = 0
        # gradients are on as in the first pass, so that the same blocks want one
        with torch.enable_grad(), closing(self.stream.pieces(self.query)) as pieces:
            for position, key, value in pieces if keys else ():
                if not (key.requires_grad or value.requires_grad):
                    found += key.shape[-2]
                    with torch.no_grad():
                        self._take(key, value, self.stream.rules_at(position))
                del key, value
        if found != keys:
            raise RuntimeError(f"the second pass gave {found} keys, the first {keys}")

    def _take(self, key: Tensor, value: Tensor, rules: Rules) -> None:
        query = self._rows(self.query)
        pieces = (four_dimensional(t, self.batch) for t in (key, value))
        pieces = (t.expand(len(query), *t.shape[1:]) for t in pieces)
        for _, inputs, its_rules in folding.converted(Inputs(query, *pieces), rules):
            self._add(self._gradients(inputs, its_rules))

    def _gradients(self, inputs: Inputs, rules: Rules) -> Gradients:
        dtype = inputs.query.dtype
        special = self.grad_lse is not None or self.wanted.captured
        engine = tiles if special else folding.chosen_engine(inputs, rules)
        grad_lse = None if self.grad_lse is None else self.grad_lse.to(dtype)
        return engine.backward(
            inputs,
            rules,
            folding.tile_of(inputs),
            (self.output.to(dtype), self.lse.to(dtype)),
            (self.grad_output.to(dtype), grad_lse),
            self.wanted,
        )

    def _add(self, found: Gradients) -> None:
        if found.query is not None:
            self.grad_query += found.query.view(self.grad_query.shape)
        if self.wanted.captured:
            parts = [t for t in found.captured if t is not None]
            self.grad_captured = [
                part if not self.grad_captured else self.grad_captured[i] + part
                for i, part in enumerate(parts)
            ]

    def _rows(self, x: Tensor) -> Tensor:
        """Batch, heads, queries and width."""
        heads = x.shape[-3] if x.dim() > 2 else 1
        return x.reshape(math.prod(x.shape[:-3]), heads, *x.shape[-2:])
