"""Forecasts of single numbers in plain floats: a stream asks one row at a time, and a tensor per question costs more
than the answer.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import cast

from torch.distributions import MixtureSameFamily, Normal

from synopsis.processes.heads import Gaussian, PredictiveDistribution

_ROOT_TWO = math.sqrt(2.0)
_ROOT_TWO_PI = math.sqrt(2.0 * math.pi)
_MOST_STEPS = 200
_PROBABILITY_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Forecast:
    """A mixture of Gaussians over one number, in float64.

    Args:
        weights: of the components, summing to one.
        means: of the components.
        stddevs: of the components, positive.

    Example:
        >>> forecast = Forecast((1.0,), (20.0,), (2.0,))
        >>> round(forecast.quantile(0.95), 3), forecast.cdf(20.0)
        (23.29, 0.5)
    """

    weights: tuple[float, ...]
    means: tuple[float, ...]
    stddevs: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Expected value."""
        return math.fsum(w * m for w, m in zip(self.weights, self.means, strict=True))

    @property
    def stddev(self) -> float:
        """Standard deviation: spread within the components and between them."""
        centre = self.mean
        return math.sqrt(
            math.fsum(w * (s * s + (m - centre) ** 2) for w, m, s in self._components())
        )

    def log_prob(self, y: float) -> float:
        """Log density at y, in nats per unit of y."""
        terms = [
            math.log(w) - 0.5 * ((y - m) / s) ** 2 - math.log(s * _ROOT_TWO_PI)
            for w, m, s in self._components()
            if w > 0.0
        ]
        peak = max(terms)
        return peak + math.log(math.fsum(math.exp(term - peak) for term in terms))

    def cdf(self, y: float) -> float:
        """P(Y ≤ y)."""
        return math.fsum(
            w * 0.5 * math.erfc((m - y) / (s * _ROOT_TWO)) for w, m, s in self._components()
        )

    def crps(self, y: float) -> float:
        """Continuous ranked probability score in the units of y; 0 is perfect (Grimit et al., 2006)."""
        parts = self._components()
        distance = math.fsum(w * _mean_abs(y - m, s) for w, m, s in parts)
        spread = 0.0
        for i, (w, m, s) in enumerate(parts):
            spread += w * w * _mean_abs(0.0, s * _ROOT_TWO)
            for v, n, t in parts[:i]:
                spread += 2.0 * w * v * _mean_abs(m - n, math.hypot(s, t))
        return distance - 0.5 * spread

    def quantile(self, level: float) -> float:
        """The value that Y stays below with probability ``level``, 0 < level < 1.

        Newton steps, replaced by halving the bracket wherever they would leave it.
        """
        z = _standard_quantile(level)
        each = [m + z * s for m, s in zip(self.means, self.stddevs, strict=True)]
        low, high = min(each), max(each)
        y = math.fsum(w * e for w, e in zip(self.weights, each, strict=True))
        for _ in range(_MOST_STEPS):
            excess = self.cdf(y) - level
            if abs(excess) < _PROBABILITY_TOLERANCE or high <= low:
                break
            low, high = (low, y) if excess > 0 else (y, high)
            density = self._density(y)
            step = y - excess / density if density > 0.0 else low
            y, before = step if low < step < high else 0.5 * (low + high), y
            if y == before:
                break
        return y

    def _density(self, y: float) -> float:
        return math.fsum(
            w * math.exp(-0.5 * ((y - m) / s) ** 2) / (s * _ROOT_TWO_PI)
            for w, m, s in self._components()
        )

    def _components(self) -> list[tuple[float, float, float]]:
        return list(zip(self.weights, self.means, self.stddevs, strict=True))


def forecasts(distribution: PredictiveDistribution) -> list[Forecast]:
    """The forecasts of one stream's targets, in order.

    Args:
        distribution: batch shape (1, targets), one output.
    """
    if isinstance(distribution, Gaussian):
        means, stddevs = distribution.mean.double(), distribution.stddev.double()
        pairs = zip(means.flatten().tolist(), stddevs.flatten().tolist(), strict=True)
        return [Forecast((1.0,), (mean,), (stddev,)) for mean, stddev in pairs]
    mixture = cast(MixtureSameFamily, distribution.base_dist)
    parts = cast(Normal, mixture.component_distribution)
    weights = mixture.mixture_distribution.logits.double()[0, :, 0].softmax(-1)
    means, stddevs = parts.loc.double()[0, :, 0], parts.scale.double()[0, :, 0]
    rows = zip(weights.tolist(), means.tolist(), stddevs.tolist(), strict=True)
    return [Forecast(tuple(w), tuple(m), tuple(s)) for w, m, s in rows]


def _mean_abs(mean: float, stddev: float) -> float:
    """E|X| of a Gaussian X."""
    z = mean / stddev
    return 2.0 * stddev * math.exp(-0.5 * z * z) / _ROOT_TWO_PI + mean * math.erf(z / _ROOT_TWO)


@lru_cache(maxsize=64)
def _standard_quantile(level: float) -> float:
    return NormalDist().inv_cdf(level)
