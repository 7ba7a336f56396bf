"""Forward mode: how scores, log-sum-exp and output move when all that they are made from moves.

    T = α (Q̇ Kᵀ + Q K̇ᵀ) + Ḃ        L̇ = rowsum(P ∘ T)        Ȯ = (P ∘ T) V − L̇ ∘ O + P V̇

with P Z in place of P in the output under dropout factors Z. A score_mod f makes the tangent f'(α Q Kᵀ) ∘ Ṫ plus that
of the tensors it captured; it is found by differentiating a tile's gradient in its cotangent, because what a closure
holds can be differentiated but not passed in (the "double backward trick", J. Townsend, 2017).
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.cutting import Gradients, Inputs, Tiles
from synopsis.attention.rules import Block, Rules


def forward_mode(
    inputs: Inputs,
    rules: Rules,
    out: Float[Tensor, "batch heads queries value_dim"],
    lse: Float[Tensor, "batch heads queries"],
    tangents: Gradients,
    blocks: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Tangents of output and log-sum-exp, one tile at a time.

    Args:
        inputs: query, key and value.
        rules: as in the forward pass.
        out: its output.
        lse: its log-sum-exp; −∞ where a query may attend to nothing.
        tangents: of query, key, value, additive mask and captured tensors; None is zero.
        blocks: queries and keys of a tile.

    Returns:
        The tangents, in the shapes and dtypes of ``out`` and ``lse``; 0 where a query may attend to nothing.

    Example:
        >>> x = torch.randn(1, 1, 4, 2)
        >>> inputs, rules = Inputs(x, x[:, :, :1], x[:, :, :1]), Rules(scale=1.0)  # one key: weight 1
        >>> lse, out = x @ x[0, 0, 0], x[:, :, :1].expand_as(x)
        >>> moved, _ = forward_mode(inputs, rules, out, lse, Gradients(x, None, None), (2, 2))
        >>> bool(moved.abs().max() < 1e-5)  # the output does not depend on the query
        True

    Source:
        The product rule of softmax; one pass suffices because the log-sum-exp is known.
    """
    with torch.no_grad():
        linear = Linearization(inputs, rules, lse, tangents)
        out_tangent = linear.zeros(out.shape, out.dtype)
        lse_tangent = linear.zeros(lse.shape, lse.dtype)
        for queries, row in rules.blocks((lse.shape[-1], inputs.key.shape[2]), *blocks):
            moved_out, moved_lse = _row(linear, row, queries)
            moved_out = moved_out - moved_lse * linear.of_query(out, queries)
            out_tangent[:, :, queries] = linear.tiles.by_head(moved_out).to(out.dtype)
            lse_tangent[:, :, queries] = linear.tiles.by_head(moved_lse).squeeze(-1).to(lse.dtype)
    return out_tangent, lse_tangent


def _row(linear: "Linearization", row: list[Block], queries: slice) -> tuple[Tensor, Tensor]:
    """``(P ∘ T) V + P V̇`` and ``rowsum(P ∘ T)`` of one query block."""
    moved_lse = linear.row_zeros(queries, 1)
    moved_out = linear.row_zeros(queries, linear.tiles.value_dim)
    for block in row:
        tile = linear.at(block)
        moved_lse = moved_lse + (tile.weights * tile.tangent).sum(-1, keepdim=True)
        value = linear.of_key(linear.inputs.value, block.keys)
        moved_out = moved_out + (tile.dropped * tile.tangent) @ value
        if linear.directions.value is not None:
            moved_out += tile.dropped @ linear.of_key(linear.directions.value, block.keys)
    return moved_out, moved_lse


