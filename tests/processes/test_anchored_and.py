"""AnchoredCMANPAND: it starts as the regressions' joint posterior, and is one process in blocks of any size."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal

from synopsis.processes import AnchoredCMANPAND, AnchoredState, base
from synopsis.tasks import Batch
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.testing import PROCESS_CHECKS, Subject
from tests.reference import enliven
from tests.tolerances import FLOAT64, PREDICTION, UNTRAINED

SMALL = {"dim_x": 2, "dim": 16, "heads": 4, "blocks": 2, "latents": 6}
CLOSE = {"rtol": 10 * PREDICTION, "atol": 10 * PREDICTION}  # of log-densities, sums of squares
NAN = float("nan")


def small(seed: int = 0, **options) -> AnchoredCMANPAND:
    return enliven(AnchoredCMANPAND(**{**SMALL, **options}), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some(context=9, targets=7, streams=2, masks=False) -> Batch:
    sizes = ((context, 2), (context, 1), (targets, 2), (targets, 1))
    parts = [draw(streams, *size, seed=i) for i, size in enumerate(sizes)]
    if not masks:
        return Batch(*parts)
    seen, real = (draw(streams, n, seed=n) > -0.5 for n in (context, targets))
    seen[-1], real[-1] = False, False
    hidden = (seen, seen, real, real)
    return Batch(
        *(p.masked_fill(~m.unsqueeze(-1), NAN) for p, m in zip(parts, hidden, strict=True)),
        context_mask=seen,
        target_mask=real,
    )


def doubled(task: Batch) -> Batch:
    return Batch(*(getattr(task, name).double() for name in ("xc", "yc", "xt", "yt")))


@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    torch.manual_seed(0)
    check(Subject.process(AnchoredCMANPAND(**SMALL)))


def test_the_configuration_builds_it_again():
    options = {"target_block": 5, "train_splits": False, "per_target": False}
    process = AnchoredCMANPAND(**SMALL, **options)
    assert process.config == {**SMALL, "dim_y": 1, **options}
    again = base.build({"process": "AnchoredCMANPAND", "arguments": process.config})
    assert again.config == process.config
    assert (again.target_block, again.train_splits, again.per_target) == (5, False, False)
    with pytest.raises(ValueError, match="predicts one output, not 2"):
        AnchoredCMANPAND(**SMALL, dim_y=2)


def regressions(process, task):
    """Their joint density per target, from a dense matrix."""
    state = process.update(process.init((len(task.xc),)), task.xc, task.yc)
    experts = process.regression.experts(state.regression, task.xt)
    anchor, covariance = experts.moments(), experts.covariance()
    own = covariance.noise.square()[:, None].expand(-1, task.xt.shape[1])
    dense = covariance.factor @ covariance.factor.mT + torch.diag_embed(own)
    joint = MultivariateNormal(anchor.mean[..., 0], dense)
    return joint.log_prob(task.yt[..., 0].double()) / task.xt.shape[1]


def test_before_training_it_is_the_regressions_joint_posterior():
    torch.manual_seed(0)
    task = GaussianProcessTask(targets=32, oracle=False).sample(16, torch.Generator())
    process = AnchoredCMANPAND(dim_x=1).eval()
    found = process.log_likelihood(task) / 32
    expected = regressions(process, task)
    assert (found - expected).abs().max() < UNTRAINED
    marginal = process(task.xc, task.yc, task.xt).marginals.log_prob(task.yt.double()).mean()
    assert found.mean() > marginal + 10 * UNTRAINED  # together is more than each by itself


def test_with_a_silent_network_nothing_but_the_floor_differs():
    process, task = small(), some()
    with torch.no_grad():
        for layers in (process.head.mean, process.head.scales, process.head.project):
            for parameter in layers[-1].parameters():
                parameter.zero_()
    process.head.floor = 0.0
    found = process.log_likelihood(task) / 7
    torch.testing.assert_close(
        found, regressions(process, task), rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
    )


def test_the_network_moves_mean_gate_noise_and_factor_in_units_of_the_anchor():
    process, task = small(), some(streams=1)
    with torch.no_grad():
        for layers in (process.head.mean, process.head.scales, process.head.project):
            layers[-1].weight.zero_()
        process.head.mean[-1].bias.fill_(0.5)
        process.head.scales[-1].bias.copy_(torch.tensor([2.0, 3.0]).log())
        process.head.project[-1].bias.fill_(0.25)
    state = process.update(process.init(), task.xc, task.yc)
    experts = process.regression.experts(state.regression, task.xt)
    anchor, covariance = experts.moments(), experts.covariance()
    found, s = process.predict(state, task.xt), anchor.stddev
    torch.testing.assert_close(found.mean, anchor.mean + 0.5 * s, **CLOSE)
    own = 9 * covariance.noise.square() * torch.eye(7) + 1e-6 * torch.diag_embed(s[..., 0].square())
    shared = 4 * covariance.factor @ covariance.factor.mT + 20 * 0.25**2 * s @ s.mT
    torch.testing.assert_close(found.covariance_matrix, shared + own, **CLOSE)


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_teacher_forcing_is_the_chain_rule(block):
    process, task = small(target_block=block), some()
    expected, xc, yc = torch.zeros(2), task.xc, task.yc
    for start in range(0, 7, block):
        x, y = (v[:, start : start + block] for v in (task.xt, task.yt))
        expected = expected + process(xc, yc, x).log_prob(y)
        xc, yc = torch.cat([xc, x], 1), torch.cat([yc, y], 1)
    nats, marginals = process.score(task)
    torch.testing.assert_close(nats, expected, **CLOSE)
    given_the_context = process(task.xc, task.yc, task.xt)
    torch.testing.assert_close(marginals.stddev, given_the_context.stddev, **CLOSE)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("block", [None, 3])
def test_ragged_tasks_score_as_each_alone(training, block):
    process, task = small(target_block=block).train(training), some(masks=True)
    found = process.log_likelihood(task)
    assert found[-1] == 0.0
    seen, real = task.context_mask[0], task.target_mask[0]
    state = process.update(process.init(), task.xc[:1, seen], task.yc[:1, seen])
    expected = torch.zeros(1)
    for start in range(0, 7, block or 7):
        piece = torch.arange(7)[start : start + (block or 7)]
        piece = piece[real[piece]]
        x, y = task.xt[:1, piece], task.yt[:1, piece]
        expected = expected + process.predict(state, x).log_prob(y)
        state = process.update(state, x, y)
    torch.testing.assert_close(found[:1], expected.to(found), **CLOSE)
    loss = process.loss(task)
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in process.parameters())


def test_nothing_seen_one_target_and_no_targets():
    process = small()
    state = process.init((2,))
    one = process.predict(state, draw(2, 1, 2))
    assert one.log_prob(draw(2, 1, 1)).isfinite().all()
    assert process.teacher_forced(state, draw(2, 0, 2), draw(2, 0, 1)).tolist() == [0.0, 0.0]
    assert process.sample(state, draw(2, 0, 2), samples=3).shape == (3, 2, 0, 1)
    for task in (some(context=0), some(targets=1)):
        for training in (False, True):
            assert process.train(training).loss(task).isfinite()


@pytest.mark.parametrize("training", [False, True])
def test_inputs_that_are_not_given(training):
    process, task = small().train(training), some()
    hidden = [v.clone() for v in (task.xc, task.xt)]
    for x in hidden:
        x[:, ::2, 1] = NAN
    partly = replace(task, xc=hidden[0], xt=hidden[1])
    found = process.log_likelihood(partly)
    assert found.isfinite().all()
    assert (found - process.log_likelihood(task)).abs().min() > 1e-3
    process.loss(partly).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in process.parameters())


def test_targets_may_come_in_any_order():
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    process, task = small().double(), doubled(some())
    turned = replace(task, xt=task.xt[:, order], yt=task.yt[:, order])
    nats, again = (process.log_likelihood(t) for t in (task, turned))
    torch.testing.assert_close(again, nats, rtol=1e4 * FLOAT64, atol=1e4 * FLOAT64)
    one, other = (process(t.xc, t.yc, t.xt) for t in (task, turned))
    torch.testing.assert_close(other.mean, one.mean[:, order], rtol=FLOAT64, atol=FLOAT64)
    whole = one.covariance_matrix[:, order][:, :, order]
    torch.testing.assert_close(
        other.covariance_matrix, whole, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64
    )


def test_targets_may_repeat():
    process, task = small().double(), doubled(some())
    xt, yt = task.xt[:, :1].repeat(1, 9, 1), task.yt[:, :1].repeat(1, 9, 1)
    predicted = process(task.xc, task.yc, xt)
    covariance = predicted.covariance_matrix
    expected = MultivariateNormal(predicted.mean[..., 0], covariance).log_prob(yt[..., 0])
    torch.testing.assert_close(
        predicted.log_prob(yt), expected, rtol=1e4 * FLOAT64, atol=1e4 * FLOAT64
    )
    apart = covariance - torch.diag_embed(predicted.own[..., 0].square())
    torch.testing.assert_close(
        apart, apart[:, :1, :1].expand_as(apart), rtol=1e4 * FLOAT64, atol=0.0
    )


def test_the_state_is_of_one_size_and_goes_through_the_disk():
    process, sizes = small(), set()
    for points in (0, 10, 1000):
        state = process.update(process.init(), draw(1, points, 2), draw(1, points, 1))
        sizes.add(state.nbytes)
    assert len(sizes) == 1
    again, xt = AnchoredState.deserialize(state.serialize()), draw(1, 5, 2, seed=3)
    one, other = (process.predict(s, xt).covariance_matrix for s in (state, again))
    assert torch.equal(one, other)


def test_learns_its_task():
    torch.manual_seed(0)
    process = AnchoredCMANPAND(dim_x=1, dim=16, heads=2, blocks=2, latents=8)
    task = GaussianProcessTask(targets=16, oracle=False)
    fixed = task.sample(64, torch.Generator().manual_seed(99))
    before = process.eval().log_likelihood(fixed).mean() / 16
    optimizer = torch.optim.Adam(process.train().parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        process.loss(task.sample(16, generator)).backward()
        optimizer.step()
    after = process.eval().log_likelihood(fixed).mean() / 16
    assert after > before + 0.02
