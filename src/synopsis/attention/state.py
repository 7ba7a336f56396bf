"""The summary that attention rests on: (m, d, n), which updates, merges and answers.

For a row of scores s over any set of keys,

    m = max s        d = Σ exp(s − m)        n = Σ exp(s − m) v        output = n / d,    lse = m + ln d

and summaries of disjoint sets of keys merge exactly, in any order and any tree (Rabe & Staats, 2021; Milakov &
Gimelshein, 2018). Everything else in this library is built on this one object.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from synopsis.states import State

_BLOCK = 1024  # keys scored at once: a block of scores stays in the second-level cache


@dataclass(frozen=True)
class SoftmaxSummary(State):
    """The monoid element (m, d, n) of any number of query rows.

    Args:
        maximum: largest score so far; −∞ where nothing was seen.
        denominator: Σ exp(s − m).
        numerator: Σ exp(s − m) v.
    """

    kind: ClassVar[str] = "softmax-summary"
    maximum: Float[Tensor, "*rows"]
    denominator: Float[Tensor, "*rows"]
    numerator: Float[Tensor, "*rows value_dim"]

    @classmethod
    def empty(cls, rows: tuple[int, ...], value_dim: int, like: Tensor) -> Self:
        """The identity of merge, (−∞, 0, 0), in the dtype and on the device of ``like``."""
        maximum = like.new_full(rows, -math.inf)
        return cls(maximum, like.new_zeros(rows), like.new_zeros(*rows, value_dim))

    @classmethod
    def of(
        cls,
        scores: Float[Tensor, "*rows keys"],
        value: Float[Tensor, "*batch keys value_dim"],
    ) -> Self:
        """The summary of one block of scores; −∞ marks pairs that may not attend.

        The maximum only stabilises: it is a constant to autograd, and outputs and lse still have exact gradients.
        """
        if scores.shape[-1] == 0:
            rows = torch.broadcast_shapes(scores.shape[:-2], value.shape[:-2])
            return cls.empty((*rows, scores.shape[-2]), value.shape[-1], scores)
        maximum = scores.detach().amax(-1)
        weights = (scores - _finite(maximum).unsqueeze(-1)).exp_()
        return cls(maximum, weights.sum(-1), weights @ value)

    def merge(self, other: Self) -> Self:
        """The summary of both sets of keys; sums are kept in this summary's dtype."""
        dtype = self.denominator.dtype
        mine, theirs = self.maximum, other.maximum.to(dtype)
        maximum = torch.maximum(mine, theirs)
        pivot = _finite(maximum)  # −∞ − (−∞) would be NaN: nothing merged with nothing is nothing
        a, b = (mine - pivot).exp(), (theirs - pivot).exp()
        return type(self)(
            maximum,
            a * self.denominator + b * other.denominator,
            a.unsqueeze(-1) * self.numerator + b.unsqueeze(-1) * other.numerator,
        )

    @property
    def output(self) -> Float[Tensor, "*rows value_dim"]:
        """Σ softmax(s) v; 0 where nothing was seen."""
        empty = self.denominator == 0
        return self.numerator / self.denominator.masked_fill(empty, 1.0).unsqueeze(-1)

    @property
    def lse(self) -> Float[Tensor, "*rows"]:
        """Natural log of Σ exp(s); −∞ where nothing was seen."""
        empty = self.denominator == 0
        log = self.denominator.masked_fill(empty, 1.0).log()
        return (self.maximum + log).masked_fill(empty, -math.inf)

    @property
    def count(self) -> int:
        """A summary forgets how many keys it saw; states built on it count."""
        return 0

    def check(self) -> None:
        """Raise ValueError unless the three parts describe the same rows."""
        rows = self.maximum.shape
        if self.denominator.shape != rows or self.numerator.shape[:-1] != rows:
            raise ValueError(
                f"maximum is {tuple(rows)}, denominator {tuple(self.denominator.shape)}, "
                f"numerator {tuple(self.numerator.shape)}; their rows must agree"
            )


def _finite(maximum: Tensor) -> Tensor:
    return maximum.masked_fill(maximum == -math.inf, 0.0)


