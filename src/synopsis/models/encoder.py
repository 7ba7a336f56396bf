"""A stack of sequence layers, with the memory that they hand on where they have one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from synopsis.models.embeddings import Embedding
from synopsis.models.layers import build_layer, carries_memory


@dataclass(frozen=True)
class Architecture:
    """What an encoder is made of.

    Args:
        layer: name of the layers, a key of :data:`synopsis.models.layers.LAYERS`.
        layers: how many.
        dim: width of items and memory.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward layers.
        memory: vectors of the learned memory, drawn from N(0, 1); 0 for none.
        dropout: of features, 0 ≤ p < 1.
        attention_dropout: of attention weights, 0 ≤ p < 1.
        recompute: keep each layer's inputs only, and compute the layer again for the gradient.
        options: what this kind of layer takes besides.
    """

    layer: str
    layers: int
    dim: int
    heads: int
    feedforward: int
    memory: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    recompute: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError where layers need a memory and there is none, or the other way round."""
        if carries_memory(self.layer) != (self.memory > 0):
            wants = "needs a memory" if carries_memory(self.layer) else "takes no memory"
            raise ValueError(f"{self.layer} {wants}, but memory is {self.memory}")


class Encoder(nn.Module):
    """Embedding, then layers ``x, memory = layer(x, memory, mask)``.

    Args:
        embedding: of the inputs.
        architecture: of the rest.
    """

    def __init__(self, embedding: Embedding, architecture: Architecture) -> None:
        super().__init__()
        self.embedding, self.recompute = embedding, architecture.recompute
        self.layers = nn.ModuleList(build_layer(architecture) for _ in range(architecture.layers))
        size = (architecture.memory, architecture.dim)
        self.memory = nn.Parameter(torch.randn(size)) if architecture.memory else None

    def forward(
        self, inputs: Tensor, mask: Bool[Tensor, "batch length"] | None
    ) -> tuple[
        Float[Tensor, "batch items dim"],
        Float[Tensor, "batch m dim"] | None,
        Bool[Tensor, "batch items"] | None,
    ]:
        """Items and memory after the last layer, and which items are real."""
        x, mask = self.embedding(inputs, mask)
        memory = None if self.memory is None else self.memory.expand(len(x), -1, -1)
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x, memory = checkpoint(layer, x, memory, mask, use_reentrant=False)
            else:
                x, memory = layer(x, memory, mask)
        return x, memory, mask


__all__ = ["Architecture", "Encoder"]
