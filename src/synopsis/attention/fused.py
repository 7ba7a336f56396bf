"""torch's fused processor kernel, on the pieces of attention where it may be trusted.

The kernel returns (output, lse), which is the summary (lse, 1, output); pieces of keys merge. It is a private
operator, so it is probed before its first use and left alone where it is absent, where its answer is wrong, or where
its traps lie: its lse carries no gradient; it is 0 instead of −∞ for a row that may attend to nothing; a NaN behind
a mask leaks through 0 · NaN; and a mask is widened to scores of full size, so masks only ever reach it one block at
a time.
"""

import math
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from synopsis.attention.cutting import Gradients, Inputs, Wanted, surely_finite
from synopsis.attention.rules import Block, Rules
from synopsis.attention.summary import SoftmaxSummary

_PROBE_ERROR = 1e-5
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Piece(NamedTuple):
    """A rectangle of pairs that one call of the kernel takes.

    Args:
        queries: of the rectangle.
        keys: of the rectangle.
        causal: only pairs on and below the rectangle's diagonal.
        mask: added to the scores, or None.
        reach: the mask's largest value for each query; −∞ for one that may attend to nothing.
    """

    queries: slice
    keys: slice
    causal: bool = False
    mask: Tensor | None = None
    reach: Tensor | None = None


def fused_summary(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
) -> SoftmaxSummary:
    """The summary of scores ``query @ keyᵀ`` over all keys, without storing them; :func:`applies` says when."""
    output, lse = _forward(Inputs(query, key, value), 1.0, Piece(slice(None), slice(None)))
    return SoftmaxSummary(lse, torch.ones_like(lse), output)


