"""Memory Transformers against naive float64: who attends to whom."""

import numpy as np
import pytest
import torch

from synopsis.memory.memory_transformer import BottleneckMemoryLayer, MemoryTransformerLayer
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, float64_weights
from tests.tolerances import FLOAT64

LAYERS = pytest.mark.parametrize("made", [MemoryTransformerLayer, BottleneckMemoryLayer])
SIZES = pytest.mark.parametrize(("length", "m"), [(1, 1), (6, 1), (2, 5), (7, 3), (0, 2)])


def layer(made):
    return lively(made(DIM, HEADS, HIDDEN))


def through_the_neck(weights, x, memory):
    packed = naive.attention(below(weights, "pack"), memory, np.concatenate([memory, x]))
    memory = naive.after(below(weights, "after_pack"), memory, packed)
    unpacked = naive.attention(below(weights, "unpack"), x, memory)
    return naive.after(below(weights, "after_unpack"), x, unpacked), memory


@SIZES
@pytest.mark.parametrize(
    ("made", "twin"),
    [(MemoryTransformerLayer, naive.memory_transformer), (BottleneckMemoryLayer, through_the_neck)],
)
def test_the_layer_is_its_formula(made, twin, length, m):
    made, x, memory = layer(made), draw(2, length, DIM), draw(2, m, DIM, seed=1)
    found = made(x, memory)
    for stream in range(2):
        expected = twin(float64_weights(made), x[stream].numpy(), memory[stream].numpy())
        for answer, right in zip(found, expected, strict=True):
            np.testing.assert_allclose(
                answer[stream].detach(), right, rtol=10 * FLOAT64, atol=10 * FLOAT64
            )


def test_the_numbers_of_parameters():
    vanilla = ATTENTION + FEEDFORWARD + 2 * NORM
    assert naive.parameters(layer(MemoryTransformerLayer)) == vanilla
    assert naive.parameters(layer(BottleneckMemoryLayer)) == 2 * vanilla


@LAYERS
@pytest.mark.parametrize("m", [1, 3])
def test_pads_do_not_matter(made, m):
    mask, memory = naive.ragged(4, 7), draw(4, m, DIM, seed=1)
    naive.assert_pads_do_not_matter(layer(made), draw(4, 7, DIM), memory, mask, 10 * FLOAT64)


@LAYERS
def test_a_memory_of_one_serves_all(made):
    made, x, memory = layer(made), draw(3, 4, DIM), draw(1, 2, DIM, seed=1)
    found, expected = made(x, memory), made(x, memory.expand(3, -1, -1))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=FLOAT64, atol=FLOAT64)


def test_in_the_bottleneck_no_item_sees_another_but_through_the_memory():
    made, x, memory = layer(BottleneckMemoryLayer), draw(1, 5, DIM), draw(1, 2, DIM, seed=1)
    found, packed = made(x, memory)
    alone = made.after_unpack(x[:, :1], made.unpack(x[:, :1], packed))
    torch.testing.assert_close(found[:, :1], alone, rtol=FLOAT64, atol=FLOAT64)


@LAYERS
def test_gradients(made):
    naive.assert_gradients(layer(made), draw(2, 3, DIM), draw(2, 2, DIM, seed=1))
