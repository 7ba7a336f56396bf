"""BoTorch's own acquisition functions and optimiser on neural processes, untrained and tiny."""

import subprocess
import sys
import warnings

import pytest
import torch
from botorch.acquisition import (
    LogExpectedImprovement,
    UpperConfidenceBound,
    qKnowledgeGradient,
    qLogExpectedImprovement,
    qLogNoisyExpectedImprovement,
)
from botorch.acquisition.objective import ScalarizedPosteriorTransform
from botorch.optim import optimize_acqf
from botorch.posteriors import GPyTorchPosterior
from botorch.sampling.get_sampler import get_sampler
from torch.distributions import Normal

from synopsis.adapters.botorch import MixturePosterior, NeuralProcessModel
from synopsis.processes import CMANP, CMANPAND, CNP, LBANP, NP, TNPA, TNPD, TNPND
from synopsis.processes.heads import GaussianMixture
from tests.tolerances import DIFFERENCED, FLOAT32, FLOAT64, PREDICTION, SAMPLING

BOUNDS = torch.tensor([[10.0, -500.0], [20.0, 500.0]], dtype=torch.float64)
SMALL = {
    CMANP: {"dim": 16, "blocks": 2, "latents": 8},
    CMANPAND: {"dim": 16, "blocks": 2, "latents": 8},
    CNP: {"dim": 16},
    LBANP: {"dim": 16, "layers": 2, "latents": 8},
    NP: {"dim": 16, "samples": 8},
    TNPA: {"dim": 16, "layers": 1},
    TNPD: {"dim": 16, "layers": 2},
    TNPND: {"dim": 16, "layers": 2},
}
JOINT, MIXTURES = (CMANPAND, TNPND), (NP, TNPA)
DIAGONAL = (CMANP, CNP, LBANP, NP, TNPD)
DIFFERENCE = 1e-4  # of central differences, of the range of an input


def small(kind, dim_y=1, **settings):
    torch.manual_seed(3)
    process = kind(dim_x=2, dim_y=dim_y, **SMALL[kind], **settings)
    for parameter in process.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(1.5)  # so that predictions differ from point to point
    return process


def data(points, *batch, dim_y=1, seed=0):
    """Inputs inside the bounds, and outputs in units of their own."""
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(*batch, points, 2, generator=generator, dtype=torch.float64)
    X = BOUNDS[0] + X * (BOUNDS[1] - BOUNDS[0])
    noise = torch.randn(*batch, points, dim_y, generator=generator, dtype=torch.float64)
    return X, 100 + 7 * noise


def model(kind, points=6, *batch, **settings):
    return NeuralProcessModel(small(kind), *data(points, *batch), BOUNDS, **settings)


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_posterior_is_the_process_in_the_units_of_the_problem(kind):
    process, (X, Y), xt = small(kind), data(6), data(3, seed=1)[0]
    found = NeuralProcessModel(process, X, Y, BOUNDS, warmup=None).posterior(xt)

    def scaled(x):
        return -2 + 4 * (x - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0])

    exact = process.double().eval()
    state = exact.update(exact.init(), scaled(X)[None], Y[None])
    predicted = exact.predict(state, scaled(xt)[None])
    assert found.mean.shape == (3, 1)
    assert found.mean.dtype == found.variance.dtype == torch.float64
    expected = (predicted.mean[0].double(), predicted.variance[0].double())
    for value, wanted in zip((found.mean, found.variance), expected, strict=True):
        torch.testing.assert_close(
            value.detach(), wanted.detach(), rtol=PREDICTION, atol=PREDICTION
        )


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_batches_of_points_are_the_points_one_batch_at_a_time(kind):
    surrogate, (X, _) = model(kind), data(3, 2, 4, seed=1)
    together = surrogate.posterior(X)
    assert together.mean.shape == together.variance.shape == (2, 4, 3, 1)
    assert together.rsample(torch.Size([5])).shape == (5, 2, 4, 3, 1)
    alone = surrogate.posterior(X[1, 2])
    torch.testing.assert_close(together.mean[1, 2], alone.mean, rtol=PREDICTION, atol=PREDICTION)
    torch.testing.assert_close(
        together.variance[1, 2], alone.variance, rtol=PREDICTION, atol=PREDICTION
    )


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_a_batch_of_models_is_its_models_one_by_one(kind):
    X, Y = data(6, 3, 1)
    many = NeuralProcessModel(small(kind), X, Y, BOUNDS)
    xt = data(2, 5, 1, 4, seed=1)[0]  # broadcasts to (5, 3, 4)
    found = many.posterior(xt)
    assert many.batch_shape == (3, 1)
    assert found.mean.shape == (5, 3, 4, 2, 1)
    one = NeuralProcessModel(small(kind), X[2, 0], Y[2, 0], BOUNDS).posterior(xt[4, 0])
    torch.testing.assert_close(found.mean[4, 2], one.mean, rtol=PREDICTION, atol=PREDICTION)
    torch.testing.assert_close(found.variance[4, 2], one.variance, rtol=PREDICTION, atol=PREDICTION)


