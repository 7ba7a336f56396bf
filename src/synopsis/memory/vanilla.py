"""The vanilla Transformer layer, pre-norm: the one to compare with, in bounded memory."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import NORM_EPSILON, PreNormFeedForward
from synopsis.memory.layers import blank
from synopsis.memory.layers_training import Dropout
from synopsis.memory.luna_attention import MemoryAttention, Projections


class VanillaLayer(nn.Module):
    """``x + Attn(LN x)``, then ``x + FFN(LN x)``; 4(d² + d) + (2df + f + d) + 4d parameters.

    Args:
        dim: width d of items.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width f.
        dropout: of features, after the attention and in the feed-forward, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> import torch
        >>> layer = VanillaLayer(dim=8, heads=2, feedforward=16)
        >>> x, memory = layer(torch.randn(1, 100, 8))
        >>> x.shape, memory
        (torch.Size([1, 100, 8]), None)

    Source: ``TBlock`` of the code of Yorsh et al., "On Difficulties of Attention Factorization through Shared Memory",
    2024 (arXiv 2404.00798), with its normalisations called by the names they have. Departures: dropout after the
    attention's output projection; pads are zeroed.
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
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.attention = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.dropout = Dropout(dropout)
        self.feedforward = PreNormFeedForward(dim, feedforward, dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch m dim"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch m dim"] | None]:
        """Every real item attends to all real items; the memory passes by untouched.

        Args:
            x: items; what stands in masked places does not matter.
            memory: not used.
            mask: True where an item is real; None: all are.

        Returns:
            Items, 0 where they are not real, and the memory that came.
        """
        x = blank(x, mask)
        normed = self.norm(x)
        x = x + self.dropout(self.attention(normed, normed, mask))
        return blank(self.feedforward(x), mask), memory
