"""Latent attention against naive float64, and the stream that its first layer is."""

import numpy as np
import pytest
import torch

from synopsis.memory.perceiver import LatentLayer, LatentMemory
from synopsis.testing import MEMORY_CHECKS, Subject
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, enliven, float64_weights
from tests.tolerances import FLOAT64


def layer(layers=2) -> LatentLayer:
    return lively(LatentLayer(DIM, HEADS, HIDDEN, layers=layers))


def stream(m=3) -> LatentMemory:
    return lively(LatentMemory(DIM, HEADS, HIDDEN, memory=m))


def twin(weights, x, memory, layers):
    memory = naive.around(below(weights, "around_pack"), below(weights, "pack"), memory, x)
    for i in range(layers):
        memory = naive.vanilla(below(weights, f"layers.{i}"), memory)
    return memory


@pytest.mark.parametrize(("length", "m"), [(1, 1), (6, 1), (2, 5), (7, 3), (0, 2)])
@pytest.mark.parametrize("layers", [0, 2])
def test_the_layer_is_its_formula(length, m, layers):
    made, x, memory = layer(layers), draw(2, length, DIM), draw(2, m, DIM, seed=1)
    same, found = made(x, memory)
    assert same is x
    for items, latents, answer in zip(x.numpy(), memory.numpy(), found, strict=True):
        expected = twin(float64_weights(made), items, latents, layers)
        np.testing.assert_allclose(answer.detach(), expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


@pytest.mark.parametrize("m", [1, 3])
def test_pads_do_not_matter(m):
    mask, memory = naive.ragged(4, 7), draw(4, m, DIM, seed=1)
    x = draw(4, 7, DIM)
    naive.assert_pads_do_not_matter(layer(), x, memory, mask, 10 * FLOAT64)


def test_the_numbers_of_parameters():
    vanilla = ATTENTION + FEEDFORWARD + 2 * NORM
    assert naive.parameters(layer(layers=2)) == 3 * vanilla + NORM
    assert naive.parameters(stream(m=3)) == (2 * vanilla + NORM) + (vanilla + NORM) + 3 * DIM


def test_gradients():
    naive.assert_gradients(layer(1), draw(2, 4, DIM), draw(2, 2, DIM, seed=1))


@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    memory = LatentMemory(DIM, HEADS, HIDDEN, memory=3)
    check(Subject.memory(enliven(memory), DIM))


@pytest.mark.parametrize("m", [1, 3])
def test_the_stream_in_any_pieces_is_the_layer(m):
    memory, x, mask = stream(m), draw(3, 20, DIM), naive.ragged(3, 20)
    state = memory.init((3,))
    for places in torch.arange(20).flip(0).split(6):
        state = memory.update(state, x[:, places], mask[:, places])
    _, expected = memory.layer(x, memory.latents, mask)
    torch.testing.assert_close(
        memory.memory_of(state), expected, rtol=10 * FLOAT64, atol=10 * FLOAT64
    )


def test_reading_is_cross_attention_to_the_latents():
    memory, x, asked = stream(), draw(1, 9, DIM), draw(1, 4, DIM, seed=1)
    state = memory.update(memory.init(), x)
    weights = float64_weights(memory)
    latents = twin(below(weights, "layer"), x[0].numpy(), weights["latents"][0], 1)
    around, unpack = below(weights, "around_unpack"), below(weights, "unpack")
    expected = naive.around(around, unpack, asked[0].numpy(), latents)
    found = memory.read(state, asked)[0].detach()
    np.testing.assert_allclose(found, expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


def test_a_memory_needs_latents():
    with pytest.raises(ValueError, match="at least 1 latent, not 0"):
        LatentMemory(memory=0)
