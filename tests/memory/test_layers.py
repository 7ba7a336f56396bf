"""The sub-layers against naive float64 twins written from the published description."""

import numpy as np
import pytest
import torch
from torch import nn

from synopsis.memory.layers import (
    CrossAttention,
    FeedForward,
    MultiheadAttention,
    SelfAttention,
    join_heads,
    perceptron,
    split_heads,
)
from tests import reference
from tests.tolerances import FLOAT64

RESIDUALS = pytest.mark.parametrize("residual", ["raw", "normed"])
X = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CONTEXT = torch.randn(7, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def lively(module: nn.Module) -> nn.Module:
    return reference.enliven(module.double(), seed=3)


def assert_equals_naive(module, inputs, naive, *arguments):
    found = module(*inputs).detach().numpy()
    weights = reference.float64_weights(module)
    expected = naive(weights, *(each.numpy() for each in inputs), *arguments)
    np.testing.assert_allclose(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_multihead_attention_is_naive():
    assert_equals_naive(lively(MultiheadAttention(8, 4)), (X, CONTEXT), reference.multihead, 4)


@RESIDUALS
def test_cross_attention_is_naive(residual):
    layer = lively(CrossAttention(8, 2, residual))
    assert_equals_naive(layer, (X, CONTEXT), reference.cross_attention, 2, residual)


@RESIDUALS
def test_self_attention_is_naive(residual):
    layer = lively(SelfAttention(8, 2, residual))
    assert_equals_naive(layer, (X,), reference.self_attention, 2, residual)


@RESIDUALS
def test_feed_forward_is_naive(residual):
    assert_equals_naive(
        lively(FeedForward(8, 12, residual)), (X,), reference.feed_forward, residual
    )


def test_the_skip_is_what_tells_raw_from_normed():
    """With a branch of zero, raw passes its input on and normed its normalised input."""
    for layer in (SelfAttention(8, 2), FeedForward(8, 12), CrossAttention(8, 2)):
        inputs = (X, CONTEXT) if isinstance(layer, CrossAttention) else (X,)
        layer = layer.double()
        last = layer.contract if isinstance(layer, FeedForward) else layer.attention.to_output
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        assert torch.equal(layer(*inputs), X)
        layer.residual = "normed"
        assert torch.equal(layer(*inputs), layer.norm(X))


def test_masked_items_might_as_well_not_be_there():
    layer = lively(CrossAttention(8, 2))
    mask = torch.tensor([True, False, True, True, False, False, True])
    found, expected = layer(X, CONTEXT, mask), layer(X, CONTEXT[mask])
    torch.testing.assert_close(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    itself = lively(SelfAttention(8, 2))
    found, expected = itself(CONTEXT, mask)[mask], itself(CONTEXT[mask])
    torch.testing.assert_close(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_a_batch_is_its_members():
    layer = lively(CrossAttention(8, 2))
    found = layer(torch.stack([X, -X]), torch.stack([CONTEXT, CONTEXT.flip(0)]))
    expected = torch.stack([layer(X, CONTEXT), layer(-X, CONTEXT)])
    torch.testing.assert_close(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_heads_split_and_join():
    split = split_heads(X, 2)
    assert split.shape == (2, 5, 4)
    assert torch.equal(split[1], X[:, 4:])
    assert torch.equal(join_heads(split), X)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="dim 8 does not divide into 3 heads"):
        MultiheadAttention(8, 3)


def test_perceptron_has_relu_between_and_nothing_after():
    layers = perceptron(3, 8, 5, depth=4)
    kinds = [type(layer) for layer in layers]
    assert kinds == [nn.Linear, nn.ReLU] * 3 + [nn.Linear]
    assert [(m.in_features, m.out_features) for m in layers if isinstance(m, nn.Linear)] == [
        (3, 8),
        (8, 8),
        (8, 8),
        (8, 5),
    ]
    layers = lively(layers)
    assert_equals_naive(layers, (X[:, :3],), reference.perceptron)
    assert (layers(X[:, :3]) < 0).any()
