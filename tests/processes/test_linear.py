"""Bayesian linear regression against the conjugate formulas, scipy's Student-t, and scikit-learn's ridge."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import Ridge

from synopsis.processes import BayesianLinear
from tests.reference import bayesian_linear
from tests.tolerances import FLOAT32, FLOAT64

EXACT = {"rtol": 1e3 * FLOAT64, "atol": 1e3 * FLOAT64}
PRIOR = {"precision": 0.3, "shape": 2.5, "rate": 0.7}


def stream(length: int, dim_x: int = 3, dim_y: int = 1, streams: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    options = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(streams, length, dim_x, **options)
    weights = torch.randn(dim_x, dim_y, **options)
    return x, x @ weights + 1 + 0.3 * torch.randn(streams, length, dim_y, **options)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 4), st.integers(0, 10**6))
def test_is_the_conjugate_posterior(length, dim_x, seed):
    process = BayesianLinear(dim_x, **PRIOR)
    x, y = stream(length, dim_x, seed=seed)
    xt, _ = stream(5, dim_x, seed=seed + 1)
    predicted = process(x, y, xt)
    mean, variance = bayesian_linear(x[0].numpy(), y[0, :, 0].numpy(), xt[0].numpy(), **PRIOR)
    np.testing.assert_allclose(predicted.mean[0, :, 0], mean, **EXACT)
    np.testing.assert_allclose(predicted.variance[0, :, 0], variance, **EXACT)


def test_the_reference_itself_is_the_integral_over_the_noise():
    """One point at the origin, where only the intercept speaks; the noise variance is integrated numerically."""
    seen, precision, shape, rate = 0.8, 0.3, 2.5, 0.7
    after = precision + 1.0

    def integral(power):
        prior = stats.invgamma(shape, scale=rate)
        likelihood = lambda v: stats.norm(0, np.sqrt(v * (1 + 1 / precision))).pdf(seen)  # noqa: E731
        grid = np.geomspace(1e-3, 1e5, 200_001)
        return np.trapezoid(grid**power * prior.pdf(grid) * likelihood(grid), grid)

    noise = integral(1) / integral(0)
    mean, variance = bayesian_linear(
        np.zeros((1, 1)), np.array([seen]), np.zeros((1, 1)), precision, shape, rate
    )
    np.testing.assert_allclose(mean, seen / after, rtol=FLOAT64)
    np.testing.assert_allclose(variance, noise * (1 + 1 / after), rtol=10 * FLOAT32)


def test_the_mean_is_ridge_regression():
    process = BayesianLinear(3, 2, precision=0.5)
    (x, y), (xt, _) = stream(50, dim_y=2), stream(5, seed=1)
    with_one = torch.cat([torch.ones_like(x[..., :1]), x], -1)[0]
    ridge = Ridge(alpha=0.5, fit_intercept=False, solver="cholesky").fit(with_one, y[0])
    expected = ridge.predict(torch.cat([torch.ones_like(xt[..., :1]), xt], -1)[0])
    np.testing.assert_allclose(process(x, y, xt).mean[0], expected, **EXACT)


def test_before_any_data_it_is_the_prior():
    process = BayesianLinear(2, 1, **PRIOR)
    xt = torch.tensor([[[0.0, 0.0], [3.0, 4.0]]])
    predicted = process.predict(process.init(), xt)
    noise = PRIOR["rate"] / (PRIOR["shape"] - 1)
    expected = [noise * (1 + 1 / 0.3), noise * (1 + 26 / 0.3)]
    assert not predicted.mean.any()
    np.testing.assert_allclose(predicted.variance[0, :, 0], expected, **EXACT)


@pytest.mark.parametrize("dim_y", [1, 2, 5])
def test_outputs_are_regressions_of_their_own(dim_y):
    process, alone = BayesianLinear(1, dim_y), BayesianLinear(1)
    (x, y), (xt, _) = stream(20, 1, dim_y), stream(4, 1, seed=1)
    predicted = process(x, y, xt)
    for i in range(dim_y):
        one = alone(x, y[..., i : i + 1], xt)
        torch.testing.assert_close(predicted.mean[..., i : i + 1], one.mean, **EXACT)
        torch.testing.assert_close(predicted.stddev[..., i : i + 1], one.stddev, **EXACT)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(0, 10**6))
def test_parts_merge_to_the_whole(lengths, seed):
    process = BayesianLinear(3, 2)
    x, y = stream(sum(lengths), dim_y=2, streams=2, seed=seed)
    state = process.init((2,))
    for part in zip(x.split(lengths, 1), y.split(lengths, 1), strict=True):
        state = process.merge(process.update(process.init((2,)), *part), state)
    whole = process.update(process.init((2,)), x, y)
    for name in ("inputs", "cross", "outputs"):
        torch.testing.assert_close(getattr(state, name), getattr(whole, name), **EXACT)
    assert torch.equal(state.count, whole.count)


def test_an_input_that_is_not_given_counts_as_zero():
    process = BayesianLinear(3)
    (x, y), (xt, _) = stream(20), stream(5, seed=1)
    missing = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    found = process(x.masked_fill(missing, torch.nan), y, xt)
    expected = process(x.masked_fill(missing, 0.0), y, xt)
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.stddev, expected.stddev)
    nothing = process(x, y, torch.full_like(xt, torch.nan))
    assert torch.equal(nothing.mean, process(x, y, torch.zeros_like(xt)).mean)


def test_a_line_without_noise_is_learned_exactly():
    process = BayesianLinear(2)
    x, _ = stream(20_000, 2)
    y = 2.0 + x @ torch.tensor([[3.0], [-1.0]]).double()
    state = process.update(process.init(), x, y)
    posterior = process.posterior(state)
    np.testing.assert_allclose(posterior.mean[0, :, 0], [2.0, 3.0, -1.0], atol=100 * FLOAT32)
    assert 0 < posterior.noise.item() < 1e-4


def test_points_that_do_not_fit_are_refused_with_their_shapes():
    process = BayesianLinear(2)
    x, y = torch.zeros(1, 3, 2), torch.zeros(1, 3, 1)
    with pytest.raises(ValueError, match=r"x must be \(batch, points, 2\), not \(1, 3, 1\)"):
        process.update(process.init(), x[..., :1], y)
    with pytest.raises(ValueError, match=r"y must be \(1, 3, 1\) to go with .* not \(1, 2, 1\)"):
        process.update(process.init(), x, y[:, :2])
    with pytest.raises(NotImplementedError):
        super(BayesianLinear, process).merge(process.init(), process.init())
