"""Columns of Parquet and Arrow files as rows of features, some at a time; needs pyarrow (``data`` extra)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from synopsis.attention.flat_files import SourceError

_BUFFER_BYTES = 1 << 16
_INSTALL = "needs pyarrow: pip install synopsis-attention[data]"


@dataclass(frozen=True)
class ColumnArray:
    """``(length, width)``: numeric columns side by side; a fixed-size list fills as many as it has entries.

    Args:
        path: of a Parquet (``.parquet``) or Arrow IPC file (``.arrow``, ``.feather``).
        columns: in the order of the features.
        shape: rows, and features of all columns.
        dtype: the smallest that holds every column exactly; float64 for whole numbers.
    """

    path: Path
    columns: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def pieces(self, block: int) -> Iterator[Float[Tensor, "rows width"]]:
        """All rows in order, ``block`` at a time; the last piece may be shorter.

        Raises:
            SourceError: when the file is damaged or a value is missing.
        """
        waiting = _Waiting()
        for batch in _batches(self.path, self.columns, block):
            waiting.append(_tensor(self, batch))
            del batch
            while len(waiting) >= block:
                yield waiting.take(block)
        if len(waiting):
            yield waiting.take(len(waiting))


class _Waiting:
    """Rows that came, on their way to pieces of another size."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def append(self, rows: Tensor) -> None:
        """Rows after those that wait already."""
        self._parts.append(rows)

    def take(self, count: int) -> Tensor:
        """The first rows; the others wait on, in memory of their own."""
        joined = torch.cat(self._parts) if len(self._parts) > 1 else self._parts[0]
        self._parts = [joined[count:].clone()] if len(joined) > count else []
        return joined[:count]


def open_columns(path: Path, columns: Sequence[str] | None = None) -> ColumnArray:
    """Columns of a Parquet or Arrow file.

    Args:
        path: of the file.
        columns: names in the order of the features; None: all of them.
    """
    schema, rows = _schema(path)
    names = tuple(schema.names if columns is None else columns)
    if not names:
        raise SourceError(f"{path}: has no columns")
    width, dtypes = 0, []
    for name in names:
        if name not in schema.names:
            raise SourceError(
                f"{path}: has no column {name!r}; there are {', '.join(schema.names)}"
            )
        entries, dtype = _feature(path, name, schema.field(name).type)
        width += entries
        dtypes.append(dtype)
    dtype = torch.from_numpy(np.empty(0, np.result_type(*dtypes))).dtype
    return ColumnArray(path, names, (rows, width), dtype)


def _feature(path: Path, name: str, kind: Any) -> tuple[int, Any]:
    """Entries of a column in a row, and the dtype that holds them."""
    import pyarrow as pa

    entries = 1
    if pa.types.is_fixed_size_list(kind):
        entries, kind = kind.list_size, kind.value_type
    if pa.types.is_floating(kind):
        return entries, kind.to_pandas_dtype()
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return entries, np.float64
    raise SourceError(
        f"{path}: column {name!r} holds {kind}; numbers or fixed-size lists of numbers are needed"
    )


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in (".parquet", ".pq")


def _schema(path: Path) -> tuple[Any, int]:
    try:
        import pyarrow as pa
        from pyarrow import dataset, parquet
    except ImportError:
        raise SourceError(f"{path}: {_INSTALL}") from None
    try:
        if _is_parquet(path):
            with parquet.ParquetFile(path) as file:
                return file.schema_arrow, file.metadata.num_rows
        table = dataset.dataset(path, format="ipc")
        return table.schema, table.count_rows()
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _damaged(path, error) from error


def _batches(path: Path, columns: tuple[str, ...], block: int) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with path.open("rb") as handle:
            if _is_parquet(path):
                # pre_buffer would hold whole column chunks; a buffer reads them page by page
                file = parquet.ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False)
                yield from file.iter_batches(block, columns=list(columns), use_threads=False)
            else:
                options = pa.ipc.IpcReadOptions(use_threads=False)
                arrow = pa.ipc.open_file(handle, options=options)
                for i in range(arrow.num_record_batches):
                    yield arrow.get_batch(i)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    reason = str(error).partition("\n")[0]
    return SourceError(f"{path}: cannot be read: {reason}")


def _tensor(array: ColumnArray, batch: Any) -> Tensor:
    """The features of a batch, next to each other."""
    out = torch.empty(batch.num_rows, array.shape[1], dtype=array.dtype)
    target, at = out.numpy(), 0
    for name in array.columns:
        column = batch.column(name)
        values = (
            column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
        )
        if column.null_count or values.null_count:
            raise SourceError(f"{array.path}: column {name!r} has missing values")
        entries = 1 if values is column else column.type.list_size
        numbers = values.to_numpy(zero_copy_only=False).reshape(batch.num_rows, entries)
        target[:, at : at + entries] = numbers
        at += entries
    return out
