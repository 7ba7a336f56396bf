"""The feed-forward sub-layer of the sequence layers: Linear, GELU, Linear, and the two places of its normalisation."""

from jaxtyping import Float
from torch import Tensor, nn

from synopsis.memory.layers_training import Dropout, Linear

NORM_EPSILON = 1e-6  # of every layer normalisation in the published code of ConvLuna


class GELUFeedForward(nn.Sequential):
    """``Linear(dim, hidden) GELU Dropout Linear(hidden, dim) Dropout``, without normalisation or skip.

    Args:
        dim: width of items.
        hidden: width between the two linear layers.
        dropout: probability of dropping a feature, after the GELU and at the end, 0 ≤ p < 1.

    Example:
        >>> import torch
        >>> GELUFeedForward(8, 16)(torch.randn(2, 3, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(
            Linear(dim, hidden),
            nn.GELU(),
            Dropout(dropout),
            Linear(hidden, dim),
            Dropout(dropout),
        )


class PostNormFeedForward(nn.Module):
    """``LN(x + FFN(x))``: the form of Luna and ConvLuna.

    Args:
        dim: width of items.
        hidden: width between the two linear layers.
        dropout: probability of dropping a feature, 0 ≤ p < 1.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.transform = GELUFeedForward(dim, hidden, dropout)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Transform each item by itself, add and normalise."""
        normed: Tensor = self.norm(x + self.transform(x))
        return normed


class PreNormFeedForward(nn.Module):
    """``x + FFN(LN(x))``: the form of the vanilla block in the code of ConvLuna.

    Args:
        dim: width of items.
        hidden: width between the two linear layers.
        dropout: probability of dropping a feature, 0 ≤ p < 1.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.transform = GELUFeedForward(dim, hidden, dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Normalise, transform each item by itself and add."""
        transformed: Tensor = self.transform(self.norm(x))
        return x + transformed


class AfterAttention(nn.Module):
    """What follows attention in a post-norm layer: ``h = LN(x + attended)``, then ``LN(h + FFN(h))``.

    Args:
        dim: width of items.
        hidden: width between the two linear layers.
        dropout: of features, of what was attended and in the feed-forward, 0 ≤ p < 1.
    """

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.feedforward = PostNormFeedForward(dim, hidden, dropout)

    def forward(
        self, x: Float[Tensor, "*batch dim"], attended: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch dim"]:
        """Add what was attended to the items that asked, normalise and transform."""
        transformed: Tensor = self.feedforward(self.norm(x + self.dropout(attended)))
        return transformed
