import math
import re

import pytest
import torch

from synopsis.processes.base import load
from synopsis.processes.spectral import Prior, SpectralRegression
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.testing import check_process
from synopsis.training import evaluate
from tests.tolerances import EVEN_KERNEL, FLOAT32, FLOAT64, SPECTRAL_SOLVE


def data(points, dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, points, dim, generator=generator)
    y = (2 * x[..., :1]).sin() + 0.1 * torch.randn(1, points, 1, generator=generator)
    return x, y


def student_t(y, shape, rate, covariance):
    """Log-density of the multivariate Student-t that the model gives to all outputs together."""
    factor = torch.linalg.cholesky(covariance * rate / shape)
    distance = torch.linalg.solve_triangular(factor, y[:, None], upper=False).square().sum()
    n, dof = len(y), 2 * shape
    constant = math.lgamma((dof + n) / 2) - math.lgamma(dof / 2) - n / 2 * math.log(dof * math.pi)
    return constant - factor.diagonal().log().sum() - (dof + n) / 2 * torch.log1p(distance / dof)


def by_hand(process, x, y, xt):
    """Mean, stddev and log-evidence of every expert from the joint Gaussian over outputs, never from sums."""
    features, targets = process._features(x)[0], process._features(xt)[0]
    y, n = y[0, :, 0].double(), y.shape[1]
    found = []
    for scale in range(len(Prior().length_scales)):
        for prior in process.prior:
            phi, star = features[scale], targets[scale]
            joint = torch.eye(n, dtype=torch.float64) + phi @ (phi / prior).T
            weights = torch.linalg.solve(joint, phi @ (star / prior).T)  # points × targets
            residual = y @ torch.linalg.solve(joint, y)
            noise = (0.02 + residual / 2) / (2.0 - 1 + n / 2)
            spread = (
                1 + ((star / prior) * star).sum(-1) - (weights * (phi @ (star / prior).T)).sum(0)
            )
            evidence = student_t(y, 2.0, 0.02, joint)
            found.append((weights.T @ y, (noise * spread).sqrt(), evidence))
    mean, stddev, evidence = (torch.stack(column, -1) for column in zip(*found, strict=True))
    return mean, stddev, evidence.log_softmax(-1)


@pytest.mark.parametrize("points", [1, 5, 60])
def test_experts_are_bayesian_regressions_averaged_by_their_evidence(points):
    process = SpectralRegression(dim_x=2, prior={"features": 16})
    x, y = data(points)
    xt = data(7, seed=1)[0]
    experts = process.experts(process.update(process.init(), x, y), xt)
    mean, stddev, log_weight = by_hand(process, x, y, xt)
    torch.testing.assert_close(experts.mean[0], mean, rtol=SPECTRAL_SOLVE, atol=SPECTRAL_SOLVE)
    torch.testing.assert_close(experts.stddev[0], stddev, rtol=SPECTRAL_SOLVE, atol=SPECTRAL_SOLVE)
    torch.testing.assert_close(
        experts.log_weight[0], log_weight, rtol=SPECTRAL_SOLVE, atol=SPECTRAL_SOLVE
    )


