"""Moments as people write them, against the standard library; phases against the calendar."""

import math
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synopsis.serving.dates import as_moment, phase, seconds_since_epoch, sine_and_cosine
from tests.tolerances import FLOAT64

moments = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2012-01-31", datetime(2012, 1, 31)),
        ("2012-1-3", datetime(2012, 1, 3)),
        ("2012/01/31", datetime(2012, 1, 31)),
        ("2012/1/31 06:30", datetime(2012, 1, 31, 6, 30)),
        ("2012-01", datetime(2012, 1, 1)),
        ("2012/02", datetime(2012, 2, 1)),
        ("20120131", datetime(2012, 1, 31)),
        (20120131, datetime(2012, 1, 31)),
        ("20120131T063000", datetime(2012, 1, 31, 6, 30)),
        ("2012-W05-2", datetime(2012, 1, 31)),
        ("2012-01-31T06:30:15.250", datetime(2012, 1, 31, 6, 30, 15, 250_000)),
        ("2012-01-31T06:30Z", datetime(2012, 1, 31, 6, 30, tzinfo=UTC)),
        (
            "2012-01-31 06:30+02:00",
            datetime(2012, 1, 31, 6, 30, tzinfo=timezone(timedelta(hours=2))),
        ),
        (date(2012, 1, 31), datetime(2012, 1, 31)),
        (datetime(2012, 1, 31, 6), datetime(2012, 1, 31, 6)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        ("1328000000", datetime(2012, 1, 31, 8, 53, 20, tzinfo=UTC)),
        (1328000000.5, datetime(2012, 1, 31, 8, 53, 20, 500_000, tzinfo=UTC)),
        (-86400, datetime(1969, 12, 31, tzinfo=UTC)),
        (20120199, datetime(1970, 8, 21, 20, 56, 39, tzinfo=UTC)),  # no 99th of January: seconds
        (12345678, datetime(1970, 5, 23, 21, 21, 18, tzinfo=UTC)),
    ],
)
def test_moments_as_people_write_them(value, expected):
    moment = as_moment(value)
    assert (moment, moment.utcoffset()) == (expected, expected.utcoffset())


@pytest.mark.parametrize(
    "value",
    ["soon", "2012-13-01", "2012-02-30", "2012/01-31", "31/01/2012", "01-31-2012", "12:30",
     "2012-01-31 25:00", "２０１２-01-01", "2012-01-31x", "1e300", 1e300, -1e14, "1328000000000"],
)  # fmt: skip
def test_what_is_no_moment(value):
    with pytest.raises(ValueError):
        as_moment(value)


def test_milliseconds_are_suspected():
    with pytest.raises(ValueError, match="beyond the year 9999; milliseconds"):
        as_moment(1328000000000)


@given(moments)
def test_iso_text_is_read_as_the_standard_library_reads_it(moment):
    assert as_moment(moment.isoformat()) == as_moment(moment.isoformat(" ")) == moment
    assert as_moment(moment.strftime("%Y").zfill(4) + moment.strftime("/%m/%d")) == as_moment(
        moment.date()
    )


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_a_value_error(text):
    with suppress(ValueError):
        seconds_since_epoch(as_moment(text))


@given(st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=st.timezones()))
def test_seconds_agree_with_the_standard_library(moment):
    assert seconds_since_epoch(moment) == pytest.approx(moment.timestamp(), rel=FLOAT64)


@given(moments)
def test_phases_run_through_their_period(moment):
    midnight = datetime(moment.year, moment.month, moment.day)
    of_day = (moment - midnight) / timedelta(days=1)
    year_length = date(moment.year, 12, 31).timetuple().tm_yday
    of_year = (moment - datetime(moment.year, 1, 1)) / timedelta(days=year_length)
    of_week = (moment.isocalendar().weekday - 1 + of_day) / 7
    for period, expected in (("year", of_year), ("week", of_week), ("day", of_day)):
        assert phase(moment, period) == pytest.approx(expected, abs=FLOAT64)
        assert 0 <= phase(moment, period) < 1


def test_leap_years_are_a_day_longer():
    assert phase(datetime(2012, 12, 31), "year") == 365 / 366
    assert phase(datetime(2013, 12, 31), "year") == 364 / 365
    assert phase(datetime(1900, 12, 31), "year") == 364 / 365
    assert phase(datetime(2000, 12, 31), "year") == 365 / 366


def test_the_phase_is_that_of_the_clock_on_the_wall():
    assert phase(as_moment("2012-01-31T06:00:00+05:00"), "day") == 0.25


def test_sine_and_cosine_of_the_quarters():
    for quarter, point in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)]):
        assert sine_and_cosine(quarter / 4) == pytest.approx(point, abs=FLOAT64)
    assert math.hypot(*sine_and_cosine(0.123)) == pytest.approx(1)
