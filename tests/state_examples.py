"""States of every sort, for the tests of bytes and files."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from synopsis.states import (
    State,
)
from tests.golden import make_golden
from tests.golden.make_golden import NAMES


@dataclass(frozen=True)
class Everything(State):
    """One field of every sort that a state may have."""

    kind: ClassVar[str] = "test-everything"
    tensor: Tensor
    state: State
    tensors: tuple[Tensor, ...]
    states: tuple[State, ...]
    mixed: tuple[object, ...]
    nothing: None
    text: str
    whole: int
    real: float
    texts: tuple[str, ...]
    count: Tensor


def everything(dtype: torch.dtype = torch.float32) -> Everything:
    inner = make_golden.make("linear", 3)
    other = make_golden.make("attention", 2)
    ones = torch.ones(2, 3, dtype=dtype)
    return Everything(
        ones,
        inner,
        (ones[0] * 2, torch.zeros(0, 4)),
        (other,),
        ("a", ones * 3, None),
        None,
        'quotes " and \\ and ü\n',
        -(2**62),
        0.1,
        (),
        torch.tensor([3, 4]),
    )


STATES = {name: make_golden.make(name, 3) for name in NAMES} | {"everything": everything()}
EACH = pytest.mark.parametrize("state", STATES.values(), ids=STATES)


def assert_identical(a: State, b: State) -> None:
    assert type(a) is type(b) and a.serialize() == b.serialize()
    for mine, theirs in zip(tree_leaves(a), tree_leaves(b), strict=True):
        if isinstance(mine, Tensor):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
