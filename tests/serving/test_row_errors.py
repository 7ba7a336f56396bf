"""One line that names file, line and value for every way a file can be wrong."""

import gzip
import sys
from pathlib import Path

import pytest

from synopsis.serving.rows import InputError, open_rows

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402


def message(source, columns=("a", "b"), **options) -> str:
    """The one error that reading the file to its end raises."""
    with pytest.raises(InputError) as caught:
        list(open_rows(source, columns, **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


WRONG_TEXT = {
    "no header": ("t.csv", b"", "t.csv: is empty; it must begin with a header line"),
    "blank": ("t.csv", b"\n\n", "t.csv: is empty; it must begin with a header line"),
    "no object": ("t.jsonl", b"\n", "t.jsonl: is empty; it must hold one JSON object per line"),
    "long row": ("t.csv", b"a,b\n1,2\n\n1,2,3\n", "t.csv:4: has 3 fields but the header has 2"),
    "short row": ("t.csv", b"a,b\n1\n", "t.csv:2: has 1 fields but the header has 2"),
    "duplicate": ("t.csv", b"\na,b,a\n", "t.csv:2: the header names column 'a' 2 times"),
    "typo": (
        "t.csv",
        b"a,bb,c\n",
        "t.csv:1: there is no column 'b' (did you mean 'bb'?); the columns are 'a', 'bb', 'c'",
    ),
    "header missing": (
        "t.csv",
        b"2012-01-01,5.5\n",
        "t.csv:1: there is no column 'a'; the columns are '2012-01-01', '5.5'; "
        "'5.5' seems to be data: is the header line missing?",
    ),
    "semicolons": (
        "t.csv",
        b"a;b\n",
        "t.csv:1: there is no column 'a'; the columns are 'a;b'; "
        "fields seem to be separated by semicolons",
    ),
    "open quote": (
        "t.csv",
        b'a,b\n1,2\n3,"4\n5,6\n',
        "t.csv:3: is not CSV: a quoted field begins here and never ends",
    ),
    "text after quote": (
        "t.csv",
        b'a,b\n"1"x,2\n',
        "t.csv:2: is not CSV: ',' expected after '\"'",
    ),
    "carriage returns": (
        "t.csv",
        b"a,b\r1,2\r3,4\n",
        "t.csv:1: is not CSV: a carriage return stands inside a line; "
        "lines must end in \\n or \\r\\n",
    ),
    "latin-1": ("t.csv", b"a,b\n1,\xe92\n", "t.csv:2: byte 0xe9 at 3 is not UTF-8 text"),
    "utf-16": (
        "t.csv",
        "\ufeffa,b\n".encode("utf-16-le"),
        "t.csv:1: holds a NUL byte; it is not UTF-8 text",
    ),
    "nul": ("t.csv", b"a,b\n1,2\n\0,2\n", "t.csv:3: holds a NUL byte; it is not UTF-8 text"),
    "not gzip": (
        "t.csv.gz",
        b"a,b\n1,2\n",
        "t.csv.gz:1: cannot be read: Not a gzipped file (b'a,')",
    ),
    "not json": (
        "t.jsonl",
        b'{"a": 1}\n{"a": oops}\n',
        "t.jsonl:2: is not JSON: Expecting value at character 7",
    ),
    "list": ("t.jsonl", b"[1, 2]\n", "t.jsonl:1: holds [1, 2], which is not a JSON object"),
    "scalar": (
        "t.jsonl",
        b'{"a":1}\n"a\\nb"',
        "t.jsonl:2: holds 'a\\nb', which is not a JSON object",
    ),
    "nested value": (
        "t.jsonl",
        b'{"a": [1, 2]}\n',
        "t.jsonl:1: column 'a' holds '[1, 2]', which is a list",
    ),
    "never there": (
        "t.jsonl",
        b'{"a": 1, "bb": 1}\n{"a": 2}\n',
        "t.jsonl: there is no column 'b' (did you mean 'bb'?); the columns are 'a', 'bb'",
    ),
    "deep": ("t.jsonl", b"[" * 100_000, "t.jsonl:1: is JSON nested too deeply"),
    "not parquet": ("t.parquet", b"", None),
    "parquet elsewhere": (
        "t.dat",
        b"PAR1\0",
        "t.dat: holds parquet data; give it as a file named .parquet",
    ),
    "gzip elsewhere": ("t", b"\x1f\x8b\x08", "t: holds gz data; give it as a file named .gz"),
}


@pytest.mark.parametrize("case", WRONG_TEXT)
def test_what_is_wrong_is_said_in_one_line(write, case):
    name, content, expected = WRONG_TEXT[case]
    received = message(write(name, content))
    if expected is None:
        assert received.startswith(f"{name}: cannot be read as Parquet: ")
    else:
        assert received == expected


def test_the_error_carries_file_and_line(write):
    with pytest.raises(InputError) as caught:
        list(open_rows(write("t.csv", "a,b\n1,2,3\n"), ["a"]))
    assert (caught.value.file, caught.value.line) == ("t.csv", 2)


def test_rows_before_the_mistake_are_handed_out(write):
    rows = open_rows(write("t.csv", "a,b\n1,2\n3\n"), ["a"])
    assert next(rows).values == ("1",)
    with pytest.raises(InputError, match=r"t\.csv:3"):
        next(rows)


def test_files_that_cannot_be_opened(write, tmp_path):
    write("plain", b"")
    Path("folder.csv").mkdir()
    Path("folder.parquet").mkdir()
    assert message("nowhere.csv") == "nowhere.csv: cannot be opened: No such file or directory"
    assert message("folder.csv") == "folder.csv: cannot be opened: Is a directory"
    assert message("plain/x.csv") == "plain/x.csv: cannot be opened: Not a directory"
    assert "Is a directory" in message("folder.parquet")
    assert "No such file" in message("nowhere.parquet")
    assert "embedded null byte" in message("a\0b.csv")
    assert message("a\nb.csv").startswith(r"a\nb.csv: cannot be opened")


def test_a_truncated_gzip_file(write):
    text = "a,b\n" + "".join(f"{i},{i * i}\n" for i in range(5000))
    whole = gzip.compress(text.encode())
    received = message(write("t.csv.gz", whole[: len(whole) // 2]))
    assert received.startswith("t.csv.gz:") and received.endswith(
        ": the gzip file ends before its data do"
    )


def test_a_truncated_parquet_file_and_a_missing_column(write):
    write("t.parquet", b"")
    parquet.write_table(pa.table({"a": [1, 2], "bb": [1, 2]}), "t.parquet")
    assert message("t.parquet") == (
        "t.parquet: there is no column 'b' (did you mean 'bb'?); the columns are 'a', 'bb'"
    )
    whole = Path("t.parquet").read_bytes()
    cut = write("cut.parquet", whole[: len(whole) // 2])
    assert message(cut, ["a"]).startswith("cut.parquet: cannot be read as Parquet: ")


def test_a_nested_parquet_value(write):
    write("t.parquet", b"")
    parquet.write_table(pa.table({"a": [[1, 2]]}), "t.parquet")
    assert message("t.parquet", ["a"]) == ("t.parquet:1: column 'a' holds [1, 2], which is a list")


def test_parquet_needs_a_plain_file():
    assert message("-", format_name="parquet") == "-: Parquet can only be read from a plain file"
    assert "plain file" in message("t.parquet.gz")


def test_parquet_without_pyarrow_names_the_extra(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert message(write("t.parquet", b"")) == (
        "t.parquet: Parquet needs pyarrow: pip install synopsis-attention[data]"
    )


def test_an_unknown_format():
    with pytest.raises(ValueError, match="no format 'xml'; the formats are csv, tsv, jsonl, parq"):
        open_rows("t.csv", ["a"], format_name="xml")


def test_standard_input_is_named_in_messages(stdin):
    stdin(b"a,b\n1\n")
    assert message("-") == "<stdin>:2: has 1 fields but the header has 2"


@pytest.mark.parametrize(
    "content", [b"a,b\n1," + b"x" * (2 << 20), b'a,b\n"' + b'\n","' * (1 << 19)]
)
def test_a_row_without_end_is_refused_before_it_fills_the_memory(write, content):
    assert message(write("t.csv", content)) == "t.csv:2: a row of more than 1,048,576 bytes"


def test_many_columns_are_not_all_listed(write):
    header = ",".join(f"c{i}" for i in range(1000))
    received = message(write("t.csv", f"{header}\n"), ["zz"])
    assert received.endswith("'c19' and 980 more") and len(received) < 250
