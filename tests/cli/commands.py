"""Commands run in this process or another one, and what must hold of their errors."""

import os
from pathlib import Path

from typer.testing import CliRunner, Result

from synopsis.cli import app


def run(*arguments: object, text: str | None = None) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), input=text, catch_exceptions=False)


def stream(source: Path | str, *options: object, text: str | None = None) -> Result:
    return run("stream", source, *options, text=text)


def assert_one_line_error(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    error = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert error == result.stderr.splitlines(), result.stderr
    assert len(error) == 1
    assert message in error[0]


def environment() -> dict[str, str]:
    source = Path(__file__).parents[2] / "src"
    return {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
