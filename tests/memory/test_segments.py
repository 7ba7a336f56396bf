"""What recurrences over segments owe, whatever the network in them: cutting, waiting, masks, and no merging.

The network here is a plain recursion in which order and place of every item matter, so a wrong cut shows.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from synopsis.memory.segments import SegmentRecurrence
from synopsis.states import State
from tests.memory.naive import draw
from tests.tolerances import FLOAT64

DIM, M = 3, 2


class Recursion(SegmentRecurrence):
    """memory′ = memory/2 + Σ place·item; an item becomes item + mean of the memory before it."""

    def __init__(self, segment):
        super().__init__(DIM, segment)
        self.start = nn.Parameter(torch.ones(M, DIM, dtype=torch.float64))

    def first(self, streams):
        return self.start.expand(streams, -1, -1)

    def step(self, x, memory, mask=None):
        place = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        seen = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
        answer = x + memory.mean(1, keepdim=True)
        return answer, memory / 2 + (place * seen).sum(1, keepdim=True)


def by_hand(segment, items, memory):
    """One sequence of real items, cut from its start."""
    answers = []
    for start in range(0, len(items), segment):
        piece = items[start : start + segment]
        answers += [item + memory.mean(0) for item in piece]
        memory = memory / 2 + sum((i + 1) * item for i, item in enumerate(piece))
    return torch.stack(answers) if answers else items, memory


def close(found, expected):
    torch.testing.assert_close(found.detach(), expected, rtol=FLOAT64, atol=FLOAT64)


@pytest.mark.parametrize("segment", [1, 3, 7, 50])
@pytest.mark.parametrize("length", [0, 1, 7, 11])
def test_a_sequence_is_cut_from_its_start(segment, length):
    x = draw(2, length, DIM)
    answers, memory = Recursion(segment)(x)
    for stream in range(2):
        expected = by_hand(segment, x[stream], torch.ones(M, DIM).double())
        close(answers[stream], expected[0])
        close(memory[stream], expected[1])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(0, 20), st.data())
def test_segments_are_of_real_items_in_any_pieces(seed, segment, length, data):
    recursion, x, mask = Recursion(segment), draw(3, length, DIM, seed=seed), draw(3, length) > 0
    mask[-1] = False
    padded = x.masked_fill(~mask[..., None], torch.nan)
    answers, memory = recursion(padded, None, mask)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=3)))
    state = recursion.init((3,))
    for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
        state = recursion.update(state, padded[:, start:stop], mask[:, start:stop])
    assert torch.equal(state.count, mask.sum(1))
    assert torch.equal(state.filled, mask.sum(1) % segment)
    assert torch.count_nonzero(answers[~mask]) == 0
    for stream, real in enumerate(mask):
        expected = by_hand(segment, x[stream, real], torch.ones(M, DIM).double())
        close(answers[stream, real], expected[0])
        close(memory[stream], expected[1])
        close(recursion.memory_of(state)[stream], expected[1])


def test_a_given_memory_is_where_it_begins():
    recursion, x, memory = Recursion(4), draw(2, 9, DIM), draw(1, M, DIM, seed=1)
    expected = by_hand(4, x[1], memory[0])
    found = recursion(x, memory)
    close(found[0][1], expected[0])
    close(found[1][1], expected[1])


def test_gradients_flow_through_every_segment():
    recursion, x = Recursion(2), draw(1, 9, DIM).requires_grad_()
    recursion(x)[1].sum().backward()
    assert x.grad.any(-1).all()
    close(recursion.start.grad, torch.full((M, DIM), 2.0**-5).double())


def test_there_is_no_merge():
    assert Recursion.merges is None
    assert not hasattr(Recursion(2), "merge")


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match="segment must be at least 1, not 0"):
        Recursion(0)
    one, other = Recursion(2), Recursion(3)
    with pytest.raises(ValueError, match="made by weights"):
        other.update(one.init((1,)), draw(1, 2, DIM))
    with pytest.raises(ValueError, match="of 1 streams, but 2 came"):
        one.update(one.init((1,)), draw(2, 2, DIM))


@pytest.mark.parametrize(
    ("filled", "count"), [([2], [2]), ([-1], [2]), ([0, 0], [2]), ([0], [1, 1])]
)
def test_a_damaged_state_cannot_be_read(filled, count):
    state = Recursion(2).init((1,))
    numbers = (torch.tensor(filled), torch.tensor(count))
    bad = type(state)(state.memory, state.pending, *numbers, state.fingerprint)
    with pytest.raises(ValueError, match=r"streams; they must agree|items wait in segments of 2"):
        State.deserialize(bad.serialize())
