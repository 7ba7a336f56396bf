"""The feed-forward sub-layers and what surrounds attention, against naive float64."""

import numpy as np
import pytest
import torch

from synopsis.memory.feedforward import (
    AfterAttention,
    GELUFeedForward,
    PostNormFeedForward,
    PreNormFeedForward,
)
from synopsis.memory.luna_attention import MemoryAttention, Projections
from synopsis.memory.pre_norm import AroundAttention
from tests.memory import naive
from tests.memory.naive import DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively, parameters
from tests.reference import below, float64_weights
from tests.tolerances import FLOAT64

X, Y = draw(5, DIM, seed=1), draw(7, DIM, seed=2)


@pytest.mark.parametrize(
    ("made", "twin", "size"),
    [
        (GELUFeedForward, naive.transform, FEEDFORWARD),
        (PreNormFeedForward, naive.pre_norm_feedforward, FEEDFORWARD + NORM),
        (
            PostNormFeedForward,
            lambda w, x: naive.norm(
                below(w, "norm"), x + naive.transform(below(w, "transform"), x)
            ),
            FEEDFORWARD + NORM,
        ),
    ],
)
def test_a_feedforward_is_its_formula(made, twin, size):
    module = lively(made(DIM, HIDDEN))
    expected = twin(float64_weights(module), X.numpy())
    np.testing.assert_allclose(module(X).detach(), expected, rtol=FLOAT64, atol=FLOAT64)
    assert parameters(module) == size


def test_after_attention_is_its_formula():
    module = lively(AfterAttention(DIM, HIDDEN))
    expected = naive.after(float64_weights(module), X.numpy(), Y[:5].numpy())
    np.testing.assert_allclose(module(X, Y[:5]).detach(), expected, rtol=FLOAT64, atol=FLOAT64)
    assert parameters(module) == FEEDFORWARD + 2 * NORM


def test_around_attention_is_its_formula():
    module = lively(AroundAttention(DIM, HIDDEN))
    attention = lively(MemoryAttention(Projections(DIM), HEADS), seed=1)
    found = module(attention, X[None], Y[None])[0].detach()
    weights = float64_weights(module), float64_weights(attention)
    expected = naive.around(*weights, X.numpy(), Y.numpy())
    np.testing.assert_allclose(found, expected, rtol=FLOAT64, atol=FLOAT64)
    assert parameters(module) == FEEDFORWARD + 3 * NORM


@pytest.mark.parametrize("made", [GELUFeedForward, PreNormFeedForward, PostNormFeedForward])
def test_dropout_is_for_training_only(made):
    module = made(DIM, HIDDEN, dropout=0.5).double()
    torch.manual_seed(0)
    assert not torch.equal(module(X), module(X))
    module.eval()
    assert torch.equal(module(X), module(X))
