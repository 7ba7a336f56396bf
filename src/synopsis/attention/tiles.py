"""The reference engine: exact attention on tiles of plain torch operations, with every option there is.

Forward folds (m, d, n) over key blocks, one query block at a time (Rabe & Staats, 2021).
"""

import math

import torch
from torch import Tensor

from synopsis.attention.cutting import LOG2E, Inputs, Tiles, parts, surely_finite
from synopsis.attention.recomputation import backward
from synopsis.attention.rules import Block, Rules

__all__ = ["backward", "forward"]


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
    output = inputs.query.new_empty(*inputs.query.shape[:-1], inputs.value.shape[-1])
    dtype = torch.promote_types(inputs.query.dtype, torch.float32)
    lse = inputs.query.new_empty(inputs.query.shape[:-1], dtype=dtype)
    for part in parts(inputs, rules, blocks):
        tiles = Tiles(part.cut(inputs), rules.of_part(part.batch, part.heads))
        values = _Values(tiles.inputs.value)
        for queries, keys in tiles.rules.blocks((tiles.length, inputs.key.shape[2]), *blocks):
            row = _Row(tiles, queries, values)
            for block in keys:
                row.fold(block)
            found = row.result()
            output[part.batch, part.heads, queries], lse[part.batch, part.heads, queries] = found
    return output, lse


class _Values:
    """Values with what is not finite set aside: it must reach only the rows that attend to it."""

    def __init__(self, value: Tensor) -> None:
        self.spoilt: Tensor | None = None  # (batch, key_heads, keys)
        self.value = value
        if not surely_finite(value):
            self.spoilt = ~value.isfinite().all(-1)
            self.value = value.masked_fill(self.spoilt[..., None], 0.0)


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
        tiles = self.tiles
        key = tiles.of_key(tiles.inputs.key, block.keys)
        value = tiles.of_key(self.values.value, block.keys)
        weights = self._weigh(tiles.scores(self.query, key, block))
        tiles.drop_(weights, tiles.noise(block))
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
        output = self.numerator.mul_(self.tiles.gain) / denominator.unsqueeze(-1)
        lse = ((self.maximum + denominator.log2()) / LOG2E).masked_fill(empty, -math.inf)
        return self.tiles.by_head(output), self.tiles.by_head(lse.unsqueeze(-1)).squeeze(-1)
