import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from synopsis.processes.heads import Gaussian, GaussianMixture
from synopsis.serving.forecasts import Forecast, forecasts
from tests.tolerances import FLOAT32, FLOAT64, TRAPEZOIDS

LEVELS = (1e-4, 0.05, 0.25, 0.5, 0.75, 0.95, 1 - 1e-4)


def mixture(targets: int = 1, components: int = 3) -> GaussianMixture:
    generator = torch.Generator().manual_seed(0)
    shape = (1, targets, 1, components)
    logits, means, logs = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return GaussianMixture(logits, 5 * means, logs.exp())


@pytest.mark.parametrize("y", [-20.0, -1.0, 0.3, 4.0, 50.0])
def test_agrees_with_the_tensor_distribution(y: float) -> None:
    distribution = mixture()
    (forecast,) = forecasts(distribution)
    at = torch.tensor([[[y]]], dtype=torch.float64)
    assert forecast.mean == pytest.approx(distribution.mean.item(), rel=FLOAT64)
    assert forecast.stddev == pytest.approx(distribution.stddev.item(), rel=FLOAT64)
    assert forecast.log_prob(y) == pytest.approx(distribution.log_prob(at).item(), rel=FLOAT64)
    assert forecast.cdf(y) == pytest.approx(distribution.cdf(at).item(), abs=FLOAT64)
    assert forecast.crps(y) == pytest.approx(distribution.crps(at).item(), rel=100 * FLOAT64)


def test_targets_come_in_order() -> None:
    distribution = mixture(targets=4)
    means = [forecast.mean for forecast in forecasts(distribution)]
    assert means == pytest.approx(distribution.mean.flatten().tolist(), rel=FLOAT64)


def test_one_gaussian() -> None:
    distribution = Gaussian(torch.tensor([[[2.0]]]), torch.tensor([[[3.0]]]))
    (forecast,) = forecasts(distribution)
    assert forecast == Forecast((1.0,), (2.0,), (3.0,))
    assert forecast.crps(2.0) == pytest.approx(3 * (math.sqrt(2) - 1) / math.sqrt(math.pi))


def test_crps_is_the_integral_of_the_squared_difference() -> None:
    (forecast,) = forecasts(mixture())
    for y in (-3.0, 0.5):
        below, _ = integrate.quad(lambda t: forecast.cdf(t) ** 2, -60, y, limit=400)
        above, _ = integrate.quad(lambda t: (1 - forecast.cdf(t)) ** 2, y, 60, limit=400)
        assert forecast.crps(y) == pytest.approx(below + above, abs=TRAPEZOIDS)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)),
        min_size=1,
        max_size=5,
    )
)
def test_quantile_inverts_the_cdf(parts: list[tuple[float, float, float]]) -> None:
    weights, means, stddevs = zip(*parts, strict=True)
    total = sum(weights)
    forecast = Forecast(tuple(w / total for w in weights), means, stddevs)
    quantiles = [forecast.quantile(level) for level in LEVELS]
    assert quantiles == sorted(quantiles)
    for level, quantile in zip(LEVELS, quantiles, strict=True):
        width = max(abs(quantile), min(stddevs)) * 1e-9
        assert (
            forecast.cdf(quantile - width) - 1e-9 <= level <= forecast.cdf(quantile + width) + 1e-9
        )


def test_far_outcomes_keep_a_finite_score() -> None:
    forecast = Forecast((0.5, 0.5), (0.0, 1.0), (1e-3, 1.0))
    assert forecast.log_prob(1e6) == pytest.approx(-0.5 * (1e6 - 1) ** 2, rel=FLOAT32)
    assert np.isfinite(forecast.crps(1e6))
    assert forecast.cdf(-1e6) == 0.0
    assert forecast.cdf(1e6) == 1.0