def test_moments_are_those_of_the_mixture():
    process = SpectralRegression(dim_x=2, prior={"features": 16})
    x, y = data(30)
    state = process.update(process.init(), x, y)
    anchor, mixture = process.experts(state, x).moments(), process.predict(state, x)
    torch.testing.assert_close(anchor.mean, mixture.mean, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(
        anchor.stddev, mixture.stddev, rtol=SPECTRAL_SOLVE, atol=SPECTRAL_SOLVE
    )


def joint_by_hand(process, x, y, xt):
    """The mixture's covariance over the targets, noise included, from the joint Gaussian over outputs."""
    features, targets = process._features(x)[0], process._features(xt)[0]
    mean, _, log_weight = by_hand(process, x, y, xt)
    weight = log_weight.exp()
    y, n, covariance = y[0, :, 0].double(), y.shape[1], 0.0
    middle = mean @ weight
    pairs = [
        (scale, prior) for scale in range(len(Prior().length_scales)) for prior in process.prior
    ]
    for expert, (scale, prior) in enumerate(pairs):
        phi, star = features[scale], targets[scale]
        joint = torch.eye(n, dtype=torch.float64) + phi @ (phi / prior).T
        across = phi @ (star / prior).T
        noise = (0.02 + y @ torch.linalg.solve(joint, y) / 2) / (2.0 - 1 + n / 2)
        shared = (star / prior) @ star.T - across.T @ torch.linalg.solve(joint, across)
        own = torch.eye(len(star), dtype=torch.float64)
        away = mean[:, expert] - middle
        covariance += weight[expert] * (noise * (shared + own) + torch.outer(away, away))
    return covariance


def whole(covariance):
    """A Aᵀ + noise² I."""
    noise = covariance.noise.square()[:, None, None] * torch.eye(covariance.factor.shape[1])
    return covariance.factor @ covariance.factor.mT + noise


@pytest.mark.parametrize("points", [1, 5, 60])
@pytest.mark.parametrize("targets", [1, 7, 200], ids=lambda n: f"{n}-targets")
def test_the_joint_covariance_is_the_mixtures(points, targets):
    process = SpectralRegression(dim_x=2, prior={"features": 16})
    (x, y), xt = data(points), data(targets, seed=1)[0]
    experts = process.experts(process.update(process.init(), x, y), xt)
    covariance = experts.covariance()
    assert covariance.factor.shape == (1, targets, min(targets, 9 * 19 + 9))
    found, expected = whole(covariance)[0], joint_by_hand(process, x, y, xt)
    torch.testing.assert_close(
        found, expected, rtol=SPECTRAL_SOLVE, atol=SPECTRAL_SOLVE * float(expected.max())
    )
    spread = experts.moments().stddev.square()[0, :, 0]
    torch.testing.assert_close(found.diagonal(), spread, rtol=FLOAT64, atol=0.0)


def test_targets_may_repeat_and_the_covariance_keeps_a_gradient():
    process = SpectralRegression(dim_x=2, prior={"features": 16})
    (x, y), xt = data(30), data(1, seed=1)[0].repeat(1, 12, 1).double().requires_grad_()
    experts = process.experts(process.update(process.init(), x, y), xt)
    covariance = experts.covariance()
    shared = covariance.factor @ covariance.factor.mT
    torch.testing.assert_close(
        shared, shared[:, :1, :1].expand_as(shared), rtol=SPECTRAL_SOLVE, atol=0.0
    )
    (gradient,) = torch.autograd.grad(shared.diagonal(dim1=1, dim2=2).sum(), xt, retain_graph=True)
    (expected,) = torch.autograd.grad(experts.moments().stddev.square().sum(), xt)
    torch.testing.assert_close(gradient, expected, rtol=100 * FLOAT32, atol=FLOAT32)


def test_keeps_the_contract():
    check_process(SpectralRegression(dim_x=2, prior={"features": 8}))
    check_process(SpectralRegression(dim_x=1, prior=EVEN))


def test_inputs_not_given_do_not_matter():
    x, y = data(50)
    padded = torch.cat([x, torch.full((1, 50, 3), math.nan)], -1)
    process = SpectralRegression(dim_x=5, prior={"features": 16})
    assert process(padded, y, padded[:, :4]).mean.isfinite().all()
    zeros = padded.nan_to_num(nan=0.0)
    assert not torch.equal(
        process(zeros, y, zeros[:, :4]).mean, process(padded, y, padded[:, :4]).mean
    )


def test_frequencies_are_always_the_same_and_saved(tmp_path):
    import synopsis

    process = SpectralRegression(dim_x=3, prior={"features": 8})
    process.save_pretrained(tmp_path)
    assert torch.equal(
        synopsis.load(tmp_path).frequencies,
        SpectralRegression(3, prior={"features": 8}).frequencies,
    )


def test_approaches_the_exact_gaussian_process():
    process = SpectralRegression(dim_x=1)
    x = torch.linspace(-2, 2, 400).view(1, -1, 1)
    y = (3 * x).sin() + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    predicted = process(x, y, x)
    assert (predicted.mean - (3 * x).sin()).abs().mean() < 0.02
    assert abs(predicted.stddev.mean() - 0.05) < 0.01


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="features must be even and at least 2, not 7"):
        SpectralRegression(dim_x=1, prior={"features": 7})
    assert Prior().experts == 9


