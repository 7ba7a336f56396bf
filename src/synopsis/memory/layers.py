"""The sub-layers that attention blocks of the literature are built from.

Each is "normalise, transform, add". With ``residual="raw"`` the skip carries the input itself (textbook pre-norm); with
``"normed"`` it carries the normalised input, as the published code of CMANP, LBANP and EQTNP does:

    raw:     out = x + f(LN(x))            normed:  out = LN(x) + f(LN(x))
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.layers_training import Linear, linear, softmax_attention

Residual = Literal["raw", "normed"]


def split_heads(x: Float[Tensor, "*batch length dim"], heads: int) -> Tensor:
    """(..., length, heads·width) to (..., heads, length, width)."""
    return x.unflatten(-1, (heads, -1)).transpose(-3, -2)


def join_heads(x: Float[Tensor, "*batch heads length width"]) -> Tensor:
    """(..., heads, length, width) to (..., length, heads·width)."""
    return x.transpose(-3, -2).flatten(-2)


class MultiheadAttention(nn.Module):
    """Multi-head attention with one fused key/value projection and no bias on queries, keys and values."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.heads = heads
        self.to_query = Linear(dim, dim, bias=False)
        self.to_key_value = Linear(dim, 2 * dim, bias=False)
        self.to_output = Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "*batch queries dim"],
        context: Float[Tensor, "*batch keys dim"],
        mask: Bool[Tensor, "*batch keys"] | None = None,
    ) -> Float[Tensor, "*batch queries dim"]:
        """Attend from x to context; mask is True where a context item is real."""
        query, key, value = (split_heads(t, self.heads) for t in self._project(x, context))
        pairs = None if mask is None else mask[..., None, None, :]
        attended = softmax_attention(query, key, value, pairs)
        projected: Tensor = self.to_output(join_heads(attended))
        return projected

    def _project(self, x: Tensor, context: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values; in training, where x attends to itself, by one product and not by two."""
        if self.training and x is context:
            weight = torch.cat([self.to_query.weight, self.to_key_value.weight])
            return linear(x, weight).chunk(3, dim=-1)
        return self.to_query(x), *self.to_key_value(context).chunk(2, dim=-1)


class CrossAttention(nn.Module):
    """Residual cross-attention: queries and context each have a normalisation of their own."""

    def __init__(self, dim: int, heads: int, residual: Residual = "raw") -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.attention = MultiheadAttention(dim, heads)

    def forward(
        self,
        x: Float[Tensor, "*batch queries dim"],
        context: Float[Tensor, "*batch keys dim"],
        mask: Bool[Tensor, "*batch keys"] | None = None,
    ) -> Float[Tensor, "*batch queries dim"]:
        """Attend from x to context and add."""
        normed = self.norm(x)
        skip = x if self.residual == "raw" else normed
        attended: Tensor = self.attention(normed, self.norm_context(context), mask)
        return skip + attended


class SelfAttention(nn.Module):
    """Residual self-attention."""

    def __init__(self, dim: int, heads: int, residual: Residual = "raw") -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(dim)
        self.attention = MultiheadAttention(dim, heads)

    def forward(
        self,
        x: Float[Tensor, "*batch length dim"],
        mask: Bool[Tensor, "*batch length"] | None = None,
    ) -> Float[Tensor, "*batch length dim"]:
        """Attend within x and add."""
        normed = self.norm(x)
        skip = x if self.residual == "raw" else normed
        attended: Tensor = self.attention(normed, normed, mask)
        return skip + attended


class FeedForward(nn.Module):
    """Residual gated feed-forward: Linear(d → 2f), value × GELU(gate), Linear(f → d) (Shazeer, 2020)."""

    def __init__(self, dim: int, hidden: int, residual: Residual = "raw") -> None:
        super().__init__()
        self.residual = residual
        self.norm = nn.LayerNorm(dim)
        self.expand = Linear(dim, 2 * hidden)
        self.contract = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Transform each item by itself and add."""
        normed = self.norm(x)
        value, gate = self.expand(normed).chunk(2, dim=-1)
        transformed: Tensor = self.contract(value * F.gelu(gate))
        return (x if self.residual == "raw" else normed) + transformed


def blank(
    values: Shaped[Tensor, "*batch width"], mask: Bool[Tensor, "*batch"] | None
) -> Shaped[Tensor, "*batch width"]:
    """Values with padding set to 0: what stands there may be NaN, and must not reach a gradient."""
    return values if mask is None else values.masked_fill(~mask.unsqueeze(-1), 0.0)


def perceptron(inputs: int, hidden: int, outputs: int, depth: int) -> nn.Sequential:
    """``depth`` linear layers with ReLU between and nothing after."""
    widths = [inputs] + [hidden] * (depth - 1) + [outputs]
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