@pytest.mark.parametrize("kind", (*DIAGONAL, *JOINT), ids=lambda kind: kind.__name__)
def test_gradients_are_those_of_finite_differences(kind):
    surrogate = model(kind)

    def score(X):
        posterior = surrogate.posterior(X)
        return posterior.mean.sum() + 3 * posterior.variance.sqrt().sum()

    X = data(2, 2, seed=1)[0].requires_grad_()
    gradient = torch.autograd.grad(score(X), X)[0] * (BOUNDS[1] - BOUNDS[0])
    steps = DIFFERENCE * torch.eye(8, dtype=torch.float64).view(8, *X.shape)
    steps = steps * (BOUNDS[1] - BOUNDS[0])
    with torch.no_grad():
        slopes = [(score(X + step) - score(X - step)) / (2 * DIFFERENCE) for step in steps]
    close = (torch.stack(slopes) - gradient.flatten()).abs() < DIFFERENCED * gradient.abs().max()
    assert close.sum() >= 6  # into a step or two there may fall a kink


@pytest.mark.parametrize("warmup", (None, 4, 32))
@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_conditioning_equals_starting_with_all_observations(kind, warmup):
    (X, Y), xt = data(9), data(3, seed=1)[0]
    whole = NeuralProcessModel(small(kind), X, Y, BOUNDS, warmup=warmup)
    part = NeuralProcessModel(small(kind), X[:5], Y[:5], BOUNDS, warmup=warmup)
    before = part.posterior(xt).mean
    told = part.condition_on_observations(X[5:8], Y[5:8]).condition_on_observations(X[8:], Y[8:])
    for moment in ("mean", "variance"):
        expected = getattr(whole.posterior(xt), moment)
        found = getattr(told.posterior(xt), moment)
        torch.testing.assert_close(found, expected, rtol=PREDICTION, atol=PREDICTION)
    assert torch.equal(part.posterior(xt).mean, before)
    assert not torch.allclose(told.posterior(xt).mean, before)


def test_a_bounded_process_stays_as_small_as_it_was():
    before = model(CMANP, 40)
    assert before.condition_on_observations(*data(100)).state.nbytes == before.state.nbytes
    unbounded = model(TNPD, 40)
    assert unbounded.condition_on_observations(*data(100)).state.nbytes > unbounded.state.nbytes


def test_observations_may_come_in_more_batches_than_the_model_has():
    surrogate = model(CMANP)
    X, Y = data(2, seed=1)[0], data(2, 3, seed=2)[1]
    told = surrogate.condition_on_observations(X, Y)
    assert told.batch_shape == (3,)
    xt = data(4, seed=4)[0]
    alone = surrogate.condition_on_observations(X, Y[1]).posterior(xt).mean
    torch.testing.assert_close(told.posterior(xt).mean[1], alone, rtol=PREDICTION, atol=PREDICTION)


