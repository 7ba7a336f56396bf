"""What evaluation makes of processes that predict targets together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from synopsis.processes import Gaussian, Process
from synopsis.processes.base import PROCESSES
from synopsis.processes.cmanp_and import CMANPAND
from synopsis.processes.joint import JointProcess
from synopsis.processes.joint_gaussians import LowRankGaussian
from synopsis.tasks import Batch
from synopsis.tasks.fixed_batches import evaluation_batches
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.training.evaluation import evaluate
from tests.tolerances import FLOAT32

CLOSE = 10 * FLOAT32
SHARED, OWN = 2.0, 0.5  # every output is one number that all targets share, and one of its own


def small(**options) -> CMANPAND:
    torch.manual_seed(0)
    return CMANPAND(dim=8, heads=2, blocks=1, latents=4, **options).eval()


def nats(joint, batch, task) -> float:
    """One task's joint log-density by scipy, real targets only."""
    kept = np.ones(batch.yt.shape[1], bool)
    if batch.target_mask is not None:
        kept = batch.target_mask[task].numpy()
    covariance = joint.covariance_matrix[task].double().numpy()[np.ix_(kept, kept)]
    mean, y = (v[task, kept, 0].double().numpy() for v in (joint.mean, batch.yt))
    return stats.multivariate_normal(mean, covariance).logpdf(y)


class Ragged:
    """Gaussian-process tasks of which some targets, NaN here, are padding."""

    dim_x = dim_y = 1

    def sample(self, batch_size, generator):
        batch = GaussianProcessTask(oracle=False).sample(batch_size, generator)
        real = torch.rand(batch.yt.shape[:2], generator=generator) < 0.7
        real[:, 0] = True
        hidden = ~real.unsqueeze(-1)
        x, y = (v.masked_fill(hidden, torch.nan) for v in (batch.xt, batch.yt))
        return replace(batch, xt=x, yt=y, target_mask=real)


@pytest.mark.parametrize("task", [GaussianProcessTask(), Ragged()], ids=["whole", "ragged"])
def test_the_joint_density_by_target_and_the_marginals_beside_it(task):
    process = small()
    scores = evaluate(process, task, batches=4, batch_size=3, seed=4)
    joint, marginal, pooled, targets, exact = [], [], 0.0, 0, []
    for batch in evaluation_batches(task, 4, 3, 4):
        with torch.no_grad():
            found = process.joint(batch)
        real = torch.ones(batch.yt.shape[:2], dtype=torch.bool)
        real = real if batch.target_mask is None else batch.target_mask
        number = int(real.sum())
        total = sum(nats(found, batch, i) for i in range(3))
        each = stats.norm(found.mean[real].numpy(), found.stddev[real].numpy())
        joint.append(total / number)
        marginal.append(each.logpdf(batch.yt[real].numpy()).sum() / number)
        pooled, targets = pooled + total, targets + number
        exact.append(batch.joint_oracle)
    assert scores.targets == targets
    assert scores.log_likelihood.value == pytest.approx(np.mean(joint), rel=CLOSE)
    assert scores.pooled_log_likelihood.value == pytest.approx(pooled / targets, rel=CLOSE)
    assert scores.marginal_log_likelihood.value == pytest.approx(np.mean(marginal), rel=CLOSE)
    assert abs(np.mean(joint) - np.mean(marginal)) > 100 * CLOSE
    if exact[0] is None:
        assert scores.joint_oracle is scores.joint_oracle_gap is None
        return
    by_batch = [
        float(e.sum()) / b.yt.numel()
        for e, b in zip(exact, evaluation_batches(task, 4, 3, 4), strict=True)
    ]
    assert scores.joint_oracle.value == pytest.approx(np.mean(by_batch))
    gaps = np.array(by_batch) - np.array(joint)
    assert scores.joint_oracle_gap.value == pytest.approx(gaps.mean(), rel=CLOSE)
    assert scores.joint_oracle_gap.standard_error == pytest.approx(gaps.std(ddof=1) / 2, rel=CLOSE)
    gap = scores.oracle.value - scores.marginal_log_likelihood.value
    assert scores.oracle_gap.value == pytest.approx(gap, rel=CLOSE)


