"""Attention as a function that autograd, double backward, forward mode and vmap understand."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from synopsis.attention import curvature
from synopsis.attention.cutting import Gradients, Inputs, Wanted, surely_finite
from synopsis.attention.rules import Rules


class Engine(Protocol):
    """Something that computes attention and its gradient."""

    def forward(
        self, inputs: Inputs, rules: Rules, blocks: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp."""
        ...

    def backward(
        self,
        inputs: Inputs,
        rules: Rules,
        blocks: tuple[int, int],
        outputs: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor | None],
        wanted: Wanted,
    ) -> Gradients:
        """Gradients of everything that wants one."""
        ...


@dataclass(frozen=True)
class Call:
    """All of a call that is no tensor to differentiate.

    Args:
        rules: masks, score changes, dropout.
        choose: the engine for output and log-sum-exp, and for gradients of the output alone.
        reference: computes gradients when the log-sum-exp has one, or a mask or a captured tensor wants one.
        blocks: queries and keys of a tile.
    """

    rules: Rules
    choose: Callable[[Inputs, Rules], Engine]
    reference: Engine
    blocks: tuple[int, int]

    def on(self, inputs: Inputs, bias: Tensor | None) -> "Call":
        """The same call with this additive mask, guarded where scores may not be finite."""
        if bias is None:
            return self
        rules = self.rules.with_bias(bias)
        if not all(map(surely_finite, inputs)):
            rules = replace(rules, guarded=True)
        return replace(self, rules=rules)

    @property
    def folds(self) -> bool:
        """Whether a mapped dimension may simply join the batch: no rule looks at the batch index."""
        return self.rules.are_plain


