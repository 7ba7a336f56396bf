"""Rows from files and from standard input: in order, in pieces, whatever the format."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePath
from typing import Protocol, Self

from synopsis.serving.delimited import DelimitedTable
from synopsis.serving.jsonlines import JsonLinesTable
from synopsis.serving.lines import STANDARD_INPUT, Lines
from synopsis.serving.parquet import ParquetTable
from synopsis.serving.records import InputError, Record, Value

__all__ = ["FORMATS", "InputError", "Record", "Table", "Value", "open_rows", "open_table"]

FORMATS = ("csv", "tsv", "jsonl", "parquet")
_FORMAT_OF_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}


class Table(Protocol):
    """An open file whose column names are known and whose rows can be read once, in order."""

    columns: tuple[str, ...]

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """The named columns of every row; reading to the end closes the file."""
        ...

    def close(self) -> None:
        """Close the file; standard input stays open."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_rows(
    source: str, columns: Sequence[str], format_name: str | None = None
) -> Iterator[Record]:
    """Read the named columns of every row, in order, holding one piece of the file at a time.

    Args:
        source: path of a CSV, TSV, JSON Lines (also with ``.gz``) or Parquet file, or ``-`` for
            standard input (CSV or JSON Lines, told by the first character).
        columns: names of the columns wanted.
        format_name: one of ``FORMATS`` where the suffix does not tell.

    Returns:
        The rows, missing values as None (``''``, NA, NaN, nan, null, None, ?, ±inf). Empty lines
        are skipped; the line numbers stay those of the file.

    Raises:
        InputError: at once when the file cannot be opened or lacks a column; during reading where
            the mistake is. Nothing else.

    Example:
        >>> for record in open_rows("rows.csv", ["x", "y"]):    # doctest: +SKIP
        ...     print(record.line, record.values)
    """
    table = open_table(source, format_name)
    try:
        return table.records(columns)
    except InputError:
        table.close()
        raise


def open_table(source: str, format_name: str | None = None) -> Table:
    """Open a file as far as its column names; arguments and errors as for :func:`open_rows`.

    Example:
        >>> with open_table("rows.csv") as table:    # doctest: +SKIP
        ...     print(table.columns)
    """
    known = format_name or _format_of_name(source)
    if known is not None and known not in FORMATS:
        raise ValueError(f"there is no format {known!r}; the formats are {', '.join(FORMATS)}")
    if known == "parquet":
        if source == STANDARD_INPUT or source.endswith(".gz"):
            raise InputError(source, None, "Parquet can only be read from a plain file")
        return ParquetTable(source)
    lines = Lines(source)
    try:
        return _TEXT_TABLES[known or _format_of_text(lines)](lines)
    except InputError:
        lines.close()
        raise


def _format_of_name(source: str) -> str | None:
    path = PurePath(source)
    return _FORMAT_OF_SUFFIX.get((path.with_suffix("") if path.suffix == ".gz" else path).suffix)


def _format_of_text(lines: Lines) -> str:
    """CSV or JSON Lines, from the first character."""
    first = lines.peek()
    for magic, kind in ((b"PAR1", "parquet"), (b"\x1f\x8b", "gz")):
        if first.startswith(magic):
            reason = f"holds {kind} data; give it as a file named .{kind}"
            raise InputError(lines.name, None, reason)
    return "jsonl" if first.lstrip().startswith(b"{") else "csv"


_TEXT_TABLES: dict[str, Callable[[Lines], Table]] = {
    "csv": DelimitedTable,
    "tsv": lambda lines: DelimitedTable(lines, delimiter="\t"),
    "jsonl": JsonLinesTable,
}
