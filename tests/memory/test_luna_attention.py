"""One attention between memory and sequence: temperatures, projections that are lent, and weights to look at."""

import copy
import math

import numpy as np
import pytest
import torch

from synopsis.memory.luna_attention import MemoryAttention, Projections, Temperature
from synopsis.memory.sequence_filters import Filter
from tests import reference
from tests.memory import naive_luna
from tests.tolerances import FLOAT64, PREDICTION

HEADS, DIM = 2, 8


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def attention(values="own", **settings) -> MemoryAttention:
    made = MemoryAttention(Projections(DIM, values), HEADS, **settings).double()
    return reference.enliven(made, seed=3).eval()


def naive(made, memory, x, temperature, mask=None, sieve=None, tied=False):
    weights = reference.below(reference.float64_weights(made), "projections")
    found = naive_luna.attention(
        weights, memory.numpy(), x.numpy(), HEADS, temperature, mask, sieve, tied
    )
    return reference.linear(reference.below(weights, "to_output"), found)


@pytest.mark.parametrize("values", ["own", "key", "input"])
@pytest.mark.parametrize("temperature", ["unit", "sqrt", "learn"])
def test_an_attention_is_the_naive_one_at_its_temperature(values, temperature):
    made = attention(values, temperature=temperature)
    if temperature == "learn":
        torch.nn.init.constant_(made.temperature.log, math.log(3.0))
    divided_by = {"unit": 1.0, "sqrt": 2.0, "learn": 3.0}[temperature]
    memory, x = draw(3, DIM), draw(7, DIM, seed=1)
    expected = naive(made, memory, x, divided_by, tied=values == "key")
    found = made(memory[None], x[None])[0].detach()
    np.testing.assert_allclose(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_a_learned_temperature_begins_at_one_and_learns():
    made = attention(temperature="learn")
    fresh = Temperature("learn", 4)
    assert fresh().item() == 1.0 and fresh.log.requires_grad
    made(draw(1, 3, DIM), draw(1, 7, DIM)).square().sum().backward()
    assert made.temperature.log.grad.abs() > 0
    assert not list(Temperature("unit", 4).parameters())


def test_borrowed_projections_are_one_set_of_weights_wherever_they_go():
    lender = attention()
    borrower = MemoryAttention(lender.projections, HEADS, borrowed=True)
    pair = torch.nn.ModuleList([lender, borrower])
    assert sum(p.numel() for p in pair.parameters()) == 4 * (DIM * DIM + DIM)
    assert len(pair.state_dict()) == len(lender.state_dict())
    copied = copy.deepcopy(pair)
    torch.nn.init.zeros_(copied[0].projections.to_output.weight)
    torch.nn.init.zeros_(copied[0].projections.to_output.bias)
    memory, x = draw(1, 3, DIM), draw(1, 7, DIM, seed=1)
    assert not copied[1](memory, x).any()
    assert torch.equal(borrower(memory, x), lender(memory, x))


@pytest.mark.parametrize("sieve", [None, Filter("convolution", 4, 2), Filter("max", 3, 1)])
def test_weights_to_look_at_are_those_that_attend(sieve):
    made = attention(filtering=None if sieve is None else sieve.build(HEADS))
    memory, x = draw(2, 3, DIM), draw(2, 9, DIM, seed=1)
    mask = torch.arange(9) < torch.tensor([[6], [0]])
    for seen in (None, mask):
        weights = made.weights(memory, x, seen)
        _, value, _ = made.keys_values(x, seen)
        found, expected = made.output(weights @ value), made(memory, x, seen)
        torch.testing.assert_close(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert weights[0].sum(-1).allclose(torch.ones(HEADS, 3, dtype=torch.float64))
    assert not weights[1].any()


def test_hooks_see_what_asks_what_is_asked_and_the_mask():
    made, seen = attention(), []
    made.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)))
    arguments = (draw(1, 3, DIM), draw(1, 7, DIM), torch.ones(1, 7, dtype=torch.bool))
    answer = made(*arguments)
    assert all(a is b for a, b in zip(seen[0][0], arguments, strict=True))
    assert seen[0][1] is answer


def test_attention_over_nothing_is_zero_and_has_a_gradient_of_zero():
    made, x = attention(), draw(2, 4, DIM).requires_grad_()
    nobody = torch.zeros(2, 4, dtype=torch.bool)
    memory = draw(2, 3, DIM)
    bias = made.projections.to_output.bias.detach()
    for found in (made(memory, x, nobody), made(memory, x[:, :0])):
        assert torch.equal(found, bias.expand(2, 3, DIM))
    made(memory, x, nobody).sum().backward()
    assert not x.grad.any()


def test_dropped_weights_keep_the_mean_and_evaluation_drops_nothing():
    made = attention(dropout=0.5)
    memory, x = draw(1, 3, DIM), draw(1, 9, DIM, seed=1)
    still = made(memory, x)
    assert torch.equal(still, made(memory, x))
    made.train()
    torch.manual_seed(0)
    drawn = made(memory.expand(4000, -1, -1), x.expand(4000, -1, -1)).detach()
    assert (drawn - still).abs().max() > 0.1
    error = 5.0 * drawn.std(0) / math.sqrt(4000)
    assert ((drawn.mean(0) - still[0]).abs() < error + PREDICTION).all()


@pytest.mark.parametrize("values", ["own", "key", "input"])
def test_gradients_are_right(values):
    made = attention(
        values, temperature="learn", filtering=Filter("convolution", 3, 2).build(HEADS).double()
    )
    mask = torch.arange(5) < torch.tensor([[5], [3], [0]])
    inputs = (draw(1, 2, DIM).requires_grad_(), draw(3, 5, DIM, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda m, x, *w: made(m, x, mask), (*inputs, *made.parameters()), fast_mode=True
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: attention(temperature="cold"),
        lambda: attention("none"),
        lambda: MemoryAttention(Projections(8), 3),
    ],
)
def test_what_is_no_attention_is_refused(make):
    with pytest.raises(ValueError, match=r"'cold'|'none'|dim 8 does not divide into 3 heads"):
        make()