@pytest.mark.parametrize(
    ("beliefs", "named"),
    [
        ({"lengths": [1.0]}, "lengths"),
        ({"features": 7}, "7"),
        ({"length_scales": []}, "length_scales"),
        ({"amplitudes": [1.0, 0.0]}, "amplitudes"),
        ({"noise_variance": -1.0}, "-1.0"),
    ],
)
def test_beliefs_that_cannot_be_held_are_named(beliefs, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        SpectralRegression(dim_x=1, prior=beliefs)


def test_beliefs_that_are_true_predict_better_than_the_default():
    task = GaussianProcessTask(kernel="rbf")
    true = {"features": 128, "length_scales": [0.1, 0.15, 0.22, 0.33, 0.5]}
    true |= {"amplitudes": [100.0, 1000.0], "noise_variance": 8e-4}
    scores = [
        evaluate(SpectralRegression(dim_x=1, prior=prior), task, 10, 16, 0)
        for prior in (None, true)
    ]
    assert scores[1].log_likelihood.value > scores[0].log_likelihood.value + 0.3


# --- even frequencies

EVEN = {"features": 128, "length_scales": [0.1, 0.5], "amplitudes": [100.0], "period": 8.0}


def squared_exponential(a, b, length):
    return (-0.5 * ((a[:, None] - b[None]) / length).square()).exp()


def test_even_frequencies_have_the_squared_exponential_kernel():
    process = SpectralRegression(dim_x=1, prior=EVEN)
    x = torch.linspace(-2, 2, 81, dtype=torch.float64)
    waves = process._features(x.view(1, -1, 1))[0, :, :, 2:]
    for length, wave in zip(EVEN["length_scales"], waves, strict=True):
        expected = squared_exponential(x, x, length)
        torch.testing.assert_close(wave @ wave.T, expected, rtol=0, atol=EVEN_KERNEL)


def test_even_frequencies_predict_like_the_exact_gaussian_process():
    """Means of the expert with that length-scale: its line is a kernel too, and noise has variance 1."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(40, generator=generator, dtype=torch.float64) * 4 - 2).float()
    y = torch.randn(40, generator=generator)
    xt = torch.linspace(-2, 2, 9)
    process = SpectralRegression(dim_x=1, prior=EVEN)
    state = process.update(process.init(), x.view(1, -1, 1), y.view(1, -1, 1))
    experts = process.experts(state, xt.view(1, -1, 1))
    x, y, xt = x.double(), y.double(), xt.double()
    for number, length in enumerate(EVEN["length_scales"]):

        def kernel(a, b, length=length):
            line = 10.0 * (1.0 + a[:, None] * b[None])
            return line + 100.0 * squared_exponential(a, b, length)

        own = kernel(x, x) + torch.eye(len(x), dtype=torch.float64)
        exact = kernel(xt, x) @ torch.linalg.solve(own, y)
        torch.testing.assert_close(
            experts.mean[0, :, number], exact, rtol=EVEN_KERNEL * 100, atol=EVEN_KERNEL * 100
        )


def test_even_frequencies_come_much_nearer_to_the_exact_answer():
    prior = {"features": 128, "length_scales": [0.1, 0.15, 0.22, 0.33, 0.5], "noise_variance": 8e-4}
    prior["amplitudes"] = [100.0, 1000.0]
    task = GaussianProcessTask(kernel="rbf")
    gaps = [
        evaluate(SpectralRegression(1, prior=p).eval(), task, 12, 16, 0).oracle_gap.value
        for p in (prior, {**prior, "period": 8.0})
    ]
    assert 0 < gaps[1] < gaps[0] / 3


def test_even_frequencies_are_not_rounded_with_the_weights(tmp_path):
    process = SpectralRegression(dim_x=1, prior=EVEN)
    assert "frequencies" not in process.state_dict()
    process.save_pretrained(tmp_path, dtype=torch.float16)
    assert torch.equal(load(tmp_path).frequencies, process.frequencies)


@pytest.mark.parametrize(
    ("dim_x", "changes", "message"),
    [
        (2, {}, "even frequencies are for one input, not 2; leave period out"),
        (1, {"period": -1.0}, "period must be positive, not -1.0"),
        (1, {"period": 0.0}, "period must be positive, not 0.0"),
        (
            1,
            {"features": 64},
            "64 features do not resolve length-scale 0.1 in a period of 8.0; it takes 77",
        ),
    ],
)
def test_even_frequencies_that_cannot_be_are_refused(dim_x, changes, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SpectralRegression(dim_x=dim_x, prior={**EVEN, **changes})
