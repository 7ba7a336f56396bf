"""Documents packed into one sequence: each attends to itself only.

As all ready-made masks these are called like FlexAttention's and know their bounds. The bounds are computed from
numbers that are read once, when they are first asked for, so that no block waits for a device.
"""

# ruff: noqa: ARG002  (the four arguments are the convention; not every mask looks at each)

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Self

import torch
from jaxtyping import Int
from torch import Tensor

from synopsis.attention.rules import Bounded, MaskMod, Span


@dataclass(frozen=True, eq=False)
class Documents:
    """Sequences packed one after another; each attends to itself only.

    Positions before the first document and after the last attend to nothing and are attended to by nothing, so a
    packed batch may be padded.

    Args:
        cu_seqlens_q: where each document begins among the queries, and where the last ends: (0, n₁, n₁ + n₂, …).
        cu_seqlens_k: the same among the keys; None: as among the queries.
        mask_mod: what holds inside a document. Its positions count from the document's own beginning, and the last
            query of a document stands at the position of its last key (bottom-right alignment), so that ``Causal()`` is
            right where a document has more keys than queries. None: all attend to all.

    Raises:
        ValueError: boundaries that do not begin at 0, that fall, or that differ in number.

    Example:
        >>> queries, keys = torch.arange(3)[:, None], torch.arange(4)
        >>> q, k = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4])
        >>> Documents(q, k)(0, 0, queries, keys).int().tolist()
        [[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]

    Source: the variable-length interface of Dao, "FlashAttention-2", 2023, whose names these are.
    """

    cu_seqlens_q: Int[Tensor, "boundaries"]
    cu_seqlens_k: Int[Tensor, "boundaries"] | None = None
    mask_mod: MaskMod | None = None

    def __post_init__(self) -> None:
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else given.detach().clone())
        starts_q, starts_k = self._starts
        for name, starts in (("cu_seqlens_q", starts_q), ("cu_seqlens_k", starts_k)):
            if starts[:1] != [0] or any(a > b for a, b in pairwise(starts)):
                raise ValueError(f"{name} is {starts}; it must begin at 0 and never fall")
        if len(starts_q) != len(starts_k):
            raise ValueError(
                f"cu_seqlens_k has {len(starts_k)} boundaries but cu_seqlens_q has {len(starts_q)}; "
                "there must be as many documents of keys as of queries"
            )

    @classmethod
    def from_lengths(
        cls,
        queries: Sequence[int],
        keys: Sequence[int] | None = None,
        mask_mod: MaskMod | None = None,
    ) -> Self:
        """From the length of each document instead of the boundaries between them.

        Example:
            >>> Documents.from_lengths([2, 3]).cu_seqlens_q
            tensor([0, 2, 5])
        """
        starts_q = torch.tensor([0, *accumulate(queries)])
        return cls(
            starts_q, None if keys is None else torch.tensor([0, *accumulate(keys)]), mask_mod
        )

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True inside one document, where its own mask says so."""
        ends_q = self.cu_seqlens_q.to(q_idx)
        ends_k = ends_q if self.cu_seqlens_k is None else self.cu_seqlens_k.to(kv_idx)
        # 0 before the first document, N + 1 after the last: never equal to a real one, of which there are 1 … N
        of_query = torch.searchsorted(ends_q, q_idx, right=True)
        of_key = torch.searchsorted(ends_k, kv_idx, right=True)
        count = len(ends_q) - 1
        same = (of_query == of_key) & (of_query > 0) & (of_query <= count)
        if self.mask_mod is None or count == 0:
            return same
        last_q, last_k = of_query.clamp(1, count), of_key.clamp(1, count)
        aligned = ends_k[last_q] - ends_k[last_q - 1] - ends_q[last_q]
        return same & self.mask_mod(b, h, q_idx + aligned, kv_idx - ends_k[last_k - 1])

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the first key that the first of these documents reaches to the last that the last one does."""
        documents = self._documents(queries)
        first = next(
            (s for d in documents if not (s := self._reach(d, queries, keys)).is_empty), None
        )
        if first is None:
            return Span(keys.start, keys.start)
        last = next(
            s for d in reversed(documents) if not (s := self._reach(d, queries, keys)).is_empty
        )
        return Span(first.start, last.stop)

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether all are in one document, and its own mask surely allows it."""
        starts_q, starts_k = self._starts
        document = bisect_right(starts_q, queries.start) - 1
        if document < 0 or document + 1 == len(starts_q) or queries.stop > starts_q[document + 1]:
            return False
        if keys.start < starts_k[document] or keys.stop > starts_k[document + 1]:
            return False
        if self.mask_mod is None:
            return True
        inner = (
            self._shifted(queries, self._align(document)),
            self._shifted(keys, -starts_k[document]),
        )
        return isinstance(self.mask_mod, Bounded) and self.mask_mod.allows_all(*inner)

    @cached_property
    def _starts(self) -> tuple[list[int], list[int]]:
        of_query = self.cu_seqlens_q.tolist()
        return of_query, of_query if self.cu_seqlens_k is None else self.cu_seqlens_k.tolist()

    def _documents(self, queries: Span) -> range:
        """Documents that these queries may belong to."""
        starts = self._starts[0]
        asked = queries & Span(0, starts[-1])
        if asked.is_empty:
            return range(0)
        return range(bisect_right(starts, asked.start) - 1, bisect_right(starts, asked.stop - 1))

    def _reach(self, document: int, queries: Span, keys: Span) -> Span:
        """Keys that those of the queries that are in this document may attend to."""
        starts_q, starts_k = self._starts
        queries = queries & Span(starts_q[document], starts_q[document + 1])
        keys = keys & Span(starts_k[document], starts_k[document + 1])
        if queries.is_empty or keys.is_empty:
            return Span(keys.start, keys.start)
        if not isinstance(self.mask_mod, Bounded):
            return keys
        start = starts_k[document]
        inner = self._shifted(queries, self._align(document)), self._shifted(keys, -start)
        return keys & self._shifted(self.mask_mod.keys(*inner), start)

    def _align(self, document: int) -> int:
        """What to add to a query's position so that the document's last query meets its last key."""
        starts_q, starts_k = self._starts
        return starts_k[document + 1] - starts_k[document] - starts_q[document + 1]

    @staticmethod
    def _shifted(span: Span, by: int) -> Span:
        return Span(span.start + by, span.stop + by)


@dataclass(frozen=True, eq=False)
class DocumentIds:
    """Documents told by a number for each position, in any order and different in each stream of the batch.

    Args:
        ids_q: document of the query at each position; one row for all streams or one for each. Tensors are copied.
        ids_k: the same for keys; None: as for queries.

    Raises:
        ValueError: when bounds are asked for positions that have no number.

    Example:
        >>> positions = torch.arange(3)
        >>> DocumentIds(torch.tensor([7, 4, 7]))(0, 0, positions[:, None], positions).int().tolist()
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """

    ids_q: Int[Tensor, "*batch queries"]
    ids_k: Int[Tensor, "*batch keys"] | None = None

    def __post_init__(self) -> None:
        for name in ("ids_q", "ids_k"):
            given = getattr(self, name)
            if given is not None and given.ndim not in (1, 2):
                raise ValueError(
                    f"{name} has shape {tuple(given.shape)}; it must be (positions,) or (batch, positions)"
                )
            object.__setattr__(self, name, None if given is None else given.detach().clone())

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where both belong to one document."""
        ids_k = self.ids_q if self.ids_k is None else self.ids_k
        return _numbers(self.ids_q, b, q_idx) == _numbers(ids_k, b, kv_idx)

    def keys(self, queries: Span, keys: Span) -> Span:
        """From the first key of any of the queries' documents to the last."""
        of_query, of_key, places = self._codes
        _part(of_key, keys, "ids_k")  # a key without a number is an error, not a document
        begin = _part(of_query, queries, "ids_q") * of_key.shape[1]
        first = torch.searchsorted(places, begin + keys.start)
        last = torch.searchsorted(places, begin + keys.stop) - 1
        found = last >= first
        if keys.is_empty or not bool(found.any()):
            return Span(keys.start, keys.start)
        start = (places[first[found]] - begin[found]).min()
        return keys & Span(int(start), int((places[last[found]] - begin[found]).max()) + 1)

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether each stream has one document there."""
        of_query, of_key, _ = self._codes
        there = _part(of_query, queries, "ids_q"), _part(of_key, keys, "ids_k")
        return all(bool((part == there[0][:, :1]).all()) for part in there)

    @cached_property
    def _codes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of (stream, document) of queries and of keys, and sorted places (code · length + position) of keys."""
        ids = [self.ids_q, self.ids_q if self.ids_k is None else self.ids_k]
        rows = [given.cpu().reshape(-1, given.shape[-1]) for given in ids]
        streams = max(len(row) for row in rows)
        flat = torch.cat([row.flatten() for row in rows])
        documents, ranks = torch.unique(flat, return_inverse=True)
        stream = torch.arange(streams)[:, None] * len(documents)
        of_query, of_key = (
            part.view_as(row) + stream
            for part, row in zip(ranks.split([row.numel() for row in rows]), rows, strict=True)
        )
        length = of_key.shape[1]
        places = (of_key * length + torch.arange(length)).flatten().sort().values
        return of_query, of_key, places


def _numbers(ids: Tensor, b: Tensor, positions: Tensor) -> Tensor:
    ids = ids.to(positions.device)
    return ids[positions] if ids.ndim == 1 else ids[b, positions]


def _part(codes: Tensor, span: Span, name: str) -> Tensor:
    if span.start < 0 or span.stop > codes.shape[1]:
        raise ValueError(
            f"{name} numbers positions 0 to {codes.shape[1] - 1} but {span.start} to {span.stop - 1} were asked for"
        )
    return codes[:, span.start : span.stop]
