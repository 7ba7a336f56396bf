"""Scores of a stream, one forecast at a time, in plain floats."""

import math
from dataclasses import dataclass
from typing import Self

import torch

from synopsis.calibration import PIT_BINS, RunningScores
from synopsis.serving.forecasts import Forecast


@dataclass(frozen=True, slots=True)
class Tally:
    """The running scores of one method, as a value.

    A sum grows by one term at a time, so it does not depend on where a run was interrupted.

    Args:
        count: forecasts scored.
        sums: of the scores named in ``calibration.SUMS``.
        pit: counts of F(y) in equal bins.

    Example:
        >>> tally = Tally.of(RunningScores.empty()).add(Forecast((1.0,), (0.0,), (1.0,)), y=0.0)
        >>> round(tally.scores.summary()["crps"], 4)
        0.2337
    """

    count: int
    sums: tuple[float, ...]
    pit: tuple[int, ...]

    @classmethod
    def of(cls, scores: RunningScores) -> Self:
        """The tally that has these scores."""
        return cls(int(scores.count), tuple(scores.sums.tolist()), tuple(scores.pit.tolist()))

    def add(self, forecast: Forecast, y: float) -> "Tally":
        """With one more forecast scored against its outcome.

        Raises:
            ValueError: when the forecast is not a distribution (its parameters are not numbers).
        """
        mean, stddev = forecast.mean, forecast.stddev
        error, below = abs(mean - y), forecast.cdf(y)
        terms = (error, error * error, -forecast.log_prob(y), forecast.crps(y), stddev)
        if any(map(math.isnan, terms)) or math.isnan(below):
            raise ValueError(f"a forecast has mean {mean} and standard deviation {stddev}")
        sums = tuple(total + term for total, term in zip(self.sums, terms, strict=True))
        pit = list(self.pit)
        pit[min(int(below * PIT_BINS), PIT_BINS - 1)] += 1
        return Tally(self.count + 1, sums, tuple(pit))

    @property
    def scores(self) -> RunningScores:
        """Everything so far as tensors: to save, to merge, to summarise."""
        return RunningScores(
            count=torch.tensor(self.count),
            sums=torch.tensor(self.sums, dtype=torch.float64),
            pit=torch.tensor(self.pit),
        )
