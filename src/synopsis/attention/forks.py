"""Questions answered each in a process of its own, forked from a helper that has imported torch once.

An answer starts without anything that another one left behind in memory, and without the seconds that an import takes.
Operating systems without ``fork`` cannot do this.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch

END = "end"  # key of the last line: why the process ended early, or None
TOO_LONG, TOO_MUCH, DIED = "time", "memory", "died"
_EXITS = (None, TOO_MUCH, DIED)


class Forks:
    """The asking side; a context manager.

    Args:
        module: that calls :func:`serve` when it is run.
        environment: of the helper, beyond this process's.

    Raises:
        OSError: on an operating system without ``fork``.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}

    def __enter__(self) -> Self:
        if not hasattr(os, "fork"):
            raise OSError("measuring memory needs fork, which this operating system lacks")
        self._helper = subprocess.Popen(
            [sys.executable, "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._helper.terminate()
        self._helper.communicate()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """All that was said before the answering process ended, and under ``END`` why, if it was early."""
        assert self._helper.stdin is not None and self._helper.stdout is not None
        self._helper.stdin.write(json.dumps(question) + "\n")
        self._helper.stdin.flush()
        found: dict[str, Any] = {}
        while END not in found:
            line = self._helper.stdout.readline()
            if not line:
                raise OSError("the process that measures has died")
            found |= json.loads(line)
        return found


def serve(answer: Callable[[dict[str, Any]], None]) -> None:
    """The answering side: fork for every question on standard input, with one thread."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_EXITS.index(_answered(answer, json.loads(line))))
        say(**{END: _ending(os.waitpid(child, 0)[1])})


def say(**found: Any) -> None:
    """A part of the answer, as soon as it is known: the next one may take too long."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was asked for and not had."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "alloc" in str(error)
    )


def _answered(answer: Callable[[dict[str, Any]], None], question: dict[str, Any]) -> str | None:
    """In a forked process: answer, and say how that ended."""
    try:
        answer(question)
    except BaseException as error:
        if is_lack_of_memory(error):
            return TOO_MUCH
        sys.stderr.write(f"{error!r}\n")
        return DIED
    return None


def _ending(status: int) -> str | None:
    """Why a forked process ended, None when it did all it was asked for."""
    if os.WIFSIGNALED(status):
        return TOO_LONG if os.WTERMSIG(status) == signal.SIGPROF else DIED
    return _EXITS[os.WEXITSTATUS(status)]


__all__ = ["DIED", "END", "TOO_LONG", "TOO_MUCH", "Forks", "is_lack_of_memory", "say", "serve"]
