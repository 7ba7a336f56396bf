"""Scores against numerical integration of their definitions, calibration on simulated data."""

import math
from dataclasses import fields

import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from synopsis.calibration import (
    PIT_BINS,
    RunningScores,
    coverage,
    crps_gaussian,
    crps_gaussian_mixture,
    kolmogorov_smirnov,
    pit_histogram,
    reliability,
)
from tests.tolerances import FLOAT32, FLOAT64, QUADRATURE, SIMULATED

DRAWS = 100_000

finite = st.floats(-50, 50)
positive = st.floats(0.05, 20)


def integrated_crps(cdf, y: float, low: float, high: float) -> float:
    """∫ (F(t) − 1[t ≥ y])² dt, from the definition."""
    left = quad(lambda t: cdf(t) ** 2, min(low, y), y, epsabs=1e-12, limit=500)[0]
    right = quad(lambda t: (1 - cdf(t)) ** 2, y, max(high, y), epsabs=1e-12, limit=500)[0]
    return float(left + right)


@settings(max_examples=40, deadline=None)
@given(finite, positive, st.floats(-4, 4))
def test_crps_of_a_gaussian_is_the_integral(mean, stddev, z):
    y = mean + z * stddev
    expected = integrated_crps(
        lambda t: scipy.stats.norm.cdf(t, mean, stddev), y, mean - 12 * stddev, mean + 12 * stddev
    )
    result = crps_gaussian(*(torch.tensor(v, dtype=torch.float64) for v in (mean, stddev, y)))
    assert result.item() == pytest.approx(expected, abs=QUADRATURE * max(1, stddev))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0.05, 1), st.floats(-5, 5), st.floats(0.2, 3)), min_size=1, max_size=4
    ),
    st.floats(-8, 8),
)
def test_crps_of_a_mixture_is_the_integral(components, y):
    weights, means, stddevs = torch.tensor(components, dtype=torch.float64).T
    weights = weights / weights.sum()

    def cdf(t):
        z = (t - means) / stddevs
        return (weights * torch.special.ndtr(z)).sum().item()

    result = crps_gaussian_mixture(weights, means, stddevs, torch.tensor(y, dtype=torch.float64))
    assert result.item() == pytest.approx(integrated_crps(cdf, y, -45, 45), abs=FLOAT32 / 10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, FLOAT64), (torch.float32, 1e-5)])
def test_a_mixture_of_one_is_a_gaussian(dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    mean, y = torch.randn(2, 3, 50, generator=generator, dtype=dtype)
    stddev = torch.rand(3, 50, generator=generator, dtype=dtype) + 0.1
    one = torch.ones(3, 50, 1, dtype=dtype)
    mixture = crps_gaussian_mixture(one, mean.unsqueeze(-1), stddev.unsqueeze(-1), y)
    torch.testing.assert_close(
        mixture, crps_gaussian(mean, stddev, y), rtol=tolerance, atol=tolerance
    )


def test_two_equal_components_are_one():
    half = torch.full((2,), 0.5, dtype=torch.float64)
    y = torch.tensor(0.3, dtype=torch.float64)
    mixture = crps_gaussian_mixture(half, 2 * half, 4 * half, y)
    torch.testing.assert_close(mixture, crps_gaussian(2 * half[0], 4 * half[0], y))


def test_without_spread_the_score_is_the_absolute_error():
    mean, y = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([1.0, 5.0, 4.0])
    zero, one = torch.zeros(3), torch.ones(3, 1)
    assert crps_gaussian(mean, zero, y).tolist() == [0, 3, 7]
    assert crps_gaussian_mixture(one, mean[:, None], zero[:, None], y).tolist() == [0, 3, 7]


def test_crps_has_finite_gradients():
    mean = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    stddev = torch.tensor([0.5, 1, 2, 30], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0.1, -40, 2, 3], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: crps_gaussian(m, s, y), (mean, stddev))


