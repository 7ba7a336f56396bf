"""Errors a user can mend, told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

USER_ERROR = 2
_INTERRUPTED = 130


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn ValueError and OSError into one line on standard error and exit code 2, and Ctrl-C into 130.

    Example:
        >>> with one_line_errors():    # doctest: +SKIP
        ...     raise ValueError("rows.csv:7: column 'x' holds 'abc', which is not a number")
    """
    try:
        yield
    except (ValueError, OSError) as error:
        typer.echo(f"Error: {_one_line(error)}", err=True)
        raise typer.Exit(USER_ERROR) from error
    except KeyboardInterrupt as interruption:
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(_INTERRUPTED) from interruption


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
