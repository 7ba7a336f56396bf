import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.commands import environment, stream
from tests.cli.conftest import write_table

KILLS = 10
SLOWEST_START = 120.0


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_stream_is_saved_and_reported(
    table: Path, base: list[object], which: signal.Signals
) -> None:
    command = [sys.executable, "-m", "synopsis", "stream", "-", *map(str, base)]
    command += ["--predictions", "p.csv", "--save-state", "s", "--report", "r"]
    lines = table.read_text().splitlines(keepends=True)
    with subprocess.Popen(
        command,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        process.stdin.write("".join(lines[:41]).encode())
        process.stdin.flush()
        _wait_for_lines(Path("p.csv"), 41)
        process.send_signal(which)
        out, error = process.communicate()
    assert process.returncode == 128 + which, error.decode()
    assert b"Traceback" not in error
    assert b"wins on NLL" in out
    assert json.loads(Path("r/metrics.json").read_text())["rows"]["read"] == 40
    stream(table, *base, "--limit", 40, "--save-state", "t")
    assert Path("s").read_bytes() == Path("t").read_bytes()


def _wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + SLOWEST_START
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < deadline, "the stream did not get that far"
        time.sleep(0.02)


_KILL_AT_RANDOM = """
import os, random, signal, sys, time
from pathlib import Path
from synopsis.cli import app
from synopsis.serving import contenders, run
from synopsis.states import read_state

kills, arguments = int(sys.argv[1]), sys.argv[2:]
chance = random.Random(0)
for i in range(kills):
    child = os.fork()
    if not child:
        resumed = ["--state", "k.s", "--skip-seen"] if Path("k.s").exists() else []
        try:
            app([*(arguments[:2] if resumed else arguments), *resumed, "--predictions", "k.csv",
                 "--save-state", "k.s", "--save-every", "1", "--quiet"])
        finally:
            os._exit(0)
    before = Path("k.s").stat().st_mtime_ns if Path("k.s").exists() else 0
    while not Path("k.s").exists() or Path("k.s").stat().st_mtime_ns == before:
        time.sleep(0.001)
    time.sleep(chance.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    saved = read_state(Path("k.s"))
    data = Path("k.csv").read_bytes()
    assert data.endswith(b"\\n"), data[-80:]
    assert data.count(b"\\n") - 1 >= saved.rows, (data.count(b"\\n"), saved.rows)
    print(saved.rows)
"""


def test_kill_at_any_moment_leaves_the_last_state_whole(base: list[object], tmp_path: Path) -> None:
    table = write_table(tmp_path / "long.csv", 1000)
    done = subprocess.run(
        [sys.executable, "-c", _KILL_AT_RANDOM, str(KILLS), "stream", str(table), *map(str, base)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [int(line) for line in done.stdout.split()]
    assert len(rows) == KILLS
    assert rows == sorted(rows)
    assert 0 < rows[0] < rows[-1] < 1000
    stop = rows[-1] + 50
    stream(table, "--state", "k.s", "--skip-seen", "--limit", 50, "--predictions", "k.csv")
    stream(table, *base, "--limit", stop, "--predictions", "whole.csv")
    assert Path("k.csv").read_bytes() == Path("whole.csv").read_bytes()
