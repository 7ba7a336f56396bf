"""The two passes of a transformer layer that keeps nothing but its input, its attention's output and log-sum-exp.

    forward, for each query block:   q → attention over all keys → projection, add, norm → feed-forward, add
    backward, for each query block:  recompute up to the hidden layer; gradient of the tokens after attention
    backward, for a few heads:       recompute their q, k, v; gradient of attention from output and log-sum-exp
    backward, for each query block:  gradient through the first norm

The second step of the backward pass goes by heads, not by queries: the gradients of keys and values gather what all
queries contribute, and so exist for a few heads only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from synopsis.attention import choice
from synopsis.attention.cutting import Inputs, Wanted
from synopsis.attention.differentiation import Engine
from synopsis.attention.rules import Bounded, Rules, Span


class Weights(NamedTuple):
    """The parameters of a layer, or their gradients."""

    norm1: Float[Tensor, " dim"]
    norm1_bias: Float[Tensor, " dim"]
    project: Float[Tensor, "3_dim dim"]  # to queries, keys and values
    project_bias: Float[Tensor, " 3_dim"]
    output: Float[Tensor, "dim dim"]
    output_bias: Float[Tensor, " dim"]
    norm2: Float[Tensor, " dim"]
    norm2_bias: Float[Tensor, " dim"]
    expand: Float[Tensor, "hidden dim"]
    expand_bias: Float[Tensor, " hidden"]
    contract: Float[Tensor, "dim hidden"]
    contract_bias: Float[Tensor, " dim"]


@dataclass(frozen=True)
class Setup:
    """What a layer is besides its weights."""

    rules: Rules
    heads: int
    query_block: int
    head_block: int | None
    eps: float

    def blocks(self, length: int) -> Iterator[slice]:
        """Query blocks, at least one."""
        for start in range(0, max(length, 1), self.query_block):
            yield slice(start, min(start + self.query_block, length))

    def head_blocks(self, batch: int) -> Iterator[slice]:
        """Blocks of heads whose gradients are computed together."""
        size = self.head_block or -(-torch.get_num_threads() // max(batch, 1))
        for start in range(0, self.heads, size):
            yield slice(start, min(start + size, self.heads))

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Layer normalisation."""
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def part(self, x: Tensor, parts: slice, heads: slice) -> Tensor:
        """A view of the projection's weight or bias: its queries, keys, values by heads."""
        return x.unflatten(0, (3, self.heads, -1))[parts, heads]

    def project(
        self, x: Tensor, w: Weights, parts: slice, heads: slice
    ) -> Float[Tensor, "parts batch heads length width"]:
        """Queries, keys or values of some heads, without a normalised copy of all tokens."""
        weight, bias = (self.part(t, parts, heads) for t in (w.project, w.project_bias))
        made: Tensor | None = None
        for rows in self.blocks(x.shape[1]):
            normed = self.norm(x[:, rows], w.norm1, w.norm1_bias)
            block = F.linear(normed, weight.flatten(0, 2), bias.flatten())
            block = block.unflatten(-1, bias.shape).permute(2, 0, 3, 1, 4)
            if made is None:
                made = block.new_empty(*block.shape[:3], x.shape[1], block.shape[-1])
            made[:, :, :, rows] = block
        assert made is not None
        return made


class Outcome(NamedTuple):
    """What a forward pass makes; the last two are all that the backward pass keeps of it."""

    output: Float[Tensor, "batch length dim"]
    attended: Float[Tensor, "batch heads length width"]
    lse: Float[Tensor, "batch heads length"]


def forward(setup: Setup, x: Tensor, w: Weights) -> Outcome:
    """The layer, one query block at a time."""
    everyone, dim = slice(0, setup.heads), x.shape[2]
    key, value = setup.project(x, w, slice(1, 3), everyone)
    output, attended = torch.empty_like(x), torch.empty_like(value)
    lse = value.new_empty(value.shape[:-1], dtype=_sums(value))
    engine, tile = _engine(
        Inputs(key, key, value), setup.rules
    )  # queries come from the same tokens
    for rows in setup.blocks(x.shape[1]):
        block = x[:, rows]
        normed = setup.norm(block, w.norm1, w.norm1_bias)
        query = F.linear(normed, w.project[:dim], w.project_bias[:dim])
        inputs = Inputs(split(query, setup.heads), key, value)
        rules = replace(setup.rules, query_offset=rows.start)
        attended[:, :, rows], lse[:, :, rows] = engine.forward(inputs, rules, tile)
        middle = after_attention(block, attended[:, :, rows], w)
        normed = setup.norm(middle, w.norm2, w.norm2_bias)
        hidden = F.gelu(F.linear(normed, w.expand, w.expand_bias))
        output[:, rows] = middle + F.linear(hidden, w.contract, w.contract_bias)
    return Outcome(output, attended, lse)


def after_attention(x: Tensor, attended: Tensor, w: Weights) -> Float[Tensor, "batch length dim"]:
    """Tokens after attention: what the feed-forward sees."""
    return x + F.linear(join(attended), w.output, w.output_bias)


