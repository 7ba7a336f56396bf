"""Second order: gradients of the gradients of attention, in bounded memory.

Given cotangents U of the gradients of query, key, value and additive mask, with Δ = rowsum(G ∘ O) − g,

    W = α (U_Q Kᵀ + Q U_Kᵀ) + U_B    E = G Vᵀ − Δ    Y = G U_Vᵀ    w = rowsum(P ∘ W)    r = rowsum(P ∘ R)
    R = W ∘ E + Y − w ∘ G Vᵀ         dS = P ∘ E       dS₂ = P ∘ (R − r)
    Q̄ = α (dS₂ K + dS U_K)           K̄ = α (dS₂ᵀ Q + dSᵀ U_Q)         V̄ = (P ∘ (W − w))ᵀ G
    B̄ = dS₂                          Ḡ = (P ∘ W) V − w ∘ O + P U_V     ḡ = w

A first pass over the keys gives w and r of a query block, a second one the rest; a tile of each matrix is all that
exists at once. Dropout factors Z multiply G Vᵀ, Y, and P in V̄ and Ḡ. With a score_mod, W is the derivative of the
scores along U, and Q̄, K̄ and the captured tensors' are the gradients of Σ dS₂ ∘ S + Σ dS ∘ W.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.cutting import Gradients, Inputs
from synopsis.attention.forward_mode import Linearization, Tile, forward_mode
from synopsis.attention.rules import Block, Rules

__all__ = ["SecondOrder", "double_backward", "forward_mode"]


class SecondOrder(NamedTuple):
    """Gradients through the backward pass of all that it was computed from; None where there is none."""

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor | None
    captured: tuple[Tensor, ...]
    grad_output: Tensor
    grad_lse: Tensor


def double_backward(
    inputs: Inputs,
    rules: Rules,
    out: Float[Tensor, "batch heads queries value_dim"],
    lse: Float[Tensor, "batch heads queries"],
    grad_out: Float[Tensor, "batch heads queries value_dim"] | None,
    grad_lse: Float[Tensor, "batch heads queries"] | None,
    cotangents: Gradients,
    blocks: tuple[int, int],
) -> SecondOrder:
    """Gradients of ``Σ cotangents · gradients`` of the backward pass, one tile at a time.

    Args:
        inputs: query, key and value.
        rules: as in the forward pass. The additive mask gets a gradient if it or its cotangent asks for one.
        out: output of the forward pass.
        lse: its log-sum-exp; −∞ where a query may attend to nothing.
        grad_out: gradient of the output that the backward pass was given; None is zero.
        grad_lse: the same of the log-sum-exp.
        cotangents: of the gradients that the backward pass returned; None is zero.
        blocks: queries and keys of a tile.

    Returns:
        Gradients in the shapes and dtypes of what they belong to; 0 for a query that may attend to nothing.

    Example:
        >>> x = torch.randn(1, 1, 4, 2)
        >>> inputs, rules = Inputs(x, x[:, :, :1], x[:, :, :1]), Rules(scale=1.0)  # one key: weight 1
        >>> lse, out = x @ x[0, 0, 0], x[:, :, :1].expand_as(x)
        >>> u = Gradients(None, None, torch.ones(1, 1, 1, 2))
        >>> found = double_backward(inputs, rules, out, lse, x, None, u, (2, 2))
        >>> bool((found.grad_output - 1).abs().max() < 1e-5)  # the value's gradient sums that of the output
        True

    Source:
        Differentiation of the backward pass of Dao (2023) by hand, checked against autograd.
    """
    with torch.no_grad():
        if grad_out is None:
            grad_out = torch.zeros_like(out)
        gradients = (grad_out, grad_lse)
        linear = Linearization(inputs, rules, lse, cotangents, also=(out, *gradients))
        sweep = _Sweep(linear, out, gradients, rules.bias)
        for queries, row in rules.blocks((lse.shape[-1], inputs.key.shape[2]), *blocks):
            sweep.begin(queries)
            for block in row:
                sweep.weigh(block)
            sweep.settle()
            for block in row:
                sweep.take(block)
            sweep.end(queries)
        return sweep.result()


class _Sweep:
    """Query blocks in order; what belongs to keys, mask and captured tensors is gathered on the way."""

    def __init__(
        self,
        linear: Linearization,
        out: Tensor,
        gradients: tuple[Tensor, Tensor | None],
        bias: Tensor | None,
    ) -> None:
        self.linear, self.tiles, self.out = linear, linear.tiles, out
        self.upstream, self.upstream_lse = gradients
        query, key, value = linear.inputs
        self.query = linear.zeros(query.shape, query.dtype)
        self.grad_out = linear.zeros(out.shape, self.upstream.dtype)
        self.grad_lse = linear.zeros(out.shape[:-1], linear.lse.dtype)
        self.key, self.value = linear.zeros(key.shape), linear.zeros(value.shape)
        self.captured = [linear.zeros(tensor.shape) for tensor in linear.captured]
        wanted = bias is not None and (bias.requires_grad or linear.directions.bias is not None)
        self.bias = linear.zeros(bias.shape) if bias is not None and wanted else None
        self.dtype_of_bias = None if bias is None else bias.dtype

    def begin(self, queries: slice) -> None:
        """Load one query block."""
        rows, linear = self.linear.of_query, self.linear
        self.row_upstream, self.row_out = rows(self.upstream, queries), rows(self.out, queries)
        self.row_norm = (self.row_upstream * self.row_out).sum(-1, keepdim=True)  # G · O
        self.row_delta = self.row_norm
        if self.upstream_lse is not None:
            self.row_delta = self.row_norm - rows(self.upstream_lse.unsqueeze(-1), queries)
        self.row_query = linear.row_zeros(queries, self.tiles.dim)
        self.row_grad_out = linear.row_zeros(queries, self.tiles.value_dim)
        self.w, self.r = linear.row_zeros(queries, 1), linear.row_zeros(queries, 1)

    def weigh(self, block: Block) -> None:
        """First pass: add a tile's part of w and of ``rowsum(P ∘ (W ∘ E + Y))``."""
        tile = self.linear.at(block)
        grad_weights, cross = self._gradient_of_weights(tile, block)
        leaning = tile.weights * tile.tangent
        self.w += leaning.sum(-1, keepdim=True)
        pull = leaning * (grad_weights - self.row_delta) + tile.weights * cross
        self.r += pull.sum(-1, keepdim=True)

    def settle(self) -> None:
        """Between the passes: what is left of r, since ``rowsum(P ∘ G Vᵀ) = G · O``."""
        self.r -= self.w * self.row_norm

    def take(self, block: Block) -> None:
        """Second pass: add the gradients of one tile."""
        tile = self.linear.at(block, graph=True)
        self._take_values(tile, block)
        self._take_scores(tile, block, *self._gradients_of_scores(tile, block))

    def _gradients_of_scores(self, tile: Tile, block: Block) -> tuple[Tensor, Tensor]:
        """dS₂ and dS; in place where that is safe under vmap: w and r carry every hidden dimension."""
        grad_weights, cross = self._gradient_of_weights(tile, block)
        error = grad_weights - self.row_delta
        pull = tile.tangent * error - self.r
        pull += cross
        pull -= self.w * grad_weights
        return pull.mul_(tile.weights), error * tile.weights

    def _gradient_of_weights(self, tile: Tile, block: Block) -> tuple[Tensor, Tensor | float]:
        """``G Vᵀ`` and ``G U_Vᵀ``, both under dropout."""
        linear, keep = self.linear, 1.0 if tile.keep is None else tile.keep
        value = linear.of_key(linear.inputs.value, block.keys)
        grad_weights = self.row_upstream @ value.mT * keep
        if linear.directions.value is None:
            return grad_weights, 0.0
        moved = linear.of_key(linear.directions.value, block.keys)
        return grad_weights, self.row_upstream @ moved.mT * keep

    def _take_values(self, tile: Tile, block: Block) -> None:
        linear = self.linear
        leaning = tile.dropped * (tile.tangent - self.w)  # P Z ∘ (W − w)
        _add(self.value, block.keys, leaning.mT @ self.row_upstream)
        value = linear.of_key(linear.inputs.value, block.keys)
        self.row_grad_out += (tile.dropped * tile.tangent) @ value
        if linear.directions.value is not None:
            moved = linear.of_key(linear.directions.value, block.keys)
            self.row_grad_out += tile.dropped @ moved

    def _take_scores(self, tile: Tile, block: Block, second: Tensor, first: Tensor) -> None:
        """Spread dS₂ and dS over all that made the scores and their tangent."""
        by_head, linear = self.tiles.by_head, self.linear
        if self.bias is not None:
            _add_to_bias(self.bias, block, by_head(second))
        if tile.graph is not None:
            pulled = tile.graph.pull(by_head(second), by_head(first), linear.captured)
            second, first = linear.stack(pulled[0]), linear.stack(pulled[1])
            for total, found in zip(self.captured, pulled[2], strict=False):
                if found is not None:
                    total += found
        self._spread(block, second, linear.inputs.query, linear.inputs.key)
        self._spread(block, first, linear.directions.query, linear.directions.key)

    def _spread(self, block: Block, grad: Tensor, query: Tensor | None, key: Tensor | None) -> None:
        """From the gradient of a tile of products ``α · query · keyᵀ`` to that of its factors."""
        if key is not None:
            self.row_query += grad @ self.linear.of_key(key, block.keys)
        if query is not None:
            _add(self.key, block.keys, grad.mT @ self.linear.of_query(query, block.queries))

    def end(self, queries: slice) -> None:
        """Write what belongs to one query block."""
        by_head, scale = self.tiles.by_head, self.linear.rules.scale
        grad_out = self.row_grad_out - self.w * self.row_out
        self.query[:, :, queries] = by_head(self.row_query * scale).to(self.query.dtype)
        self.grad_out[:, :, queries] = by_head(grad_out).to(self.grad_out.dtype)
        self.grad_lse[:, :, queries] = by_head(self.w).squeeze(-1).to(self.grad_lse.dtype)

    def result(self) -> SecondOrder:
        """Everything, in the dtypes of what it belongs to."""
        _, key, value = self.linear.inputs
        pairs = zip(self.captured, self.linear.captured, strict=True)
        return SecondOrder(
            self.query,
            self.key.mul_(self.linear.rules.scale).to(key.dtype),
            self.value.to(value.dtype),
            None if self.bias is None else self.bias.to(self.dtype_of_bias),
            tuple(total.to(tensor.dtype) for total, tensor in pairs),
            self.grad_out,
            self.grad_lse,
        )


def _add(total: Tensor, keys: slice, part: Float[Tensor, "rows keys width"]) -> None:
    total[:, :, keys] += part.view_as(total[:, :, keys])


def _add_to_bias(total: Tensor, block: Block, part: Tensor) -> None:
    """Add a tile to a broadcastable mask's gradient, summed over what the mask is broadcast along."""
    view = Rules(scale=1.0, attn_mask=total).bias_of(block)
    if view is not None:
        view += part.sum_to_size(view.shape)