class Graph(NamedTuple):
    """A tile's way through score_mod, kept so that it can be differentiated again; all ``(B, H, Q, K)``."""

    products: Tensor  # leaf: α Q Kᵀ
    moved: Tensor  # leaf: its tangent
    scores: Tensor
    tangent: Tensor
    allowed: Tensor | None  # broadcastable; where False, derivatives may be anything

    def pull(
        self, grad_scores: Tensor, grad_tangent: Tensor, captured: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Gradients of products, of their tangent, and of captured tensors."""
        sources = (self.products, self.moved, *captured)
        pairs = [(self.scores, grad_scores), (self.tangent, grad_tangent)]
        pairs = [(output, grad) for output, grad in pairs if output.requires_grad]
        if not pairs:
            return torch.zeros_like(grad_scores), torch.zeros_like(grad_scores), ()
        outputs, grads = zip(*pairs, strict=True)
        found = torch.autograd.grad(outputs, sources, grads, allow_unused=True)
        return self._clear(found[0], grad_scores), self._clear(found[1], grad_scores), found[2:]

    def _clear(self, grad: Tensor | None, like: Tensor) -> Tensor:
        if grad is None:
            return torch.zeros_like(like)
        return grad if self.allowed is None else grad.masked_fill(~self.allowed, 0.0)


class Tile(NamedTuple):
    """One tile of weights and of the tangent of their scores, each ``(rows, group · queries, keys)``."""

    weights: Tensor  # P
    dropped: Tensor  # P ∘ Z
    keep: Tensor | None  # Z
    tangent: Tensor  # T, 0 where a pair may not attend
    graph: Graph | None  # with a score_mod, on demand


class Linearization:
    """Attention to first order along one direction, evaluated one tile at a time.

    Args:
        inputs: query, key and value.
        rules: as in the forward pass.
        lse: its log-sum-exp.
        directions: along which inputs, additive mask and captured tensors move; None is not at all.
        also: other tensors that will meet what :meth:`zeros` returns.
    """

    def __init__(
        self,
        inputs: Inputs,
        rules: Rules,
        lse: Float[Tensor, "batch heads queries"],
        directions: Gradients,
        also: tuple[Tensor | None, ...] = (),
    ) -> None:
        self.inputs, self.directions, self.captured = inputs, directions, rules.captured
        bias = rules.bias  # cut off: score_mod may have captured the same tensor
        self.rules = rules if bias is None else rules.with_bias(bias.detach())
        self.moving_bias = Rules(scale=1.0, attn_mask=directions.bias)
        self.tiles = Tiles(inputs, rules)
        self.lse = lse.masked_fill(lse == -math.inf, math.inf)  # so that exp(S − L) = 0
        moving = (*directions[:4], *directions.captured)
        self._zero = torch.zeros((), dtype=self.tiles.dtype, device=lse.device)
        for tensor in (*inputs, lse, rules.attn_mask, *moving, *also):
            if tensor is not None:
                self._zero = self._zero + tensor.new_zeros(())

    def zeros(
        self, shape: torch.Size | tuple[int, ...], dtype: torch.dtype | None = None
    ) -> Tensor:
        """Zeros that may be written to in place under vmap: they carry all its hidden dimensions."""
        return self._zero.to(dtype or self.tiles.dtype).expand(shape).clone()

    def row_zeros(self, queries: slice, width: int) -> Float[Tensor, "rows group_queries width"]:
        """Zeros for one query block."""
        tiles = self.tiles
        count = (queries.stop - queries.start) * tiles.heads // tiles.key_heads
        return self.zeros((tiles.rows, count, width))

    def of_query(self, x: Tensor, queries: slice) -> Float[Tensor, "rows group_queries width"]:
        """Rows of anything that belongs to queries, 0 where not finite: a factor of weights that are 0 or NaN."""
        return self.tiles.of_query(x, queries).nan_to_num(0.0, 0.0, 0.0)

    def of_key(self, x: Tensor, keys: slice) -> Float[Tensor, "rows keys width"]:
        """Rows of anything that belongs to keys, 0 where not finite."""
        return self.tiles.of_key(x, keys).nan_to_num(0.0, 0.0, 0.0)

    def at(self, block: Block, graph: bool = False) -> Tile:
        """One tile.

        Args:
            block: its queries and keys.
            graph: keep the way through score_mod.
        """
        tiles, rules = self.tiles, self.rules
        allowed = rules.allowed(block, tiles.shape, tiles.device)
        query = tiles.of_query(self.inputs.query, block.queries) * rules.scale
        products = tiles.by_head(query @ tiles.of_key(self.inputs.key, block.keys).mT)
        moved, way = tiles.by_head(self._moved_products(block)), None
        if rules.score_mod is None:
            scores = rules.scores(products, block)
        else:
            way = self._trace(products, moved, block, allowed, graph)
            scores, moved = way.scores.detach(), way.tangent.detach()
        if self.directions.bias is not None:
            moved = self.moving_bias.scores(moved, block)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -math.inf)
            moved = moved.masked_fill(~allowed, 0.0)
        weights = (scores - self.lse[:, :, block.queries, None]).exp_()
        keep = rules.keep(block, tiles.shape, tiles.device)
        dropped = weights if keep is None else weights * keep
        stack = self.stack
        return Tile(
            stack(weights),
            stack(dropped),
            None if keep is None else stack(keep),
            stack(moved),
            way if graph else None,
        )

    def stack(self, tile: Float[Tensor, "batch heads queries keys"]) -> Tensor:
        """The tile with the query heads of a group stacked as rows: the inverse of ``tiles.by_head``."""
        group = tile.shape[1] // self.tiles.key_heads * tile.shape[2]
        return tile.reshape(self.tiles.rows, group, tile.shape[3])

    def _moved_products(self, block: Block) -> Float[Tensor, "rows group_queries keys"]:
        """``α (Q̇ Kᵀ + Q K̇ᵀ)``."""
        query, key, directions = self.inputs.query, self.inputs.key, self.directions
        moved: Tensor | None = None
        for a, b in ((directions.query, key), (query, directions.key)):
            if a is not None and b is not None:
                rows = self.of_query(a, block.queries) * self.rules.scale
                columns = self.of_key(b, block.keys).mT
                moved = rows @ columns if moved is None else torch.baddbmm(moved, rows, columns)
        if moved is None:
            return self.row_zeros(block.queries, block.keys.stop - block.keys.start)
        return moved

    def _trace(
        self, products: Tensor, moved: Tensor, block: Block, allowed: Tensor | None, graph: bool
    ) -> Graph:
        """Scores and their tangent, through score_mod."""
        if allowed is not None:  # what is not finite and masked must not reach the derivatives
            products = products.where(allowed | products.isfinite(), 0.0)
        with torch.enable_grad():
            products, moved = _tracked(products), _tracked(moved)
            scores = self.rules.scores(products, block).to(products.dtype).expand_as(products)
            tangent = self._tangent(scores, products, moved, graph)
        return Graph(products, moved, scores, tangent, allowed)

    def _tangent(self, scores: Tensor, products: Tensor, moved: Tensor, graph: bool) -> Tensor:
        """The derivative of ``gradient(scores, probe) · direction`` in the probe, on which it depends linearly."""
        if not scores.requires_grad:
            return torch.zeros_like(scores)
        probe = torch.zeros_like(scores, requires_grad=True)
        sources = (products, *self.captured)
        slopes = torch.autograd.grad(scores, sources, probe, create_graph=True, allow_unused=True)
        pairs = zip(slopes, (moved, *self.directions.captured), strict=False)
        inner = [(s * d).sum() for s, d in pairs if s is not None and d is not None]
        if not inner:
            return torch.zeros_like(scores)
        return torch.autograd.grad(sum(inner[1:], inner[0]), probe, create_graph=graph)[0]


def _tracked(x: Tensor) -> Tensor:
    """x with a graph that begins here; torch.func forbids ``requires_grad_``."""
    return x.detach() + torch.zeros_like(x, requires_grad=True)
