"""CMAB against the published block in naive float64, its streams, and its caches."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.memory import CMAB, CMABStack, CMABState
from synopsis.memory.layers import FeedForward
from synopsis.states import State
from tests import reference
from tests.tolerances import FLOAT32, FLOAT64, PREDICTION, STATE

RESIDUALS = pytest.mark.parametrize("residual", ["raw", "normed"])
DIM = 16


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def block(residual="raw", seed=0) -> CMAB:
    made = CMAB(DIM, latents=6, heads=4, feedforward=24, residual=residual)
    return reference.enliven(made, seed).eval()


def stack(blocks=3, residual="raw") -> CMABStack:
    return CMABStack([block(residual, seed) for seed in range(blocks)]).eval()


def absorb(memory, *pieces, mask=None) -> CMABState:
    state = memory.init((len(pieces[0]),))
    with torch.no_grad():
        for piece in pieces:
            state = memory.update(state, piece, mask)
    return state


def naive_summary(memory: CMABStack, x: torch.Tensor):
    """Output and lse of every learned query over one stream (length, dim), in float64 numpy."""
    outputs, lses = [], []
    for one in memory.blocks:
        weights = reference.below(reference.float64_weights(one), "absorb")
        attention = reference.below(weights, "attention")
        context = reference.layer_norm(reference.below(weights, "norm_context"), x.double().numpy())
        latents = one.latents.detach().double().numpy()
        normed = reference.layer_norm(reference.below(weights, "norm"), latents)
        query = reference.linear(reference.below(attention, "to_query"), normed) / math.sqrt(4)
        both = reference.linear(reference.below(attention, "to_key_value"), context)
        key, value = np.split(both, 2, axis=-1)
        for head in range(4):
            part = slice(4 * head, 4 * head + 4)
            output, lse = reference.softmax_attention(query[:, part], key[:, part], value[:, part])
            outputs.append(output)
            lses.append(lse)
    return torch.from_numpy(np.stack(outputs)), torch.from_numpy(np.stack(lses))


def test_the_published_number_of_parameters():
    memory = CMAB(dim=64, latents=128, heads=4, feedforward=128)
    size = {n: sum(p.numel() for p in m.parameters()) for n, m in memory.named_children()}
    assert sum(p.numel() for p in memory.parameters()) == 174_848
    assert memory.latents.numel() == 8_192
    assert size["absorb"] == size["retrieve"] == 16_704
    assert size["digest"] == size["compose"] == 2 * 25_024 + 16_576
    assert sum(p.numel() for p in FeedForward(64, 128).parameters()) == 25_024


@RESIDUALS
@pytest.mark.parametrize("length", [1, 2, 40])
def test_a_block_is_the_published_one(residual, length):
    memory, x, latents = block(residual), draw(1, length, DIM, seed=1), draw(1, 5, DIM, seed=2)
    found = memory.read(absorb(memory, x), latents)[0].detach()
    weights = reference.float64_weights(memory)
    expected = reference.cmab(weights, x[0].numpy(), latents[0].numpy(), 4, residual)
    np.testing.assert_allclose(found, expected, rtol=PREDICTION, atol=PREDICTION)


@RESIDUALS
def test_in_float64_a_block_is_the_published_one_exactly(residual):
    memory = block(residual).double()
    x, latents = draw(1, 40, DIM, seed=1).double(), draw(1, 5, DIM, seed=2).double()
    found = memory.read(absorb(memory, x), latents)[0].detach()
    weights = reference.float64_weights(memory)
    expected = reference.cmab(weights, x[0].numpy(), latents[0].numpy(), 4, residual)
    np.testing.assert_allclose(found, expected, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64)


@RESIDUALS
def test_a_stack_in_one_pass_is_block_after_block(residual):
    memory, x, latents = stack(3, residual), draw(2, 30, DIM, seed=1), draw(2, 5, DIM, seed=2)
    found = memory.read(absorb(memory, x), latents)
    assert len(found) == 3
    for one, answer in zip(memory.blocks, found, strict=True):
        latents = one.read(absorb(one, x), latents)
        torch.testing.assert_close(answer, latents, rtol=PREDICTION, atol=PREDICTION)


def test_a_stack_of_one_is_the_block():
    one, x, latents = block(), draw(2, 30, DIM, seed=1), draw(2, 5, DIM, seed=2)
    alone = CMABStack([one])
    assert torch.equal(alone.read(absorb(alone, x), latents)[0], one.read(absorb(one, x), latents))
    assert list(alone.parameters()) == list(one.parameters())
    assert alone.fingerprint == one.init().fingerprint


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 80), st.data())
def test_any_pieces_give_the_naive_summary(seed, length, data):
    memory, x = stack(2), draw(1, length, DIM, seed=seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=4)))
    pieces = [x[:, a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
    state = absorb(memory, *pieces)
    output, lse = naive_summary(memory, x[0])
    torch.testing.assert_close(state.summary.output[0], output, rtol=STATE, atol=STATE)
    torch.testing.assert_close(state.summary.lse[0], lse, rtol=STATE, atol=STATE)
    assert state.count.tolist() == [length]


def test_longer_than_any_internal_piece():
    memory, x = stack(2), draw(1, 2600, DIM, seed=3)
    mask = draw(1, 2600, seed=4) > 0
    for state, seen in ((absorb(memory, x), x[0]), (absorb(memory, x, mask=mask), x[mask])):
        output, lse = naive_summary(memory, seen)
        torch.testing.assert_close(state.summary.output[0], output, rtol=STATE, atol=STATE)
        torch.testing.assert_close(state.summary.lse[0], lse, rtol=STATE, atol=STATE)


def test_ten_thousand_single_items_stay_within_a_millionth():
    memory, x = stack(2), draw(1, 10_000, DIM, seed=5)
    state = absorb(memory, *x.split(1, dim=1))
    output, lse = naive_summary(memory, x[0])
    torch.testing.assert_close(state.summary.output[0], output, rtol=0.0, atol=STATE)
    torch.testing.assert_close(state.summary.lse[0], lse, rtol=0.0, atol=STATE)
    assert state.summary.denominator.dtype == state.summary.numerator.dtype == torch.float64
    assert state.nbytes == memory.init().nbytes == 2 * 4 * 6 * (4 + 2) * 8 + 8


def test_one_item_repeated_stays_itself():
    """The stream that biases float32 sums: equal items, ten thousand times."""
    memory, x = stack(2), draw(1, 1, DIM, seed=6)
    state = absorb(memory, *[x] * 10_000)
    once = absorb(memory, x).summary
    torch.testing.assert_close(state.summary.output, once.output, rtol=FLOAT32, atol=FLOAT32)
    grown = state.summary.lse - math.log(10_000)
    torch.testing.assert_close(grown, once.lse, rtol=0.0, atol=1e3 * FLOAT64)


@RESIDUALS
@pytest.mark.parametrize("length", [0, 1, 40])
def test_the_training_path_is_the_stream(residual, length):
    memory, x, latents = stack(2, residual), draw(3, length, DIM, seed=1), draw(3, 5, DIM, seed=2)
    mask = draw(3, length, seed=3) > 0
    if length:
        mask[1] = False
    for seen in (None, mask):
        state = absorb(memory, x, mask=seen)
        for found, expected in zip(
            memory.encode(x, latents, seen), memory.read(state, latents), strict=True
        ):
            torch.testing.assert_close(found, expected, rtol=PREDICTION, atol=PREDICTION)


def test_the_training_path_and_the_stream_have_equal_gradients():
    memory, x, latents = stack(2).double(), draw(2, 20, DIM, seed=1).double(), draw(2, 5, DIM)
    latents = latents.double()
    weights = list(memory.parameters())

    def gradients(answers):
        return torch.autograd.grad(sum((a * a).sum() for a in answers), weights)

    encoded = gradients(memory.encode(x, latents))
    state = memory.init((2,))
    for piece in x.split(6, dim=1):
        state = memory.update(state, piece)
    for found, expected in zip(gradients(memory.read(state, latents)), encoded, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e4 * FLOAT64, atol=1e4 * FLOAT64)


def test_merged_parts_are_the_whole():
    memory, x = stack(2), draw(2, 90, DIM, seed=7)
    a, b, c = (absorb(memory, part) for part in x.split(30, dim=1))
    merged, whole = memory.merge(memory.merge(a, b), c), absorb(memory, x)
    torch.testing.assert_close(merged.summary.output, whole.summary.output, rtol=STATE, atol=STATE)
    torch.testing.assert_close(merged.summary.lse, whole.summary.lse, rtol=STATE, atol=STATE)
    assert merged.count.tolist() == [90, 90]


def test_other_weights_refuse_what_is_not_theirs():
    mine, other = block(seed=0), block(seed=1)
    state, x = absorb(mine, draw(1, 3, DIM)), draw(1, 2, DIM)
    for action in (
        lambda: other.update(state, x),
        lambda: other.read(state, x),
        lambda: other.merge(state, state),
        lambda: other.merge(absorb(other, x), state),
    ):
        with pytest.raises(ValueError, match=f"made by weights {state.fingerprint}"):
            action()


def test_the_fingerprint_is_that_of_the_weights():
    one = block(seed=0)
    assert (
        block(seed=0).init().fingerprint
        == one.init().fingerprint
        == copy.deepcopy(one).init().fingerprint
    )
    assert len(one.init().fingerprint) == 16
    assert one.init().fingerprint != block(seed=1).init().fingerprint
    assert one.init().fingerprint != copy.deepcopy(one).double().init().fingerprint


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("foreach", [False, True])
def test_what_is_cached_of_the_weights_follows_a_training_step(optimiser, foreach):
    memory, x, latents = block(), draw(1, 8, DIM), draw(1, 3, DIM, seed=1)
    before = absorb(memory, x)
    step = optimiser(memory.parameters(), lr=0.1, foreach=foreach)
    memory.read(memory.update(memory.init(), x), latents).square().sum().backward()
    step.step()
    assert_caches_are_fresh(memory, before, x, latents)


def test_what_is_cached_of_the_weights_follows_loading():
    memory, x, latents = block(), draw(1, 8, DIM), draw(1, 3, DIM, seed=1)
    before = absorb(memory, x)
    memory.load_state_dict(block(seed=5).state_dict())
    assert_caches_are_fresh(memory, before, x, latents)


def assert_caches_are_fresh(memory, before, x, latents):
    """As a block that was never used before answers, and old states are refused."""
    fresh = CMAB(DIM, latents=6, heads=4, feedforward=24)
    fresh.load_state_dict(memory.state_dict())
    found, expected = (m.read(absorb(m, x), latents) for m in (memory, fresh))
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="made by weights"):
        memory.update(before, x)


def test_the_cache_follows_a_change_of_dtype():
    memory, x = block(), draw(1, 8, DIM)
    absorb(memory, x)
    state = absorb(memory.double(), x.double())
    output, _ = naive_summary(CMABStack([memory]), x[0])
    torch.testing.assert_close(
        state.summary.output[0], output, rtol=1e2 * FLOAT64, atol=1e2 * FLOAT64
    )


def test_sums_that_are_not_float64_cannot_be_read():
    state = absorb(block(), draw(1, 3, DIM))
    bad = type(state)(
        type(state.summary)(
            *(getattr(state.summary, n).half() for n in ("maximum", "denominator", "numerator"))
        ),
        state.count,
        state.fingerprint,
    )
    with pytest.raises(ValueError):
        State.deserialize(bad.serialize())


def test_frozen_latents_keep_no_graph_of_the_weights_that_learn():
    memory = CMAB(dim=8, latents=3, heads=2, feedforward=16)
    memory.latents.requires_grad_(False)
    x, asked = torch.randn(1, 5, 8), torch.randn(1, 2, 8)
    for _ in range(2):  # a kept graph would be freed by the first backward
        memory.read(memory.update(memory.init((1,)), x), asked).sum().backward()