@pytest.mark.parametrize("kind", JOINT, ids=lambda kind: kind.__name__)
def test_joint_processes_have_correlated_points(kind):
    posterior = model(kind).posterior(data(3, seed=1)[0])
    assert isinstance(posterior, GPyTorchPosterior)
    covariance = posterior.distribution.covariance_matrix
    torch.testing.assert_close(covariance.diagonal(), posterior.variance[:, 0])
    assert (covariance - torch.diag(covariance.diagonal())).abs().max() > 0.1 * covariance.max()
    torch.manual_seed(0)
    draws = posterior.rsample(torch.Size([4096]))[..., 0]
    size = covariance.diagonal().max()
    assert (torch.cov(draws.T) - covariance).abs().max() < 2 * SAMPLING * size


@pytest.mark.parametrize("kind", (CMANP, CMANPAND, NP), ids=lambda kind: kind.__name__)
def test_several_outputs(kind):
    X, Y = data(6, dim_y=3)
    surrogate = NeuralProcessModel(small(kind, dim_y=3), X, Y, BOUNDS)
    xt = data(4, 2, seed=1)[0]
    whole = surrogate.posterior(xt)
    assert surrogate.num_outputs == 3 and whole.mean.shape == (2, 4, 3)
    part = surrogate.subset_output([2, 0])
    assert part.num_outputs == 2
    for found in (surrogate.posterior(xt, output_indices=[2, 0]), part.posterior(xt)):
        assert torch.equal(found.mean, whole.mean[..., [2, 0]])
        torch.testing.assert_close(found.variance, whole.variance[..., [2, 0]])
    if kind is CMANPAND:  # rows and columns in the order of the points, outputs within
        matrix = whole.distribution.covariance_matrix.unflatten(-1, (4, 3)).unflatten(-3, (4, 3))
        chosen = surrogate.posterior(xt, output_indices=[2, 0]).distribution.covariance_matrix
        wanted = matrix[..., [2, 0]][..., [2, 0], :, :]
        torch.testing.assert_close(chosen.unflatten(-1, (4, 2)).unflatten(-3, (4, 2)), wanted)
    told = surrogate.condition_on_observations(*data(2, dim_y=3, seed=5))
    assert told.posterior(xt).mean.shape == (2, 4, 3)


def quantiles_by_search(weights, means, stddevs, level):
    """Naive: a fine table of the distribution function."""
    y = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    cdf = (weights * torch.special.ndtr((y[:, None] - means) / stddevs)).sum(-1)
    return y[torch.searchsorted(cdf, level)]


def test_draws_of_a_mixture_are_its_quantiles_with_their_gradient():
    logits = torch.tensor([0.3, -0.5, 0.1], dtype=torch.float64)
    means = torch.tensor([-3.0, 0.2, 4.0], dtype=torch.float64, requires_grad=True)
    stddevs = torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
    normal = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.4, 1.5, 3.5], dtype=torch.float64)
    weights = logits.softmax(-1)

    def draws(means):
        mixture = GaussianMixture(logits.view(1, 1, 3), means.view(1, 1, 3), stddevs.view(1, 1, 3))
        posterior = MixturePosterior(mixture)
        return posterior.rsample_from_base_samples(normal.shape, normal.view(-1, 1, 1)).flatten()

    found = draws(means)
    expected = [quantiles_by_search(weights, means, stddevs, u) for u in torch.special.ndtr(normal)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=110 * FLOAT32)
    # F(y; m) = u moves by dy/dm = −(∂F/∂m)/p = w N(y; m, s) / p
    parts = weights * Normal(means, stddevs).log_prob(found[:, None]).exp()
    wanted = parts / parts.sum(-1, keepdim=True)
    jacobian = torch.autograd.functional.jacobian(draws, means)
    torch.testing.assert_close(jacobian, wanted.detach(), rtol=FLOAT64**0.5, atol=FLOAT64**0.5)


