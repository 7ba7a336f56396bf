"""How good predictive distributions are: proper scores, coverage, uniformity of the PIT."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self, TypedDict

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PIT_BINS = 20
SUMS = ("absolute_error", "squared_error", "nll", "crps", "stddev")
# A float32 mixture's weights sum to one within about a microunit, so its CDF may exceed 1 by that.
CDF_SLACK = 1e-5


def _mean_absolute_value(mean: Tensor, stddev: Tensor) -> Tensor:
    """E|Z| of Z ~ N(mean, stddev²), and |mean| where stddev is 0 (A of Grimit et al. 2006)."""
    z = mean / stddev.clamp_min(torch.finfo(stddev.dtype).tiny)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 2 * stddev * density + mean * torch.erf(z / math.sqrt(2))


def crps_gaussian(
    mean: Float[Tensor, "*shape"], stddev: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Continuous ranked probability score of Gaussian predictions, in the units of y; 0 is perfect.

    Args:
        mean: predicted means.
        stddev: predicted standard deviations, ≥ 0; 0 scores the absolute error.
        y: outcomes.

    Returns:
        ∫ (F(t) − 1[t ≥ y])² dt of every prediction.

    Example:
        >>> crps_gaussian(torch.zeros(1), torch.ones(1), torch.zeros(1))
        tensor([0.2337])

    Source: Gneiting et al. (2005), Calibrated probabilistic forecasting using ensemble model
    output statistics, eq. 5.
    """
    return _mean_absolute_value(y - mean, stddev) - stddev / math.sqrt(math.pi)


