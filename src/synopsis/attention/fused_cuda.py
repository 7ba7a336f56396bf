"""torch's fused CUDA kernels behind the same seam as the processor's: plain and causal attention, whole.

Flash attention for 16-bit numbers, memory-efficient attention for float32. Both are private operators, so each dtype is
probed once per device, forward and backward, before its first use; where the probe fails, the tiles compute. The
kernels' log-sum-exp carries no gradient, which is why they stay inside this library's own backward pass.
"""

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from synopsis.attention.cutting import Gradients, Inputs, Wanted, surely_finite
from synopsis.attention.rules import Rules

_PROBE_ERROR = {torch.float32: 1e-2, torch.float16: 2e-2, torch.bfloat16: 1e-1}  # TF32 may be on
_WIDEST = 256
_ROWS = 32  # the memory-efficient kernel's log-sum-exp is padded to a multiple of this


def suits(inputs: Inputs, rules: Rules) -> bool:
    """Whether a kernel takes this call: one rectangle or one triangle, widths that the kernels know."""
    query, key, value = inputs
    plain = rules.are_plain and (not rules.is_causal or _is_one_triangle(inputs, rules))
    return (
        plain
        and query.device.type == "cuda"
        and all(t.device == query.device and t.dtype == query.dtype for t in inputs)
        and query.dtype in _PROBE_ERROR
        and min(query.shape[0], query.shape[2], key.shape[2]) > 0
        and query.shape[-1] == key.shape[-1] == value.shape[-1] <= _WIDEST
        and query.shape[-1] % 8 == 0
        and (not rules.is_causal or all(map(surely_finite, inputs)))
        and is_trustworthy(query.dtype, query.device)
    )


def _is_one_triangle(inputs: Inputs, rules: Rules) -> bool:
    return rules.is_aligned and inputs.query.shape[2] == inputs.key.shape[2]


@cache
def is_trustworthy(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel of a dtype agrees with the textbook on a probe, output, log-sum-exp and gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (4, 1, 2, 70, 16)
    query, key, value, upstream = torch.randn(shape, generator=generator).to(device, dtype).unbind()
    inputs, rules = Inputs(query, key, value), Rules(scale=0.25, is_causal=True)
    try:
        output, lse = forward(inputs, rules, (0, 0))
        found = backward(
            inputs, rules, (0, 0), (output, lse), (upstream, None), Wanted(False, False)
        )
        leaves = [t.detach().cpu().double().requires_grad_() for t in inputs]
        scores = leaves[0] @ leaves[1].mT * rules.scale
        scores = scores.masked_fill(torch.ones(70, 70, dtype=torch.bool).triu(1), -math.inf)
        expected = scores.softmax(-1) @ leaves[2]
        gradients = torch.autograd.grad(expected, leaves, upstream.cpu().double())
        pairs = zip(
            (output, lse, *found[:3]), (expected, scores.logsumexp(-1), *gradients), strict=True
        )
        return all(
            bool((a.cpu().double() - b).abs().max() < _PROBE_ERROR[dtype])
            for a, b in pairs
            if a is not None
        )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False


def forward(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    """Output and log-sum-exp, as :func:`synopsis.attention.tiles.forward`."""
    query, key, value = _ungrouped(inputs)
    if query.dtype == torch.float32:
        kernel = torch.ops.aten._scaled_dot_product_efficient_attention
        output, lse, *_ = kernel(
            query, key, value, None, True, 0.0, rules.is_causal, scale=rules.scale
        )
        return output, lse[..., : query.shape[2]].contiguous()
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    output, lse, *_ = kernel(query, key, value, 0.0, rules.is_causal, False, scale=rules.scale)
    return output, lse


def backward(
    inputs: Inputs,
    rules: Rules,
    blocks: tuple[int, int],  # noqa: ARG001
    outputs: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None],
    wanted: Wanted,  # noqa: ARG001  (none of them: the caller chose this engine)
) -> Gradients:
    """Gradients of the output alone, as :func:`synopsis.attention.tiles.backward`."""
    whole = _ungrouped(inputs)
    kernel = _efficient_backward if inputs.query.dtype == torch.float32 else _flash_backward
    query, key, value = kernel(whole, rules, outputs, gradients[0].contiguous())
    groups = inputs.query.shape[1] // inputs.key.shape[1]
    if groups > 1:
        key, value = (t.unflatten(1, (-1, groups)).sum(2) for t in (key, value))
    return Gradients(query, key, value)


def _efficient_backward(
    inputs: Inputs, rules: Rules, outputs: tuple[Tensor, Tensor], upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    output, lse = outputs
    lse = F.pad(lse, (0, -lse.shape[-1] % _ROWS), value=math.inf)
    seed = torch.zeros((), dtype=torch.int64)  # without dropout nothing is drawn
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention_backward
    asked = [True, True, True, False]
    found = kernel(
        upstream,
        *inputs,
        None,
        output,
        lse,
        seed,
        seed,
        0.0,
        asked,
        rules.is_causal,
        scale=rules.scale,
    )
    return found[0], found[1], found[2]


def _flash_backward(
    inputs: Inputs, rules: Rules, outputs: tuple[Tensor, Tensor], upstream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = (inputs.query.shape[2], inputs.key.shape[2])
    seed = torch.zeros((), dtype=torch.int64, device=upstream.device)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_backward
    found = kernel(
        upstream,
        *inputs,
        *outputs,
        None,
        None,
        *lengths,
        0.0,
        rules.is_causal,
        seed,
        seed,
        scale=rules.scale,
    )
    return found[0], found[1], found[2]


def _ungrouped(inputs: Inputs) -> Inputs:
    """Every query head with its own key head."""
    query, key, value = inputs
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    return Inputs(query, key, value)
