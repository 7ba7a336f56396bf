"""The vanilla layer against textbook attention in float64."""

import numpy as np
import pytest
import torch

from synopsis.memory.vanilla import VanillaLayer
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import float64_weights
from tests.tolerances import FLOAT64


def layer(**options) -> VanillaLayer:
    return lively(VanillaLayer(DIM, HEADS, HIDDEN, **options))


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_layer_is_its_formula(length):
    made, x = layer(), draw(2, length, DIM)
    found, memory = made(x)
    assert memory is None
    for items, answer in zip(x, found, strict=True):
        expected = naive.vanilla(float64_weights(made), items.numpy())
        np.testing.assert_allclose(answer.detach(), expected, rtol=FLOAT64, atol=FLOAT64)


def test_the_published_number_of_parameters():
    assert naive.parameters(layer()) == ATTENTION + FEEDFORWARD + 2 * NORM
    # ListOps, 6 layers of width 128: embeddings 258,304 and classifier 71,434 make up the published 1,519,370.
    blocks = 6 * naive.parameters(VanillaLayer(128, 4, 512))
    assert blocks + 17 * 128 + 2000 * 128 + 128 + 256 + 129 * 512 + 513 * 10 == 1_519_370


def test_pads_do_not_matter():
    made, mask = layer(), naive.ragged(4, 7)
    naive.assert_pads_do_not_matter(made, draw(4, 7, DIM), None, mask, FLOAT64)


def test_the_memory_passes_by():
    memory = draw(1, 3, DIM, seed=1)
    assert layer()(draw(1, 4, DIM), memory)[1] is memory


def test_gradients():
    naive.assert_gradients(layer(), draw(2, 3, DIM))


def test_attention_dropout_drops_weights_in_training_only():
    made, x = layer(attention_dropout=0.5), draw(1, 9, DIM)
    assert torch.equal(made(x)[0], layer()(x)[0])
    made.train()
    torch.manual_seed(0)
    assert not torch.equal(made(x)[0], made(x)[0])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim 8 does not divide into 3 heads"):
        VanillaLayer(8, 3, 16)
