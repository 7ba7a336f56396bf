import json
import math

from synopsis.training.records import append_record, keep_records, read_records


def test_lines_are_json_and_come_back(tmp_path):
    path = tmp_path / "m"
    records = [{"step": k, "loss": 0.1 * k, "deep": {"a": [1, None]}} for k in range(5)]
    for record in records:
        append_record(path, record)
    assert read_records(path) == records
    assert [json.loads(line) for line in path.read_text().splitlines()] == records


def test_what_json_cannot_say_is_null(tmp_path):
    append_record(tmp_path / "m", {"step": 1, "loss": math.nan, "deep": {"a": -math.inf}})
    assert read_records(tmp_path / "m") == [{"step": 1, "loss": None, "deep": {"a": None}}]


def test_lines_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    path = tmp_path / "m"
    for step in range(5):
        append_record(path, {"step": step})
    with path.open("a") as file:
        file.write('{"step": 1, "lo')
    keep_records(path, 2)
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n'


def test_keeping_the_records_of_a_new_run_makes_an_empty_file(tmp_path):
    keep_records(tmp_path / "m", 0)
    assert (tmp_path / "m").read_text() == ""