@pytest.mark.parametrize("kind", MIXTURES, ids=lambda kind: kind.__name__)
def test_mixtures_have_a_sampler_and_the_moments_of_their_draws(kind):
    posterior = model(kind).posterior(data(2, seed=1)[0])
    assert isinstance(posterior, MixturePosterior)
    sampler = get_sampler(posterior, torch.Size([4096]), seed=0)
    draws = sampler(posterior)
    assert draws.shape == (4096, 2, 1) and torch.equal(draws, sampler(posterior))
    stddev = posterior.variance.sqrt()
    assert ((draws.mean(0) - posterior.mean).abs() < SAMPLING * stddev).all()
    assert ((draws.std(0) - stddev).abs() < SAMPLING * stddev).all()
    median = posterior.quantile(torch.tensor(0.5))
    assert ((draws < median).double().mean(0) - 0.5).abs().max() < SAMPLING


def acquisitions(surrogate, X, Y):
    yield UpperConfidenceBound(surrogate, beta=0.1, maximize=False), 1
    yield LogExpectedImprovement(surrogate, best_f=Y.min(), maximize=False), 1
    sampler = get_sampler(surrogate.posterior(X[:2]), torch.Size([16]), seed=0)
    yield qLogExpectedImprovement(surrogate, best_f=Y.max(), sampler=sampler), 2
    yield qLogNoisyExpectedImprovement(surrogate, X_baseline=X, sampler=sampler), 2


@pytest.mark.parametrize("kind", SMALL, ids=lambda kind: kind.__name__)
def test_acquisition_functions_find_better_points_than_they_started_from(kind):
    X, Y = data(6)
    surrogate = NeuralProcessModel(small(kind), X, Y, BOUNDS)
    for acquisition, q in acquisitions(surrogate, X, Y):
        start = data(q, 2, seed=1)[0]
        before = acquisition(start).max()
        with warnings.catch_warnings():  # kinks of an untrained network stop a line search
            warnings.filterwarnings("ignore", message="Optimization failed")
            candidates, value = optimize_acqf(
                acquisition,
                BOUNDS,
                q=q,
                num_restarts=2,
                batch_initial_conditions=start,
                options={"maxiter": 4},
            )
        assert candidates.shape == (q, 2) and not candidates.requires_grad
        assert (BOUNDS[0] <= candidates).all() and (candidates <= BOUNDS[1]).all()
        assert value > before


