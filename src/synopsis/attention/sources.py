"""Keys and values that lie in files or in memory, as blocks that can be read again and again.

| file | what it holds |
|---|---|
| ``.npy`` | one array ``(length, width)`` or ``(heads, length, width)``; float16, float32, float64 |
| ``.safetensors`` | such a tensor, also bfloat16; ``FILE:NAME`` where there are several |
| ``.parquet``, ``.arrow``, ``.feather`` | numeric or fixed-size-list columns; ``FILE:COLUMN,COLUMN`` for some |
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.column_files import open_columns
from synopsis.attention.flat_files import SourceError, open_npy, open_safetensors

__all__ = [
    "Array",
    "Blocks",
    "KeyValueSource",
    "SourceError",
    "TensorArray",
    "open_array",
    "open_source",
]

BLOCK = (
    32768  # keys: of width 64 in float32, this block and the next, with their values, take 32 MiB
)


class Array(Protocol):
    """Rows of numbers that are read in order, some at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(..., length, width)``."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the pieces."""
        ...

    def pieces(self, block: int) -> Iterator[Tensor]:
        """All rows in order, exactly ``block`` at a time but for the last piece."""
        ...


@dataclass(frozen=True)
class TensorArray:
    """An array in memory.

    Args:
        tensor: ``(..., length, width)``.
    """

    tensor: Float[Tensor, "... length width"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensor."""
        return self.tensor.dtype

    def pieces(self, block: int) -> Iterator[Tensor]:
        """Views of the tensor."""
        for start in range(0, self.shape[-2], block):
            yield self.tensor[..., start : start + block, :]


@dataclass(frozen=True)
class KeyValueSource:
    """Pairs of arrays, one after the other: the keys and values of one stream.

    Args:
        parts: keys and values; of each part as many values as keys, and of all parts the same widths and heads.
        names: what to call each part in messages.

    Raises:
        SourceError: when they disagree.

    Example:
        >>> source = KeyValueSource.of_tensors(torch.randn(10, 4), torch.randn(10, 2))
        >>> [tuple(key.shape) for key, value in source.blocks(6)]
        [(6, 4), (4, 4)]
    """

    parts: tuple[tuple[Array, Array], ...]
    names: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise SourceError("there are no keys and values")
        first = self.parts[0]
        for (key, value), (key_name, value_name) in zip(self.parts, self.names, strict=True):
            if key.shape[:-1] != value.shape[:-1]:
                raise SourceError(
                    f"{value_name}: its shape {value.shape} and that of {key_name}, {key.shape}, "
                    f"must agree in all but the width"
                )
            for mine, theirs, name in zip((key, value), first, (key_name, value_name), strict=True):
                if mine.shape[:-2] != theirs.shape[:-2] or mine.shape[-1] != theirs.shape[-1]:
                    raise SourceError(
                        f"{name}: its shape {mine.shape} does not continue that of the first, {theirs.shape}"
                    )

    @classmethod
    def of_tensors(
        cls, key: Float[Tensor, "... length dim"], value: Float[Tensor, "... length value_dim"]
    ) -> "KeyValueSource":
        """Keys and values in memory."""
        return cls(((TensorArray(key), TensorArray(value)),), (("key", "value"),))

    @property
    def length(self) -> int:
        """Number of keys."""
        return sum(key.shape[-2] for key, _ in self.parts)

    @property
    def leading(self) -> tuple[int, ...]:
        """Dimensions before the length: none for one head."""
        return self.parts[0][0].shape[:-2]

    @property
    def dim(self) -> int:
        """Width of the keys."""
        return self.parts[0][0].shape[-1]

    @property
    def value_dim(self) -> int:
        """Width of the values."""
        return self.parts[0][1].shape[-1]

    def blocks(self, block: int = BLOCK) -> "Blocks":
        """Pairs of ``block`` keys and values, for :func:`synopsis.attention.stream.streaming_attention`."""
        if block < 1:
            raise ValueError(f"a block must hold at least 1 key, not {block}")
        return Blocks(self, block)


@dataclass(frozen=True)
class Blocks:
    """Pairs of key and value that can be iterated as often as one likes.

    Args:
        source: of the pairs.
        size: keys of a pair; the last of a part may have fewer.
    """

    source: KeyValueSource
    size: int

    @property
    def value_dim(self) -> int:
        """Width of the values, known before the first block."""
        return self.source.value_dim

    def __len__(self) -> int:
        return sum(-(-key.shape[-2] // self.size) for key, _ in self.source.parts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for key, value in self.source.parts:
            keys, values = key.pieces(self.size), value.pieces(self.size)
            for _ in range(-(-key.shape[-2] // self.size)):
                yield next(keys), next(values)


def open_source(
    keys: Sequence[str | Path] | str | Path, values: Sequence[str | Path] | str | Path
) -> KeyValueSource:
    """Files of keys and values, in order; the first of the keys belongs with the first of the values.

    Args:
        keys: one file or several, as :func:`open_array` takes them.
        values: as many.

    Raises:
        SourceError: when files are missing, damaged, or do not fit each other.
    """
    keys, values = ([f] if isinstance(f, str | Path) else list(f) for f in (keys, values))
    if len(keys) != len(values):
        raise SourceError(f"{len(keys)} files of keys came with {len(values)} of values")
    names = tuple(zip(map(str, keys), map(str, values), strict=True))
    return KeyValueSource(tuple((open_array(k), open_array(v)) for k, v in names), names)


def open_array(file: str | Path) -> Array:
    """One file, opened by its suffix; nothing of its numbers is read yet.

    Args:
        file: path; with ``:NAME`` a tensor of a safetensors file, with ``:COLUMN,COLUMN`` columns of a table.

    Raises:
        SourceError: when it is not there, damaged, or of another kind.
    """
    path, name = _split(str(file))
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy" and name is None:
            return open_npy(path)
        if suffix == ".safetensors":
            return open_safetensors(path, name)
        if suffix in (".parquet", ".pq", ".arrow", ".feather"):
            return open_columns(path, None if name is None else name.split(","))
    except FileNotFoundError as error:
        raise SourceError(f"{path}: No such file or directory") from error
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error
    raise SourceError(f"{file}: is neither .npy, .safetensors, .parquet, .arrow nor .feather")


def _split(file: str) -> tuple[Path, str | None]:
    path, separator, name = file.rpartition(":")
    if not separator or Path(file).exists():
        return Path(file), None
    return Path(path), name
