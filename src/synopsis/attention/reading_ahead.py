"""The next item of an iterable is fetched while the one before it is worked on; never more than one ahead."""

import threading
from collections.abc import Iterable, Iterator
from typing import Generic, Self, TypeVar

import torch

T = TypeVar("T")
_PATIENCE = 1.0  # seconds to wait, on leaving, for a source that is still reading


class ReadAhead(Generic[T]):
    """A context in which :meth:`take` gives item after item, the next of which is on its way already.

    The source runs in one background thread, under the gradient mode of the thread that made this. An item lives as
    long as the caller holds it: fetching of the item after next begins with the next call of :meth:`take`, so a caller
    that lets go before calling never has more than two items in memory.

    Args:
        source: any iterable; its exceptions are raised by :meth:`take`.
        in_background: False reads in the caller's thread, when asked.

    Example:
        >>> with ReadAhead([1, 2]) as ahead:
        ...     print(ahead.take(), ahead.take(), ahead.take())
        1 2 None
    """

    def __init__(self, source: Iterable[T], in_background: bool = True) -> None:
        self._source = source
        self._in_background = in_background
        self._modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        self._iterator: Iterator[T] | None = None
        self._wanted, self._ready = threading.Semaphore(0), threading.Semaphore(0)
        self._slot: T | None = None
        self._error: BaseException | None = None
        self._ended = self._left = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._in_background:
            self._thread = threading.Thread(
                target=self._serve, name="synopsis-read-ahead", daemon=True
            )
            self._thread.start()
            self._wanted.release()
        return self

    def take(self) -> T | None:
        """The next item; None after the last."""
        if self._thread is None:
            self._fetch()
        elif not self._ended:
            self._ready.acquire()
        item, self._slot = self._slot, None
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._thread is not None and not self._ended:
            self._wanted.release()
        return item

    def __exit__(self, *_: object) -> None:
        self._left = True
        if self._thread is None:
            self._close()
        else:
            self._wanted.release()
            self._thread.join(
                _PATIENCE
            )  # a source that hangs is left behind: the thread is a daemon
        self._slot = None

    def _serve(self) -> None:
        while True:
            self._wanted.acquire()
            if not self._left:
                self._fetch()
            if self._left or self._ended:
                self._close()
                self._ready.release()
                return
            self._ready.release()

    def _fetch(self) -> None:
        grad, inference = self._modes
        if self._ended:
            return
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                if self._iterator is None:
                    self._iterator = iter(self._source)
                self._slot = next(self._iterator)
        except StopIteration:
            self._ended = True
        except BaseException as error:
            self._error, self._ended = error, True

    def _close(self) -> None:
        """Let a generator run its ``finally``, where it was not read to the end."""
        close = getattr(self._iterator, "close", None)
        self._iterator = None
        if close is not None and not isinstance(self._source, Iterator):
            close()
