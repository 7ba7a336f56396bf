"""Joint Gaussians against scipy in float64, against arithmetic of 60 digits, and against their own samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.overrides import TorchFunctionMode

from synopsis.processes.cholesky_gaussian import CholeskyGaussian
from synopsis.processes.heads import Gaussian
from synopsis.processes.joint_gaussians import JointGaussian, LowRankGaussian
from tests.tolerances import FLOAT32, FLOAT64

RANK = 3
SUMS = 100 * FLOAT64  # a density is a sum of dozens of terms
LAWS = {"rtol": 1e-9, "atol": 1e-9}  # two float64 roads to one density, some hundred nats long


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def low_rank(targets=4, dim_y=2, seed=0, small=0.5, real=None, batch=2) -> LowRankGaussian:
    factor = normal(batch, targets * dim_y, RANK, seed=seed + 1)
    stddev = small * (0.5 + torch.sigmoid(normal(batch, targets, dim_y, seed=seed + 2)))
    return LowRankGaussian(normal(batch, targets, dim_y, seed=seed), factor, stddev, real)


def triangular(targets=4, dim_y=2, seed=0, real=None, bounded=True, batch=2) -> CholeskyGaussian:
    factor = 0.4 * normal(batch, targets * dim_y, RANK, seed=seed + 1)
    mean = normal(batch, targets, dim_y, seed=seed)
    return CholeskyGaussian.from_factor(mean, factor, real, bounded)


KINDS = pytest.mark.parametrize("make", [low_rank, triangular])


def dense(joint: JointGaussian, task: int, kept=None):
    """scipy's distribution of one task's outputs, target-major, by the covariance written out here."""
    if isinstance(joint, LowRankGaussian):
        factor = joint.factor[task].numpy()
        covariance = factor @ factor.T + np.diag(joint.own[task].flatten().numpy() ** 2)
    else:
        lower = joint.scale_tril[task].numpy()
        covariance = lower @ lower.T
    mean = joint.mean[task].flatten().numpy()
    kept = np.arange(len(mean)) if kept is None else kept
    return stats.multivariate_normal(mean[kept], covariance[np.ix_(kept, kept)])


@KINDS
@pytest.mark.parametrize(("targets", "dim_y"), [(1, 1), (1, 2), (2, 1), (7, 3)])
def test_the_density_is_scipys(make, targets, dim_y):
    joint, y = make(targets, dim_y), normal(2, targets, dim_y, seed=9)
    assert joint.batch_shape == (2,)
    assert joint.event_shape == (targets, dim_y)
    found = joint.log_prob(y)
    expected = [dense(joint, i).logpdf(y[i].flatten().numpy()) for i in range(2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=SUMS, atol=SUMS)
    many = normal(5, 2, targets, dim_y, seed=10)
    each = torch.stack([joint.log_prob(one) for one in many])
    torch.testing.assert_close(joint.log_prob(many), each, rtol=SUMS, atol=SUMS)


@KINDS
def test_no_targets_have_density_one(make):
    joint = make(targets=0)
    assert joint.log_prob(torch.zeros(2, 0, 2)).tolist() == [0.0, 0.0]
    assert joint.sample((3,)).shape == (3, 2, 0, 2)


@KINDS
def test_the_marginals_are_those_of_the_covariance(make):
    joint, y = make(), normal(2, 4, 2, seed=9)
    variance = joint.covariance_matrix.diagonal(dim1=-2, dim2=-1).unflatten(-1, (4, 2))
    torch.testing.assert_close(joint.stddev, variance.sqrt(), rtol=FLOAT64, atol=FLOAT64)
    assert isinstance(joint.marginals, Gaussian)
    assert joint.marginals.batch_shape == (2, 4)
    each = Gaussian(joint.mean, variance.sqrt())
    for found, expected in (
        (joint.cdf(y), each.cdf(y)),
        (joint.crps(y), each.crps(y)),
        (joint.quantile(0.9), each.quantile(0.9)),
    ):
        torch.testing.assert_close(found, expected, rtol=FLOAT64, atol=FLOAT64)
    single = make(targets=1, dim_y=1)
    y = normal(2, 1, 1, seed=9)
    torch.testing.assert_close(
        single.log_prob(y), single.marginals.log_prob(y)[:, 0], rtol=SUMS, atol=SUMS
    )


def exact_low_rank(factor, stddev, residual) -> float:
    """The log-density in 60 decimal digits."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        rows = mpmath.matrix(factor.tolist())
        covariance = rows * rows.T
        for i, s in enumerate(stddev.tolist()):
            covariance[i, i] += mpmath.mpf(s) ** 2
        lower = mpmath.cholesky(covariance)
        white = mpmath.lu_solve(lower, mpmath.matrix(residual.tolist()))
        nats = -sum(w**2 for w in white) / 2 - sum(
            mpmath.log(lower[i, i]) for i in range(len(stddev))
        )
        return float(nats - len(stddev) * mpmath.log(2 * mpmath.pi) / 2)


