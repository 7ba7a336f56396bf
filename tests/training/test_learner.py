import math
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from synopsis.processes import CMANP
from synopsis.tasks.gaussian_process import GaussianProcessTask
from synopsis.training.experiment import Training
from synopsis.training.learner import (
    MOST_SKIPPED_IN_A_ROW,
    Learner,
    MovingAverage,
    TrainingDiverged,
)
from synopsis.training.pieces import pieces
from tests.tolerances import AUTOCAST, FLOAT32, FLOAT64


def small() -> CMANP:
    torch.manual_seed(0)
    return CMANP(dim=8, heads=2, blocks=1, latents=4)


def wide(seed: int = 0) -> CMANP:
    """With matrices wide enough for Muon."""
    torch.manual_seed(seed)
    return CMANP(dim=16, heads=2, blocks=1, latents=4)


def learner(process: CMANP, **settings) -> Learner:
    return Learner(process, Training(**settings), Accelerator())


def batch(seed: int = 0):
    return GaussianProcessTask(max_points=12).sample(4, torch.Generator().manual_seed(seed))


def broken():
    drawn = batch()
    drawn.yt[0, 0] = math.inf
    return drawn


def flat(process: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in process.parameters()])


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_are_those_of_torchs_plain_adamw(clip, weight_decay):
    """In float64, against the optimiser written out: the sources' equations, one tensor at a time."""
    process, naive = small().double(), small().double()
    ours = learner(process, clip=clip, weight_decay=weight_decay, betas=(0.8, 0.95))
    data = batch()
    data = type(data)(*(getattr(data, k).double() for k in ("xc", "yc", "xt", "yt")))
    first = [torch.zeros_like(p) for p in naive.parameters()]
    second = [torch.zeros_like(p) for p in naive.parameters()]
    for step in range(1, 6):
        rate = 0.01 * step
        value = ours.learn(data, rate)
        loss = naive.loss(data)
        gradients = torch.autograd.grad(loss, list(naive.parameters()))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        shrink = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        assert value == pytest.approx(loss.item(), rel=1e3 * FLOAT64)
        with torch.no_grad():
            for p, g, m, v in zip(naive.parameters(), gradients, first, second, strict=True):
                m += (1 - 0.8) * (g * shrink - m)
                v += (1 - 0.95) * ((g * shrink) ** 2 - v)
                p *= 1 - rate * (weight_decay if p.ndim >= 2 else 0)
                p -= rate * (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    assert torch.allclose(flat(process), flat(naive), rtol=FLOAT32 / 10, atol=1e3 * FLOAT64)


def test_moving_average_is_the_naive_one():
    process = small().double()
    average = MovingAverage(process, 0.9)
    naive = flat(process)
    for _ in range(10):
        with torch.no_grad():
            for parameter in process.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update()
        naive = 0.9 * naive + 0.1 * flat(process)
    assert torch.allclose(flat(average.trainee), naive, rtol=FLOAT64, atol=FLOAT64)


def test_moving_average_copies_buffers_and_needs_no_gradient():
    process = small()
    process.register_buffer("seen", torch.zeros((), dtype=torch.int64))
    average = MovingAverage(process, 0.9)
    process.seen += 3
    average.update()
    assert average.trainee.seen == 3
    assert not any(p.requires_grad for p in average.trainee.parameters())
    assert all(p.requires_grad for p in process.parameters())


def test_result_is_the_average_only_where_asked_for():
    process = small()
    assert learner(process).result is process
    averaged = learner(process, ema=0.5)
    begin = flat(process)
    averaged.learn(batch(), 0.1)
    expected = 0.5 * begin + 0.5 * flat(process)
    assert torch.allclose(flat(averaged.result), expected, atol=FLOAT32)


def test_caches_of_a_process_see_every_step():
    """torch's fused AdamW leaves version counters alone; fingerprints and cached queries need them."""
    process = small()
    ours = learner(process, ema=0.5)
    prints = set()
    for _ in range(3):
        prints |= {process.eval().fingerprint, ours.result.eval().fingerprint}
        process.train()
        ours.learn(batch(), 0.1)
    assert len(prints) == 5  # the first of either is the same


def test_step_with_a_gradient_that_is_not_finite_changes_nothing():
    process = small()
    ours = learner(process, ema=0.5)
    ours.learn(batch(), 0.1)
    before = {name: tensor.clone() for name, tensor in ours.tensors().items()}
    assert not math.isfinite(ours.learn(broken(), 0.1))
    after = ours.tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert (ours.tally.taken, ours.tally.skipped, ours.tally.in_a_row) == (1, 1, 1)
    ours.learn(batch(1), 0.1)
    assert (ours.tally.taken, ours.tally.skipped, ours.tally.in_a_row) == (2, 1, 0)
    assert all(math.isfinite(mean) for mean in ours.tally.means().values())
    assert ours.tally.means() == {"loss": None, "gradient_norm": None}


def test_too_many_in_a_row_raise():
    ours = learner(small())
    for _ in range(MOST_SKIPPED_IN_A_ROW - 1):
        ours.learn(broken(), 0.1)
    with pytest.raises(TrainingDiverged, match="20 steps in a row"):
        ours.learn(broken(), 0.1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loading_continues_to_the_bit(optimizer):
    settings = {"optimizer": optimizer, "ema": 0.9, "clip": 1.0}
    straight, halted = learner(wide(), **settings), learner(wide(), **settings)
    for seed in range(3):
        straight.learn(batch(seed), 0.1)
        halted.learn(batch(seed), 0.1)
    other = learner(wide(seed=1), **settings)
    other.load({name: tensor.clone() for name, tensor in halted.tensors().items()})
    for seed in range(3, 6):
        assert other.learn(batch(seed), 0.1) == straight.learn(batch(seed), 0.1)
    expected = straight.tensors()
    assert other.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.tensors().items())


def test_tensors_of_another_process_are_refused():
    tensors = learner(small()).tensors()
    with pytest.raises(ValueError, match=r"weights of another process or model: .*size mismatch"):
        learner(CMANP(dim=8, heads=2, blocks=1, latents=5)).load(tensors)
    with pytest.raises(ValueError, match=r"average of another process or model: .*Missing key"):
        learner(small(), ema=0.5).load(tensors)


def test_bfloat16_keeps_float32_weights():
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    process, exact = small(), small()
    ours = Learner(process, Training(precision="bf16"), Accelerator(mixed_precision="bf16"))
    loss = ours.learn(batch(), 0.01)
    AcceleratorState._reset_state()
    reference = exact.loss(batch()).item()
    assert loss != reference
    assert loss == pytest.approx(reference, abs=AUTOCAST)
    assert all(p.dtype == torch.float32 for p in process.parameters())


@pytest.mark.parametrize("size", [1, 3, 4, 9])
def test_a_step_in_pieces_is_the_step_of_the_batch(size):
    """In float64: four tasks, in pieces that need not divide them."""
    data = batch()
    data = type(data)(*(getattr(data, k).double() for k in ("xc", "yc", "xt", "yt")))
    whole, cut = small().double(), small().double()
    losses = [learner(whole).learn(data, 0.01)]
    losses.append(learner(cut, micro_batch_size=size).learn(data, 0.01))
    assert losses[1] == pytest.approx(losses[0], rel=FLOAT64)
    torch.testing.assert_close(flat(cut), flat(whole), rtol=FLOAT64, atol=FLOAT64)


def test_pieces_hold_what_they_should(monkeypatch):
    process, seen = small(), []
    ours = learner(process, micro_batch_size=3)
    loss = process.loss
    monkeypatch.setattr(process, "loss", lambda part: seen.append(len(part.xc)) or loss(part))
    ours.learn(batch(), 0.01)
    assert seen == [3, 1]


def test_masks_are_cut_and_what_is_no_tensor_goes_to_every_piece():
    task = GaussianProcessTask(max_points=12)
    drawn = task.sample(5, torch.Generator().manual_seed(0))
    masked = replace(
        drawn, target_mask=torch.arange(5).unsqueeze(1) > torch.zeros_like(drawn.yt[0, :, 0])
    )
    parts = [part for part, _ in pieces(masked, 2)]
    assert [part.context_mask for part in parts] == [None] * 3
    assert torch.equal(torch.cat([part.target_mask for part in parts]), masked.target_mask)
    assert torch.equal(torch.cat([part.oracle for part in parts]), masked.oracle)


def test_a_batch_of_another_kind_cannot_be_cut():
    assert list(pieces((1, 2), 0)) == [((1, 2), 1.0)]
    with pytest.raises(TypeError, match="dataclasses of tensors, not a tuple"):
        list(pieces((1, 2), 2))
