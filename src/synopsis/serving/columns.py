"""What a model is given of each row: numbers, phases of dates, trends, and past values of y."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cached_property
from typing import Literal, Self, TypeAlias, get_args

from synopsis.serving.dates import (
    SECONDS_PER_YEAR,
    as_moment,
    phase,
    seconds_since_epoch,
    sine_and_cosine,
)
from synopsis.serving.records import InputError, Record, Value, as_number, given, shown

InputKind: TypeAlias = Literal["phase", "number", "lag"]
Part: TypeAlias = Literal["number", "year", "week", "day", "trend"]
DATE_PARTS = tuple(part for part in get_args(Part) if part != "number")
NAN = math.nan


@dataclass(frozen=True)
class InputSpec:
    """One input as the user names it: a column, and what of it is meant.

    Args:
        column: name of the column.
        part: ``"number"`` for its value; of a date ``"year"``, ``"week"``, ``"day"`` for the phase
            as sine and cosine, ``"trend"`` for years since the first row.

    Example:
        >>> InputSpec.parse("date:year")
        InputSpec(column='date', part='year')
    """

    column: str
    part: Part = "number"

    @classmethod
    def parse(cls, text: str, columns: Sequence[str] = ()) -> Self:
        """Read ``column`` or ``column:part``.

        Args:
            text: the input as written.
            columns: names that exist, where known: the longest that fits is meant, so that a name
                may hold a colon itself.

        Raises:
            ValueError: the part is not one there is, or the name is empty.
        """
        fitting = [name for name in columns if text == name or text.startswith(f"{name}:")]
        before = text.rpartition(":")[0] if ":" in text else text
        column = max(fitting, key=len) if fitting else before
        if not column:
            raise ValueError(f"an input needs the name of a column, but got {text!r}")
        if column == text:
            return cls(column)
        written = text[len(column) + 1 :]
        for part in get_args(Part):
            if part == written and part in DATE_PARTS:
                return cls(column, part)
        raise ValueError(
            f"there is no part {written!r} of a date in input {text!r}; "
            f"there are {', '.join(DATE_PARTS)}"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each number that a model gets from this input."""
        if self.part == "number":
            return (self.column,)
        if self.part == "trend":
            return (f"{self.column}:trend",)
        return (f"{self.column}:{self.part}(sin)", f"{self.column}:{self.part}(cos)")

    @property
    def kind(self) -> InputKind:
        """``"phase"`` is bounded and needs no standardising; ``"number"`` does."""
        return "number" if self.part in ("number", "trend") else "phase"

    def __str__(self) -> str:
        return self.column if self.part == "number" else f"{self.column}:{self.part}"


@dataclass(frozen=True)
class LagBuffer:
    """The last few values of y, oldest first; NaN where missing or not yet known.

    Example:
        >>> LagBuffer.empty(2).push(7.0).values([1, 2])
        [7.0, nan]
    """

    past: tuple[float, ...]

    @classmethod
    def empty(cls, length: int) -> Self:
        """Nothing known of the last ``length`` values."""
        return cls((NAN,) * length)

    def push(self, y: float) -> Self:
        """One row further; a missing y is NaN."""
        return type(self)((*self.past, y)[1:])

    def values(self, lags: Sequence[int]) -> list[float]:
        """y of so many rows ago, for each lag from 1 to the length."""
        return [self.past[-lag] for lag in lags]


