import json
from pathlib import Path

import pytest

from synopsis.states import read_state
from tests.cli.commands import assert_one_line_error, stream


def test_the_command_of_the_readme(table: Path, base: list[object], tmp_path: Path) -> None:
    result = stream(
        table, *base, "--lags", "1", "--report", tmp_path / "deep/report", "--predictions", "p.csv"
    )
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert "wins on NLL" in result.stdout
    assert "wins on CRPS" in result.stdout
    assert "2 rows had a missing value" in result.stdout
    names = {path.name for path in (tmp_path / "deep/report").iterdir()}
    assert names == {"metrics.json", "fan.png", "reliability.png", "cost.png"}
    metrics = json.loads((tmp_path / "deep/report/metrics.json").read_text())
    assert metrics["rows"] == {"read": 60, "absorbed": 58, "missing": 2, "scored": 50}
    lines = Path("p.csv").read_text().splitlines()
    assert len(lines) == 61
    number, line, y, _, sd, *quantiles = lines[21].split(",")
    assert (number, line, y) == ("21", "22", "")
    assert float(sd) > 0
    assert [float(q) for q in quantiles] == sorted(float(q) for q in quantiles)


def test_rows_from_standard_input(table: Path, base: list[object]) -> None:
    stream(table, *base, "--predictions", "a.csv")
    result = stream("-", *base, "--predictions", "b.csv", text=table.read_text())
    assert result.exit_code == 0
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_quiet_says_nothing(table: Path, base: list[object]) -> None:
    assert stream(table, *base, "--quiet", "--limit", 9).output == ""


def test_a_scale_from_another_run(table: Path, base: list[object]) -> None:
    assert stream(table, *base, "--save-scale", "scale.json").exit_code == 0
    assert stream(table, *base, "--scale", "scale.json", "--report", "r").exit_code == 0
    assert json.loads(Path("r/metrics.json").read_text())["rows"]["scored"] == 58
    result = stream(table, *base, "--limit", 3, "--save-scale", "none.json")
    assert result.exit_code == 0
    assert "no scale to save" in result.stdout
    assert not Path("none.json").exists()


def _broken(table: Path, line: int, text: str) -> Path:
    lines = table.read_text().splitlines()
    lines[line - 1] = text
    path = Path("broken.csv")
    path.write_text("\n".join(lines))
    return path


def test_text_where_a_number_belongs_keeps_everything_before(
    table: Path, base: list[object]
) -> None:
    broken = _broken(table, 40, "2020-02-10,abc,3")
    result = stream(broken, *base, "--predictions", "p.csv", "--save-state", "s", "--report", "r")
    assert_one_line_error(result, "broken.csv:40: column 'x' holds 'abc', which is not a number")
    assert len(Path("p.csv").read_text().splitlines()) == 39
    assert json.loads(Path("r/metrics.json").read_text())["rows"]["read"] == 38
    assert Path("r/fan.png").exists()
    stream(table, *base, "--limit", 38, "--save-state", "t")
    assert Path("s").read_bytes() == Path("t").read_bytes()


def test_a_missing_value_is_an_error_with_strict(table: Path, base: list[object]) -> None:
    result = stream(table, *base, "--strict", "--save-state", "s")
    assert_one_line_error(result, "rows.csv:22: column 'y' holds no value")
    assert int(read_state(Path("s")).count) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--x", "z"], "rows.csv:1: there is no column 'z'"),
        (["--lags", "1,2"], "the process takes 4 inputs but there are 5"),
        (["--lags", "one"], "--lags takes whole numbers with commas, such as 1,2; not 'one'"),
        (["--lags", "1", "--horizon", "2"], "lag 1 is not known yet"),
        (["--x", "date:month"], "there is no part 'month' of a date"),
        (["--process", "nowhere"], "'nowhere' is neither a folder nor a shipped process"),
        (["--scale", "gone.json"], "gone.json: No such file or directory"),
        (["--state", "gone.state"], "gone.state: "),
        (["--predictions", "rows.csv/p.csv"], "rows.csv"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    table: Path, base: list[object], options: list[str], message: str
) -> None:
    assert_one_line_error(stream("rows.csv", *base, *options), message)


def test_an_absent_file_and_an_absent_y(base: list[object], table: Path) -> None:
    assert_one_line_error(stream("gone.csv", *base), "gone.csv: cannot be opened: No such file")
    assert_one_line_error(stream(table, "--x", "x"), "name the column to predict: --y COLUMN")
