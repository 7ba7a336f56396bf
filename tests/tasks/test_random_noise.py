import math

import pytest
import torch

from synopsis.tasks.random_noise import (
    BURN_IN,
    NOISES,
    _impulse_response,
    autoregression,
    outliers,
)
from tests.tolerances import RECURSION


@pytest.mark.parametrize("name", NOISES)
def test_noise_has_zero_mean_and_unit_variance(name):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 500, 2, generator=generator)
    noise = NOISES[name][1](generator, x, torch.ones(400, 2, dtype=torch.bool)).double()
    mean_error = noise.std() / math.sqrt(noise.numel())
    assert noise.mean().abs() < 5 * mean_error
    # Student-t(2.5) has no fourth moment: its sample variance settles slowly.
    assert abs(noise.var() - 1) < (0.15 if name == "heavy-tailed" else 0.02)


def test_input_dependent_noise_depends_on_the_inputs_and_only_it_does():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, 2000, 1, generator=generator)
    for name, (_, draw) in NOISES.items():
        size = draw(generator, x, torch.ones(100, 1, dtype=torch.bool)).abs()
        high = torch.where(x[..., 0] > 0, size, math.nan).nanmean(-1)
        low = torch.where(x[..., 0] > 0, math.nan, size).nanmean(-1)
        contrast = (high / low).log().abs().mean()
        assert (contrast > 0.2) if name == "input-dependent" else (contrast < 0.08)


def test_heavy_tails_and_skewness():
    generator = torch.Generator().manual_seed(0)
    x, relevant = torch.zeros(200, 2000, 1), torch.ones(200, 1, dtype=torch.bool)
    gaussian, heavy, skewed = (
        NOISES[name][1](generator, x, relevant) for name in ("gaussian", "heavy-tailed", "skewed")
    )
    assert (heavy.abs() > 5).float().mean() > 50 * (gaussian.abs() > 5).float().mean()
    skewness = skewed.pow(3).mean(-1)
    assert skewness.abs().mean() > 0.5
    assert (skewness > 0).any() and (skewness < 0).any()


def test_outliers_hit_few_rows_of_the_afflicted_only():
    afflicted = torch.tensor([True] * 100 + [False] * 100)
    drawn = outliers(torch.Generator().manual_seed(0), 1000, afflicted)
    assert not drawn[100:].any()
    hit = drawn[drawn != 0].abs()
    assert hit.min() >= 4 and hit.max() <= 20
    assert 0.003 < (drawn[:100] != 0).float().mean() < 0.03


def test_autoregression_obeys_its_recursion_at_every_row():
    f = torch.randn(200, 80, generator=torch.Generator().manual_seed(1))
    noise = torch.zeros_like(f)
    y = autoregression(torch.Generator().manual_seed(0), f, noise).double()
    rest = y[:, 2:] - f
    lags = torch.stack([y[:, 1:-1], y[:, :-2]], dim=-1)
    coefficients = torch.linalg.lstsq(lags, rest[..., None]).solution
    residual = rest - (lags @ coefficients).squeeze(-1)
    assert (residual.abs().amax(-1) < RECURSION * y.abs().amax(-1).clamp_min(1)).all()
    first, second = coefficients[:, 0, 0], coefficients[:, 1, 0]
    inside = (second.abs() < 1) & (second + first < 1) & (second - first < 1)
    assert inside.all()  # the triangle of stationarity
    assert 0.3 < (second.abs() < RECURSION).double().mean() < 0.7  # AR(1) and AR(2)


def test_impulse_response_stays_finite_over_long_streams():
    response = _impulse_response(torch.Generator().manual_seed(0), 500, 2000 + BURN_IN)
    assert response.isfinite().all()
    assert torch.allclose(response[:, 0], torch.ones(500, dtype=torch.float64))
