"""The Transformer layer of Transformer neural processes: post-norm, ReLU, no dropout; its keys are its first tokens.

Tokens that nobody may attend to, as targets in most of these processes, then cost nothing as keys, and no mask over
pairs of tokens is needed to keep them out.
"""

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.layers import join_heads, split_heads

_FEEDFORWARD = 2  # hidden width of the feed-forward, in units of dim


class TransformerLayer(nn.Module):
    """Some tokens attend to the first of them, then feed-forward.

    Its weights are named, shaped and initialised as those of ``torch.nn.TransformerEncoderLayer``.

    Args:
        dim: width of tokens.
        heads: attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.self_attn = nn.MultiheadAttention(dim, heads)
        self.linear1 = nn.Linear(dim, _FEEDFORWARD * dim)
        self.linear2 = nn.Linear(_FEEDFORWARD * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        keys: int,
        mask: Bool[Tensor, "#batch 1 #asking keys"] | None = None,
        first: int = 0,
    ) -> Float[Tensor, "batch asking dim"]:
        """The tokens from ``first`` on, after they attended to the first ``keys`` tokens.

        Args:
            tokens: of which the first are keys.
            keys: how many; with 0 attention gives 0.
            mask: True where a token may attend to a key.
            first: tokens before it only serve as keys, which the last layer of a stack makes use of.
        """
        asking = tokens[:, first:] if first else tokens
        query, key, value = self.project(asking, tokens[:, :keys])
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.transform(asking, attended)

    def project(
        self, asking: Float[Tensor, "batch asking dim"], asked: Float[Tensor, "batch keys dim"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of some tokens, and keys and values of others, split into heads."""
        attention, dim = self.self_attn, asking.shape[-1]
        weights = attention.in_proj_weight.split([dim, 2 * dim])
        biases = attention.in_proj_bias.split([dim, 2 * dim])
        query = F.linear(asking, weights[0], biases[0])
        key, value = F.linear(asked, weights[1], biases[1]).chunk(2, dim=-1)
        heads = attention.num_heads
        return split_heads(query, heads), split_heads(key, heads), split_heads(value, heads)

    def transform(
        self,
        asking: Float[Tensor, "batch asking dim"],
        attended: Float[Tensor, "batch heads asking width"],
    ) -> Float[Tensor, "batch asking dim"]:
        """What tokens become when attention has given them this."""
        tokens = self.norm1(asking + self.self_attn.out_proj(join_heads(attended)))
        transformed: Tensor = self.norm2(tokens + self.linear2(F.relu(self.linear1(tokens))))
        return transformed


__all__ = ["TransformerLayer"]
