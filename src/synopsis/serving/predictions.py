"""``predictions.csv``: one line per forecast, whole lines only, so that a reader never finds half of one."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from synopsis.serving.progressive import Outcome
from synopsis.serving.trace import LEVELS

HEADER = ",".join(
    ("row", "line", "y", "mean", "sd", *(f"q{round(100 * level):02d}" for level in LEVELS))
)
_DIGITS = 9  # what a float32 holds


class PredictionsFile:
    """A CSV file of forecasts that grows line by line.

    Every block of forecasts is handed to the system at once, in one piece, so the file is valid and up to date when the
    program is killed or waits for input; that costs microseconds where a forecast costs milliseconds.

    Args:
        path: of the file.
        after: rows that were predicted before; an existing file is cut behind them and continued, so a run that
            stopped anywhere leaves the same file as one that did not. 0 begins a new file.

    Raises:
        ValueError: when the file to be continued holds something else.
        OSError: when it cannot be written.

    Example:
        >>> with PredictionsFile(Path("predictions.csv")) as file:    # doctest: +SKIP
        ...     file.write(outcomes)
    """

    def __init__(self, path: Path, after: int = 0) -> None:
        keep = _bytes_up_to(path, after) if after and path.exists() else 0
        self._file = path.open("r+b" if keep else "wb", buffering=0)
        if keep:
            self._file.truncate(keep)
            self._file.seek(keep)
        else:
            self._append([HEADER])

    def write(self, outcomes: Iterable[tuple[Outcome, tuple[float, ...]]]) -> None:
        """Add forecasts, each with its quantiles at ``LEVELS``."""
        lines = []
        for outcome, quantiles in outcomes:
            row, forecast = outcome.row, outcome.forecast
            y = "" if math.isnan(row.y) else repr(row.y)
            numbers = (forecast.mean, forecast.stddev, *quantiles)
            text = ",".join(f"{number:.{_DIGITS}g}" for number in numbers)
            lines.append(f"{row.number},{row.line},{y},{text}")
        self._append(lines)

    def _append(self, lines: Iterable[str]) -> None:
        data = "".join(f"{line}\n" for line in lines).encode()
        while data:
            data = data[self._file.write(data) :]

    def close(self) -> None:
        """Close the file; nothing is held back."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _bytes_up_to(path: Path, row: int) -> int:
    """Length of the file up to and with the line of this row."""
    kept = 0
    with path.open("rb") as file:
        if file.readline() != f"{HEADER}\n".encode():
            raise ValueError(f"{path}: holds no predictions to go on from; name another file")
        kept = file.tell()
        for line in file:
            number = line.partition(b",")[0]
            if not line.endswith(b"\n") or not number.isdigit() or int(number) > row:
                break
            kept += len(line)
    return kept
