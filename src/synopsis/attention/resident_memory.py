"""Peak memory of one call, as the operating system counts it: whatever a kernel allocates by itself is seen.

Right only in a process in which nothing large has run before: see :mod:`synopsis.attention.measurement`.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MMAP_THRESHOLD, _SMALLEST_MMAP, _DEFAULT_MMAP = -3, 1 << 16, 1 << 25  # of glibc's mallopt


def measured_call(call: Callable[[], Any]) -> tuple[int, Any]:
    """Extra bytes at the peak of one call, and what it returned.

    Time is measured apart: here every large tensor is fresh memory, which the system may take as long to give as the
    call to compute.

    Args:
        call: everything it is given exists already.
    """
    with _every_allocation_seen():
        before = _reset_peak()
        results = call()
        return max(0, _peak() - before), results


@contextmanager
def _every_allocation_seen() -> Iterator[None]:
    """Large blocks come from the system and go back to it at once, so that none hides in what was freed before."""
    try:
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _SMALLEST_MMAP)
        library.malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another allocator: small cells look smaller
        yield
        return
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _DEFAULT_MMAP)


def _reset_peak() -> int:
    """Bytes that are resident now, from where the peak counts anew if the system allows it."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return _peak()
    return _kibibytes("VmRSS") * 1024


def _peak() -> int:
    """Most bytes that this process has had resident.

    The kernel's own line where there is one: ``ru_maxrss`` of a process that was started by a large one begins at the
    other's peak.
    """
    if _STATUS.exists():
        return _kibibytes("VmHWM") * 1024
    import resource  # absent on Windows

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _kibibytes(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])
