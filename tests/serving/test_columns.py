"""From the cells of a row to the numbers of a model, and every way a cell or a request is wrong."""

import math
from datetime import date, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synopsis.serving.columns import InputSpec, LagBuffer, RowEncoder
from synopsis.serving.records import InputError, Record
from synopsis.serving.rows import open_table
from tests.tolerances import FLOAT64

YEAR = 365.2425  # days


def encoder(*inputs: str, lags=(), y="y", columns=()) -> RowEncoder:
    return RowEncoder(y, [InputSpec.parse(text, columns) for text in inputs], lags)


def row(*values, line=7) -> Record:
    return Record(line, values, "t.csv")


# ---- naming inputs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("wind", (), InputSpec("wind")),
        ("date:year", (), InputSpec("date", "year")),
        ("date:week", ("date",), InputSpec("date", "week")),
        ("date:trend", ("other",), InputSpec("date", "trend")),
        ("date:year", ("date", "date:year"), InputSpec("date:year")),
        ("a:b:day", ("a", "a:b"), InputSpec("a:b", "day")),
        ("a:b:day", (), InputSpec("a:b", "day")),
        ("a:b", ("a:b",), InputSpec("a:b")),
        (":x", (":x",), InputSpec(":x")),
    ],
)
def test_inputs_as_written(text, columns, expected):
    spec = InputSpec.parse(text, columns)
    assert spec == expected
    assert str(spec) == text


@pytest.mark.parametrize(
    ("text", "columns", "reason"),
    [
        ("date:month", (), "no part 'month' of a date in input 'date:month'; there are year, week"),
        ("date:number", (), "no part 'number' of a date"),
        ("date:", (), "no part '' of a date in input 'date:'"),
        (
            "a:b",
            ("a", "a:c"),
            "no part 'b' of a date in input 'a:b'; there are year, week, day, tr",
        ),
        ("", (), "an input needs the name of a column, but got ''"),
        (":", (), "needs the name of a column, but got ':'"),
        (":year", (), "needs the name of a column, but got ':year'"),
    ],
)
def test_inputs_that_are_not_there(text, columns, reason):
    with pytest.raises(ValueError, match=reason):
        InputSpec.parse(text, columns)


def test_names_kinds_and_columns():
    e = encoder("date:year", "wind", "date:trend", lags=(1, 7))
    assert e.columns == ("y", "date", "wind")
    assert e.names == ("date:year(sin)", "date:year(cos)", "wind", "date:trend", "y[-1]", "y[-7]")
    assert e.kinds == ("phase", "phase", "number", "number", "lag", "lag")
    assert e.dim == 6
    assert e == encoder("date:year", "wind", "date:trend", lags=[1, 7])


@pytest.mark.parametrize(
    ("inputs", "lags", "reason"),
    [
        (["x", "y"], (), "'y' is to be predicted and cannot be an input"),
        (["y:trend"], (), "'y' is to be predicted and cannot be an input"),
        (["x", "z", "x"], (), "input 'x' is named twice"),
        (["x:year", "x:year"], (), "input 'x:year' is named twice"),
        (["x"], (1, 0), "a lag is 0; it must be at least 1"),
        (["x"], (-2,), "a lag is -2; it must be at least 1"),
        (["x"], (2, 1, 2), "lag 2 is named twice"),
        ([], (), "there is no input"),
    ],
)
def test_requests_that_make_no_sense(inputs, lags, reason):
    with pytest.raises(ValueError, match=reason):
        encoder(*inputs, lags=lags)


# ---- encoding rows -----------------------------------------------------------------------------


def test_numbers_phases_and_y():
    e = encoder("x", "d:day", "d:week")
    inputs, y = e.encode(row("3.5", "-1e3", "2012-01-02T06:00"))
    week = 2 * math.pi * 0.25 / 7
    assert inputs == pytest.approx([-1000, 1, 0, math.sin(week), math.cos(week)], abs=FLOAT64)
    assert y == 3.5


@pytest.mark.parametrize(
    ("value", "expected"), [(3, 3.0), (2.5, 2.5), (True, 1.0), (" 7 ", 7.0), (np.float64(0.5), 0.5)]
)
def test_numbers_of_every_type(value, expected):
    assert encoder("x").encode(row(value, value)) == ([expected], expected)


@pytest.mark.parametrize("value", [None, "", "NA", math.nan, math.inf, "-inf", "1e999", 10**400])
def test_what_is_missing_is_nan(value):
    inputs, y = encoder("x").encode(row(value, value))
    assert math.isnan(inputs[0]) and math.isnan(y)


