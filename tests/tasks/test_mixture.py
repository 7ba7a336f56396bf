"""Processes with fixed kernels against naive formulas, and their mixture."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from synopsis.tasks import Task
from synopsis.tasks.mixture import FixedGaussianProcessTask, ProcessMixture, fixed_covariance
from synopsis.tasks.sawtooth import SawtoothTask
from tests.tolerances import FLOAT64, SIGMAS, SOLVE

KERNELS = ("eq", "matern", "weakly-periodic")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_kernel(kernel, d):
    if kernel == "eq":
        return math.exp(-(d**2) / (2 * 0.25**2))
    if kernel == "matern":
        r = math.sqrt(5) * abs(d) / 0.25
        return (1 + r + r**2 / 3) * math.exp(-r)
    # the squared distance on a circle of circumference one period: 4 sin²(πd/p)
    turn = 2 * math.pi * d / 0.25
    chord = (math.cos(turn) - 1) ** 2 + math.sin(turn) ** 2
    return math.exp(-(d**2) / (2 * 0.5**2)) * math.exp(-chord / 2)


def naive_covariance(kernel, x):
    rows = [[naive_kernel(kernel, a - b) for b in x.tolist()] for a in x.tolist()]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariance_is_the_elementwise_formula(kernel):
    x = 4 * torch.rand(2, 12, generator=generator(1), dtype=torch.float64) - 2
    expected = torch.stack([naive_covariance(kernel, row) for row in x])
    torch.testing.assert_close(fixed_covariance(kernel, x), expected, rtol=SOLVE, atol=FLOAT64)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("least", [0, 5])
def test_oracle_is_the_dense_conditional_of_the_numbers_handed_out(kernel, least):
    task = FixedGaussianProcessTask(
        kernel, min_context=least, max_context=2 * least, targets=9, target_range=(1.0, 3.0)
    )
    batch = task.sample(3, generator(2))
    n = batch.xc.shape[1]
    x = torch.cat([batch.xc, batch.xt], dim=1).double()[:, :, 0]
    y = torch.cat([batch.yc, batch.yt], dim=1).double()[:, :, 0]
    for i in range(3):
        whole = naive_covariance(kernel, x[i]) + 0.05 * torch.eye(n + 9).double()
        inverse, cross = torch.linalg.inv(whole[:n, :n]), whole[n:, :n]
        mean = cross @ inverse @ y[i, :n]
        matrix = whole[n:, n:] - cross @ inverse @ cross.T
        diagonal = Normal(mean, matrix.diagonal().sqrt()).log_prob(y[i, n:])
        joint = MultivariateNormal(mean, (matrix + matrix.T) / 2).log_prob(y[i, n:])
        torch.testing.assert_close(batch.oracle[i], diagonal, rtol=SOLVE, atol=SOLVE)
        torch.testing.assert_close(batch.joint_oracle[i], joint, rtol=SOLVE, atol=SOLVE)


@pytest.mark.parametrize("kernel", KERNELS)
def test_outputs_are_normal_with_the_covariance(kernel):
    task = FixedGaussianProcessTask(kernel, min_context=8, max_context=8, targets=8)
    batch = task.sample(400, generator(3))
    x = torch.cat([batch.xc, batch.xt], dim=1).double()[:, :, 0]
    y = torch.cat([batch.yc, batch.yt], dim=1).double()
    matrix = torch.stack([naive_covariance(kernel, row) for row in x])
    factor = torch.linalg.cholesky(matrix + 0.05 * torch.eye(16))
    z = torch.linalg.solve_triangular(factor, y, upper=False).flatten()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (4, 3, 96)):
        error = SIGMAS * math.sqrt(variance / len(z))
        assert abs(z.pow(power).mean().item() - expected) < error


def test_numbers_of_points_and_ranges():
    draws, random = 1500, generator(4)
    task = FixedGaussianProcessTask(oracle=False, target_range=(2.0, 6.0))
    counts = torch.zeros(31, dtype=torch.float64)
    for _ in range(draws):
        batch = task.sample(1, random)
        counts[batch.xc.shape[1]] += 1
        assert batch.xt.shape == (1, 50, 1)
        assert batch.xt.min() >= 2
        assert batch.xt.max() <= 6
        assert batch.xc.abs().amax().le(2) if batch.xc.numel() else True
    expected = draws / 31
    chi2 = ((counts - expected).square() / expected).sum().item()
    assert abs(chi2 - 30) < SIGMAS * math.sqrt(2 * 30)


def test_oracle_off_computes_nothing_and_changes_nothing_else():
    with_oracle = FixedGaussianProcessTask().sample(4, generator(5))
    without = FixedGaussianProcessTask(oracle=False).sample(4, generator(5))
    assert without.oracle is None
    assert without.joint_oracle is None
    assert torch.equal(without.yt, with_oracle.yt)


# --- the mixture


def test_every_component_is_as_likely_and_hands_out_its_own_batch():
    """A batch of the mixture is the one its component draws from the rest of the generator."""
    task, random = ProcessMixture(targets=5, max_context=2), generator(6)
    counts = dict.fromkeys(task.components, 0)
    for _ in range(400):
        before = random.get_state()
        batch = task.sample(2, random)
        after = random.get_state()
        random.set_state(before)
        index = int(torch.randint(4, (), generator=random))
        name = task.components[index]
        alone = task.component(index).sample(2, random)
        assert torch.equal(alone.yt, batch.yt)
        assert torch.equal(random.get_state(), after)
        assert (batch.oracle is None) == (name == "sawtooth")
        counts[name] += 1
    assert set(counts) == {*KERNELS, "sawtooth"}
    error = SIGMAS * math.sqrt(400 * 0.25 * 0.75)
    assert all(abs(count - 100) < error for count in counts.values())


def test_components_share_their_arguments():
    task = ProcessMixture(
        components=("sawtooth", "matern"),
        max_context=7,
        targets=3,
        context_range=(0.0, 1.0),
        target_range=(4.0, 5.0),
    )
    shared = {
        "max_context": 7,
        "targets": 3,
        "context_range": (0.0, 1.0),
        "target_range": (4.0, 5.0),
    }
    assert task.component(0) == SawtoothTask(**shared)
    assert task.component(1) == FixedGaussianProcessTask("matern", **shared)


def test_published_mixture_has_a_hundred_targets():
    batch = ProcessMixture().sample(2, generator(7))
    assert batch.xt.shape == (2, 100, 1)
    assert batch.xc.shape[1] <= 30


def test_seeds():
    for task in (ProcessMixture(), FixedGaussianProcessTask()):
        torch.manual_seed(0)
        one = task.sample(4, generator(7))
        torch.manual_seed(1)
        assert torch.equal(one.yt, task.sample(4, generator(7)).yt)
        other = task.sample(4, generator(8))
        assert not torch.equal(one.yt, other.yt)


def test_are_tasks_and_say_their_dimensions():
    tasks: list[Task] = [ProcessMixture(), FixedGaussianProcessTask()]
    for task in tasks:
        assert (task.dim_x, task.dim_y) == (1, 1)
        batch = task.sample(2, generator())
        assert batch.xt.shape[::2] == batch.yt.shape[::2] == (2, 1)
        assert batch.yc.dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (
            FixedGaussianProcessTask,
            {"kernel": "rbf"},
            "kernel is 'rbf'; it must be one of eq, matern",
        ),
        (FixedGaussianProcessTask, {"min_context": -1}, "min_context is -1"),
        (FixedGaussianProcessTask, {"max_context": -1}, "max_context is -1; it must be 0 or more"),
        (FixedGaussianProcessTask, {"targets": 0}, "targets is 0"),
        (FixedGaussianProcessTask, {"noise": 0.0}, "noise is 0.0; it must be positive"),
        (FixedGaussianProcessTask, {"context_range": (1.0, 1.0)}, "context_range is .*increasing"),
        (FixedGaussianProcessTask, {"target_range": (1.0, 1.0)}, "target_range is .*increasing"),
        (ProcessMixture, {"components": ()}, r"components are \(\); they must be among eq"),
        (ProcessMixture, {"components": ("eq", "rbf")}, r"components are \('eq', 'rbf'\)"),
        (ProcessMixture, {"targets": 0}, "targets is 0"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
