"""torch's fused attention kernel as a maker of summaries.

The kernel returns (output, lse), which is the summary (lse, 1, output). It is a private operator, so it is probed
before its first use and left alone where it is absent, where its answer is wrong, or where its traps lie: its lse
carries no gradient, and is 0 instead of −∞ for a row that may attend to nothing.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.state import SoftmaxSummary

_PROBE_ERROR = 1e-5


def fused_summary(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys dim"],
) -> SoftmaxSummary:
    """The summary of scores ``query @ keyᵀ`` over all keys, without storing them; :func:`applies` says when."""
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, scale=1.0
    )
    return SoftmaxSummary(lse, torch.ones_like(lse), output)


def applies(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel may be used: on a processor, at least one key, equal widths, nothing to differentiate."""
    tensors = (query, key, value)
    return (
        all(t.device.type == "cpu" for t in tensors)
        and key.shape[-2] > 0
        and query.shape[-1] == value.shape[-1]
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and is_trustworthy()
    )


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
