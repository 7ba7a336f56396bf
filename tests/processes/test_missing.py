"""Missing outputs: what a process is given instead of NaN, and that only what was observed is scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from synopsis.processes import (
    BANP,
    BNP,
    CMANP,
    CMANPAND,
    TNPA,
    TNPD,
    BayesianLinear,
    CholeskyGaussian,
    Ensemble,
    Gaussian,
    GaussianMixture,
    LastValue,
    LowRankGaussian,
    RunningMean,
    Standardized,
)
from synopsis.processes.base import PROCESSES, Process
from synopsis.processes.conditional import Points
from synopsis.processes.missing import filled
from synopsis.tasks import Batch
from tests.reference import enliven
from tests.tolerances import FLOAT32, FLOAT64, PREDICTION

NAN = torch.nan
SMALL = {"dim": 16, "heads": 4, "blocks": 2, "latents": 6}
DENSE = {"rtol": 1e4 * FLOAT64, "atol": 1e4 * FLOAT64}  # a covariance squares its condition
IN_UNITS = {"rtol": 10 * PREDICTION, "atol": 1e3 * PREDICTION}  # of outputs that are thousands
CLOSE = {"rtol": 10 * PREDICTION, "atol": 10 * PREDICTION}  # of log-densities, sums of squares


def draw(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=dtype)


def with_gaps(y: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """About every third output missing, and one point without any."""
    gaps = draw(*y.shape, seed=100 + seed) > 0.4
    gaps[:, 1] = True
    gaps[:, 2] = torch.arange(y.shape[-1]) > 0  # one point with the first output only
    return y.masked_fill(gaps, NAN)


def some(context=9, targets=7) -> Batch:
    parts = [draw(3, n, 2, seed=i) for i, n in enumerate((context, context, targets, targets))]
    return Batch(parts[0], with_gaps(parts[1]), parts[2], with_gaps(parts[3], seed=1))


# What goes in


def test_data_without_gaps_pass_through_untouched():
    process, y = CMANP(2, 2, **SMALL), draw(2, 5, 2)
    outputs, mask = process.observed(y)
    assert outputs is y and mask is None
    full = replace(some(), yc=draw(3, 9, 2), yt=draw(3, 7, 2))
    assert full.observed() is full


def test_infinity_is_a_value():
    y = torch.tensor([[[torch.inf, NAN], [-torch.inf, 1.0]]])
    assert filled(y).tolist() == [[[torch.inf, 0.0], [-torch.inf, 1.0]]]
    outputs, mask = CMANP(2, 2, **SMALL).observed(y)
    assert outputs.tolist() == filled(y).tolist() and mask.tolist() == [[True, True]]
    assert CMANP(2, 2, **SMALL).observed(y[:, 1:])[1] is None


@pytest.mark.parametrize("make", [CMANP, CMANPAND, TNPD], ids=lambda make: make.__name__)
def test_a_network_is_given_0_for_what_a_point_lacks(make):
    torch.manual_seed(0)
    process = make(2, 2, dim=16).eval()
    batch = some()
    lacks_all = batch.yc.isnan().all(-1)
    state = process.update(process.init((3,)), batch.xc, batch.yc)
    by_hand = process.update(process.init((3,)), batch.xc, filled(batch.yc), ~lacks_all)
    assert state.serialize() == by_hand.serialize()
    assert state.count.tolist() == (~lacks_all).sum(1).tolist()
    assert lacks_all.any(1).all()


@pytest.mark.parametrize(
    "process",
    [BayesianLinear(2, 2), RunningMean(2, 2), LastValue(2, 2), Standardized(RunningMean(2, 2), 4)],
    ids=lambda process: type(process).__name__,
)
def test_a_process_without_weights_is_not_shown_what_lacks_an_output(process):
    """It cannot have learned that 0 may mean nothing: the mean of 10 and "not observed" is not 5."""
    batch = some(context=20)
    state = process.update(process.init((3,)), batch.xc, batch.yc + 10.0)
    for stream in range(3):
        whole = ~batch.yc[stream].isnan().any(-1)
        assert whole.any() and not whole.all()
        x, y = batch.xc[stream, whole], batch.yc[stream, whole] + 10.0
        alone = process.update(process.init(), x[None], y[None])
        assert state.count[stream] == alone.count[0] == whole.sum()
        found, expected = (
            process.predict(state, batch.xt),
            process.predict(alone, batch.xt[stream, None]),
        )
        torch.testing.assert_close(found.mean[stream, 0], expected.mean[0, 0])


def test_padding_may_be_nan_and_is_not_taken_for_a_gap():
    process, batch, real = enliven(CMANP(2, 2, **SMALL)).eval(), some(), draw(3, 9, seed=8) > 0
    y = draw(3, 9, 2, seed=5)
    clean = process(batch.xc, y, batch.xt, real).mean
    dirty = process(batch.xc, y.masked_fill(~real.unsqueeze(-1), NAN), batch.xt, real).mean
    assert torch.equal(clean, dirty)


def test_nobody_can_look_inside_vmap_and_compile_and_answers_are_the_same():
    process, y = CMANP(2, 2, **SMALL), with_gaps(draw(3, 5, 2))
    expected = process.observed(y)
    each = torch.vmap(lambda one: process.observed(one[None]))(y)
    compiled = torch.compile(process.observed, backend="eager", fullgraph=True)(y)
    for found in ([part.squeeze(1) for part in each], compiled):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    whole = torch.vmap(lambda one: process.observed(one[None])[1])(draw(3, 5, 2))
    assert whole.all()


# The door


def test_the_door_is_in_front_of_whatever_a_subclass_brings():
    class Sees:
        """A mixin, which is no process."""

        def score(self, batch):
            """What it saw."""
            return batch

    class Spy(Sees, Process):
        def __init__(self, dim_x=1, dim_y=2):
            super().__init__(dim_x=dim_x, dim_y=dim_y)
            self.weight = torch.nn.Parameter(torch.ones(1))

        def update(self, state, xc, yc, mask=None, *, more=None):
            """What it was given."""
            return yc, mask, more

    class Again(Spy):
        pass

    for name in ("Spy", "Again"):
        del PROCESSES[name]
    batch, spy = some(), Again()
    lacks_all = batch.yc.isnan().all(-1)
    y, mask, more = spy.update(None, xc=batch.xc, yc=batch.yc, more=3)
    assert torch.equal(y, filled(batch.yc)) and torch.equal(mask, ~lacks_all) and more == 3
    assert Spy.update.__doc__ == "What it was given." and Spy.score.__doc__ == "What it saw."
    assert torch.equal(spy.score(batch).target_mask, ~batch.yt.isnan().all(-1))
    assert Sees().score(batch) is batch  # a mixin alone stays as it was
    assert Again.update is Spy.update  # guarded once


# What is scored


def marginal_of(kind, mean, spread):
    if kind == "gaussian":
        return Gaussian(mean, spread)
    means, spreads = (torch.stack([t, t + 0.5, t * 2.0], -1) for t in (mean, spread))
    return Ensemble(means, spreads.abs()) if kind == "ensemble" else mixture(means, spreads.abs())


def mixture(means, spreads):
    return GaussianMixture(means.sin(), means, spreads)


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "ensemble"])
def test_a_density_is_that_of_the_observed_outputs(kind):
    mean, spread = draw(2, 4, 3, seed=1), draw(2, 4, 3, seed=2).exp()
    y = draw(2, 4, 3, seed=3)
    for gone in ([1], [0, 2], []):
        kept = [i for i in range(3) if i not in gone]
        missing = y.clone()
        missing[..., gone] = NAN
        found = marginal_of(kind, mean, spread).log_prob(missing)
        expected = marginal_of(kind, mean[..., kept], spread[..., kept]).log_prob(y[..., kept])
        torch.testing.assert_close(found, expected, rtol=FLOAT32, atol=10 * FLOAT32)
    assert marginal_of(kind, mean, spread).log_prob(y * NAN).abs().max() < FLOAT32


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "ensemble"])
def test_what_is_missing_has_no_gradient_even_under_small_spreads(kind):
    mean = draw(2, 4, 3, seed=1).requires_grad_()
    spread = torch.full((2, 4, 3), 1e-6).requires_grad_()
    y = mean.detach().clone()
    y[..., 1] = NAN
    distribution = marginal_of(kind, mean, spread)
    distribution.log_prob(y).sum().backward()
    for part in (mean, spread):
        assert not part.grad[..., 1].any() and part.grad[..., 1].isfinite().all()


def test_per_output_scores_of_what_is_missing_are_nan():
    y = torch.tensor([[[0.5, NAN]]])
    predicted = Gaussian(torch.zeros(1, 1, 2), torch.ones(1, 1, 2))
    for score in (predicted.crps(y), predicted.cdf(y)):
        assert score.isnan().tolist() == [[[False, True]]]


def joint_of(kind, real=None, requires_grad=False):
    mean, factor = (
        draw(2, 4, 2, seed=1, dtype=torch.float64),
        draw(2, 8, 3, seed=2, dtype=torch.float64),
    )
    factor.requires_grad_(requires_grad)
    if kind == "low-rank":
        own = 0.1 * draw(2, 4, 2, seed=3, dtype=torch.float64).exp()
        return LowRankGaussian(mean, factor, own, real), factor
    lower = (factor @ factor.mT).tril(-1) + torch.diag_embed(0.1 + factor.square().sum(-1))
    return CholeskyGaussian(mean, lower, real), factor


@pytest.mark.parametrize("kind", ["low-rank", "cholesky"])
@settings(max_examples=30, deadline=None)
@given(
    gaps=st.lists(st.booleans(), min_size=16, max_size=16),
    padding=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_a_joint_density_is_the_exact_marginal(kind, gaps, padding):
    real = ~torch.tensor(padding).reshape(2, 4)
    joint, y = joint_of(kind, real)[0], draw(2, 4, 2, seed=4, dtype=torch.float64)
    missing = torch.tensor(gaps).reshape(2, 4, 2)
    found = joint.log_prob(y.masked_fill(missing, NAN))
    kept = (real.unsqueeze(-1) & ~missing).flatten(1).numpy()
    covariance = joint.covariance_matrix.numpy()
    for i, some_kept in enumerate(kept):
        at = np.flatnonzero(some_kept)
        expected = 0.0
        if len(at):
            normal = stats.multivariate_normal(
                joint.mean[i].flatten().numpy()[at], covariance[i][np.ix_(at, at)]
            )
            expected = normal.logpdf(y[i].flatten().numpy()[at])
        assert found[i].item() == pytest.approx(expected, rel=1e6 * FLOAT64, abs=1e6 * FLOAT64)


@pytest.mark.parametrize("kind", ["low-rank", "cholesky"])
def test_its_gradient_is_that_of_the_dense_formula(kind):
    y = with_gaps(draw(2, 4, 2, seed=4, dtype=torch.float64))
    joint, factor = joint_of(kind, requires_grad=True)
    joint.log_prob(y).sum().backward()
    found, factor.grad = factor.grad, None
    total = torch.zeros((), dtype=torch.float64)
    for i in range(2):
        at = (~y[i].isnan()).flatten()
        covariance = joint_of_again(kind, factor).covariance_matrix[i][at][:, at]
        mean, value = joint.mean[i].flatten()[at], y[i].flatten()[at]
        total = total + torch.distributions.MultivariateNormal(mean, covariance).log_prob(value)
    total.backward()
    torch.testing.assert_close(found, factor.grad, **DENSE)


def joint_of_again(kind, factor):
    """The same distribution from this factor, as a fresh graph."""
    joint = joint_of(kind)[0]
    if kind == "low-rank":
        return LowRankGaussian(joint.mean, factor, joint.own)
    lower = (factor @ factor.mT).tril(-1) + torch.diag_embed(0.1 + factor.square().sum(-1))
    return CholeskyGaussian(joint.mean, lower)


@pytest.mark.parametrize("kind", ["low-rank", "cholesky"])
def test_many_values_each_with_gaps_of_its_own(kind):
    joint, values = joint_of(kind)[0], draw(5, 2, 4, 2, seed=6, dtype=torch.float64)
    values = torch.stack([with_gaps(value, seed=i) for i, value in enumerate(values)])
    found = joint.log_prob(values)
    for i, value in enumerate(values):
        torch.testing.assert_close(found[i], joint.log_prob(value))


@pytest.mark.parametrize("kind", ["low-rank", "cholesky"])
def test_a_mean_that_is_nan_is_a_fault_and_not_a_gap(kind):
    joint, _ = joint_of(kind)
    joint._mean = joint.mean * NAN
    assert joint.log_prob(with_gaps(draw(2, 4, 2, dtype=torch.float64))).isnan().all()
    one_by_one = Gaussian(torch.full((1, 1, 2), NAN), torch.ones(1, 1, 2))
    assert one_by_one.log_prob(torch.tensor([[[0.0, NAN]]])).isnan().all()


# Losses, and what is fed back


def test_the_loss_is_per_target_that_has_any_output():
    process, batch = enliven(CMANP(2, 2, **SMALL)).eval(), some()
    predicted = process(batch.xc, batch.yc, batch.xt)
    has_any = ~batch.yt.isnan().all(-1)
    scores = stats.norm.logpdf(
        batch.yt.numpy(), predicted.mean.detach().numpy(), predicted.stddev.detach().numpy()
    )
    expected = -np.nansum(scores) / has_any.sum().item()
    assert not has_any.all()
    assert process.loss(batch).item() == pytest.approx(expected, rel=PREDICTION)


def test_the_first_target_fed_back_is_a_context_point_with_the_same_gaps():
    """The chain rule: p(all) = p(first) · p(others | first), whatever the first lacks."""
    process, batch = enliven(CMANPAND(2, 2, **SMALL, target_block=1)).eval(), some()
    for first in range(3):  # whole or not, without any output, with the first output only
        asked = replace(batch, xt=batch.xt[:, first:], yt=batch.yt[:, first:])
        alone = replace(asked, xt=asked.xt[:, :1], yt=asked.yt[:, :1])
        points = (asked.xc, asked.yc, alone.xt, alone.yt)
        xc, yc = (torch.cat([points[i], points[i + 2]], dim=1) for i in (0, 1))
        others = Batch(xc, yc, asked.xt[:, 1:], asked.yt[:, 1:])
        with torch.no_grad():
            whole, parts = (
                process.log_likelihood(asked),
                process.log_likelihood(alone) + process.log_likelihood(others),
            )
        torch.testing.assert_close(whole, parts, **CLOSE)
        if first == 1:
            assert not process.log_likelihood(alone).any()


def test_targets_of_tnp_a_are_shown_nothing_of_what_is_missing():
    torch.manual_seed(0)
    process, batch = enliven(TNPA(2, 2, dim=16, layers=2)).eval(), some()
    context = ~batch.yc.isnan().all(-1)
    real = ~batch.yt.isnan().all(-1)
    shown = Batch(batch.xc, filled(batch.yc), batch.xt, filled(batch.yt), context, real)
    with torch.no_grad():
        found, zeros = (process.target_log_likelihood(b) for b in (batch, shown))
    whole, lacks_all = ~batch.yt.isnan().any(-1), ~real
    torch.testing.assert_close(found[whole], zeros[whole])  # given the same things: 0 and no point
    assert not found[lacks_all].any() and lacks_all.any()
    halves = ~whole & real
    assert halves.any() and not torch.isclose(found[halves], zeros[halves]).any()  # 0 is not scored


def test_teacher_forcing_of_a_target_without_outputs_is_without_it():
    process, batch = enliven(CMANPAND(2, 2, **SMALL)).eval(), some()
    state = process.update(process.init((3,)), batch.xc, batch.yc)
    kept = [i for i in range(7) if i != 1]
    for block in (3, None):
        missing = process.teacher_forced(state, batch.xt, batch.yt, None, block)
        real = torch.arange(7).expand(3, -1) != 1
        padded = process.teacher_forced(state, batch.xt, filled(batch.yt), real, target_block=block)
        assert missing.isfinite().all()
        if block is None:
            without = process.teacher_forced(state, batch.xt[:, kept], batch.yt[:, kept])
            torch.testing.assert_close(missing, without, **CLOSE)
        assert not torch.allclose(missing, padded, **CLOSE)  # 0 is a value, a gap is none


@pytest.mark.parametrize("kind", [BNP, BANP], ids=["bnp", "banp"])
def test_bootstrapped_contexts_have_the_gaps_of_the_context(kind):
    torch.manual_seed(0)
    process, batch = kind(2, 2, dim=16, samples=6).eval(), some()
    y = batch.yc[:, [0, 2, 3, 4]]  # without the point that has nothing
    draws = torch.rand(2, 6, 3, 4, dtype=torch.float64)
    new = process.bootstrapped_outputs(Points(batch.xc[:, :4], y, None), draws)
    missing = y.isnan().expand_as(new)
    assert missing.any() and not new[missing].any() and bool(new[~missing].all())
    state = process.update(process.init((3,)), batch.xc, batch.yc)
    assert torch.equal(state.y.isnan().any(-1), state.real & state.y.isnan().any(-1))
    zeros = process.update(
        process.init((3,)), batch.xc, filled(batch.yc), ~batch.yc.isnan().all(-1)
    )
    found, other = (process.predict(s, batch.xt).mean for s in (state, zeros))
    assert not torch.allclose(found, other)  # a residual of 0 observed is not one of nothing


def test_units_are_learned_from_what_was_observed():
    """In the units of y 0 is no mean: gaps go through the scaling, and are filled behind it."""
    torch.manual_seed(0)
    inner = enliven(CMANP(2, 2, **SMALL)).eval()
    process, batch = Standardized(inner, warmup=6).eval(), some(context=20)
    y = batch.yc * torch.tensor([3.0, 50.0]) + torch.tensor([100.0, -2e4])
    state = process.update(process.init((3,)), batch.xc, y)
    assert state.fixed.all() and state.count.tolist() == (~y.isnan().all(-1)).sum(1).tolist()
    for stream in range(3):
        kept = ~y[stream].isnan().all(-1)
        x, values = (v[stream][kept].double().numpy() for v in (batch.xc, y))
        location, scale = np.nanmean(values[:6], 0), np.nanstd(values[:6], 0)
        shift, width = x[:6].mean(0), x[:6].std(0)
        points = (torch.tensor((x - shift) / width), torch.tensor((values - location) / scale))
        alone = inner.update(inner.init(), *(p.float()[None] for p in points))
        asked = torch.tensor((batch.xt[stream].double().numpy() - shift) / width).float()[None]
        expected = inner.predict(alone, asked).affine(torch.tensor(location), torch.tensor(scale))
        found = process.predict(state, batch.xt)
        torch.testing.assert_close(found.mean[stream], expected.mean[0], **IN_UNITS)
    singles = process.init((3,))
    for i in range(20):
        singles = process.update(singles, batch.xc[:, i : i + 1], y[:, i : i + 1])
    again = process.predict(singles, batch.xt)
    torch.testing.assert_close(again.mean, process.predict(state, batch.xt).mean)
    few = process.update(process.init((3,)), batch.xc[:, :4], y[:, :4])
    assert process.predict(few, batch.xt).mean.isfinite().all()
