"""What a process costs on a context of so many points: time, peak memory, and what it keeps.

Every cell is measured in a process of its own, forked from a helper that has imported torch once: nothing that another
cell left behind can hide in its memory. A cell ends early, and says why, when a call takes too long or too much.
Operating systems without ``fork`` cannot measure.
"""

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from synopsis.attention.forks import END, Forks, say, serve
from synopsis.attention.resident_memory import measured_call
from synopsis.processes.base import Process, build
from synopsis.training.experiment import Component

MIB, GIB = 2**20, 2**30
MOST_BYTES = 4 * GIB
PATIENCE = 20.0  # CPU-seconds of one call
_WARM_UP = 64  # points of the calls before the measured ones
_ENOUGH_SECONDS = 0.3  # short calls are repeated for their mean: clocks may be coarse
_MOST_CALLS = 2000
COUNTING = 2.0  # a call whose memory is counted takes up to so many times as long


@dataclass(frozen=True)
class Cell:
    """One task to measure a process on, with random weights: costs do not depend on them.

    Args:
        process: what is built, as in an experiment.
        points: of the context, at least 0.
        targets: of the query, at least 1.
        query: measure the query too.
    """

    process: Component
    points: int
    targets: int = 100
    query: bool = True


@dataclass(frozen=True)
class Call:
    """What one call costs.

    Args:
        seconds: CPU time on one thread; the mean of several, where the call is short.
        peak: bytes of resident memory at its peak, beyond what was there before.
    """

    seconds: float
    peak: int


@dataclass(frozen=True)
class Cost:
    """What was found out before the cell ended.

    Args:
        kept: bytes of the state after conditioning.
        conditioning: all points told at once to a state that has seen nothing.
        update: one more point.
        query: the targets predicted from the state.
        stopped: why the first of these that is None was not finished: ``"time"``, ``"memory"`` or ``"died"``.
    """

    kept: int | None = None
    conditioning: Call | None = None
    update: Call | None = None
    query: Call | None = None
    stopped: str | None = None

    @property
    def peak(self) -> int | None:
        """Bytes at the peak of conditioning and query, what conditioning left behind among them; None if unfinished.

        Processes that cannot fold a context only store it, and condition on it in every query.
        """
        if self.conditioning is None or self.query is None or self.kept is None:
            return None
        return max(self.conditioning.peak, self.kept + self.query.peak)


class FreshProcesses(Forks):
    """Measures cells, each in a process of its own; a context manager.

    Args:
        patience: CPU-seconds that one call may take.
        most_bytes: of memory that a cell may ask for, beyond what torch itself takes.

    Raises:
        OSError: on an operating system without ``fork``.

    Example:
        >>> with FreshProcesses() as fresh:    # doctest: +SKIP
        ...     fresh.measure(Cell(Component("CMANP"), points=1000)).kept
        442376
    """

    def __init__(self, patience: float = PATIENCE, most_bytes: int = MOST_BYTES) -> None:
        super().__init__(__name__)
        self._limits = {"patience": patience, "most_bytes": most_bytes}

    def measure(self, cell: Cell) -> Cost:
        """The cost of one cell, as far as it came."""
        found = self.ask({**asdict(cell), **self._limits})
        calls = (found.get(name) for name in ("conditioning", "update", "query"))
        conditioning, update, query = (None if call is None else Call(**call) for call in calls)
        return Cost(found.get("kept"), conditioning, update, query, found[END])


@torch.no_grad()
def _measure_here(asked: dict[str, Any]) -> None:
    """In a forked process: write what each call costs as soon as it is known."""
    process = _built(asked.pop("process"))
    points, targets = asked["points"], asked["targets"]
    _exercise(process, targets)
    generator = torch.Generator().manual_seed(points)
    x, y = (torch.randn(1, points, d, generator=generator) for d in (process.dim_x, process.dim_y))
    x1, y1 = (torch.randn(1, 1, d, generator=generator) for d in (process.dim_x, process.dim_y))
    xt = torch.randn(1, targets, process.dim_x, generator=generator)
    empty = process.init()
    limit_memory(asked["most_bytes"])
    patience = asked["patience"]
    state, call = _costs(lambda: process.update(empty, x, y), patience)
    say(kept=state.nbytes, conditioning=call)
    say(update=_costs(lambda: process.update(state, x1, y1), patience)[1])
    if asked["query"]:
        say(query=_costs(lambda: process.predict(state, xt).mean, patience)[1])


def _built(component: dict[str, Any]) -> Process:
    torch.manual_seed(0)
    return build({"process": component["name"], "arguments": component["arguments"]}).eval()


def _exercise(process: Process, targets: int) -> None:
    """What is loaded or derived on first use is neither time nor memory of the measured calls."""
    x, y = torch.zeros(1, _WARM_UP, process.dim_x), torch.zeros(1, _WARM_UP, process.dim_y)
    state = process.update(process.init(), x, y)
    process.predict(process.update(state, x[:, :1], y[:, :1]), torch.zeros(1, targets, x.shape[-1]))


def _costs(call: Callable[[], Any], patience: float) -> tuple[Any, dict[str, float]]:
    """The result of a call, and what it costs; a call that takes too long ends the process."""
    peak, result = limited(lambda: measured_call(call), COUNTING * patience)
    begin = time.process_time()
    limited(call, patience)
    calls, spent = 1, time.process_time() - begin
    while spent < _ENOUGH_SECONDS and calls < _MOST_CALLS:
        call()
        calls, spent = calls + 1, time.process_time() - begin
    return result, {"seconds": spent / calls, "peak": peak}


def limited(call: Callable[[], Any], patience: float) -> Any:
    """The answer of a call that may take so many CPU-seconds (another program's load does not count); then the
    process ends.
    """
    signal.setitimer(signal.ITIMER_PROF, patience)
    answer = call()
    signal.setitimer(signal.ITIMER_PROF, 0.0)
    return answer


def limit_memory(most_bytes: int) -> None:
    """Asking for more than this is an error at once, instead of minutes of filling memory."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmSize"))
        limit = int(line.split()[1]) * 1024 + most_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    serve(_measure_here)
