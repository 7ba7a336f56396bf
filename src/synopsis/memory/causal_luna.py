"""Causal Luna: attention through a shared memory in which no item hears from the future.

A softmax over the sequence would need all of it, so pack weights stay unnormalised and the sums are means over what has
come so far. For one head, with p the projected memory (cells × width) and a_j = ω(x_j W pᵀ) the pack weights of item j,

    logits_t = q_t · (1/t) Σ_{j≤t} k_j a_jᵀ          u_t = softmax(logits_t)          y_t = u_t · (1/t) Σ_{j≤t} a_j v_jᵀ

with ω(z) = log₂(1 + 2^z). The two sums are all that must be kept of the past. Three evaluations give the same:
``sequential`` (the definition), ``chunked`` (sums at the borders of chunks, products within) and ``step`` (one item and
a state).

Source: Ma et al., "Luna: Linear Unified Nested Attention", NeurIPS 2021, and its code. Departures: the mean is over
real items alone where there are pads; the state's sums are float64, so that a stream without end keeps learning; and
the layer around the attention is post-norm with the same feed-forward as its neighbours.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from synopsis.memory.base import Merges
from synopsis.memory.feedforward import AfterAttention
from synopsis.memory.layers import blank, join_heads, split_heads
from synopsis.memory.layers_training import Dropout, Linear
from synopsis.memory.ownership import Owner
from synopsis.states import State

Activation = Literal["softplus", "elu"]
_CHUNK = 64  # items whose products with each other are held at once


@dataclass(frozen=True)
class CausalLunaState(State):
    """What causal Luna keeps of each stream.

    Args:
        memory: the memory that the stream is attended through; it does not change.
        keys: Σ k_j a_jᵀ for each head.
        values: Σ a_j v_jᵀ for each head.
        count: items seen by each stream.
        fingerprint: of the weights that made it; other weights refuse it.
    """

    kind: ClassVar[str] = "causal-luna"
    memory: Float[Tensor, "batch cells dim"]
    keys: Float[Tensor, "batch heads width cells"]
    values: Float[Tensor, "batch heads cells width"]
    count: Int[Tensor, " batch"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless sums are float64, of this memory and of the streams that are counted."""
        if not self.keys.dtype == self.values.dtype == torch.float64:
            raise ValueError(f"sums are {self.keys.dtype}, {self.values.dtype}; not float64")
        if self.keys.mT.shape != self.values.shape:
            raise ValueError(f"sums are {self.keys.shape} and {self.values.shape}; they do not fit")
        streams, heads, width, cells = self.keys.shape
        if self.memory.shape != (streams, cells, heads * width) or len(self.count) != streams:
            raise ValueError(
                f"memory is {tuple(self.memory.shape)} with {len(self.count)} counts, "
                f"sums are {tuple(self.keys.shape)}; they do not fit"
            )


class _Items(NamedTuple):
    """Projected items, each ``(batch, heads, length, width)``; pack weights ``(batch, heads, length, cells)``."""

    query: Tensor
    key: Tensor
    value: Tensor
    pack: Tensor


