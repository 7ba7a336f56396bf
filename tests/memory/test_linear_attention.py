"""Linear attention: formula, causal form, layers, and streams that never end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from synopsis.memory.linear_attention import (
    CausalLinearAttentionLayer,
    LinearAttention,
    LinearAttentionLayer,
    causal_linear_attention,
    linear_attention,
    positive_features,
)
from synopsis.states import State
from synopsis.testing import MEMORY_CHECKS, Subject
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, enliven, float64_weights, linear
from tests.tolerances import FLOAT64, STATE

LAYERS = pytest.mark.parametrize("made", [LinearAttentionLayer, CausalLinearAttentionLayer])


def phi(x):
    return np.where(x > 0, x + 1, np.exp(x))


def weighted(query, key, value, mask):
    """Every weight written down: w_ij = φ(q_i)·φ(k_j), an average where any is positive, else 0."""
    weights = phi(query) @ phi(key).T * mask
    total = weights.sum(-1, keepdims=True)
    return np.where(total > 0, weights @ value / np.where(total > 0, total, 1), 0.0)


def attended(weights, x, context, mask=1.0):
    projections = below(weights, "projections")
    query, key, value = (
        naive.heads_of(linear(below(projections, f"to_{name}"), rows))
        for name, rows in (("query", x), ("key", context), ("value", context))
    )
    mask = np.broadcast_to(mask, (len(x), len(context)))
    each = [weighted(q, k, v, mask) for q, k, v in zip(query, key, value, strict=True)]
    return linear(below(projections, "to_output"), np.concatenate(each, -1))


def test_features_are_those_of_the_paper_and_never_round_to_nothing():
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(positive_features(x), F.elu(x) + 1, rtol=FLOAT64, atol=FLOAT64)
    small = torch.tensor(-30.0)
    assert F.elu(small) + 1 == 0
    torch.testing.assert_close(positive_features(small), small.exp())
    assert torch.autograd.gradcheck(positive_features, draw(20).requires_grad_())


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 9), (5, 0)])
def test_attention_is_its_formula(queries, keys):
    query, key, value = draw(queries, 4), draw(keys, 4, seed=1), draw(keys, 3, seed=2)
    found = linear_attention(query, key, value)
    expected = weighted(query.numpy(), key.numpy(), value.numpy(), np.ones((queries, keys)))
    np.testing.assert_allclose(found, expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("chunk", [1, 2, 5, 64])
@pytest.mark.parametrize("masked", [False, True])
def test_the_causal_form_in_any_chunks_is_its_formula(chunk, masked):
    query, key, value = draw(11, 4), draw(11, 4, seed=1), draw(11, 3, seed=2)
    mask = torch.arange(11) % 3 > 0 if masked else torch.ones(11, dtype=torch.bool)
    found = causal_linear_attention(query, key, value, mask if masked else None, chunk)
    pairs = np.tril(np.ones((11, 11))) * mask.numpy()
    expected = weighted(query.numpy(), key.numpy(), value.numpy(), pairs)
    np.testing.assert_allclose(found, expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


@pytest.mark.parametrize("attend", [linear_attention, causal_linear_attention])
def test_half_precision_sums_in_float32(attend):
    query, key, value = (draw(5000, 4, seed=seed).bfloat16() for seed in range(3))
    found, expected = (
        attend(*(t.to(d) for t in (query, key, value))) for d in (torch.bfloat16, torch.float64)
    )
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-7, atol=STATE)


def test_no_gradient_from_the_future():
    inputs = [draw(11, 4, seed=seed).requires_grad_() for seed in range(3)]
    causal_linear_attention(*inputs, chunk=4)[5].sum().backward()
    for tensor in inputs[1:]:
        assert torch.count_nonzero(tensor.grad[6:]) == 0
        assert tensor.grad[:6].any(-1).all()


@pytest.mark.parametrize("length", [1, 6])
@LAYERS
def test_the_layer_is_its_formula(made, length):
    layer, x = lively(made(DIM, HEADS, HIDDEN)), draw(2, length, DIM)
    pairs = np.tril(np.ones((length, length))) if made is CausalLinearAttentionLayer else 1.0
    found, memory = layer(x)
    assert memory is None
    weights = float64_weights(layer)
    for items, answer in zip(x.numpy(), found, strict=True):
        taken = attended(below(weights, "attention"), items, items, pairs)
        expected = naive.after(below(weights, "after"), items, taken)
        np.testing.assert_allclose(answer.detach(), expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


@LAYERS
def test_layers_mask_differentiate_and_count(made):
    layer, mask = lively(made(DIM, HEADS, HIDDEN)), naive.ragged(4, 7)
    naive.assert_pads_do_not_matter(layer, draw(4, 7, DIM), None, mask, 10 * FLOAT64)
    naive.assert_gradients(layer, draw(2, 3, DIM))
    assert naive.parameters(layer) == ATTENTION + FEEDFORWARD + 2 * NORM


@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(Subject.memory(enliven(LinearAttention(DIM, HEADS)), DIM))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.data())
def test_any_pieces_give_the_formula(seed, length, data):
    memory, x, latents = (
        lively(LinearAttention(DIM, HEADS)),
        draw(length, DIM, seed=seed),
        draw(3, DIM),
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    state = memory.init()
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        state = memory.update(state, x[None, start:stop])
    found = memory.read(state, latents[None])[0].detach()
    expected = attended(float64_weights(memory), latents.numpy(), x.numpy())
    np.testing.assert_allclose(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_longer_than_any_internal_piece():
    memory, x = lively(LinearAttention(DIM, HEADS)), draw(1, 2500, DIM)
    mask = draw(1, 2500, seed=1) > 0
    state = memory.update(memory.init(), x, mask)
    found, expected = memory.read(state, x[:, :3]), memory(x[:, :3], x, mask)
    torch.testing.assert_close(found, expected, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert state.count.tolist() == [int(mask.sum())]


def test_a_step_of_the_stream_is_the_causal_form():
    memory, x = lively(LinearAttention(DIM, HEADS)), draw(2, 9, DIM)
    state, found = memory.init((2,)), []
    for item in x.split(1, dim=1):
        state = memory.update(state, item)
        found.append(memory.read(state, item))
    expected = memory(x, x, is_causal=True)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=STATE, atol=STATE)


def test_sums_that_are_not_float64_cannot_be_read():
    state = LinearAttention(DIM, HEADS).init()
    bad = type(state)(state.numerator.float(), state.denominator, state.count, state.fingerprint)
    with pytest.raises(ValueError, match=r"numerator is torch\.float32"):
        State.deserialize(bad.serialize())
