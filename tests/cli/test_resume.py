import json
from pathlib import Path

import pytest

from tests.cli.commands import assert_one_line_error, stream


@pytest.mark.parametrize("stop", [0, 7, 8, 21, 33, 60])
@pytest.mark.parametrize(("horizon", "lags"), [(1, "1"), (4, "4")])
def test_stopping_and_going_on_is_one_run_to_the_bit(
    table: Path, base: list[object], stop: int, horizon: int, lags: str
) -> None:
    options = [*base, "--lags", lags, "--horizon", horizon]
    assert stream(table, *options, "--predictions", "a.csv", "--save-state", "a.s").exit_code == 0
    first = stream(
        table, *options, "--limit", stop, "--predictions", "b.csv", "--save-state", "b.s"
    )
    assert first.exit_code == 0
    rest = ["--state", "b.s", "--skip-seen", "--predictions", "b.csv", "--save-state", "b.s"]
    second = stream(table, *rest, "--report", "b")
    assert second.exit_code == 0, second.output
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()
    assert Path("a.s").read_bytes() == Path("b.s").read_bytes()


def test_metrics_of_two_halves_are_those_of_one_run(table: Path, base: list[object]) -> None:
    stream(table, *base, "--report", "a")
    stream(table, *base, "--limit", 30, "--save-state", "s")
    stream(table, "--state", "s", "--skip-seen", "--report", "b")
    a, b = (json.loads(Path(name, "metrics.json").read_text()) for name in "ab")
    assert b.pop("run")["rows"] == 30
    assert a.pop("run")["rows"] == 60
    assert a == b


def test_the_rest_may_come_as_another_file(table: Path, base: list[object]) -> None:
    lines = table.read_text().splitlines(keepends=True)
    rest = Path("rest.csv")
    rest.write_text("".join([lines[0], *lines[31:]]))
    stream(table, *base, "--predictions", "a.csv")
    stream(table, *base, "--limit", 30, "--predictions", "b.csv", "--save-state", "s")
    stream(rest, "--state", "s", "--predictions", "b.csv")
    a, b = (Path(name).read_text().splitlines() for name in ("a.csv", "b.csv"))
    assert a[:31] == b[:31]
    forget_line = [[c for i, c in enumerate(row.split(",")) if i != 1] for row in [*a, *b]]
    assert forget_line[: len(a)] == forget_line[len(a) :]


def test_states_that_do_not_belong(
    table: Path, base: list[object], other_process_folder: Path
) -> None:
    assert stream(table, *base, "--limit", 30, "--save-state", "s").exit_code == 0
    data = Path("s").read_bytes()
    Path("cut").write_bytes(data[:-100])
    Path("text").write_text("not a state at all")
    on = ["--skip-seen", "--state"]
    assert_one_line_error(stream(table, *on, "cut"), "cut: ")
    assert_one_line_error(stream(table, *on, "text"), "text: not a state")
    another = stream(table, *on, "s", "--process", other_process_folder)
    assert_one_line_error(another, "s: the state was made by process")
    contradictions = {
        ("--y", "x"): "s: was saved with y 'y', not 'x'",
        ("--x", "x"): "s: was saved with inputs date:year,x, not x",
        ("--lags", "1"): "s: was saved with lags none, not 1",
        ("--horizon", "2"): "s: was saved with horizon 1, not 2",
        ("--scale", "f"): "--scale cannot go with --state",
    }
    for options, message in contradictions.items():
        assert_one_line_error(stream(table, *on, "s", *options), message)
    assert stream(table, *on, "s", "--y", "y", "--x", "date:year", "--x", "x").exit_code == 0
