"""Linear attention: a softmax replaced by a product of positive features, so that the sums over keys come first.

    output = φ(Q) (φ(K)ᵀ V) / (φ(Q) Σ φ(K)),    φ(x) = elu(x) + 1

φ(K)ᵀV and Σφ(K) are sums over items: they add up in any order, and are all that must be kept of a stream.

Source: Katharopoulos, Vyas, Pappas & Fleuret, "Transformers are RNNs", ICML 2020. Departures: no small number is added
to the denominator, which is positive wherever anything was seen (of nothing, the answer is 0); streams are summed in
float64.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from synopsis.memory.base import Merges
from synopsis.memory.feedforward import AfterAttention
from synopsis.memory.layers import blank, join_heads, split_heads
from synopsis.memory.luna_attention import Projections
from synopsis.memory.ownership import Owner
from synopsis.states import State

_PIECE = 1024  # items of a stream turned into float64 at once
_CHUNK = 64  # items of the causal form that see each other through a matrix of scores


@dataclass(frozen=True)
class LinearAttentionState(State):
    """The two sums of linear attention.

    Args:
        numerator: Σ φ(k) vᵀ.
        denominator: Σ φ(k).
        count: items seen by each stream.
        fingerprint: of the weights that made it; other weights refuse it.
    """

    kind: ClassVar[str] = "linear-attention"
    numerator: Float[Tensor, "batch heads width width"]
    denominator: Float[Tensor, "batch heads width"]
    count: Int[Tensor, " batch"]
    fingerprint: str

    def check(self) -> None:
        """Raise ValueError unless sums are float64 and describe the same rows."""
        for name, sums in (("numerator", self.numerator), ("denominator", self.denominator)):
            if sums.dtype != torch.float64:
                raise ValueError(f"{name} is {sums.dtype}; it must be float64")
        if self.numerator.shape[:-1] != self.denominator.shape:
            raise ValueError(
                f"numerator {tuple(self.numerator.shape)} and denominator "
                f"{tuple(self.denominator.shape)} are of different rows"
            )
        if self.count.shape != self.denominator.shape[:1]:
            raise ValueError(
                f"{tuple(self.count.shape)} counts for {self.denominator.shape[0]} streams"
            )


def positive_features(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """φ(x) = elu(x) + 1: x + 1 above zero, exp(x) below, where (exp(x) − 1) + 1 would round small values to 0."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def linear_attention(
    query: Float[Tensor, "*batch queries width"],
    key: Float[Tensor, "*batch keys width"],
    value: Float[Tensor, "*batch keys value_width"],
    mask: Bool[Tensor, "*batch keys"] | None = None,
) -> Float[Tensor, "*batch queries value_width"]:
    """Linear attention of every query to all real keys; 0 where there are none.

    Args:
        query: before its features are taken.
        key: before its features are taken.
        value: what the answer is an average of.
        mask: True where a key is real; broadcasts.

    Example:
        >>> query, key, value = torch.randn(3, 2, 100, 8).unbind()
        >>> linear_attention(query, key, value).shape
        torch.Size([2, 100, 8])
    """
    dtype = torch.promote_types(query.dtype, torch.float32)  # sums in half precision lose items
    features = positive_features(key.to(dtype))
    if mask is not None:
        features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
    sums = features.transpose(-2, -1) @ value.to(dtype), features.sum(-2)
    return _answer(query.to(dtype), *sums).to(query.dtype)


