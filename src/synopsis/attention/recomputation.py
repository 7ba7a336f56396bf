"""The reference engine's backward pass: weights recomputed from the log-sum-exp alone, a tile at a time (Dao, 2023).

    P = exp(S − L)    dV = Pᵀ G    dS = P ∘ (G Vᵀ − (D − g))    dQ = dS K    dK = dSᵀ Q,        D = rowsum(G ∘ O)

where g is the gradient of the log-sum-exp, which enters nowhere else.
"""

import math

import torch
from torch import Tensor

from synopsis.attention.cutting import (
    LOG2E,
    Gradients,
    Inputs,
    Part,
    Tiles,
    Wanted,
    parts,
    surely_finite,
)
from synopsis.attention.rules import Block, Rules, part_of


def backward(
    inputs: Inputs,
    rules: Rules,
    blocks: tuple[int, int],
    outputs: tuple[Tensor, Tensor],
    gradients: tuple[Tensor, Tensor | None],
    wanted: Wanted,
) -> Gradients:
    """Gradients from output and log-sum-exp, recomputing one tile of weights at a time.

    Args:
        inputs: as given to :func:`forward`.
        rules: the same.
        blocks: queries and keys of a tile; need not be those of the forward pass.
        outputs: output and log-sum-exp.
        gradients: of output and of log-sum-exp (None: it was not used).
        wanted: whether the additive mask and captured tensors want theirs.
    """
    totals = _Totals(inputs, rules, wanted)
    for part in parts(inputs, rules, blocks):
        sweep = _Sweep(part, totals, outputs, gradients)
        for queries, keys in sweep.rules.blocks((sweep.tiles.length, inputs.key.shape[2]), *blocks):
            sweep.begin(queries)
            for block in keys:
                sweep.take(block)
            sweep.end(queries)
    return totals.gradients()


