"""The temporal latent bottleneck: a fast stream inside chunks, and a slow state that chunks write to once each."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.layers import blank
from synopsis.memory.layers_training import Dropout
from synopsis.memory.luna_attention import MemoryAttention, Projections
from synopsis.memory.pre_norm import AroundAttention
from synopsis.memory.segments import SegmentRecurrence
from synopsis.memory.vanilla import VanillaLayer


class TemporalLatentBottleneck(SegmentRecurrence):
    """Per chunk: self-attention among its items, which then ask the state; then the state asks them. Pre-norm.

    The state begins as zeros and has its sinusoidal positions added again at each chunk. As a stream it is the state
    and the items that wait for their chunk to fill; ``read`` treats latents as the items of one more chunk.

    Args:
        dim: width of items and state.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        memory: number s of state tokens.
        segment: real items b of a chunk.
        layers: self-attention layers on a chunk.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> memory = TemporalLatentBottleneck(dim=8, heads=2, feedforward=16, memory=4, segment=10)
        >>> x, state = memory(torch.randn(1, 103, 8))
        >>> x.shape, state.shape
        (torch.Size([1, 103, 8]), torch.Size([1, 4, 8]))

    Source: Didolkar et al., "Temporal Latent Bottleneck", 2022 (arXiv 2205.14794), as in Long Range Arena: attention
    without biases, Xavier-uniform weights. Classify from the mean of the state after a normalisation. Departures: the
    last chunk may be short; a chunk without real items leaves the state as it was, positions included; positions
    inside a chunk are always added, though the model may add its own before.
    """

    def __init__(
        self,
        dim: int = 64,
        heads: int = 4,
        feedforward: int = 128,
        memory: int = 16,
        segment: int = 32,
        layers: int = 2,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, segment, heads=heads, memory=memory)
        if memory < 1 or layers < 0:
            raise ValueError(f"{memory} state tokens and {layers} layers make no bottleneck")
        self.heads, self.memory = heads, memory
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            VanillaLayer(dim, heads, feedforward, dropout, attention_dropout) for _ in range(layers)
        )
        self.unpack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.around_unpack = AroundAttention(dim, feedforward, dropout)
        self.pack = MemoryAttention(Projections(dim), heads, dropout=attention_dropout)
        self.around_pack = AroundAttention(dim, feedforward, dropout)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform weights everywhere, and no biases in attention."""
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
            if isinstance(part, Projections):
                for projection in part.children():
                    projection.register_parameter("bias", None)

    def first(self, streams: int) -> Float[Tensor, "streams m dim"]:
        """Zeros: positions come with the first chunk."""
        return self.around_pack.norm.weight.new_zeros(streams, self.memory, self.dim)

    def step(
        self,
        x: Float[Tensor, "batch items dim"],
        memory: Float[Tensor, "batch m dim"],
        mask: Bool[Tensor, "batch items"] | None = None,
    ) -> tuple[Float[Tensor, "batch items dim"], Float[Tensor, "batch m dim"]]:
        """One chunk: items among themselves, items from the state, state from the items."""
        x = blank(self.dropout(x + sinusoids(x)), mask)
        memory = memory + sinusoids(memory)
        for layer in self.layers:
            x, _ = layer(x, None, mask)
        x = blank(self.around_unpack(self.unpack, x, memory), mask)
        return x, self.around_pack(self.pack, memory, x, mask)


def sinusoids(x: Float[Tensor, "*batch length dim"]) -> Float[Tensor, "length dim"]:
    """Sine and cosine of the position in turn, wavelengths 2π to 10000·2π, for as many places as x has."""
    length, dim = x.shape[-2:]
    position = torch.arange(length, device=x.device, dtype=torch.float64)
    pairs = torch.arange(0, dim, 2, device=x.device, dtype=torch.float64)
    angle = position[:, None] * torch.exp(pairs * (-math.log(10_000.0) / dim))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :dim].to(x.dtype)