class Backward:
    """Gradients on their way from the output to the input; ``grad_x`` holds the residual stream's."""

    def __init__(self, setup: Setup, x: Tensor, w: Weights, grad_output: Tensor) -> None:
        self.setup, self.x, self.w, self.grad_output = setup, x, w, grad_output
        self.grads = Weights(*map(_zeros, w))
        self.grad_x, self.grad_normed = torch.empty_like(x), _zeros(x)
        self.captured = [_zeros(t) for t in setup.rules.captured]

    def through_feedforward(self, rows: slice, attended: Tensor) -> None:
        """From the output to the tokens after attention, and the output projection's own gradient."""
        w, grads, grad_output = self.w, self.grads, self.grad_output[:, rows]
        middle = after_attention(self.x[:, rows], attended, w)
        leaves, normed = self._norm(middle, w[6:8])
        raw = F.linear(normed.detach(), w.expand, w.expand_bias)
        _add_linear(grads.contract, grads.contract_bias, grad_output, F.gelu(raw))
        grad_raw = torch.ops.aten.gelu_backward(grad_output @ w.contract, raw)
        _add_linear(grads.expand, grads.expand_bias, grad_raw, normed.detach())
        grad_normed = (grad_raw @ w.expand).to(normed.dtype)
        grad_middle, *found = torch.autograd.grad(normed, leaves, grad_normed)
        for total, part in zip(grads[6:8], found, strict=True):
            total += part
        grad_middle += grad_output
        _add_linear(grads.output, grads.output_bias, grad_middle, join(attended))
        self.grad_x[:, rows] = grad_middle

    def through_attention(self, heads: slice, outputs: tuple[Tensor, Tensor]) -> None:
        """From the tokens after attention to the normalised ones before it, by way of these heads."""
        setup, w, everything = self.setup, self.w, slice(0, 3)
        columns = w.output.unflatten(1, (setup.heads, -1))[:, heads].flatten(1)
        grad_attended = split(self.grad_x @ columns, heads.stop - heads.start)
        inputs = Inputs(*setup.project(self.x, w, everything, heads))
        rules, wanted = _from_head(setup.rules, heads.start), Wanted(captured=bool(self.captured))
        engine, tile = _engine(inputs, rules)
        found = engine.backward(inputs, rules, tile, outputs, (grad_attended, None), wanted)
        for total, captured in zip(self.captured, found.captured, strict=False):
            if captured is not None:
                total += captured
        weight = setup.part(w.project, everything, heads)
        totals = [
            setup.part(t, everything, heads) for t in (self.grads.project, self.grads.project_bias)
        ]
        for rows in setup.blocks(self.x.shape[1]):
            parts = (part[:, :, rows] for part in found[:3] if part is not None)
            grad = torch.cat([join(part) for part in parts], dim=-1)
            self.grad_normed[:, rows] += grad @ weight.flatten(0, 2)
            normed = setup.norm(self.x[:, rows], w.norm1, w.norm1_bias)
            totals[0] += (grad.flatten(0, 1).mT @ normed.flatten(0, 1)).view_as(weight)
            totals[1] += grad.sum((0, 1)).view_as(totals[1])

    def through_norm(self, rows: slice) -> None:
        """From the normalised tokens to the input."""
        leaves, normed = self._norm(self.x[:, rows], self.w[:2])
        found = torch.autograd.grad(normed, leaves, self.grad_normed[:, rows].to(normed.dtype))
        for total, part in zip((self.grad_x[:, rows], *self.grads[:2]), found, strict=True):
            total += part

    def _norm(self, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[list[Tensor], Tensor]:
        """Normalised tokens with a graph, and the leaves it begins at."""
        leaves = [t.detach().requires_grad_() for t in (x, *weights)]
        with torch.enable_grad():
            return leaves, self.setup.norm(*leaves)

    def found(self) -> Iterator[Tensor]:
        """Gradients of x, weights and captured tensors, in their dtypes."""
        tensors = (self.x, *self.w, *self.setup.rules.captured)
        grads = (self.grad_x, *self.grads, *self.captured)
        return (grad.to(t.dtype) for grad, t in zip(grads, tensors, strict=True))


@dataclass(frozen=True)
class _HeadsFrom:
    """A mask_mod or score_mod for heads that do not begin at 0."""

    mod: Any
    first: int

    def __call__(self, *arguments: Tensor) -> Tensor:
        *score, b, h, q_idx, kv_idx = arguments
        changed: Tensor = self.mod(*score, b, h + self.first, q_idx, kv_idx)
        return changed


class _BoundedHeadsFrom(_HeadsFrom):
    """A mask_mod that knows its key range keeps knowing it."""

    def keys(self, queries: Span, keys: Span) -> Span:
        """The part of the keys that some query may attend to."""
        found: Span = self.mod.keys(queries, keys)
        return found

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether every pair surely may attend."""
        return bool(self.mod.allows_all(queries, keys))


def _from_head(rules: Rules, first: int) -> Rules:
    mask_mod, score_mod = rules.mask_mod, rules.score_mod
    if mask_mod is not None:
        kind = _BoundedHeadsFrom if isinstance(mask_mod, Bounded) else _HeadsFrom
        mask_mod = kind(mask_mod, first)
    if score_mod is not None:
        score_mod = _HeadsFrom(score_mod, first)
    return replace(rules, mask_mod=mask_mod, score_mod=score_mod)


def _engine(inputs: Inputs, rules: Rules) -> tuple[Engine, tuple[int, int]]:
    """What computes attention, and its tiles."""
    return choice.present()(inputs, rules), choice.plan(inputs, rules, (None, None), None)


def split(x: Tensor, heads: int) -> Float[Tensor, "batch heads length width"]:
    """Heads apart."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join(x: Float[Tensor, "batch heads length width"]) -> Float[Tensor, "batch length dim"]:
    """Heads side by side."""
    return x.transpose(1, 2).flatten(2)


def _add_linear(weight: Tensor, bias: Tensor, grad: Tensor, x: Tensor) -> None:
    """Add the gradients of ``x @ weightᵀ + bias``."""
    rows, columns = grad.flatten(0, 1).mT, x.flatten(0, 1)
    if weight.dtype == rows.dtype == columns.dtype:
        weight.addmm_(rows, columns)  # no product of the weight's size beside it
    else:
        weight += rows @ columns
    bias += grad.sum((0, 1))


def _sums(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape, dtype=_sums(like), device=like.device)
