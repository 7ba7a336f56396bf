"""The Markdown of a table: how numbers are written, and where a page says what made it."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from textwrap import fill

UNKNOWN, UNPUBLISHED = "–", "not found"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers.

    Example:
        >>> print(table(["model", "score"], [["CNP", "0.5"]]))
        | model | score |
        | --- | ---: |
        | CNP | 0.5 |
    """
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals and a real minus sign; a dash for none.

    Example:
        >>> number(-0.12345), number(None)
        ('−0.123', '–')
    """
    if value is None:
        return UNKNOWN
    return f"{value:,.{digits}f}".replace("-", "−")


def plus_minus(value: float, error: float | None, digits: int = 3) -> str:
    """A number and its error, if it has one.

    Example:
        >>> plus_minus(1.2, 0.01), plus_minus(1.2, math.nan)
        ('1.200 ± 0.010', '1.200')
    """
    known = error is not None and math.isfinite(error)
    return number(value, digits) + (f" ± {error:.{digits}f}" if known else "")


def seconds(value: float | None) -> str:
    """A duration in the unit that suits it, with two or three significant digits.

    Example:
        >>> seconds(0.01234), seconds(5.0), seconds(0.000004)
        ('12.3 ms', '5.00 s', '0.00 ms')
    """
    if value is None:
        return UNKNOWN
    size, unit = (value, "s") if value >= 1 else (1e3 * value, "ms")
    return (
        f"{size:,.0f} {unit}"
        if size >= 100
        else f"{size:#.3g} {unit}"
        if size >= 0.1
        else f"{size:.2f} {unit}"
    )


def mebibytes(size: float | None) -> str:
    """Bytes in MiB.

    Example:
        >>> mebibytes(3 * 2**20), mebibytes(1000)
        ('3.0', '< 0.05')
    """
    if size is None:
        return UNKNOWN
    mib = size / 2**20
    return f"{mib:,.0f}" if mib >= 100 else f"{mib:.1f}" if mib >= 0.05 else "< 0.05"


def wrapped(text: str) -> str:
    """Paragraphs with lines of at most 116 characters.

    Example:
        >>> wrapped("one\\ntwo")
        'one two'
    """
    return "\n\n".join(fill(part, 116, break_on_hyphens=False) for part in text.split("\n\n"))


def made_by(command: str) -> str:
    """The last words of a page: the command that wrote it, and with what."""
    versions = f"torch {version('torch')}, Python {platform.python_version()}"
    return f"The command, with {versions}:\n\n    {command}\n"


def joined(parts: Sequence[str]) -> str:
    """Parts of a page with empty lines between them."""
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"
