"""Weibull and von Mises-Fisher Luna: deterministic in evaluation, penalties that learn, steps that are kept."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from synopsis.memory import (
    ConvLunaLayer,
    Filter,
    SharedLunaLayer,
    VonMisesFisherLunaLayer,
    WeibullLunaLayer,
)
from synopsis.memory.probabilistic_luna import Annealing
from tests import reference
from tests.tolerances import FLOAT64

DIM, HEADS, CELLS = 8, 2, 3
LAYERS = {
    "weibull": lambda **s: WeibullLunaLayer(DIM, HEADS, 12, prior=True, **s),
    "vmf": lambda **s: VonMisesFisherLunaLayer(DIM, HEADS, 12, CELLS, **s),
}
EACH = pytest.mark.parametrize("name", LAYERS)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def layer(name: str, **settings):
    return reference.enliven(LAYERS[name](**settings).double(), seed=5)


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_numbers_of_parameters():
    prior = 2 * (DIM // HEADS * 32 + 32 + 32 + 1)
    luna, conv = size(SharedLunaLayer(DIM, HEADS, 12)), size(ConvLunaLayer(DIM, HEADS, 12))
    assert size(WeibullLunaLayer(DIM, HEADS, 12)) == luna
    assert size(LAYERS["weibull"]()) == luna + prior
    assert size(LAYERS["vmf"]()) == conv + 2 * (DIM * DIM + DIM) + CELLS * DIM


@EACH
def test_evaluation_draws_nothing(name):
    made, x, memory = layer(name).eval(), draw(2, 7, DIM), draw(2, CELLS, DIM, seed=1)
    before = torch.get_rng_state()
    one, other = made(x, memory), made(x, memory)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert made.take_penalty().item() == 0.0 and made.annealing.steps.item() == 0
    made.train()
    assert not torch.allclose(made(x, memory)[0], made(x, memory)[0])


def test_in_evaluation_weibull_is_shared_luna():
    made, luna = layer("weibull").eval(), SharedLunaLayer(DIM, HEADS, 12).double()
    weights = {k: v for k, v in made.state_dict().items() if "prior" not in k and "steps" not in k}
    luna.load_state_dict(weights)
    x, memory = draw(2, 7, DIM), draw(2, CELLS, DIM, seed=1)
    for one, other in zip(made(x, memory), luna(x, memory), strict=True):
        assert torch.equal(one, other)


def test_directions_are_of_length_one_in_either_mode():
    made, x, memory = layer("vmf"), draw(2, 7, DIM), draw(2, CELLS, DIM, seed=1)
    for training in (False, True):
        packed = made.train(training).packed(memory, x, None)
        assert packed.norm(dim=-1).allclose(torch.ones(2, CELLS, dtype=torch.float64))


def test_draws_surround_the_direction():
    """The published code divides by the sum of the coordinates: its draws surround something else."""
    made, x, memory = layer("vmf"), draw(1, 7, DIM), draw(1, CELLS, DIM, seed=1)
    mean = made.eval().packed(memory, x, None)
    torch.manual_seed(0)
    many = made.train().packed(memory.expand(4000, -1, -1), x.expand(4000, -1, -1), None)
    assert (F.cosine_similarity(many.mean(0), mean[0], dim=-1) > 0.99).all()


@EACH
def test_the_penalty_is_taken_once_and_has_a_gradient(name):
    made, x, memory = layer(name).train(), draw(2, 7, DIM), draw(2, CELLS, DIM, seed=1)
    made(x, memory)
    made.take_penalty().backward()
    learns = {n for n, p in made.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("prior" in n for n in learns) and any("to_query" in n for n in learns)
    assert made.take_penalty().item() == 0.0
    copy.deepcopy(made)


def test_the_vmf_penalty_is_the_published_one():
    made, x, memory = layer("vmf").train(), draw(2, 7, DIM), draw(2, CELLS, DIM, seed=1)
    torch.manual_seed(0)
    drawn = made.packed(memory, x, None)
    found = made.take_penalty() * (1.0 + math.exp(6.25))  # its weight at the first step
    cosine = torch.stack(
        [(z @ r) / r.norm() for b in drawn for z, r in zip(b, made.prior, strict=True)]
    )
    expected = (1.0 - cosine).mean() + (made.prior.norm(dim=-1) - 1.0).square().mean()
    torch.testing.assert_close(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert VonMisesFisherLunaLayer(DIM, HEADS, 12, 5).prior.norm(dim=-1).allclose(torch.ones(5))


def test_minimising_the_penalty_turns_memory_to_the_prior():
    made, x, memory = LAYERS["vmf"](), draw(2, 7, DIM).float(), draw(2, CELLS, DIM, seed=1).float()
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(made.parameters(), lr=1e-2)
    seen = []
    for _ in range(60):
        made(x, memory)
        optimiser.zero_grad()
        (made.take_penalty() * 500.0).backward()
        optimiser.step()
        with torch.no_grad():
            mean = made.eval().packed(memory, x, None)
            seen.append(F.cosine_similarity(mean, made.prior.expand_as(mean), dim=-1).mean().item())
            made.train()
    assert seen[-1] > 0.9 > seen[0]


@EACH
def test_steps_are_counted_when_penalties_are_taken_and_kept_in_checkpoints(name):
    made, x, memory = layer(name).train(), draw(2, 7, DIM), draw(2, CELLS, DIM, seed=1)
    for _ in range(3):
        made(x, memory)
        made(x, memory)  # as when activations are computed again
        made.take_penalty()
    made.eval()(x, memory)
    made.take_penalty()
    assert made.annealing.steps.item() == 3
    again = LAYERS[name]().double()
    again.load_state_dict(made.state_dict())
    assert again.annealing.steps.item() == 3


def test_the_weight_grows_as_published():
    annealing, one = Annealing(1.5e-4), torch.ones((), dtype=torch.float64)
    assert annealing(one).item() == pytest.approx(1.0 / (1.0 + math.exp(6.25)), rel=FLOAT64)
    annealing.steps.fill_(60_000)
    assert annealing(one).item() == pytest.approx(
        1.0 / (1.0 + math.exp(6.25 - 9.0)), rel=1e3 * FLOAT64
    )


@EACH
@pytest.mark.parametrize("length", [0, 1, 6])
def test_pads_reach_neither_answers_nor_gradients(name, length):
    made, x, memory = layer(name).train(), draw(3, length, DIM), draw(1, CELLS, DIM, seed=1)
    mask = torch.arange(length) < torch.tensor([[length], [length // 2], [0]])
    found, cells = made(x.masked_fill(~mask.unsqueeze(-1), torch.nan), memory, mask)
    assert not found[~mask].any() and found.isfinite().all() and cells.isfinite().all()
    (found.sum() + cells.sum() + made.take_penalty()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in made.parameters())


def test_vmf_keeps_the_filter_and_needs_its_number_of_cells():
    made = VonMisesFisherLunaLayer(DIM, HEADS, 12, CELLS, filtering=Filter("max", 4, 2))
    assert (made.pack.filtering.kernel, made.pack.filtering.stride) == (4, 2)
    with pytest.raises(ValueError, match="memory has 2 cells, the prior 3"):
        made(torch.randn(1, 5, DIM), torch.randn(1, 2, DIM))
