"""Attention as a function that autograd, double backward, forward mode and vmap understand."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from synopsis.attention import curvature
from synopsis.attention.rules import Rules
from synopsis.attention.tiles import Gradients, Inputs, Wanted


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

    def with_bias(self, bias: Tensor | None) -> "Call":
        """The same call with another additive mask."""
        return replace(self, rules=self.rules.with_bias(bias))

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
        call, inputs = call.with_bias(bias), Inputs(query, key, value)
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
        query, key, value, bias, output, lse, *_ = ctx.saved_tensors
        rules = ctx.call.rules.with_bias(bias)
        directions = _gathered((*tangents[:4], *tangents[5:]))
        inputs = Inputs(query, key, value)
        return curvature.forward_mode(inputs, rules, output, lse, directions, ctx.call.blocks)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _mapped(_Attention.apply, info.batch_size, in_dims, arguments, arguments[4].folds)


class _Backward(Function):
    """(query, key, value, bias, output, lse, grad_output, grad_lse, wanted, call, *captured) to gradients."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        saved = _Saved(*arguments[:10])
        call = saved.call.with_bias(saved.bias)
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

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        saved = _Saved(*ctx.saved_tensors, ctx.wanted, ctx.call)  # type: ignore[call-arg]
        rules = ctx.call.rules.with_bias(saved.bias)
        found = curvature.double_backward(
            saved.inputs,
            rules,
            saved.output,
            saved.lse,
            saved.grad_output,
            saved.grad_lse,
            _gathered(cotangents),
            ctx.call.blocks,
        )
        first = (found.query, found.key, found.value, found.bias, None, None, found.grad_output)
        lse = None if saved.grad_lse is None else found.grad_lse
        return (*first, lse, None, None, *(found.captured or (None,) * ctx.captured))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> Any:
        return _mapped(_Backward.apply, info.batch_size, in_dims, arguments, arguments[9].folds)


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
