"""NP and ANP: the published model for every draw, the mixture of draws, and the importance-weighted bound."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from synopsis.processes.heads import Gaussian, GaussianMixture
from synopsis.processes.latent import ANP, NP, Ensemble, NPState
from synopsis.processes.pooling import CELEBA, EMNIST, GP
from synopsis.tasks import Batch
from synopsis.testing import PROCESS_CHECKS, Subject
from tests import reference
from tests.processes.test_conditional import (
    alone,
    draw,
    naive_decoder,
    naive_pooling,
    ragged_batch,
)
from tests.reference import below
from tests.tolerances import FLOAT64

SMALL = {"dim_x": 2, "dim_y": 2, "dim": 16, "depths": (4, 2, 3, 4, 2), "samples": 6}
BOTH = pytest.mark.parametrize("kind", [NP, ANP])


def small(kind, seed: int = 0, **options):
    return reference.enliven(kind(**SMALL | options), seed).eval()


def mixture(components: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return draw(2, 4, 3, components).double(), draw(2, 4, 3, components, seed=1).double().exp()


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [(NP, (232_194, 315_138, 365_702)), (ANP, (348_418, 431_490, 482_054))],
)
def test_the_published_number_of_parameters(kind, numbers):
    sizes = ((1, 1, GP), (2, 1, EMNIST), (2, 3, CELEBA))
    found = [kind(x, y, depths=depths).parameters() for x, y, depths in sizes]
    assert tuple(sum(p.numel() for p in parameters) for parameters in found) == numbers
    assert sum(p.numel() for p in kind().parameters()) == numbers[0]


@BOTH
@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_contract(kind, check):
    check(Subject.process(small(kind, depths=(3, 1, 2, 3, 1))))


@pytest.mark.parametrize("length", [0, 1, 9])
def test_every_component_is_the_published_model_at_one_z(length):
    process = small(NP).double()
    xc, yc, xt = draw(1, length, 2), draw(1, length, 2, seed=1), draw(1, 4, 2, seed=2)
    found = process(xc.double(), yc.double(), xt.double())
    weights = reference.float64_weights(process)
    points = torch.cat([xc, yc], -1)[0].double().numpy()
    path, latent = (
        naive_pooling(below(weights, f"encodings.{n}"), points) for n in ("first", "second")
    )
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(6, 16, generator=generator).double().numpy()
    mean, raw = np.split(latent, 2)
    _, means, stddevs = found._parts
    for sample, epsilon in enumerate(noise):
        z = mean + (0.1 + 0.9 / (1 + np.exp(-raw))) * epsilon
        expected = naive_decoder(below(weights, "decoder"), xt[0].double().numpy(), (path, z))
        for values, right in zip((means, stddevs), expected, strict=True):
            values = values[0, ..., sample].detach()
            np.testing.assert_allclose(values, right, rtol=0, atol=100 * FLOAT64)


@BOTH
def test_the_draws_are_fixed_by_the_seed_and_by_nothing_else(kind):
    xc, yc, xt = draw(1, 5, 2), draw(1, 5, 2, seed=1), draw(1, 4, 2, seed=2)
    process = small(kind)
    torch.manual_seed(3)
    first = process(xc, yc, xt)
    assert torch.equal(process(xc, yc, xt).mean, first.mean)
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(3)))
    other = small(kind, seed=0)
    other.config["seed"] = 2
    assert not torch.allclose(other(xc, yc, xt).mean, first.mean)
    assert first._parts[1].shape[-1] == 6


@BOTH
def test_the_bound_of_several_draws_is_a_loop(kind):
    process, batch = small(kind).double().train(), double(ragged_batch())
    torch.manual_seed(5)
    found = process.loss(batch)
    torch.manual_seed(5)
    noise, bounds = torch.randn(4, 3, 1, 16, dtype=torch.float64), []
    for i in range(3):
        xc, yc, xt, yt = alone(batch, i)
        x, y = torch.cat([xc, xt], 1), torch.cat([yc, yt], 1)
        path, prior = process.encodings(xc, yc, x, None)
        posterior = process.encodings.second(torch.cat([x, y], -1), None)
        (prior_mean, prior_raw), (mean, raw) = prior.chunk(2, -1), posterior.chunk(2, -1)
        prior = Normal(prior_mean, 0.1 + 0.9 / (1 + (-prior_raw).exp()))
        posterior, weights = Normal(mean, 0.1 + 0.9 / (1 + (-raw).exp())), []
        for epsilon in noise[:, i]:
            z = posterior.mean + posterior.stddev * epsilon
            predicted = process.decoder(x, (path, z))
            fit = Normal(predicted.mean, predicted.stddev).log_prob(y).sum()
            weights.append(fit + prior.log_prob(z).sum() - posterior.log_prob(z).sum())
        bounds.append(torch.stack(weights).exp().mean().log() / x.shape[1])
    expected = -torch.stack(bounds).mean()
    torch.testing.assert_close(found, expected, rtol=1e3 * FLOAT64, atol=0)


@BOTH
def test_the_bound_of_one_draw_is_reconstruction_minus_divergence(kind):
    process = small(kind, train_samples=1).double().train()
    batch = double(Batch(*alone(ragged_batch(), 0)))
    torch.manual_seed(5)
    found = process.loss(batch)
    torch.manual_seed(5)
    epsilon = torch.randn(1, 1, 16, dtype=torch.float64)
    x, y = torch.cat([batch.xc, batch.xt], 1), torch.cat([batch.yc, batch.yt], 1)
    path, prior = process.encodings(batch.xc, batch.yc, x, None)
    posterior = process.encodings.second(torch.cat([x, y], -1), None)
    m0, m = prior[..., :16], posterior[..., :16]
    s0, s = (0.1 + 0.9 * torch.sigmoid(v[..., 16:]) for v in (prior, posterior))
    divergence = ((s0 / s).log() + (s**2 + (m - m0) ** 2) / (2 * s0**2) - 0.5).sum()
    predicted = process.decoder(x, (path, m + s * epsilon))
    reconstruction = predicted.log_prob(y).mean()
    expected = -reconstruction + divergence / x.shape[1]
    torch.testing.assert_close(found, expected, rtol=1e3 * FLOAT64, atol=0)


@BOTH
def test_every_weight_learns_from_the_loss_and_padding_reaches_none(kind):
    for train_samples in (1, 4):
        process = small(kind, train_samples=train_samples).train()
        process.loss(ragged_batch()).backward()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in process.parameters())


@BOTH
def test_a_task_without_any_point_adds_nothing(kind):
    process, batch = small(kind).double().train(), double(ragged_batch())
    context, targets = batch.context_mask.clone(), batch.target_mask.clone()
    context[1:], targets[1:] = False, False
    torch.manual_seed(5)
    found = process.loss(Batch(batch.xc, batch.yc, batch.xt, batch.yt, context, targets))
    process.loss(batch)
    torch.manual_seed(5)
    first = [t[:1] for t in (batch.xc, batch.yc, batch.xt, batch.yt, context, targets)]
    noise = torch.randn(4, 3, 1, 16, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributions.normal._standard_normal", lambda *_, **__: noise[:, :1])
        alone_loss = process.loss(Batch(*first))
    torch.testing.assert_close(found, alone_loss / 3, rtol=1e3 * FLOAT64, atol=0)


def test_a_neural_process_streams_two_sums():
    process = NP()
    state = process.update(process.init((3,)), draw(3, 7, 1), draw(3, 7, 1, seed=1))
    assert isinstance(state, NPState) and state.nbytes == 3 * (2 * 128 * 8 + 8)


def test_an_ensemble_is_an_equal_mixture_of_whole_points():
    means, stddevs = mixture()
    ensemble, value = Ensemble(means, stddevs), draw(2, 4, 3, seed=2).double()
    parts = Independent(Normal(means.movedim(-1, 2), stddevs.movedim(-1, 2)), 1)
    expected = MixtureSameFamily(Categorical(logits=torch.zeros(2, 4, 3).double()), parts)
    found = ensemble.log_prob(value)
    torch.testing.assert_close(found, expected.log_prob(value), rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(ensemble.mean, expected.mean, rtol=FLOAT64, atol=FLOAT64)
    torch.testing.assert_close(ensemble.variance, expected.variance, rtol=FLOAT64, atol=FLOAT64)
    apart = GaussianMixture(torch.zeros_like(means), means, stddevs)
    assert not torch.allclose(apart.log_prob(value), found)
    single = Ensemble(means[:, :, :1], stddevs[:, :, :1]), value[:, :, :1]
    of_one = GaussianMixture(torch.zeros_like(means[:, :, :1]), means[:, :, :1], stddevs[:, :, :1])
    torch.testing.assert_close(
        single[0].log_prob(single[1]), of_one.log_prob(single[1]), rtol=FLOAT64, atol=FLOAT64
    )


def test_an_ensemble_of_predictions_takes_them_along_the_first_axis():
    means, stddevs = mixture()
    found = Ensemble.of(Gaussian(means.movedim(-1, 0), stddevs.movedim(-1, 0)))
    value = draw(2, 4, 3, seed=2).double()
    each = [
        Gaussian(m, s).log_prob(value)
        for m, s in zip(means.unbind(-1), stddevs.unbind(-1), strict=True)
    ]
    expected = torch.stack(each).exp().mean(0).log()
    torch.testing.assert_close(found.log_prob(value), expected, rtol=1e3 * FLOAT64, atol=FLOAT64)


def test_outputs_of_a_draw_come_from_one_component():
    means = torch.tensor([-5.0, 5.0]).expand(1, 1, 2, 2)
    ensemble = Ensemble(means, torch.full_like(means, 0.1))
    torch.manual_seed(0)
    draws = ensemble.sample((400,))
    assert draws.shape == (400, 1, 1, 2)
    signs = draws.sign().squeeze()
    assert torch.equal(signs[:, 0], signs[:, 1])
    assert 140 < int((signs[:, 0] > 0).sum()) < 260  # six standard deviations of a fair coin
    spread = (draws - 5.0 * draws.sign()).std()
    assert 0.09 < spread < 0.11


def test_an_ensemble_in_other_units_and_over_a_larger_batch():
    means, stddevs = mixture()
    ensemble, value = Ensemble(means, stddevs), draw(2, 4, 3, seed=2).double()
    loc, scale = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 2.0, 4.0])
    found = ensemble.affine(loc, scale).log_prob(loc + scale * value)
    expected = ensemble.log_prob(value) - math.log(4.0)
    torch.testing.assert_close(found, expected, rtol=1e2 * FLOAT64, atol=1e2 * FLOAT64)
    wide = ensemble.expand((5, 2, 4))
    assert isinstance(wide, Ensemble) and wide.sample().shape == (5, 2, 4, 3)
    torch.testing.assert_close(wide.log_prob(value)[3], ensemble.log_prob(value), rtol=0, atol=0)


@BOTH
def test_numbers_of_draws_below_one_are_refused(kind):
    for name in ("samples", "train_samples", "seed"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            kind(**{name: 0})
    process = small(kind).train()
    with pytest.raises(ValueError, match=r"y must be \(1, 3, 2\) to go with"):
        process.loss(Batch(draw(1, 3, 2), draw(1, 3, 1), draw(1, 3, 2), draw(1, 3, 1)))


@BOTH
def test_more_draws_come_nearer_to_the_mean_over_z(kind):
    points = draw(1, 5, 2), draw(1, 5, 2, seed=1), draw(1, 4, 2, seed=2)
    exact = small(kind, samples=20_000)
    exact.config["seed"] = 9
    with torch.no_grad():
        mean = exact(*points).mean
        few, many = (
            (small(kind, samples=n)(*points).mean - mean).square().mean() for n in (4, 1000)
        )
    assert many < few / 10


def double(batch: Batch) -> Batch:
    tensors = (t.double() for t in (batch.xc, batch.yc, batch.xt, batch.yt))
    return Batch(*tensors, batch.context_mask, batch.target_mask)
