"""States as bytes and as pytrees, and the fingerprints they carry."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from synopsis.states import FORMAT_VERSION, State, header
from synopsis.weights import Weights, fingerprint
from tests.state_examples import EACH, Everything, assert_identical, everything


@EACH
def test_round_trip(state):
    data = state.serialize()
    assert_identical(State.deserialize(data), state)
    assert_identical(type(state).deserialize(data), state)


def test_plain_values_come_back_as_they_were():
    again = Everything.deserialize(everything().serialize())
    for name in ("nothing", "text", "whole", "real", "texts"):
        assert getattr(again, name) == getattr(everything(), name)
        assert type(getattr(again, name)) is type(getattr(everything(), name))
    assert again.mixed[0] == "a" and again.mixed[2] is None
    assert torch.equal(again.mixed[1], torch.full((2, 3), 3.0))


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.bool], ids=str
)
def test_every_dtype_comes_back(dtype):
    assert Everything.deserialize(everything(dtype).serialize()).tensor.dtype == dtype


def test_equal_states_give_equal_bytes_and_others_do_not():
    assert everything().serialize() == everything().serialize()
    assert replace(everything(), whole=1).serialize() != everything().serialize()
    assert replace(everything(), tensor=torch.zeros(2, 3)).serialize() != everything().serialize()


def test_what_does_not_lie_in_one_piece_is_saved_as_it_reads():
    state = replace(everything(), tensor=torch.arange(12.0).reshape(4, 3)[::2].T)
    assert torch.equal(Everything.deserialize(state.serialize()).tensor, state.tensor)
    with_graph = replace(everything(), tensor=torch.ones(2, requires_grad=True))
    assert not Everything.deserialize(with_graph.serialize()).tensor.requires_grad


def test_one_tensor_in_two_places_is_saved():
    state = everything()
    state = replace(state, tensors=(state.tensor, state.tensor))
    assert torch.equal(Everything.deserialize(state.serialize()).tensors[1], state.tensor)


@EACH
def test_nbytes_is_the_size_of_all_tensors(state):
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    assert state.nbytes == sum(t.numel() * t.element_size() for t in tensors)
    assert 0 < state.nbytes < len(state.serialize())


@EACH
def test_the_header_tells_format_count_and_kind(state):
    found = header(state.serialize())
    assert found["format"] == FORMAT_VERSION == 1
    assert found["count"] == int(state.count.sum())
    assert found["state"]["kind"] == state.kind


@EACH
def test_states_are_pytrees(state):
    assert_identical(tree_map(lambda leaf: leaf, state), state)
    doubled = tree_map(
        lambda leaf: leaf + leaf if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf,
        state,
    )
    assert type(doubled) is type(state) and doubled.nbytes == state.nbytes


def test_two_states_cannot_share_a_kind():
    with pytest.raises(TypeError, match="two states call themselves 'test-everything'"):

        @dataclass(frozen=True)
        class Impostor(State):
            kind: ClassVar[str] = "test-everything"
            count: Tensor


def test_the_fingerprint_does_not_depend_on_the_order_of_weights():
    a, b = torch.nn.Module(), torch.nn.Module()
    first, second = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))
    a.x, a.y = first, second
    b.y, b.x = second, first
    assert fingerprint(a, {"p": 1, "q": 2}) == fingerprint(b, {"q": 2, "p": 1})
    assert fingerprint(a, {"p": 1}) != fingerprint(a, {"p": 2})
    b.y, b.x = first, second
    assert fingerprint(a, {}) != fingerprint(b, {})


def test_weights_know_when_they_were_written_to():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    weights = Weights(module)
    seen = [weights.version()]
    assert weights.version() == seen[0]

    def changed() -> bool:
        seen.append(weights.version())
        return seen[-1] != seen[-2]

    with torch.no_grad():
        module[1].bias.add_(1)
    assert changed()
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})
    assert changed()
    module[0].weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert changed()
    module.double()
    assert changed()
