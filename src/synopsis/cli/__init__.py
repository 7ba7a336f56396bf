"""The ``synopsis`` command: one module per command, none of which loads torch before it runs."""

from importlib import import_module
from typing import Annotated

import typer

from synopsis import __version__

_COMMANDS = ("stream", "attend", "states", "train", "diagnose", "reproduce")

app = typer.Typer(
    name="synopsis",
    help="Attention in bounded memory: learn from endless streams in a state that never grows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"synopsis {__version__}")
        raise typer.Exit


@app.callback()
def synopsis(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Attention in bounded memory: learn from endless streams in a state that never grows."""


for _name in _COMMANDS:
    import_module(f"synopsis.cli.{_name}").register(app)


def main() -> None:
    """Run the command line; the entry point of the ``synopsis`` script."""
    app()
