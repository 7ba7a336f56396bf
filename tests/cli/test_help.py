import subprocess
import sys

import pytest

from tests.cli.commands import environment, run

_HELP_WITHOUT_TORCH = """
import sys
from synopsis.cli import app
try:
    app(sys.argv[1:])
except SystemExit as exit:
    assert not exit.code
loaded = [name for name in ("torch", "numpy", "matplotlib") if name in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    "command", ["", "stream", "inspect", "merge", "train", "reproduce", "diagnose"]
)
def test_help_does_not_load_torch(command: str) -> None:
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run(
        [sys.executable, "-c", _HELP_WITHOUT_TORCH, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("synopsis 0.")
