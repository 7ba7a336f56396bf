"""Rows from every format, their values, and their line numbers."""

import gzip
import json
import subprocess
import sys
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from synopsis.serving.rows import Record, open_rows, open_table

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

TABLE = [("1", "2.5"), ("2", None), ("3", "-1e3")]


def values(source, columns=("a", "b"), **options):
    return [record.values for record in open_rows(source, columns, **options)]


def test_csv_columns_by_name_in_the_order_asked_for_with_true_line_numbers(write):
    name = write("t.csv", "b,other,a\r\n2.5,x,1\r\n\r\n,y,2\n   \n-1e3,z,3")
    records = list(open_rows(name, ["a", "b"]))
    assert records == [
        Record(2, ("1", "2.5"), "t.csv"),
        Record(4, ("2", None), "t.csv"),
        Record(6, ("3", "-1e3"), "t.csv"),
    ]


def test_tsv_gzip_and_a_byte_order_mark(write):
    text = "\ufeffa\tb\n1\t2.5\n2\tNA\n3\t-1e3\n"
    assert values(write("t.tsv", text)) == TABLE
    assert values(write("t.tsv.gz", gzip.compress(text.encode()))) == TABLE
    assert values(write("t.data", text), format_name="tsv") == TABLE


def test_quoted_fields_may_hold_separators_quotes_and_line_breaks(write):
    name = write("t.csv", 'a,"the ""b"""\n"x, y","1\n2"\n3, "4"\n')
    records = list(open_rows(name, ["a", 'the "b"']))
    assert [(r.line, r.values) for r in records] == [(2, ("x, y", "1\n2")), (4, ("3", "4"))]


def test_json_lines_keep_types_and_a_missing_key_is_a_missing_value(write):
    lines = [
        '{"a": 1, "b": 2.5, "c": [1]}',
        "",
        '{"b": "NA", "a": true}',
        '{"a": NaN, "b": -Infinity}',
        '{"a": 1e999}',
        '{"a": "2012-01-01", "b": null}',
    ]
    records = list(open_rows(write("t.ndjson", "\n".join(lines)), ["a", "b"]))
    assert [r.line for r in records] == [1, 3, 4, 5, 6]
    assert [r.values for r in records] == [
        (1, 2.5),
        (True, None),
        (None, None),
        (None, None),
        ("2012-01-01", None),
    ]


def test_a_column_missing_in_the_first_object_may_come_later(write):
    assert values(write("t.jsonl", '{"a": 1}\n{"b": 2}\n')) == [(1, None), (None, 2)]


def test_parquet_values_and_row_numbers(write):
    moments = [datetime(2012, 1, 1, 6), datetime(2012, 1, 2), None]
    table = pa.table(
        {
            "x": pa.array([1.5, float("nan"), None]),
            "n": pa.array([1, 2, 3], pa.int16()),
            "day": pa.array([date(2012, 1, 1)] * 3),
            "ns": pa.array(moments, pa.timestamp("ns")),
            "utc": pa.array(moments, pa.timestamp("us", "UTC")),
            "text": pa.array(["q", "?", "q"]).dictionary_encode(),
            "price": pa.array([Decimal("1.25")] * 3),
        }
    )
    write("t.parquet", b"")
    parquet.write_table(table, "t.parquet", row_group_size=2)
    records = list(open_rows("t.parquet", ["price", *table.column_names]))
    assert [r.line for r in records] == [1, 2, 3]
    day, six = date(2012, 1, 1), datetime(2012, 1, 1, 6)
    assert records[0].values == (1.25, 1.5, 1, day, six, six.replace(tzinfo=UTC), "q", 1.25)
    assert records[1].values[:2] == (1.25, None) and records[1].values[6] is None
    assert records[2].values[1] is None and records[2].values[4:6] == (None, None)


def test_parquet_nanoseconds_that_python_cannot_hold_are_cut(write):
    write("t.parquet", b"")
    parquet.write_table(pa.table({"t": pa.array([1_500], pa.timestamp("ns"))}), "t.parquet")
    assert values("t.parquet", ["t"]) == [(datetime(1970, 1, 1, microsecond=1),)]


def test_parquet_larger_than_one_batch_is_in_order(write):
    write("t.parquet", b"")
    numbers = list(range(10_000))
    parquet.write_table(pa.table({"n": numbers}), "t.parquet", row_group_size=3_000)
    records = list(open_rows("t.parquet", ["n"]))
    assert [r.values[0] for r in records] == numbers
    assert [r.line for r in records] == [n + 1 for n in numbers]


@pytest.mark.parametrize(
    "content",
    [b"a,b\n1,2.5\n2,\n3,-1e3\n", b'\n {"a":"1","b":"2.5"}\n{"a":"2"}\n{"a":"3","b":"-1e3"}'],
)
def test_standard_input_is_told_by_its_first_character(stdin, content):
    stdin(content)
    assert values("-") == TABLE
    assert not sys.stdin.buffer.closed


def test_standard_input_hands_out_rows_before_it_ends():
    """A live stream must not wait for a full buffer."""
    program = (
        "from synopsis.serving.rows import open_rows\n"
        "for record in open_rows('-', ['a']): print(record.values[0], flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for text in (b"a\n7\n", b"8\n"):
            process.stdin.write(text)
            process.stdin.flush()
            assert process.stdout.readline().strip() == text.split()[-1]
        process.stdin.close()


@pytest.mark.parametrize(
    "text", ["", " ", "NA", "NaN", "null", "nan", "None", "?", "inf", "-inf", "Infinity", "+INF"]
)
def test_every_way_of_giving_nothing_is_missing(write, text):
    assert values(write("t.csv", f"a,b\n{text},1\n")) == [(None, "1")]
    assert values(write("t.jsonl", json.dumps({"a": text, "b": 1}))) == [(None, 1)]


def test_the_columns_are_known_before_the_rows_are_read(write):
    with open_table(write("t.csv", "a, b ,date:x\n1,2,3\n")) as table:
        assert table.columns == ("a", "b", "date:x")
        assert [r.values for r in table.records(["date:x"])] == [("3",)]
    with open_table(write("t.jsonl", '{"a": 1, "b": 2}')) as table:
        assert table.columns == ("a", "b")


def test_files_are_closed_when_reading_stops_early(write):
    with open_table(write("t.csv", "a,b\n1,2\n3,4\n")) as table:
        next(table.records(["a"]))
    # an open file would warn when it is collected, and warnings are errors
    next(open_rows("t.csv", ["a"]))
