"""Query, key and value cut to size: into parts that a core's cache can hold, and those into tiles of scores.

Inside a tile scores are in bits, S / ln 2: powers of two are several times cheaper than exponentials, and the factor
rides along in the product where no function changes scores.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from synopsis.attention.dropout import Dropout
from synopsis.attention.rules import Block, Rules

LOG2E = math.log2(math.e)
_CACHED = 1 << 20  # bytes of scores that a core works on at once: 1 MiB


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


class Part(NamedTuple):
    """Some of the batch, or some of the heads of one batch entry."""

    batch: slice
    heads: slice
    key_heads: slice

    def cut(self, inputs: Inputs) -> Inputs:
        """Query, key and value of the part."""
        query, key, value = inputs
        batch, key_heads = self.batch, self.key_heads
        return Inputs(query[batch, self.heads], key[batch, key_heads], value[batch, key_heads])


def parts(inputs: Inputs, rules: Rules, blocks: tuple[int, int]) -> Iterator[Part]:
    """Parts whose tiles stay in a core's cache; a mask_mod is asked for all heads at once, since most look at none."""
    batch, heads = inputs.query.shape[:2]
    key_heads = inputs.key.shape[1]
    group = heads // max(1, key_heads)
    at_once = max(1, _CACHED // (math.prod(blocks) * 4))
    if rules.mask_mod is not None or batch * heads <= at_once:
        yield Part(slice(0, batch), slice(0, heads), slice(0, key_heads))
        return
    entries, step = max(1, at_once // heads), max(1, min(heads, at_once) // group)
    for first in range(0, batch, entries):
        for head in range(0, key_heads, step):
            some = slice(head, min(head + step, key_heads))
            of_query = slice(some.start * group, some.stop * group)
            yield Part(slice(first, min(first + entries, batch)), of_query, some)


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
        self.in_bits = rules.score_mod is None
        self.factor = rules.scale * (LOG2E if self.in_bits else 1.0)
        self._scores: Tensor | None = None
        self._noise: Tensor | None = None
        self._hashed: tuple[Tensor, Tensor] | None = None

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
            tile.add_(bias, alpha=LOG2E if self.in_bits else 1.0)
        if not self.in_bits:
            tile.mul_(LOG2E)
        self.rule_out(tile, block)
        return products

    def rule_out(self, tile: Tensor, block: Block) -> None:
        """Write −∞ where a pair may not attend."""
        allowed = self.rules.allowed(block, self.shape, self.device)
        if allowed is not None:
            tile.masked_fill_(~allowed, -math.inf)

    def noise(self, block: Block) -> Int[Tensor, "batch heads queries keys"] | None:
        """What dropout decides by, in memory that the next tile uses again; None without it."""
        dropout = self.rules.dropout
        if dropout is None:
            return None
        rows, columns = self._hashed or self._hash(dropout)
        rows, columns = rows[:, :, block.queries], columns[..., block.keys]
        size = rows.numel() * columns.numel()
        if self._noise is None or len(self._noise) < size:
            self._noise = torch.empty(size, dtype=torch.int32, device=self.device)
        out = self._noise[:size].view(*rows.shape[:-1], columns.shape[-1])
        return torch.mul(rows, columns, out=out)

    def drop_(self, tile: Tensor, noise: Tensor | None) -> None:
        """Write 0 where a pair is dropped; what is kept stays as it is."""
        if noise is not None and self.rules.dropout is not None:
            self.rules.dropout.drop_(tile, noise)

    def _hash(self, dropout: Dropout) -> tuple[Tensor, Tensor]:
        """What dropout takes from every query and from every key: small beside them, and much work for each tile."""
        whole = Block(slice(0, self.length), slice(0, self.inputs.key.shape[2]))
        *of_query, of_key = self.rules.indices(whole, self.shape, self.device)
        self._hashed = dropout.rows(*of_query), dropout.columns(of_key)
        return self._hashed

    @property
    def gain(self) -> float:
        """What a weight that dropout keeps is multiplied by."""
        return 1.0 if self.rules.dropout is None else self.rules.dropout.gain


def surely_finite(x: Tensor) -> bool:
    """Whether every number is finite, by one sum: False for NaN, for infinity, and where the sum overflows."""
    return bool(x.sum(dtype=torch.promote_types(x.dtype, torch.float32)).isfinite())