def crps_gaussian_mixture(
    weights: Float[Tensor, "*shape components"],
    means: Float[Tensor, "*shape components"],
    stddevs: Float[Tensor, "*shape components"],
    y: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Continuous ranked probability score of Gaussian mixtures, in the units of y; 0 is perfect.

    Args:
        weights: mixture weights, ≥ 0 and of sum 1 over the last axis.
        means: component means.
        stddevs: component standard deviations, ≥ 0.
        y: outcomes.

    Returns:
        E|Y − y| − ½ E|Y − Y'| in closed form, from components² terms.

    Example:
        >>> half, at = torch.full((1, 2), 0.5), torch.tensor([[-1.0, 1.0]])
        >>> crps_gaussian_mixture(half, at, torch.ones(1, 2), torch.zeros(1))
        tensor([0.3594])

    Source: Grimit, Gneiting, Berrocal and Johnson (2006), The continuous ranked probability score
    for circular variables and its application to mesoscale forecast ensemble verification, eq. 5.
    """
    to_outcome = _mean_absolute_value(y.unsqueeze(-1) - means, stddevs)
    difference = means.unsqueeze(-1) - means.unsqueeze(-2)
    spread = torch.hypot(stddevs.unsqueeze(-1), stddevs.unsqueeze(-2))
    between = _mean_absolute_value(difference, spread)
    pair_weights = weights.unsqueeze(-1) * weights.unsqueeze(-2)
    return (weights * to_outcome).sum(-1) - 0.5 * (pair_weights * between).sum((-2, -1))


def coverage(
    lower: Float[Tensor, "*shape"], upper: Float[Tensor, "*shape"], y: Float[Tensor, "*shape"]
) -> float:
    """The fraction of outcomes inside their closed intervals, from 0 to 1.

    Raises:
        ValueError: there is no outcome.

    Example:
        >>> coverage(torch.zeros(4), torch.ones(4), torch.tensor([0.2, 0.7, 1.0, 1.5]))
        0.75
    """
    if y.numel() == 0:
        raise ValueError("coverage needs at least one outcome but y is empty")
    return ((lower <= y) & (y <= upper)).double().mean().item()


def pit_histogram(pit: Float[Tensor, "*shape"], bins: int = PIT_BINS) -> Int64[Tensor, " bins"]:
    """Counts of probability integral transform values in equal bins; histograms add up.

    Args:
        pit: F(y) of each prediction F and outcome y, from 0 to 1 (beyond by rounding only).
        bins: number of bins, ≥ 1; each holds its lower edge, the last one both.

    Raises:
        ValueError: a value is not a probability.

    Example:
        >>> pit_histogram(torch.tensor([0.1, 0.5, 1.0]), bins=2)
        tensor([1, 2])

    Source: Dawid (1984), The prequential approach; Gneiting, Balabdaoui and Raftery (2007).
    """
    values = _probabilities(pit)
    return torch.bincount((values * bins).long().clamp_max(bins - 1), minlength=bins)


def _probabilities(pit: Tensor) -> Tensor:
    """The values flat, in float64 and within [0, 1]."""
    values = pit.detach().double().flatten()
    wrong = ~((values >= -CDF_SLACK) & (values <= 1 + CDF_SLACK))  # also true of NaN
    if wrong.any():
        raise ValueError(f"a PIT value is {values[wrong][0].item()}; it must lie from 0 to 1")
    return values.clamp(0, 1)


def reliability(counts: Int64[Tensor, " bins"]) -> tuple[list[float], list[float]]:
    """The reliability curve of a PIT histogram: central intervals that end on the bins' edges.

    Args:
        counts: PIT counts in an even number of equal bins.

    Returns:
        Levels (with 20 bins: 0.1, 0.2 … 1.0) and how often each interval held the outcome; NaN
        when nothing was counted.

    Raises:
        ValueError: the number of bins is odd.

    Example:
        >>> reliability(torch.tensor([1, 2, 2, 0]))
        ([0.5, 1.0], [0.8, 1.0])
    """
    bins = counts.numel()
    if bins % 2:
        raise ValueError(f"the histogram has {bins} bins; central intervals need an even number")
    half = bins // 2
    by_distance = counts[half:] + counts[:half].flip(0)  # pairs of bins, from the centre outwards
    held = by_distance.cumsum(0).double() / counts.sum()
    return [(i + 1) / half for i in range(half)], held.tolist()


class KolmogorovSmirnov(NamedTuple):
    """Largest distance from the uniform distribution, and the chance of one at least as large."""

    statistic: float
    p_value: float


def kolmogorov_smirnov(pit: Float[Tensor, "*shape"]) -> KolmogorovSmirnov:
    """Kolmogorov–Smirnov test that the PIT values are uniform on [0, 1].

    The p-value is the asymptotic one: a few hundredths too large at 100 values, less with more.

    Raises:
        ValueError: there is no value, or one is not a probability.

    Example:
        >>> kolmogorov_smirnov(torch.tensor([0.5])).statistic
        0.5

    Source: Kolmogorov (1933); Smirnov (1948), Table for estimating the goodness of fit.
    """
    values = _probabilities(pit).sort().values
    n = values.numel()
    if n == 0:
        raise ValueError("the test needs at least one PIT value but pit is empty")
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    statistic = torch.maximum(steps[1:] - values, values - steps[:-1]).max().item()
    return KolmogorovSmirnov(statistic, _kolmogorov_survival(math.sqrt(n) * statistic))


def _kolmogorov_survival(x: float) -> float:
    """P(K > x) of Kolmogorov's limit distribution, from whichever of its two series is short."""
    if x < 0.04:  # 1 − P is below the smallest double
        return 1.0
    if x < 1:
        terms = (math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 5))
        return 1 - math.sqrt(2 * math.pi) / x * math.fsum(terms)
    return 2 * math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in range(1, 7))


class ScoreSummary(TypedDict):
    """Mean scores of ``rows`` predictions; None where nothing was scored."""

    rows: int
    mae: float | None
    rmse: float | None
    nll: float | None
    crps: float | None
    stddev: float | None
    coverage_50: float | None
    coverage_90: float | None
    pit: list[int]


