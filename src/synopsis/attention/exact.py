"""Exact softmax attention in memory that does not grow with the sequence: one function, engines behind it."""

import math
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention import choice, tiles
from synopsis.attention.cutting import Inputs
from synopsis.attention.differentiation import Call, attend
from synopsis.attention.dropout import Dropout, fresh_seed
from synopsis.attention.layouts import mask_of
from synopsis.attention.rules import MaskMod, Rules, ScoreMod


@overload
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *arguments: Any,
    return_lse: Literal[False] = False,
    **options: Any,
) -> Tensor: ...


@overload
def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *arguments: Any,
    return_lse: Literal[True],
    **options: Any,
) -> tuple[Tensor, Tensor]: ...


def scaled_dot_product_attention(  # type: ignore[misc]  # noqa: PLR0913  (torch's, and what it cannot do)
    query: Float[Tensor, "*batch heads queries dim"],
    key: Float[Tensor, "*batch key_heads keys dim"],
    value: Float[Tensor, "*batch key_heads keys value_dim"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    mask_mod: MaskMod | None = None,
    score_mod: ScoreMod | None = None,
    query_block: int | None = None,
    key_block: int | None = None,
    return_lse: bool = False,
    query_offset: int = 0,
    max_bytes: int | None = None,
    dropout_seed: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Exact attention, forward, backward and beyond, in bounded memory.

    The first eight arguments are those of ``torch.nn.functional.scaled_dot_product_attention``. A score is
    ``score_mod(scale · q·k) + attn_mask``, and −∞ where any mask rules the pair out. A query that may attend to nothing
    gives 0, log-sum-exp −∞ and gradient 0.

    Args:
        query: ``(..., heads, queries, dim)``; leading dimensions broadcast.
        key: ``(..., key_heads, keys, dim)``.
        value: ``(..., key_heads, keys, value_dim)``; its width may differ.
        attn_mask: broadcasts to ``(..., heads, queries, keys)``; bool (True may attend) or added to the scores, then
            differentiable.
        dropout_p: probability of dropping a normalised weight, 0 ≤ p < 1.
        is_causal: key j may be attended by query i when j ≤ i + query_offset.
        scale: factor on query · key; 1/√dim when None.
        enable_gqa: key heads may be fewer than query heads and divide them.
        mask_mod: of (b, h, q_idx, kv_idx), True where a pair may attend; called once per block with index tensors
            that broadcast against the block.
        score_mod: of (score, b, h, q_idx, kv_idx), elementwise; tensors inside it get their gradients.
        query_block: queries of a tile; planned when None.
        key_block: keys of a tile; planned when None.
        return_lse: also return the natural log-sum-exp, differentiable, at least float32.
        query_offset: position of the first query for ``is_causal`` and the mods; keys − queries aligns the ends.
        max_bytes: most memory that tiles may take besides inputs, output and gradients.
        dropout_seed: which weights are dropped; drawn from torch's global generator when None.

    Returns:
        Output ``(..., heads, queries, value_dim)``, or (output, lse) with lse ``(..., heads, queries)``.

    Raises:
        ValueError: when shapes, dtypes or options do not fit; the message shows what came.

    Example:
        >>> query, key, value = torch.randn(3, 1, 4, 100, 16).unbind()
        >>> window = lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).abs() < 10
        >>> scaled_dot_product_attention(query, key, value, mask_mod=window).shape
        torch.Size([1, 4, 100, 16])

    Source: Rabe & Staats, "Self-attention Does Not Need O(n²) Memory", 2021; Dao, "FlashAttention-2", 2023.
    """
    _check(query, key, value, enable_gqa)
    batch, inputs = _four_dimensional(query, key, value)
    rules = Rules(
        scale=1.0 / math.sqrt(query.shape[-1]) if scale is None else scale,
        is_causal=is_causal,
        attn_mask=mask_of(attn_mask, (*batch, *inputs.query.shape[1:3], key.shape[-2])),
        mask_mod=mask_mod,
        score_mod=score_mod,
        query_offset=query_offset,
        dropout=_dropout(dropout_p, dropout_seed),
    )
    blocks = choice.plan(inputs, rules, (query_block, key_block), max_bytes)
    output, lse = _attend(inputs, rules, blocks)
    shape = (*batch, inputs.query.shape[1]) if query.dim() > 2 else ()
    output = output.reshape(*shape, *output.shape[2:])
    return (output, lse.reshape(*shape, *lse.shape[2:])) if return_lse else output


@torch.compiler.disable  # type: ignore[untyped-decorator]  # loops over blocks, with looks at values: one graph break
def _attend(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return attend(inputs, Call(rules, choice.present(), tiles, blocks))


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.dim() < 2 or not tensor.is_floating_point():
            raise ValueError(
                f"{name} must be (..., heads, length, dim) of floating point, not "
                f"{tuple(tensor.shape)} of {tensor.dtype}"
            )
    if not query.dtype == key.dtype == value.dtype:
        raise ValueError(
            f"query is {query.dtype}, key {key.dtype}, value {value.dtype}; they must agree"
        )
    if len({t.dim() == 2 for t in (query, key, value)}) > 1:
        dims = ", ".join(str(t.dim()) for t in (query, key, value))
        raise ValueError(f"query, key and value have {dims} dimensions; all or none have heads")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"key has {key.shape[-1]} features but query has {query.shape[-1]}; they must agree"
        )
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(
            f"{key.shape[-2]} keys came with {value.shape[-2]} values; they must agree"
        )
    if query.dim() > 2:
        _check_heads(query.shape[-3], key.shape[-3], value.shape[-3], enable_gqa)


def _check_heads(query: int, key: int, value: int, enable_gqa: bool) -> None:
    if enable_gqa and key == value and key and query % key == 0:
        return
    heads = {query, key, value} - {1} if not enable_gqa else {query, key, value, -1}
    if len(heads) > 1:
        hint = (
            "key heads must divide query heads" if enable_gqa else "pass enable_gqa=True to group"
        )
        raise ValueError(f"query has {query} heads, key {key}, value {value}; {hint}")


def _four_dimensional(query: Tensor, key: Tensor, value: Tensor) -> tuple[tuple[int, ...], Inputs]:
    """Leading dimensions broadcast and folded into one; nothing is copied that need not be."""
    if query.dim() == 2:
        query, key, value = (t.unsqueeze(0) for t in (query, key, value))
    try:
        batch = torch.broadcast_shapes(*(t.shape[:-3] for t in (query, key, value)))
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in (query, key, value))
        raise ValueError(f"leading dimensions of {shapes} do not broadcast") from error
    heads = max(query.shape[-3], key.shape[-3], value.shape[-3])
    if query.shape[-3] == 1:
        query = query.expand(*query.shape[:-3], heads, -1, -1)
    if key.shape[-3] != value.shape[-3]:
        key, value = (t.expand(*t.shape[:-3], heads, -1, -1) for t in (key, value))
    expanded = (t.expand(*batch, *t.shape[-3:]) for t in (query, key, value))
    size = math.prod(batch)
    return tuple(batch), Inputs(*(t.reshape(size, *t.shape[-3:]) for t in expanded))


def _dropout(p: float, seed: int | None) -> Dropout | None:
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p must lie in [0, 1), not {p}")
    if p == 0.0:
        return None
    return Dropout(p, fresh_seed() if seed is None else seed)
