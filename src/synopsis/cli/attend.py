"""``synopsis attend``: exact attention of a few queries to more keys than memory holds."""

import math
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from synopsis.cli.errors import one_line_errors

if TYPE_CHECKING:
    from torch import Tensor

    from synopsis.attention import AttentionState
    from synopsis.attention.sources import KeyValueSource
    from synopsis.attention.stream import Stream

_SECONDS_BETWEEN_LINES = 10.0


def register(app: typer.Typer) -> None:
    """Add ``attend`` to the application."""
    app.command("attend")(attend)


def attend(  # noqa: PLR0913  (every argument is an option of the command)
    query: Annotated[
        str,
        typer.Argument(
            help="Queries: .npy or .safetensors, (queries, dim) or (heads, queries, dim)."
        ),
    ],
    keys: Annotated[
        list[str],
        typer.Option(
            "--keys",
            metavar="FILE",
            help="Keys, (length, dim) or (heads, length, dim): .npy, .safetensors (FILE:NAME), .parquet or .arrow "
            "(FILE:COLUMN,COLUMN). Repeat it for several files, in their order.",
        ),
    ],
    values: Annotated[
        list[str],
        typer.Option("--values", metavar="FILE", help="Values, one file for each of keys."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File for the result: .safetensors (output, lse) or .npy (output)."
        ),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File for the state, to be joined by `synopsis merge`."),
    ] = None,
    block: Annotated[
        int,
        typer.Option(
            min=2,
            help="Keys in memory at a time: one half is attended to while the other is read.",
        ),
    ] = 65536,
    scale: Annotated[
        float | None, typer.Option(help="Factor on query · key.", show_default="1/√dim")
    ] = None,
    causal: Annotated[
        bool, typer.Option("--causal", help="A query attends to keys up to its own position.")
    ] = False,
    query_offset: Annotated[int, typer.Option(help="Position of the first query.")] = 0,
    key_offset: Annotated[int, typer.Option(help="Position of the first key.")] = 0,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with.", show_default="all")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
) -> None:
    """Attend exactly to keys and values that lie in files, in memory that does not grow with them.

    Example: synopsis attend q.npy --keys k.npy --values v.npy --out o.safetensors
    """
    with one_line_errors():
        import torch

        from synopsis.attention.rules import Rules
        from synopsis.attention.sources import open_source
        from synopsis.attention.stream import Stream
        from synopsis.states import write_atomic

        _check_places(out, state, [query, *keys, *values])
        if threads is not None:
            torch.set_num_threads(threads)
        source = open_source(keys, values)
        start = _begin(query, source, scale)
        rules = Rules(start.scale, causal, query_offset=query_offset, key_offset=key_offset)
        begun = time.monotonic()
        with torch.no_grad():
            result = _run(Stream(source.blocks(block // 2), rules), start, quiet)
        if state is not None:
            write_atomic(state, result.serialize())
        if out is not None:
            from synopsis.cli.attention_output import write_output

            write_output(out, result)
        if not quiet:
            seconds = time.monotonic() - begun
            typer.echo(_summary([p for p in (out, state) if p is not None], result, seconds))


def _check_places(out: Path | None, state: Path | None, inputs: list[str]) -> None:
    from synopsis.cli.attention_output import check_folder, check_place

    if out is None and state is None:
        raise ValueError("name a file for the result: --out FILE, or --state FILE to merge later")
    if out is not None:
        check_place(out)
    if state is not None:
        check_folder(state)
    if out == state:
        raise ValueError(f"--out and --state both name {out}")
    for place in (p for p in (out, state) if p is not None and p.exists()):
        if place.is_dir():
            raise ValueError(f"{place}: is a folder; the result needs the name of a file")
        for file in inputs:
            if any(p.exists() and place.samefile(p) for p in _readings(file)):
                raise ValueError(f"{place}: is read as {file}; the result needs another file")


def _readings(file: str) -> tuple[Path, ...]:
    """What FILE or FILE:NAME may name."""
    front = file.rpartition(":")[0]
    return (Path(file), Path(front)) if front else (Path(file),)


def _begin(file: str, source: "KeyValueSource", scale: float | None) -> "AttentionState":
    from synopsis.attention import AttentionState
    from synopsis.attention.sources import open_array

    array = open_array(file)
    found = list(array.pieces(max(1, array.shape[-2])))
    if not found:
        raise ValueError(f"{file}: holds no queries")
    query = found[0]
    row = _first_not_finite(query)
    if row is not None:
        raise ValueError(f"{file}: row {row} holds a number that is not finite")
    if query.dim() > 3:
        raise ValueError(f"{file}: has shape {tuple(query.shape)}; (heads, queries, dim) at most")
    if query.shape[-1] != source.dim:
        name = source.names[0][0]
        raise ValueError(
            f"{name}: has {source.dim} features but {file} has {query.shape[-1]}; they must agree"
        )
    _check_heads(file, query, source)
    return AttentionState.empty(query, source.value_dim, scale)


def _check_heads(file: str, query: "Tensor", source: "KeyValueSource") -> None:
    name, leading = source.names[0][0], source.leading
    if len(leading) > 1:
        raise ValueError(f"{name}: has {len(leading) + 2} dimensions; (heads, length, dim) at most")
    ours, theirs = (math.prod(shape) for shape in (query.shape[:-2], leading))
    if ours % theirs:
        raise ValueError(
            f"{name}: has {theirs} heads but {file} has {ours}; those of keys must divide those of queries"
        )


def _run(stream: "Stream", start: "AttentionState", quiet: bool) -> "AttentionState":
    from synopsis.attention.sources import Blocks

    blocks = stream.blocks
    assert isinstance(blocks, Blocks)
    state = start
    display: AbstractContextManager[KeysDisplay | None]
    display = nullcontext() if quiet else KeysDisplay(blocks.source.length)
    with display as shown:
        for state in stream.states(start):
            if not bool(state.summary.numerator.isfinite().all()):
                raise ValueError(_not_finite(blocks.source, blocks.size))
            if shown is not None:
                shown.show(int(state.count))
    return state


def _not_finite(source: "KeyValueSource", block: int) -> str:
    """Which number it was, found by reading once more."""
    for arrays, names in zip(source.parts, source.names, strict=True):
        for array, name in zip(arrays, names, strict=True):
            for i, piece in enumerate(array.pieces(block)):
                row = _first_not_finite(piece)
                if row is not None:
                    return f"{name}: row {i * block + row} holds a number that is not finite"
    return "the attention is not finite: scores or sums are too large for their type"


def _first_not_finite(rows: "Tensor") -> int | None:
    bad = ~rows.isfinite().all(-1)
    if not bool(bad.any()):
        return None
    return int(bad.reshape(-1, bad.shape[-1]).any(0).nonzero()[0])


def _summary(files: list[Path], state: "AttentionState", seconds: float) -> str:
    rows, count = tuple(state.query.shape[:-1]), int(state.count)
    heads = f" in {rows[0]} heads" if len(rows) > 1 else ""
    rate = count / max(seconds, 1e-9)
    return (
        f"{', '.join(map(str, files))}: {rows[-1]:,} queries{heads}, {count:,} keys "
        f"in {seconds:.1f} s ({rate:,.0f} keys/s)"
    )


class KeysDisplay:
    """A bar with the rate on a terminal, a plain line now and then elsewhere.

    Args:
        total: keys to come.

    Example:
        >>> with KeysDisplay(1000) as display:    # doctest: +SKIP
        ...     display.show(500)
    """

    def __init__(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._total, self._begun = total, time.monotonic()
        self._next = self._begun + _SECONDS_BETWEEN_LINES
        self._progress: Progress | None = None
        console = Console(stderr=True)
        # Some environments make rich believe in a terminal; control codes go to real ones only.
        if sys.stderr.isatty() and not console.is_dumb_terminal:
            columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._progress = Progress(*columns, console=console, transient=True)
            self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def show(self, count: int) -> None:
        """So many keys were attended to."""
        now = time.monotonic()
        rate = count / max(now - self._begun, 1e-9)
        text = f"{count:,} of {self._total:,} keys, {rate:,.0f} keys/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=count, description=text)
        elif now >= self._next:
            sys.stderr.write(f"{text}\n")
            self._next = now + _SECONDS_BETWEEN_LINES
