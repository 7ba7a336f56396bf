"""The Gaussian-process task against naive formulas, torch.distributions and its own laws."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import MultivariateNormal, StudentT

from synopsis.tasks import Task
from synopsis.tasks.fixed_batches import batch_generator, evaluation_batches
from synopsis.tasks.gaussian_process import GaussianProcessTask, student_t_noise
from synopsis.tasks.kernels import Hyperparameters, covariance
from synopsis.tasks.oracle import cholesky, exact_oracle
from tests.tolerances import FLOAT32, FLOAT64, SIGMAS, SOLVE

KERNELS = ("rbf", "matern52", "periodic")
PRIORS = ("code", "text")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive_kernel(kernel, a, b, length, scale, period):
    d = abs(a - b)
    if kernel == "rbf":
        return scale**2 * math.exp(-(d**2) / (2 * length**2))
    if kernel == "matern52":
        root = math.sqrt(5) * d / length
        polynomial = 1 + root + 5 * d**2 / (3 * length**2)
        return scale**2 * polynomial * math.exp(-root)
    return scale**2 * math.exp(-2 * math.sin(math.pi * d / period) ** 2 / length**2)


def naive_covariance(kernel, x, hyper, noise):
    """Element by element, for the inputs and hyper-parameters of one task."""
    values = [value.item() for value in hyper]
    rows = [[naive_kernel(kernel, a, b, *values) for b in x.tolist()] for a in x.tolist()]
    return torch.tensor(rows, dtype=torch.float64) + noise**2 * torch.eye(len(x)).double()


def naive_prediction(matrix, y, context):
    """Mean and covariance of the later points given the first, by the textbook's inverse."""
    inverse = torch.linalg.inv(matrix[:context, :context])
    cross = matrix[context:, :context]
    return cross @ inverse @ y[:context], matrix[context:, context:] - cross @ inverse @ cross.T


# --- kernels


@pytest.mark.parametrize("kernel", KERNELS)
def test_covariance_is_the_elementwise_formula(kernel):
    draw = GaussianProcessTask(kernel=kernel, noise=0.3).draw(2, generator(1))
    for task in range(2):
        hyper = [value[task] for value in draw.hyper]
        expected = naive_covariance(kernel, draw.x[task], hyper, noise=0.3)
        rebuilt = draw.factor[task] @ draw.factor[task].T
        torch.testing.assert_close(rebuilt, expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), points=st.integers(1, 40))
def test_kernels_are_symmetric_positive_and_stationary(kernel, seed, points):
    random = torch.rand(4, 3, generator=generator(seed), dtype=torch.float64) + 0.1
    hyper = Hyperparameters(*random.unbind(dim=1))
    x = 4 * torch.rand(4, points, generator=generator(seed + 1), dtype=torch.float64) - 2
    matrix = covariance(kernel, x, hyper)
    assert torch.equal(matrix, matrix.mT)
    variances = matrix.diagonal(dim1=-2, dim2=-1)
    expected = hyper.scale[:, None].square().expand(4, points)
    torch.testing.assert_close(variances, expected, rtol=FLOAT64, atol=0)
    smallest = torch.linalg.eigvalsh(matrix).amin(dim=-1)
    assert (smallest >= -FLOAT64 * points * hyper.scale.square()).all()
    moved = covariance(kernel, x + 0.5, hyper)
    torch.testing.assert_close(moved, matrix, rtol=SOLVE, atol=SOLVE)


def test_periodic_kernel_repeats_after_one_period():
    one = torch.ones(1, dtype=torch.float64)
    x = torch.tensor([[0.0, 0.25, 0.35]], dtype=torch.float64)
    matrix = covariance("periodic", x, Hyperparameters(one, one, 0.25 * one))
    torch.testing.assert_close(matrix[0, 0, 1].item(), 1.0, rtol=FLOAT64, atol=0)
    assert matrix[0, 0, 2] < 0.9


