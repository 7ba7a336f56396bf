"""What a running training shows on a terminal."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

REDRAW_SECONDS = 0.2


class TrainingProgress:
    """A progress bar with steps per second, loss, learning rate and time left.

    Within its context an instance is the ``watch`` of :func:`synopsis.training.train`.

    Args:
        steps: of the whole run.
        console: where to draw; standard error by default.
    """

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} steps/s  loss {task.fields[loss]}"),
            TextColumn("lr {task.fields[learning_rate]}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        self._steps = steps
        self._bar = self._progress.add_task(
            "training", total=steps, rate="–", loss="–", learning_rate="–", start=False
        )
        self._since: tuple[float, int] | None = None
        self._losses: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._since is not None:
            self._progress.stop()

    def __call__(self, step: int, loss: float, learning_rate: float) -> None:
        """Note a step; the bar is redrawn a few times a second at most."""
        now = time.monotonic()
        self._losses.append(loss)
        if self._since is None:  # the first step of this session: a resumed run begins here
            self._since = (now, step)
            self._progress.start()  # not earlier: an error before the first step needs no bar
            self._progress.update(self._bar, completed=step)
            self._progress.start_task(self._bar)
            return
        if now - self._since[0] < REDRAW_SECONDS and step < self._steps:
            return
        self._progress.update(
            self._bar,
            completed=step,
            rate=f"{(step - self._since[1]) / max(now - self._since[0], 1e-9):.1f}",
            loss=f"{sum(self._losses) / len(self._losses):.4f}",
            learning_rate=f"{learning_rate:.2e}",
        )
        self._since, self._losses = (now, step), []
