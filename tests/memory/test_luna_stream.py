"""Luna and ConvLuna over streams: every promise of a memory, and equality with the layer on the whole sequence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.memory import (
    ConvLuna,
    ConvLunaLayer,
    Filter,
    Luna,
    LunaLayer,
    SharedLunaLayer,
    SimplifiedConvLunaLayer,
    Temperatures,
    WeibullLunaLayer,
)
from synopsis.states import State
from synopsis.testing import MEMORY_CHECKS, Subject
from tests import reference
from tests.tolerances import FLOAT64, PREDICTION, STATE

DIM, HEADS, CELLS = 8, 2, 3
BOTH = Temperatures("learn", "learn")
FILTERS = {
    "none": Filter(kernel=1),
    "each third": Filter(kernel=1, stride=3),
    "convolution 4": Filter(),
    "convolution 5 by 3": Filter("convolution", 5, 3),
    "max 4": Filter("max", 4),
    "mean 2 by 3": Filter("mean", 2, 3),
}


def conv(filtering, kind=SimplifiedConvLunaLayer) -> ConvLuna:
    return ConvLuna(kind(DIM, HEADS, 12, filtering=filtering, temperatures=BOTH), CELLS)


MEMORIES = {
    "luna": lambda: Luna(LunaLayer(DIM, HEADS, 12), CELLS),
    "luna tied": lambda: Luna(LunaLayer(DIM, HEADS, 12, values="key", pack_heads=4), CELLS),
    "shared luna": lambda: Luna(SharedLunaLayer(DIM, HEADS, 12), CELLS),
    "full": lambda: conv(Filter(), ConvLunaLayer),
    **{name: lambda f=f: conv(f) for name, f in FILTERS.items()},
}
EACH = pytest.mark.parametrize("name", MEMORIES)


def draw(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def memory(name: str):
    return reference.enliven(MEMORIES[name](), seed=5).double().eval()


def fold(made, *pieces, mask=None):
    state = made.init((len(pieces[0]),))
    with torch.no_grad():
        for piece in pieces:
            state = made.update(state, piece, mask)
    return state


@EACH
@pytest.mark.parametrize("check", MEMORY_CHECKS, ids=lambda check: check.__name__)
def test_memories_keep_their_promises(name, check):
    torch.manual_seed(0)
    check(Subject.memory(MEMORIES[name](), DIM))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MEMORIES)), st.integers(0, 25), st.data())
def test_any_pieces_give_what_the_layer_gives(name, length, data):
    made, x = memory(name), draw(2, length, DIM, seed=length)
    cuts = sorted(data.draw(st.lists(st.integers(0, length), max_size=4)))
    pieces = [x[:, a:b] for a, b in zip([0, *cuts], [*cuts, length], strict=True)]
    with torch.no_grad():
        expected = made.layer(x, made.memory)
        found = made.read(fold(made, *pieces), x)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e3 * FLOAT64, atol=1e3 * FLOAT64)


@EACH
def test_streams_of_unequal_length_are_as_each_alone(name):
    """Streams then stand at different places in their strides."""
    made, x = memory(name), draw(3, 20, DIM)
    mask, question = (
        draw(3, 20, seed=1) > torch.tensor([[-9.0], [0.0], [1.0]]),
        draw(3, 2, DIM, seed=2),
    )
    state = fold(made, x, mask=mask)
    state = fold_on(made, state, x)
    for stream in range(3):
        alone = torch.cat([x[stream : stream + 1, mask[stream]], x[stream : stream + 1]], 1)
        with torch.no_grad():
            expected = made.read(fold(made, alone), question[stream : stream + 1])
            found = made.read(state, question)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(
                one[stream], other[0], rtol=100 * FLOAT64, atol=100 * FLOAT64
            )


def fold_on(made, state, x):
    with torch.no_grad():
        return made.update(state, x)


@pytest.mark.parametrize("name", ["shared luna", "convolution 4", "convolution 5 by 3"])
def test_twenty_thousand_items_in_float32_are_within_a_millionth_of_float64(name):
    """Nearer than the layer itself in float32, whose sums over 20,000 keys round."""
    x = draw(1, 20_000, DIM, dtype=torch.float32)
    made = memory(name).float().double()  # the same weights in both
    with torch.no_grad():
        expected = made.layer.pack(made.memory, x.double()).float()
        state = fold(made.float(), *x.split([9_000, 1, 10_999], dim=1))
        found = made._packed(state)
    torch.testing.assert_close(found, expected, rtol=STATE, atol=STATE)
    assert state.nbytes == made.init().nbytes


@EACH
def test_streaming_has_the_gradients_of_the_layer(name):
    made, x = memory(name), draw(2, 11, DIM)
    state = made.init((2,))
    for piece in x.split(4, dim=1):
        state = made.update(state, piece)
    streamed, whole = made.read(state, x), made.layer(x, made.memory)
    weights = [p for p in made.parameters() if p.requires_grad]
    found, expected = (
        torch.autograd.grad(sum(t.square().sum() for t in pair), weights)
        for pair in (streamed, whole)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e4 * FLOAT64, atol=100 * FLOAT64)


@EACH
def test_the_memory_of_a_state_is_what_reading_returns(name):
    made, x = memory(name), draw(2, 11, DIM)
    state = fold(made, x)
    cells = made.read(state, x)[1]
    assert torch.equal(made.memory_of(state), cells) and cells.shape == (2, CELLS, DIM)


def test_what_claims_to_merge_and_what_cannot():
    assert Luna.merges == "any order"
    assert ConvLuna.merges is None and not hasattr(ConvLuna, "merge")


def test_the_state_is_as_small_as_it_says():
    made = memory("convolution 5 by 3").float()
    sums = HEADS * CELLS * (DIM // HEADS + 2) * 8
    assert fold(made, draw(1, 50, DIM, dtype=torch.float32)).nbytes == sums + 4 * DIM * 4 + 8


def test_another_filter_refuses_the_state():
    one, other = memory("max 4"), conv(Filter("max", 4, 2)).double()
    other.load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="made by weights"):
        other.update(one.init((1,)), draw(1, 3, DIM))


def test_a_fingerprint_is_of_what_is_computed_not_of_how_modules_print(monkeypatch):
    def made(values="input", kernel=4, stride=2, temperature="unit", pads="covered"):
        torch.manual_seed(0)
        layer = SimplifiedConvLunaLayer(
            8,
            2,
            8,
            filtering=Filter("convolution", kernel, stride, pads),
            temperatures=Temperatures(pack=temperature),
        )
        layer.pack._projections[0].values = values  # neither has a weight more than the other
        return ConvLuna(layer, cells=3)

    before = made().fingerprint
    others = [
        made(values="key"),
        made(stride=3),
        made(temperature="sqrt"),
        made(pads="published"),
    ]
    assert len({before, *(memory.fingerprint for memory in others)}) == 5
    monkeypatch.setattr(torch.nn.Linear, "extra_repr", lambda self: "printed otherwise")
    assert made().fingerprint == before


def test_a_conv_state_whose_parts_disagree_cannot_be_read():
    state = fold(memory("convolution 4"), draw(2, 9, DIM))
    bad = type(state)(state.summary, state.tail[:1], state.count, state.fingerprint)
    with pytest.raises(ValueError, match=r"\[1, 2\] streams"):
        State.deserialize(bad.serialize())


def test_layers_that_do_not_stream_are_refused():
    with pytest.raises(ValueError, match="WeibullLunaLayer packs no stream"):
        Luna(WeibullLunaLayer(DIM, HEADS, 12), CELLS)
    with pytest.raises(ValueError, match="LunaLayer has no filter"):
        ConvLuna(LunaLayer(DIM, HEADS, 12), CELLS)
    with pytest.raises(ValueError, match="does not stream"):
        Luna(SharedLunaLayer(DIM, HEADS, 12, attention_dropout=0.1), CELLS)
    with pytest.raises(ValueError, match="at least 1 cell, not 0"):
        Luna(SharedLunaLayer(DIM, HEADS, 12), 0)


def test_float32_answers_are_those_of_float64():
    for name in MEMORIES:
        made, x = memory(name), draw(2, 30, DIM)
        exact = made.read(fold(made, x), x)
        rough = made.float().read(fold(made, x.float()), x.float())
        for one, other in zip(rough, exact, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=PREDICTION, atol=PREDICTION)
