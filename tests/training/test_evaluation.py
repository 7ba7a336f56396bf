import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from synopsis.processes import CMANP, Gaussian
from synopsis.processes.base import PROCESSES, Process
from synopsis.tasks import Batch
from synopsis.tasks.fixed_batches import evaluation_batches
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.tasks.oracle import exact_oracle
from synopsis.training.evaluation import Estimate, evaluate, ratio
from tests.tolerances import FLOAT32, FLOAT64


def small(**options) -> CMANP:
    torch.manual_seed(0)
    return CMANP(dim=8, heads=2, blocks=1, latents=4, **options)


class MaskedTask:
    """Ragged targets: what the mask hides is NaN and must not be seen."""

    dim_x, dim_y = 2, 3

    def sample(self, batch_size, generator):
        def draw(*shape):
            return torch.randn(batch_size, *shape, generator=generator)

        yt, mask = draw(6, 3), draw(6) > 0
        mask[:, 0] = True
        return Batch(
            draw(4, 2),
            draw(4, 3),
            draw(6, 2),
            yt.where(mask[..., None], torch.nan),
            target_mask=mask,
        )


def crps(z, stddev):
    """Gneiting et al. 2005, equation 5."""
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    return stddev * (z * (2 * stats.norm.cdf(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("task", [GaussianProcessTask(), MaskedTask()])
def test_against_the_naive_sums(task):
    process = small(dim_x=task.dim_x, dim_y=task.dim_y).eval()
    scores = evaluate(process, task, batches=5, batch_size=3, seed=4)
    logs, inside, exact, distances = [], {0.5: [], 0.9: []}, [], []
    for batch in evaluation_batches(task, 5, 3, 4):
        with torch.no_grad():
            prediction = process(batch.xc, batch.yc, batch.xt)
        real = np.ones(batch.yt.shape[:2], bool)
        real = real if batch.target_mask is None else batch.target_mask.numpy()
        mean, stddev, y = (
            t.double().numpy()[real] for t in (prediction.mean, prediction.stddev, batch.yt)
        )
        z = (y - mean) / stddev
        logs.append((-0.5 * z**2 - np.log(stddev) - 0.5 * math.log(2 * math.pi)).sum(-1))
        inside[0.5].append((np.abs(z) <= 0.6744897501960817).mean(-1))
        inside[0.9].append((np.abs(z) <= 1.6448536269514722).mean(-1))
        distances.append(crps(z, stddev).mean(-1))
        exact.append(None if batch.oracle is None else batch.oracle.numpy()[real])
    means = np.array([values.mean() for values in logs])
    assert scores.log_likelihood.value == pytest.approx(means.mean(), rel=10 * FLOAT32)
    error = means.std(ddof=1) / math.sqrt(5)
    assert scores.log_likelihood.standard_error == pytest.approx(error, rel=10 * FLOAT32)
    pooled = np.concatenate(logs)
    assert scores.pooled_log_likelihood.value == pytest.approx(pooled.mean(), rel=10 * FLOAT32)
    for level, values in inside.items():
        assert scores.coverage[level].value == pytest.approx(np.concatenate(values).mean())
    assert scores.crps.value == pytest.approx(np.concatenate(distances).mean(), rel=10 * FLOAT32)
    assert scores.marginal_log_likelihood == scores.log_likelihood
    assert (scores.batches, scores.targets) == (5, len(pooled))
    if exact[0] is None:
        assert scores.oracle is None
        assert scores.oracle_gap is None
    else:
        gaps = np.array([e.mean() - m for e, m in zip(exact, means, strict=True)])
        assert scores.oracle_gap.value == pytest.approx(gaps.mean(), rel=10 * FLOAT32)
        error = gaps.std(ddof=1) / math.sqrt(5)
        assert scores.oracle_gap.standard_error == pytest.approx(error, rel=10 * FLOAT32)


@pytest.fixture
def knowing():
    """A process that has the exact answer for a white-noise task."""

    class Knowing(Process):
        def __init__(self) -> None:
            super().__init__(dim_x=1, dim_y=1)
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, xc, yc, xt, mask=None):
            return Gaussian(torch.zeros_like(xt), self.scale.expand_as(xt))

    yield Knowing()
    del PROCESSES["Knowing"]


class WhiteNoise:
    dim_x = dim_y = 1

    def sample(self, batch_size, generator):
        y = torch.randn(batch_size, 20, generator=generator)
        x = torch.zeros(batch_size, 20, 1)
        oracle = exact_oracle(
            torch.eye(20, dtype=torch.float64).expand(batch_size, 20, 20), y.double(), 0
        ).diagonal
        return Batch(x[:, :0], x[:, :0], x, y[..., None], oracle=oracle)


def test_the_exact_process_has_no_gap_and_is_calibrated(knowing):
    scores = evaluate(knowing, WhiteNoise(), batches=100, batch_size=10, seed=0)
    assert scores.oracle_gap.value == pytest.approx(0, abs=FLOAT32)
    entropy = -0.5 * math.log(2 * math.pi * math.e)
    assert abs(scores.log_likelihood.value - entropy) < 4 * scores.log_likelihood.standard_error
    for level, coverage in scores.coverage.items():
        assert abs(coverage.value - level) < 4 * coverage.standard_error
        binomial = math.sqrt(level * (1 - level) / 20_000)
        assert coverage.standard_error == pytest.approx(binomial, rel=0.25)


class TaskWithGaps:
    """Outputs missing one by one, and a target without any; what the mask hides is missing too."""

    dim_x, dim_y = 2, 3

    def sample(self, batch_size, generator):
        batch = MaskedTask().sample(batch_size, generator)
        gaps = torch.rand(batch.yt.shape, generator=generator) < 0.3
        gaps[:, 0] = False
        gaps[:, 1] = True
        yc = batch.yc.masked_fill(torch.rand(batch.yc.shape, generator=generator) < 0.3, torch.nan)
        return replace(batch, yc=yc, yt=batch.yt.masked_fill(gaps, torch.nan))


def test_only_observed_outputs_are_scored():
    process = small(dim_x=2, dim_y=3).eval()
    scores = evaluate(process, TaskWithGaps(), batches=5, batch_size=3, seed=4)
    logs, inside, distances = [], [], []
    for batch in evaluation_batches(TaskWithGaps(), 5, 3, 4):
        with torch.no_grad():
            prediction = process(batch.xc, batch.yc, batch.xt)
        real = (batch.target_mask & ~batch.yt.isnan().all(-1)).numpy()
        assert 0 < real.sum() < batch.target_mask.sum()
        mean, stddev, y = (
            t.double().numpy()[real] for t in (prediction.mean, prediction.stddev, batch.yt)
        )
        assert np.isnan(y).any()
        z = (y - mean) / stddev
        logs.append(np.nansum(stats.norm.logpdf(y, mean, stddev), -1))
        within = np.where(np.isnan(z), np.nan, np.abs(z) <= 1.6448536269514722)
        inside.append(np.nanmean(within, -1))
        distances.append(np.nanmean(crps(z, stddev), -1))
    pooled, rel = np.concatenate(logs), 10 * FLOAT32
    assert scores.targets == len(pooled)
    assert scores.pooled_log_likelihood.value == pytest.approx(pooled.mean(), rel=rel)
    means = np.array([values.mean() for values in logs])
    assert scores.log_likelihood.value == pytest.approx(means.mean(), rel=rel)
    assert scores.coverage[0.9].value == pytest.approx(np.concatenate(inside).mean(), rel=rel)
    assert scores.crps.value == pytest.approx(np.concatenate(distances).mean(), rel=rel)


def test_nothing_is_left_changed():
    process = small().train()
    before, weights = torch.get_rng_state(), {k: v.clone() for k, v in process.state_dict().items()}
    first = evaluate(process, GaussianProcessTask(), 2, 2, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert process.training
    assert all(p.grad is None and not p.is_inference() for p in process.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in process.state_dict().items())
    assert evaluate(process, GaussianProcessTask(), 2, 2, 0) == first
    assert evaluate(process, GaussianProcessTask(), 2, 2, 1) != first


def test_to_dict_is_json():
    scores = evaluate(small(), GaussianProcessTask(), 2, 2, 0)
    plain = json.loads(json.dumps(scores.to_dict()))
    assert plain["log_likelihood"]["value"] == scores.log_likelihood.value
    assert set(plain["coverage"]) == {"0.5", "0.9"}
    assert plain["oracle_gap"]["standard_error"] == scores.oracle_gap.standard_error
    assert plain["crps"]["value"] == scores.crps.value
    assert (plain["batches"], plain["targets"]) == (2, scores.targets)
    assert set(plain) == set(vars(scores))
    nothing_known = evaluate(small(), GaussianProcessTask(oracle=False), 2, 2, 0).to_dict()
    assert nothing_known["oracle"] is nothing_known["joint_oracle_gap"] is None


def test_errors_show_what_came():
    with pytest.raises(ValueError, match="batches = 0"):
        evaluate(small(), GaussianProcessTask(), 0, 2, 0)
    with pytest.raises(ValueError, match="process has dim_x 2 but the task has 1"):
        evaluate(small(dim_x=2), GaussianProcessTask(), 1, 2, 0)


def test_ratio_of_equal_weights_is_the_mean_and_its_error():
    values = np.random.default_rng(0).normal(size=30)
    got = ratio(list(values), [1.0] * 30)
    assert got.value == pytest.approx(values.mean(), rel=FLOAT64)
    assert got.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(30), rel=FLOAT64)


def test_ratio_error_agrees_with_the_spread_over_repetitions():
    random = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(2000):
        sizes = random.integers(3, 47, size=50)
        sums = [random.normal(1.0, 1.0) * n for n in sizes]  # one shared error per batch
        got = ratio(sums, list(map(float, sizes)))
        ratios.append(got.value)
        errors.append(got.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.05)


def test_a_single_batch_has_no_known_error():
    got = ratio([3.0], [2.0])
    assert isinstance(got, Estimate)
    assert got.value == 1.5
    assert math.isnan(got.standard_error)
