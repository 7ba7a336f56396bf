"""CMANP-AND: its published size and procedure, and coherent samples."""

from dataclasses import replace

import pytest
import torch

from synopsis.processes import CMANP, base
from synopsis.processes.cmanp_and import CMANPAND
from synopsis.tasks import Batch
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.testing import PROCESS_CHECKS, Subject
from tests.reference import enliven
from tests.tolerances import FLOAT64, PREDICTION

SMALL = {"dim": 16, "heads": 4, "blocks": 2, "latents": 6}
CLOSE = {"rtol": 10 * PREDICTION, "atol": 10 * PREDICTION}  # of log-densities, sums of squares
NAN = float("nan")
HEADS = ["low-rank", "cholesky", "bounded-cholesky"]


def small(seed: int = 0, **options) -> CMANPAND:
    return enliven(CMANPAND(**{"dim_x": 2, "dim_y": 2, **SMALL, **options}), seed).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some(context=9, targets=7, streams=2, seed=0, masks=False) -> Batch:
    parts = [
        draw(streams, points, 2, seed=seed + i)
        for i, points in enumerate((context, context, targets, targets))
    ]
    if not masks:
        return Batch(*parts)
    seen, real = (draw(streams, n, seed=seed + n) > -0.5 for n in (context, targets))
    seen[-1], real[-1] = False, False
    hidden = (seen, seen, real, real)
    return Batch(
        *(p.masked_fill(~m.unsqueeze(-1), NAN) for p, m in zip(parts, hidden, strict=True)),
        context_mask=seen,
        target_mask=real,
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("check", PROCESS_CHECKS, ids=lambda check: check.__name__)
def test_contract(check, head):
    torch.manual_seed(0)
    check(Subject.process(CMANPAND(dim_x=2, dim_y=2, **SMALL, head=head)))


@pytest.mark.parametrize(
    ("sizes", "published", "unused"),
    [
        ({}, 1_460_951, 8_578),
        ({"dim_x": 2}, 1_461_079, 8_578),
        ({"dim_x": 2, "dim_y": 3}, 1_467_141, 9_094),
    ],
    ids=["gp", "emnist", "celeba"],
)
def test_the_published_number_of_parameters_that_are_used(sizes, published, unused):
    process = CMANPAND(**sizes, head="cholesky")
    assert sum(p.numel() for p in process.parameters()) == published - unused
    assert sum(p.numel() for p in CMANP(**sizes).head.parameters()) == unused


def test_the_configuration_builds_it_again():
    options = {"head": "cholesky", "target_block": 5, "train_splits": False, "per_target": False}
    process = CMANPAND(**SMALL, **options)
    assert process.config == {"dim_x": 1, "dim_y": 1, **SMALL, "residual": "raw", **options}
    again = base.build({"process": "CMANPAND", "arguments": process.config})
    assert again.config == process.config
    assert (again.target_block, again.train_splits, again.per_target) == (5, False, False)
    with pytest.raises(ValueError, match="unknown joint head 'gaussian'"):
        CMANPAND(**SMALL, head="gaussian")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_teacher_forcing_is_the_loop_written_by_hand(head, block):
    process, task = small(head=head), some()
    state = process.update(process.init((2,)), task.xc, task.yc)
    expected, xc, yc = torch.zeros(2), task.xc, task.yc
    for start in range(0, 7, block):
        x, y = (v[:, start : start + block] for v in (task.xt, task.yt))
        expected = expected + process(xc, yc, x).log_prob(y)
        xc, yc = torch.cat([xc, x], 1), torch.cat([yc, y], 1)
    found = process.teacher_forced(state, task.xt, task.yt, target_block=block)
    torch.testing.assert_close(found, expected, **CLOSE)
    process.target_block = block
    nats, marginals = process.score(task)
    torch.testing.assert_close(nats, found, **CLOSE)
    torch.testing.assert_close(process.log_likelihood(task), found, **CLOSE)
    given_the_context = process(task.xc, task.yc, task.xt)
    torch.testing.assert_close(marginals.stddev, given_the_context.stddev, **CLOSE)
    torch.testing.assert_close(marginals.mean, given_the_context.mean, **CLOSE)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("block", [None, 3])
def test_ragged_tasks_score_as_each_alone(head, training, block):
    process, task = small(head=head, target_block=block).train(training), some(masks=True)
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
    torch.testing.assert_close(found[:1], expected, **CLOSE)
    loss = process.loss(task)
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in process.parameters())