def test_optimisation_finds_what_the_process_thinks_best():
    surrogate = model(CNP)
    acquisition = UpperConfidenceBound(surrogate, beta=0.1, maximize=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Optimization failed")
        _, value = optimize_acqf(acquisition, BOUNDS, q=1, num_restarts=8, raw_samples=64)
    axes = [torch.linspace(0, 1, 101, dtype=torch.float64)] * 2
    grid = BOUNDS[0] + torch.cartesian_prod(*axes) * (BOUNDS[1] - BOUNDS[0])
    best = acquisition(grid[:, None]).max()
    assert value >= best - 1e-3 * best.abs()


@pytest.mark.parametrize("warmup", (None, 4, 32))
def test_fantasies_of_a_process_that_keeps_gradients(warmup):
    surrogate = model(TNPD, warmup=warmup)
    acquisition = qKnowledgeGradient(surrogate, num_fantasies=3)
    X = data(4, 2, seed=1)[0].requires_grad_()  # a candidate and three fantasy points
    gradient = torch.autograd.grad(acquisition(X).sum(), X)[0]
    with torch.no_grad():
        step = torch.zeros_like(X)
        step[0, 0, 0] = DIFFERENCE
        slope = (acquisition(X + step) - acquisition(X - step))[0] / (2 * DIFFERENCE)
    assert gradient[0, 0, 0] != 0
    assert abs(slope - gradient[0, 0, 0]) < DIFFERENCED * gradient[..., 0].abs().max()


def test_fantasies_of_a_bounded_process_have_values_but_no_gradients():
    surrogate = model(CMANP)
    X = data(2, seed=1)[0]
    sampler = get_sampler(surrogate.posterior(X), torch.Size([3]), seed=0)
    dreamt = surrogate.fantasize(X, sampler)
    assert dreamt.batch_shape == (3,) and dreamt.posterior(X).mean.shape == (3, 2, 1)
    with pytest.raises(ValueError, match="no gradient passes through what CMANP is told"):
        surrogate.fantasize(X.requires_grad_(), sampler)


def test_a_posterior_transform_is_applied():
    surrogate, X = model(CMANP), data(3, seed=1)[0]
    flipped = ScalarizedPosteriorTransform(torch.tensor([-1.0], dtype=torch.float64))
    found = surrogate.posterior(X, posterior_transform=flipped).mean
    torch.testing.assert_close(found, -surrogate.posterior(X).mean)


def test_inputs_may_be_float32_and_the_process_is_left_alone():
    process = small(CMANP).train()
    surrogate = NeuralProcessModel(process, *data(6), BOUNDS)
    fine = data(3, seed=1)[0]
    coarse = surrogate.posterior(fine.float())
    assert coarse.mean.dtype == coarse.variance.dtype == torch.float32
    torch.testing.assert_close(
        coarse.mean.double(), surrogate.posterior(fine).mean, rtol=PREDICTION, atol=PREDICTION
    )
    assert process.training and next(process.parameters()).dtype == torch.float32
    surrogate.train()
    surrogate.to(torch.float16)  # as acquisition functions do
    assert torch.equal(surrogate.posterior(fine.float()).mean, coarse.mean)


def test_single_precision_gives_the_same_but_for_its_digits():
    xt = data(3, seed=1)[0]
    single, double = (model(CMANP, dtype=d).posterior(xt) for d in (torch.float32, torch.float64))
    torch.testing.assert_close(single.mean, double.mean, rtol=PREDICTION, atol=PREDICTION)
    torch.testing.assert_close(
        single.variance, double.variance, rtol=1e3 * FLOAT32, atol=PREDICTION
    )


def test_a_model_may_start_with_nothing():
    empty = NeuralProcessModel(small(CMANP), bounds=BOUNDS)
    assert empty.batch_shape == () and empty.num_outputs == 1
    X, Y = data(6)
    xt = data(3, seed=1)[0]
    assert empty.posterior(xt).mean.shape == (3, 1)
    told = empty.condition_on_observations(X, Y).posterior(xt).mean
    torch.testing.assert_close(told, model(CMANP).posterior(xt).mean)


def test_what_does_not_fit_is_refused():
    X, Y = data(6)
    with pytest.raises(ValueError, match="come together"):
        NeuralProcessModel(small(CMANP), X)
    with pytest.raises(ValueError, match="X has 6 points but Y has 5"):
        NeuralProcessModel(small(CMANP), X, Y[:5])
    with pytest.raises(ValueError, match="noise levels were given"):
        model(CMANP).posterior(X, observation_noise=torch.ones(6, 1))
    posterior = model(NP).posterior(X)
    with pytest.raises(ValueError, match=r"\(3, 6, 1\) do not begin with \(2,\)"):
        posterior.rsample_from_base_samples(torch.Size([2]), torch.zeros(3, 6, 1))


def test_without_botorch_the_import_says_what_to_install():
    code = (
        "import sys; sys.modules['botorch'] = None\n"
        "import synopsis\n"
        "try:\n    import synopsis.adapters.botorch\n"
        "except ModuleNotFoundError as error:\n    print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.strip() == (
        "synopsis.adapters.botorch needs BoTorch: pip install 'synopsis-attention[botorch]'"
    )
