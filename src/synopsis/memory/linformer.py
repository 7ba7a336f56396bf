"""Linformer: keys and values projected along the length, from n positions to k, before softmax attention."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import AfterAttention
from synopsis.memory.layers import blank
from synopsis.memory.luna_attention import MemoryAttention, Projections


class LinformerAttention(MemoryAttention):
    """Attention to k mixtures of the positions: ``softmax(Q (E K)ᵀ/√width) E V`` with one learned E (k, n).

    Args:
        dim: width of queries and context.
        heads: attention heads; must divide ``dim``.
        length: most positions n a context may have; a shorter one meets the first columns of E.
        rank: number k of mixtures.
        dropout: probability of dropping an attention weight, 0 ≤ p < 1.
    """

    def __init__(self, dim: int, heads: int, length: int, rank: int, dropout: float = 0.0) -> None:
        super().__init__(Projections(dim), heads, dropout=dropout)
        if length < 1 or rank < 1:
            raise ValueError(f"length and rank must be at least 1, not {length} and {rank}")
        self.mixture = nn.Parameter(torch.randn(rank, length) / math.sqrt(length))

    def keys_values(
        self,
        context: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Tensor, Tensor, None]:
        """Projected, mixed and split into heads; items that are not real add nothing, and all mixtures are real."""
        length, most = context.shape[1], self.mixture.shape[1]
        if length > most:
            raise ValueError(f"{length} positions came, but the projection has columns for {most}")
        columns = self.mixture[:, :length]
        key, value = (
            self.split(columns @ blank(projected, mask))  # pads: the bias must not speak
            for projected in self.key_value(context)
        )
        return key, value, None


class LinformerLayer(nn.Module):
    """A post-norm Transformer layer with Linformer attention: k·n parameters more than the vanilla one.

    Args:
        dim: width of items.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        length: most positions n; longer inputs raise ValueError.
        rank: mixtures k of positions that are attended to.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> import torch
        >>> layer = LinformerLayer(dim=8, heads=2, feedforward=16, length=100, rank=4)
        >>> layer(torch.randn(1, 70, 8))[0].shape
        torch.Size([1, 70, 8])

    Source: Wang, Li, Khabsa, Fang & Ma, "Linformer", 2020, with E shared by keys, values and heads and without a bias,
    as in Long Range Arena. Departure: pads are zeroed before they are mixed (theirs are mixed in).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        length: int,
        rank: int = 256,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.attention = LinformerAttention(dim, heads, length, rank, attention_dropout)
        self.after = AfterAttention(dim, feedforward, dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch m dim"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch m dim"] | None]:
        """Every item attends to k mixtures of the real items; the memory passes by untouched.

        Args:
            x: items; what stands in masked places does not matter.
            memory: not used.
            mask: True where an item is real; None: all are.

        Returns:
            Items, 0 where they are not real, and the memory that came.

        Raises:
            ValueError: when the input is longer than ``length``.
        """
        x = blank(x, mask)
        x = self.after(x, self.attention(x, x, mask))
        return blank(x, mask), memory
