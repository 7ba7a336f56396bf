"""Ctrl-C and SIGTERM between two rows, so that no row is half learned."""

import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")


class Interruption:
    """Within this context the first SIGINT or SIGTERM ends :meth:`watch`; a second one acts as usual.

    Outside the main thread, where Python cannot handle signals, it does nothing.

    Example:
        >>> with Interruption() as interruption:
        ...     print(list(interruption.watch(iter("ab"))), interruption.signal)
        ['a', 'b'] None
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._waiting = False
        self._before: dict[signal.Signals, Any] = {}

    def watch(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items until a signal comes: at once while waiting for an item, otherwise before the next one."""
        while True:
            try:
                self._waiting = True
                if self.signal is not None:
                    return
                item = next(items)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield item

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.signal = signal.Signals(number)
        self._restore()
        if self._waiting:
            raise KeyboardInterrupt  # a read that blocks would go on after the handler

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