# --- the factor


def test_cholesky_leaves_good_matrices_alone_and_says_where_it_adds_jitter():
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    singular = torch.ones(2, 2, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="1 of 2 covariance matrices .* adding 1e-08"):
        factor = cholesky(torch.stack([good, singular]))
    assert torch.equal(factor[0], torch.linalg.cholesky(good))
    expected = singular + 1e-8 * torch.eye(2)
    torch.testing.assert_close(factor[1] @ factor[1].T, expected, rtol=FLOAT64, atol=0)


def test_cholesky_of_an_indefinite_matrix_raises():
    indefinite = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64)
    with (
        pytest.warns(RuntimeWarning, match="1 of 1"),
        pytest.raises(torch.linalg.LinAlgError, match="positive-definite"),
    ):
        cholesky(indefinite)


# --- the oracle


@pytest.mark.parametrize(("kernel", "prior"), [*itertools.product(KERNELS, PRIORS)])
def test_oracle_is_the_dense_conditional_of_the_numbers_handed_out(kernel, prior):
    task = GaussianProcessTask(kernel=kernel, prior=prior)
    batch, hyper = task.sample(3, generator(2)), task.draw(3, generator(2)).hyper
    n = batch.xc.shape[1]
    x = torch.cat([batch.xc, batch.xt], dim=1)[:, :, 0].double()
    assert batch.oracle.dtype == batch.joint_oracle.dtype == torch.float64
    for i in range(3):
        y = torch.cat([batch.yc[i, :, 0], batch.yt[i, :, 0]]).double()
        whole = naive_covariance(kernel, x[i], [value[i] for value in hyper], task.noise)
        mean, matrix = naive_prediction(whole, y, n)
        diagonal = torch.distributions.Normal(mean, matrix.diagonal().sqrt()).log_prob(y[n:])
        joint = MultivariateNormal(mean, (matrix + matrix.T) / 2).log_prob(y[n:])
        torch.testing.assert_close(batch.oracle[i], diagonal, rtol=SOLVE, atol=SOLVE)
        torch.testing.assert_close(batch.joint_oracle[i], joint, rtol=SOLVE, atol=SOLVE)


@pytest.mark.parametrize("kernel", KERNELS)
def test_joint_is_the_difference_of_two_multivariate_normals(kernel):
    task = GaussianProcessTask(kernel=kernel, dtype="float64")
    draw = task.draw(4, generator(3))
    n = draw.context
    matrix = draw.factor @ draw.factor.mT
    everything = MultivariateNormal(torch.zeros_like(draw.y), matrix).log_prob(draw.y)
    seen = MultivariateNormal(torch.zeros_like(draw.y[:, :n]), matrix[:, :n, :n])
    expected = everything - seen.log_prob(draw.y[:, :n])
    joint = exact_oracle(draw.factor, draw.y, n).joint
    torch.testing.assert_close(joint, expected, rtol=SOLVE, atol=SOLVE)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), kernel=st.sampled_from(KERNELS))
def test_chain_rule_of_diagonal_oracles_is_the_joint(seed, kernel):
    """Absorbing the targets one by one, each predicted by the diagonal oracle just before."""
    draw = GaussianProcessTask(kernel=kernel).draw(2, generator(seed))
    n, points = draw.context, draw.y.shape[1]
    steps = [exact_oracle(draw.factor, draw.y, k).diagonal[:, 0] for k in range(n, points)]
    joint = exact_oracle(draw.factor, draw.y, n).joint
    torch.testing.assert_close(torch.stack(steps).sum(dim=0), joint, rtol=SOLVE, atol=SOLVE)


