"""Induced set attention: formula, the stream it is, and Luna without a carried memory."""

import numpy as np
import pytest
import torch

from synopsis.memory.induced_set import InducedSetLayer, SetLikeLayer
from synopsis.memory.luna import SharedLunaLayer
from synopsis.states import State
from synopsis.testing import MEMORY_CHECKS, Subject
from tests.memory import naive
from tests.memory.naive import ATTENTION, DIM, FEEDFORWARD, HEADS, HIDDEN, NORM, draw, lively
from tests.reference import below, enliven, float64_weights
from tests.tolerances import FLOAT64


def layer(m=3) -> InducedSetLayer:
    return lively(InducedSetLayer(DIM, HEADS, HIDDEN, memory=m))


def twin(weights, x):
    points = weights["inducing"][0]
    packed = naive.attention(below(weights, "pack"), points, x)
    induced = naive.after(below(weights, "after_pack"), points, packed)
    unpacked = naive.attention(below(weights, "unpack"), x, induced)
    return naive.after(below(weights, "after_unpack"), x, unpacked)


@pytest.mark.parametrize(("length", "m"), [(1, 1), (6, 1), (2, 5), (7, 3)])
def test_the_layer_is_its_formula(length, m):
    made, x = layer(m), draw(2, length, DIM)
    found, memory = made(x)
    assert memory is None
    for items, answer in zip(x.numpy(), found, strict=True):
        expected = twin(float64_weights(made), items)
        np.testing.assert_allclose(answer.detach(), expected, rtol=10 * FLOAT64, atol=10 * FLOAT64)


@pytest.mark.parametrize("m", [1, 3])
def test_pads_do_not_matter(m):
    mask = naive.ragged(4, 7)
    naive.assert_pads_do_not_matter(layer(m), draw(4, 7, DIM), None, mask, 10 * FLOAT64)


def test_the_number_of_parameters():
    expected = 2 * (ATTENTION + FEEDFORWARD + 2 * NORM) + 3 * DIM
    assert naive.parameters(layer(3)) == expected


def test_gradients():
    naive.assert_gradients(layer(), draw(2, 4, DIM))


@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=lambda check: check.__name__)
def test_contract(check):
    check(Subject.memory(enliven(InducedSetLayer(DIM, HEADS, HIDDEN, memory=3)), DIM))


@pytest.mark.parametrize("m", [1, 4])
def test_the_stream_in_any_pieces_is_the_layer(m):
    made, x, mask = layer(m), draw(3, 20, DIM), naive.ragged(3, 20)
    order = torch.tensor([13, 2, 19, *range(3, 13), 0, 1, *range(14, 19)])
    state = made.init((3,))
    for places in order.split(6):
        state = made.update(state, x[:, places], mask[:, places])
    found = made.read(state, x).masked_fill(~mask.unsqueeze(-1), 0.0)
    torch.testing.assert_close(found, made(x, None, mask)[0], rtol=10 * FLOAT64, atol=10 * FLOAT64)


def test_the_stream_has_the_gradients_of_the_layer():
    made, x = layer(), draw(2, 10, DIM)
    weights = list(made.parameters())
    state = made.init((2,))
    for piece in x.split(4, dim=1):
        state = made.update(state, piece)
    found = torch.autograd.grad(made.read(state, x).square().sum(), weights)
    expected = torch.autograd.grad(made(x)[0].square().sum(), weights)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64)


def test_pack_and_unpack_are_seen_by_hooks():
    made, seen = layer(), []
    for name in ("pack", "unpack"):
        attention = made.get_submodule(name)
        attention.register_forward_hook(
            lambda module, inputs, output: seen.append(module.weights(*inputs))
        )
    made(draw(2, 6, DIM))
    assert [tuple(w.shape[-2:]) for w in seen] == [(3, 6), (6, 3)]


def test_a_damaged_summary_cannot_be_read():
    state = layer().init((2,))
    bad = type(state)(state.summary, state.count[:1], state.fingerprint)
    with pytest.raises(ValueError, match="counts for 2 streams"):
        State.deserialize(bad.serialize())


def test_set_like_is_shared_luna_with_a_memory_that_stays():
    """The sequence is what shared Luna makes of it; the memory is the one that came, at every layer."""
    made = lively(SetLikeLayer(DIM, HEADS, HIDDEN))
    luna = SharedLunaLayer(DIM, HEADS, HIDDEN).double().eval()
    missing = luna.load_state_dict(made.state_dict(), strict=False)
    assert sorted(missing.missing_keys) == ["norm_memory.bias", "norm_memory.weight"]
    x, memory, mask = draw(4, 6, DIM), draw(4, 3, DIM, seed=1), naive.ragged(4, 6)
    found, kept = made(x, memory, mask)
    assert kept is memory
    assert torch.equal(found, luna(x, memory, mask)[0])
    assert naive.parameters(made) == ATTENTION + FEEDFORWARD + 2 * NORM
