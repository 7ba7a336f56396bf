"""What all packed streams share: one update is as exact as many small ones, and holds no more at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synopsis.memory import InducedSetLayer, LatentMemory, Luna, SharedLunaLayer, packing
from tests.memory.naive import DIM, HEADS, HIDDEN, draw
from tests.reference import enliven, softmax_attention
from tests.tolerances import STATE

ITEMS = 20_000
MEMORIES = {
    "induced set": lambda: InducedSetLayer(DIM, HEADS, HIDDEN, memory=3),
    "latents": lambda: LatentMemory(DIM, HEADS, HIDDEN, memory=3),
    "luna": lambda: Luna(SharedLunaLayer(DIM, HEADS, HIDDEN), cells=3),
}
EACH = pytest.mark.parametrize("name", MEMORIES)
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])


def memory(name):
    return enliven(MEMORIES[name](), seed=1).eval()


def stream(length, masked):
    """Two streams in float32, and which of their items are real: none of the first 3,000 of the second."""
    mask = draw(2, length, seed=1) > -1.0
    mask[1, :3_000] = False
    return draw(2, length, DIM).float(), mask if masked else None


@EACH
@MASKED
@torch.no_grad()
def test_one_update_in_float32_is_within_a_millionth_of_float64(name, masked):
    made, (x, mask) = memory(name), stream(ITEMS, masked)
    found = made.update(made.init((2,)), x, mask).summary
    made = made.double()  # the same weights
    query, (key, value) = made.query()[0], made.key_value(x.double())
    for row, head in np.ndindex(2, HEADS):
        seen = None if mask is None else mask[row].expand(len(query[head]), -1)
        expected = softmax_attention(query[head], key[row, head], value[row, head], seen)
        for ours, theirs in zip((found.output, found.lse), expected, strict=True):
            np.testing.assert_allclose(ours[row, head], theirs, rtol=STATE, atol=STATE)


@EACH
@MASKED
@torch.no_grad()
def test_one_update_is_many_small_ones_to_the_bit(name, masked):
    made, (x, mask) = memory(name), stream(9_001, masked)
    many = made.update(made.init((2,)), x[:, :500], None if mask is None else mask[:, :500])
    one = made.update(many, x[:, 500:], None if mask is None else mask[:, 500:])
    for piece in packing.pieces(2, 8_501, least=12):
        piece = slice(500 + piece.start, 500 + piece.stop)
        many = made.update(many, x[:, piece], None if mask is None else mask[:, piece])
    assert one.serialize() == many.serialize()


@EACH
@pytest.mark.parametrize(("streams", "length", "most"), [(3, 3_000, 1024), (200, 30, 200 * 4 * 3)])
@torch.no_grad()
def test_few_items_are_folded_at_once_but_four_for_each_query(name, streams, length, most):
    made, held = memory(name), []
    whole = made.key_value
    made.key_value = lambda x: held.append(x.shape[:2].numel()) or whole(x)
    state = made.update(made.init((streams,)), draw(streams, length, DIM).float())
    assert state.count.tolist() == [length] * streams
    assert sum(held) == streams * length and most - streams < max(held) <= most


@given(st.integers(0, 3_000), st.integers(0, 5_000), st.integers(1, 8))
def test_pieces_are_short_and_cover_every_item_once(streams, length, least):
    ranges = [range(length)[piece] for piece in packing.pieces(streams, length, least)]
    assert [place for one in ranges for place in one] == list(range(length))
    assert all(0 < len(one) <= max(least, 1024 // max(1, streams)) for one in ranges)


@EACH
def test_nothing_more_changes_nothing_and_still_belongs_to_someone(name):
    made, other = memory(name), enliven(MEMORIES[name](), seed=2)
    state = made.update(made.init((2,)), draw(2, 5, DIM).float())
    nothing = draw(2, 0, DIM).float()
    assert made.update(state, nothing).serialize() == state.serialize()
    with pytest.raises(ValueError, match="made by weights"):
        other.update(state, nothing)
