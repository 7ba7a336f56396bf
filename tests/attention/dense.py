"""Attention as the textbook writes it, with every option, in float64: what everything else is held to."""

import math

import torch


def dense_attention(
    query,
    key,
    value,
    attn_mask=None,
    is_causal=False,
    scale=None,
    mask_mod=None,
    score_mod=None,
    query_offset=0,
    keep=None,
):
    """(output, lse) of four-dimensional tensors; ``keep`` are factors of the normalised weights."""
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    scores = query @ key.mT * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    shape = scores.shape
    b, h, q_idx, kv_idx = (
        torch.arange(n).view([-1 if d == i else 1 for d in range(4)]) for i, n in enumerate(shape)
    )
    q_idx = q_idx + query_offset
    if score_mod is not None:
        scores = score_mod(scores, b, h, q_idx, kv_idx)
    allowed = torch.ones(shape, dtype=torch.bool)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = allowed & attn_mask
    elif attn_mask is not None:
        scores = scores + attn_mask
        allowed = allowed & (attn_mask != -math.inf)
    if is_causal:
        allowed = allowed & (kv_idx <= q_idx)
    if mask_mod is not None:
        allowed = allowed & mask_mod(b, h, q_idx, kv_idx)
    scores = scores.masked_fill(~allowed, -math.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -math.inf, 0.0).unsqueeze(-1)).exp()
    weights = weights.masked_fill(~allowed, 0.0)
    return (weights if keep is None else weights * keep) @ value, lse
