"""From ids or real values to items with positions, and the class vector in front of them.

Source: the code of Yorsh et al., 2024 (arXiv 2404.00798), ``TEmbedding`` and ``IEmbedding``; the fixed positions and
the class vector that has one too are those of Tay et al., "Long Range Arena", 2020. Departures: positions are looked
up by index, so that shorter inputs need no padding; ids and lengths that do not fit are named in an error.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.layers_training import Dropout

Positions = Literal["learned", "sinusoidal", "none"]
PAD = 0  # the id of a pad
_VALUE_BIAS_STD = 0.1


class Embedding(nn.Module):
    """Items with positions, after an optional class vector; subclasses say what an item is made of.

    Args:
        dim: width of items.
        length: most items of an input, the class vector not counted.
        positions: a table learned from zero, fixed sines and cosines, or none.
        with_class: put a class vector, without a position, in front.
        dropout: of features, 0 ≤ p < 1.
    """

    def __init__(
        self, dim: int, length: int, positions: Positions, with_class: bool, dropout: float
    ) -> None:
        super().__init__()
        self.length = length
        self.positions: Tensor | None
        if positions == "learned":
            self.positions = nn.Parameter(torch.zeros(length, dim))
        elif positions in ("sinusoidal", "none"):
            fixed = sinusoids(length, dim) if positions == "sinusoidal" else None
            self.register_buffer("positions", fixed, persistent=False)
        else:
            raise ValueError(
                f"positions are {positions!r}; they may be learned, sinusoidal or none"
            )
        self.class_vector = nn.Parameter(self._first_class_vector(dim)) if with_class else None
        self.dropout = Dropout(dropout)

    def items(self, inputs: Tensor) -> Float[Tensor, "batch length dim"]:
        """An item for each input, before positions."""
        raise NotImplementedError

    def _first_class_vector(self, dim: int) -> Float[Tensor, "1 dim"]:
        raise NotImplementedError

    def forward(
        self,
        inputs: Int[Tensor, "batch length"] | Float[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch items dim"], Bool[Tensor, "batch items"] | None]:
        """Items and which of them are real.

        Args:
            inputs: at most ``length`` of them.
            mask: True where an input is real; None: all are.

        Raises:
            ValueError: when there are more inputs than positions.
        """
        if inputs.shape[1] > self.length:
            raise ValueError(f"an input has {inputs.shape[1]} items; the model takes {self.length}")
        items = self.items(inputs)
        if self.positions is not None:
            items = items + self.positions[: inputs.shape[1]]
        if self.class_vector is not None:
            items = torch.cat([self.class_vector.expand(len(items), 1, -1), items], dim=1)
            mask = None if mask is None else F.pad(mask, (1, 0), value=True)
        return self.dropout(items), mask


class TokenEmbedding(Embedding):
    """Ids by a table N(0, 1) whose first row, the pad's, is 0.

    Args:
        vocabulary: number of ids, the pad's included.
        dim: width of items.
        length: most ids of an input.
        positions: a table learned from zero, fixed sines and cosines, or none.
        with_class: put a class vector in front.
        dropout: of features, 0 ≤ p < 1.
    """

    def __init__(
        self,
        vocabulary: int,
        dim: int,
        length: int,
        positions: Positions = "learned",
        with_class: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, length, positions, with_class, dropout)
        self.table = nn.Embedding(vocabulary, dim, padding_idx=PAD)

    def items(self, inputs: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """A row of the table for each id."""
        embedded: Tensor = self.table(inputs)
        return embedded

    def _first_class_vector(self, dim: int) -> Float[Tensor, "1 dim"]:
        bound = math.sqrt(6.0 / (1 + dim))  # Glorot's for a row
        return torch.empty(1, dim).uniform_(-bound, bound)


class ValueEmbedding(Embedding):
    """A real number x, such as the brightness of a pixel, as x·w + b.

    Args:
        dim: width of items.
        length: most numbers of an input.
        positions: a table learned from zero, fixed sines and cosines, or none.
        with_class: put a class vector in front.
        dropout: of features, 0 ≤ p < 1.
    """

    def __init__(
        self,
        dim: int,
        length: int,
        positions: Positions = "learned",
        with_class: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim, length, positions, with_class, dropout)
        self.weight = nn.Parameter(torch.randn(dim))
        self.bias = nn.Parameter(_VALUE_BIAS_STD * torch.randn(dim))

    def items(self, inputs: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """Each number on the same line."""
        return inputs.unsqueeze(-1) * self.weight + self.bias

    def _first_class_vector(self, dim: int) -> Float[Tensor, "1 dim"]:
        return torch.randn(1, dim)


def sinusoids(length: int, dim: int) -> Float[Tensor, "length dim"]:
    """Sines in the first half of the features and cosines in the second, wavelengths from 2π to 20,000π.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """
    half = torch.arange((dim + 1) // 2) / max(1, dim // 2)
    angle = torch.arange(length).unsqueeze(1) * torch.exp(-math.log(10_000.0) * half)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :dim]


__all__ = ["PAD", "Embedding", "Positions", "TokenEmbedding", "ValueEmbedding", "sinusoids"]