def test_oracle_does_not_depend_on_the_order_of_context_or_targets():
    draw = GaussianProcessTask(kernel="matern52").draw(2, generator(4))
    n, points = draw.context, draw.y.shape[1]
    order = torch.cat([torch.arange(n).flip(0), torch.arange(n, points).flip(0)])
    matrix = (draw.factor @ draw.factor.mT)[:, order][:, :, order]
    before = exact_oracle(draw.factor, draw.y, n)
    after = exact_oracle(cholesky(matrix), draw.y[:, order], n)
    torch.testing.assert_close(after.diagonal.flip(1), before.diagonal, rtol=SOLVE, atol=SOLVE)
    torch.testing.assert_close(after.joint, before.joint, rtol=SOLVE, atol=SOLVE)


def test_oracle_without_context_is_the_prior():
    task = GaussianProcessTask(min_context=0, max_points=4, targets=5)
    draw = next(d for s in range(20) if (d := task.draw(3, generator(s))).context == 0)
    oracle = exact_oracle(draw.factor, draw.y, 0)
    assert torch.equal(oracle.mean, torch.zeros(3, 5, dtype=torch.float64))
    stddev = (draw.hyper.scale.square() + task.noise**2).sqrt()[:, None].expand(3, 5)
    torch.testing.assert_close(oracle.stddev, stddev, rtol=FLOAT64, atol=0)


def test_oracle_off_computes_nothing_and_changes_nothing_else():
    with_oracle = GaussianProcessTask().sample(4, generator(5))
    without = GaussianProcessTask(oracle=False).sample(4, generator(5))
    assert without.oracle is None
    assert without.joint_oracle is None
    for name in ("xc", "yc", "xt", "yt"):
        assert torch.equal(getattr(without, name), getattr(with_oracle, name))


# --- the law of the draws


def test_numbers_of_points_follow_the_published_law():
    """N uniform over 3..46, then M over 3..49−N: marginal counts against exact probabilities."""
    draws, random = 6000, generator(6)
    task = GaussianProcessTask(oracle=False)
    counts = torch.zeros(50, 50, dtype=torch.float64)
    for _ in range(draws):
        batch = task.sample(1, random)
        counts[batch.xc.shape[1], batch.xt.shape[1]] += 1
    expected = torch.zeros_like(counts)
    for n in range(3, 47):
        expected[n, 3 : 50 - n] = draws / 44 / (47 - n)
    assert (counts[expected == 0] == 0).all()
    for axis in (0, 1):
        seen, wanted = counts.sum(axis), expected.sum(axis)
        inside = wanted > 0
        chi2 = ((seen - wanted)[inside].square() / wanted[inside]).sum().item()
        freedom = int(inside.sum()) - 1
        assert freedom == 43
        assert abs(chi2 - freedom) < SIGMAS * math.sqrt(2 * freedom)


def test_targets_gives_every_task_that_many_and_keeps_the_contexts():
    sizes = set()
    for seed in range(30):
        fixed = GaussianProcessTask(targets=64).sample(2, generator(seed))
        law = GaussianProcessTask().sample(2, generator(seed))
        assert fixed.xt.shape == (2, 64, 1)
        assert fixed.xc.shape == law.xc.shape
        sizes.add(law.xc.shape[1])
    assert len(sizes) > 10


@pytest.mark.parametrize("kernel", KERNELS)
def test_marginal_moments(kernel):
    """Mean 0, E[y² / (s² + σ²)] = 1, y/σ_y normal; x, ℓ, s, p uniform on their intervals."""
    task, random = GaussianProcessTask(kernel=kernel, dtype="float64"), generator(7)
    draws = [task.draw(16, random) for _ in range(300)]
    # one point of each task: the points of one task are not independent
    z = torch.cat([d.y[:, -1] / (d.hyper.scale**2 + task.noise**2).sqrt() for d in draws])
    for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = SIGMAS * math.sqrt(variance / len(z))
        assert abs(z.pow(moment).mean().item() - expected) < error
    intervals = {
        (-2.0, 2.0): torch.cat([d.x[:, 0] for d in draws]),
        (0.1, 0.6): torch.cat([d.hyper.length for d in draws]),
        (0.1, 1.0): torch.cat([d.hyper.scale for d in draws]),
        (0.1, 0.5): torch.cat([d.hyper.period for d in draws]),
    }
    for (low, high), values in intervals.items():
        unit = (values - low) / (high - low)
        assert 0 <= unit.min() < 0.01
        assert 0.99 < unit.max() < 1
        assert abs(unit.mean().item() - 0.5) < SIGMAS / math.sqrt(12 * len(unit))