def applies(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel may be used: on a processor, at least one pair, equal widths, nothing to differentiate."""
    if forward_ad._current_level >= 0:  # it has no forward mode
        return False
    wants = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    return not wants and fits(Inputs(query, key, value))


def fits(inputs: Inputs) -> bool:
    """Whether the kernel takes tensors of these shapes, dtypes and devices."""
    query, key, value = inputs
    return (
        all(t.device.type == "cpu" and t.dtype == query.dtype for t in inputs)
        and query.dtype in _DTYPES
        and min(query.shape[0], query.shape[2], key.shape[2], query.shape[-1]) > 0
        and query.shape[-1] == key.shape[-1] == value.shape[-1]
        and is_trustworthy()
    )


def suits(inputs: Inputs, rules: Rules) -> bool:
    """Whether all of a call may go to the kernel: no rule that changes scores or weights, nothing that leaks."""
    if rules.score_mod is not None or rules.dropout is not None or not fits(inputs):
        return False
    unmasked = rules.are_plain and not rules.is_causal
    return unmasked or all(map(surely_finite, inputs))


@cache
def is_trustworthy() -> bool:
    """Whether this torch has the kernel and it agrees with the textbook on a probe that spans several blocks."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 8, generator=generator) for n in (33, 700, 700))
    scores = (query @ key.transpose(-2, -1)).double()
    try:
        summary = fused_summary(query, key, value)
        output, lse = scores.softmax(-1) @ value.double(), scores.logsumexp(-1)
        errors = ((summary.output - output).abs().max(), (summary.lse - lse).abs().max())
        return all(bool(error < _PROBE_ERROR) for error in errors)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False


def forward(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, as :func:`synopsis.attention.tiles.forward`."""
    whole = _whole(inputs, rules)
    if whole is not None:
        return _seen(inputs, rules.scale, whole)
    output = torch.zeros_like(inputs.query, memory_format=torch.contiguous_format)
    lse = inputs.query.new_full(inputs.query.shape[:-1], -math.inf, dtype=_sums(inputs))
    for queries, group in groupby(_pieces(inputs, rules, blocks), key=attrgetter("queries")):
        parts = (_seen(_cut(inputs, piece), rules.scale, piece) for piece in group)
        output[:, :, queries], lse[:, :, queries] = _joined(parts, _sums(inputs))
    return output, lse


def _joined(parts: Iterator[tuple[Tensor, Tensor]], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One (output, lse) of all: what a merge of summaries (lse, 1, output) gives, with fewer passes over outputs."""
    output, lse = next(parts)
    output = output.to(dtype)
    for theirs, their_lse in parts:
        total = torch.logaddexp(lse, their_lse)
        pivot = total.masked_fill(total == -math.inf, 0.0)  # nothing joined with nothing is nothing
        output = output.mul_((lse - pivot).exp_().unsqueeze(-1))
        output.addcmul_(theirs.to(dtype), (their_lse - pivot).exp_().unsqueeze(-1))
        lse = total
    return output, lse


def backward(
    inputs: Inputs,
    rules: Rules,
    blocks: tuple[int, int],
    outputs: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None],
    wanted: Wanted,  # noqa: ARG001  (none of them: the caller chose this engine)
) -> Gradients:
    """Gradients of the output alone, as :func:`synopsis.attention.tiles.backward`."""
    output, lse = outputs
    lse = lse.masked_fill(
        lse == -math.inf, math.inf
    )  # weights of a row that attends to nothing: exp(S − ∞) = 0
    whole = _whole(inputs, rules)
    if whole is not None:
        return Gradients(*_backward(inputs, rules.scale, whole, (gradients[0], output, lse)))
    totals = Inputs(*(torch.zeros(t.shape, dtype=_sums(inputs)) for t in inputs))
    for piece in _pieces(inputs, rules, blocks):
        rows = tuple(t[:, :, piece.queries] for t in (gradients[0], output, lse))
        found = _backward(_cut(inputs, piece), rules.scale, piece, rows)
        totals.query[:, :, piece.queries] += found[0]
        totals.key[:, :, piece.keys] += found[1]
        totals.value[:, :, piece.keys] += found[2]
    query, key, value = (t.to(inputs.query.dtype) for t in totals)
    return Gradients(query, key, value)


def _whole(inputs: Inputs, rules: Rules) -> Piece | None:
    """The one piece of plain attention, and of causal attention where queries and keys begin and end together."""
    queries, keys = slice(0, inputs.query.shape[2]), slice(0, inputs.key.shape[2])
    bias = rules.bias
    if bias is not None and _is_all(bias, inputs, rules):
        return Piece(queries, keys, mask=bias, reach=bias.amax(-1))
    if not rules.are_plain:
        return None
    if not rules.is_causal:
        return Piece(queries, keys)
    return Piece(queries, keys, causal=True) if rules.is_aligned and queries == keys else None


def _is_all(bias: Tensor, inputs: Inputs, rules: Rules) -> bool:
    """Whether an additive mask of full size is the only rule: the kernel then reads it where it lies."""
    size = (inputs.query.shape[2], inputs.key.shape[2])
    alone = not rules.is_causal and rules.mask_mod is None
    return alone and bias.shape[2:] == size and bias.dtype == _of_mask(inputs.query)


def _pieces(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> Iterator[Piece]:
    """One after the other, so that one block's mask exists at a time; those of the same queries are neighbours."""
    queries, keys = inputs.query.shape[2], inputs.key.shape[2]
    if rules.are_plain:
        return _causal(queries, keys, rules.query_offset - rules.key_offset)
    return _masked(inputs, rules, blocks)


def _causal(queries: int, keys: int, offset: int) -> Iterator[Piece]:
    """Key j ≤ query i + offset: a rectangle that all see, and a triangle."""
    first, seen = max(0, -offset), min(max(0, offset), keys)  # rows before `first` see nothing
    rows = slice(first, queries)
    if first >= queries:
        return
    if seen:
        yield Piece(rows, slice(0, seen))
    if seen < keys:
        yield Piece(rows, slice(seen, min(keys, seen + queries - first)), causal=True)


def _masked(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> Iterator[Piece]:
    """Blocks that may attend entirely are joined; the others bring their mask."""
    batch, heads, length, _ = inputs.query.shape
    for queries, row in rules.blocks((length, inputs.key.shape[2]), *blocks):
        start: int | None = None
        for block in row:
            mask = _additive(rules, block, (batch, heads), inputs.query)
            if mask is None:
                start = block.keys.start if start is None else start
                continue
            if start is not None:
                yield Piece(queries, slice(start, block.keys.start))
                start = None
            reach = mask.amax(-1)
            if not bool(reach.amax() == -math.inf):
                yield Piece(queries, block.keys, mask=mask, reach=reach)
        if start is not None:
            yield Piece(queries, slice(start, row[-1].keys.stop))


def _additive(
    rules: Rules, block: Block, shape: tuple[int, int], like: Tensor
) -> Float[Tensor, "#batch #heads queries keys"] | None:
    """All masks of a block as one that is added; None when there is nothing to add."""
    allowed, bias = rules.allowed(block, shape, like.device), rules.bias_of(block)
    if allowed is None and bias is None:
        return None
    size = (block.queries.stop - block.queries.start, block.keys.stop - block.keys.start)
    zero, never = torch.tensor([0.0, -math.inf], dtype=_of_mask(like))
    bias = None if bias is None else bias.to(_of_mask(like))
    mask = zero if bias is None else bias
    mask = mask if allowed is None else torch.where(allowed, mask, never)
    if bias is None and bool(mask.amin() == 0):
        return None
    return mask.expand(torch.broadcast_shapes(mask.shape, (1, 1, *size))).contiguous()


def _seen(inputs: Inputs, scale: float, piece: Piece) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of a piece; the kernel says lse 0 for a row that may attend to nothing."""
    output, lse = _forward(inputs, scale, piece)
    if piece.reach is None or bool(piece.reach.amin() > -math.inf):
        return output, lse
    blind = (piece.reach == -math.inf).expand_as(lse)
    return output.masked_fill_(blind.unsqueeze(-1), 0.0), lse.masked_fill_(blind, -math.inf)


def _cut(inputs: Inputs, piece: Piece) -> Inputs:
    query, key, value = inputs
    return Inputs(query[:, :, piece.queries], key[:, :, piece.keys], value[:, :, piece.keys])


def _forward(inputs: Inputs, scale: float, piece: Piece) -> tuple[Tensor, Tensor]:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    output, lse = kernel(*inputs, 0.0, piece.causal, attn_mask=piece.mask, scale=scale)
    return output, lse


def _backward(
    inputs: Inputs, scale: float, piece: Piece, rows: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # each query head with a view of its key head; their gradients are summed
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    settings = {"attn_mask": piece.mask, "scale": scale}
    grads = kernel(rows[0], query, key, value, *rows[1:], 0.0, piece.causal, **settings)
    if groups > 1:
        grads = (grads[0], *(g.unflatten(1, (-1, groups)).sum(2) for g in grads[1:]))
    return grads[0], grads[1], grads[2]


def _sums(inputs: Inputs) -> torch.dtype:
    return torch.promote_types(inputs.query.dtype, torch.float32)


def _of_mask(like: Tensor) -> torch.dtype:
    return torch.promote_types(like.dtype, torch.float32)
