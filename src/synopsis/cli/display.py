"""What ``synopsis stream`` shows while it runs, and at the end."""

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from synopsis.calibration import ScoreSummary
    from synopsis.serving.run import Run

_REDRAWS_PER_SECOND = 4
_SECONDS_BETWEEN_LINES = 10.0
_COLUMNS = {
    "MAE": "mae",
    "NLL": "nll",
    "CRPS": "crps",
    "50 % in": "coverage_50",
    "90 % in": "coverage_90",
}
_LOWER_IS_BETTER = ("mae", "nll", "crps")


class StreamDisplay:
    """A live table on a terminal, a plain line now and then elsewhere, and the result at the end.

    Args:
        quiet: show nothing.
        limit: rows to come, where known.

    Example:
        >>> with StreamDisplay() as display:    # doctest: +SKIP
        ...     Run(stream, watch=display).over(records)
    """

    def __init__(self, quiet: bool = False, limit: int | None = None) -> None:
        self._quiet, self._limit = quiet, limit
        self._console = Console(stderr=True)
        self._live: Live | None = None
        # Some environments make rich believe in a terminal; control codes go to real ones only.
        if not quiet and sys.stderr.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._next = time.monotonic() + (0.0 if self._live else _SECONDS_BETWEEN_LINES)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, run: "Run") -> None:
        """Show how the run stands, if it is time to."""
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        if self._live is not None:
            self._live.update(Group(self._progress(run), _table(run)), refresh=True)
            self._next = now + 1 / _REDRAWS_PER_SECOND
        else:
            sys.stderr.write(f"{self._progress(run)} {_scores(run)}\n")
            self._next = now + _SECONDS_BETWEEN_LINES

    def finish(self, run: "Run") -> None:
        """Show the result of a run that is over."""
        if self._live is not None:
            self._live.stop()
        if self._quiet:
            return
        from synopsis.serving.report import verdict

        console = Console(force_terminal=sys.stdout.isatty(), soft_wrap=True, highlight=False)
        console.print(_table(run))
        console.print(Text(self._progress(run)))
        console.print(Text(verdict(run.stream.progressive.scores()), style="bold"))
        for line in (_missing(run), *run.remarks, *_written(run)):
            if line:
                console.print(Text(line))

    def _progress(self, run: "Run") -> str:
        timing, progressive = run.timing, run.stream.progressive
        of = "" if self._limit is None else f" of {self._limit:,}"
        return (
            f"{timing.rows:,}{of} rows in {timing.seconds:.1f} s "
            f"({timing.rows_per_second:,.0f} rows/s); {progressive.absorbed:,} learned from so far "
            f"in a state of {progressive.nbytes:,} bytes."
        )


def _table(run: "Run") -> Table:
    table = Table(
        title=f"{run.stream.settings.y}, each row predicted before it is learned from",
        title_justify="left",
    )
    table.add_column("method")
    for heading in _COLUMNS:
        table.add_column(heading, justify="right")
    table.add_column("scored", justify="right")
    summaries = {name: each.summary() for name, each in run.stream.progressive.scores().items()}
    lowest = _lowest(summaries)
    for name, summary in summaries.items():
        cells = [_cell(summary, key, lowest.get(key)) for key in _COLUMNS.values()]
        table.add_row(name, *cells, f"{summary['rows']:,}")
    return table


def _lowest(summaries: Mapping[str, "ScoreSummary"]) -> dict[str, float]:
    lowest = {}
    for key in _LOWER_IS_BETTER:
        values: list[Any] = [summary[key] for summary in summaries.values()]  # type: ignore[literal-required]
        if None not in values:
            lowest[key] = min(values)
    return lowest


def _cell(summary: Mapping[str, Any], key: str, lowest: float | None) -> Text:
    value = summary[key]
    if value is None:
        return Text("-")
    text = f"{100 * value:.1f} %" if key.startswith("coverage") else f"{value:#.4g}"
    return Text(text, style="bold" if value == lowest else "")


def _scores(run: "Run") -> str:
    """Of the process, in a few words."""
    name, scores = next(iter(run.stream.progressive.scores().items()))
    summary = scores.summary()
    if summary["nll"] is None:
        return "Warming up."
    return f"{name}: NLL {summary['nll']:#.4g}, CRPS {summary['crps']:#.4g}."


def _missing(run: "Run") -> str:
    missing = run.stream.missing
    return f"{missing:,} rows had a missing value and were not learned from." if missing else ""


def _written(run: "Run") -> list[str]:
    outputs = run.outputs
    places = {
        "predictions": outputs.predictions,
        "report": outputs.report,
        "state": outputs.state,
        "scale": outputs.scale,
    }
    parts = [f"{what} in {where}" for what, where in places.items() if where is not None]
    return [f"Written: {', '.join(parts)}."] if parts else []
