"""Pre-norm attention from one set of items to another, as memories that never normalise their own skip need it."""

from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import NORM_EPSILON, PreNormFeedForward
from synopsis.memory.layers_training import Dropout
from synopsis.memory.luna_attention import MemoryAttention


class AroundAttention(nn.Module):
    """``h = x + attention(LN x, LN context)``, then ``h + FFN(LN h)``; the attention itself belongs to the caller.

    Args:
        dim: width of items and context.
        feedforward: hidden width.
        dropout: of features, after the attention and in the feed-forward, 0 ≤ p < 1.
    """

    def __init__(self, dim: int, feedforward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.norm_context = nn.LayerNorm(dim, eps=NORM_EPSILON)
        self.dropout = Dropout(dropout)
        self.feedforward = PreNormFeedForward(dim, feedforward, dropout)

    def forward(
        self,
        attention: MemoryAttention,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys dim"],
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Normalise both, let x attend to the real items of the context, add and transform."""
        return self.after(x, attention(self.norm(x), self.norm_context(context), mask))

    def after(
        self, x: Float[Tensor, "batch queries dim"], attended: Float[Tensor, "batch queries dim"]
    ) -> Float[Tensor, "batch queries dim"]:
        """Add what was attended to and transform."""
        transformed: Tensor = self.feedforward(x + self.dropout(attended))
        return transformed
