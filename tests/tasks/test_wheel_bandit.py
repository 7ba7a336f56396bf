"""The wheel bandit: the published generator count by count, the fresh one law by law."""

import math

import numpy as np
import pytest
import torch

from synopsis.tasks import Task
from synopsis.tasks.wheel_bandit import (
    WheelBandit,
    WheelBanditTask,
    fresh_wheels,
    legacy_training_wheels,
    legacy_wheel,
)
from tests.tolerances import FLOAT32, SIGMAS

# δ, contexts outside, expected uniform regret, regret of always arm 0; n = 2000. Measured by
# running the published code; the second figure at 0.9 is 14,634.51.
PUBLISHED = [
    (0.7, 1039, 40_840, 50_702),
    (0.9, 367, 14_635, 17_910),
    (0.95, 188, 7_653, 9_174),
    (0.99, 34, 1_644, 1_659),
    (0.995, 22, 1_180, 1_074),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_legacy(steps, delta, seed):
    """The published loop, one draw at a time, in float64: contexts, rewards, best arms."""
    draws, contexts = np.random.RandomState(0), []
    while len(contexts) < steps:
        chunk = draws.uniform(-1, 1, (int(steps / 3), 2))
        contexts += [point for point in chunk if np.linalg.norm(point) <= 1]
    contexts, rewards, arms = contexts[:steps], [], []
    for a, b in contexts:
        row = [draws.normal(mean, 0.05) for mean in (1.2, 1.0, 1.0, 1.0, 1.0)]
        arm = 0
        if math.hypot(a, b) >= delta:
            arm = {(True, True): 1, (False, True): 2, (False, False): 3, (True, False): 4}[
                a > 0, b > 0
            ]
            row[arm] = draws.normal(50, 0.01)
        rewards.append(row)
        arms.append(arm)
    order = np.arange(steps)
    np.random.RandomState(seed).shuffle(order)
    return np.stack(contexts)[order], np.array(rewards)[order], np.array(arms)[order]


# --- the published generator


@pytest.mark.parametrize(("delta", "outside", "uniform", "safe"), PUBLISHED)
def test_legacy_reproduces_the_published_figures(delta, outside, uniform, safe):
    for seed in (0, 17):
        bandit = WheelBandit(delta, seed=seed, protocol="legacy")
        assert int((bandit.best_arms > 0).sum()) == outside
        assert round(bandit.uniform_regret) == uniform
        regret = bandit.regret(torch.zeros(2000, dtype=torch.int64))
        assert round(regret.double().sum().item()) == safe


@pytest.mark.parametrize(("steps", "delta", "seed"), [(562, 0.4963, 3), (100, 0.9, 0), (3, 0.0, 1)])
def test_legacy_is_the_published_loop_draw_for_draw(steps, delta, seed):
    wheel = legacy_wheel(steps, delta, seed)
    contexts, rewards, arms = naive_legacy(steps, delta, seed)
    assert np.array_equal(wheel.contexts.numpy(), contexts.astype(np.float32))
    assert np.array_equal(wheel.rewards.numpy(), rewards.astype(np.float32))
    assert np.array_equal(wheel.best_arms.numpy(), arms)


def test_legacy_training_set_is_the_published_one():
    wheels = legacy_training_wheels(562)
    published = (0.496, 0.768, 0.089, 0.132, 0.307, 0.634, 0.490, 0.896)  # to three digits
    radius = wheels.contexts.norm(dim=-1)
    for i, delta in enumerate(published):
        outside = wheels.best_arms[i] > 0
        assert (radius[i][outside] >= delta - 0.0005).all()
        assert (radius[i][~outside] < delta + 0.0005).all()
        order = [set(map(tuple, wheels.contexts[j].tolist())) for j in (0, i)]
        assert order[0] == order[1]  # the leak, as published: one set of contexts


def test_legacy_runs_leak_and_fresh_runs_do_not():
    for protocol, shared in (("legacy", 2000), ("fresh", 0)):
        runs = [WheelBandit(0.95, seed=seed, protocol=protocol) for seed in (1, 2)]
        rows = [set(map(tuple, run.contexts.tolist())) for run in runs]
        assert len(rows[0] & rows[1]) == shared


# --- the fresh generator


def test_fresh_contexts_are_uniform_in_the_disc():
    contexts = WheelBandit(0.9, steps=20_000, seed=4).contexts.double()
    square = contexts.square().sum(dim=1)  # uniform over [0, 1)
    angle = torch.atan2(contexts[:, 1], contexts[:, 0]) / (2 * math.pi) + 0.5
    for values in (square, angle):
        counts = torch.histc(values, bins=20, min=0, max=1)
        chi2 = ((counts - 1000).square() / 1000).sum().item()
        assert abs(chi2 - 19) < SIGMAS * math.sqrt(2 * 19)
    product = ((square - 0.5) * (angle - 0.5)).mean().item()
    assert abs(product) < SIGMAS / 12 / math.sqrt(20_000)


@pytest.mark.parametrize("protocol", ["legacy", "fresh"])
def test_rewards_have_the_published_means_and_spreads(protocol):
    bandit = WheelBandit(0.8, steps=20_000, seed=5, protocol=protocol)
    contexts, rewards = bandit.contexts, bandit.rewards.double()
    outside = contexts.norm(dim=1) >= 0.8
    right, up = contexts[:, 0] > 0, contexts[:, 1] > 0
    quadrants = {1: right & up, 2: ~right & up, 3: ~right & ~up, 4: right & ~up}
    for arm in range(5):
        rich = outside & quadrants[arm] if arm else torch.zeros_like(outside)
        for rows, mean, spread in ((rich, 50.0, 0.01), (~rich, 1.2 if arm == 0 else 1.0, 0.05)):
            values = rewards[rows, arm]
            if len(values) == 0:
                continue
            error = SIGMAS * spread / math.sqrt(len(values))
            assert abs(values.mean().item() - mean) < error + 50 * FLOAT32
            assert (
                abs(values.std().item() / spread - 1) < SIGMAS / math.sqrt(2 * len(values)) + 1e-3
            )
        if arm:
            assert torch.equal(bandit.best_arms == arm, rich)


def test_best_arm_has_no_regret_and_the_uniform_agent_the_expected_one():
    bandit = WheelBandit(0.7, seed=6)
    assert torch.equal(bandit.regret(bandit.best_arms), torch.zeros(2000))
    arms = torch.randint(5, (400, 2000), generator=generator(7))
    totals = torch.stack([bandit.regret(row).double().sum() for row in arms])
    error = SIGMAS * totals.std().item() / math.sqrt(400)
    assert abs(totals.mean().item() - bandit.uniform_regret) < error


def test_runs_of_one_seed_share_their_luck_for_all_delta():
    near, far = (WheelBandit(delta, seed=8) for delta in (0.5, 0.9))
    assert torch.equal(near.contexts, far.contexts)
    both = (near.best_arms == 0) | (far.best_arms > 0)
    assert torch.equal(near.rewards[both], far.rewards[both])
    assert ((far.best_arms > 0) <= (near.best_arms > 0)).all()


def test_outcome_shows_the_pulled_arm_and_noise():
    bandit, random = WheelBandit(0.0, steps=4000, seed=9), generator(10)
    y = torch.stack([bandit.outcome(step, 2, random) for step in range(4000)])
    assert torch.equal(y[:, 2], bandit.rewards[:, 2])
    others = y[:, [0, 1, 3, 4]].double().flatten()
    assert abs(others.mean().item()) < SIGMAS / math.sqrt(len(others))
    assert abs(others.var().item() - 1) < SIGMAS * math.sqrt(2 / len(others))
    assert bandit.rewards.shape == (4000, 5)  # and the bandit is left alone
    assert torch.equal(bandit.rewards, WheelBandit(0.0, steps=4000, seed=9).rewards)


# --- the training task


@pytest.mark.parametrize("protocol", ["legacy", "fresh"])
def test_half_the_rewards_of_the_context_are_noise_and_no_others(protocol):
    whole = WheelBanditTask(protocol, drop_y=0.0).sample(8, generator(11))
    half = WheelBanditTask(protocol).sample(8, generator(11))
    assert whole.xc.shape == (8, 512, 2)
    assert whole.yt.shape == (8, 50, 5)
    for name in ("xc", "xt", "yt"):
        assert torch.equal(getattr(whole, name), getattr(half, name))
    dropped = whole.yc != half.yc
    count = dropped.numel()
    assert abs(dropped.double().mean().item() - 0.5) < SIGMAS * 0.5 / math.sqrt(count)
    noise = half.yc[dropped].double()
    assert abs(noise.mean().item()) < SIGMAS / math.sqrt(len(noise))
    assert abs(noise.var().item() - 1) < SIGMAS * math.sqrt(2 / len(noise))
    assert not WheelBanditTask(protocol, drop_y=1.0).sample(8, generator(11)).yc.max() > 10


def test_fresh_wheels_are_new_each_time_and_legacy_ones_never():
    fresh, legacy = WheelBanditTask(drop_y=0.0), WheelBanditTask("legacy", drop_y=0.0)
    assert not torch.equal(fresh.sample(8, generator(1)).xt, fresh.sample(8, generator(2)).xt)
    assert torch.equal(fresh.sample(8, generator(1)).yt, fresh.sample(8, generator(1)).yt)
    one, two = (legacy.sample(8, generator(seed)) for seed in (1, 2))
    assert torch.equal(one.yc, two.yc)
    assert torch.equal(torch.cat([one.xc, one.xt], 1), legacy_training_wheels(562).contexts)


def test_fresh_radii_are_uniform():
    """The share of the disc outside δ is 1 − δ², on average over δ ~ U[0, 1) 2/3."""
    delta = torch.rand(400, generator=generator(12))
    wheels = fresh_wheels(delta, 300, generator(13))
    share = (wheels.best_arms > 0).double().mean(dim=1)
    error = (share - (1 - delta.double().square())) / 0.5 * math.sqrt(300)
    assert error.abs().max() < SIGMAS
    batch = WheelBanditTask(drop_y=0.0).sample(400, generator(14))
    rich = (batch.yt.amax(dim=-1) > 25).double().mean(dim=1)
    assert abs(rich.mean().item() - 2 / 3) < SIGMAS * 0.31 / math.sqrt(400)


# --- the face


def test_is_a_task_and_says_its_dimensions():
    task: Task = WheelBanditTask(context=0, targets=1)
    assert (task.dim_x, task.dim_y) == (2, 5)
    batch = task.sample(3, generator())
    assert (batch.xc.shape, batch.yc.shape, batch.yt.shape) == ((3, 0, 2), (3, 0, 5), (3, 1, 5))


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (WheelBandit, {"delta": 1.1}, "delta is 1.1; it must lie in 0 … 1"),
        (WheelBandit, {"delta": 0.5, "steps": 2}, "steps is 2; it must be at least 3"),
        (WheelBandit, {"delta": 0.5, "seed": -1}, "seed is -1"),
        (WheelBandit, {"delta": 0.5, "protocol": "old"}, "protocol is 'old'; .* legacy, fresh"),
        (WheelBanditTask, {"protocol": "old"}, "protocol is 'old'"),
        (WheelBanditTask, {"context": -1}, "context is -1"),
        (WheelBanditTask, {"targets": 0}, "targets is 0"),
        (WheelBanditTask, {"drop_y": 1.5}, "drop_y is 1.5; it must lie in 0 … 1"),
        (WheelBanditTask, {"protocol": "legacy", "context": 0, "targets": 2}, "legacy needs 3"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_legacy_has_eight_wheels_and_a_run_as_many_arms_as_steps():
    with pytest.raises(ValueError, match="batch_size is 16; the legacy protocol has 8 wheels"):
        WheelBanditTask("legacy").sample(16, generator())
    with pytest.raises(ValueError, match=r"arms are \(3,\); there must be 4"):
        WheelBandit(0.5, steps=4).regret(torch.zeros(3, dtype=torch.int64))
