"""Attention as a value: fixed queries and the summary of all keys they have met, which updates, merges and answers.

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

from synopsis.attention import folding
from synopsis.attention.cutting import Inputs
from synopsis.attention.layouts import both_masks, four_dimensional, mask_of
from synopsis.attention.rules import MaskMod, Rules, ScoreMod
from synopsis.attention.summary import SoftmaxSummary
from synopsis.states import State

__all__ = ["AttentionState", "SoftmaxSummary"]


@dataclass(frozen=True)
class AttentionState(State):
    """Exact softmax attention of fixed queries over keys that arrive in any pieces and order.

    Immutable: every method returns a new state. Sums are float64, so that an endless stream keeps learning. Output and
    log-sum-exp are differentiable twice, in queries, keys, values and whatever masks and scores were made from.

    Args:
        query: ``(..., heads, queries, dim)``, or ``(queries, dim)`` for one head; of width 0 when only their attention
            is known (:meth:`from_output`).
        summary: what was seen so far.
        count: number of keys folded in, masked ones included.
        scale: factor on query · key.

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
    query: Float[Tensor, "*batch_and_heads queries dim"]
    summary: SoftmaxSummary
    count: Int[Tensor, ""]
    scale: float = 1.0

    @classmethod
    def empty(
        cls,
        query: Float[Tensor, "*batch heads queries dim"],
        value_dim: int,
        scale: float | None = None,
    ) -> Self:
        """A state that has seen nothing: the identity of :meth:`merge`.

        Args:
            query: ``(..., heads, queries, dim)``, or ``(queries, dim)`` for one head.
            value_dim: width of the values to come.
            scale: factor on query · key; 1/√dim when None.

        Raises:
            ValueError: when these make no queries and values.
        """
        _check_matrix("query", query, "queries")
        if value_dim < 0:
            raise ValueError(f"value_dim must be at least 0, not {value_dim}")
        sums = torch.empty(0, dtype=torch.float64, device=query.device)
        summary = SoftmaxSummary.empty(tuple(query.shape[:-1]), value_dim, sums)
        count = torch.zeros((), dtype=torch.int64, device=query.device)
        return cls(query.clone(), summary, count, _scale(query, scale))

    @classmethod
    def from_output(
        cls,
        output: Float[Tensor, "*batch heads queries value_dim"],
        lse: Float[Tensor, "*batch heads queries"],
        query: Float[Tensor, "*batch heads queries dim"] | None = None,
        *,
        scale: float | None = None,
        count: int = 0,
    ) -> Self:
        """The state behind what another library computed from some of the keys.

        Args:
            output: attention over those keys.
            lse: natural log of the sum of exponentiated scores; −∞ for rows that attended to nothing.
            query: the queries; without them the state merges with any of its shape, but cannot be updated.
            scale: factor on query · key that was used; 1/√dim when None.
            count: number of those keys, which becomes the position of the next one.

        Raises:
            ValueError: when the tensors do not describe the same rows, or the count is negative.

        Example:
            >>> query = torch.randn(1, 4, 8)
            >>> state = AttentionState.empty(query, value_dim=8).update(query, query)
            >>> torch.equal(AttentionState.from_output(*state.partial()).output, state.summary.output)
            True
        """
        if output.dim() < 2 or output.shape[:-1] != lse.shape:
            raise ValueError(
                f"output {tuple(output.shape)} needs an lse of {tuple(output.shape[:-1])}, "
                f"not {tuple(lse.shape)}"
            )
        if query is None:
            query, scale = output.new_empty(*lse.shape, 0), 1.0
        elif query.shape[:-1] != lse.shape:
            raise ValueError(f"query has rows {tuple(query.shape[:-1])}, lse {tuple(lse.shape)}")
        if count < 0:
            raise ValueError(f"count must be at least 0, not {count}")
        _check_matrix("query", query, "queries")
        summary = SoftmaxSummary.from_output(output.double(), lse.double())
        seen = torch.tensor(count, dtype=torch.int64, device=output.device)
        return cls(query.clone(), summary, seen, _scale(query, scale))

    def update(  # noqa: PLR0913  (every way to rule a pair out)
        self,
        key: Float[Tensor, "*batch key_heads keys dim"],
        value: Float[Tensor, "*batch key_heads keys value_dim"],
        mask: Bool[Tensor, "*broadcast"] | None = None,
        *,
        mask_mod: MaskMod | None = None,
        score_mod: ScoreMod | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        key_offset: int | None = None,
        query_offset: int = 0,
    ) -> Self:
        """Fold keys and values in; what stands in masked slots does not matter, be it NaN.

        Args:
            key: ``(..., key_heads, keys, dim)``; its heads divide those of the query; leading dimensions may be missing
                or 1, which serves all queries with the same keys.
            value: ``(..., key_heads, keys, value_dim)``.
            mask: True where a query may attend to a key; broadcasts against ``(..., heads, queries, keys)``.
            mask_mod: of (b, h, q_idx, kv_idx), True where a pair may attend.
            score_mod: of (score, b, h, q_idx, kv_idx), elementwise.
            attn_mask: like ``mask``, or floating point and added to the scores.
            is_causal: a key may be attended by queries at its position and later.
            key_offset: position of the first of these keys; None: they follow the keys seen so far.
            query_offset: position of the first query.

        Raises:
            ValueError: when shapes or dtypes do not fit.
        """
        self._check_pieces(key, value)
        shape = (*self.query.shape[:-1], key.shape[-2])
        placed = is_causal or mask_mod is not None or score_mod is not None
        if key_offset is None:
            key_offset = int(self.count) if placed else 0  # reading a tensor waits for its device
        rules = Rules(
            scale=self.scale,
            is_causal=is_causal,
            attn_mask=both_masks(mask_of(mask, shape), mask_of(attn_mask, shape)),
            mask_mod=mask_mod,
            score_mod=score_mod,
            query_offset=query_offset,
            key_offset=key_offset,
        )
        return self._fold(key, value, rules)

    def fold(
        self,
        key: Float[Tensor, "*batch key_heads keys dim"],
        value: Float[Tensor, "*batch key_heads keys value_dim"],
        rules: Rules,
    ) -> Self:
        """:meth:`update` under rules that are made already; their scale must be the state's."""
        self._check_pieces(key, value)
        if rules.scale != self.scale:
            raise ValueError(f"rules have scale {rules.scale}, the state {self.scale}")
        return self._fold(key, value, rules)

    def _fold(self, key: Tensor, value: Tensor, rules: Rules) -> Self:
        heads = self.query.shape[-3] if self.query.dim() > 2 else 1
        batch = tuple(self.query.shape[:-3])
        query = self.query.reshape(math.prod(batch), heads, *self.query.shape[-2:])
        inputs = Inputs(query, four_dimensional(key, batch), four_dimensional(value, batch))
        found = folding.summarise(inputs, rules)
        found = folding.shaped(found, tuple(self.query.shape[:-1]))
        return replace(self, summary=self.summary.merge(found), count=self.count + key.shape[-2])

    def merge(self, *others: Self) -> Self:
        """The state after all sets of keys; exact, associative and commutative.

        Raises:
            ValueError: when the states hold different queries, scales or value widths.
        """
        merged = self
        for other in others:
            merged = merged._merge(other)
        return merged

    @property
    def output(self) -> Float[Tensor, "*batch heads queries value_dim"]:
        """Attention over everything seen, in the dtype of the query; 0 where nothing was seen."""
        return self.summary.output.to(self.query.dtype)

    @property
    def lse(self) -> Float[Tensor, "*batch heads queries"]:
        """Natural log of the sum of exponentiated scores, float64; −∞ where nothing was seen."""
        return self.summary.lse

    def partial(self) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp, both float64: what :meth:`from_output` and other libraries' merges take."""
        return self.summary.output, self.summary.lse

    def check(self) -> None:
        """Raise ValueError unless query and summary describe the same rows."""
        rows, found = self.query.shape[:-1], self.summary.maximum.shape
        if rows != found:
            raise ValueError(f"query has rows {tuple(rows)} but the summary {tuple(found)}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float):
            raise ValueError(f"scale must be a number, not {self.scale!r}")

    def _merge(self, other: Self) -> Self:
        if self.query.shape[:-1] != other.query.shape[:-1]:
            raise ValueError(
                f"the two states answer different queries: rows are {tuple(self.query.shape[:-1])} "
                f"and {tuple(other.query.shape[:-1])}"
            )
        ours, theirs = (s.summary.numerator.shape[-1] for s in (self, other))
        if ours != theirs:
            raise ValueError(
                f"values have {ours} features here but {theirs} there; they must agree"
            )
        known = [s for s in (self, other) if s.query.shape[-1]]
        difference = _difference(self, other) if len(known) == 2 else None
        if difference is not None:
            raise ValueError(f"the two states answer different queries: {difference}")
        summary, count = self.summary.merge(other.summary), self.count + other.count
        return replace(known[0] if known else self, summary=summary, count=count)

    def _check_pieces(self, key: Tensor, value: Tensor) -> None:
        _check_matrix("key", key, "keys")
        _check_matrix("value", value, "keys")
        dim, width = self.query.shape[-1], self.summary.numerator.shape[-1]
        if dim == 0:
            raise ValueError("a state made from outputs alone knows no queries to update")
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
        heads = [t.shape[-3] if t.dim() > 2 else 1 for t in (self.query, key, value)]
        if heads[1] != heads[2] or heads[1] == 0 or heads[0] % heads[1]:
            raise ValueError(
                f"query has {heads[0]} heads, key {heads[1]}, value {heads[2]}; those of key and "
                f"value must be equal and divide those of the query"
            )


def _check_matrix(name: str, tensor: Tensor, rows: str) -> None:
    if tensor.dim() < 2 or not tensor.is_floating_point():
        raise ValueError(
            f"{name} must be (..., heads, {rows}, dim) of floating point, not "
            f"{tuple(tensor.shape)} of {tensor.dtype}"
        )


def _scale(query: Tensor, scale: float | None) -> float:
    if scale is None:
        if query.shape[-1] == 0:
            raise ValueError("query has 0 features, from which no scale follows; name one")
        return 1.0 / math.sqrt(query.shape[-1])
    if not math.isfinite(scale):
        raise ValueError(f"scale must be a finite number, not {scale}")
    return float(scale)


def _difference(a: AttentionState, b: AttentionState) -> str | None:
    """What tells the questions of two states apart; None when nothing does."""
    if a.scale != b.scale:
        return f"scales are {a.scale} and {b.scale}"
    if a.query.shape != b.query.shape:
        return f"shapes are {tuple(a.query.shape)} and {tuple(b.query.shape)}"
    if a.query is b.query or torch.equal(a.query, b.query):
        return None
    if a.query.dtype != b.query.dtype:
        return f"dtypes are {a.query.dtype} and {b.query.dtype}"
    return f"they are up to {float((a.query - b.query).abs().max()):.3g} apart"
