"""Residual sub-layers as a training step runs them on a processor: one node of the graph each, gradients by hand.

Autograd builds a sub-layer's backward pass from a dozen operators' own: it glues halves of gradients together that
could have been written into one buffer, multiplies twice where one product would do, and spends as much on keeping
books as small layers do on arithmetic. Here each sub-layer is one operator with both passes written out; attention is
torch's fused kernel, and products are those of :mod:`synopsis.memory.layers_products`.

Under autocast products are in its dtype, while normalisation, the residual stream and attention stay in the dtype of
the input: torch's attention for processors is four times slower in 16 bits than in 32.

One backward pass is all these give. :func:`applies` says where they stand for the sub-layers of
:mod:`synopsis.memory.layers`, which are their definition.
"""

from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from synopsis.attention.fused import is_trustworthy
from synopsis.memory.layers_products import product, product_of_rows

_Context: TypeAlias = Any  # of an autograd.Function


class Plan(NamedTuple):
    """What a sub-layer knows besides its tensors.

    Args:
        raw: whether the skip carries the input itself, or the normalised one.
        dtype: of the products.
        heads: of attention.
    """

    raw: bool
    dtype: torch.dtype
    heads: int = 1


def plan(x: Tensor, raw: bool, heads: int = 1) -> Plan:
    """The plan of a sub-layer for this input, in the dtype of autocast where it is on."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return Plan(raw, dtype, heads)


def applies(layer: nn.Module, x: Tensor) -> bool:
    """Whether a sub-layer is to be trained by one ordinary backward pass on a processor."""
    return (
        layer.training
        and not torch.compiler.is_compiling()
        and torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.numel() > 0
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )


def attends(layer: nn.Module, x: Tensor, context: Tensor) -> bool:
    """Whether :func:`applies`, and torch's kernel takes the shapes."""
    same = x.dim() == context.dim() == 3 and x.dtype == context.dtype and len(x) == len(context)
    return same and context.numel() > 0 and applies(layer, x) and is_trustworthy()


