"""The temporal latent bottleneck against naive float64, chunk by chunk."""

import math

import numpy as np
import pytest
import torch

from synopsis.memory.temporal_latent_bottleneck import TemporalLatentBottleneck, sinusoids
from synopsis.testing import MEMORY_CHECKS, Subject
from tests.memory import naive
from tests.memory.naive import DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, enliven, float64_weights
from tests.tolerances import GRADIENT


def bottleneck(m=3, segment=4, **options) -> TemporalLatentBottleneck:
    return lively(
        TemporalLatentBottleneck(DIM, HEADS, HIDDEN, memory=m, segment=segment, **options)
    )


def positions(x):
    """sin and cos of place / 10000^(2i/dim), in turn."""
    table = np.zeros(x.shape)
    for place in range(len(x)):
        for i in range(x.shape[1]):
            angle = place / 10_000 ** (2 * (i // 2) / x.shape[1])
            table[place, i] = math.cos(angle) if i % 2 else math.sin(angle)
    return table


def twin(weights, x, state, segment):
    answers = []
    for start in range(0, len(x), segment):
        piece = x[start : start + segment]
        piece, state = piece + positions(piece), state + positions(state)
        for i in range(2):
            piece = naive.vanilla(below(weights, f"layers.{i}"), piece)
        unpack = below(weights, "around_unpack"), below(weights, "unpack")
        pack = below(weights, "around_pack"), below(weights, "pack")
        piece = naive.around(*unpack, piece, state)
        state = naive.around(*pack, state, piece)
        answers.append(piece)
    return np.concatenate([np.zeros((0, DIM)), *answers]), state


@pytest.mark.parametrize(("length", "m"), [(0, 2), (1, 1), (4, 1), (9, 3)])
def test_the_bottleneck_is_its_formula(length, m):
    made, x = bottleneck(m), draw(2, length, DIM)
    found, state = made(x)
    for stream in range(2):
        start = np.zeros((m, DIM))
        expected = twin(float64_weights(made), x[stream].numpy(), start, 4)
        np.testing.assert_allclose(
            found[stream].detach(), expected[0], rtol=GRADIENT, atol=GRADIENT
        )
        np.testing.assert_allclose(
            state[stream].detach(), expected[1], rtol=GRADIENT, atol=GRADIENT
        )


@pytest.mark.parametrize(("length", "dim"), [(5, 8), (3, 7), (1, 1), (0, 4)])
def test_positions_are_sines_and_cosines_in_turn(length, dim):
    x = torch.zeros(2, length, dim, dtype=torch.float64)
    np.testing.assert_allclose(sinusoids(x), positions(x[0].numpy()), rtol=GRADIENT, atol=GRADIENT)


@pytest.mark.parametrize("m", [1, 3])
def test_pads_do_not_matter(m):
    mask, memory = naive.ragged(4, 11), draw(4, m, DIM, seed=1)
    naive.assert_pads_do_not_matter(bottleneck(m), draw(4, 11, DIM), memory, mask, GRADIENT)


@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    memory = TemporalLatentBottleneck(DIM, HEADS, HIDDEN, memory=3, segment=5)
    check(Subject.memory(enliven(memory), DIM))


def test_reading_is_one_more_chunk():
    made, x, asked = bottleneck(), draw(1, 10, DIM), draw(1, 2, DIM, seed=1)
    state = made.update(made.update(made.init(), x[:, :7]), x[:, 7:])
    weights = float64_weights(made)
    _, memory = twin(weights, x[0].numpy(), np.zeros((3, DIM)), 4)
    expected, _ = twin(weights, asked[0].numpy(), memory, 4)
    found = made.read(state, asked)[0].detach()
    np.testing.assert_allclose(found, expected, rtol=GRADIENT, atol=GRADIENT)


def test_the_number_of_parameters():
    """Attention without biases; self-attention has two normalisations, each cross-attention three."""
    attention, made = 4 * DIM**2, TemporalLatentBottleneck(DIM, HEADS, HIDDEN, memory=3, segment=4)
    assert naive.parameters(made) == 4 * (attention + FEEDFORWARD) + (2 * 2 + 2 * 3) * NORM
    assert not any("projections" in n and n.endswith("bias") for n, _ in made.named_parameters())


def test_dropout_is_for_training_only():
    made, x = bottleneck(dropout=0.5), draw(1, 6, DIM)
    assert torch.equal(made(x)[1], bottleneck()(x)[1])
    made.train()
    torch.manual_seed(0)
    assert not torch.equal(made(x)[1], made(x)[1])


def test_gradients():
    naive.assert_gradients(bottleneck(2, segment=2), draw(1, 3, DIM))


def test_a_bottleneck_needs_a_state():
    with pytest.raises(ValueError, match="0 state tokens"):
        TemporalLatentBottleneck(memory=0)
