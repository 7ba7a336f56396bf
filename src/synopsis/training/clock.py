"""Time spent on a run, whatever it was interrupted by."""

import time


class Clock:
    """Counts on from what was spent before.

    Args:
        seconds: of wall time spent before.
        cpu_seconds: of processor time, over all threads, spent before.
    """

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall = time.perf_counter() - seconds
        self._cpu = time.process_time() - cpu_seconds

    def read(self) -> dict[str, float]:
        """Seconds and CPU-seconds spent so far, to the millisecond."""
        return {
            "seconds": round(time.perf_counter() - self._wall, 3),
            "cpu_seconds": round(time.process_time() - self._cpu, 3),
        }
