"""Linformer against its formula, with inputs shorter than the projection and with pads."""

import math

import numpy as np
import pytest
import torch

from synopsis.memory.linformer import LinformerLayer
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, float64_weights, linear
from tests.tolerances import FLOAT64

LENGTH = 9


def layer(rank=3) -> LinformerLayer:
    return lively(LinformerLayer(DIM, HEADS, HIDDEN, length=LENGTH, rank=rank))


def attended(weights, x, mask):
    mixture = weights["mixture"][:, : len(x)] * mask  # columns of pads are as good as 0
    projections = below(weights, "projections")
    query, key, value = (
        naive.heads_of(linear(below(projections, f"to_{n}"), x)) for n in ("query", "key", "value")
    )
    each = []
    for q, k, v in zip(query, key, value, strict=True):
        scores = np.exp(q @ (mixture @ k).T / math.sqrt(DIM // HEADS))
        each.append(scores / scores.sum(-1, keepdims=True) @ (mixture @ v))
    return linear(below(projections, "to_output"), np.concatenate(each, -1))


def twin(weights, x, mask):
    return naive.after(below(weights, "after"), x, attended(below(weights, "attention"), x, mask))


@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("length", [1, 5, LENGTH])
def test_the_layer_is_its_formula(length, rank):
    made, x = layer(rank), draw(2, length, DIM)
    found, memory = made(x)
    assert memory is None
    for items, answer in zip(x, found, strict=True):
        expected = twin(float64_weights(made), items.numpy(), np.ones(length))
        np.testing.assert_allclose(answer.detach(), expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


def test_pads_are_not_mixed_in():
    """Positions are columns, so pads are not dropped but zeroed: a hole is not a shorter sequence."""
    made, x, mask = layer(), draw(4, 7, DIM), naive.ragged(4, 7)
    found, _ = made(x.masked_fill(~mask.unsqueeze(-1), torch.nan), None, mask)
    assert torch.count_nonzero(found[~mask]) == 0
    for stream in range(4):
        clean = x[stream].numpy() * mask[stream, :, None].numpy()
        expected = twin(float64_weights(made), clean, mask[stream].numpy())[mask[stream]]
        np.testing.assert_allclose(
            found[stream, mask[stream]].detach(), expected, rtol=10 * FLOAT64, atol=10 * FLOAT64
        )
    found.square().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in made.parameters())


def test_pads_at_the_end_are_a_shorter_sequence():
    made, x = layer(), draw(1, 7, DIM)
    mask = torch.arange(7)[None] < 4
    found, expected = made(x, None, mask)[0][:, :4], made(x[:, :4])[0]
    torch.testing.assert_close(found, expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


def test_longer_than_the_projection_is_refused():
    with pytest.raises(ValueError, match=f"10 positions came, .* columns for {LENGTH}"):
        layer()(draw(1, LENGTH + 1, DIM))
    with pytest.raises(ValueError, match="at least 1, not 9 and 0"):
        LinformerLayer(DIM, HEADS, HIDDEN, length=LENGTH, rank=0)


def test_the_number_of_parameters():
    expected = ATTENTION + FEEDFORWARD + 2 * NORM + 3 * LENGTH
    assert naive.parameters(layer(rank=3)) == expected


def test_weights_for_looking_at_are_those_of_the_mixtures():
    made, x = layer(), draw(2, 5, DIM)
    weights = made.attention.weights(x, x)
    assert weights.shape == (2, HEADS, 5, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, HEADS, 5).double())


def test_gradients():
    naive.assert_gradients(layer(), draw(2, 4, DIM))
