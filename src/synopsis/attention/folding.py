"""One piece of keys and values into a summary, under any rules.

Small pieces take a few plain operations, which autograd, ``torch.func`` and ``torch.compile`` see through. Large ones
go to the engines of :mod:`synopsis.attention.choice`, whose memory is bounded forward and backward.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from synopsis.attention import choice, differentiation, tiles
from synopsis.attention.cutting import Inputs
from synopsis.attention.rules import Block, Rules
from synopsis.attention.summary import SoftmaxSummary

Choice = Callable[[Inputs, Rules], differentiation.Engine]

_PLAIN_SCORES = 1 << 18  # scores of a piece that plain operations do quicker, and that may be kept
_KEYS = 1024  # of a block of plain operations, at least
_CONVERTED = 8192  # keys whose conversion to another dtype is held at once
_TILE = (512, 256)  # queries and keys of a tile, for each of
_TILE_SCORES = 1 << 21  # scores in all heads together


def summarise(inputs: Inputs, rules: Rules) -> SoftmaxSummary:
    """The summary of one piece; where there are several blocks, sums are float64.

    Args:
        inputs: key and value may have batch 1 for all queries, and fewer heads.
        rules: everything else; positions are absolute.

    Returns:
        A summary with rows ``(batch, heads, queries)``.
    """
    batch, heads, length, _ = inputs.query.shape
    if _looks_nowhere(rules):
        stacked = Inputs(_stack(inputs.query, inputs.key), inputs.key, inputs.value)
        return _unstack(_fold(stacked, rules), inputs, (batch, heads, length))
    key, value = (t.expand(batch, *t.shape[1:]) for t in (inputs.key, inputs.value))
    return _fold(Inputs(inputs.query, key, value), rules)


def converted(inputs: Inputs, rules: Rules) -> Iterator[tuple[slice, Inputs, Rules]]:
    """Pieces of one dtype, at least float32, with their rules; few keys at a time where a copy must be made."""
    dtype, length = working_dtype(*inputs), inputs.key.shape[2]
    query = inputs.query.to(dtype)
    alike = inputs.key.dtype == inputs.value.dtype == dtype
    step = length if alike else _CONVERTED
    for start in range(0, length, max(1, step)):
        keys = slice(start, min(start + step, length))
        key, value = (t[:, :, keys].to(dtype) for t in (inputs.key, inputs.value))
        yield keys, Inputs(query, key, value), _of_keys(rules, keys)


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype that scores of these are computed in."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def tile_of(inputs: Inputs) -> tuple[int, int]:
    """Queries and keys of a tile, so that the scores of all heads together stay small."""
    rows = max(1, inputs.query.shape[0] * inputs.query.shape[1])
    queries, keys = _TILE
    while rows * queries * keys > _TILE_SCORES and max(queries, keys) > 16:
        queries, keys = (queries // 2, keys) if queries >= keys else (queries, keys // 2)
    return queries, keys


def _looks_nowhere(rules: Rules) -> bool:
    """Whether no rule looks at positions, so that any rows may be stacked."""
    return rules.are_plain and not rules.is_causal


def _fold(inputs: Inputs, rules: Rules) -> SoftmaxSummary:
    rows = tuple(inputs.query.shape[:3])
    scores = math.prod(rows) * inputs.key.shape[2]
    small = torch.compiler.is_compiling() or (scores <= _PLAIN_SCORES and not choice.is_forced())
    total: SoftmaxSummary | None = None
    for _, piece, its_rules in converted(inputs, rules):
        for part in _plain(piece, its_rules) if small else _engine(piece, its_rules):
            total = part if total is None else _in_float64(total).merge(part)
    if total is None:
        like = inputs.query.new_empty(0, dtype=torch.float64)
        return SoftmaxSummary.empty(rows, inputs.value.shape[-1], like)
    return total


def _engine(inputs: Inputs, rules: Rules) -> Iterator[SoftmaxSummary]:
    choose = choice.present()
    if rules.bias is not None and not all(map(_is_finite, inputs)):  # NaN + (−∞) is NaN in a tile
        choose(inputs, rules)  # raises what a forced engine has to say
        yield from _plain(inputs, rules)
        return
    call = differentiation.Call(rules, choose, tiles, tile_of(inputs))
    yield SoftmaxSummary.from_output(*differentiation.attend(inputs, call))


def _plain(inputs: Inputs, rules: Rules) -> Iterator[SoftmaxSummary]:
    rows = math.prod(inputs.query.shape[:3])
    step = max(_KEYS, _PLAIN_SCORES // max(1, rows))
    for start in range(0, inputs.key.shape[2], step):
        keys = slice(start, min(start + step, inputs.key.shape[2]))
        yield _plain_block(inputs, rules, keys)


def _plain_block(inputs: Inputs, rules: Rules, keys: slice) -> SoftmaxSummary:
    batch, heads, length, _ = inputs.query.shape
    query = (inputs.query * rules.scale).reshape(
        batch, inputs.key.shape[1], -1, inputs.query.shape[-1]
    )
    key, value = inputs.key[:, :, keys], inputs.value[:, :, keys]
    if _looks_nowhere(rules):
        summary = SoftmaxSummary.of(query @ key.mT, value)
    else:
        block = Block(slice(0, length), keys)
        summary = _masked_block(query, key, value, rules, (block, heads))
    return shaped(summary, (batch, heads, length))


def _masked_block(
    query: Float[Tensor, "batch key_heads rows dim"],
    key: Float[Tensor, "batch key_heads keys dim"],
    value: Float[Tensor, "batch key_heads keys value_dim"],
    rules: Rules,
    where: tuple[Block, int],
) -> SoftmaxSummary:
    """A block some pairs of which may not attend: what stands in their slots must not matter, NaN included."""
    block, heads = where
    key, spoilt_keys = _clean(key)
    value, spoilt_values = _clean(value)
    products = query @ key.mT
    shape = (len(query), heads, block.queries.stop, key.shape[2])
    scores = rules.scores(products.view(shape), block).expand(shape)
    allowed = rules.allowed(block, (shape[0], heads), query.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -math.inf)
    scores = scores.reshape(products.shape)
    if spoilt_keys is not None:
        meets = spoilt_keys.any(-1).unsqueeze(-2) & (scores != -math.inf)
        scores = scores.masked_fill(meets, math.nan)
    summary = SoftmaxSummary.of(scores, value)
    if spoilt_values is None:
        return summary
    attends = (scores != -math.inf).to(value.dtype)
    met = attends @ spoilt_values.to(value.dtype) > 0
    return replace(summary, numerator=summary.numerator.masked_fill(met, math.nan))


def _clean(x: Tensor) -> tuple[Tensor, Bool[Tensor, "..."] | None]:
    """x with 0 for what is not finite, and where that was; None for nowhere."""
    if _is_finite(x):
        return x, None
    bad = ~x.isfinite()
    return x.masked_fill(bad, 0.0), bad


def _is_finite(x: Tensor) -> bool:
    """Whether it surely is; inside vmap and torch.compile nobody can look."""
    try:
        return not torch.compiler.is_compiling() and bool(x.isfinite().all())
    except RuntimeError:
        return False


def _of_keys(rules: Rules, keys: slice) -> Rules:
    """The rules as some of the keys see them."""
    mask = rules.attn_mask
    if mask is not None and mask.shape[-1] > 1:
        mask = mask[..., keys]
    if keys.start == 0 and mask is rules.attn_mask:
        return rules
    return replace(rules, key_offset=rules.key_offset + keys.start, attn_mask=mask)


def _stack(query: Tensor, key: Tensor) -> Float[Tensor, "key_batch key_heads rows dim"]:
    """Queries that share their keys, as rows of one product: keys are read once and never repeated."""
    batch, heads, length, dim = query.shape
    key_batch, key_heads = key.shape[:2]
    if key_batch == batch:
        return query.reshape(batch, key_heads, heads // key_heads * length, dim)
    return query.reshape(batch, key_heads, -1, dim).transpose(0, 1).reshape(1, key_heads, -1, dim)


def _unstack(summary: SoftmaxSummary, inputs: Inputs, rows: tuple[int, int, int]) -> SoftmaxSummary:
    batch, key_heads = rows[0], inputs.key.shape[1]
    if len(inputs.key) != batch:
        parts = (summary.maximum, summary.denominator, summary.numerator)
        summary = SoftmaxSummary(
            *(t.reshape(key_heads, batch, -1, *t.shape[3:]).transpose(0, 1) for t in parts)
        )
    return shaped(summary, rows)


def _in_float64(summary: SoftmaxSummary) -> SoftmaxSummary:
    if summary.denominator.dtype == torch.float64:
        return summary
    return SoftmaxSummary(
        summary.maximum.double(), summary.denominator.double(), summary.numerator.double()
    )


def shaped(summary: SoftmaxSummary, rows: tuple[int, ...]) -> SoftmaxSummary:
    """The same rows in another shape."""
    if summary.maximum.shape == rows:
        return summary
    return SoftmaxSummary(
        summary.maximum.reshape(rows),
        summary.denominator.reshape(rows),
        summary.numerator.reshape(*rows, summary.numerator.shape[-1]),
    )
