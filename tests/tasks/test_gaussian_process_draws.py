import math

import pytest
import torch
from scipy import stats

from synopsis.tasks.gaussian_process_draws import GaussianProcessDraws, _log_densities
from tests.tolerances import FLOAT32, FLOAT64, NOISY_ORACLE


def _draw(**changes):
    task = GaussianProcessDraws(**{"inputs": 2, "context": 20, **changes})
    return task, task.sample(6, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("inputs", "context"), [(1, 0), (2, 2), (3, 10), (8, 100)])
def test_shapes_and_absent_columns(inputs, context):
    task, batch = _draw(inputs=inputs, context=context, targets=9)
    assert (task.dim_x, task.dim_y) == (8, 1)
    assert batch.xc.shape == (6, context, 8) and batch.yc.shape == (6, context, 1)
    assert batch.xt.shape == (6, 9, 8) and batch.yt.shape == (6, 9, 1)
    assert batch.oracle.shape == (6, 9) and batch.joint_oracle.shape == (6,)
    absent = torch.arange(8) >= inputs
    assert (batch.xt.isnan() == absent).all() and (batch.xc.isnan() == absent).all()
    for part in (batch.yc, batch.yt, batch.oracle, batch.joint_oracle):
        assert part.isfinite().all() and part.dtype == torch.float32


def test_log_densities_against_the_textbook():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, dtype=torch.float64, generator=generator)
    covariance = root @ root.T + torch.eye(12)
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.randn(12, dtype=torch.float64, generator=generator)
    y, n = factor @ whitened, 7
    gain = torch.linalg.solve(covariance[:n, :n], covariance[:n, n:]).T
    mean = gain @ y[:n]
    conditional = covariance[n:, n:] - gain @ covariance[:n, n:]
    naive = torch.distributions.Normal(mean, conditional.diagonal().sqrt()).log_prob(y[n:])
    naive_joint = torch.distributions.MultivariateNormal(mean, conditional).log_prob(y[n:])
    diagonal, joint = _log_densities(factor, whitened, n)
    torch.testing.assert_close(diagonal, naive, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64)
    torch.testing.assert_close(joint, naive_joint, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64)


def _handed_out_process(monkeypatch, task, seed):
    """The batch of one task, and the covariance it was drawn from."""
    seen = []
    original = GaussianProcessDraws._process

    def spy(self, generator):
        x, covariance = original(self, generator)
        seen.append(covariance.clone())
        return x, covariance

    monkeypatch.setattr(GaussianProcessDraws, "_process", spy)
    return task.sample(1, torch.Generator().manual_seed(seed)), seen[0]


@pytest.mark.parametrize("context", [0, 2, 10, 60])
def test_oracle_is_the_density_of_what_is_handed_out(monkeypatch, context):
    """The affine map to standardised units is found from the numbers alone, then undone."""
    task = GaussianProcessDraws(inputs=1, context=context, targets=15)
    batch, covariance = _handed_out_process(monkeypatch, task, seed=3)
    generator = torch.Generator().manual_seed(3)
    GaussianProcessDraws._process(task, generator)
    raw = torch.linalg.cholesky(covariance) @ torch.randn(
        len(covariance), generator=generator, dtype=torch.float64
    )
    handed = torch.cat([batch.yc, batch.yt], 1)[0, :, 0].double()
    design = torch.stack([handed, torch.ones_like(handed)], -1)
    scale, location = torch.linalg.lstsq(design, raw[:, None]).solution[:, 0]
    # z = (y − location) / scale has covariance K / scale² and mean −location / scale.
    mean, covariance = -location / scale, covariance / scale**2
    gain = covariance[context:, :context] @ torch.linalg.inv(covariance[:context, :context])
    conditional = covariance[context:, context:] - gain @ covariance[:context, context:]
    target_mean = mean + gain @ (handed[:context] - mean)
    normal = torch.distributions.Normal(target_mean, conditional.diagonal().sqrt())
    naive = normal.log_prob(handed[context:])
    torch.testing.assert_close(
        batch.oracle[0].double(), naive, rtol=NOISY_ORACLE, atol=NOISY_ORACLE
    )
    joint = torch.distributions.MultivariateNormal(target_mean, conditional)
    torch.testing.assert_close(
        batch.joint_oracle[0].double(),
        joint.log_prob(handed[context:]),
        rtol=NOISY_ORACLE,
        atol=NOISY_ORACLE,
    )


def test_oracle_beats_the_best_constant_and_grows_with_context():
    means = []
    for context in (3, 30, 300):
        batch = GaussianProcessDraws(inputs=1, context=context).sample(
            60, torch.Generator().manual_seed(0)
        )
        means.append(batch.oracle.median().item())
    assert means[0] < means[1] < means[2]
    assert means[2] > -0.5 * math.log(2 * math.pi * math.e)


def test_outputs_are_standardised_by_the_context_only():
    for context, rows in ((10, 10), (100, 32)):
        _, batch = _draw(context=context)
        first = batch.yc[:, :rows].double()
        torch.testing.assert_close(
            first.mean(1), torch.zeros_like(first[:, 0]), rtol=0, atol=FLOAT32
        )
        deviation = first.std(1, correction=0)
        torch.testing.assert_close(deviation, torch.ones_like(deviation), rtol=10 * FLOAT32, atol=0)


def test_noise_free_variance_is_that_of_the_prior():
    """Over the rows of a task the function has unit variance in expectation."""
    task, variances = GaussianProcessDraws(inputs=1, context=60, noise_range=(0.03, 0.0301)), []
    for seed in range(200):
        _, covariance = task._process(torch.Generator().manual_seed(seed))
        factor = torch.linalg.cholesky(covariance)
        draws = factor @ torch.randn(
            len(factor), 20, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
        )
        variances.append(draws.var(0, correction=0).mean().item())
    assert stats.ttest_1samp(variances, 1 + 0.03**2).pvalue > 1e-4


def test_same_seed_same_draws():
    for one, other in zip(vars(_draw()[1]).values(), vars(_draw()[1]).values(), strict=True):
        assert one is other is None or torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": 9}, "inputs is 9 but must lie in 1 … 8"),
        ({"context": 1001}, "context is 1001 but must lie in 0 … 1000"),
        ({"targets": 0}, "targets is 0 but must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _draw(**changes)
