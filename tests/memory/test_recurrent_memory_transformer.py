"""The Recurrent Memory Transformer against naive float64, segment by segment."""

import numpy as np
import pytest
import torch

from synopsis.memory.recurrent_memory_transformer import RecurrentMemory
from synopsis.testing import MEMORY_CHECKS, Subject
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, enliven, float64_weights
from tests.tolerances import GRADIENT


def recurrence(m=3, segment=4) -> RecurrentMemory:
    return lively(RecurrentMemory(DIM, HEADS, HIDDEN, memory=m, segment=segment))


def twin(weights, x, memory, segment):
    answers = []
    for start in range(0, len(x), segment):
        piece = x[start : start + segment]
        for i in range(2):
            piece, memory = naive.memory_transformer(below(weights, f"layers.{i}"), piece, memory)
        answers.append(piece)
    return np.concatenate([np.zeros((0, DIM)), *answers]), memory


@pytest.mark.parametrize(("length", "m"), [(0, 2), (1, 1), (4, 1), (9, 3), (3, 0), (6, 0)])
def test_the_recurrence_is_its_formula(length, m):
    made, x = recurrence(m), draw(2, length, DIM)
    found, memory = made(x)
    weights = float64_weights(made)
    for stream in range(2):
        expected = twin(weights, x[stream].numpy(), weights["initial"], 4)
        np.testing.assert_allclose(
            found[stream].detach(), expected[0], rtol=GRADIENT, atol=GRADIENT
        )
        np.testing.assert_allclose(
            memory[stream].detach(), expected[1], rtol=GRADIENT, atol=GRADIENT
        )


@pytest.mark.parametrize("m", [0, 1, 3])
def test_pads_do_not_matter(m):
    mask, memory = naive.ragged(4, 11), draw(4, m, DIM, seed=1)
    naive.assert_pads_do_not_matter(recurrence(m), draw(4, 11, DIM), memory, mask, GRADIENT)


@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    memory = RecurrentMemory(DIM, HEADS, HIDDEN, memory=3, segment=5)
    check(Subject.memory(enliven(memory), DIM))


def test_reading_is_one_more_segment():
    made, x, asked = recurrence(), draw(1, 10, DIM), draw(1, 2, DIM, seed=1)
    state = made.update(made.update(made.init(), x[:, :7]), x[:, 7:])
    weights = float64_weights(made)
    _, memory = twin(weights, x[0].numpy(), weights["initial"], 4)
    expected, _ = twin(weights, asked[0].numpy(), memory, 4)
    found = made.read(state, asked)[0].detach()
    np.testing.assert_allclose(found, expected, rtol=GRADIENT, atol=GRADIENT)
    assert state.filled.tolist() == [2]


def test_the_order_of_segments_matters_and_the_first_is_remembered():
    made, x = recurrence(), draw(1, 12, DIM)
    turned = torch.cat([x[:, 4:], x[:, :4]], dim=1)
    assert (made(x)[1] - made(turned)[1]).abs().max() > 1e-3
    x.requires_grad_()
    made(x)[1].square().sum().backward()
    assert x.grad[:, :4].any(-1).all()


def test_the_number_of_parameters():
    assert naive.parameters(recurrence(3)) == 2 * (ATTENTION + FEEDFORWARD + 2 * NORM) + 3 * DIM


def test_gradients():
    naive.assert_gradients(recurrence(2, segment=2), draw(1, 3, DIM))


def test_a_recurrence_needs_layers():
    with pytest.raises(ValueError, match="4 memory tokens and 0 layers"):
        RecurrentMemory(memory=4, layers=0)