@pytest.mark.parametrize("small", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("targets", [1, 2, 12])
def test_own_noise_much_smaller_than_the_factor_is_not_lost(small, targets):
    """torch's LowRankMultivariateNormal in float32 is off by half a nat at 1e-3 and fails at 1e-5."""
    joint = low_rank(targets, 1, small=small, batch=1)
    joint = LowRankGaussian(joint.mean.float(), joint.factor.float(), joint.own.float())
    y = joint.sample()
    factor, own = joint.factor[0].double(), joint.own[0, :, 0].double()
    expected = exact_low_rank(factor, own, (y.double() - joint.mean.double())[0, :, 0])
    assert joint.log_prob(y).dtype == torch.float32
    assert float(joint.log_prob(y)) == pytest.approx(expected, rel=10 * FLOAT32, abs=10 * FLOAT32)


class Largest(TorchFunctionMode):
    """The largest tensor that any function gave back."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        each = found if isinstance(found, tuple) else (found,)
        sizes = [t.numel() for t in each if isinstance(t, torch.Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return found


def test_low_rank_never_forms_the_covariance():
    targets = 2000
    joint = low_rank(targets, 1, batch=1)
    with Largest() as largest:
        joint.log_prob(joint.sample())
        assert joint.stddev.shape == (1, targets, 1)
        joint.affine(1.0, 2.0).masked(torch.ones(1, targets, dtype=torch.bool)).log_prob(joint.mean)
    assert targets <= largest.numbers <= (targets + RANK) * RANK
    with Largest() as largest:
        assert joint.covariance_matrix.shape[-1] == targets
    assert largest.numbers >= targets**2  # the measure can fail


@KINDS
def test_gradients_first_and_second(make):
    parts = [p.requires_grad_() for p in (normal(1, 3, 1), normal(1, 3, RANK, seed=1))]
    raw, y = normal(1, 3, 1, seed=2).requires_grad_(), normal(1, 3, 1, seed=3).requires_grad_()

    def density(mean, factor, raw, y):
        if make is low_rank:
            return LowRankGaussian(mean, factor, raw.exp()).log_prob(y)
        return CholeskyGaussian.from_factor(mean, factor + raw, bounded=True).log_prob(y)

    assert torch.autograd.gradcheck(density, (*parts, raw, y))
    assert torch.autograd.gradgradcheck(density, (*parts, raw, y))

    def draw(mean, factor, raw):
        torch.manual_seed(0)
        if make is low_rank:
            return LowRankGaussian(mean, factor, raw.exp()).rsample((2,))
        return CholeskyGaussian.from_factor(mean, factor + raw).rsample((2,))

    assert torch.autograd.gradcheck(draw, (*parts, raw))


@KINDS
def test_samples_have_the_mean_and_the_covariance(make):
    joint = make(targets=3, dim_y=2)
    torch.manual_seed(0)
    number = 40_000
    drawn = joint.sample((number,)).flatten(-2)
    assert joint.sample().shape == (2, 3, 2)
    covariance = joint.covariance_matrix
    spread = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    error = (drawn.mean(0) - joint.mean.flatten(-2)) / spread
    assert float(error.abs().max()) < 5 / number**0.5
    centred = drawn - joint.mean.flatten(-2)
    found = torch.einsum("sbi,sbj->bij", centred, centred) / number
    scale = spread.unsqueeze(-1) * spread.unsqueeze(-2)
    assert float(((found - covariance) / scale).abs().max()) < 5 * (2 / number) ** 0.5


@KINDS
def test_noise_of_a_generator_gives_the_draw_again(make):
    joint = make()
    noise = normal(5, 2, joint.noise, seed=4)
    drawn = joint.from_noise(noise)
    assert drawn.shape == (5, 2, 4, 2)
    torch.testing.assert_close(joint.from_noise(noise), drawn, rtol=0.0, atol=0.0)
    flat = (drawn - joint.mean).flatten(-2)
    if make is triangular:
        factor = joint.scale_tril
    else:
        factor = torch.cat([joint.factor, torch.diag_embed(joint.own.flatten(-2))], dim=-1)
    expected = torch.einsum("bik,sbk->sbi", factor, noise)
    torch.testing.assert_close(flat, expected, rtol=SUMS, atol=SUMS)


REAL = torch.tensor([[True, False, True, True], [False, False, False, False]])


@KINDS
@pytest.mark.parametrize("filler", [0.0, 1e30, float("nan")])
def test_padded_targets_count_for_nothing(make, filler):
    joint, y = make().masked(REAL), normal(2, 4, 2, seed=9)
    y = y.masked_fill(~REAL.unsqueeze(-1), filler)
    found = joint.log_prob(y)
    assert found[1] == 0.0
    alone = made_of_real_targets(make)
    torch.testing.assert_close(found[:1], alone.log_prob(y[:1, REAL[0]]), rtol=SUMS, atol=SUMS)
    for name in ("mean", "stddev"):
        part = getattr(joint, name)[:1, REAL[0]]
        torch.testing.assert_close(part, getattr(alone, name), rtol=SUMS, atol=SUMS)
    assert joint.rsample().isfinite().all()
    everything = torch.ones_like(REAL)
    y = normal(2, 4, 2, seed=9)
    assert torch.equal(make().masked(everything).log_prob(y), make().log_prob(y))
    narrower = make(real=everything).masked(REAL)
    assert torch.equal(narrower.log_prob(y), joint.log_prob(y))


def made_of_real_targets(make) -> JointGaussian:
    """The first task's distribution, built from the rows of its real targets alone."""
    whole, rows = make(), REAL[0].repeat_interleave(2)
    if make is low_rank:
        return LowRankGaussian(
            whole.mean[:1, REAL[0]], whole.factor[:1, rows], whole.own[:1, REAL[0]]
        )
    factor = 0.4 * normal(2, 8, RANK, seed=1)[:1, rows]
    return CholeskyGaussian.from_factor(whole.mean[:1, REAL[0]], factor, bounded=True)


@KINDS
def test_nan_in_padding_reaches_no_gradient(make):
    y = normal(2, 4, 2, seed=9).masked_fill(~REAL.unsqueeze(-1), float("nan"))
    leaves = [normal(2, 4, 2).requires_grad_(), normal(2, 8, RANK, seed=1).requires_grad_()]
    own = normal(2, 4, 2, seed=2).exp().requires_grad_()
    if make is low_rank:
        joint = LowRankGaussian(*leaves, own, REAL)
        leaves.append(own)
    else:
        joint = CholeskyGaussian.from_factor(*leaves, REAL, bounded=True)
    joint.log_prob(y).sum().backward()
    for leaf in leaves:
        assert leaf.grad.isfinite().all()
        gradient = leaf.grad.unflatten(1, (4, -1))
        assert not gradient[~REAL].any()
        assert gradient[0, 0].any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(5)))
