"""The Recurrent Memory Transformer, encoder form: memory tokens carry what a segment leaves to the next one."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.memory.memory_transformer import MemoryTransformerLayer
from synopsis.memory.segments import SegmentRecurrence


class RecurrentMemory(SegmentRecurrence):
    """A Memory Transformer run over segments: the memory tokens of the last layer open the next segment.

    As a stream its state is the memory and the items that wait for their segment to fill. ``read`` treats latents as
    the items of one more segment.

    Args:
        dim: width of items and memory.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        memory: number m of memory tokens; with 0 segments know nothing of each other.
        segment: real items of a segment, not counting the memory.
        layers: Transformer layers, the same for all segments.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.

    Example:
        >>> memory = RecurrentMemory(dim=8, heads=2, feedforward=16, memory=4, segment=10)
        >>> state = memory.update(memory.init((1,)), torch.randn(1, 103, 8))
        >>> int(state.filled), memory.read(state, torch.randn(1, 3, 8)).shape
        (3, torch.Size([1, 3, 8]))

    Source: Bulatov, Kuratov & Burtsev, "Recurrent Memory Transformer", NeurIPS 2022, encoder. Departures: segments are
    counted from the start, since a stream has no end to align to; CLS and SEP tokens are the model's business; the
    initial memory is N(0, 1); gradients flow through every segment (their truncation has no effect).
    """

    def __init__(
        self,
        dim: int = 64,
        heads: int = 4,
        feedforward: int = 128,
        memory: int = 16,
        segment: int = 128,
        layers: int = 2,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, segment, heads=heads)
        if memory < 0 or layers < 1:
            raise ValueError(f"{memory} memory tokens and {layers} layers make no recurrent memory")
        self.heads = heads
        self.initial = nn.Parameter(torch.randn(memory, dim))
        self.layers = nn.ModuleList(
            MemoryTransformerLayer(dim, heads, feedforward, dropout, attention_dropout)
            for _ in range(layers)
        )

    def first(self, streams: int) -> Float[Tensor, "streams m dim"]:
        """The learned memory tokens."""
        return self.initial.expand(streams, -1, -1)

    def step(
        self,
        x: Float[Tensor, "batch items dim"],
        memory: Float[Tensor, "batch m dim"],
        mask: Bool[Tensor, "batch items"] | None = None,
    ) -> tuple[Float[Tensor, "batch items dim"], Float[Tensor, "batch m dim"]]:
        """One segment through all layers."""
        for layer in self.layers:
            x, memory = layer(x, memory, mask)
        return x, memory
