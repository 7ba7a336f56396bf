"""Gradients of attention to a stream: the stream is read once more, and each block adds its part.

Output and log-sum-exp of the whole stream are all that the first pass leaves behind (Dao, 2023); keys and values are
constants, so that nothing of a block outlives it.
"""

import math
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from synopsis.attention import choice, folding, tiles
from synopsis.attention.cutting import Gradients, Inputs, Wanted
from synopsis.attention.layouts import four_dimensional
from synopsis.attention.rules import Rules

if TYPE_CHECKING:
    from synopsis.attention.state import AttentionState
    from synopsis.attention.stream import Stream


def with_graph(stream: "Stream", query: Tensor, state: "AttentionState") -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of constant keys, which depend on query and captured tensors through a second pass."""
    tensors = (*state.partial(), query, *stream.rules.captured)
    output, lse = _SecondPass.apply(stream, int(state.count), choice.present(), *tensors)
    return output, lse


class _SecondPass(Function):
    """(stream, keys, choose, output, lse, query, *captured) to (output, lse): gradients by reading the stream again."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        output, lse = arguments[3:5]
        return output.clone(), lse.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        ctx.settings = inputs[:3]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> Any:
        output, lse, query, *captured = ctx.saved_tensors
        if grad_output is None:
            grad_output = torch.zeros_like(output)
        wanted = Wanted(captured=any(ctx.needs_input_grad[6:]))
        tensors = (query, output, lse, grad_output, grad_lse)
        found = _Gradient.apply(*ctx.settings, wanted, *tensors, *captured)
        return (*(None,) * 5, *found)


class _Gradient(Function):
    """(stream, keys, choose, wanted, query, output, lse, gradients of both, *captured) to gradients."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        stream, keys, choose, wanted, query, output, lse, *gradients = arguments[:9]
        sweep = _Sweep(stream, query, (output, lse), (gradients[0], gradients[1]), choose)
        sweep.wanted = wanted
        sweep.run(keys)
        found = sweep.grad_captured or (None,) * len(arguments[9:])
        return (sweep.grad_query.to(query.dtype), *found)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to remember."""

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            "attention to a stream of constant keys has first derivatives only; "
            "for second ones give all keys at once to scaled_dot_product_attention"
        )


class _Sweep:
    """The second pass: from output and log-sum-exp of the whole stream, each block's part of the gradient.

    Args:
        stream: to be read again.
        query: of the first pass.
        outputs: output and log-sum-exp of the constant blocks, float64.
        gradients: of output and log-sum-exp; None for a log-sum-exp that was not used.
    """

    def __init__(
        self,
        stream: "Stream",
        query: Tensor,
        outputs: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor | None],
        choose: folding.Choice,
    ) -> None:
        self.stream, self.query, self.wanted = stream, query, Wanted()
        self.choose = choose
        self.batch = tuple(query.shape[:-3])
        self.output, self.grad_output = (self._rows(t) for t in (outputs[0], gradients[0]))
        self.lse = self._rows(outputs[1].unsqueeze(-1)).squeeze(-1)
        grad_lse = gradients[1]
        self.grad_lse = None if grad_lse is None else self._rows(grad_lse.unsqueeze(-1)).squeeze(-1)
        self.grad_query = torch.zeros_like(query, dtype=torch.float64)
        self.grad_captured: list[Tensor] = []

    def run(self, keys: int) -> None:
        """Read all blocks; there must be as many constant keys as before."""
        if keys and isinstance(self.stream.blocks, Iterator):
            raise RuntimeError(
                "a gradient to the query needs a second pass over the blocks, and an iterator is used up; "
                "give something that can be iterated again, such as a list or a reader of files"
            )
        found = 0
        # gradients are on as in the first pass, so that the same blocks want one
        with torch.enable_grad(), closing(self.stream.pieces(self.query)) as pieces:
            for position, key, value in pieces if keys else ():
                if not (key.requires_grad or value.requires_grad):
                    found += key.shape[-2]
                    with torch.no_grad():
                        self._take(key, value, self.stream.rules_at(position))
                del key, value
        if found != keys:
            raise RuntimeError(f"the second pass gave {found} keys, the first {keys}")

    def _take(self, key: Tensor, value: Tensor, rules: Rules) -> None:
        query = self._rows(self.query)
        pieces = (four_dimensional(t, self.batch) for t in (key, value))
        pieces = (t.expand(len(query), *t.shape[1:]) for t in pieces)
        for _, inputs, its_rules in folding.converted(Inputs(query, *pieces), rules):
            self._add(self._gradients(inputs, its_rules))

    def _gradients(self, inputs: Inputs, rules: Rules) -> Gradients:
        dtype = inputs.query.dtype
        special = self.grad_lse is not None or self.wanted.captured
        engine = tiles if special else self.choose(inputs, rules)
        grad_lse = None if self.grad_lse is None else self.grad_lse.to(dtype)
        return engine.backward(
            inputs,
            rules,
            folding.tile_of(inputs),
            (self.output.to(dtype), self.lse.to(dtype)),
            (self.grad_output.to(dtype), grad_lse),
            self.wanted,
        )

    def _add(self, found: Gradients) -> None:
        if found.query is not None:
            self.grad_query += found.query.view(self.grad_query.shape)
        if self.wanted.captured:
            parts = [t for t in found.captured if t is not None]
            self.grad_captured = [
                part if not self.grad_captured else self.grad_captured[i] + part
                for i, part in enumerate(parts)
            ]

    def _rows(self, x: Tensor) -> Tensor:
        """Batch, heads, queries and width."""
        heads = x.shape[-3] if x.dim() > 2 else 1
        return x.reshape(math.prod(x.shape[:-3]), heads, *x.shape[-2:])
