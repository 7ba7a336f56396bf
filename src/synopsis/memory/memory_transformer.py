"""Memory Transformers: learned tokens beside the sequence, as equals or as the only way through.

Source: Burtsev, Kuratov, Peganov & Sapunov, "Memory Transformer", 2020 (arXiv 2006.11527). The memory tokens of the
first layer are a parameter of the model; each layer hands what became of them to the next. Both layers are post-norm.
Departure: the paper's text was read in summaries only; where they are silent (one set of normalisations and
feed-forward layer for both in the first, one for each in the second) the layers follow the plain Transformer.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import AfterAttention
from synopsis.memory.layers import blank
from synopsis.memory.luna_attention import MemoryAttention, Projections

Mask = Bool[Tensor, "batch length"] | None
Items = Float[Tensor, "batch length dim"]
Memory = Float[Tensor, "batch m dim"]


class MemoryTransformerLayer(nn.Module):
    """Full attention over [M; X]: memory tokens are ordinary tokens; as many parameters as a vanilla layer.

    Args:
        dim: width of items and memory.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> import torch
        >>> layer = MemoryTransformerLayer(dim=8, heads=2, feedforward=16)
        >>> x, memory = layer(torch.randn(1, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape
        (torch.Size([1, 100, 8]), torch.Size([1, 4, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.attention = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.after = AfterAttention(dim, feedforward, dropout)

    def forward(self, x: Items, memory: Memory, mask: Mask = None) -> tuple[Items, Memory]:
        """Everything real attends to everything real; memory tokens always are.

        Args:
            x: items; what stands in masked places does not matter.
            memory: memory tokens; a batch of 1 serves all sequences.
            mask: True where an item is real; None: all are.

        Returns:
            Items, 0 where they are not real, and memory.
        """
        both = beside(memory, blank(x, mask))
        m = memory.shape[1]
        both = self.after(both, self.attention(both, both, with_memory(mask, m)))
        return blank(both[:, m:], mask), both[:, :m]


class BottleneckMemoryLayer(nn.Module):
    """The memory attends to [M; X], then the items attend to the memory only: no item sees another directly.

    Twice the parameters of a vanilla layer: each of the two has attention, normalisations and feed-forward of its own.

    Args:
        dim: width of items and memory.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> import torch
        >>> layer = BottleneckMemoryLayer(dim=8, heads=2, feedforward=16)
        >>> x, memory = layer(torch.randn(1, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape
        (torch.Size([1, 100, 8]), torch.Size([1, 4, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.pack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.after_pack = AfterAttention(dim, feedforward, dropout)
        self.unpack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.after_unpack = AfterAttention(dim, feedforward, dropout)

    def forward(self, x: Items, memory: Memory, mask: Mask = None) -> tuple[Items, Memory]:
        """First the memory takes in, then the items ask it.

        Args:
            x: items; what stands in masked places does not matter.
            memory: memory tokens; a batch of 1 serves all sequences.
            mask: True where an item is real; None: all are.

        Returns:
            Items, 0 where they are not real, and memory.
        """
        x = blank(x, mask)
        both = beside(memory, x)
        packed = self.pack(memory, both, with_memory(mask, memory.shape[1]))
        memory = self.after_pack(memory, packed)
        return blank(self.after_unpack(x, self.unpack(x, memory)), mask), memory


def beside(memory: Memory, x: Items) -> Float[Tensor, "batch both dim"]:
    """[M; X]."""
    return torch.cat([memory.expand(len(x), -1, -1), x], dim=1)


def with_memory(mask: Mask, m: int) -> Mask:
    """The mask of [M; X]: every memory token is real."""
    return None if mask is None else torch.cat([mask.new_ones(len(mask), m), mask], dim=1)
