"""Rows of comma- or tab-separated text (RFC 4180), one at a time."""

import csv
from collections.abc import Iterator, Sequence
from typing import Self

from synopsis.serving.lines import Lines
from synopsis.serving.records import InputError, Record, as_number, given, positions, shown


class DelimitedTable:
    """A CSV or TSV file, open behind its header line.

    Args:
        lines: the text; this table closes it.
        delimiter: the character between fields.

    Raises:
        InputError: there is no header line, or it is not CSV.

    Example:
        >>> with DelimitedTable(Lines("rows.csv")) as table:    # doctest: +SKIP
        ...     for record in table.records(["x", "y"]):
        ...         print(record.line, record.values)
    """

    def __init__(self, lines: Lines, delimiter: str = ",") -> None:
        self._lines = lines
        self._rows = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
        self.columns: tuple[str, ...] = ()
        header = next(self._fields(), None)
        if header is None:
            raise InputError(lines.name, None, "is empty; it must begin with a header line")
        self._header_line = lines.record_line
        self.columns = tuple(name.strip() for name in header)

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """The named columns of every row, as text, in order.

        Raises:
            InputError: a column is not there; on reading, a row is not CSV or of another length.
        """
        try:
            places = positions(columns, self.columns, self._lines.name, self._header_line)
        except InputError as error:
            raise self._with_hint(error) from None
        return self._read(places)

    def _read(self, places: list[int]) -> Iterator[Record]:
        name, width = self._lines.name, len(self.columns)
        with self._lines as lines:
            for row in self._fields():
                if len(row) != width:
                    raise InputError(
                        name, lines.record_line, f"has {len(row)} fields but the header has {width}"
                    )
                yield Record(lines.record_line, tuple(given(row[i]) for i in places), name)

    def _fields(self) -> Iterator[list[str]]:
        """The fields of every row that is not blank."""
        while True:
            self._lines.begin_record()
            try:
                row = next(self._rows)
            except StopIteration:
                return
            except csv.Error as error:
                line = self._lines.record_line or self._lines.number
                raise InputError(self._lines.name, line, f"is not CSV: {_reason(error)}") from None
            # a line of spaces is a blank line, unless rows have one field, which it leaves empty
            if row and not (len(row) == 1 != len(self.columns) and not row[0].strip()):
                yield row

    def _with_hint(self, error: InputError) -> InputError:
        """The same error, saying why when the file seems to be of another make."""
        for other, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
            if len(self.columns) == 1 and other in self.columns[0]:
                return _add(error, f"fields seem to be separated by {name}")
        for name in self.columns:
            if as_number(name) is not None:
                return _add(error, f"{shown(name)} seems to be data: is the header line missing?")
        return error

    def close(self) -> None:
        """Close the text."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _add(error: InputError, hint: str) -> InputError:
    where = error.file if error.line is None else f"{error.file}:{error.line}"
    reason = str(error).removeprefix(f"{where}: ")
    return InputError(error.file, error.line, f"{reason}; {hint}")


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "new-line character" in text:
        return "a carriage return stands inside a line; lines must end in \\n or \\r\\n"
    if "unexpected end of data" in text:
        return "a quoted field begins here and never ends"
    return text
