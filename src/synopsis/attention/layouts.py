"""Leading dimensions of any number as one: the four dimensions that blocks are made of."""

import math

import torch
from torch import Tensor


def four_dimensional(x: Tensor, batch: tuple[int, ...]) -> Tensor:
    """Keys or values as ``(batch or 1, heads, length, width)``.

    Args:
        x: ``(..., heads, length, width)``, or ``(length, width)`` for one head.
        batch: leading dimensions of the query, to which those of x broadcast.
    """
    x = x if x.dim() > 2 else x.unsqueeze(-3)
    leading = x.shape[:-3]
    fits = len(leading) <= len(batch) and all(
        a in (1, b) for a, b in zip(reversed(leading), reversed(batch), strict=False)
    )
    if not fits:
        raise ValueError(
            f"leading dimensions {tuple(leading)} of keys or values do not broadcast to those of "
            f"the query, {batch}"
        )
    if math.prod(leading) > 1:
        x = x.expand(*batch, *x.shape[-3:])
    return x.reshape(math.prod(x.shape[:-3]), *x.shape[-3:])


def mask_of(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """A mask as ``(batch or 1, heads or 1, queries or 1, keys or 1)``."""
    if mask is None:
        return None
    fits = mask.dim() <= len(shape) and all(
        a in (1, b) for a, b in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(f"attn_mask must be bool or floating point, not {mask.dtype}")
    if not fits:
        raise ValueError(f"attn_mask {tuple(mask.shape)} does not broadcast to {shape}")
    size = max(4, len(shape))
    mask = mask.reshape(*(1,) * (size - mask.dim()), *mask.shape)
    if math.prod(mask.shape[:-3]) > 1:
        mask = mask.expand(*shape[:-3], *mask.shape[-3:])
    return mask.reshape(math.prod(mask.shape[:-3]), *mask.shape[-3:])


def both_masks(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """One mask that says what two say."""
    if a is None or b is None:
        return b if a is None else a
    if a.dtype == b.dtype == torch.bool:
        return a & b
    if a.dtype != torch.bool and b.dtype != torch.bool:
        return a + b
    allowed, added = (a, b) if a.dtype == torch.bool else (b, a)
    return torch.where(allowed, added, -math.inf)
