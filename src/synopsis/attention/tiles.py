"""The reference engine: exact attention on tiles of plain torch operations, with every option there is.

Forward folds (m, d, n) over key blocks, one query block at a time (Rabe & Staats, 2021). Backward recomputes the
weights of a tile from the log-sum-exp alone (Dao, 2023):

    P = exp(S − L)    dV = Pᵀ G    dS = P ∘ (G Vᵀ − (D − g))    dQ = dS K    dK = dSᵀ Q,        D = rowsum(G ∘ O)

where g is the gradient of the log-sum-exp, which enters nowhere else. Inside a tile scores are in bits, S / ln 2:
powers of two are several times cheaper than exponentials, and the factor rides along in the product where nothing
changes scores.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.rules import Block, Rules

_LOG2E = math.log2(math.e)


class Inputs(NamedTuple):
    """Query, key and value, four-dimensional; heads of key and value divide those of the query."""

    query: Float[Tensor, "batch heads queries dim"]
    key: Float[Tensor, "batch key_heads keys dim"]
    value: Float[Tensor, "batch key_heads keys value_dim"]


class Gradients(NamedTuple):
    """Gradients (or tangents, or cotangents of gradients) of all that may have one; None where there is none."""

    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    bias: Tensor | None = None  # of rules.bias, in its shape
    captured: tuple[Tensor | None, ...] = ()  # of rules.captured


class Wanted(NamedTuple):
    """Which gradients besides those of query, key and value are wanted."""

    bias: bool = False
    captured: bool = False


class Tiles:
    """Query, key and value cut to size for batched products: a group's query heads are stacked as rows.

    Args:
        inputs: as given.
        rules: for the scale.
    """

    def __init__(self, inputs: Inputs, rules: Rules) -> None:
        self.inputs, self.rules = inputs, rules
        self.batch, self.heads, self.length, self.dim = inputs.query.shape
        self.key_heads, self.value_dim = inputs.key.shape[1], inputs.value.shape[-1]
        self.rows = self.batch * self.key_heads
        self.dtype = torch.promote_types(inputs.query.dtype, torch.float32)
        self.device = inputs.query.device
        self.shape = (self.batch, self.heads)
        self.in_bits = rules.score_mod is None and rules.bias is None
        self.factor = rules.scale * (_LOG2E if self.in_bits else 1.0)
        self._scores: Tensor | None = None

    def of_query(self, x: Tensor, queries: slice) -> Float[Tensor, "rows group_queries width"]:
        """Rows of anything that belongs to queries."""
        part = x[:, :, queries].to(self.dtype)
        return part.reshape(self.rows, self.heads // self.key_heads * part.shape[2], x.shape[-1])

    def of_key(self, x: Tensor, keys: slice) -> Float[Tensor, "rows keys width"]:
        """Rows of anything that belongs to keys."""
        part = x[:, :, keys].to(self.dtype)
        return part.reshape(self.rows, part.shape[2], x.shape[-1])

    def products(
        self, a: Tensor, b: Tensor, buffer: int, factor: float = 1.0
    ) -> Float[Tensor, "rows queries keys"]:
        """factor · a bᵀ, in memory that the next tile uses again."""
        size = len(a) * a.shape[1] * b.shape[1]
        if self._scores is None or self._scores.shape[1] < size:
            self._scores = a.new_empty(2, size)
        out = self._scores[buffer, :size].view(len(a), a.shape[1], b.shape[1])
        return torch.baddbmm(out, a, b.mT, beta=0.0, alpha=factor, out=out)

    def by_head(self, tile: Float[Tensor, "rows group_queries width"]) -> Tensor:
        """A view with batch, heads, queries and width apart."""
        length = tile.shape[1] * self.key_heads // self.heads
        return tile.view(self.batch, self.heads, length, tile.shape[-1])

    def scores(self, query: Tensor, key: Tensor, block: Block) -> Tensor:
        """Scores of a tile in bits, all rules applied, in the first buffer; −∞ where a pair may not attend."""
        products = self.products(query, key, 0, self.factor)
        tile, rules = self.by_head(products), self.rules
        if rules.score_mod is not None:
            tile.copy_(rules.score_mod(tile, *rules.indices(block, self.shape, self.device)))
        bias = rules.bias_of(block)
        if bias is not None:
            tile.add_(bias)
        if not self.in_bits:
            tile.mul_(_LOG2E)
        self.rule_out(tile, block)
        return products

    def rule_out(self, tile: Tensor, block: Block) -> None:
        """Write −∞ where a pair may not attend."""
        allowed = self.rules.allowed(block, self.shape, self.device)
        if allowed is not None:
            tile.masked_fill_(~allowed, -math.inf)


def forward(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp.

    Args:
        inputs: of any floating dtype; sums are at least float32.
        rules: masks, score changes, dropout.
        blocks: queries and keys of a tile.

    Returns:
        Output ``(batch, heads, queries, value_dim)`` in the dtype of the query, and the natural log-sum-exp
        ``(batch, heads, queries)`` in at least float32; 0 and −∞ for a query that may attend to nothing.
    """
    tiles = Tiles(inputs, rules)
    values = _Values(inputs.value)
    output = inputs.query.new_empty(*inputs.query.shape[:-1], tiles.value_dim)
    lse = inputs.query.new_empty(inputs.query.shape[:-1], dtype=tiles.dtype)
    for queries, keys in rules.blocks((tiles.length, inputs.key.shape[2]), *blocks):
        row = _Row(tiles, queries, values)
        for block in keys:
            row.fold(block)
        output[:, :, queries], lse[:, :, queries] = row.result()
    return output, lse


