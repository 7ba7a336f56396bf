"""Numbered lines of UTF-8 text from a file or standard input, read in pieces of bounded size."""

import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self, cast

from synopsis.serving.records import InputError

STANDARD_INPUT = "-"
LONGEST_RECORD = 1 << 20  # bytes; more is not a row of numbers but a file that is something else
_BOM = b"\xef\xbb\xbf"


class Lines(Iterator[str]):
    """The lines of a text file in order, each with its number; the file is never held whole.

    Args:
        source: path of the file (``.gz``: unpacked on the fly), or ``-`` for standard input.

    Raises:
        InputError: the file cannot be opened or, on reading, is not text of bearable lines.

    Example:
        >>> with Lines("rows.csv") as lines:       # doctest: +SKIP
        ...     for line in lines:
        ...         print(lines.number, line)
    """

    def __init__(self, source: str) -> None:
        self.name = "<stdin>" if source == STANDARD_INPUT else source
        self.number = 0  # of the line last handed out
        self.record_line = 0  # of the first line handed out since begin_record()
        self._record_bytes = 0
        self._blank = 0  # blank lines that peek() has passed over
        self._held: bytes | None = None
        self._file = _open_bytes(source, self.name)
        self._owned = source != STANDARD_INPUT

    def begin_record(self) -> None:
        """A new record starts with the next line; from here its size is counted."""
        self.record_line = 0
        self._record_bytes = 0

    def peek(self) -> bytes:
        """The next line that is not blank, without handing it out; empty at the end."""
        while self._held is None:
            line = self._read(self.number + self._blank + 1)
            if line and not line.strip():
                self._blank += 1
            else:
                self._held = line
        return self._held

    def __next__(self) -> str:
        held, self._held = self._held, None
        self.number += self._blank + 1
        self._blank = 0
        line = self._read(self.number) if held is None else held
        if not line:
            raise StopIteration
        self.record_line = self.record_line or self.number
        self._record_bytes += len(line)
        if self._record_bytes > LONGEST_RECORD:
            raise InputError(
                self.name, self.record_line, f"a row of more than {LONGEST_RECORD:,} bytes"
            )
        return self._decode(line)

    def _read(self, number: int) -> bytes:
        try:
            line = self._file.readline(LONGEST_RECORD + 1)
        except EOFError:
            raise InputError(self.name, number, "the gzip file ends before its data do") from None
        except (OSError, zlib.error, ValueError) as error:
            raise InputError(self.name, number, f"cannot be read: {_reason(error)}") from None
        return line.removeprefix(_BOM) if number == 1 else line

    def _decode(self, line: bytes) -> str:
        if b"\0" in line:
            raise InputError(self.name, self.number, "holds a NUL byte; it is not UTF-8 text")
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise InputError(
                self.name, self.number, f"byte 0x{byte:02x} at {error.start + 1} is not UTF-8 text"
            ) from None

    def close(self) -> None:
        """Close the file; standard input stays open."""
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open_bytes(source: str, name: str) -> IO[bytes]:
    if source == STANDARD_INPUT:
        return sys.stdin.buffer
    try:
        if source.endswith(".gz"):
            # GzipFile is a binary stream; its stub says so only through IOBase
            return cast("IO[bytes]", gzip.open(source, "rb"))
        return Path(source).open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(name, None, f"cannot be opened: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """What went wrong, without the path that the message begins with anyway."""
    return getattr(error, "strerror", None) or str(error)
