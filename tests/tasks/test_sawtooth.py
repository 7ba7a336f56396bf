"""Sawtooth waves against their own law."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from synopsis.tasks import Task
from synopsis.tasks.sawtooth import SawtoothTask
from tests.tolerances import SIGMAS, SLOPE


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slopes(batch):
    """The steepness of every wave between neighbouring targets, jumps left out."""
    x, order = batch.xt[..., 0].double().sort(dim=1)
    y = batch.yt[..., 0].double().gather(1, order)
    rise = (y[:, 1:] - y[:, :-1]) / (x[:, 1:] - x[:, :-1])
    return rise.nanmedian(dim=1).values  # two equal x have no slope


def test_waves_are_straight_lines_modulo_one():
    """One slope ±ω fits all points of a wave, jumps included, in float64."""
    batch = SawtoothTask(targets=400).sample(50, generator(1))
    slope = slopes(batch)[:, None]
    x, y = batch.xt[..., 0].double(), batch.yt[..., 0].double()
    # the median slope is ω within 10⁻³; a fit of the phase is then a circular mean
    residual = torch.exp(2j * math.pi * (y - slope * x))
    assert (residual.mean(dim=1).abs() > 0.99).all()
    assert 0 <= y.min() < 0.01
    assert 0.99 < y.max() <= 1


def test_frequency_direction_and_phase_have_their_laws():
    batch = SawtoothTask(min_context=1, max_context=1, targets=300).sample(4000, generator(2))
    slope = slopes(batch)
    frequency, up = slope.abs().numpy(), (slope > 0).double()
    assert frequency.min() >= 2 - 0.01
    assert frequency.max() <= 4 + 0.01
    assert stats.kstest(frequency, stats.uniform(2, 2).cdf).pvalue > 1e-4
    assert abs(up.mean().item() - 0.5) < SIGMAS * 0.5 / math.sqrt(4000)
    first = batch.yc[:, 0, 0].double().numpy()  # a uniform phase makes every value uniform
    assert stats.kstest(first, stats.uniform(0, 1).cdf).pvalue > 1e-4


def test_in_two_dimensions_waves_are_plane_and_their_directions_uniform():
    """Values along lines at right angles to the direction are constant: two slopes tell it."""
    task = SawtoothTask(dim_x=2, targets=600, max_context=0, target_range=(-0.05, 0.05))
    batch = task.sample(600, generator(3))
    x, y = batch.xt.double().numpy(), batch.yt[..., 0].double().numpy()
    gradients = []
    for points, values in zip(x, y, strict=True):
        if values.max() - values.min() < 0.5:  # no jump in this little square
            design = np.column_stack([points, np.ones(len(points))])
            fit, residual, *_ = np.linalg.lstsq(design, values, rcond=None)
            assert residual.item() < 1e-9
            gradients.append(fit[:2])
    gradients = np.array(gradients)
    assert len(gradients) > 300
    frequency = np.hypot(*gradients.T)
    low, high = 2 / math.sqrt(2), 4 / math.sqrt(2)
    assert low - SLOPE <= frequency.min()
    assert frequency.max() <= high + SLOPE
    angle = np.arctan2(gradients[:, 1], gradients[:, 0]) / (2 * math.pi) + 0.5
    # without a jump steeper waves are rarer, but no direction is, apart from the square's shape
    assert stats.kstest(angle, stats.uniform(0, 1).cdf).pvalue > 1e-4


@pytest.mark.parametrize(("dim", "most"), [(1, 30), (2, 150)])
def test_numbers_of_points(dim, most):
    draws, random, task = 1500, generator(4), SawtoothTask(dim, targets=1)
    counts = torch.zeros(most + 1, dtype=torch.float64)
    for _ in range(draws):
        counts[task.sample(1, random).xc.shape[1]] += 1
    expected = draws / (most + 1)
    chi2 = ((counts - expected).square() / expected).sum().item()
    assert abs(chi2 - most) < SIGMAS * math.sqrt(2 * most)
    assert SawtoothTask(dim).sample(1, random).xt.shape == (1, 100 * dim, dim)


def test_noise_is_added_to_context_and_targets():
    clean = SawtoothTask(min_context=30).sample(200, generator(5))
    noisy = SawtoothTask(min_context=30, noise=0.3).sample(200, generator(5))
    for name in ("yc", "yt"):
        noise = (getattr(noisy, name) - getattr(clean, name)).double()
        assert abs(noise.std().item() / 0.3 - 1) < SIGMAS / math.sqrt(2 * noise.numel())


def test_ranges_of_context_and_targets():
    task = SawtoothTask(context_range=(0.0, 1.0), target_range=(5.0, 7.0), min_context=30)
    batch = task.sample(20, generator(6))
    for x, low, high in ((batch.xc, 0, 1), (batch.xt, 5, 7)):
        assert low <= x.min() < low + 0.02
        assert high - 0.02 < x.max() <= high


def test_seeds():
    task = SawtoothTask(noise=0.1)
    torch.manual_seed(0)
    one = task.sample(4, generator(7))
    torch.manual_seed(1)
    assert torch.equal(one.yt, task.sample(4, generator(7)).yt)
    assert not torch.equal(one.yt, task.sample(4, generator(8)).yt)


def test_is_a_task_and_says_its_dimensions():
    task: Task = SawtoothTask(3, max_context=0, targets=1)
    assert (task.dim_x, task.dim_y) == (3, 1)
    batch = task.sample(2, generator())
    assert (batch.xc.shape, batch.yc.shape, batch.xt.shape) == ((2, 0, 3), (2, 0, 1), (2, 1, 3))
    assert batch.yt.dtype == torch.float32
    assert batch.oracle is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim_x": 0}, "dim_x is 0; it must be 1 or more"),
        ({"min_context": -1}, "min_context is -1"),
        ({"min_context": 3, "max_context": 2}, "max_context is 2; it must be 3 or more"),
        ({"targets": 0}, "targets is 0"),
        ({"noise": -0.1}, "noise is -0.1"),
        ({"context_range": (1.0, 1.0)}, "context_range is .* it must be increasing"),
        ({"target_range": (1.0, 0.0)}, "target_range is .* it must be increasing"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        SawtoothTask(**arguments)
