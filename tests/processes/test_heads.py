"""Predictive distributions against torch's own and against numerical integration."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Categorical, MixtureSameFamily

from synopsis.processes.heads import (
    Gaussian,
    GaussianHead,
    GaussianMixture,
    MixtureHead,
    build_head,
)
from tests.reference import crps_by_integration, mixture_density
from tests.tolerances import FLOAT32, FLOAT64

EXACT = {"rtol": 100 * FLOAT64, "atol": 100 * FLOAT64}
INTEGRATED = {"rtol": 1e-6, "atol": 1e-6}
LEVELS = [1e-4, 0.05, 0.5, 0.9, 0.9999]


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian() -> Gaussian:
    return Gaussian(draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2).exp())


def mixture() -> GaussianMixture:
    """Two streams, four targets, three outputs, five components."""
    logits, means = 2 * draw(2, 4, 3, 5, seed=3), 2 * draw(2, 4, 3, 5, seed=4)
    return GaussianMixture(logits, means, (draw(2, 4, 3, 5, seed=5) - 1).exp())


def parts(distribution: GaussianMixture):
    """Weights, means and standard deviations of one output's components, as numpy."""
    inner = distribution.base_dist
    found = (
        inner.mixture_distribution.probs,
        inner.component_distribution.loc,
        inner.component_distribution.scale,
    )
    return (part[1, 2, 0].numpy() for part in found)


BOTH = pytest.mark.parametrize("made", [gaussian(), mixture()], ids=["gaussian", "mixture"])


@BOTH
def test_shapes(made):
    y = draw(2, 4, 3, seed=9)
    assert made.batch_shape == (2, 4) and made.event_shape == (3,)
    assert made.log_prob(y).shape == (2, 4)
    for each in (
        made.mean,
        made.stddev,
        made.variance,
        made.quantile(0.3),
        made.cdf(y),
        made.crps(y),
        made.sample(),
    ):
        assert each.shape == (2, 4, 3)
    assert made.sample((7,)).shape == (7, 2, 4, 3)


def test_a_gaussian_is_scipys():
    made, y = gaussian(), draw(2, 4, 3, seed=9)
    twin = stats.norm(made.mean.numpy(), made.stddev.numpy())
    np.testing.assert_allclose(made.log_prob(y), twin.logpdf(y.numpy()).sum(-1), **EXACT)
    np.testing.assert_allclose(made.cdf(y), twin.cdf(y.numpy()), **EXACT)
    for q in LEVELS:
        np.testing.assert_allclose(made.quantile(q), twin.ppf(q), **EXACT)


def test_a_mixture_is_torchs():
    made, y = mixture(), draw(2, 4, 3, seed=9)
    inner = made.base_dist
    twin = MixtureSameFamily(
        Categorical(logits=inner.mixture_distribution.logits), inner.component_distribution
    )
    for found, expected in (
        (made.log_prob(y), twin.log_prob(y).sum(-1)),
        (made.cdf(y), twin.cdf(y)),
        (made.mean, twin.mean),
        (made.variance, twin.variance),
    ):
        torch.testing.assert_close(found, expected, **EXACT)


def test_a_mixture_integrates_to_its_moments():
    made = mixture()
    weights, means, stddevs = parts(made)
    grid = np.linspace(-40.0, 40.0, 800_001)
    density = mixture_density(weights, means, stddevs, grid)
    step = grid[1] - grid[0]
    mean = (density * grid).sum() * step
    variance = (density * (grid - mean) ** 2).sum() * step
    found = (
        made.mean[1, 2, 0],
        made.variance[1, 2, 0],
        made.cdf(torch.full((2, 4, 3), 0.7).double())[1, 2, 0],
    )
    expected = mean, variance, density[grid <= 0.7].sum() * step
    np.testing.assert_allclose(density.sum() * step, 1.0, **INTEGRATED)
    np.testing.assert_allclose(found[:2], expected[:2], **INTEGRATED)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e3 * FLOAT32)


@BOTH
def test_quantiles_invert_the_cdf(made):
    for q in LEVELS:
        level = torch.full((2, 4, 3), q, dtype=torch.float64)
        torch.testing.assert_close(
            made.cdf(made.quantile(q)), level, rtol=1e3 * FLOAT64, atol=FLOAT64
        )
        torch.testing.assert_close(
            made.quantile(torch.tensor(q, dtype=torch.float64)), made.quantile(q), **EXACT
        )


@pytest.mark.parametrize("y", [-3.0, 0.2, 4.0])
def test_crps_is_its_integral(y):
    made, at = mixture(), torch.full((2, 4, 3), y, dtype=torch.float64)
    weights, means, stddevs = parts(made)
    expected = crps_by_integration(
        lambda t: mixture_density(weights, means, stddevs, t), y, -40.0, 40.0
    )
    np.testing.assert_allclose(made.crps(at)[1, 2, 0], expected, rtol=100 * FLOAT32)
    single = gaussian()
    twin = stats.norm(single.mean[1, 2, 0].item(), single.stddev[1, 2, 0].item())
    expected = crps_by_integration(twin.pdf, y, -60.0, 60.0)
    np.testing.assert_allclose(single.crps(at)[1, 2, 0], expected, rtol=100 * FLOAT32)


