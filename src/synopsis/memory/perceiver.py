"""Perceiver-style memory: latents ask the input and each other; the input itself is never updated.

A stack whose later layers ask the input again needs that input again, and its memory is carried: :class:`LatentLayer`
is for whole sequences. The first layer's latents are parameters, so it folds an endless stream exactly, and everything
after it works on the latents alone: :class:`LatentMemory`.

Source: Jaegle, Gimeno, Brock, Zisserman, Vinyals & Carreira, "Perceiver", ICML 2021; reading by queries: Jaegle et al.,
"Perceiver IO", ICLR 2022. Pre-norm, with a normalisation of their own for latents and input. Departures: input and
latents have one width, and N(0, 1) latents.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.layers import blank
from synopsis.memory.luna_attention import MemoryAttention, Projections
from synopsis.memory.packing import Packing, PackingState
from synopsis.memory.pre_norm import AroundAttention
from synopsis.memory.vanilla import VanillaLayer


class LatentLayer(nn.Module):
    """Latents attend to the items, then to each other; the items pass by unchanged.

    One vanilla layer's parameters for each of ``1 + layers``, and 2·dim for the normalisation of the items.

    Args:
        dim: width of items and latents.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        layers: self-attention layers of the latents.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> layer, x = LatentLayer(dim=8, heads=2, feedforward=16), torch.randn(1, 100, 8)
        >>> same, memory = layer(x, torch.randn(1, 4, 8))
        >>> same is x, memory.shape
        (True, torch.Size([1, 4, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        layers: int = 1,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.pack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.around_pack = AroundAttention(dim, feedforward, dropout)
        self.layers = nn.ModuleList(
            VanillaLayer(dim, heads, feedforward, dropout, attention_dropout) for _ in range(layers)
        )

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch m dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch m dim"]]:
        """The items as they came, and what became of the latents.

        Args:
            x: items; what stands in masked places does not matter.
            memory: the latents; a batch of 1 serves all sequences.
            mask: True where an item is real; None: all are.
        """
        context = blank(x, mask)
        return x, self._among(self.around_pack(self.pack, memory, context, mask))

    def query(self, memory: Float[Tensor, "batch m dim"]) -> Float[Tensor, "batch heads m width"]:
        """The latents as the items meet them."""
        return self.pack.query(self.around_pack.norm(memory))

    def key_value(self, x: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the packing attention."""
        key, value, _ = self.pack.keys_values(self.around_pack.norm_context(x))
        return key, value

    def digest(
        self,
        memory: Float[Tensor, "batch m dim"],
        attended: Float[Tensor, "batch heads m width"],
    ) -> Float[Tensor, "batch m dim"]:
        """Everything after the attention to the items."""
        return self._among(self.around_pack.after(memory, self.pack.output(attended)))

    def _among(self, memory: Tensor) -> Tensor:
        for layer in self.layers:
            memory, _ = layer(memory)
        return memory


class LatentMemory(Packing):
    """One latent layer as the memory of an endless stream, read by queries that attend to its latents.

    Args:
        dim: width of items and latents.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        memory: number m of learned latents.
        layers: self-attention layers of the latents.

    Example:
        >>> memory = LatentMemory(dim=8, heads=2, feedforward=16, memory=4)
        >>> state = memory.update(memory.init((1,)), torch.randn(1, 100, 8))
        >>> memory.read(state, torch.randn(1, 3, 8)).shape
        torch.Size([1, 3, 8])
    """

    def __init__(
        self,
        dim: int = 64,
        heads: int = 4,
        feedforward: int = 128,
        memory: int = 16,
        layers: int = 1,
    ) -> None:
        super().__init__(heads=heads)
        if memory < 1:
            raise ValueError(f"memory must be at least 1 latent, not {memory}")
        self.dim, self.heads = dim, heads
        self.latents = nn.Parameter(torch.randn(1, memory, dim))
        self.layer = LatentLayer(dim, heads, feedforward, layers)
        self.unpack = MemoryAttention(Projections(dim), heads)
        self.around_unpack = AroundAttention(dim, feedforward)

    def query(self) -> Float[Tensor, "one heads queries width"]:
        """The learned latents as the items meet them."""
        return self.layer.query(self.latents)

    def key_value(self, x: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the packing attention."""
        return self.layer.key_value(x)

    def memory_of(self, state: PackingState) -> Float[Tensor, "batch m dim"]:
        """What became of the latents: the memory that a whole sequence leaves in :class:`LatentLayer`."""
        attended = state.summary.output.to(self.latents.dtype)
        return self.layer.digest(self.latents, attended)

    def read(
        self, state: PackingState, latents: Float[Tensor, "batch latents dim"]
    ) -> Float[Tensor, "batch latents dim"]:
        """What these latents become when they ask the memory; reading changes nothing."""
        self.check_belongs(state, len(latents))
        answer: Tensor = self.around_unpack(self.unpack, latents, self.memory_of(state))
        return answer
