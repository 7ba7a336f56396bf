"""Causal Luna against its definition in naive float64, its three evaluations, and its silence about the future."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.memory.causal_luna import CausalLuna, CausalLunaLayer, CausalLunaState
from synopsis.states import State
from tests import reference
from tests.reference import below, linear
from tests.tolerances import FLOAT32, FLOAT64, STATE

DIM, HEADS = 8, 2
VALUES = pytest.mark.parametrize("values", ["own", "key"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["softplus", "elu"])


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def attention(values="own", activation="softplus") -> CausalLuna:
    made = CausalLuna(DIM, HEADS, values=values, activation=activation).double()
    return reference.enliven(made, seed=5).eval()


def naive(made, x, memory, activation):
    """Spec 1.2 by loops over heads, items and the past of each."""
    weights, width = reference.float64_weights(made), DIM // HEADS
    names = ("to_memory_query", "to_pack", "to_query", "to_key")
    inputs = (memory, x, x, x)
    asked, pack, query, key = (
        linear(below(weights, name), t) for name, t in zip(names, inputs, strict=True)
    )
    value = linear(below(weights, "to_value"), x) if "to_value.weight" in weights else key
    found = np.zeros_like(x)
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = pack[:, part] @ asked[:, part].T / math.sqrt(width)
        a = np.log2(1 + 2**scores)
        if activation == "elu":
            a = np.where(scores > 0, 1 + scores, np.exp(scores))
        for t in range(len(x)):
            past = range(t + 1)
            keys = sum(np.outer(key[j, part], a[j]) for j in past) / (t + 1)
            values = sum(np.outer(a[j], value[j, part]) for j in past) / (t + 1)
            logits = query[t, part] / math.sqrt(width) @ keys
            u = np.exp(logits - logits.max())
            found[t, part] = u / u.sum() @ values
    return linear(below(weights, "to_output"), found)


def stepped(made, x, memory, mask=None):
    state, answers = made.init(memory), []
    for t in range(x.shape[1]):
        answer, state = made.step(state, x[:, t], None if mask is None else mask[:, t])
        answers.append(answer)
    return torch.stack(answers, 1), state


def size(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_numbers_of_parameters():
    assert size(CausalLuna(16, 4)) == 6 * (16 * 16 + 16)
    assert size(CausalLuna(16, 4, values="key")) == 5 * (16 * 16 + 16)
    around = 2 * 2 * 16 + 2 * 16 * 24 + 24 + 16
    assert size(CausalLunaLayer(16, 4, 24)) == 6 * (16 * 16 + 16) + around


@VALUES
@ACTIVATIONS
@pytest.mark.parametrize("cells", [1, 3])
def test_all_three_evaluations_are_the_definition(values, activation, cells):
    made, x, memory = attention(values, activation), draw(2, 11, DIM), draw(2, cells, DIM, seed=1)
    answers = [made.sequential(x, memory), made.chunked(x, memory, chunk=4), made(x, memory)]
    answers.append(stepped(made, x, memory)[0])
    for stream in range(2):
        expected = naive(made, x[stream].numpy(), memory[stream].numpy(), activation)
        for found in answers:
            np.testing.assert_allclose(
                found[stream].detach(), expected, rtol=100 * FLOAT64, atol=100 * FLOAT64
            )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 100))
def test_the_three_evaluations_agree_in_float32(seed, length, chunk):
    made = attention().float()
    x, memory = (draw(2, n, DIM, seed=seed + n, dtype=torch.float32) for n in (length, 4))
    mask = draw(2, length, seed=seed) > -0.5
    with torch.no_grad():
        for seen in (None, mask):
            expected = made.sequential(x, memory, seen)
            for found in (made.chunked(x, memory, seen, chunk), stepped(made, x, memory, seen)[0]):
                torch.testing.assert_close(found, expected, rtol=STATE, atol=STATE)


def test_nothing_is_heard_from_the_future():
    made, x, memory = attention(), draw(1, 9, DIM).requires_grad_(), draw(1, 3, DIM, seed=1)
    for evaluate in (made.sequential, lambda x, m: made.chunked(x, m, chunk=4)):
        for now in range(9):
            (gradient,) = torch.autograd.grad(evaluate(x, memory)[0, now].sum(), x)
            assert not gradient[0, now + 1 :].any()
            assert gradient[0, : now + 1].abs().amax(-1).min() > 0


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_pads_might_as_well_not_be_there(chunk):
    made, x, memory = attention(), draw(2, 9, DIM), draw(2, 3, DIM, seed=1)
    mask = torch.tensor([[True, False, True, True, False, False, True, True, False], [False] * 9])
    found = made.chunked(x.masked_fill(~mask.unsqueeze(-1), torch.nan), memory, mask, chunk)
    alone = made.chunked(x[:1, mask[0]], memory[:1])
    torch.testing.assert_close(found[:1, mask[0]], alone, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert not found[~mask].any()
    by_steps, state = stepped(made, x, memory, mask)
    torch.testing.assert_close(found, by_steps, rtol=100 * FLOAT64, atol=100 * FLOAT64)
    assert state.count.tolist() == [5, 0]


@VALUES
def test_gradients_are_right(values):
    made, mask = attention(values), torch.arange(5) < torch.tensor([[5], [2]])
    inputs = (draw(2, 5, DIM).requires_grad_(), draw(1, 2, DIM, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda x, m, *w: made.chunked(x, m, mask, chunk=2),
        (*inputs, *made.parameters()),
        fast_mode=True,
    )


def test_the_layer_is_the_attention_between_norms_and_leaves_the_memory():
    layer = reference.enliven(CausalLunaLayer(DIM, HEADS, 12).double(), seed=2).eval()
    x, memory = draw(2, 7, DIM), draw(1, 3, DIM, seed=1)
    mask = torch.arange(7) < torch.tensor([[7], [0]])
    found, same = layer(x, memory, mask)
    assert same is memory and not found[1].any()
    h = layer.after.norm(x + layer.attention(x, memory))
    expected = layer.after.feedforward(h)
    torch.testing.assert_close(found[0], expected[0], rtol=100 * FLOAT64, atol=100 * FLOAT64)


def test_a_state_is_small_survives_bytes_and_belongs_to_its_weights():
    made, x, memory = attention(), draw(2, 9, DIM), draw(2, 3, DIM, seed=1)
    with torch.no_grad():
        _, state = stepped(made, x, memory)
        width = DIM // HEADS
        assert state.nbytes == 8 * (2 * 3 * DIM + 2 * 2 * HEADS * width * 3 + 2)
        again = State.deserialize(state.serialize())
        assert isinstance(again, CausalLunaState)
        for one, other in zip(made.step(again, x[:, 0]), made.step(state, x[:, 0]), strict=True):
            assert torch.equal(
                *(t if isinstance(t, torch.Tensor) else t.keys for t in (one, other))
            )
        other = CausalLuna(DIM, HEADS).double()
        with pytest.raises(ValueError, match="made by weights"):
            other.step(state, x[:, 0])
        with pytest.raises(ValueError, match="2 streams, but 1 came"):
            made.step(state, x[:1, 0])


def test_a_step_after_a_billion_items_still_counts():
    made, x, memory = attention().float(), draw(1, 2, DIM).float(), draw(1, 3, DIM, seed=1).float()
    with torch.no_grad():
        _, state = stepped(made, x, memory)
        grown = type(state)(
            state.memory,
            state.keys * 2**29,
            state.values * 2**29,
            state.count * 2**29,
            state.fingerprint,
        )
        _, after = made.step(grown, x[:, 0])
        _, first = made.step(made.init(memory), x[:, 0])
    torch.testing.assert_close(
        after.keys - grown.keys, first.keys, rtol=100 * FLOAT32, atol=10 * FLOAT32
    )


@pytest.mark.parametrize("bad", [{"heads": 3}, {"values": "input"}, {"activation": "relu"}])
def test_what_is_no_causal_luna_is_refused(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        CausalLuna(**{"dim": DIM, "heads": HEADS, **bad})
    with pytest.raises(ValueError, match="chunk must be at least 1, not 0"):
        attention().chunked(draw(1, 2, DIM), draw(1, 3, DIM), chunk=0)
