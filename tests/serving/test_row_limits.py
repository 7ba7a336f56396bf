"""Bytes of any kind give rows or an InputError, and files of any size take the same memory."""

import gzip
import random
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from synopsis.serving.rows import FORMATS, InputError, open_rows

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

MEMORY_GROWTH = 8 << 20  # bytes of peak resident memory over that of a small file

structured = st.lists(
    st.sampled_from(
        [
            b"a",
            b"b",
            b",",
            b"\n",
            b'"',
            b"\r",
            b"1",
            b"{",
            b"}",
            b":",
            b"[",
            b"\\",
            b"\xff",
            b"\0",
            b"\t",
            b"\xef\xbb\xbf",
            b'{"a":1}\n',
            b"\\ud800",
            b"1e999",
        ]
    ),
    max_size=30,
).map(b"".join)


@pytest.mark.parametrize("format_name", [*FORMATS, None])
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=st.one_of(st.binary(max_size=200), structured))
@example(content=b'{"a": "\\ud800\\u0000"}\n{"a\\n": }')
@example(content=b'{"a": ' + b"9" * 5000 + b"}")
def test_bytes_of_any_kind_give_rows_or_an_input_error(tmp_path, format_name, content):
    path = tmp_path / "any"
    path.write_bytes(content)
    only_input_errors(str(path), format_name)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("kind", ["parquet", "csv.gz"])
def test_damaged_binary_files_give_rows_or_an_input_error(tmp_path, kind, data):
    path = tmp_path / f"any.{kind}"
    if kind == "parquet":
        moments = [datetime(2012, 1, 1)] * 50
        parquet.write_table(pa.table({"a": list(range(50)), "b": moments}), path)
    else:
        path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 50))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    only_input_errors(str(path), None)


def only_input_errors(source: str, format_name: str | None) -> None:
    try:
        for record in open_rows(source, ["a", "b"], format_name):
            assert len(record.values) == 2 and record.line >= 1
    except InputError as error:
        assert str(error).isprintable() and str(error).startswith(source)


# VmHWM begins anew with the program; ru_maxrss would count the test-suite that started it
MEASURE = """
import re, sys
from pathlib import Path
from synopsis.serving.rows import open_rows
rows = sum(1 for _ in open_rows(sys.argv[1], ["x", "y", "text"]))
status = Path("/proc/self/status").read_text()
print(rows, int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    """50 MB of rows take the memory that 5 MB of rows take."""
    peaks = []  # bytes
    for rows in (10_000, 100_000):
        path = tmp_path / f"{rows}.{suffix}"
        write_rows(path, rows)
        result = subprocess.run(
            [sys.executable, "-c", MEASURE, str(path)], capture_output=True, check=True, text=True
        )
        seen, peak = map(int, result.stdout.split())
        assert seen == rows
        peaks.append(peak)
    assert path.stat().st_size > 50_000_000
    assert peaks[1] - peaks[0] <= MEMORY_GROWTH


def write_rows(path: Path, rows: int) -> None:
    """Rows of two numbers and 500 random letters, which no encoding makes much smaller."""
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=rows + 500)
    table = {
        "x": [i / 7 for i in range(rows)],
        "y": [i / 11 for i in range(rows)],
        "text": ["".join(letters[i : i + 500]) for i in range(rows)],
    }
    if path.suffix == ".parquet":
        parquet.write_table(pa.table(table), path, use_dictionary=False, compression="none")
        return
    line = "{},{},{}\n" if path.suffix == ".csv" else '{{"x":{},"y":{},"text":"{}"}}\n'
    with path.open("w") as file:
        file.write("x,y,text\n" if path.suffix == ".csv" else "")
        file.writelines(line.format(*row) for row in zip(*table.values(), strict=True))
