"""Metrics as JSON Lines: one object a line, in the order of the steps."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add one line; what JSON cannot say (NaN, infinity) becomes null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(record), allow_nan=False) + "\n")


def keep_records(path: Path, last_step: int) -> None:
    """Drop lines after ``last_step``, and a line torn by a crash, so that they are not said twice."""
    kept = [line for line, record in _lines(path) if record["step"] <= last_step]
    path.write_text("".join(kept), encoding="utf-8")


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, as dictionaries.

    Example:
        >>> read_records(Path("no such file"))
        []
    """
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield line, json.loads(line)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
