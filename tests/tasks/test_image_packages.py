"""Taking Fashion-MNIST out of a Debian package, made here; nothing is downloaded."""

import io
import lzma
import subprocess
import tarfile

import pytest

from synopsis.tasks import image_packages
from synopsis.tasks.image_packages import FILES, fetch_fashion_mnist, unpack_fashion_mnist


def ar(members):
    """The ar format by its manual: header of 60 bytes, members at even offsets."""
    out = b"!<arch>\n"
    for name, content in members:
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        assert len(header) == 60
        out += header.encode() + content + b"\n" * (len(content) % 2)
    return out


def data_tar(names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(f"./usr/share/datasets/fashion-mnist/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return lzma.compress(buffer.getvalue())


def package(names=FILES, control=b"odd"):
    members = [("debian-binary", b"2.0\n"), ("control.tar.xz", control)]
    return ar([*members, ("data.tar.xz", data_tar(names))])


def test_unpacks_the_four_files_and_nothing_else(tmp_path):
    (tmp_path / "it.deb").write_bytes(package([*FILES, "../../escaped", "README"]))
    unpack_fashion_mnist(tmp_path / "it.deb", tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {n: n for n in FILES}
    assert {p.name for p in tmp_path.iterdir()} == {"it.deb", "out"}


def test_packages_of_ubuntu_are_left_to_dpkg(tmp_path, monkeypatch):
    def run(command, **_):
        assert command == ["dpkg-deb", "--fsys-tarfile", str(tmp_path / "it.deb")]
        return subprocess.CompletedProcess(command, status, data_tar(FILES), b"no dpkg today")

    monkeypatch.setattr(image_packages.subprocess, "run", run)
    (tmp_path / "it.deb").write_bytes(ar([("data.tar.zst/", b"zstd")]))
    status = 0
    unpack_fashion_mnist(tmp_path / "it.deb", tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {n: n for n in FILES}
    status = 2
    with pytest.raises(OSError, match=r"dpkg-deb.*failed \(no dpkg today\)"):
        unpack_fashion_mnist(tmp_path / "it.deb", tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "not a Debian package: it starts with b'<html>'"),
        (package(FILES[:3]), "there is no t10k-labels-idx1-ubyte.gz in it"),
        (package()[:-40], "damaged: it ends inside data.tar.xz"),
        (package()[:-150] + bytes(50) + package()[-100:], "damaged"),
        (ar([("debian-binary", b"2.0\n")]), r"damaged: there is no data.tar.\* in it"),
        (package()[:68] + b"3.0" + package()[68:], "damaged: no header at byte 72"),
        (ar([("data.tar.xz", b"no archive")]), "damaged"),
    ],
)
def test_damaged_packages_are_named(tmp_path, content, message):
    (tmp_path / "it.deb").write_bytes(content)
    with pytest.raises(ValueError, match=rf"it\.deb: {message}"):
        unpack_fashion_mnist(tmp_path / "it.deb", tmp_path / "out")


@pytest.fixture
def archive(monkeypatch):
    """An apt-get that writes what it is told to; returns the commands it was given."""
    commands = []

    def run(command, cwd, **_):
        commands.append(command)
        if archive_holds[0] is not None:
            (cwd / "dataset-fashion-mnist_0.0_all.deb").write_bytes(archive_holds[0])
            return subprocess.CompletedProcess(command, 0, "", "")
        return subprocess.CompletedProcess(command, 100, "", "E: Unable to locate package\n")

    archive_holds = [package()]
    monkeypatch.setattr(image_packages.subprocess, "run", run)
    monkeypatch.setattr(image_packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    return commands, archive_holds


def test_fetches_once_and_says_what_it_does(tmp_path, archive):
    commands, _ = archive
    said = []
    folder = fetch_fashion_mnist(tmp_path, say=said.append)
    assert folder == tmp_path / "fashion-mnist"
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert commands == [["apt-get", "download", "dataset-fashion-mnist"]]
    assert [line.split()[0] for line in said] == ["downloading", "unpacking"]
    assert fetch_fashion_mnist(tmp_path) == folder
    assert len(commands) == 1


def test_fetches_to_where_tasks_look(tmp_path, archive, monkeypatch):
    monkeypatch.setenv("SYNOPSIS_DATA", str(tmp_path / "mine"))
    assert fetch_fashion_mnist() == tmp_path / "mine" / "fashion-mnist"


def test_failure_holds_the_last_words_of_apt(tmp_path, archive):
    archive[1][0] = None
    with pytest.raises(OSError, match=r"Unable to locate package.*apt-get update"):
        fetch_fashion_mnist(tmp_path)
    assert not (tmp_path / "fashion-mnist").exists()


def test_no_apt(tmp_path, monkeypatch):
    monkeypatch.setattr(image_packages.shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"no apt-get here.*packages\.debian\.org"):
        fetch_fashion_mnist(tmp_path)
