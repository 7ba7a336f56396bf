import math

import pytest
import torch

from synopsis.training.experiment import Training
from synopsis.training.schedules import learning_rate
from tests.tolerances import FLOAT64, RECURSIVE_RATE


def rates(training: Training) -> list[float]:
    return [learning_rate(step, training) for step in range(training.steps)]


def torch_rates(steps: int, peak: float, kind: type, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = kind(optimizer, **options)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        rates.append(scheduler.get_last_lr()[0])
    return rates


def test_cosine_is_torchs():
    ours = rates(Training(steps=50, learning_rate=0.3))
    theirs = torch_rates(50, 0.3, torch.optim.lr_scheduler.CosineAnnealingLR, T_max=50)
    assert ours == pytest.approx(theirs, rel=RECURSIVE_RATE)
    assert ours[25] == pytest.approx(0.15, rel=FLOAT64)


@pytest.mark.parametrize(("warmup", "share"), [(0, 0.3), (12, 0.2), (30, 0.5)])
def test_one_cycle_is_torchs(warmup, share):
    training = Training(steps=60, learning_rate=2e-3, schedule="one-cycle", warmup=warmup)
    options = {"max_lr": 2e-3, "total_steps": 60, "pct_start": share}
    theirs = torch_rates(60, 2e-3, torch.optim.lr_scheduler.OneCycleLR, **options)
    assert rates(training) == pytest.approx(theirs, rel=RECURSIVE_RATE)


@pytest.mark.parametrize("schedule", ["cosine", "warmup-stable-decay"])
def test_warmup_is_linear_and_ends_at_the_peak(schedule):
    training = Training(steps=100, learning_rate=0.5, schedule=schedule, warmup=10)
    assert rates(training)[:10] == pytest.approx([0.05 * (k + 1) for k in range(10)], rel=FLOAT64)
    assert rates(training)[10] == 0.5


def test_stable_then_one_minus_square_root():
    training = Training(
        steps=100, learning_rate=2.0, schedule="warmup-stable-decay", warmup=5, decay_fraction=0.25
    )
    got = rates(training)
    assert got[5:76] == [2.0] * 71
    expected = [2 * (1 - math.sqrt(k / 25)) for k in range(25)]
    assert got[75:] == pytest.approx(expected, rel=FLOAT64)
    assert learning_rate(100, training) == 0


def test_inverse_square_root_is_that_of_the_long_range_arena():
    factor, warmup = 0.005, 1000
    peak = factor / math.sqrt(warmup)
    training = Training(
        steps=5000, learning_rate=peak, schedule="inverse-square-root", warmup=warmup
    )
    expected = [factor * min(1, t / warmup) / math.sqrt(max(t, warmup)) for t in range(1, 5001)]
    assert rates(training) == pytest.approx(expected, rel=FLOAT64)


@pytest.mark.parametrize(
    "schedule", ["cosine", "inverse-square-root", "one-cycle", "warmup-stable-decay"]
)
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0, 1, 2, 5])
def test_shortest_runs_have_a_rate_in_range(schedule, steps, warmup):
    training = Training(
        steps=steps, learning_rate=1.0, schedule=schedule, warmup=warmup, decay_fraction=1.0
    )
    assert all(0 <= rate <= 1 for rate in rates(training))


def test_no_decay_stays_at_the_peak():
    training = Training(
        steps=9, learning_rate=1.0, schedule="warmup-stable-decay", decay_fraction=0.0
    )
    assert rates(training) == [1.0] * 9
