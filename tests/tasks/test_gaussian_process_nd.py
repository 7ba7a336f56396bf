"""Gaussian processes of several inputs against naive formulas and their own laws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, Normal

from synopsis.tasks import Task
from synopsis.tasks.gaussian_process_nd import GaussianProcessNDTask, covariance_nd
from tests.tolerances import FLOAT32, FLOAT64, SIGMAS, SOLVE

SMALL = {"min_context": 3, "min_targets": 3, "max_points": 20}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_covariance(x, length, variance):
    """Element by element, for one task."""
    rows = [
        [
            variance
            * math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / 2 / length**2)
            for b in x.tolist()
        ]
        for a in x.tolist()
    ]
    return torch.tensor(rows, dtype=torch.float64)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), dim=st.integers(1, 5))
def test_covariance_is_the_elementwise_formula(seed, dim):
    random = generator(seed)
    x = 4 * torch.rand(2, 6, dim, generator=random, dtype=torch.float64) - 2
    length, variance = torch.rand(2, 2, generator=random, dtype=torch.float64) + 0.1
    matrix = covariance_nd(x, length, variance)
    for i in range(2):
        expected = naive_covariance(x[i], length[i].item(), variance[i].item())
        torch.testing.assert_close(matrix[i], expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_oracle_is_the_dense_conditional_of_the_numbers_handed_out(dim):
    task = GaussianProcessNDTask(dim, **SMALL)
    batch, draw = task.sample(3, generator(2)), task.draw(3, generator(2))
    n = batch.xc.shape[1]
    x = torch.cat([batch.xc, batch.xt], dim=1).double()
    y = torch.cat([batch.yc, batch.yt], dim=1).double()[:, :, 0]
    assert batch.oracle.dtype == batch.joint_oracle.dtype == torch.float64
    for i in range(3):
        whole = naive_covariance(x[i], draw.length[i].item(), draw.variance[i].item())
        whole += task.noise**2 * torch.eye(len(whole)).double()
        inverse, cross = torch.linalg.inv(whole[:n, :n]), whole[n:, :n]
        mean = cross @ inverse @ y[i, :n]
        matrix = whole[n:, n:] - cross @ inverse @ cross.T
        diagonal = Normal(mean, matrix.diagonal().sqrt()).log_prob(y[i, n:])
        joint = MultivariateNormal(mean, (matrix + matrix.T) / 2).log_prob(y[i, n:])
        torch.testing.assert_close(batch.oracle[i], diagonal, rtol=SOLVE, atol=SOLVE)
        torch.testing.assert_close(batch.joint_oracle[i], joint, rtol=SOLVE, atol=SOLVE)


def test_outputs_are_normal_with_the_covariance():
    """Whitened by the naive factor, outputs of many tasks are standard normal."""
    draw = GaussianProcessNDTask(2, **SMALL, noise=0.3, dtype="float64").draw(300, generator(3))
    matrix = naive_covariance(draw.x[0], draw.length[0].item(), draw.variance[0].item())
    matrix += 0.09 * torch.eye(len(matrix)).double()
    torch.testing.assert_close(
        draw.factor[0] @ draw.factor[0].T, matrix, rtol=FLOAT64, atol=FLOAT64
    )
    z = torch.linalg.solve_triangular(draw.factor, draw.y[:, :, None], upper=False).flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        error = SIGMAS * math.sqrt(variance / len(z))
        assert abs(z.pow(power).mean().item() - expected) < error


@pytest.mark.parametrize(("dim", "low", "high"), [(2, 30, 128), (3, 64, 256)])
def test_numbers_of_points_follow_the_published_law(dim, low, high):
    """N uniform over lo..hi−lo−1, then M over lo..hi−N−1; the sizes alone, as draws are slow."""
    draws, random, task = 6000, generator(4), GaussianProcessNDTask(dim)
    counts = torch.zeros(high, high, dtype=torch.float64)
    for _ in range(draws):
        counts[task._sizes(random)] += 1
    expected = torch.zeros_like(counts)
    for n in range(low, high - low):
        expected[n, low : high - n] = draws / (high - 2 * low) / (high - n - low)
    assert (counts[expected == 0] == 0).all()
    for axis in (0, 1):
        seen, wanted = counts.sum(axis), expected.sum(axis)
        inside = wanted > 0
        chi2 = ((seen - wanted)[inside].square() / wanted[inside]).sum().item()
        freedom = int(inside.sum()) - 1
        assert freedom == high - 2 * low - 1
        # the rarest sizes are expected about once, which widens the law a little
        assert abs(chi2 - freedom) < 2 * SIGMAS * math.sqrt(2 * freedom)
    batch = task.sample(1, generator(5))
    assert low <= batch.xc.shape[1]
    assert batch.xc.shape[1] + batch.xt.shape[1] < high


def test_one_draw_of_the_hyperparameters_per_batch_or_per_task():
    random = generator(6)
    shared = [GaussianProcessNDTask(**SMALL).draw(4, random) for _ in range(300)]
    assert all(
        (d.length == d.length[0]).all() and (d.variance == d.variance[0]).all() for d in shared
    )
    own = GaussianProcessNDTask(**SMALL, hyperparameters="task").draw(300, random)
    for values in (
        torch.stack([d.length[0] for d in shared]),
        torch.stack([d.variance[0] for d in shared]),
        own.length,
        own.variance,
    ):
        unit = (values - 0.1) / 0.9
        assert 0 <= unit.min() < 0.03
        assert 0.97 < unit.max() < 1
        assert abs(unit.mean().item() - 0.5) < SIGMAS / math.sqrt(12 * 300)


def test_inputs_fill_the_cube():
    task = GaussianProcessNDTask(3, **SMALL, targets=500, range=(-1.0, 3.0), oracle=False)
    x = task.sample(2, generator(7)).xt.flatten(0, 1).double()
    assert x.min() >= -1
    assert x.max() <= 3
    for i in range(3):
        assert abs(x[:, i].mean().item() - 1) < SIGMAS * 4 / math.sqrt(12 * len(x))
        for j in range(i):
            product = ((x[:, i] - 1) * (x[:, j] - 1)).mean().item()
            assert abs(product) < SIGMAS * 16 / 12 / math.sqrt(len(x))


def test_targets_gives_every_task_that_many_and_keeps_the_contexts():
    for seed in range(10):
        fixed = GaussianProcessNDTask(**SMALL, targets=7).sample(2, generator(seed))
        law = GaussianProcessNDTask(**SMALL).sample(2, generator(seed))
        assert fixed.xt.shape == (2, 7, 2)
        assert fixed.xc.shape == law.xc.shape


def test_seeds_dtypes_and_the_oracle_off():
    task = GaussianProcessNDTask(**SMALL)
    torch.manual_seed(0)
    one = task.sample(2, generator(8))
    torch.manual_seed(1)
    two = task.sample(2, generator(8))
    large = GaussianProcessNDTask(**SMALL, dtype="float64", oracle=False).sample(2, generator(8))
    assert torch.equal(one.yt, two.yt)
    assert large.oracle is None
    assert large.yt.dtype == torch.float64
    assert torch.equal(one.xt, large.xt.float())
    # x differs by 1e-7 and the functions have slopes of at most some tens
    torch.testing.assert_close(one.yt.double(), large.yt, rtol=0, atol=50 * FLOAT32)


def test_is_a_task_and_starts_empty_if_asked():
    task: Task = GaussianProcessNDTask(5, min_context=0, min_targets=1, max_points=2)
    assert (task.dim_x, task.dim_y) == (5, 1)
    batch = task.sample(2, generator())
    assert (batch.xc.shape, batch.yc.shape, batch.xt.shape) == ((2, 0, 5), (2, 0, 1), (2, 1, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim_x": 0}, "dim_x is 0; it must be 1 or more"),
        (
            {"dim_x": 4},
            "min_context, min_targets and max_points are None, None and None; for dim_x 4",
        ),
        ({"hyperparameters": "all"}, "hyperparameters is 'all'; it must be one of batch, task"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"min_context": -1}, "min_context is -1"),
        ({"min_targets": 0}, "min_targets is 0"),
        ({"max_points": 60}, "max_points is 60; it must be 61 or more"),
        ({"targets": 0}, "targets is 0"),
        ({"noise": 0.0}, "noise is 0.0; it must be positive"),
        ({"range": (1.0, 1.0)}, r"range is \(1.0, 1.0\); it must be increasing"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianProcessNDTask(**arguments)