@BOTH
def test_affine_is_loc_plus_scale_times(made):
    loc, scale, y = draw(2, 1, 3, seed=7), draw(2, 1, 3, seed=8).exp(), draw(2, 4, 3, seed=9)
    for loc_, scale_ in ((loc, scale), (loc[0, 0], scale[0, 0]), (0.7, 2.5)):
        moved = made.affine(loc_, scale_)
        size = torch.as_tensor(scale_).double().log().expand(2, 4, 3)
        torch.testing.assert_close(moved.mean, loc_ + scale_ * made.mean, **EXACT)
        torch.testing.assert_close(moved.stddev, scale_ * made.stddev, **EXACT)
        torch.testing.assert_close(moved.quantile(0.2), loc_ + scale_ * made.quantile(0.2), **EXACT)
        torch.testing.assert_close(
            moved.crps(loc_ + scale_ * y),
            scale_ * made.crps(y),
            rtol=1e4 * FLOAT64,
            atol=1e4 * FLOAT64,
        )
        torch.testing.assert_close(
            moved.log_prob(loc_ + scale_ * y), made.log_prob(y) - size.sum(-1), **EXACT
        )


def test_float64_units_keep_their_digits():
    """A float32 network may speak of values around a billion."""
    inner = mixture().base_dist
    small = GaussianMixture(
        *(
            t.float()
            for t in (
                inner.mixture_distribution.logits,
                inner.component_distribution.loc,
                inner.component_distribution.scale,
            )
        )
    )
    big = small.affine(
        torch.full((2, 1, 3), 1e9, dtype=torch.float64), torch.ones(2, 1, 3).double()
    )
    y = draw(2, 4, 3, seed=9)
    for found, expected in (
        (big.mean - 1e9, small.mean),
        (big.quantile(0.4) - 1e9, small.quantile(0.4)),
        (big.log_prob(1e9 + y), small.log_prob(y.float())),
    ):
        torch.testing.assert_close(found, expected.double(), rtol=10 * FLOAT32, atol=10 * FLOAT32)


@BOTH
def test_expand_repeats(made):
    larger = made.expand((3, 2, 4))
    y = draw(2, 4, 3, seed=9)
    assert larger.batch_shape == (3, 2, 4)
    torch.testing.assert_close(larger.log_prob(y), made.log_prob(y).expand(3, 2, 4), **EXACT)


def test_draws_have_the_moments():
    torch.manual_seed(0)
    made = mixture()
    draws = made.sample((20_000,))
    error = (draws.mean(0) - made.mean).abs() / (made.stddev / 20_000**0.5)
    assert error.max() < 5  # standard errors
    assert abs((draws <= made.quantile(0.1)).double().mean() - 0.1) < 0.005
    assert gaussian().rsample().shape == (2, 4, 3)
    with pytest.raises(NotImplementedError, match="use sample"):
        made.rsample()


@pytest.mark.parametrize("bounded", [False, True])
def test_the_gaussian_head_is_the_published_one(bounded):
    head, features = GaussianHead(8, 2, bounded), draw(2, 5, 8).float()
    hidden = torch.relu(features @ head.expand.weight.T + head.expand.bias)
    raw = hidden @ head.predict.weight.T + head.predict.bias
    stddev = 0.05 + 0.95 * torch.log1p(raw[..., 2:].exp()) if bounded else raw[..., 2:].exp()
    found = head(features)
    torch.testing.assert_close(found.mean, raw[..., :2], rtol=FLOAT32, atol=FLOAT32)
    torch.testing.assert_close(found.stddev, stddev, rtol=10 * FLOAT32, atol=10 * FLOAT32)
    assert sum(p.numel() for p in GaussianHead(64, 1).parameters()) == 8_578


def test_the_mixture_head_starts_spread_and_never_collapses():
    head = MixtureHead(8, 2, components=5, floor=1e-3)
    found = head(torch.zeros(1, 1, 8))
    inner = found.base_dist
    assert found.event_shape == (2,)
    means, stddevs = inner.component_distribution.loc, inner.component_distribution.scale
    assert (means.diff(dim=-1) > 0.2).all()
    assert (stddevs > 0.5).all()
    with torch.no_grad():
        head.predict.bias.fill_(-1e3)
        assert (head(torch.zeros(1, 1, 8)).base_dist.component_distribution.scale >= 1e-3).all()
        head.predict.bias.fill_(1e3)
        assert head(torch.zeros(1, 1, 8)).stddev.isfinite().all()


def test_heads_by_name():
    assert not build_head("gaussian", 8, 1).bounded
    assert build_head("bounded-gaussian", 8, 1).bounded
    assert build_head("mixture-7", 8, 2).shape == (2, 7, 3)
    for wrong in ("mixture-0", "mixture-", "mixture", "gauss", "student-3", ""):
        with pytest.raises(ValueError, match="unknown head"):
            build_head(wrong, 8, 1)