@dataclass(frozen=True)
class AttentionState(State):
    """Exact softmax attention of fixed queries over keys that arrive in any pieces and order.

    Immutable: every method returns a new state. Sums are float64, so that an endless stream keeps learning.

    Args:
        query: the queries, already multiplied by the scale.
        summary: what was seen so far.
        count: number of keys folded in.

    Example:
        >>> import torch
        >>> query, key, value = torch.randn(3, 1, 4, 8).unbind()
        >>> state = AttentionState.empty(query, value_dim=8)
        >>> left, right = state.update(key[:, :2], value[:, :2]), state.update(key[:, 2:], value[:, 2:])
        >>> whole = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        >>> torch.allclose(left.merge(right).output, whole, atol=1e-6)
        True
    """

    kind: ClassVar[str] = "attention"
    query: Float[Tensor, "*batch heads queries dim"]
    summary: SoftmaxSummary
    count: Int[Tensor, ""]

    @classmethod
    def empty(
        cls,
        query: Float[Tensor, "*batch heads queries dim"],
        value_dim: int,
        scale: float | None = None,
    ) -> Self:
        """A state that has seen nothing: the identity of :meth:`merge`.

        Args:
            query: ``(..., heads, queries, dim)``.
            value_dim: width of the values to come.
            scale: factor on the scores; 1/√dim when None.
        """
        if query.dim() < 2 or not query.is_floating_point():
            raise ValueError(
                f"query must be (..., heads, queries, dim) of floating point, not "
                f"{tuple(query.shape)} of {query.dtype}"
            )
        scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        sums = torch.empty(0, dtype=torch.float64, device=query.device)
        summary = SoftmaxSummary.empty(tuple(query.shape[:-1]), value_dim, sums)
        count = torch.zeros((), dtype=torch.int64, device=query.device)
        return cls(query * scale, summary, count)

    def update(
        self,
        key: Float[Tensor, "*batch heads keys dim"],
        value: Float[Tensor, "*batch heads keys value_dim"],
        mask: Bool[Tensor, "*broadcast"] | None = None,
    ) -> Self:
        """Fold keys and values in, a block at a time.

        Args:
            key: ``(..., heads, keys, dim)``.
            value: ``(..., heads, keys, value_dim)``.
            mask: True where a query may attend to a key; broadcasts against ``(..., heads, queries, keys)``.

        Raises:
            ValueError: when widths or numbers of keys disagree.
        """
        self._check_pieces(key, value)
        length = key.shape[-2]
        if mask is not None:
            mask = mask.expand(*mask.shape[:-1], length)
        summary = self.summary
        for start in range(0, length, _BLOCK):
            block = slice(start, start + _BLOCK)
            scores = self.query @ key[..., block, :].transpose(-2, -1)
            if mask is not None:
                scores = scores.masked_fill(~mask[..., block], -math.inf)
            summary = summary.merge(SoftmaxSummary.of(scores, value[..., block, :]))
        return replace(self, summary=summary, count=self.count + length)

    def merge(self, other: Self) -> Self:
        """The state after both sets of keys; exact, associative and commutative.

        Raises:
            ValueError: when the two hold different queries or value widths.
        """
        if self.query.shape != other.query.shape or not torch.equal(self.query, other.query):
            raise ValueError("the two states answer different queries; they cannot be merged")
        ours, theirs = (s.summary.numerator.shape[-1] for s in (self, other))
        if ours != theirs:
            raise ValueError(
                f"values have {ours} features here but {theirs} there; they must agree"
            )
        summary = self.summary.merge(other.summary)
        return replace(self, summary=summary, count=self.count + other.count)

    @property
    def output(self) -> Float[Tensor, "*batch heads queries value_dim"]:
        """Attention over everything seen, in the dtype of the query; 0 where nothing was seen."""
        return self.summary.output.to(self.query.dtype)

    @property
    def lse(self) -> Float[Tensor, "*batch heads queries"]:
        """Natural log of the sum of exponentiated scores, float64; −∞ where nothing was seen."""
        return self.summary.lse

    def check(self) -> None:
        """Raise ValueError unless query and summary describe the same rows."""
        rows, found = self.query.shape[:-1], self.summary.maximum.shape
        if rows != found:
            raise ValueError(f"query has rows {tuple(rows)} but the summary {tuple(found)}")

    def _check_pieces(self, key: Tensor, value: Tensor) -> None:
        dim, width = self.query.shape[-1], self.summary.numerator.shape[-1]
        if key.shape[-1] != dim:
            raise ValueError(
                f"key has {key.shape[-1]} features but query has {dim}; they must agree"
            )
        if value.shape[-1] != width:
            raise ValueError(
                f"value has {value.shape[-1]} features; the state was made for {width}"
            )
        if key.shape[-2] != value.shape[-2]:
            raise ValueError(
                f"{key.shape[-2]} keys came with {value.shape[-2]} values; they must agree"
            )