def test_blocks_are_scored_by_teacher_forcing_and_covered_by_the_context_alone():
    task = GaussianProcessTask()
    one, blocks = (evaluate(small(target_block=b), task, 3, 2, 0) for b in (None, 2))
    assert one.log_likelihood != blocks.log_likelihood
    assert one.coverage[0.9].value == pytest.approx(blocks.coverage[0.9].value)
    assert one.crps.value == pytest.approx(blocks.crps.value, rel=CLOSE)
    process, expected = small(target_block=2), []
    for batch in evaluation_batches(task, 3, 2, 0):
        state = process.update(process.init((2,)), batch.xc, batch.yc)
        total = process.teacher_forced(state, batch.xt, batch.yt)
        expected.append(float(total.detach().sum()) / batch.yt.numel())
    assert blocks.log_likelihood.value == pytest.approx(np.mean(expected), rel=CLOSE)


class OneNumberShared:
    """A task whose joint answer is known: y = a + noise, a shared by all targets."""

    dim_x = dim_y = 1

    def sample(self, batch_size, generator):
        shared = SHARED * torch.randn(batch_size, 1, 1, generator=generator)
        y = shared + OWN * torch.randn(batch_size, 6, 1, generator=generator)
        covariance = SHARED**2 * np.ones((6, 6)) + OWN**2 * np.eye(6)
        joint = stats.multivariate_normal(np.zeros(6), covariance).logpdf(y[..., 0].numpy())
        each = stats.norm(0, math.hypot(SHARED, OWN)).logpdf(y[..., 0].numpy())
        x = torch.zeros(batch_size, 6, 1)
        exact = {"oracle": torch.as_tensor(each), "joint_oracle": torch.as_tensor(joint)}
        return Batch(x[:, :0], x[:, :0], x, y, **exact)


@pytest.fixture
def knowing():
    """A process that has the exact joint answer."""

    class Knowing(JointProcess, Process):
        def __init__(self) -> None:
            super().__init__(dim_x=1, dim_y=1)

        def jointly(self, xc, yc, xt, mask, real):
            factor = torch.full_like(xt, SHARED)
            return LowRankGaussian(torch.zeros_like(xt), factor, torch.full_like(xt, OWN), real)

    yield Knowing()
    del PROCESSES["Knowing"]


def test_the_exact_process_has_neither_gap(knowing):
    scores = evaluate(knowing, OneNumberShared(), batches=50, batch_size=10, seed=0)
    assert scores.joint_oracle_gap.value == pytest.approx(0, abs=CLOSE)
    assert scores.oracle_gap.value == pytest.approx(0, abs=CLOSE)
    assert scores.log_likelihood.value > scores.marginal_log_likelihood.value + 0.5
    for level, coverage in scores.coverage.items():
        assert abs(coverage.value - level) < 4 * coverage.standard_error


@pytest.fixture
def teacher():
    """A process of independent targets that says how probable they are together."""

    class Teacher(Process):
        def __init__(self) -> None:
            super().__init__(dim_x=1, dim_y=1)

        def forward(self, xc, yc, xt, mask=None):
            return Gaussian(torch.zeros_like(xt), torch.ones_like(xt))

        def log_likelihood(self, batch):
            return torch.full((len(batch.xt),), 12.0)

    yield Teacher()
    del PROCESSES["Teacher"]


def test_a_process_with_a_log_likelihood_is_scored_by_it(teacher):
    scores = evaluate(teacher, OneNumberShared(), batches=5, batch_size=10, seed=0)
    assert scores.log_likelihood.value == pytest.approx(12 / 6)
    assert scores.pooled_log_likelihood.value == pytest.approx(12 / 6)
    assert scores.marginal_log_likelihood.value < 0
    expected = scores.joint_oracle.value - 2
    assert scores.joint_oracle_gap.value == pytest.approx(expected)