@dataclass(frozen=True)
class RunningScores:
    """Scores of any number of predictions in constant memory; merges in any order.

    Args:
        count: predictions scored.
        sums: sums over predictions of the scores named in ``SUMS``; nll in nats, the rest in the
            units of y (squared_error: squared).
        pit: counts of F(y) in 20 equal bins. Central 50 % and 90 % intervals end on their edges,
            so the coverage of both (and of every tenth) is in it.

    Example:
        >>> one = torch.ones(1)
        >>> scores = RunningScores.empty().add(0 * one, one, -one, 0.6 * one, 0.8 * one, one)
        >>> scores.summary()["mae"], scores.summary()["coverage_90"]
        (1.0, 1.0)
    """

    count: Int64[Tensor, ""]
    sums: Float[Tensor, " sums"]
    pit: Int64[Tensor, " bins"]

    @classmethod
    def empty(cls) -> Self:
        """No predictions yet: the identity of :meth:`merge`."""
        return cls(
            count=torch.zeros((), dtype=torch.int64),
            sums=torch.zeros(len(SUMS), dtype=torch.float64),
            pit=torch.zeros(PIT_BINS, dtype=torch.int64),
        )

    def add(
        self,
        mean: Float[Tensor, "*shape"],
        stddev: Float[Tensor, "*shape"],
        log_density: Float[Tensor, "*shape"],
        crps: Float[Tensor, "*shape"],
        cdf_of_y: Float[Tensor, "*shape"],
        y: Float[Tensor, "*shape"],
    ) -> Self:
        """These scores and those of more predictions, any number of them.

        Args:
            mean: predicted means.
            stddev: predicted standard deviations.
            log_density: log-densities of the outcomes, nats; −∞ is counted (nll = ∞ from then on).
            crps: continuous ranked probability scores of the outcomes.
            cdf_of_y: predicted distribution functions at the outcomes, from 0 to 1.
            y: outcomes.

        Raises:
            ValueError: shapes differ, or a score is not a number: one NaN would spoil all sums.
        """
        shapes = {tuple(t.shape) for t in (mean, stddev, log_density, crps, cdf_of_y, y)}
        if len(shapes) > 1:
            raise ValueError(f"scores and y have shapes {sorted(shapes)}; they must agree")
        error = (mean.double() - y.double()).abs()
        parts = (error, error.square(), -log_density, crps, stddev)
        scores = torch.stack([part.detach().double().flatten() for part in parts])
        return type(self)(
            count=self.count + y.numel(),
            sums=self.sums + _without_nan(scores).sum(1).cpu(),
            pit=self.pit + pit_histogram(cdf_of_y).cpu(),
        )

    def merge(self, other: Self) -> Self:
        """The scores of both sets of predictions."""
        return type(self)(self.count + other.count, self.sums + other.sums, self.pit + other.pit)

    def summary(self) -> ScoreSummary:
        """Means of the scores and coverages (from 0 to 1), as plain numbers."""
        rows = int(self.count)
        mean = dict(zip(SUMS, (self.sums / rows).tolist(), strict=True))
        held = dict(zip(*reliability(self.pit), strict=True))
        return ScoreSummary(
            rows=rows,
            mae=mean["absolute_error"] if rows else None,
            rmse=math.sqrt(mean["squared_error"]) if rows else None,
            nll=mean["nll"] if rows else None,
            crps=mean["crps"] if rows else None,
            stddev=mean["stddev"] if rows else None,
            coverage_50=held[0.5] if rows else None,
            coverage_90=held[0.9] if rows else None,
            pit=self.pit.tolist(),
        )


def _without_nan(scores: Float[Tensor, "sums predictions"]) -> Float[Tensor, "sums predictions"]:
    """The scores themselves; only +∞ (a density of zero) may be other than a finite number."""
    for which, where in (scores.isnan() | (scores == -math.inf)).nonzero().tolist():
        received = scores[which, where].item()
        raise ValueError(f"{SUMS[which]} of prediction {where} is {received}; it must be a number")
    return scores