def attend(inputs: Inputs, call: Call) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, differentiable in query, key, value, additive mask and captured tensors."""
    output, lse = _Attention.apply(*inputs, call.rules.bias, call, *call.rules.captured)
    return output, lse


class _Attention(Function):
    """(query, key, value, bias, call, *captured) to (output, lse)."""

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, bias: Any, call: Call, *_: Tensor
    ) -> Any:
        inputs = Inputs(query, key, value)
        call = call.on(inputs, bias)
        return call.choose(inputs, call.rules).forward(inputs, call.rules, call.blocks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        query, key, value, bias, call, *captured = inputs
        ctx.call = call
        ctx.set_materialize_grads(False)
        saved = (query, key, value, bias, *output, *captured)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> Any:
        query, key, value, bias, output, lse, *captured = ctx.saved_tensors
        if grad_output is None and grad_lse is None:
            return (None,) * (5 + len(captured))
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        wanted = Wanted(bias is not None and ctx.needs_input_grad[3], any(ctx.needs_input_grad[5:]))
        tensors = (query, key, value, bias, output, lse, grad_output, grad_lse)
        found = _Backward.apply(*tensors, wanted, ctx.call, *captured)
        return (*found[:4], None, *found[4:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
        saved = ctx.saved_tensors[:6]
        tangent: tuple[Tensor, Tensor] = _ForwardMode.apply(
            *saved, *tangents[:4], ctx.call, *tangents[5:]
        )
        return tangent

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _mapped(_Attention.apply, info.batch_size, in_dims, arguments, arguments[4].folds)


class _Backward(Function):
    """(query, key, value, bias, output, lse, grad_output, grad_lse, wanted, call, *captured) to gradients."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        saved = _Saved(*arguments[:10])
        call = saved.call.on(saved.inputs, saved.bias)
        wanted = saved.wanted
        special = saved.grad_lse is not None or any(wanted)
        engine = call.reference if special else call.choose(saved.inputs, call.rules)
        outputs, gradients = (saved.output, saved.lse), (saved.grad_output, saved.grad_lse)
        found = engine.backward(saved.inputs, call.rules, call.blocks, outputs, gradients, wanted)
        captured = found.captured if wanted.captured else (None,) * (len(arguments) - 10)
        return (*found[:4], *captured)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.wanted, ctx.call, ctx.captured = inputs[8], inputs[9], len(inputs) - 10
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:8])
        ctx.save_for_forward(*inputs[:8])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        found = _DoubleBackward.apply(*ctx.saved_tensors, ctx.wanted, ctx.call, *cotangents)
        return (*found[:4], None, None, *found[4:6], None, None, *found[6:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """A Hessian is symmetric: its product with a direction is double backward with that as cotangent.

        The tangents of output and log-sum-exp follow from those of the inputs, and are not asked for.
        """
        saved = ctx.saved_tensors
        second = _DoubleBackward.apply(*saved, ctx.wanted, ctx.call, *tangents[:4], *tangents[10:])
        found = [*second[:4], *second[6:]]
        if tangents[6] is not None or tangents[7] is not None:  # the gradient is linear in these
            upstream = torch.zeros_like(saved[6]) if tangents[6] is None else tangents[6]
            settings = (ctx.wanted, ctx.call, *ctx.call.rules.captured)
            linear = _Backward.apply(*saved[:6], upstream, tangents[7], *settings)
            found = [_sum(a, b) for a, b in zip(found, linear, strict=True)]
        wanted = [True] * 3 + [ctx.wanted.bias] + [ctx.wanted.captured] * (len(found) - 4)
        return tuple(f if w else None for f, w in zip(found, wanted, strict=True))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _mapped(_Backward.apply, info.batch_size, in_dims, arguments, arguments[9].folds)


class _ForwardMode(Function):
    """(query, key, value, bias, output, lse, tangents of the first four, call, *those of captured) to tangents."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        query, key, value, bias, output, lse = arguments[:6]
        call, directions = arguments[10], _gathered((*arguments[6:10], *arguments[11:]))
        inputs = Inputs(query, key, value)
        rules = call.on(inputs, bias).rules
        return curvature.forward_mode(inputs, rules, output, lse, directions, call.blocks)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("the tangent of attention cannot be differentiated backward")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _mapped(_ForwardMode.apply, info.batch_size, in_dims, arguments, arguments[10].folds)


class _DoubleBackward(Function):
    """(query, key, value, bias, output, lse, grad_output, grad_lse, wanted, call, *cotangents) to second order."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        saved, cotangents = _Saved(*arguments[:10]), _gathered(arguments[10:])
        found = curvature.double_backward(
            saved.inputs,
            saved.call.on(saved.inputs, saved.bias).rules,
            saved.output,
            saved.lse,
            saved.grad_output,
            saved.grad_lse,
            cotangents,
            saved.call.blocks,
        )
        lse = None if saved.grad_lse is None else found.grad_lse
        captured = found.captured or (None,) * len(cotangents.captured)
        return (*found[:4], found.grad_output, lse, *captured)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "attention has derivatives of first and second order, not of third"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        apply = _DoubleBackward.apply
        return _mapped(apply, info.batch_size, in_dims, arguments, arguments[9].folds)


class _Saved(NamedTuple):
    """What the backward pass works from."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    output: Tensor
    lse: Tensor
    grad_output: Tensor
    grad_lse: Tensor | None
    wanted: Wanted
    call: Call

    @property
    def inputs(self) -> Inputs:
        """Query, key and value."""
        return Inputs(self.query, self.key, self.value)


def _gathered(values: tuple[Tensor | None, ...]) -> Gradients:
    query, key, value, bias, *captured = values
    return Gradients(query, key, value, bias, tuple(captured))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _mapped(
    apply: Callable[..., Any],
    size: int,
    in_dims: tuple[Any, ...],
    arguments: tuple[Any, ...],
    folds: bool,
) -> tuple[Any, Any]:
    """Results over a mapped dimension, and where it stands in them: all at once where it may join the batch."""
    tensors = [isinstance(argument, Tensor) for argument in arguments]
    if not folds:
        results = [apply(*_pick(arguments, in_dims, tensors, index)) for index in range(size)]
        stacked = tuple(
            None if column[0] is None else torch.stack(column)
            for column in zip(*results, strict=True)
        )
        return stacked, tuple(None if s is None else 0 for s in stacked)
    joined = [
        _join(argument, dim, size) if is_tensor else argument
        for argument, dim, is_tensor in zip(arguments, in_dims, tensors, strict=True)
    ]
    found = [None if r is None else r.unflatten(0, (size, -1)) for r in apply(*joined)]
    return tuple(found), tuple(None if r is None else 0 for r in found)


def _pick(arguments: Any, in_dims: Any, tensors: list[bool], index: int) -> list[Any]:
    return [
        argument.select(dim, index) if is_tensor and dim is not None else argument
        for argument, dim, is_tensor in zip(arguments, in_dims, tensors, strict=True)
    ]


def _join(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    moved = tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return moved.flatten(0, 1)


def workspace(rules: Rules, rows: int, blocks: tuple[int, int], itemsize: int) -> int:
    """Bytes of the tiles that a backward pass holds at once."""
    tiles = 2 + (rules.dropout is not None) + 3 * (rules.score_mod is not None)
    tiles += rules.attn_mask is not None or rules.mask_mod is not None
    return tiles * rows * math.prod(blocks) * itemsize
