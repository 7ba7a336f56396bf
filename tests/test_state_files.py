"""Files of states: named when unreadable, and whole whatever happens while they are written."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from synopsis.states import (
    StateFormatError,
    read_state,
    write_atomic,
)
from tests.state_examples import STATES, assert_identical


def test_read_state_names_the_file(tmp_path):
    path = tmp_path / "a.synopsis"
    with pytest.raises(StateFormatError, match=str(path)):
        read_state(path)
    path.write_bytes(b"nothing")
    with pytest.raises(StateFormatError, match=f"{path}: not a state: 7 bytes"):
        read_state(path)
    with pytest.raises(StateFormatError, match=str(tmp_path)):
        read_state(tmp_path)
    write_atomic(path, STATES["cmab"].serialize())
    assert_identical(read_state(path), STATES["cmab"])


def test_write_atomic_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "a.synopsis"
    for data in (b"old", b"newer and longer", b""):
        write_atomic(path, data)
        assert path.read_bytes() == data
    assert [p.name for p in tmp_path.iterdir()] == ["a.synopsis"]


@pytest.mark.parametrize("moment", ["pathlib.Path.replace", "os.fsync"])
@pytest.mark.parametrize("blow", [OSError, KeyboardInterrupt])
def test_a_failure_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch, moment, blow):
    path = tmp_path / "a.synopsis"
    write_atomic(path, b"old")

    def fail(*_):
        raise blow

    monkeypatch.setattr(moment, fail)
    with pytest.raises(blow):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.synopsis"]


KILLED = """
import os, pathlib, signal, sys
from synopsis.states import write_atomic
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(pathlib.Path, "replace", die) if sys.argv[2] == "rename" else setattr(os, "fsync", die)
write_atomic(pathlib.Path(sys.argv[1]), b"new" * 1000)
"""


@pytest.mark.parametrize("moment", ["rename", "fsync"])
def test_a_killed_process_leaves_the_old_file(tmp_path, moment):
    path = tmp_path / "a.synopsis"
    write_atomic(path, b"old")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path), moment], env=environment, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    write_atomic(path, b"next")
    assert path.read_bytes() == b"next"


def test_a_reader_sees_one_whole_file_or_the_other(tmp_path):
    path = tmp_path / "a.synopsis"
    wholes = [bytes([i]) * 300_000 for i in range(2)]
    write_atomic(path, wholes[0])
    pid = os.fork()
    if pid == 0:
        for i in range(60):
            write_atomic(path, wholes[i % 2])
        os._exit(0)
    seen = set()
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        seen.add(path.read_bytes())
    assert seen <= set(wholes)


def test_threads_that_write_one_file_do_not_tear_it(tmp_path):
    path = tmp_path / "a.synopsis"
    wholes = [bytes([i]) * 100_000 for i in range(3)]
    write_atomic(path, wholes[0])

    def write(whole: bytes) -> None:
        for _ in range(30):
            write_atomic(path, whole)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, whole) for whole in wholes]
        seen = set()
        while not all(writer.done() for writer in writers):
            seen.add(path.read_bytes())
        for writer in writers:
            writer.result()
    assert seen <= set(wholes)
    assert [p.name for p in tmp_path.iterdir()] == ["a.synopsis"]
