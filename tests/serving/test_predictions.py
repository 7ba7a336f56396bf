import math
from pathlib import Path

import pytest

from synopsis.serving.forecasts import Forecast
from synopsis.serving.predictions import HEADER, PredictionsFile
from synopsis.serving.progressive import Outcome, Row

QUANTILES = (-1.0, 0.0, 1.0, 2.0, 3.0)


def outcome(number: int, y: float = 0.1) -> tuple[Outcome, tuple[float, ...]]:
    row = Row(number, number + 1, (0.0,), y)
    return Outcome(row, Forecast((1.0,), (number / 3,), (2.0,)), 1.0, number), QUANTILES


def write(path: Path, first: int, last: int, after: int = 0) -> None:
    with PredictionsFile(path, after) as file:
        for number in range(first, last + 1):
            file.write([outcome(number)])


def test_one_line_per_forecast(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with PredictionsFile(path) as file:
        file.write([outcome(1), outcome(2, y=math.nan)])
    assert path.read_text() == (
        "row,line,y,mean,sd,q05,q25,q50,q75,q95\n"
        "1,2,0.1,0.333333333,2,-1,0,1,2,3\n"
        "2,3,,0.666666667,2,-1,0,1,2,3\n"
    )


@pytest.mark.parametrize("torn", ["", "5", "5,6,0.1", "5,6,0.1,1.5,2,-1,0,1,2,3\n6,7,"])
def test_going_on_leaves_the_file_of_one_run(tmp_path: Path, torn: str) -> None:
    whole, parts = tmp_path / "whole.csv", tmp_path / "parts.csv"
    write(whole, 1, 9)
    write(parts, 1, 4)
    parts.write_text(parts.read_text() + torn)
    write(parts, 5, 9, after=4)
    assert parts.read_bytes() == whole.read_bytes()


def test_going_on_without_the_file_begins_one(tmp_path: Path) -> None:
    write(tmp_path / "p.csv", 5, 6, after=4)
    assert [line.split(",")[0] for line in (tmp_path / "p.csv").read_text().splitlines()] == [
        "row",
        "5",
        "6",
    ]


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "letters.txt"
    path.write_text("dear reader\n")
    with pytest.raises(ValueError, match="holds no predictions to go on from"):
        PredictionsFile(path, after=4)
    assert path.read_text() == "dear reader\n"


def test_every_forecast_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    with PredictionsFile(path) as file:
        assert path.read_text() == f"{HEADER}\n"
        for number in range(1, 20):
            file.write([outcome(number)])
            assert path.read_bytes().count(b"\n") == number + 1
