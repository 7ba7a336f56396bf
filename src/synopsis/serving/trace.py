"""What the pictures of a stream need, in memory that does not grow: the last rows, a thinned whole, sampled costs."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
FIELDS = ("row", "y", *(f"q{round(100 * level):02d}" for level in LEVELS))
_COSTS_PER_OCTAVE = 2
_SAMPLES_PER_COST = 25

Rows = NDArray[np.float64]


class Ring:
    """The last ``capacity`` rows of numbers.

    Example:
        >>> ring = Ring(capacity=2, width=1)
        >>> for value in (1.0, 2.0, 3.0):
        ...     ring.add((value,))
        >>> ring.rows[:, 0].tolist()
        [2.0, 3.0]
    """

    def __init__(self, capacity: int, width: int) -> None:
        self._held = np.empty((capacity, width))
        self._seen = 0

    def add(self, row: tuple[float, ...]) -> None:
        """Hold one more row, and drop the oldest when full."""
        self._held[self._seen % len(self._held)] = row
        self._seen += 1

    @property
    def rows(self) -> Rows:
        """The held rows, oldest first."""
        if self._seen <= len(self._held):
            return self._held[: self._seen].copy()
        return np.roll(self._held, -(self._seen % len(self._held)), axis=0)


class Thinned:
    """Every 2^k-th row of a stream of any length, where k grows so that at most ``capacity`` rows are held.

    Example:
        >>> thinned = Thinned(capacity=4, width=1)
        >>> for value in range(6):
        ...     thinned.add((float(value),))
        >>> thinned.rows[:, 0].tolist()
        [0.0, 2.0, 4.0]
    """

    def __init__(self, capacity: int, width: int) -> None:
        self._held = np.empty((capacity, width))
        self._count = 0
        self._seen = 0
        self.stride = 1

    def add(self, row: tuple[float, ...]) -> None:
        """Hold one more row if it falls on the stride; double the stride when full."""
        if self._seen % self.stride == 0:
            if self._count == len(self._held):
                self._count = (self._count + 1) // 2
                self._held[: self._count] = self._held[::2].copy()
                self.stride *= 2
            if self._seen % self.stride == 0:
                self._held[self._count] = row
                self._count += 1
        self._seen += 1

    @property
    def rows(self) -> Rows:
        """The held rows, oldest first."""
        return self._held[: self._count].copy()


@dataclass(frozen=True)
class Cost:
    """Median CPU milliseconds per observation around ``rows`` observations seen."""

    rows: int
    milliseconds: float


class Trace:
    """What pictures are drawn from: fixed bytes, however long the stream.

    Args:
        dim: inputs per row.
        recent: rows held at full rate at the end of the stream.
        thinned: rows held of the whole stream, evenly spaced.
        first: inputs held from the start of this run, to refit an exact Gaussian process on.
    """

    def __init__(self, dim: int, recent: int = 365, thinned: int = 2000, first: int = 2048) -> None:
        self.recent = Ring(recent, len(FIELDS))
        self.whole = Thinned(thinned, len(FIELDS))
        self._first = np.empty((first, dim + 1))
        self._rows = self._seen = 0
        self._samples: dict[int, list[float]] = {}

    def add(
        self,
        row: tuple[float, ...],
        inputs: tuple[float, ...],
        milliseconds: float,
        seen: int,
    ) -> None:
        """Note one row.

        Args:
            row: the numbers named by ``FIELDS``, in the units of y.
            inputs: the encoded inputs of the row.
            milliseconds: CPU time the process took to predict and absorb it.
            seen: observations the state held before it.
        """
        self.recent.add(row)
        self.whole.add(row)
        if self._rows < len(self._first):
            self._first[self._rows] = (*inputs, row[1])
        self._rows += 1
        self._seen = seen + 1
        samples = self._samples.setdefault(int(_COSTS_PER_OCTAVE * math.log2(seen + 1)), [])
        if len(samples) < _SAMPLES_PER_COST:
            samples.append(milliseconds)

    @property
    def first(self) -> Rows:
        """Inputs and, in the last column, y of the first rows of this run."""
        return self._first[: self._rows].copy()

    @property
    def costs(self) -> tuple[Cost, ...]:
        """Median cost per observation, two points to each doubling of the rows seen."""
        return tuple(
            Cost(min(_middle(octave), self._seen), float(np.median(samples)))
            for octave, samples in sorted(self._samples.items())
        )


def _middle(part: int) -> int:
    """Rows in the middle of a part of an octave."""
    return round(2 ** ((part + 0.5) / _COSTS_PER_OCTAVE))