def test_text_prior_has_long_length_scales():
    length = GaussianProcessTask(prior="text").draw(2000, generator(8)).hyper.length
    assert 0.6 <= length.min() < 0.61
    assert 0.99 < length.max() < 1


def test_kernels_share_everything_but_the_kernel():
    draws = [GaussianProcessTask(kernel=kernel).draw(3, generator(9)) for kernel in KERNELS]
    for other in draws[1:]:
        assert torch.equal(other.x, draws[0].x)
        assert all(map(torch.equal, other.hyper, draws[0].hyper))
        assert not torch.equal(other.y, draws[0].y)


def test_range_and_noise_are_respected():
    batch = GaussianProcessTask(range=(5.0, 6.0), oracle=False).sample(8, generator(10))
    x = torch.cat([batch.xc, batch.xt], dim=1)
    assert 5 <= x.min() < x.max() <= 6
    assert x.max() - x.min() > 0.9
    # noise of 100 drowns functions of variance at most 1
    loud = GaussianProcessTask(noise=100.0, targets=500).draw(4, generator(10))
    assert abs(loud.y.std().item() / 100 - 1) < SIGMAS / math.sqrt(2 * loud.y.numel())


# --- seeds and dtypes


def test_same_seed_same_batch_and_state_of_the_global_generator_does_not_matter():
    task = GaussianProcessTask(student_t=-1.0)
    torch.manual_seed(0)
    one = task.sample(4, generator(11))
    torch.manual_seed(1)
    two = task.sample(4, generator(11))
    assert torch.equal(one.yt, two.yt)
    assert not torch.equal(one.yt[:, :3], task.sample(4, generator(12)).yt[:, :3])


def test_float64_and_float32_are_the_same_draw():
    small = GaussianProcessTask().sample(4, generator(13))
    large = GaussianProcessTask(dtype="float64").sample(4, generator(13))
    assert small.xc.dtype == small.yc.dtype == small.xt.dtype == small.yt.dtype == torch.float32
    assert large.xc.dtype == large.yt.dtype == torch.float64
    assert torch.equal(small.xt, large.xt.float())
    # x differs by 1e-7 and the functions have slopes of at most some tens
    torch.testing.assert_close(small.yt.double(), large.yt, rtol=0, atol=50 * FLOAT32)


def test_evaluation_batches_do_not_depend_on_order_or_subset():
    task = GaussianProcessTask()
    everything = list(evaluation_batches(task, 12, 4, seed=3))
    assert len(everything) == 12
    subset = [11, 0, 7]
    for index, batch in zip(subset, evaluation_batches(task, subset, 4, seed=3), strict=True):
        assert torch.equal(batch.xc, everything[index].xc)
        assert torch.equal(batch.yt, everything[index].yt)
        assert torch.equal(batch.oracle, everything[index].oracle)


def test_batches_and_sets_differ():
    seeds = [batch_generator(s, i).initial_seed() for s in range(5) for i in range(3000)]
    per_set = [len(set(seeds[k : k + 3000])) for k in range(0, len(seeds), 3000)]
    assert per_set == [3000] * 5
    assert len(set(seeds)) > len(seeds) - 3