def test_nothing_seen_one_target_and_no_targets():
    process = small()
    state = process.init((2,))
    one = process.predict(state, draw(2, 1, 2))
    assert one.log_prob(draw(2, 1, 2, seed=1)).isfinite().all()
    assert process.teacher_forced(state, draw(2, 0, 2), draw(2, 0, 2)).tolist() == [0.0, 0.0]
    assert process.sample(state, draw(2, 0, 2), samples=3).shape == (3, 2, 0, 2)
    for task in (some(context=0), some(targets=1)):
        for training in (False, True):
            assert process.train(training).loss(task).isfinite()


def test_blocks_are_at_least_one_target():
    process = small()
    with pytest.raises(ValueError, match="target_block is 0; it must be at least 1"):
        process.sample(process.init(), draw(1, 3, 2), target_block=0)


def test_targets_may_come_in_any_order_within_a_block_of_the_low_rank_head():
    order = torch.tensor([3, 0, 6, 5, 1, 2, 4])
    task = some()
    turned = replace(task, xt=task.xt[:, order], yt=task.yt[:, order])
    for head in HEADS:
        process = small(head=head).double()
        pair = [
            process.log_likelihood(
                Batch(*(getattr(t, n).double() for n in ("xc", "yc", "xt", "yt")))
            )
            for t in (task, turned)
        ]
        agree = torch.allclose(*pair, rtol=1e4 * FLOAT64, atol=1e4 * FLOAT64)
        assert agree is (head == "low-rank")  # the papers' covariance depends on the order


def test_a_sample_in_one_block_has_the_predicted_moments():
    process = small()
    task = some(targets=3, streams=1)
    state = process.update(process.init(), task.xc, task.yc)
    before = state.serialize()
    number = 5_000
    with torch.no_grad():
        predicted = process.predict(state, task.xt)
    drawn = process.sample(state, task.xt, None, torch.Generator().manual_seed(0), number)
    assert drawn.shape == (number, 1, 3, 2)
    assert not drawn.requires_grad
    assert state.serialize() == before
    error = (drawn.mean(0) - predicted.mean) / predicted.stddev
    assert float(error.abs().max()) < 5 / number**0.5
    flat = ((drawn - predicted.mean) / predicted.stddev).flatten(2)[:, 0]
    spread = predicted.stddev.flatten()
    correlation = predicted.covariance_matrix[0] / spread / spread[:, None]
    found = flat.T @ flat / number
    assert float((found - correlation).abs().max()) < 5 * (2 / number) ** 0.5
    assert float((correlation - torch.eye(6)).abs().max()) > 0.1  # they are not independent


def test_a_sample_in_blocks_is_fed_back_and_scores_as_itself():
    process = small()
    task = some(streams=2, targets=6)
    state = process.update(process.init((2,)), task.xc, task.yc)
    generator = torch.Generator().manual_seed(3)
    found = process.sample(state, task.xt, 4, generator, samples=2)
    generator = torch.Generator().manual_seed(3)
    again = process.sample(state, task.xt, 4, generator, samples=2)
    assert torch.equal(found, again)
    generator = torch.Generator().manual_seed(3)
    x = task.xt.repeat(2, 1, 1)
    xc, yc = task.xc.repeat(2, 1, 1), task.yc.repeat(2, 1, 1)
    with torch.no_grad():
        first = process(xc, yc, x[:, :4])
        y = first.from_noise(torch.randn(4, first.noise, generator=generator))
        then = process(torch.cat([xc, x[:, :4]], 1), torch.cat([yc, y], 1), x[:, 4:])
        expected = torch.cat(
            [y, then.from_noise(torch.randn(4, then.noise, generator=generator))], 1
        )
    torch.testing.assert_close(found.flatten(0, 1), expected, **CLOSE)


def test_samples_from_torchs_own_generator_differ_and_follow_the_seed():
    process, xt = small(), draw(1, 4, 2)
    torch.manual_seed(0)
    one, other = (process.sample(process.init(), xt) for _ in range(2))
    assert not torch.equal(one, other)
    torch.manual_seed(0)
    assert torch.equal(process.sample(process.init(), xt), one)


def test_learns_its_task():
    """From −1.06 nats per target towards −0.68, what the prior without context is worth, and beyond."""
    torch.manual_seed(0)
    process = CMANPAND(dim=16, heads=2, blocks=2, latents=8)
    task = GaussianProcessTask(targets=16)
    fixed = task.sample(32, torch.Generator().manual_seed(99))
    before = process.eval().log_likelihood(fixed).mean() / 16
    optimizer = torch.optim.Adam(process.train().parameters(), 5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        process.loss(task.sample(16, generator)).backward()
        optimizer.step()
    after = process.eval().log_likelihood(fixed).mean() / 16
    assert after > before + 0.2