def test_a_missing_date_leaves_all_its_inputs_missing():
    e = encoder("d:year", "d:trend", "x")
    inputs, _ = e.encode(row("1", None, "2"))
    assert [math.isnan(x) for x in inputs] == [True, True, True, False]


@pytest.mark.parametrize(
    "text", ["abc", "1,000", "1_000", "0x10", "1.5.2", "٣", "1 2", "12%", "--1"]
)
def test_text_where_a_number_belongs(text):
    reason = f"t.csv:7: column 'x' holds '{text}', which is not a number"
    with pytest.raises(InputError) as caught:
        encoder("x").encode(row("1", text))
    assert str(caught.value) == reason
    with pytest.raises(InputError, match="column 'y' holds"):
        encoder("x").encode(row(text, "1"))


def test_a_date_where_a_number_belongs():
    with pytest.raises(InputError) as caught:
        encoder("d").encode(row(1.0, date(2012, 1, 31)))
    assert str(caught.value) == (
        "t.csv:7: column 'd' holds 2012-01-31, which is a date and not a number; "
        "name it d:year or :trend"
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("soon", "'soon', which is not a date"),
        ("2012-02-30", "'2012-02-30', which is not a date (day is out of range for month)"),
        ("1328000000000", "'1328000000000', which is not a date "
         "(seconds beyond the year 9999; milliseconds?)"),
        ("x" * 100, f"'{'x' * 60}…', which is not a date"),
    ],
)  # fmt: skip
def test_what_is_no_date(value, reason):
    for part in ("year", "trend"):
        with pytest.raises(InputError) as caught:
            e = encoder(f"d:{part}")
            e.anchored(row("1", value)).encode(row("1", value))
        assert str(caught.value) == f"t.csv:7: column 'd' holds {reason}"


def test_a_trend_counts_years_from_its_origin():
    fresh = encoder("d:trend")
    e = fresh.anchored(row("1", None))
    assert e is fresh and e.origin is None
    e = e.anchored(row("1", "2012-01-01"))
    assert fresh.origin is None and e.origin == 1325376000
    assert e.anchored(row("1", "1999-01-01")) is e
    for value, days in (("2012-01-01", 0), (datetime(2012, 1, 2, 12), 1.5), ("2011-12-31", -1)):
        inputs, _ = e.encode(row("1", value))
        assert inputs == pytest.approx([days / YEAR])


def test_a_trend_goes_on_from_a_saved_origin():
    inputs, _ = RowEncoder("y", [InputSpec("d", "trend")], origin=0.0).encode(row("1", 86400))
    assert inputs == pytest.approx([1 / YEAR])


def test_a_trend_without_origin_is_refused():
    with pytest.raises(ValueError, match="d:trend has no origin yet"):
        encoder("d:trend").encode(row("1", "2012-01-01"))


# ---- past values of y --------------------------------------------------------------------------


@given(st.lists(st.floats(allow_nan=True), max_size=12), st.sets(st.integers(1, 5), min_size=1))
def test_lags_are_the_values_so_many_rows_ago(series, lags):
    e = encoder(lags=sorted(lags))
    past = e.no_past()
    assert len(past.past) == max(lags)
    for i, y in enumerate(series):
        expected = [series[i - lag] if i >= lag else math.nan for lag in e.lags]
        np.testing.assert_array_equal(past.values(e.lags), expected)
        past = past.push(y)


def test_a_buffer_does_not_change_and_may_be_empty():
    past = LagBuffer.empty(2)
    past.push(1.0)
    assert all(map(math.isnan, past.past))
    nothing = encoder("x").no_past().push(1.0)
    assert nothing.past == () and nothing.values([]) == []


# ---- the example that is shipped ---------------------------------------------------------------


def test_the_seattle_weather_example(request):
    source = request.config.rootpath / "examples" / "seattle-weather.csv"
    with open_table(str(source)) as table:
        e = encoder("date:year", lags=(1, 2), y="temp_max", columns=table.columns)
        rows = [e.encode(record) for record in table.records(e.columns)]
    inputs, outcomes = (np.array(part) for part in zip(*rows, strict=True))
    assert inputs.shape == (1461, 2) and np.isfinite(inputs).all()
    np.testing.assert_allclose(np.hypot(*inputs.T), 1)
    # warm in the half-year around the end of July, cold in the other
    assert np.corrcoef(outcomes, inputs[:, 1])[0, 1] < -0.7
    assert outcomes[0] == 12.8 and outcomes[-1] == 5.6
