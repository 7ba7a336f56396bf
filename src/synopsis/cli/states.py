"""``synopsis inspect`` and ``synopsis merge``: what saved states hold, and one from several."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synopsis.cli.errors import one_line_errors

_KINDS_OF_STATES = ("synopsis.attention", "synopsis.processes", "synopsis.serving.contenders")


def register(app: typer.Typer) -> None:
    """Add ``inspect`` and ``merge`` to the application."""
    app.command("inspect")(inspect)
    app.command("merge")(merge)


def inspect(
    file: Annotated[Path, typer.Argument(help="State saved by `synopsis stream --save-state`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say what a state file holds: process, rows, bytes, inputs with their scaling, scores."""
    with one_line_errors():
        from importlib import import_module

        from synopsis.serving.description import describe_file

        for module in _KINDS_OF_STATES:  # a kind of state is known once its module is loaded
            import_module(module)
        found = describe_file(file)
        if as_json:
            typer.echo(json.dumps(found, indent=2))
        else:
            _print(found)


def merge(
    files: Annotated[list[Path], typer.Argument(help="States, in the order of their data.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to save the merged state in.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File for the attention of merged attention states, as `synopsis attend --out` writes it.",
        ),
    ] = None,
    process: Annotated[
        str | None,
        typer.Option(
            metavar="NAME_OR_FOLDER", help="Process of the states; by default as they name it."
        ),
    ] = None,
) -> None:
    """Join states that were built from different parts of the data.

    States of streams must be of one process and scaling: save that of the first with --save-scale and stream the others
    with --scale. States of attention must answer the same queries.
    """
    with one_line_errors():
        if len(files) < 2:
            raise ValueError(f"merging takes at least two states; there is only {files[0]}")
        if out is None and output is None:
            raise ValueError("name a file for the result: --out FILE")
        if _are_of_attention(files):
            _merge_attention(files, out, output)
        elif output is not None or out is None:
            raise ValueError("--output is for states of attention; give these a file with --out")
        else:
            _merge_streams(files, out, process)


def _are_of_attention(files: list[Path]) -> bool:
    """Whether all are; ValueError when only some are."""
    from synopsis.states import StateFormatError, header

    kinds = []
    for file in files:
        try:
            kinds.append(header(file.read_bytes())["state"]["kind"])
        except OSError as error:
            raise StateFormatError(f"{file}: {error.strerror}") from error
        except Exception as error:  # whatever strange bytes provoke
            raise StateFormatError(f"{file}: {error}") from error
    found = [kind == "attention" for kind in kinds]
    if any(found) and not all(found):
        other = found.index(not found[0])
        raise ValueError(
            f"{files[other]}: holds a state of kind {kinds[other]!r}; {files[0]} one of kind {kinds[0]!r}"
        )
    return all(found)


def _merge_attention(files: list[Path], out: Path | None, output: Path | None) -> None:
    from synopsis.attention import AttentionState
    from synopsis.cli.attention_output import check_place, write_output
    from synopsis.states import read_state, write_atomic

    if output is not None:
        check_place(output)
    merged: AttentionState | None = None
    for file in files:
        state = read_state(file)
        assert isinstance(state, AttentionState)
        try:
            merged = state if merged is None else merged.merge(state)
        except ValueError as error:
            raise ValueError(f"{file}: cannot be merged with {files[0]}: {error}") from error
    assert merged is not None
    if out is not None:
        write_atomic(out, merged.serialize())
    if output is not None:
        write_output(output, merged)
    typer.echo(f"{out or output}: {int(merged.count):,} keys of {len(files)} states")


def _merge_streams(files: list[Path], out: Path, process: str | None) -> None:
    from synopsis.serving.merging import merge_streams
    from synopsis.serving.opening import read_stream_state
    from synopsis.states import write_atomic

    states = [read_stream_state(file) for file in files]
    merged = merge_streams(states, [str(file) for file in files], process)
    write_atomic(out, merged.serialize())
    typer.echo(f"{out}: {int(merged.count.sum()):,} rows of {len(files)} states")


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False)
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(found).items():
        facts.add_row(name, value)
    console.print(facts)
    for title, rows in (("scaling", _scaling_rows(found)), ("scores", _score_rows(found))):
        if rows:
            table = Table(*rows[0], title=title, title_justify="left")
            for row in rows[1:]:
                table.add_row(*row)
            console.print(table)


def _facts(found: dict[str, Any]) -> dict[str, str]:
    size = found["bytes"]
    facts = {
        "file": found["file"],
        "kind": f"{found['kind']}, format {found['format']}",
        "bytes": f"{size['file']:,} ({size['state']:,} of tensors)",
    }
    if "process" not in found:
        return facts | {"seen": f"{found['count']:,}"}
    process, rows = found["process"], found["rows"]
    facts["process"] = (
        f"{process['name']} ({process['fingerprint']}), {found['process_bytes']:,} bytes"
    )
    facts["rows"] = (
        f"{rows['read']:,} read, {rows['absorbed']:,} learned from, {rows['missing']:,} with missing values"
    )
    if found["horizon"] > 1:
        facts["horizon"] = (
            f"{found['horizon']} rows; {rows['waiting']} wait for the end of their block"
        )
    facts["predicts"] = found["y"]
    if found["scaling"] is None:
        facts["scaling"] = f"not settled before {found['warmup']} rows"
    return facts


def _scaling_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    scaling = found.get("scaling")
    if not scaling:
        return []
    return (
        [("input", "location", "scale")]
        + [
            (
                entry["name"],
                f"{entry['location']:.6g}",
                "never given" if entry["scale"] is None else f"{entry['scale']:.6g}",
            )
            for entry in scaling[:-1]
        ]
        + [
            (
                f"{scaling[-1]['name']} (predicted)",
                f"{scaling[-1]['location']:.6g}",
                f"{scaling[-1]['scale']:.6g}",
            )
        ]
    )


def _score_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    if not found.get("scores"):
        return []
    keys = ("mae", "nll", "crps", "coverage_50", "coverage_90")
    rows: list[tuple[str, ...]] = [("method", "scored", *keys)]
    for name, scores in found["scores"].items():
        cells = ("-" if scores[key] is None else f"{scores[key]:#.4g}" for key in keys)
        rows.append((name, f"{scores['rows']:,}", *cells))
    return rows
