"""Rows of a Parquet file, read a few thousand at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Self

from synopsis.serving.records import InputError, Record, Value, given, positions, shown

ROWS_AT_A_TIME = 4096
_BUFFER_BYTES = 1 << 16


class ParquetTable:
    """A Parquet file, open behind its footer.

    Args:
        source: path of the file.

    Raises:
        InputError: the file cannot be read as Parquet, or pyarrow is not installed.

    Example:
        >>> with ParquetTable("rows.parquet") as table:    # doctest: +SKIP
        ...     for record in table.records(["x", "y"]):
        ...         print(record.line, record.values)
    """

    def __init__(self, source: str) -> None:
        try:
            from pyarrow import parquet
        except ImportError:
            raise InputError(
                source, None, "Parquet needs pyarrow: pip install synopsis-attention[data]"
            ) from None
        self.name = source
        self._handle = _open(source)
        try:
            with _reading(source):
                # pre_buffer would hold whole column chunks; a buffer reads them page by page
                self._file = parquet.ParquetFile(
                    self._handle, buffer_size=_BUFFER_BYTES, pre_buffer=False
                )
                self.columns: tuple[str, ...] = tuple(self._file.schema_arrow.names)
        except InputError:
            self._handle.close()
            raise

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """The named columns of every row, in order; lines are row numbers from 1.

        Raises:
            InputError: a column is not there; on reading, the file is damaged.
        """
        positions(columns, self.columns, self.name)
        return self._read(tuple(columns))

    def _read(self, columns: tuple[str, ...]) -> Iterator[Record]:
        line = 0
        with self:
            for rows, cells in self._batches(columns):
                for row in range(rows):
                    line += 1
                    values = (
                        _scalar(cell[row], column, self.name, line)
                        for cell, column in zip(cells, columns, strict=True)
                    )
                    yield Record(line, tuple(values), self.name)

    def _batches(self, columns: tuple[str, ...]) -> Iterator[tuple[int, list[list[Any]]]]:
        """The number of rows of each batch, and its columns as Python values."""
        first = 1
        with _reading(self.name, first):
            batches = self._file.iter_batches(
                ROWS_AT_A_TIME, columns=list(dict.fromkeys(columns)), use_threads=False
            )
        while True:
            with _reading(self.name, first):
                batch = next(batches, None)
                if batch is None:
                    return
                cells = [_python_values(batch.column(column)) for column in columns]
            yield batch.num_rows, cells
            first += batch.num_rows

    def close(self) -> None:
        """Close the file."""
        self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(source: str) -> BinaryIO:
    with _reading(source):
        return Path(source).open("rb")


@contextmanager
def _reading(name: str, line: int | None = None) -> Iterator[None]:
    """Whatever a damaged file makes the reader raise becomes an InputError."""
    try:
        yield
    except Exception as error:  # Arrow raises OSError, KeyError, ValueError … of many kinds
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise InputError(name, line, f"cannot be read as Parquet: {reason}") from None


def _python_values(column: Any) -> list[Any]:
    """The column as Python values; times are cut to the microsecond, Python's finest."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    values: list[Any] = column.to_pylist()
    return values


def _scalar(value: Any, column: str, name: str, line: int) -> Value:
    if isinstance(value, Decimal):
        return given(float(value))
    if value is None or isinstance(value, str | int | float | date):
        return given(value)
    kind = type(value).__name__
    raise InputError(name, line, f"column {shown(column)} holds {shown(value)}, which is a {kind}")