def feed_forward(
    x: Float[Tensor, "*batch dim"], norm: nn.LayerNorm, expand: nn.Linear, contract: nn.Linear, how: Plan
) -> Float[Tensor, "*batch dim"]:
    """Normalise, expand, gate, contract and add: :class:`synopsis.memory.layers.FeedForward`."""
    weights = (norm.weight, norm.bias, expand.weight, expand.bias, contract.weight, contract.bias)
    found: Tensor = _FeedForward.apply(x, *weights, norm.eps, how)
    return found


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, *arguments: Any) -> Tensor:
        *weights, eps, how = arguments
        gain, shift, *rest = weights
        expand, expand_bias, contract, contract_bias = (w.to(how.dtype) for w in rest)
        flat = x.reshape(-1, x.shape[-1])
        normed, mean, rstd = torch.native_layer_norm(flat, flat.shape[-1:], gain, shift, eps)
        entering = normed.to(how.dtype)
        halves = product(entering, expand, expand_bias)
        value, gate = halves.chunk(2, dim=-1)
        bent = F.gelu(gate)
        hidden = value * bent
        branch = product(hidden, contract, contract_bias)
        ctx.save_for_backward(flat, mean, rstd, gain, shift, entering, halves, bent, hidden, expand, contract)
        ctx.how, ctx.dtype = how, rest[0].dtype
        return _added(flat if how.raw else normed, branch).view_as(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, mean, rstd, gain, shift, entering, halves, bent, hidden, expand, contract = ctx.saved_tensors
        how = ctx.how
        skip = grad.reshape(flat.shape)
        leaving = skip.to(how.dtype)
        of_hidden = product(leaving, contract.t())
        of_halves = _gate_backward(of_hidden, halves, bent)
        of_normed = product(of_halves, expand.t())
        of_x = _norm_backward(of_normed, skip, (flat, mean, rstd, gain, shift), how)
        of_weights = (
            product_of_rows(of_halves, entering),
            of_halves.sum(0),
            product_of_rows(leaving, hidden),
            leaving.sum(0),
        )
        return (of_x[0].view_as(grad), *of_x[1:], *(w.to(ctx.dtype) for w in of_weights), None, None)


def _gate_backward(grad: Tensor, halves: Tensor, bent: Tensor) -> Tensor:
    """Gradient of value × GELU(gate), both halves written into one buffer; ``grad`` is used up."""
    value, gate = halves.chunk(2, dim=-1)
    both = torch.empty_like(halves)
    of_value, of_gate = both.chunk(2, dim=-1)
    torch.mul(grad, bent, out=of_value)
    torch.ops.aten.gelu_backward.grad_input(grad.mul_(value), gate, grad_input=of_gate)
    return both


def _norm_backward(
    of_normed: Tensor, skip: Tensor, saved: tuple[Tensor, ...], how: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, gain and shift, where the gradient of the sum goes through the skip as well."""
    flat, mean, rstd, gain, shift = saved
    of_normed = of_normed.to(flat.dtype)
    if not how.raw:
        of_normed.add_(skip)
    x, of_gain, of_shift = torch.ops.aten.native_layer_norm_backward(
        of_normed, flat, flat.shape[-1:], mean, rstd, gain, shift, (True, True, True)
    )
    return (x.add_(skip) if how.raw else x), of_gain, of_shift


def _added(skip: Tensor, branch: Tensor) -> Tensor:
    return branch.add_(skip) if branch.dtype == skip.dtype else skip + branch


def self_attention(
    x: Float[Tensor, "batch length dim"], norm: nn.LayerNorm, projections: tuple[nn.Linear, nn.Linear, nn.Linear], how: Plan
) -> Float[Tensor, "batch length dim"]:
    """Normalise, attend within and add: :class:`synopsis.memory.layers.SelfAttention`, without a mask.

    Args:
        x: attends to itself.
        norm: of x.
        projections: to queries, to keys and values, and of the output.
        how: with the number of heads.
    """
    query, both, output = projections
    weights = (norm.weight, norm.bias, query.weight, both.weight, output.weight, output.bias)
    found: Tensor = _SelfAttention.apply(x, *weights, norm.eps, how)
    return found


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, *arguments: Any) -> Tensor:
        gain, shift, query, both, output, bias, eps, how = arguments
        flat = x.reshape(-1, x.shape[-1])
        normed, mean, rstd = torch.native_layer_norm(flat, flat.shape[-1:], gain, shift, eps)
        entering = normed.to(how.dtype)
        into, out = torch.cat([query, both]).to(how.dtype), output.to(how.dtype)
        projected = product(entering, into).to(x.dtype).view(*x.shape[:-1], -1)
        attended, lse = _attend(projected.chunk(3, dim=-1), how)
        joined = _joined(attended).to(how.dtype)
        branch = product(joined, out, bias.to(how.dtype))
        ctx.save_for_backward(flat, mean, rstd, gain, shift, entering, into, out, projected, attended, lse, joined)
        ctx.how = how
        return _added(flat if how.raw else normed, branch).view_as(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        *norm, entering, into, out, projected, attended, lse, joined = ctx.saved_tensors
        how, flat = ctx.how, norm[0]
        skip = grad.reshape(flat.shape)
        leaving = skip.to(how.dtype)
        of_joined = product(leaving, out.t()).to(flat.dtype).view(grad.shape)
        parts = _attend_backward(of_joined, projected.chunk(3, dim=-1), attended, lse, how)
        of_projected = torch.cat([_joined(p) for p in parts], dim=-1).to(how.dtype)
        of_x = _norm_backward(product(of_projected, into.t()), skip, tuple(norm), how)
        of_into = product_of_rows(of_projected, entering).to(flat.dtype)
        of_out = product_of_rows(leaving, joined).to(flat.dtype)
        width = flat.shape[-1]
        of_bias = leaving.sum(0, dtype=flat.dtype)
        return (of_x[0].view_as(grad), *of_x[1:], of_into[:width], of_into[width:], of_out, of_bias, None, None)


def cross_attention(
    x: Float[Tensor, "batch queries dim"],
    context: Float[Tensor, "batch keys dim"],
    norms: tuple[nn.LayerNorm, nn.LayerNorm],
    projections: tuple[nn.Linear, nn.Linear, nn.Linear],
    how: Plan,
) -> Float[Tensor, "batch queries dim"]:
    """Normalise both, attend and add: :class:`synopsis.memory.layers.CrossAttention`, without a mask.

    Args:
        x: asks.
        context: is asked.
        norms: of x and of the context.
        projections: to queries, to keys and values, and of the output.
        how: with the number of heads.
    """
    query, both, output = projections
    weights = [w for norm in norms for w in (norm.weight, norm.bias)]
    weights += [query.weight, both.weight, output.weight, output.bias]
    found: Tensor = _CrossAttention.apply(x, context, *weights, (norms[0].eps, norms[1].eps), how)
    return found


class _CrossAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, x: Tensor, context: Tensor, *arguments: Any) -> Tensor:
        gain, shift, gain_c, shift_c, *weights, bias, eps, how = arguments
        flat, flat_c = (t.reshape(-1, t.shape[-1]) for t in (x, context))
        normed, *moments = torch.native_layer_norm(flat, flat.shape[-1:], gain, shift, eps[0])
        normed_c, *moments_c = torch.native_layer_norm(flat_c, flat.shape[-1:], gain_c, shift_c, eps[1])
        asking, asked = normed.to(how.dtype), normed_c.to(how.dtype)
        query, both, out = (w.to(how.dtype) for w in weights)
        queries = product(asking, query).to(x.dtype).view(x.shape)
        keys_values = product(asked, both).to(x.dtype).view(*context.shape[:-1], -1)
        attended, lse = _attend((queries, *keys_values.chunk(2, dim=-1)), how)
        joined = _joined(attended).to(how.dtype)
        branch = product(joined, out, bias.to(how.dtype))
        norms = (flat, *moments, gain, shift, flat_c, *moments_c, gain_c, shift_c)
        ctx.save_for_backward(*norms, asking, asked, query, both, out, queries, keys_values, attended, lse, joined)
        ctx.how = how
        return _added(flat if how.raw else normed, branch).view_as(x)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        norm, norm_c, rest = ctx.saved_tensors[:5], ctx.saved_tensors[5:10], ctx.saved_tensors[10:]
        asking, asked, query, both, out, queries, keys_values, attended, lse, joined = rest
        how, flat = ctx.how, norm[0]
        skip = grad.reshape(flat.shape)
        leaving = skip.to(how.dtype)
        of_joined = product(leaving, out.t()).to(flat.dtype).view(grad.shape)
        inputs = (queries, *keys_values.chunk(2, dim=-1))
        of_query, *of_both = map(_joined, _attend_backward(of_joined, inputs, attended, lse, how))
        of_queries, of_keys_values = of_query.to(how.dtype), torch.cat(of_both, dim=-1).to(how.dtype)
        of_x = _norm_backward(product(of_queries, query.t()), skip, norm, how)
        of_c = _context_backward(product(of_keys_values, both.t()), norm_c)
        pairs = ((of_queries, asking), (of_keys_values, asked), (leaving, joined))
        of_weights = (product_of_rows(a, b).to(flat.dtype) for a, b in pairs)
        of_bias = leaving.sum(0, dtype=flat.dtype)
        of_context = of_c[0].view(*keys_values.shape[:-1], -1)
        return (of_x[0].view_as(grad), of_context, *of_x[1:], *of_c[1:], *of_weights, of_bias, None, None)


def _context_backward(of_normed: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a context, its gain and its shift: there is no skip."""
    flat, mean, rstd, gain, shift = saved
    x, of_gain, of_shift = torch.ops.aten.native_layer_norm_backward(
        of_normed.to(flat.dtype), flat, flat.shape[-1:], mean, rstd, gain, shift, (True, True, True)
    )
    return x, of_gain, of_shift


def _attend(inputs: tuple[Tensor, ...], how: Plan) -> tuple[Tensor, Tensor]:
    """Output (batch, heads, queries, width) and log-sum-exp, from (batch, length, dim)."""
    query, key, value = (_split(t, how) for t in inputs)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)
    return output, lse


def _attend_backward(
    grad: Tensor, inputs: tuple[Tensor, ...], output: Tensor, lse: Tensor, how: Plan
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = (_split(t, how) for t in inputs)
    of_query, of_key, of_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _split(grad, how), query, key, value, output, lse, 0.0, False
    )
    return of_query, of_key, of_value


def _split(x: Tensor, how: Plan) -> Tensor:
    return x.unflatten(-1, (how.heads, -1)).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(batch, heads, length, width) to (batch·length, heads·width)."""
    return x.transpose(1, 2).flatten(2).flatten(0, 1)
