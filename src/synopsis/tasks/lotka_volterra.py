"""Predators and prey: random population curves, and the trappers' record of hares and lynxes.

X predators and Y prey change by one at a time. A predator is born at rate θ₀XY and dies at θ₁X, a
prey is born at θ₂Y and dies at θ₃XY; which happens next, and when, is drawn exactly (Gillespie's
algorithm). A task is one such history seen at random events: x is time, y = (X, Y).

Source: Lee et al., 2020 (Bootstrapping neural processes), whose simulator this is; Gillespie, 1977.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from synopsis.tasks.base import Batch
from synopsis.tasks.laws import check_generator, check_settings, integer

ROUNDS = 100  # of simulations in search of histories that are long enough
TINY = 1e-5  # added to standard deviations, as published


class Histories(NamedTuple):
    """Simulated populations at every event, the first being the beginning."""

    time: Float[Tensor, "batch events"]
    populations: Float[Tensor, "batch events 2"]  # predators, prey
    length: Int[Tensor, " batch"]  # events until a species died out, that one included


@dataclass(frozen=True)
class LotkaVolterraTask:
    """Histories of predators and prey at random events.

    The published law: X starts at ⌊50 + ε⌋ and Y at ⌊100 + ε⌋ with ε ~ N(0, 1), at least 1; a
    history ends with a species or after 20,000 events; one N ~ U{15..P−16} and then M ~
    U{15..P−N−1} per batch with P = 100, drawn again while a history is shorter than N + M.

    Args:
        start: expected numbers of predators and of prey at the beginning, positive.
        rates: θ₀ … θ₃, per unit of time, positive.
        events: most events of a history, at least 2 ``min_points``.
        min_points: fewest context points and fewest targets, at least 1 (2 if standardised).
        max_points: P; N + M stays below it.
        standardise: shift and scale time and each population by the mean and standard deviation of
            the context, task by task, as the published training and evaluation do. Log-densities
            are then per standardised unit.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> task = LotkaVolterraTask(events=2000)
        >>> task.sample(4, torch.Generator().manual_seed(0)).yt.shape[-1]
        2
    """

    start: tuple[float, float] = (50.0, 100.0)
    rates: tuple[float, float, float, float] = (0.01, 0.5, 1.0, 0.01)
    events: int = 20_000
    min_points: int = 15
    max_points: int = 100
    standardise: bool = True
    dim_x = 1  # not fields
    dim_y = 2

    def __post_init__(self) -> None:
        least, fewest = (2 if self.standardise else 1), 2 * self.min_points
        rules = (
            ("start", min(self.start) > 0, "be positive"),
            ("rates", min(self.rates) > 0, "be positive"),
            ("min_points", self.min_points >= least, f"be {least} or more"),
            ("max_points", self.max_points > fewest, f"be more than {fewest}"),
            ("events", self.events >= fewest, f"be {fewest} or more"),
        )
        check_settings(self, rules)

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Simulate ``batch_size`` histories; one number of context and of target points for all.

        Raises:
            RuntimeError: species die out too soon, again and again.
            ValueError: the generator is not on the CPU, where seeds mean the same everywhere.
        """
        check_generator(generator)
        histories = self._long_enough(batch_size, generator)
        context, points = self._sizes(int(histories.length.min()), generator)
        keys = torch.rand(histories.time.shape, generator=generator)
        over = torch.arange(keys.shape[1]) >= histories.length[:, None]
        chosen = keys.masked_fill(over, -1.0).topk(points, dim=-1).indices
        x = histories.time.gather(1, chosen)[..., None]
        y = histories.populations.gather(1, chosen[..., None].expand(-1, -1, 2))
        return _split(x, y, context, self.standardise)

    def simulate(self, batch_size: int, generator: Generator) -> Histories:
        """Draw histories event by event; after its end a history stands still."""
        shape = (batch_size, self.events)
        waits = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
        dice = torch.rand(shape, generator=generator, dtype=torch.float64)
        spread = torch.randn((batch_size, 2), generator=generator, dtype=torch.float64)
        begin = (torch.tensor(self.start, dtype=torch.float64) + spread).trunc().clamp_min(1)
        states = waits.new_empty((*shape, 3))
        length = torch.empty(batch_size, dtype=torch.int64)
        for task, draws in enumerate(zip(waits, dice, strict=True)):
            history = _gillespie(begin[task], self.rates, *draws)
            length[task] = len(history)
            states[task, : len(history)] = history
            states[task, len(history) :] = history[-1]
        return Histories(states[..., 0], states[..., 1:], length)

    def _long_enough(self, batch_size: int, generator: Generator) -> Histories:
        """Simulate again those histories that could not even give the fewest points."""
        parts = self.simulate(batch_size, generator)
        for _ in range(ROUNDS):
            short = parts.length < 2 * self.min_points
            if not short.any():
                return parts
            for kept, new in zip(parts, self.simulate(int(short.sum()), generator), strict=True):
                kept[short] = new
        raise RuntimeError(
            f"in {ROUNDS} rounds {int(short.sum())} of {batch_size} histories never lasted "
            f"{2 * self.min_points} events; start {self.start} or rates {self.rates} end too soon"
        )

    def _sizes(self, shortest: int, generator: Generator) -> tuple[int, int]:
        """Number of context points, and of all points."""
        while True:
            context = integer(self.min_points, self.max_points - self.min_points - 1, generator)
            targets = integer(self.min_points, self.max_points - context - 1, generator)
            if context + targets <= shortest:
                return context, context + targets


