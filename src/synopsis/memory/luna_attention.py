"""Attention to and from a shared memory: projections that may be shared, a temperature, a filter on keys and values.

    pack     memory asks the sequence      m × n
    unpack   the sequence asks what was packed      n × m

Both are one class; what the literature varies are its parts: which projections exist and who shares them, what the
query is divided by, and what keys and values pass through first.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from synopsis.attention import scaled_dot_product_attention
from synopsis.memory.layers import join_heads, split_heads
from synopsis.memory.layers_training import Linear
from synopsis.memory.sequence_filters import SequenceFilter

TemperatureKind = Literal["unit", "sqrt", "learn"]
Values = Literal["own", "key", "input"]


class Temperature(nn.Module):
    """What a query is divided by: ``"unit"`` 1, ``"sqrt"`` √width, ``"learn"`` exp of a weight that begins at 0."""

    def __init__(self, kind: TemperatureKind, width: int) -> None:
        super().__init__()
        if kind not in ("unit", "sqrt", "learn"):
            raise ValueError(f"temperature must be unit, sqrt or learn, not {kind!r}")
        self.kind, self.width = kind, width
        self.log = nn.Parameter(torch.zeros(1)) if kind == "learn" else None

    def forward(self) -> Tensor | float:
        """The temperature; a tensor where it is learned."""
        if self.log is not None:
            return self.log.exp()
        return math.sqrt(self.width) if self.kind == "sqrt" else 1.0

    def extra_repr(self) -> str:
        """Which one."""
        return repr(self.kind)


class Projections(nn.Module):
    """The linear maps of one attention, or of several that share them.

    Args:
        dim: width of everything.
        values: ``"own"`` matrix, the ``"key"`` matrix (tied), or the ``"input"`` as it is.
        output: whether heads are mixed by a last matrix.
    """

    def __init__(self, dim: int, values: Values = "own", output: bool = True) -> None:
        super().__init__()
        if values not in ("own", "key", "input"):
            raise ValueError(f"values must be own, key or input, not {values!r}")
        self.values = values
        self.to_query = Linear(dim, dim)
        self.to_key = Linear(dim, dim)
        self.to_value = Linear(dim, dim) if values == "own" else None
        self.to_output = Linear(dim, dim) if output else None

    def key_value(self, context: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """Keys and values, heads side by side."""
        key: Tensor = self.to_key(context)
        if self.to_value is not None:
            return key, self.to_value(context)
        return key, key if self.values == "key" else context

    def output(self, attended: Float[Tensor, "batch length dim"]) -> Tensor:
        """The last matrix, where there is one."""
        return attended if self.to_output is None else self.to_output(attended)


class MemoryAttention(nn.Module):
    """Multi-head attention between a memory and a sequence, exact and in bounded memory.

    Args:
        projections: its linear maps.
        heads: attention heads; must divide the width.
        temperature: what queries are divided by.
        filtering: what projected keys and values pass through, or None.
        dropout: probability of dropping an attention weight, 0 ≤ p < 1.
        borrowed: the projections are another attention's, and only that one owns them as weights.

    Example:
        >>> import torch
        >>> pack = MemoryAttention(Projections(8), heads=2)
        >>> pack(torch.randn(1, 4, 8), torch.randn(1, 100, 8)).shape
        torch.Size([1, 4, 8])
    """

    def __init__(
        self,
        projections: Projections,
        heads: int,
        *,
        temperature: TemperatureKind = "sqrt",
        filtering: SequenceFilter | None = None,
        dropout: float = 0.0,
        borrowed: bool = False,
    ) -> None:
        super().__init__()
        dim = projections.to_query.in_features
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.dim, self.heads, self.dropout = dim, heads, dropout
        self.temperature = Temperature(temperature, dim // heads)
        self.filtering = filtering
        if not borrowed:
            self.projections = projections
        self._projections = (projections,)  # in a tuple, so that a loan is no second set of weights

    def settings(self) -> dict[str, Any]:
        """What it computes with, beside its weights: words that files keep, and that must not change."""
        filtering = self.filtering
        return {
            "heads": self.heads,
            "temperature": self.temperature.kind,
            "values": self._projections[0].values,
            "output": self._projections[0].to_output is not None,
            "filter": None if filtering is None else filtering.settings(),
        }

    def forward(
        self,
        query_input: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend from one to the other; attention over nothing is 0.

        Args:
            query_input: what asks; a batch of 1 asks all contexts.
            context: what is asked.
            mask: True where an item of the context is real.
        """
        key, value, seen = self.keys_values(context, mask)
        return self.output(self.attend(self.query(query_input), key, value, seen))

    def attend(
        self,
        query: Float[Tensor, "batch heads queries width"],
        key: Float[Tensor, "batch heads keys width"],
        value: Float[Tensor, "batch heads keys width"],
        mask: Bool[Tensor, "batch keys"] | None,
    ) -> Float[Tensor, "batch heads queries width"]:
        """Softmax attention of queries that are already divided by the temperature."""
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
            scale=1.0,
        )

    def query(
        self, query_input: Float[Tensor, "*batch queries dim"]
    ) -> Float[Tensor, "*batch heads queries width"]:
        """Projected, split into heads and divided by the temperature."""
        return split_heads(self._projections[0].to_query(query_input), self.heads) / (
            self.temperature()
        )

    def keys_values(
        self,
        context: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Projected, filtered and split into heads, with the mask that belongs to what the filter left."""
        key, value = self._projections[0].key_value(context)
        if self.filtering is not None:
            tied = value is key
            key, seen = self.filtering(key, mask)
            value, mask = (key, seen) if tied else self.filtering(value, mask)
        return self.split(key), self.split(value), mask

    def split(self, x: Float[Tensor, "batch length dim"]) -> Tensor:
        """(batch, heads, length, width), with channels next to each other."""
        heads = split_heads(x, self.heads)
        # Filters leave time innermost, and fused kernels read channels as if they were.
        return heads if heads.stride(-1) == 1 else heads.contiguous()

    def output(
        self, attended: Float[Tensor, "batch heads queries width"]
    ) -> Float[Tensor, "batch queries dim"]:
        """Heads joined, and mixed where there is a matrix for it."""
        return self._projections[0].output(join_heads(attended))

    def key_value(self, context: Float[Tensor, "batch length dim"]) -> tuple[Tensor, Tensor]:
        """Projected keys and values before any filter."""
        return self._projections[0].key_value(context)

    def weights(
        self,
        query_input: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The attention weights as one matrix, for looking at: never used in training, where they are never stored."""
        key, _, seen = self.keys_values(context, mask)
        scores = self.query(query_input) @ key.mT
        if seen is None:
            return scores.softmax(-1)
        ruled_out = ~seen[:, None, None, :]
        return scores.masked_fill(ruled_out, -math.inf).softmax(-1).masked_fill(ruled_out, 0.0)

    def extra_repr(self) -> str:
        """Heads and dropout."""
        return f"heads={self.heads}, dropout={self.dropout}"
