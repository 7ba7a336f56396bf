"""Induced set attention: each layer packs the sequence into a memory that begins anew.

    H = MAB(I, X)        X′ = MAB(X, H)        MAB(A, B): h = LN(A + Attn(A, B)), then LN(h + FFN(h))

The queries I are parameters of the layer, so the first half is exact for a stream: the layer is a memory too.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.feedforward import AfterAttention
from synopsis.memory.layers import blank
from synopsis.memory.luna import SharedLunaLayer
from synopsis.memory.luna_attention import MemoryAttention, Projections
from synopsis.memory.packing import Packing, PackingState


class InducedSetLayer(Packing):
    """ISAB with m inducing points; md parameters more than two vanilla layers.

    As a memory, ``read(update(init, x), x)`` is what the layer makes of x; latents need not be the items.

    Args:
        dim: width of items and inducing points.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        memory: number m of inducing points.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1; a stream folded by ``update`` drops none.

    Example:
        >>> layer = InducedSetLayer(dim=8, heads=2, feedforward=16, memory=4)
        >>> x = torch.randn(1, 100, 8)
        >>> state = layer.update(layer.update(layer.init(), x[:, 30:]), x[:, :30])
        >>> torch.allclose(layer.read(state, x), layer(x)[0], atol=1e-5)
        True

    Source: Lee, Lee, Kim, Kosiorek, Choi & Teh, "Set Transformer", ICML 2019. Departures: the two-layer feed-forward
    with GELU of all layers here, an output projection in attention, and N(0, 1) inducing points.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        memory: int = 16,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(heads=heads)
        if memory < 1:
            raise ValueError(f"memory must be at least 1 inducing point, not {memory}")
        self.dim, self.heads = dim, heads
        self.inducing = nn.Parameter(torch.randn(1, memory, dim))
        self.pack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.after_pack = AfterAttention(dim, feedforward, dropout)
        self.unpack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.after_unpack = AfterAttention(dim, feedforward, dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch m dim"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch m dim"] | None]:
        """Pack the real items by the layer's own points, then let every item ask those; what is carried passes by.

        Args:
            x: items; what stands in masked places does not matter.
            memory: not used.
            mask: True where an item is real; None: all are.

        Returns:
            Items, 0 where they are not real, and the memory that came.
        """
        x = blank(x, mask)
        induced = self.after_pack(self.inducing, self.pack(self.inducing, x, mask))
        return blank(self._answer(x, induced), mask), memory

    def query(self) -> Float[Tensor, "one heads queries width"]:
        """The inducing points as the items meet them."""
        return self.pack.query(self.inducing)

    def key_value(self, x: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the packing attention."""
        key, value, _ = self.pack.keys_values(x)
        return key, value

    def read(
        self, state: PackingState, latents: Float[Tensor, "batch latents dim"]
    ) -> Float[Tensor, "batch latents dim"]:
        """What becomes of these latents when they ask what was packed; reading changes nothing."""
        self.check_belongs(state, len(latents))
        packed = self.pack.output(state.summary.output.to(latents.dtype))
        return self._answer(latents, self.after_pack(self.inducing, packed))

    def _answer(self, x: Tensor, induced: Tensor) -> Tensor:
        answer: Tensor = self.after_unpack(x, self.unpack(x, induced))
        return answer


class SetLikeLayer(SharedLunaLayer):
    """Luna in its shared form, with a memory that is not carried: every layer starts from the one that the model has.

    As many parameters as :class:`SharedLunaLayer` without its normalisation of the memory.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature inside the feed-forward.
        attention_dropout: probability of dropping an attention weight.

    Example:
        >>> layer, memory = SetLikeLayer(dim=8, heads=2, feedforward=16), torch.randn(1, 4, 8)
        >>> torch.equal(layer(torch.randn(3, 100, 8), memory)[1], memory)
        True

    Source: the history of the code of Yorsh et al., 2024, where its name is SetLike.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, heads, feedforward, dropout, attention_dropout)
        del self.norm_memory

    def remember(
        self,
        memory: Float[Tensor, "batch cells dim"],
        packed: Float[Tensor, "batch cells dim"],  # noqa: ARG002  (it is not kept)
    ) -> Float[Tensor, "batch cells dim"]:
        """The memory as it came."""
        return memory
