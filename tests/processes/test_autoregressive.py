"""Blocks of targets: splitting batches, training on splits, and drawing, whatever the process."""

from dataclasses import replace

import pytest
import torch

from synopsis.processes import CMANPAND, AnchoredCMANPAND
from synopsis.processes import autoregressive as module
from synopsis.processes.autoregressive import BlockAutoregressive, split, sweep
from synopsis.tasks import Batch
from tests.reference import enliven
from tests.tolerances import PREDICTION

SMALL = {"dim_x": 2, "dim": 16, "heads": 4, "blocks": 2, "latents": 6}
CLOSE = {"rtol": 10 * PREDICTION, "atol": 10 * PREDICTION}  # of log-densities, sums of squares
KINDS = (CMANPAND, AnchoredCMANPAND)
NAN = float("nan")

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def small(kind, **options) -> BlockAutoregressive:
    return enliven(kind(**{**SMALL, **options})).eval()


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


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("masks", [False, True])
def test_a_split_moves_the_first_targets_into_the_context(masks):
    task = some(masks=masks)
    first, then = split(task, 3)
    same(torch.cat([first.xt, then.xt], 1), task.xt)
    same(torch.cat([first.yt, then.yt], 1), task.yt)
    assert first.xc is task.xc and first.context_mask is task.context_mask
    same(then.xc, torch.cat([task.xc, first.xt], 1))
    same(then.yc, torch.cat([task.yc, first.yt], 1))
    if masks:
        assert torch.equal(then.context_mask[:, -3:], task.target_mask[:, :3])
        assert torch.equal(then.target_mask, task.target_mask[:, 3:])
        half = replace(task, xc=draw(2, 9, 2), yc=draw(2, 9, 1), context_mask=None)
        assert split(half, 3)[1].context_mask[:, :9].all()


@pytest.mark.parametrize("masks", [False, True])
def test_a_sweep_orders_the_targets_along_a_direction_and_keeps_padding_last(masks):
    task, direction = some(masks=masks), draw(2, seed=5)
    swept = sweep(task, direction)
    assert swept.xc is task.xc and swept.context_mask is task.context_mask
    for row in range(2):
        real = slice(None) if task.target_mask is None else task.target_mask[row]
        places = (task.xt[row, real] @ direction).argsort()
        kept = len(places)
        same(swept.xt[row, :kept], task.xt[row, real][places])
        same(swept.yt[row, :kept], task.yt[row, real][places])
        if masks:
            assert swept.target_mask[row, :kept].all() and not swept.target_mask[row, kept:].any()
    if not masks:
        task = replace(task, xt=task.xt.masked_fill(torch.tensor([False, True]), NAN))  # not given
        same(sweep(task, torch.tensor([0.0, 1.0])).xt, task.xt)  # all in one place: order is kept


@every_kind
def test_some_splits_cut_through_a_sweep(kind, monkeypatch):
    monkeypatch.setattr(module, "_SPLIT", 1.1)
    monkeypatch.setattr(module, "_SWEPT", 1.1)
    process, task = small(kind).train(), some(targets=2, streams=1)
    process.requires_grad_(False)
    process.target_block = 1
    backwards = replace(task, xt=task.xt.flip(1), yt=task.yt.flip(1))
    expected = [-process.eval().log_likelihood(t).item() / 2 for t in (task, backwards)]
    assert abs(expected[0] - expected[1]) > 1e-4
    torch.manual_seed(0)
    process.train()
    found = [process.loss(task).item() for _ in range(20)]
    kinds = [min((abs(loss - e), i) for i, e in enumerate(expected))[1] for loss in found]
    assert set(kinds) == {0, 1}  # either way round
    assert found == pytest.approx(
        [expected[i] for i in kinds], rel=CLOSE["rtol"], abs=CLOSE["atol"]
    )


@every_kind
def test_the_loss_of_a_split_is_teacher_forcing_in_two_blocks(kind, monkeypatch):
    monkeypatch.setattr(module, "_SPLIT", 1.1)  # always
    monkeypatch.setattr(module, "_SWEPT", 0.0)
    process, task = small(kind).train(), some(targets=2)
    loss = process.loss(task)  # two targets split in one way only
    process.target_block = 1
    nats = process.eval().log_likelihood(task)
    torch.testing.assert_close(loss, -nats.sum() / 4, **CLOSE)
    process.target_block = None
    one_block = -process.log_likelihood(task).sum() / 4
    torch.testing.assert_close(process.loss(task), one_block, **CLOSE)  # evaluation never splits
    assert (loss - one_block).abs() > 1e-3
    process.train_splits = False
    torch.testing.assert_close(process.train().loss(task), one_block, **CLOSE)


@every_kind
def test_half_of_the_training_batches_are_split_and_the_rest_are_not(kind, monkeypatch):
    monkeypatch.setattr(module, "_SWEPT", 0.0)  # a sweep may turn the two around
    process, task = small(kind).train(), some(targets=2, streams=1)
    process.requires_grad_(False)
    torch.manual_seed(0)
    losses = [round(process.loss(task).item(), 4) for _ in range(60)]
    values = sorted(set(losses))
    assert len(values) == 2
    assert 15 < losses.count(values[0]) < 45


@every_kind
def test_functions_are_drawn_in_the_dtype_of_their_inputs_and_fed_back(kind):
    process, task = small(kind), some(targets=6)
    state = process.update(process.init((2,)), task.xc, task.yc)
    drawn = process.sample(state, task.xt, 4, torch.Generator().manual_seed(3), samples=2)
    assert drawn.shape == (2, 2, 6, 1)
    assert drawn.dtype is task.xt.dtype
    generator = torch.Generator().manual_seed(3)
    x, xc, yc = (v.repeat(2, 1, 1) for v in (task.xt, task.xc, task.yc))
    with torch.no_grad():
        first = process(xc, yc, x[:, :4])
        noise = torch.randn(4, first.noise, generator=generator).to(first.mean)
        y = first.from_noise(noise).to(x)
        then = process(torch.cat([xc, x[:, :4]], 1), torch.cat([yc, y], 1), x[:, 4:])
        noise = torch.randn(4, then.noise, generator=generator).to(then.mean)
        expected = torch.cat([y, then.from_noise(noise).to(x)], 1)
    torch.testing.assert_close(drawn.flatten(0, 1), expected, **CLOSE)


@every_kind
def test_blocks_are_at_least_one_target(kind):
    process = small(kind)
    with pytest.raises(ValueError, match="target_block is 0; it must be at least 1"):
        process.teacher_forced(process.init(), draw(1, 3, 2), draw(1, 3, 1), target_block=0)