@dataclass(frozen=True)
class RowEncoder:
    """Turns a row of a file into the numbers a model is given, and y.

    Args:
        y: name of the column to predict.
        specs: the inputs, in the model's order.
        lags: how many rows back y is an input as well, each ≥ 1; they come after ``specs``.
        origin: where trends begin, seconds since 1970; None until :meth:`anchored` has seen a date.
            It belongs to the saved state.

    Raises:
        ValueError: y is among the inputs, an input or lag is named twice, or a lag is below 1.

    Example:
        >>> encoder = RowEncoder("y", [InputSpec("x"), InputSpec("date", "week")], [1])
        >>> encoder.columns, encoder.names
        (('y', 'x', 'date'), ('x', 'date:week(sin)', 'date:week(cos)', 'y[-1]'))
        >>> encoder.encode(Record(2, ("3.5", "1", "2012-01-02")))
        ([1.0, 0.0, 1.0], 3.5)
    """

    y: str
    specs: Sequence[InputSpec]
    lags: Sequence[int] = ()
    origin: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "specs", tuple(self.specs))
        object.__setattr__(self, "lags", tuple(self.lags))
        for spec in self.specs:
            if spec.column == self.y:
                raise ValueError(
                    f"{self.y!r} is to be predicted and cannot be an input; past values are lags"
                )
        if twice := _first_repeated([str(spec) for spec in self.specs]):
            raise ValueError(f"input {twice!r} is named twice")
        for lag in self.lags:
            if lag < 1:
                raise ValueError(f"a lag is {lag}; it must be at least 1, the row before")
        if again := _first_repeated(self.lags):
            raise ValueError(f"lag {again} is named twice")
        if not self.names:
            raise ValueError("there is no input; name at least one column or lag")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The columns that a record must hold, in this order; y first, none twice."""
        return tuple(dict.fromkeys((self.y, *(spec.column for spec in self.specs))))

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each of the model's inputs."""
        given_names = [name for spec in self.specs for name in spec.names]
        return (*given_names, *(f"{self.y}[-{lag}]" for lag in self.lags))

    @property
    def kinds(self) -> tuple[InputKind, ...]:
        """How each input is to be scaled: not (phase), by itself (number) or as y (lag)."""
        given_kinds = [spec.kind for spec in self.specs for _ in spec.names]
        lag_kinds: list[InputKind] = ["lag"] * len(self.lags)
        return (*given_kinds, *lag_kinds)

    @property
    def dim(self) -> int:
        """How many inputs the model gets, lags included."""
        return len(self.names)

    def no_past(self) -> LagBuffer:
        """A buffer of the right length in which nothing is known."""
        return LagBuffer.empty(max(self.lags, default=0))

    def anchored(self, record: Record) -> Self:
        """This encoder with its trends beginning at the record's date, if they do not begin yet.

        Raises:
            InputError: the date cannot be read.
        """
        if self.origin is not None:
            return self
        for spec, value in zip(self.specs, self._values(record), strict=True):
            if spec.part == "trend" and (value := given(value)) is not None:
                return replace(self, origin=_seconds(value, spec.column, record))
        return self

    def encode(self, record: Record) -> tuple[list[float], float]:
        """The inputs without the lags, and y; NaN where the row gives nothing.

        Args:
            record: the values of :attr:`columns`.

        Raises:
            InputError: text stands where a number or date belongs.
            ValueError: a trend was not :meth:`anchored`.
        """
        inputs = []
        for spec, value in zip(self.specs, self._values(record), strict=True):
            inputs += self._encode_one(spec, given(value), record)
        return inputs, _number(record.values[0], self.y, record)

    def _values(self, record: Record) -> list[Value]:
        by_column = dict(zip(self.columns, record.values, strict=True))
        return [by_column[spec.column] for spec in self.specs]

    def _encode_one(self, spec: InputSpec, value: Value, record: Record) -> list[float]:
        if value is None:
            return [NAN] * len(spec.names)
        if spec.part == "number":
            return [_number(value, spec.column, record)]
        if spec.part == "trend":
            if self.origin is None:
                raise ValueError(f"{spec} has no origin yet; use the encoder that anchored returns")
            return [(_seconds(value, spec.column, record) - self.origin) / SECONDS_PER_YEAR]
        return sine_and_cosine(phase(_moment(value, spec.column, record), spec.part))


def _first_repeated(items: Sequence[str | int]) -> str | int | None:
    return next((item for i, item in enumerate(items) if item in items[:i]), None)


def _number(value: Value, column: str, record: Record) -> float:
    """The value as a finite number, NaN when it is missing (as is what no double can hold)."""
    value = given(value)
    if value is None:
        return NAN
    if isinstance(value, date):
        reason = f"column {shown(column)} holds {value}, which is a date and not a number"
        raise InputError(record.file, record.line, f"{reason}; name it {column}:year or :trend")
    try:
        number = as_number(value) if isinstance(value, str) else float(value)
    except OverflowError:
        return NAN
    if number is None:
        reason = f"column {shown(column)} holds {shown(value)}, which is not a number"
        raise InputError(record.file, record.line, reason)
    return number if math.isfinite(number) else NAN


def _moment(value: str | float | date, column: str, record: Record) -> datetime:
    try:
        return as_moment(value)
    except ValueError as error:
        why = "" if "ISO" in str(error) or "isoformat" in str(error) else f" ({error})"
        reason = f"column {shown(column)} holds {shown(value)}, which is not a date{why}"
        raise InputError(record.file, record.line, reason) from None


def _seconds(value: str | float | date, column: str, record: Record) -> float:
    return seconds_since_epoch(_moment(value, column, record))