class _Values:
    """Values with what is not finite set aside: it must reach only the rows that attend to it."""

    def __init__(self, value: Tensor) -> None:
        finite = value.isfinite().all(-1)
        self.spoilt = None if bool(finite.all()) else ~finite  # (batch, key_heads, keys)
        self.value = (
            value if self.spoilt is None else value.masked_fill(self.spoilt[..., None], 0.0)
        )


class _Row:
    """One query block on its way along the keys: the softmax summary (m, d, n), updated in place."""

    def __init__(self, tiles: Tiles, queries: slice, values: _Values) -> None:
        self.tiles, self.values = tiles, values
        self.query = tiles.of_query(tiles.inputs.query, queries)
        self.maximum = self.query.new_full(self.query.shape[:-1], -math.inf)
        self.denominator = torch.zeros_like(self.maximum)
        self.numerator = self.query.new_zeros(*self.maximum.shape, tiles.value_dim)

    def fold(self, block: Block) -> None:
        """Take one block of keys in."""
        tiles, rules = self.tiles, self.tiles.rules
        key = tiles.of_key(tiles.inputs.key, block.keys)
        value = tiles.of_key(self.values.value, block.keys)
        weights = self._weigh(tiles.scores(self.query, key, block))
        keep = rules.keep(block, tiles.shape, tiles.device)
        if keep is not None:
            tiles.by_head(weights).mul_(keep)
        self.numerator.baddbmm_(weights, value)
        if self.values.spoilt is not None:
            self._spoil(weights, self.values.spoilt[:, :, block.keys])

    def _weigh(self, scores: Tensor) -> Tensor:
        """Scores to weights against the new maximum, in place; what was summed so far is rescaled to it."""
        maximum = torch.maximum(self.maximum, scores.amax(-1))
        pivot = maximum.masked_fill(maximum == -math.inf, 0.0)
        rescale = (self.maximum - pivot).exp2_()
        weights = scores.sub_(pivot.unsqueeze(-1)).exp2_()
        self.denominator.mul_(rescale).add_(weights.sum(-1))
        self.numerator.mul_(rescale.unsqueeze(-1))
        self.maximum = maximum
        return weights

    def _spoil(self, weights: Tensor, spoilt: Tensor) -> None:
        """A row with weight on a value that is not finite is not finite either."""
        reached = weights @ spoilt.reshape(len(weights), -1, 1).to(weights.dtype)
        self.numerator.masked_fill_(reached > 0, math.nan)

    def result(self) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp of the block."""
        empty = self.denominator == 0
        denominator = self.denominator.masked_fill(empty, 1.0)
        output = self.numerator / denominator.unsqueeze(-1)
        lse = ((self.maximum + denominator.log2()) / _LOG2E).masked_fill(empty, -math.inf)
        return self.tiles.by_head(output), self.tiles.by_head(lse.unsqueeze(-1)).squeeze(-1)


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
    sweep = _Sweep(inputs, rules, outputs, gradients, wanted)
    for queries, keys in rules.blocks((sweep.tiles.length, inputs.key.shape[2]), *blocks):
        sweep.begin(queries)
        for block in keys:
            sweep.take(block)
        sweep.end(queries)
    return sweep.gradients()


class _Sweep:
    """The backward pass: query blocks in order, gradients of keys and values gathered on the way."""

    def __init__(
        self,
        inputs: Inputs,
        rules: Rules,
        outputs: tuple[Tensor, Tensor],
        gradients: tuple[Tensor, Tensor | None],
        wanted: Wanted,
    ) -> None:
        self.tiles, self.rules, self.wanted = Tiles(inputs, rules), rules, wanted
        self.clean = Inputs(*map(_finite, inputs))
        self.grad_output = _finite(gradients[0])
        self.lse = outputs[1].masked_fill(
            outputs[1] == -math.inf, math.inf
        )  # so that exp(S − L) = 0
        delta = (gradients[0].to(self.tiles.dtype) * outputs[0]).sum(-1)
        delta = delta.masked_fill(outputs[1] == -math.inf, 0.0)
        self.delta = delta if gradients[1] is None else delta - gradients[1]
        self.grad_query = torch.empty_like(inputs.query, memory_format=torch.contiguous_format)
        self.grad_key = self._zeros(inputs.key)
        self.grad_value = self._zeros(inputs.value)
        bias = rules.bias
        self.grad_bias = self._zeros(bias) if bias is not None and wanted.bias else None
        self.grad_captured = [self._zeros(t) for t in rules.captured] if wanted.captured else []

    def _zeros(self, like: Tensor) -> Tensor:
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.zeros(like.shape, dtype=dtype, device=like.device)

    def begin(self, queries: slice) -> None:
        """Load one query block."""
        tiles = self.tiles
        self.query = tiles.of_query(tiles.inputs.query, queries)
        self.clean_query = tiles.of_query(self.clean.query, queries)
        self.upstream = tiles.of_query(self.grad_output, queries)
        self.row_lse = tiles.of_query(self.lse.unsqueeze(-1), queries) * _LOG2E
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
            tile = scores.detach() * _LOG2E
            tiles.rule_out(tile, block)
            weights = tile.view(len(self.query), -1, tile.shape[-1]).sub_(self.row_lse).exp2_()
        value = tiles.of_key(self.clean.value, keys)
        grad_weights = tiles.products(self.upstream, value, 1)
        dropped = self._drop(weights, grad_weights, block)
        rows = self.grad_value.view(tiles.rows, -1, tiles.value_dim)[:, keys]
        rows.baddbmm_(dropped.mT, self.upstream)
        grad_scores = grad_weights.sub_(self.row_delta).mul_(weights)
        self._spread(grad_scores, scores, leaf, block)

    def _modified(self, key: Tensor, block: Block) -> tuple[Tensor, Tensor]:
        """Scores of a tile before masks, with a graph back to the products they were made from."""
        products = torch.bmm(self.query, key.mT).mul_(self.rules.scale)
        leaf = self.tiles.by_head(products).requires_grad_()
        with torch.enable_grad():
            return self.rules.scores(leaf, block).expand_as(leaf), leaf

    def _drop(self, weights: Tensor, grad_weights: Tensor, block: Block) -> Tensor:
        keep = self.rules.keep(block, self.tiles.shape, self.tiles.device)
        if keep is None:
            return weights
        keep = keep.view_as(weights)
        grad_weights.mul_(keep)
        return weights * keep

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

    def gradients(self) -> Gradients:
        """Everything, in the dtypes of the inputs."""
        _, key, value = self.tiles.inputs
        bias = self.rules.bias
        return Gradients(
            self.grad_query,
            self.grad_key.to(key.dtype),
            self.grad_value.to(value.dtype),
            None if self.grad_bias is None or bias is None else self.grad_bias.to(bias.dtype),
            tuple(
                total.to(tensor.dtype)
                for total, tensor in zip(self.grad_captured, self.rules.captured, strict=False)
            ),
        )


def _finite(x: Tensor) -> Tensor:
    """x with 0 where it is not finite: a factor of weights that are 0 there, or NaN already."""
    return x if bool(x.isfinite().all()) else x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def _add_reduced(total: Tensor, grad_scores: Tensor, block: Block) -> None:
    """Add a tile's gradient to a broadcastable mask's, summed over what the mask is broadcast along."""
    rows = block.queries if total.shape[-2] > 1 else slice(None)
    columns = block.keys if total.shape[-1] > 1 else slice(None)
    part = total[..., rows, columns]
    part += grad_scores.sum_to_size(part.shape)
