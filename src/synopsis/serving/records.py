"""One row of input as it was read, and the one error that everything about input raises."""

import difflib
import math
import re
from collections.abc import Sequence
from datetime import date
from typing import NamedTuple, TypeAlias

Value: TypeAlias = str | float | int | date | None
"""What a cell holds: text, a number, a date or date-time, or None where nothing was given."""

MISSING = frozenset({"", "NA", "NaN", "null", "nan", "None", "?"})
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NAMES_SHOWN = 20
_TEXT_SHOWN = 60


class Record(NamedTuple):
    """The named columns of one row.

    Args:
        line: where the row begins in its file, from 1; in Parquet the number of the row.
        values: one per column asked for, in that order; None is a missing value.
        file: the file's name, for messages.
    """

    line: int
    values: tuple[Value, ...]
    file: str = "-"


class InputError(ValueError):
    """Input that cannot be used; the message is one line and says where and what.

    Args:
        file: the file's name.
        line: where in it, from 1; None when the whole file is meant.
        reason: what is wrong, with the value received.

    Example:
        >>> str(InputError("rows.csv", 7, "column 'x' holds 'abc', which is not a number"))
        "rows.csv:7: column 'x' holds 'abc', which is not a number"
    """

    def __init__(self, file: str, line: int | None, reason: str) -> None:
        where = file if line is None else f"{file}:{line}"
        super().__init__(_printable(f"{where}: {reason}"))
        self.file = file
        self.line = line


def _printable(text: str) -> str:
    """The text with line breaks, control characters and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object) -> str:
    """The value as a message shows it: quoted, one line, of bearable length."""
    text = value if isinstance(value, str) else str(value)
    cut = text if len(text) <= _TEXT_SHOWN else text[:_TEXT_SHOWN] + "…"
    return repr(cut) if isinstance(value, str) else cut


def given(value: Value) -> Value:
    """The value, or None if it says that nothing was given: NA, NaN, ±inf, '', null, None, ?.

    Example:
        >>> given(" 1.5 "), given("?"), given(float("nan"))
        ('1.5', None, None)
    """
    if isinstance(value, str):
        text = value.strip()
        return None if text in MISSING or _NOT_FINITE.fullmatch(text) else text
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


def as_number(text: str) -> float | None:
    """The number that the text writes out, or None when it does not.

    Plain decimal notation only: no thousands separators, underscores, other scripts' digits or
    hexadecimal, all of which Python's own ``float`` takes some of.

    Example:
        >>> as_number("1.5e3"), as_number("1,500"), as_number("1_500")
        (1500.0, None, None)
    """
    return float(text) if _NUMBER.fullmatch(text) else None


def positions(
    columns: Sequence[str], header: Sequence[str], file: str, line: int | None = None
) -> list[int]:
    """Where in the header each column stands.

    Raises:
        InputError: a column is not there (the message lists those that are) or is there twice.
    """
    for column in columns:
        if column not in header:
            raise InputError(file, line, no_such_column(column, header))
        if (times := header.count(column)) > 1:
            raise InputError(file, line, f"the header names column {shown(column)} {times} times")
    return [header.index(column) for column in columns]


def no_such_column(column: str, header: Sequence[str]) -> str:
    """Says that a column is not there, which ones are, and which one may be meant."""
    names = ", ".join(shown(name) for name in header[:_NAMES_SHOWN])
    more = f" and {len(header) - _NAMES_SHOWN} more" if len(header) > _NAMES_SHOWN else ""
    close = difflib.get_close_matches(column, header, n=1)
    hint = f" (did you mean {shown(close[0])}?)" if close else ""
    return f"there is no column {shown(column)}{hint}; the columns are {names}{more}"