def test_another_interpreter_makes_the_same_set():
    """No state of this process leaks in: hash seeds, thread counts, the global generator."""
    program = (
        "from synopsis.tasks.fixed_batches import evaluation_batches\n"
        "from synopsis.tasks.gaussian_process import GaussianProcessTask\n"
        "batch = next(evaluation_batches(GaussianProcessTask(), [5], 4, seed=1))\n"
        "print(batch.yt.double().sum().item(), batch.xt.double().sum().item())"
    )
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    batch = next(evaluation_batches(GaussianProcessTask(), [5], 4, seed=1))
    expected = [batch.yt.double().sum().item(), batch.xt.double().sum().item()]
    assert [float(word) for word in out.split()] == pytest.approx(expected, rel=FLOAT32)


# --- Student-t noise


def test_student_t_noise_has_the_distribution():
    """Quantiles, since 2.1 degrees of freedom leave no fourth moment to compare."""
    count = 40_000
    noise = student_t_noise((count,), 0.5, generator(14)) / 0.5
    samples = torch.linspace(-8, 8, 33, dtype=torch.float64)
    grid = torch.linspace(-400, 8, 400_001, dtype=torch.float64)
    cumulative = StudentT(torch.tensor(2.1, dtype=torch.float64)).log_prob(grid).exp()
    cumulative = torch.cumulative_trapezoid(cumulative, grid)
    for point in samples.tolist():
        wanted = cumulative[round((point + 400) / 408 * 400_000) - 1].item()
        seen = (noise <= point).double().mean().item()
        error = math.sqrt(wanted * (1 - wanted) / count)
        assert abs(seen - wanted) < SIGMAS * error + 1e-4, point  # the grid starts at −400


def test_student_t_scale_of_minus_one_is_drawn_per_point():
    fixed = student_t_noise((20_000,), 1.0, generator(15))
    drawn = student_t_noise((20_000,), -1.0, generator(15))
    scale = drawn / fixed  # one seed, one noise
    assert 0 <= scale.min() < 0.001
    assert 0.149 < scale.max() < 0.15
    assert abs(scale.mean().item() - 0.075) < SIGMAS * 0.15 / math.sqrt(12 * 20_000)


@pytest.mark.parametrize("student_t", [0.1, -1.0])
def test_student_t_adds_to_every_output_and_has_no_oracle(student_t):
    clean = GaussianProcessTask().sample(4, generator(16))
    noisy = GaussianProcessTask(student_t=student_t).sample(4, generator(16))
    assert noisy.oracle is None
    assert noisy.joint_oracle is None
    assert torch.equal(noisy.xc, clean.xc)
    assert (noisy.yc != clean.yc).all()
    assert (noisy.yt != clean.yt).all()


# --- the face


def test_is_a_task_and_says_its_dimensions():
    task: Task = GaussianProcessTask()
    assert (task.dim_x, task.dim_y) == (1, 1)
    batch = task.sample(2, generator())
    assert batch.xc.shape[::2] == batch.yc.shape[::2] == (2, 1)
    assert batch.oracle.shape == batch.yt.shape[:2]
    assert batch.joint_oracle.shape == (2,)
    assert batch.context_mask is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "cubic"}, "kernel is 'cubic'; it must be one of rbf, matern52, periodic"),
        ({"prior": "paper"}, "prior is 'paper'; it must be one of code, text"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"min_context": -1}, "min_context is -1; it must be 0 or more"),
        ({"min_targets": 0}, "min_targets is 0; it must be 1 or more"),
        ({"max_points": 6}, "max_points is 6; it must be 7 or more"),
        ({"targets": 0}, "targets is 0"),
        ({"noise": 0.0}, "noise is 0.0; it must be positive"),
        ({"student_t": -0.5}, "student_t is -0.5; it must be None, positive, or -1"),
        ({"range": (1.0, 1.0)}, r"range is \(1.0, 1.0\); it must be increasing"),
    ],
)
def test_wrong_arguments_are_named_with_their_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianProcessTask(**arguments)


def test_smallest_task_there_is():
    batch = GaussianProcessTask(max_points=7).sample(1, generator())
    assert (batch.xc.shape[1], batch.xt.shape[1]) == (3, 3)