def test_targets_of_a_low_rank_gaussian_come_in_any_order(seed, order):
    joint, y = low_rank(5, 2, seed=seed), normal(2, 5, 2, seed=seed + 9)
    rows = joint.factor.unflatten(1, (5, 2))[:, order].flatten(1, 2)
    turned = LowRankGaussian(joint.mean[:, order], rows, joint.own[:, order])
    torch.testing.assert_close(turned.log_prob(y[:, order]), joint.log_prob(y), **LAWS)


def test_targets_of_the_published_gaussian_do_not():
    """The papers' defect: the same rows in another order are another covariance."""
    factor, mean = normal(1, 4, RANK), torch.zeros(1, 4, 1, dtype=torch.float64)
    joint = CholeskyGaussian.from_factor(mean, factor)
    turned = CholeskyGaussian.from_factor(mean, factor.flip(1))
    back = turned.covariance_matrix.flip(1, 2)
    assert (back - joint.covariance_matrix).abs().max() > 0.3 * joint.covariance_matrix.abs().max()


def test_the_published_triangle():
    factor, mean = normal(1, 4, RANK), torch.zeros(1, 4, 1, dtype=torch.float64)
    rows = factor[0].numpy()
    lower = np.tril(rows @ rows.T)
    found = CholeskyGaussian.from_factor(mean, factor).scale_tril[0].numpy()
    np.testing.assert_allclose(found, lower, rtol=FLOAT64, atol=FLOAT64)
    np.fill_diagonal(lower, 0.05 + 0.95 * np.tanh((rows**2).sum(1)))
    found = CholeskyGaussian.from_factor(mean, factor, bounded=True).scale_tril[0].numpy()
    np.testing.assert_allclose(found, lower, rtol=FLOAT64, atol=FLOAT64)


@KINDS
@pytest.mark.parametrize("real", [None, REAL])
def test_affine_is_a_change_of_variables(make, real):
    joint, y = make(real=real), normal(2, 4, 2, seed=9)
    count = 8 if real is None else 2 * REAL.sum(-1)
    for loc, scale in ((3.0, 2.0), (normal(2), normal(2, seed=1).exp())):
        logs = torch.as_tensor(scale, dtype=torch.float64).log().expand(2)
        expected = joint.log_prob(y) - logs.mean() * count
        torch.testing.assert_close(
            joint.affine(loc, scale).log_prob(loc + scale * y), expected, **LAWS
        )
        moved = joint.affine(loc, scale)
        seen = slice(None) if real is None else real
        torch.testing.assert_close(moved.mean, loc + scale * joint.mean, **LAWS)
        torch.testing.assert_close(moved.stddev[seen], (scale * joint.stddev)[seen], **LAWS)


@KINDS
def test_expanded_over_a_larger_batch(make):
    joint, y = make(real=REAL), normal(3, 2, 4, 2, seed=9)
    wide = joint.expand((3, 2))
    assert wide.batch_shape == (3, 2)
    torch.testing.assert_close(wide.log_prob(y), joint.log_prob(y), **LAWS)
    assert wide.sample((5,)).shape == (5, 3, 2, 4, 2)
