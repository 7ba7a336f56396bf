"""Rows of JSON Lines: one object per line."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Self

from synopsis.serving.lines import Lines
from synopsis.serving.records import InputError, Record, Value, given, no_such_column, shown


class JsonLinesTable:
    """A JSON Lines file; its columns are the keys of the first object.

    Args:
        lines: the text; this table closes it.

    Raises:
        InputError: there is no line, or the first is not an object.

    Example:
        >>> with JsonLinesTable(Lines("rows.jsonl")) as table:    # doctest: +SKIP
        ...     for record in table.records(["x", "y"]):
        ...         print(record.line, record.values)
    """

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._objects = self._parse()
        self._first = next(self._objects, None)
        if self._first is None:
            raise InputError(lines.name, None, "is empty; it must hold one JSON object per line")
        self._first_line = lines.number
        self.columns = tuple(self._first)

    def records(self, columns: Sequence[str]) -> Iterator[Record]:
        """The named columns of every object; a key that an object lacks is a missing value.

        Raises:
            InputError: on reading, a line is not an object or a value not a scalar; at the end, a
                column was in none of the objects.
        """
        return self._read(tuple(columns))

    def _read(self, columns: tuple[str, ...]) -> Iterator[Record]:
        unseen = set(columns)
        line = self._first_line
        with self._lines as lines:
            values, self._first = self._first, None
            while values is not None:
                unseen.difference_update(values)
                cells = tuple(_scalar(values.get(c), c, lines.name, line) for c in columns)
                yield Record(line, cells, lines.name)
                values = next(self._objects, None)
                line = lines.number
            for column in columns:
                if column in unseen:
                    raise InputError(lines.name, None, no_such_column(column, self.columns))

    def _parse(self) -> Iterator[dict[str, Any]]:
        lines = self._lines
        while True:
            lines.begin_record()
            line = next(lines, None)
            if line is None:
                return
            if line.strip():
                yield _object(line, lines.name, lines.number)

    def close(self) -> None:
        """Close the text."""
        self._lines.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _object(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        reason = f"is not JSON: {error.msg} at character {error.colno}"
        raise InputError(name, number, reason) from None
    except RecursionError:
        raise InputError(name, number, "is JSON nested too deeply") from None
    except ValueError as error:  # Python refuses to parse integers of thousands of digits
        raise InputError(name, number, f"is not usable JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(name, number, f"holds {shown(value)}, which is not a JSON object")
    return value


def _scalar(value: Any, column: str, name: str, line: int) -> Value:
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "an object"
        raise InputError(
            name, line, f"column {shown(column)} holds {shown(json.dumps(value))}, which is {kind}"
        )
    return given(value)