def causal_linear_attention(
    query: Float[Tensor, "*batch length width"],
    key: Float[Tensor, "*batch length width"],
    value: Float[Tensor, "*batch length value_width"],
    mask: Bool[Tensor, "*batch length"] | None = None,
    chunk: int = _CHUNK,
) -> Float[Tensor, "*batch length value_width"]:
    """Linear attention of query t to the real keys j ≤ t, in time and memory linear in the length.

    Items of one chunk see each other through a (chunk, chunk) matrix, and those before through the two sums.

    Args:
        query: before its features are taken.
        key: before its features are taken.
        value: what the answer is an average of.
        mask: True where a key is real; broadcasts.
        chunk: items of a chunk; any number gives the same answer.

    Example:
        >>> query, key, value = torch.randn(3, 2, 100, 8).unbind()
        >>> last = linear_attention(query, key, value)[:, -1]
        >>> torch.allclose(causal_linear_attention(query, key, value)[:, -1], last, atol=1e-5)
        True
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    asked, features = (positive_features(t.to(dtype)) for t in (query, key))
    value = value.to(dtype)
    if mask is not None:
        features = features.masked_fill(~mask.unsqueeze(-1), 0.0)
    numerator = value.new_zeros(*key.shape[:-2], key.shape[-1], value.shape[-1])
    denominator = value.new_zeros(*key.shape[:-2], key.shape[-1])
    answers = [value[..., :0, :]]
    pieces = (t.split(chunk, dim=-2) for t in (asked, features, value))
    for q, k, v in zip(*pieces, strict=True):
        scores = (q @ k.transpose(-2, -1)).tril()
        above = scores @ v + q @ numerator
        below = scores.sum(-1) + (q @ denominator.unsqueeze(-1)).squeeze(-1)
        answers.append(_ratio(above, below))
        numerator = numerator + k.transpose(-2, -1) @ v
        denominator = denominator + k.sum(-2)
    return torch.cat(answers, dim=-2).to(query.dtype)


def _answer(query: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    asked = positive_features(query)
    return _ratio(asked @ numerator, (asked @ denominator.unsqueeze(-1)).squeeze(-1))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    nothing = (below == 0).unsqueeze(-1)
    return (above / below.unsqueeze(-1).masked_fill(nothing, 1.0)).masked_fill(nothing, 0.0)


class LinearAttention(Owner):
    """Multi-head linear attention, as a sub-layer and as the memory of an endless stream; 4(d² + d) parameters.

    Args:
        dim: width of items and latents.
        heads: attention heads; must divide ``dim``.

    Example:
        >>> memory = LinearAttention(dim=8, heads=2)
        >>> x, latents = torch.randn(1, 100, 8), torch.randn(1, 3, 8)
        >>> state = memory.update(memory.update(memory.init(), x[:, :40]), x[:, 40:])
        >>> torch.allclose(memory.read(state, latents), memory(latents, x), atol=1e-5)
        True
    """

    merges: ClassVar[Merges] = "any order"

    def __init__(self, dim: int = 64, heads: int = 4) -> None:
        super().__init__(heads=heads)
        if heads < 1 or dim % heads:
            raise ValueError(f"dim {dim} does not divide into {heads} heads")
        self.dim, self.heads = dim, heads
        self.projections = Projections(dim)

    def forward(
        self,
        query_input: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys dim"],
        mask: Bool[Tensor, "batch keys"] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch queries dim"]:
        """What ``read`` answers after ``update`` with the whole context, in the context's dtype: for training."""
        query, key, value = self._query(query_input), *self._keys_values(context, mask)
        seen = None if mask is None else mask.unsqueeze(1)
        attend = causal_linear_attention if is_causal else linear_attention
        return self.projections.output(join_heads(attend(query, key, value, seen)))

    def init(self, batch_shape: tuple[int, ...] = (1,)) -> LinearAttentionState:
        """A state that has seen nothing; ``batch_shape`` is ``(streams,)``."""
        width, device = self.dim // self.heads, self.projections.to_key.weight.device
        rows = (*batch_shape, self.heads, width)
        sums = torch.zeros(*rows, width, dtype=torch.float64, device=device)
        count = torch.zeros(batch_shape, dtype=torch.int64, device=device)
        return LinearAttentionState(sums, sums.new_zeros(rows), count, self.fingerprint)

    def update(
        self,
        state: LinearAttentionState,
        x: Float[Tensor, "batch length dim"],
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> LinearAttentionState:
        """Add items to the sums; ValueError when the state belongs to other weights or streams."""
        self.check_belongs(state, len(x))
        above, below = state.numerator, state.denominator
        for start in range(0, x.shape[1], _PIECE):
            piece = slice(start, start + _PIECE)
            seen = None if mask is None else mask[:, piece]
            key, value = self._keys_values(x[:, piece], seen)
            features = positive_features(key.double())
            if seen is not None:
                features = features.masked_fill(~seen[:, None, :, None], 0.0)
            above = above + features.transpose(-2, -1) @ value.double()
            below = below + features.sum(-2)
        added = x.shape[1] if mask is None else mask.sum(-1)
        return replace(state, numerator=above, denominator=below, count=state.count + added)

    def read(
        self, state: LinearAttentionState, latents: Float[Tensor, "batch latents dim"]
    ) -> Float[Tensor, "batch latents dim"]:
        """What these latents attend to in everything seen; reading changes nothing."""
        self.check_belongs(state, len(latents))
        query = self._query(latents).double()
        found = _answer(query, state.numerator, state.denominator)
        return self.projections.output(join_heads(found.to(latents.dtype)))

    def merge(self, a: LinearAttentionState, b: LinearAttentionState) -> LinearAttentionState:
        """The state after both sets of items; ValueError when they belong to other weights or streams."""
        self.check_belongs(a, len(b.count))
        self.check_belongs(b, len(a.count))
        return replace(
            a,
            numerator=a.numerator + b.numerator,
            denominator=a.denominator + b.denominator,
            count=a.count + b.count,
        )

    def _query(self, x: Tensor) -> Tensor:
        return split_heads(self.projections.to_query(x), self.heads)

    def _keys_values(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        key, value = self.projections.key_value(blank(x, mask))
        return split_heads(key, self.heads), split_heads(value, self.heads)


class LinearAttentionLayer(nn.Module):
    """A post-norm Transformer layer with linear attention; as many parameters as a vanilla layer.

    Args:
        dim: width of items.
        heads: attention heads; must divide ``dim``.
        feedforward: hidden width.
        dropout: of features, 0 ≤ p < 1. There are no attention weights to drop.

    Example:
        >>> layer = LinearAttentionLayer(dim=8, heads=2, feedforward=16)
        >>> layer(torch.randn(1, 100, 8))[0].shape
        torch.Size([1, 100, 8])
    """

    is_causal: ClassVar[bool] = False

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.attention = LinearAttention(dim, heads)
        self.after = AfterAttention(dim, feedforward, dropout)

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        memory: Float[Tensor, "batch m dim"] | None = None,
        mask: Bool[Tensor, "batch length"] | None = None,
    ) -> tuple[Float[Tensor, "batch length dim"], Float[Tensor, "batch m dim"] | None]:
        """Every item attends to the real items; the memory passes by untouched.

        Args:
            x: items; what stands in masked places does not matter.
            memory: not used.
            mask: True where an item is real; None: all are.

        Returns:
            Items, 0 where they are not real, and the memory that came.
        """
        x = blank(x, mask)
        x = self.after(x, self.attention(x, x, mask, self.is_causal))
        return blank(x, mask), memory


class CausalLinearAttentionLayer(LinearAttentionLayer):
    """The same layer in which an item attends to itself and the items before it only."""

    is_causal: ClassVar[bool] = True
