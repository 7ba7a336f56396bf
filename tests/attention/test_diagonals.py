"""Blocks made of diagonals, entry by entry, and the transpose of that."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synopsis.attention.diagonals import from_diagonals, sum_diagonals

# torch's own forward mode compiles its decompositions with torch.jit on first use
forward_mode = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
sizes = st.integers(1, 7)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@given(rows=sizes, columns=sizes)
@settings(max_examples=30, deadline=None)
def test_diagonals_and_their_sums_are_transposes(rows, columns):
    diagonals, block = drawn(2, rows + columns - 1), drawn(2, rows, columns, seed=1)
    made = from_diagonals(diagonals, rows)
    expected = torch.stack([diagonals[:, rows - 1 - i :][:, :columns] for i in range(rows)], 1)
    assert torch.equal(made, expected)
    torch.testing.assert_close((made * block).sum(), (diagonals * sum_diagonals(block)).sum())


@forward_mode
def test_diagonals_have_every_derivative():
    diagonals, block = drawn(2, 6).requires_grad_(), drawn(2, 3, 4).requires_grad_()
    for function, x in ((lambda d: from_diagonals(d, 3), diagonals), (sum_diagonals, block)):
        assert torch.autograd.gradcheck(function, x, check_forward_ad=True, check_batched_grad=True)
        assert torch.autograd.gradgradcheck(lambda v, f=function: f(v) ** 2, x)
        assert torch.equal(torch.func.vmap(function)(x), function(x))