def simulate(claimed_stddev: float, draws: int = DRAWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normal outcomes and their PIT under a claim of another spread."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(draws, generator=generator, dtype=torch.float64)
    return y, torch.special.ndtr(y / claimed_stddev)


@pytest.mark.parametrize(("claimed", "expected"), [(1, 0.9), (0.5, 0.589), (2, 0.999)])
def test_coverage_and_reliability_on_simulated_outcomes(claimed, expected):
    y, pit = simulate(claimed)
    edge = torch.full_like(y, scipy.stats.norm.ppf(0.95) * claimed)
    assert coverage(-edge, edge, y) == pytest.approx(expected, abs=SIMULATED)
    levels, held = reliability(pit_histogram(pit))
    assert levels == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert held[8] == pytest.approx(coverage(-edge, edge, y), abs=FLOAT64)
    exact = 2 * scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.75) * claimed) - 1
    assert held[4] == pytest.approx(exact, abs=SIMULATED)
    assert held[9] == 1


def test_interval_ends_belong_to_the_interval():
    zero, one = torch.zeros(4), torch.ones(4)
    assert coverage(zero, one, torch.tensor([0.0, 1.0, -0.1, 1.1])) == 0.5


def test_the_pit_histogram_counts_every_value_once():
    pit = torch.tensor([0.0, 0.04, 0.05, 0.5, 0.999, 1.0, 1.0 + 1e-7], dtype=torch.float64)
    counts = pit_histogram(pit)
    assert counts.nonzero().flatten().tolist() == [0, 1, 10, 19]
    assert counts[[0, 1, 10, 19]].tolist() == [2, 1, 1, 3]
    assert counts.shape == (PIT_BINS,)


@pytest.mark.parametrize("wrong", [1.1, -0.01, math.nan, math.inf])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match=rf"a PIT value is {wrong}; it must lie from 0 to 1"):
        pit_histogram(torch.tensor([0.5, wrong], dtype=torch.float64))


def test_empty_input_is_refused():
    empty = torch.zeros(0)
    with pytest.raises(ValueError, match="y is empty"):
        coverage(empty, empty, empty)
    with pytest.raises(ValueError, match="pit is empty"):
        kolmogorov_smirnov(empty)
    with pytest.raises(ValueError, match="3 bins; central intervals need an even number"):
        reliability(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("n", [1, 7, 100, 5000])
@pytest.mark.parametrize("power", [1.0, 1.1, 3.0])
def test_kolmogorov_smirnov_agrees_with_the_limit_distribution(n, power):
    generator = torch.Generator().manual_seed(n)
    pit = torch.rand(n, generator=generator, dtype=torch.float64) ** power
    statistic, p_value = kolmogorov_smirnov(pit)
    assert statistic == pytest.approx(scipy.stats.kstest(pit.numpy(), "uniform").statistic)
    expected = scipy.special.kolmogorov(math.sqrt(n) * statistic)
    assert p_value == pytest.approx(expected, rel=10 * FLOAT64, abs=FLOAT64 / 100)


@pytest.mark.parametrize("statistic", [0.5e-3, 1e-2, 0.04, 0.3, 0.7, 0.99, 1.0])
def test_the_limit_distribution_over_its_whole_range(statistic):
    """Two values whose largest distance is the statistic's, tiny or near one."""
    n = 4
    spread = torch.arange(n, dtype=torch.float64) / n
    pit = (spread + statistic).clamp_max(1.0)
    result = kolmogorov_smirnov(pit)
    expected = scipy.special.kolmogorov(math.sqrt(n) * result.statistic)
    assert result.p_value == pytest.approx(expected, rel=10 * FLOAT64, abs=FLOAT64 / 100)


def test_the_p_value_is_uniform_under_calibration_and_small_otherwise():
    generator = torch.Generator().manual_seed(3)
    sets = torch.rand(400, 500, generator=generator, dtype=torch.float64)
    rejected = sum(kolmogorov_smirnov(pit).p_value < 0.05 for pit in sets) / 400
    assert 0.02 < rejected < 0.08
    assert kolmogorov_smirnov(sets[0] ** 2).p_value < 1e-6


def scores_of(rows: list[tuple[float, float, float]]) -> RunningScores:
    """Scores of Gaussian predictions from (mean, stddev, y)."""
    mean, stddev, y = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).T
    normal = torch.distributions.Normal(mean, stddev)
    return RunningScores.empty().add(
        mean, stddev, normal.log_prob(y), crps_gaussian(mean, stddev, y), normal.cdf(y), y
    )


