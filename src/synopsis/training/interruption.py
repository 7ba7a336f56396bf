"""Ctrl-C and SIGTERM as a question asked between two steps, so that a step is never torn."""

import signal
import threading
from types import FrameType
from typing import Any, Self


class Interruption:
    """Within this context the first SIGINT or SIGTERM is noted; a second one acts as usual.

    Outside the main thread, where Python cannot handle signals, it notes nothing.

    Example:
        >>> with Interruption() as interruption:
        ...     print(interruption.signal)
        None
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
