import math

import pytest
import torch
from scipy import stats

from synopsis.tasks.random_inputs import MARGINALS, Role, _phase, _walks, filtered, random_inputs
from tests.tolerances import FLOAT64, SINE_ROUNDING, UNLIKELY


@pytest.mark.parametrize(
    ("name", "law"),
    [("normal", stats.norm), ("uniform", stats.uniform), ("student-t3", stats.t(3))],
)
def test_marginals_follow_their_law(name, law):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 20_000, generator=generator)
    drawn = MARGINALS[name][1](generator, z)[0].numpy()
    assert stats.kstest(drawn, law.cdf).pvalue > UNLIKELY


def test_other_marginals_have_their_character():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 2000, generator=generator)
    log_normal, levels, bimodal = (
        MARGINALS[name][1](generator, z) for name in ("log-normal", "few levels", "bimodal")
    )
    assert (log_normal > 0).all() and (log_normal.mean(-1) > log_normal.median(-1).values).all()
    assert set(levels.unique().tolist()) == set(range(8))
    assert all(2 <= len(row.unique()) <= 8 for row in levels)
    spread = bimodal.std(-1)
    assert ((spread > 1.05) & (spread < 2.5)).all()


def test_filter_is_the_recursion_it_stands_for():
    drive = torch.randn(3, 41, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decay = torch.tensor([[0.1], [0.9], [0.999]], dtype=torch.float64)
    naive, previous = [], torch.zeros(3, dtype=torch.float64)
    for t in range(41):
        previous = decay[:, 0] * previous + drive[:, t]
        naive.append(previous)
    fast = filtered(drive, decay.pow(torch.arange(41)))
    torch.testing.assert_close(fast, torch.stack(naive, 1), rtol=FLOAT64, atol=10 * FLOAT64)


def test_walks_are_stationary_with_unit_variance():
    generator = torch.Generator().manual_seed(0)
    walks = _walks(generator, torch.randn(20_000, 60, generator=generator))
    error = walks.square().mean(0) - 1
    assert error.abs().max() < 5 * math.sqrt(2 / 20_000)


def test_phases_are_pairs_on_the_unit_circle():
    roles = torch.tensor([[Role.SINE, Role.STILL, Role.COSINE, Role.SECOND_SINE]]).expand(30, -1)
    generator = torch.Generator().manual_seed(0)
    x, _ = random_inputs(generator, roles, 200, torch.ones(30, dtype=torch.bool))
    radius = x[..., 0].square() + x[..., 2].square()
    torch.testing.assert_close(radius, torch.ones(30, 200), rtol=SINE_ROUNDING, atol=SINE_ROUNDING)
    assert x[..., 3].abs().max() <= 1 < x[..., 1].abs().max()


def test_periods_reach_from_a_week_to_four_streams():
    time = torch.arange(300.0).expand(4000, -1)
    speed = _phase(torch.Generator().manual_seed(0), time).diff(dim=1)[:, 0] / (2 * math.pi)
    assert 7 * 0.99 < (1 / speed).min() < 7.5
    assert 1100 < (1 / speed).max() < 1200 * 1.01


def test_trends_are_monotone_and_time_goes_forward():
    roles = torch.full((40, 2), Role.TREND)
    generator = torch.Generator().manual_seed(0)
    x, time = random_inputs(generator, roles, 50, torch.zeros(40, dtype=torch.bool))
    steps = x.diff(dim=1)
    assert ((steps >= 0).all(1) | (steps <= 0).all(1)).all()
    assert (time.diff(dim=1) >= 0).all()
    assert 1 < (time.diff(dim=1).std(-1) == 0).sum() < 40  # some clocks regular, some not


def test_mixing_correlates_and_keeps_columns_apart_otherwise():
    roles = torch.full((400, 4), Role.STILL)
    mixed = torch.arange(400) < 200
    x, _ = random_inputs(torch.Generator().manual_seed(0), roles, 300, mixed)
    ranks = x.argsort(1).argsort(1).double()
    correlation = torch.stack([torch.corrcoef(task.T) for task in ranks])
    off_diagonal = (correlation - torch.eye(4)).abs().mean((1, 2))
    assert off_diagonal[mixed].mean() > 4 * off_diagonal[~mixed].mean()
    assert off_diagonal[~mixed].mean() < 0.06