class CausalLuna(Owner):
    """The attention alone: weights are 6·dim² (5·dim² with ``values="key"``), and a bias for each matrix.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        attention_dropout: probability of dropping a weight of the softmax over cells.
        values: ``"own"`` matrix for values, or the ``"key"`` matrix (tied).
        activation: what makes pack weights positive: ``"softplus"`` with β = ln 2, or 1 + ``"elu"``.

    Example:
        >>> import torch
        >>> attention = CausalLuna(dim=8, heads=2)
        >>> attention(torch.randn(3, 100, 8), torch.randn(3, 4, 8)).shape
        torch.Size([3, 100, 8])
    """

    merges: ClassVar[Merges] = (
        None  # the sums would add up, but each item has been answered where it stood
    )

    def __init__(
        self,
        dim: int,
        heads: int,
        attention_dropout: float = 0.0,
        values: Literal["own", "key"] = "own",
        activation: Activation = "softplus",
    ) -> None:
        super().__init__(heads=heads, activation=activation, values=values)
        if dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        if values not in ("own", "key") or activation not in ("softplus", "elu"):
            raise ValueError(f"no values {values!r} with activation {activation!r}")
        self.dim, self.heads, self.activation = dim, heads, activation
        self.to_memory_query = Linear(dim, dim)
        self.to_pack = Linear(dim, dim)
        self.to_query = Linear(dim, dim)
        self.to_key = Linear(dim, dim)
        self.to_value = Linear(dim, dim) if values == "own" else None
        self.to_output = Linear(dim, dim)
        self.dropout = Dropout(attention_dropout)
        self._initialise()

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch cells dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """What each item finds in itself and in those before it: :meth:`chunked`."""
        return self.chunked(x, memory, mask)

    def sequential(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch cells dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> Float[Tensor, "batch length dim"]:
        """Item after item, as the definition reads: slow, and what the others are held against."""
        items, counts = self._items(x, memory, mask), _counts(x, mask)
        keys = items.key.unsqueeze(-1) * items.pack.unsqueeze(-2)
        values = items.pack.unsqueeze(-1) * items.value.unsqueeze(-2)
        answers = [x.new_zeros(*items.query.shape[:2], 0, items.query.shape[-1])]
        for now in range(x.shape[1]):
            past = slice(now + 1)
            met = counts[:, :, now : now + 1]
            means = ((sums[:, :, past].sum(2) / met) for sums in (keys, values))
            answers.append(self._answer(items.query[:, :, now : now + 1], *means))
        return blank(self.to_output(join_heads(torch.cat(answers, 2))), mask)

    def chunked(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch cells dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
        chunk: int = _CHUNK,
    ) -> Float[Tensor, "batch length dim"]:
        """Chunk after chunk: what is held grows with length·(cells + chunk), not with length·cells·width.

        Args:
            x: the sequence.
            memory: the shared memory; a batch of 1 serves all sequences.
            mask: True where an item is real; pads are not heard and come out as 0.
            chunk: items in a chunk, at least 1.
        """
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, not {chunk}")
        items, counts = self._items(x, memory, mask), _counts(x, mask)
        keys, values = self._sums(items)
        answers = [x.new_zeros(*items.query.shape[:2], 0, items.query.shape[-1])]
        pieces = (t.split(chunk, dim=2) for t in (*items, counts))
        for query, key, value, pack, count in zip(*pieces, strict=True):
            logits = query @ keys.to(x.dtype) + (query @ key.mT).tril() @ pack
            weights = self.dropout((logits / count).softmax(-1))
            found = weights @ values.to(x.dtype) + (weights @ pack.mT).tril() @ value
            answers.append(found / count)
            keys = keys + (key.mT @ pack).double()
            values = values + (pack.mT @ value).double()
        return blank(self.to_output(join_heads(torch.cat(answers, 2))), mask)

    def init(self, memory: Float[Tensor, "batch cells dim"]) -> CausalLunaState:
        """A state that has seen nothing, for streams attended through this memory."""
        items = self._items(memory[:, :0], memory, None)
        count = torch.zeros(len(memory), dtype=torch.int64, device=memory.device)
        return CausalLunaState(memory.clone(), *self._sums(items), count, self.fingerprint)

    def step(
        self,
        state: CausalLunaState,
        x: Float[Tensor, "batch dim"],
        mask: Bool[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch dim"], CausalLunaState]:
        """What the next item finds, and the state after it.

        Args:
            state: of the items before.
            x: one item of each stream.
            mask: True where it is real; others find 0 and leave no trace.

        Raises:
            ValueError: when the state belongs to other weights, or is of another number of streams.
        """
        self.check_belongs(state, len(x))
        seen = None if mask is None else mask.unsqueeze(1)
        items = self._items(x.unsqueeze(1), state.memory, seen)
        count = state.count + (1 if mask is None else mask)
        keys = state.keys + (items.key.mT @ items.pack).double()
        values = state.values + (items.pack.mT @ items.value).double()
        met = count.clamp(min=1)[:, None, None, None]
        means = ((sums / met).to(x.dtype) for sums in (keys, values))
        found = self.to_output(join_heads(self._answer(items.query, *means)))
        after = replace(state, keys=keys, values=values, count=count)
        return blank(found, seen).squeeze(1), after

    def _answer(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return self.dropout((query @ keys).softmax(-1)) @ values

    def _items(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> _Items:
        """Projected; a pad has pack weight 0, so nothing hears it."""
        x, scale = blank(x, mask), math.sqrt(self.dim / self.heads)
        key = self.to_key(x)
        value = key if self.to_value is None else self.to_value(x)
        asked, packing, query, key, value = (
            split_heads(t, self.heads)
            for t in (self.to_memory_query(memory), self.to_pack(x), self.to_query(x), key, value)
        )
        scores = packing @ (asked / scale).mT
        pack = 1.0 + F.elu(scores) if self.activation == "elu" else _softplus(scores)
        if mask is not None:
            pack = pack.masked_fill(~mask[:, None, :, None], 0.0)
        return _Items(query / scale, key, value, pack)

    def _sums(self, items: _Items) -> tuple[Tensor, Tensor]:
        """Both sums over nothing."""
        batch, heads, _, cells = items.pack.shape
        zeros = items.pack.new_zeros(batch, heads, cells, self.dim // heads, dtype=torch.float64)
        return zeros.mT.clone(memory_format=torch.contiguous_format), zeros

    def _initialise(self) -> None:
        """Xavier-uniform with gain 1/√2 for what enters, 1 and no bias for what leaves."""
        for name, weight in self.named_parameters():
            leaves = name.startswith("to_output")
            if name.endswith("weight"):
                nn.init.xavier_uniform_(weight, gain=1.0 if leaves else 1.0 / math.sqrt(2.0))
            elif leaves:
                nn.init.zeros_(weight)


class CausalLunaLayer(nn.Module):
    """Causal Luna attention with a norm, and a feed-forward with a norm; the memory passes through as it came.

    Args:
        dim: width of items and memory cells.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width of the feed-forward.
        dropout: probability of dropping a feature in the feed-forward and of what the attention adds.
        attention_dropout: probability of dropping a weight of the softmax over cells.
        values: ``"own"`` matrix for values, or the ``"key"`` matrix.
        activation: see :class:`CausalLuna`.

    Example:
        >>> import torch
        >>> layer = CausalLunaLayer(dim=8, heads=2, feedforward=16)
        >>> x, memory = layer(torch.randn(3, 100, 8), torch.randn(1, 4, 8))
        >>> x.shape, memory.shape
        (torch.Size([3, 100, 8]), torch.Size([1, 4, 8]))
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        values: Literal["own", "key"] = "own",
        activation: Activation = "softplus",
    ) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.attention = CausalLuna(dim, heads, attention_dropout, values, activation)
        self.after = AfterAttention(dim, feedforward, dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch cells dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch cells dim"]]:
        """The sequence for the next layer, in which nothing hears from the future, and the memory unchanged."""
        x = blank(x, mask)
        x = self.after(x, self.attention(x, memory, mask))
        return blank(x, mask), memory


def _softplus(x: Tensor) -> Tensor:
    """log₂(1 + 2ˣ)."""
    return F.softplus(x, beta=math.log(2.0))


def _counts(x: Tensor, mask: Tensor | None) -> Tensor:
    """Real items up to each, at least 1: (batch, 1, length, 1)."""
    real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
    return real.cumsum(1).clamp(min=1).to(x.dtype)[:, None, :, None]