class _Totals:
    """Gradients of everything, gathered tile by tile in at least float32."""

    def __init__(self, inputs: Inputs, rules: Rules, wanted: Wanted) -> None:
        self.inputs, bias = inputs, rules.bias
        # cut from its graph: a score_mod may have captured the mask as well, and would then count it twice
        self.rules = rules.with_bias(None if bias is None else bias.detach())
        self.query = torch.empty_like(inputs.query, memory_format=torch.contiguous_format)
        self.key, self.value = self._zeros(inputs.key), self._zeros(inputs.value)
        self.bias = self._zeros(bias) if bias is not None and wanted.bias else None
        self.captured = [self._zeros(t) for t in rules.captured] if wanted.captured else []

    @staticmethod
    def _zeros(like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.zeros(like.shape, dtype=dtype, device=like.device)

    def gradients(self) -> Gradients:
        """Everything, in the dtypes of the inputs."""
        _, key, value = self.inputs
        bias = self.rules.bias
        return Gradients(
            self.query,
            self.key.to(key.dtype),
            self.value.to(value.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
            tuple(
                total.to(tensor.dtype)
                for total, tensor in zip(self.captured, self.rules.captured, strict=False)
            ),
        )


class _Sweep:
    """The backward pass of one part: query blocks in order, gradients of keys and values gathered on the way."""

    def __init__(
        self,
        part: Part,
        totals: _Totals,
        outputs: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor | None],
    ) -> None:
        output, lse, grad_output, grad_lse = (
            None if t is None else t[part.batch, part.heads] for t in (*outputs, *gradients)
        )
        assert output is not None and lse is not None and grad_output is not None
        self.rules = totals.rules.of_part(part.batch, part.heads)
        self.tiles = Tiles(part.cut(totals.inputs), self.rules)
        self.clean = Inputs(*map(_finite, self.tiles.inputs))
        self.grad_output = _finite(grad_output)
        blind = lse == -math.inf
        self.lse = lse.masked_fill(blind, math.inf)  # so that exp(S − L) = 0
        delta = (grad_output.to(self.tiles.dtype) * output).sum(-1).masked_fill(blind, 0.0)
        self.delta = delta if grad_lse is None else delta - grad_lse
        self.grad_query = totals.query[part.batch, part.heads]
        self.grad_key = totals.key[part.batch, part.key_heads]
        self.grad_value = totals.value[part.batch, part.key_heads]
        bias = totals.bias
        self.grad_bias = None if bias is None else part_of(bias, part.batch, part.heads)
        self.grad_captured = totals.captured

    def begin(self, queries: slice) -> None:
        """Load one query block."""
        tiles = self.tiles
        self.query = tiles.of_query(tiles.inputs.query, queries)
        self.clean_query = tiles.of_query(self.clean.query, queries)
        self.upstream = tiles.of_query(self.grad_output, queries) * tiles.gain
        self.row_lse = tiles.of_query(self.lse.unsqueeze(-1), queries) * LOG2E
        self.row_delta = tiles.of_query(self.delta.unsqueeze(-1), queries)
        self.row_query = torch.zeros_like(self.query)

    def take(self, block: Block) -> None:
        """Add the gradients of one tile."""
        tiles, keys = self.tiles, block.keys
        key = tiles.of_key(tiles.inputs.key, keys)
        if self.rules.score_mod is None:
            scores, leaf = tiles.scores(self.query, key, block), None
            weights = scores.sub_(self.row_lse).exp2_()
        else:
            scores, leaf = self._modified(key, block)
            tile = scores.detach() * LOG2E
            tiles.rule_out(tile, block)
            weights = tile.view(len(self.query), -1, tile.shape[-1]).sub_(self.row_lse).exp2_()
        value = tiles.of_key(self.clean.value, keys)
        grad_weights = tiles.products(self.upstream, value, 1)
        noise = tiles.noise(block)
        tiles.drop_(grad_weights, noise)
        grad_scores = grad_weights.sub_(self.row_delta).mul_(weights)
        tiles.drop_(weights, noise)
        rows = self.grad_value.view(tiles.rows, -1, tiles.value_dim)[:, keys]
        rows.baddbmm_(weights.mT, self.upstream)
        self._spread(grad_scores, scores, leaf, block)

    def _modified(self, key: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Scores of a tile before masks, with a graph back to the products they were made from."""
        products = torch.bmm(self.query, key.mT).mul_(self.rules.scale)
        leaf = self.tiles.by_head(products).requires_grad_()
        with torch.enable_grad():
            return self.rules.scores(leaf, block).expand_as(leaf), leaf

    def _spread(
        self, grad_scores: Tensor, scores: Tensor, leaf: Tensor | None, block: Block
    ) -> None:
        """From the gradient of a tile of scores to those of all that made them."""
        tiles = self.tiles
        if self.grad_bias is not None:
            _add_reduced(self.grad_bias, tiles.by_head(grad_scores), block)
        if leaf is not None:
            grad_scores = self._through_score_mod(tiles.by_head(grad_scores), scores, leaf)
        key = tiles.of_key(self.clean.key, block.keys)
        self.row_query.baddbmm_(grad_scores, key)
        rows = self.grad_key.view(tiles.rows, -1, tiles.dim)[:, block.keys]
        rows.baddbmm_(grad_scores.mT, self.clean_query, alpha=self.rules.scale)

    def _through_score_mod(self, grad_scores: Tensor, scores: Tensor, leaf: Tensor) -> Tensor:
        captured = self.rules.captured if self.grad_captured else ()
        if not scores.requires_grad:
            return torch.zeros_like(grad_scores).view(len(self.query), -1, leaf.shape[-1])
        found = torch.autograd.grad(scores, (leaf, *captured), grad_scores, allow_unused=True)
        for total, part in zip(self.grad_captured, found[1:], strict=True):
            if part is not None:
                total.add_(part)
        grad_raw = torch.zeros_like(leaf) if found[0] is None else found[0]
        return grad_raw.reshape(len(self.query), -1, leaf.shape[-1])

    def end(self, queries: slice) -> None:
        """Write the gradient of one query block."""
        scaled = self.row_query.mul_(self.rules.scale)
        self.grad_query[:, :, queries] = self.tiles.by_head(scaled).to(self.grad_query.dtype)


def _finite(x: Tensor) -> Tensor:
    """x with 0 where it is not finite: a factor of weights that are 0 there, or NaN already."""
    return x if surely_finite(x) else x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _add_reduced(total: Tensor, grad_scores: Tensor, block: Block) -> None:
    """Add a tile's gradient to a broadcastable mask's, summed over what the mask is broadcast along."""
    rows = block.queries if total.shape[-2] > 1 else slice(None)
    columns = block.keys if total.shape[-1] > 1 else slice(None)
    part = total[..., rows, columns]
    part += grad_scores.sum_to_size(part.shape)
