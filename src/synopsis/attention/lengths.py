"""Masks given by a length for each stream of a batch: padding and prefixes."""

# ruff: noqa: ARG002  (the four arguments are the convention; not every mask looks at each)

from dataclasses import dataclass
from functools import cached_property

from jaxtyping import Int
from torch import Tensor

from synopsis.attention.rules import Span


@dataclass(frozen=True, eq=False)
class KeyLengths:
    """Padding: in each stream of the batch only the first keys are real.

    Args:
        lengths: real keys, one number for all streams or one for each. A tensor is copied.

    Example:
        >>> import torch
        >>> streams, keys = torch.arange(2)[:, None], torch.arange(4)
        >>> KeyLengths(torch.tensor([1, 3]))(streams, 0, 0, keys).int().tolist()
        [[1, 0, 0, 0], [1, 1, 1, 0]]
    """

    lengths: int | Int[Tensor, "batch"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", _own("lengths", self.lengths))

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True where the key is real."""
        return kv_idx < _of_stream("lengths", self.lengths, b)

    def keys(self, queries: Span, keys: Span) -> Span:
        """Up to the end of the longest stream."""
        return keys & Span(keys.start, self._range[1])

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether the last key is real in the shortest stream."""
        return keys.stop <= self._range[0]

    @cached_property
    def _range(self) -> tuple[int, int]:
        return _extremes(self.lengths)


@dataclass(frozen=True, eq=False)
class PrefixLM:
    """Causal, but the prefix is seen by all: its positions attend to each other both ways.

    Args:
        prefix: positions of the prefix, one number for all streams of the batch or one for each. A tensor is copied.

    Example:
        >>> import torch
        >>> queries, keys = torch.arange(3)[:, None], torch.arange(3)
        >>> PrefixLM(2)(0, 0, queries, keys).int().tolist()
        [[1, 1, 0], [1, 1, 0], [1, 1, 1]]

    Source: Raffel et al., "Exploring the limits of transfer learning", 2020, figure 4.
    """

    prefix: int | Int[Tensor, "batch"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", _own("prefix", self.prefix))

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """True inside the prefix, and for keys not beyond the query."""
        return (kv_idx < _of_stream("prefix", self.prefix, b)) | (kv_idx <= q_idx)

    def keys(self, queries: Span, keys: Span) -> Span:
        """Up to the last query or the end of the longest prefix."""
        return keys & Span(keys.start, max(queries.stop, self._range[1]))

    def allows_all(self, queries: Span, keys: Span) -> bool:
        """Whether the last key is in the shortest prefix or not beyond the first query."""
        return keys.stop <= max(queries.start + 1, self._range[0])

    @cached_property
    def _range(self) -> tuple[int, int]:
        return _extremes(self.prefix)


def _own(name: str, given: int | Tensor) -> int | Tensor:
    """A copy: the caller's tensor may change later, and the bounds would not follow."""
    if isinstance(given, int):
        return given
    if given.ndim != 1 or given.is_floating_point():
        raise ValueError(
            f"{name} has shape {tuple(given.shape)} and dtype {given.dtype}; "
            "it must be one integer, or a tensor of one per stream"
        )
    return given.detach().clone()


def _of_stream(name: str, given: int | Tensor, b: Tensor) -> int | Tensor:
    if isinstance(given, int):
        return given
    if b.numel() > len(given):
        raise ValueError(f"{name} has {len(given)} streams but the batch has {b.numel()}")
    return given.to(b.device)[b]


def _extremes(given: int | Tensor) -> tuple[int, int]:
    numbers = [given] if isinstance(given, int) else given.tolist()
    return min(numbers), max(numbers)