def assert_equal(a: RunningScores, b: RunningScores) -> None:
    for field in fields(RunningScores):
        torch.testing.assert_close(
            getattr(a, field.name), getattr(b, field.name), rtol=FLOAT64, atol=FLOAT64
        )


rows = st.lists(st.tuples(finite, positive, finite), max_size=12)


@settings(max_examples=100, deadline=None)
@given(rows, rows, rows)
def test_merge_is_a_commutative_monoid_and_equals_adding(a, b, c):
    x, y, z = scores_of(a), scores_of(b), scores_of(c)
    assert_equal(x.merge(RunningScores.empty()), x)
    assert_equal(x.merge(y), y.merge(x))
    assert_equal(x.merge(y).merge(z), x.merge(y.merge(z)))
    assert_equal(x.merge(y), scores_of(a + b))


def test_the_summary_is_that_of_numpy():
    generator = torch.Generator().manual_seed(5)
    table = torch.rand(1000, 3, generator=generator, dtype=torch.float64) + 0.1
    summary = scores_of(table.tolist()).summary()
    mean, stddev, y = table.T
    assert summary["rows"] == 1000 and sum(summary["pit"]) == 1000
    assert summary["mae"] == pytest.approx((mean - y).abs().mean().item())
    assert summary["rmse"] == pytest.approx((mean - y).square().mean().sqrt().item())
    nll = -scipy.stats.norm.logpdf(y.numpy(), mean.numpy(), stddev.numpy()).mean()
    assert summary["nll"] == pytest.approx(nll)
    assert summary["crps"] == pytest.approx(crps_gaussian(mean, stddev, y).mean().item())
    assert summary["stddev"] == pytest.approx(stddev.mean().item())
    for level, got in ((0.5, summary["coverage_50"]), (0.9, summary["coverage_90"])):
        z = scipy.stats.norm.ppf(0.5 + level / 2)
        assert got == pytest.approx(coverage(mean - z * stddev, mean + z * stddev, y))


def test_nothing_scored_has_no_scores():
    summary = RunningScores.empty().summary()
    assert summary["rows"] == 0 and summary["pit"] == [0] * PIT_BINS
    assert all(summary[name] is None for name in ("mae", "rmse", "nll", "crps", "coverage_50"))


def test_adding_leaves_the_old_scores_and_takes_float32_of_any_shape():
    empty, ones = RunningScores.empty(), torch.ones(2, 3)
    scores = empty.add(ones, ones, -ones, 0.25 * ones, 0.5 * ones, 2 * ones)
    scores = scores.add(*(t[0, 0] for t in (ones, ones, -ones, ones, 0.5 * ones, ones)))
    assert empty.summary()["rows"] == 0
    assert scores.sums.dtype == torch.float64
    assert scores.summary()["rows"] == 7
    assert scores.summary()["mae"] == pytest.approx(6 / 7, abs=FLOAT32)


def test_an_impossible_outcome_counts_and_a_nan_is_refused():
    one = torch.ones(1)
    ruled_out = RunningScores.empty().add(one, one, -math.inf * one, one, 0 * one, one)
    assert ruled_out.summary()["nll"] == math.inf
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"nll of prediction 0 is (nan|-inf)"):
            RunningScores.empty().add(one, one, wrong * one, one, one, one)
    with pytest.raises(ValueError, match=r"shapes \[\(1,\), \(2,\)\]; they must agree"):
        RunningScores.empty().add(torch.ones(2), one, one, one, one, one)
