"""Entropies, total variation and cells in use, against loops over weights; in blocks of any size."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synopsis.diagnostics import weights
from synopsis.diagnostics.weights import Scores, cells_holding, of_packing, of_unpacking
from tests.diagnostics import naive
from tests.tolerances import FLOAT32, FLOAT64

HEADS, WIDTH = 2, 3
COUNTS = st.integers(1, 6)


def scores(queries, keys, seed, masked=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randn(3, HEADS, length, WIDTH, dtype=torch.float64, generator=generator)

    seen = torch.rand(3, keys, generator=generator) < 0.6
    return Scores(draw(queries), draw(keys), seen if masked else None)


def dense(given):
    """All weights at once, sequence by sequence; 0 where there is nothing to attend to."""
    found = given.query @ given.key.mT
    if given.seen is not None:
        found = found.masked_fill(~given.seen[:, None, None], -math.inf)
    return found.softmax(-1).nan_to_num(0.0).numpy()


def same(found, expected):
    expected = [math.nan if number is None else number for number in expected]
    assert found.tolist() == pytest.approx(
        expected, rel=1e3 * FLOAT64, abs=1e3 * FLOAT64, nan_ok=True
    )


@given(COUNTS, COUNTS, st.integers(0, 99), st.booleans(), st.sampled_from([1, 40, 2**21]))
def test_packing_as_written_out(cells, keys, seed, masked, block):
    drawn = scores(cells, keys, seed, masked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "BLOCK", block)
        entropy, variation = of_packing(drawn)
    seen = torch.ones(3, keys).bool() if drawn.seen is None else drawn.seen
    rows = list(zip(dense(drawn), seen.numpy(), strict=True))
    same(entropy, [naive.pack_entropy(*row) for row in rows])
    same(variation, [naive.total_variation(*row) for row in rows])


@given(COUNTS, COUNTS, st.integers(0, 99), st.booleans(), st.sampled_from([1, 40, 2**21]))
def test_unpacking_as_written_out(items, cells, seed, masked, block):
    drawn = scores(items, cells, seed, masked=False)
    generator = torch.Generator().manual_seed(seed)
    real = torch.rand(3, items, generator=generator) < 0.6 if masked else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "BLOCK", block)
        entropy, used = of_unpacking(drawn, real)
    counted = torch.ones(3, items).bool() if real is None else real
    rows = list(zip(dense(drawn), counted.numpy(), strict=True))
    same(entropy, [naive.unpack_entropy(*row) for row in rows])
    same(used, [naive.cells_for_90(*row) for row in rows])


def test_extremes():
    """Cells that all ask for everything, and cells that each ask for something else."""
    nothing = torch.zeros(1, 1, 4, WIDTH)
    even = of_packing(Scores(nothing, nothing, None))
    assert [number.item() for number in even] == pytest.approx([1.0, 0.0], abs=FLOAT32)
    sharp = 100 * torch.eye(4)[None, None]
    apart = of_packing(Scores(sharp, sharp, None))
    assert [number.item() for number in apart] == pytest.approx([0.0, 1.0], abs=FLOAT32)


def test_rounding_does_not_count_one_cell_too_many():
    assert cells_holding(torch.full((1, 10), 0.1)).tolist() == [9]
    assert cells_holding(torch.full((1, 1), 0.1)).tolist() == [1]