def _gillespie(
    begin: Float[Tensor, " 2"],
    rates: tuple[float, float, float, float],
    waits: Float[Tensor, " events"],
    dice: Float[Tensor, " events"],
) -> Float[Tensor, "states 3"]:
    """Time, predators and prey from the beginning until a species is gone or the draws are used.

    In plain Python: for batches of 16 that is faster than all histories side by side in NumPy, as
    most end early and an event is a dozen operations on single numbers.

    Args:
        begin: predators and prey.
        rates: θ₀ … θ₃.
        waits: exponential draws of mean 1, one per state after the first; the last is not used.
        dice: uniform draws, likewise.
    """
    time, (predators, prey) = 0.0, begin.tolist()
    states = [(time, predators, prey)]
    for wait, die in zip(waits[:-1].tolist(), dice[:-1].tolist(), strict=True):
        meetings = predators * prey
        born = rates[0] * meetings  # the hazards one upon the other
        died = born + rates[1] * predators
        grown = died + rates[2] * prey
        total = grown + rates[3] * meetings
        time += wait / total
        level = die * total
        if level < died:
            predators += 1 if level < born else -1
        else:
            prey += 1 if level < grown else -1
        states.append((time, predators, prey))
        if not predators or not prey:
            break
    return torch.tensor(states, dtype=torch.float64)


@dataclass(frozen=True)
class HareLynxTask:
    """Ninety years of trapped hares and lynxes, from a file of yours: a test of transfer.

    The published law: every task is the whole record in random order, one N ~ U{15..T−16} of its T
    years being context and all others targets; y = (lynx, hare), as predators and prey.

    Args:
        file: text, one year per line: year, hares, lynxes, separated by blanks, tabs or commas.
            Lines that begin with # and empty lines do not count. A first line of names may put
            the columns in another order; it must name "year" (or "time"), "hare" and "lynx".
            The numbers are not part of this library.
        min_points: fewest context points and fewest targets.
        standardise: as in :class:`LotkaVolterraTask`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file does not hold such a table, or too few years.

    Source: Lee et al., 2020; the published file LynxHare.txt has this form.
    """

    file: str
    min_points: int = 15
    standardise: bool = True
    dim_x = 1  # not fields
    dim_y = 2

    def __post_init__(self) -> None:
        least = 2 if self.standardise else 1
        if self.min_points < least:
            raise ValueError(f"min_points is {self.min_points}; it must be {least} or more")
        years = len(read_hare_lynx(self.file))
        if years < 2 * self.min_points + 1:
            raise ValueError(
                f"{self.file}: holds {years} years; min_points {self.min_points} needs "
                f"{2 * self.min_points + 1}"
            )

    def sample(self, batch_size: int, generator: Generator) -> Batch:
        """Shuffle the record ``batch_size`` times; one number of context points for all."""
        check_generator(generator)
        table = torch.tensor(read_hare_lynx(self.file), dtype=torch.float64)
        context = integer(self.min_points, len(table) - self.min_points - 1, generator)
        order = torch.rand((batch_size, len(table)), generator=generator).argsort(dim=-1)
        rows = table[order]
        return _split(rows[..., :1], rows[..., [2, 1]], context, self.standardise)


@lru_cache(maxsize=4)
def read_hare_lynx(file: str) -> tuple[tuple[float, float, float], ...]:
    """Rows of (year, hares, lynxes); see :class:`HareLynxTask` for the format."""
    names = ["year", "hare", "lynx"]
    rows: list[tuple[float, float, float]] = []
    for number, line in enumerate(Path(file).expanduser().read_text().splitlines(), start=1):
        words = line.replace(",", " ").replace('"', " ").lower().split()
        if not words or words[0].startswith("#"):
            continue
        if not rows and {"hare", "lynx"} <= set(words):
            names = ["year" if word == "time" else word for word in words]
            continue
        row = dict(zip(names, words, strict=False))
        try:
            values = (float(row["year"]), float(row["hare"]), float(row["lynx"]))
        except (KeyError, ValueError):
            values = (math.nan,) * 3
        if len(words) != len(names) or not all(map(math.isfinite, values)):
            raise ValueError(f"{file}:{number}: {line!r} is not {', '.join(names)}")
        rows.append(values)
    return tuple(rows)


def _split(
    x: Float[Tensor, "batch points 1"],
    y: Float[Tensor, "batch points 2"],
    context: int,
    standardise: bool,
) -> Batch:
    """The first points as context, the others as targets."""
    if standardise:
        x, y = (_standardised(values, context) for values in (x, y))
    x, y, n = x.float(), y.float(), context
    return Batch(xc=x[:, :n], yc=y[:, :n], xt=x[:, n:], yt=y[:, n:])


def _standardised(
    values: Float[Tensor, "batch points dim"], context: int
) -> Float[Tensor, "batch points dim"]:
    seen = values[:, :context]
    stddev = seen.std(dim=1, keepdim=True)
    stddev = torch.where(stddev == 0, 1.0, stddev)
    return (values - seen.mean(dim=1, keepdim=True)) / (stddev + TINY)
