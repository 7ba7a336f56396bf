"""Moments in time: how they are written, and where in the year, week and day they fall."""

import math
import re
from datetime import UTC, date, datetime, time, timedelta

from synopsis.serving.records import as_number

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECONDS_PER_YEAR = 365.2425 * 86400  # mean Gregorian year
_DAY = 86400.0
_DATE_FIRST = re.compile(
    r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?|/(\d{1,2})(?:/(\d{1,2}))?)((?:[T ].*)?)", re.ASCII
)
_COMPACT = re.compile(r"(1[89]|2[01])\d{6}", re.ASCII)


def as_moment(value: str | float | int | date) -> datetime:
    """The moment that a cell holds; a date is its midnight.

    Args:
        value: a date or date-time; ISO 8601 text (``2012-01-31``, ``2012-01-31T06:00:00+01:00``,
            ``2012-01``, ``2012-W05-2``), or the same with slashes; or seconds since 1970-01-01
            UTC. Eight digits that are a date of the years 1800 to 2199 are that date: 20120131.

    Raises:
        ValueError: it is none of these.

    Example:
        >>> as_moment("2012/1/31"), as_moment(86400)
        (datetime.datetime(2012, 1, 31, 0, 0), datetime.datetime(1970, 1, 2, 0, 0, tzinfo=...utc))
    """
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time())
    if isinstance(value, str):
        number = as_number(value)
        return _from_text(value) if number is None else _from_number(number)
    return _from_number(value)


def _from_number(seconds: float) -> datetime:
    if _COMPACT.fullmatch(digits := f"{seconds:.17g}"):
        try:
            return datetime.strptime(digits, "%Y%m%d")
        except ValueError:
            pass  # the 99th of some month: not a date, hence seconds
    try:
        return EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        hint = "; milliseconds?" if abs(seconds) < 1e15 else ""
        raise ValueError(f"seconds beyond the year 9999{hint}") from None


def _from_text(text: str) -> datetime:
    if not text.isascii():
        raise ValueError("not ISO 8601")
    if match := _DATE_FIRST.fullmatch(text):
        year, month, day, slash_month, slash_day, rest = match.groups()
        month, day = month or slash_month, day or slash_day or "1"
        text = f"{year}-{month:0>2}-{day:0>2}{rest}"
    return datetime.fromisoformat(text)


def seconds_since_epoch(moment: datetime) -> float:
    """Seconds from 1970-01-01 UTC; a moment without an offset is taken to be in UTC.

    Example:
        >>> seconds_since_epoch(datetime(1970, 1, 2))
        86400.0
    """
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return (aware - EPOCH).total_seconds()


def phase(moment: datetime, period: str) -> float:
    """Where the moment falls in its year, ISO week or day, from 0 to (not including) 1.

    Args:
        moment: read on its own clock: an offset shifts nothing.
        period: ``"year"`` (leap years are a day longer), ``"week"`` (from Monday) or ``"day"``.

    Example:
        >>> phase(datetime(2012, 7, 2), "year"), phase(datetime(2012, 7, 5), "week")
        (0.5, 0.42857142857142855)
    """
    clock = moment.replace(tzinfo=None)
    midnight = datetime.combine(clock, time())
    of_day = (clock - midnight).total_seconds() / _DAY
    if period == "day":
        return of_day
    if period == "week":
        return (clock.weekday() + of_day) / 7
    day = clock.timetuple().tm_yday - 1
    return (day + of_day) / (366 if _is_leap(clock.year) else 365)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def sine_and_cosine(phase: float) -> list[float]:
    """A phase as a point on the circle, so that its end meets its beginning."""
    return [math.sin(2 * math.pi * phase), math.cos(2 * math.pi * phase)]
